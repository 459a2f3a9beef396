"""Hooks of the plugin's own machinery.

spec      what can be hooked, and the training step drawn once with every hook in its place
defaults  the built-in behaviour, registered like anybody's
manager   builds the pluggy manager of a run
"""
