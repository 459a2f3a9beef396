"""The control: the learned mixture beside those that nobody had to learn, from one config, judged on the same rows.

arms      what is compared, as the config of each arm
judge     the loss of every test row, measured inside the arm's run
process   what trains an arm, and how it is ended
runs      the arms one after the other, and going on where they were
result    what they come to: differences, their errors, how many seeds more
picture   the same as a picture
command   `scalebio compare`
"""
