"""Configs as text: what is changed in one is what was asked for; comments, order, quotes and line ends stay.

text   keys of a config, and what is put in their place
begin  `scalebio init`: a config that a user had, as one that learns a mixture
apply  `scalebio apply`: a config as the ordinary run on a mixture
"""
