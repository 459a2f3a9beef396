"""ScaleBiO for Axolotl: learn how much each dataset should count, by first-order bilevel optimisation.

The index of the package:

- `algorithm`: the mathematics on plain tensors, usable in any training loop; needs torch alone.
- `hooks`: the training step drawn once, with the places where it can be extended (pluggy).
- `args`: the ``scalebio:`` block of the config.
- `plugin`: what the host calls; short methods that delegate.
- `sources`: the host's datasets as one dataset that knows the source of each token.
- `trainer`, `callbacks`: the host's trainer with one overridden training step, and when things happen around it.
- `state`: everything a checkpoint needs, as a value.
- `report`: from the history of a run to numbers, table, picture, page and the next config.
- `cli`: the ``scalebio`` command.
- `boot`: what makes ``plugins: [scalebio]`` a name the host knows.

Importing the package imports none of them; the three names that the host takes from here are loaded when asked for.
"""

TYPE_CHECKING = False  # importing `typing` would be paid at every start of an interpreter (see `boot`)
if TYPE_CHECKING:
    from .args import ScaleBiOArgs
    from .plugin import ScaleBiOPlugin
    from .trainer import ScaleBiOTrainer

__version__ = "0.1.0"
__all__ = ["ScaleBiOArgs", "ScaleBiOPlugin", "ScaleBiOTrainer"]

_MODULES = {"ScaleBiOArgs": "args", "ScaleBiOPlugin": "plugin", "ScaleBiOTrainer": "trainer"}


def __getattr__(name: str) -> object:
    """The host-facing classes, imported when asked for.

    Raises:
        RuntimeError: One of them cannot be imported. No ImportError: the host catches that (0.19, 0.20) and goes on
            without the plugin.
    """
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    try:
        module = import_module(f".{_MODULES[name]}", __name__)
    except ImportError as error:
        raise RuntimeError(
            f"scalebio: {__name__}.{name} cannot be imported ({error}); install scalebio-axolotl with its dependencies "
            "into this environment again, or take scalebio out of `plugins:` for an ordinary run"
        ) from error
    return getattr(module, name)
