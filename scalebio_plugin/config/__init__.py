"""From what the user wrote to frozen settings. Pydantic alone.

block      the `scalebio:` block
keys       what is wrong with single keys of it
names      of the plugin, and readable, unique ones of the sources
split      sources that the values of a column make
sources    what the block says of its sources by their names
raw        the config before the host validates it
refusals   what cannot be done right, found before a model is loaded
optimizers optimizers that cannot step two parameter sets
fused_loss which fused loss a config has
deepspeed  what a DeepSpeed JSON must not ask for
schema     the block in `axolotl config-schema`
"""
