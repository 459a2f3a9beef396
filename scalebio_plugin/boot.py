"""Make ``plugins: [scalebio]`` a name the host knows.

The host takes a plugin's dotted path, ``module.Class``, and nothing shorter; no entry point changes that. So a path
file beside the installed package (``scalebio_axolotl.pth``; ``.start`` from Python 3.15 on, PEP 829) calls `install`
when an interpreter starts. It leaves one finder on ``sys.meta_path``, which waits for modules of the host and adjusts
each once it has been imported:

- ``axolotl.integrations.base``: ``scalebio``, in any case, stands for ``scalebio_plugin.ScaleBiOPlugin``;
- ``axolotl.utils.config``: a ``scalebio:`` block that no loaded plugin reads is an error. The host would drop it as an
  unknown key and run plain SFT. From then on an error for a person ends the process without a traceback (`errors`);
- ``axolotl.utils.schemas.config``, for the command ``axolotl config-schema`` alone: the block is in the schema;
- ``accelerate.commands.launch``, in the launcher's process: it adds no traceback to such an error of the host's run.

Then the finder is gone. A process that never imports the host pays for this file alone, hence nothing is imported here;
a config that names neither the plugin nor the block gets from the host what it always got.
"""

from __future__ import annotations

import sys

TYPE_CHECKING = False  # `typing` would double the cost at every start of an interpreter; type checkers know this name
if TYPE_CHECKING:
    from collections.abc import Callable
    from types import ModuleType
    from typing import Any

SHORT_NAME = "scalebio"
FULL_NAME = "scalebio_plugin.ScaleBiOPlugin"
_LAUNCHER = "accelerate.commands.launch"


def install() -> None:
    """Adjust the host's modules: now where they are imported already, else as soon as they are. Idempotent."""
    waiting = {}
    for name, adjust in _ADJUSTMENTS.items():
        if name in sys.modules:
            adjust(sys.modules[name])
        else:
            waiting[name] = adjust
    if waiting and not any(isinstance(finder, _HostFinder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _HostFinder(waiting))


def _know_short_name(base: ModuleType) -> None:
    from .config.names import is_the_plugin

    def full(name: object) -> object:
        return FULL_NAME if is_the_plugin(str(name)) else name

    _wrap(base, "load_plugin", lambda load_plugin: lambda plugin_name: load_plugin(full(plugin_name)))
    # From 0.21 on the name the manager files a plugin under: both spellings are one plugin.
    _wrap(base, "normalize_plugin_name", lambda normalize: lambda target: normalize(full(target)))


def _refuse_unread_block(config: ModuleType) -> None:
    def checked(validate_config: Callable[..., Any]) -> Callable[..., Any]:
        def validate(cfg: Any, *args: Any, **kwargs: Any) -> Any:
            validated = validate_config(cfg, *args, **kwargs)
            unread = _unread(cfg, validated)
            if unread is not None:
                raise ValueError(
                    f"scalebio: the config has a `{unread}:` block, but no plugin that was loaded reads it, so the run "
                    f"would be an ordinary one (plugins: {list(cfg.get('plugins') or [])}); add `plugins: [scalebio]`, "
                    "or remove the block. If the plugin is listed already, the log above says why it was not loaded."
                )
            return validated

        return validate

    _wrap(config, "validate_config", checked)


def _say_errors(config: ModuleType) -> None:
    """Of a process that runs the host; the launcher, which does not, is another one."""
    from .errors import install as install_errors

    install_errors()
    _refuse_unread_block(config)
    for finder in sys.meta_path:
        if isinstance(finder, _HostFinder):
            finder.waiting.pop(_LAUNCHER, None)


def _launch_quietly(launch: ModuleType) -> None:
    from .errors import ending_quietly

    for name in ("simple_launcher", "multi_gpu_launcher", "deepspeed_launcher"):
        _wrap(launch, name, ending_quietly)


def _unread(cfg: Any, validated: Any) -> str | None:
    """The key of the block, if the host dropped it. An empty one (``scalebio:``) it always drops: the list decides.

    Where the plugin is loaded, it refuses itself what is no block but is called like one.
    """
    from .config.names import keys_like_the_block

    listed = any(SHORT_NAME in str(name).lower() for name in cfg.get("plugins") or [])
    if "scalebio" in cfg and validated.get("scalebio") is None and (cfg["scalebio"] is not None or not listed):
        return SHORT_NAME
    return None if listed else next(iter(keys_like_the_block(cfg)), None)


def _show_block_in_schema(schemas: ModuleType) -> None:
    if sys.argv[1:2] == ["config-schema"]:
        from .config.schema import with_block

        schemas.AxolotlInputConfig = with_block(schemas.AxolotlInputConfig)  # type: ignore[attr-defined]


_ADJUSTMENTS: dict[str, Callable[[ModuleType], None]] = {
    "axolotl.integrations.base": _know_short_name,
    "axolotl.utils.config": _say_errors,
    "axolotl.utils.schemas.config": _show_block_in_schema,
    _LAUNCHER: _launch_quietly,
}


def _wrap(module: ModuleType, name: str, wrapper_of: Callable[[Callable[..., Any]], Callable[..., Any]]) -> None:
    """Replace a function of the host by its wrapper; one that is missing, or wrapped before, stays as it is."""
    from functools import wraps

    function = getattr(module, name, None)
    if callable(function) and not hasattr(function, "_scalebio"):
        wrapper = wraps(function)(wrapper_of(function))
        wrapper._scalebio = True  # type: ignore[attr-defined]
        setattr(module, name, wrapper)


class _HostFinder:
    """Lets the other finders find the modules it waits for, and has each adjusted after its first execution."""

    def __init__(self, waiting: dict[str, Callable[[ModuleType], None]]) -> None:
        self.waiting = waiting

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> Any:
        adjust = self.waiting.pop(name, None)  # popped meanwhile, so that a finder which asks all finders ends
        if adjust is None:
            return None
        try:
            finders = [finder for finder in sys.meta_path if finder is not self and hasattr(finder, "find_spec")]
            specs = (finder.find_spec(name, path, target) for finder in finders)
            spec: Any = next((spec for spec in specs if spec is not None), None)
        finally:
            self.waiting[name] = adjust  # a spec that is only looked at must not use the adjustment up
        if spec is not None and hasattr(spec.loader, "exec_module"):
            spec.loader = _AdjustingLoader(spec.loader, self)
        return spec

    def adjust(self, module: ModuleType) -> None:
        adjust = self.waiting.pop(module.__name__, None)
        if adjust is not None:
            adjust(module)
        if not self.waiting and self in sys.meta_path:
            sys.meta_path.remove(self)


class _AdjustingLoader:
    """Stands in for a module's loader until the module is executed; everything else is that loader's."""

    def __init__(self, loader: Any, finder: _HostFinder) -> None:
        self.loader = loader
        self.finder = finder

    def exec_module(self, module: ModuleType) -> None:
        module.__loader__ = self.loader
        if module.__spec__ is not None:
            module.__spec__.loader = self.loader
        self.loader.exec_module(module)
        self.finder.adjust(module)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.loader, name)
