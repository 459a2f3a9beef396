"""ScaleBiO for Axolotl: learn how much each dataset should count, by first-order bilevel optimisation.

The index of the package:

The mathematics, and the places where it can be extended:

- `algorithm`: on plain tensors, usable in any training loop; needs torch alone.
- `hooks`: the training step drawn once, with the hooks in place (pluggy).

What a config says:

- `args`: the ``scalebio:`` block.
- `names`: readable, unique names of the sources.
- `refusals`: what cannot be done right, found before a model is loaded.

Inside the host:

- `boot`: what makes ``plugins: [scalebio]`` a name the host knows.
- `plugin`: what the host calls; short methods that delegate to `raw_config` and `wiring`.
- `sources`, `validation`, `rest`: batches that know their source, of the validation data, after learning.
- `trainer`, `learning`, `callbacks`, `layers`: the one overridden training step, what it holds, what happens around it.

A run, and what it leaves behind:

- `run`: the mixture as a run learns it.
- `state`: everything that a checkpoint needs, as a value.
- `report`, `picture`, `page`, `next_config`: from the history of a run to numbers, tables, the picture, the page for a
  colleague and the config of the next run.
- `cli`: the ``scalebio`` command; `quickstart` and `planted` are a run whose right answer is known.

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
