"""ScaleBiO for Axolotl: learn how much each dataset should count, by first-order bilevel optimisation.

The index of the package, from the floor up:

- `algorithm`: the mathematics, on plain tensors, usable in any training loop; needs torch alone.
- `config`: from what the user wrote to frozen settings, and what cannot be done right, found before a model is loaded.
- `report`: what a run leaves: history, numbers, tables, the picture, the page, the config of the next run.
- `hooks`: the training step drawn once, with the hooks in place (pluggy).
- `engines`: how two parameter sets live on one module, in one process, under DDP, FSDP2 and DeepSpeed.
- `estimate`: bytes and compute of a run, before anything is loaded.
- `data`: from `datasets:` to batches of tokens that know their source.
- `training`: the one overridden training step and what surrounds it.
- `edit`: configs as text; `compare`: the mixture beside others; `quickstart`: a run whose right answer is known.
- `plugin`: what the host calls; `boot`: what makes ``plugins: [scalebio]`` a name that it knows.
- `cli`: the ``scalebio`` command; `commands`: what its subcommands do; `errors`: what a person sees of an error.

Importing the package imports none of them; the three names that the host takes from here are loaded when asked for.
"""

TYPE_CHECKING = False  # importing `typing` would be paid at every start of an interpreter (see `boot`)
if TYPE_CHECKING:
    from .config.block import ScaleBiOArgs
    from .plugin import ScaleBiOPlugin
    from .training.trainer import ScaleBiOTrainer

__version__ = "0.1.0"
__all__ = ["ScaleBiOArgs", "ScaleBiOPlugin", "ScaleBiOTrainer"]

_MODULES = {"ScaleBiOArgs": "config.block", "ScaleBiOPlugin": "plugin", "ScaleBiOTrainer": "training.trainer"}


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
