"""The server of forks imports this first: nothing is garbage while it imports, and to look for it takes a fifth of it.

Each fork collects again, see `on_rank` in tests/engines/launch.py and `train` in tests/host.py.
"""

import gc

gc.disable()
