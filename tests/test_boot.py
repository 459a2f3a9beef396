"""`plugins: [scalebio]` is a name the host knows, wherever the package is installed, and nobody else notices."""

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path
from textwrap import dedent

import pytest

ROOT = Path(__file__).parents[1]
FULL_NAME = "scalebio_plugin.ScaleBiOPlugin"

TOY_HOST = {
    **{f"axolotl/{folder}__init__.py": "" for folder in ("", "integrations/", "utils/", "utils/schemas/")},
    "axolotl/integrations/base.py": """
        def load_plugin(plugin_name):
            return f"loaded {plugin_name}"

        def normalize_plugin_name(target):
            return target.replace(":", ".")
    """,
    "axolotl/utils/schemas/config.py": "",
    "axolotl/utils/config/__init__.py": """
        import axolotl.utils.schemas.config

        def validate_config(cfg):
            cfg.setdefault("seen", 1)
            return cfg
    """,
}


def write(files: dict[str, str], root: Path) -> Path:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(dedent(text))
    return root


def run(*command: object, path: tuple[Path, ...] = (), cwd: Path | None = None) -> str:
    """What a command prints; it must succeed and say nothing on stderr."""
    env = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    if path:
        env["PYTHONPATH"] = os.pathsep.join(map(str, path))
    done = subprocess.run([str(part) for part in command], env=env, cwd=cwd, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, ""), done.stdout + done.stderr
    return done.stdout.strip()


def failing(*arguments: str, path: tuple[Path, ...], cwd: Path) -> "subprocess.CompletedProcess[str]":
    """A process of an interpreter without `site` that ends in an error."""
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, path))}
    return subprocess.run([sys.executable, "-S", *arguments], env=env, cwd=cwd, capture_output=True, text=True)


@pytest.fixture
def toy_host(tmp_path: Path) -> Path:
    """Stands in for the host: its two modules, with functions that show what they were given."""
    return write(TOY_HOST, tmp_path / "host")


class TestWithAToyHost:
    """In interpreters without `site` (-S), so that `install` is called here and not by an installed path file."""

    @pytest.fixture
    def python(self, toy_host, tmp_path):
        def python(code: str, before: str = "") -> str:
            """What is printed by code that runs after `install`."""
            code = f"{before}\nfrom scalebio_plugin.boot import install\ninstall()\n{dedent(code)}"
            return run(sys.executable, "-S", "-c", code, path=(toy_host, ROOT), cwd=tmp_path)

        return python

    def test_costs_a_process_without_the_host_two_small_modules(self, python):
        before = "import sys; before = set(sys.modules)"
        added = python('print(*sorted(set(sys.modules) - before - {"__future__"}))', before)
        assert added == "scalebio_plugin scalebio_plugin.boot"

    @pytest.mark.parametrize(
        "name",
        [
            *("scalebio", "ScaleBiO", "scalebio_plugin", FULL_NAME, FULL_NAME.replace(".", ":")),
            *("scalebio_plugin.plugin.ScaleBiOPlugin", "other.Plugin", "other.scalebio"),
            "scalebio_plugin.compare.judge.JudgePlugin",
        ],
    )
    def test_only_our_names_are_replaced(self, python, name):
        expected = name if name.startswith("other") or name.endswith("JudgePlugin") else FULL_NAME
        printed = python(f"""
            from axolotl.integrations.base import load_plugin, normalize_plugin_name
            print(load_plugin({name!r}), normalize_plugin_name({name!r}))
        """)
        assert printed == f"loaded {expected} {expected.replace(':', '.')}"

    @pytest.mark.parametrize("imported", ["before", "after"])
    def test_order_of_import_and_install_and_their_number_do_not_matter(self, python, imported):
        host = "import axolotl.integrations.base as base, axolotl.utils.config as config"
        code = """
            install()
            import axolotl.integrations.base as base, axolotl.utils.config as config
            install()
            print(base.load_plugin("scalebio"))
            functions = base.load_plugin, base.normalize_plugin_name, config.validate_config
            print(*(hasattr(f.__wrapped__, "__wrapped__") for f in functions))
        """
        assert python(code, host if imported == "before" else "") == f"loaded {FULL_NAME}\nFalse False False"

    def test_leaves_no_trace_in_the_import_system(self, python):
        code = """
            import axolotl.integrations.base as base
            waiting = len(sys.meta_path) - len(before)
            import axolotl.utils.config
            print(waiting, sys.meta_path == before)
            print(type(base.__spec__.loader).__name__, base.__loader__ is base.__spec__.loader)
            print("def load_plugin" in inspect.getsource(base))
        """
        printed = python(code, "import inspect, sys; before = list(sys.meta_path)")
        assert printed == "1 True\nSourceFileLoader True\nTrue"

    def test_an_error_for_a_person_ends_without_a_traceback_and_others_with_theirs(self, toy_host, tmp_path):
        code = "from scalebio_plugin.boot import install\ninstall()\nimport axolotl.utils.config\nraise {}"
        for raised, status, said in (
            ("ValueError('scalebio.penalty: no')", 78, "\nscalebio.penalty: no\n"),
            ("ValueError('unrelated')", 1, "Traceback"),
            ("KeyError('scalebio')", 1, "Traceback"),
        ):
            done = failing("-c", code.format(raised), path=(toy_host, ROOT), cwd=tmp_path)
            assert (done.returncode, done.stderr[: len(said)]) == (status, said)

    @pytest.mark.parametrize(
        ("script", "status", "ours"),
        [("axolotl.cli.train", 78, True), ("axolotl.cli.train", 1, False), ("own", 78, False)],
    )
    def test_the_launcher_adds_no_traceback_to_it(self, toy_host, tmp_path, script, status, ours):
        launch = """
            import subprocess, sys

            def simple_launcher(args):
                subprocess.run([sys.executable, "-c", f"import sys; sys.exit({args.status})"], check=True)
        """
        empty = {f"accelerate/{folder}__init__.py": "" for folder in ("", "commands/")}
        write({**empty, "accelerate/commands/launch.py": launch}, toy_host)
        code = f"""
            from scalebio_plugin.boot import install
            install()
            from types import SimpleNamespace
            from accelerate.commands.launch import simple_launcher
            simple_launcher(SimpleNamespace(training_script={script!r}, status={status}))
        """
        done = failing("-c", dedent(code), path=(toy_host, ROOT), cwd=tmp_path)
        assert (done.returncode, "Traceback" in done.stderr) == ((78, False) if ours else (1, True))

    def test_a_spec_that_is_only_looked_at_does_not_use_it_up(self, python):
        printed = python("""
            from importlib.util import find_spec
            print(find_spec("axolotl.integrations.base").loader.get_filename().endswith("base.py"))
            from axolotl.integrations.base import load_plugin
            print(load_plugin("scalebio"))
        """)
        assert printed == f"True\nloaded {FULL_NAME}"

    def test_a_host_that_fails_to_import_fails_as_ever_and_is_ready_at_the_next_try(self, python, toy_host):
        base = toy_host / "axolotl/integrations/base.py"
        base.write_text("import os\nif 'BROKEN' in os.environ: raise ImportError('broken host')\n" + base.read_text())
        printed = python("""
            import os
            os.environ["BROKEN"] = "1"
            try:
                import axolotl.integrations.base
            except ImportError as error:
                print(error)
            del os.environ["BROKEN"]
            from axolotl.integrations.base import load_plugin
            print(load_plugin("scalebio"))
        """)
        assert printed == f"broken host\nloaded {FULL_NAME}"

    def test_a_host_without_these_functions_is_left_alone(self, python, toy_host):
        (toy_host / "axolotl/integrations/base.py").write_text("def load(name): return name")
        (toy_host / "axolotl/utils/config/__init__.py").write_text("")
        printed = python("""
            import axolotl.integrations.base as base, axolotl.utils.config as config
            print([name for module in (base, config) for name in vars(module) if not name.startswith("__")])
        """)
        assert printed == "['load']"

    def test_works_beside_another_finder_that_asks_all_finders(self, python):
        printed = python("""
            import sys
            class Asking:
                def find_spec(self, name, path=None, target=None):
                    others = (f.find_spec(name, path, target) for f in sys.meta_path if f is not self)
                    return next((spec for spec in others if spec), None)
            sys.meta_path.insert(0, Asking())
            from axolotl.integrations.base import load_plugin
            print(load_plugin("scalebio"))
        """)
        assert printed == f"loaded {FULL_NAME}"


class TestInstalled:
    """In this environment, where the path file calls `install`: fresh interpreters of every kind."""

    def test_a_process_without_the_host_imports_no_third_party(self):
        printed = run(sys.executable, "-c", "import sys; print({'axolotl', 'torch', 'pydantic'} & set(sys.modules))")
        assert printed == "set()"

    def test_a_fresh_interpreter_and_its_spawned_child_know_the_name(self, toy_host, tmp_path):
        script = """
            import multiprocessing

            def loaded():
                from axolotl.integrations.base import load_plugin
                return load_plugin("scalebio")

            if __name__ == "__main__":
                with multiprocessing.get_context("spawn").Pool(1) as pool:
                    print(loaded(), "and", pool.apply(loaded))
        """
        write({"script.py": script}, tmp_path)
        printed = run(sys.executable, "script.py", path=(toy_host,), cwd=tmp_path)
        assert printed == f"loaded {FULL_NAME} and loaded {FULL_NAME}"


@pytest.mark.host_contract
class TestWithTheHost:
    @pytest.fixture
    def manager(self):
        """The host's plugin manager, a singleton, empty for one test."""
        from axolotl.integrations.base import PluginManager

        manager = PluginManager.get_instance()
        kept, manager.plugins = manager.plugins, type(manager.plugins)()
        yield manager
        manager.plugins = kept

    @pytest.fixture
    def config(self):
        from axolotl.utils.dict import DictDefault

        numbers = {"micro_batch_size": 1, "gradient_accumulation_steps": 1, "learning_rate": 1e-3}
        return DictDefault({"base_model": "tiny", "datasets": [{"path": "a.jsonl", "type": "alpaca"}], **numbers})

    @pytest.mark.parametrize("name", ["scalebio", FULL_NAME])
    def test_both_names_load_the_plugin(self, name):
        from axolotl.integrations.base import load_plugin

        from scalebio_plugin import ScaleBiOPlugin

        assert type(load_plugin(name)) is ScaleBiOPlugin

    @pytest.mark.parametrize("name", ["scalebio", FULL_NAME])
    def test_the_manager_registers_it_under_a_name_it_finds_again(self, manager, name):
        from axolotl.integrations import base

        from scalebio_plugin import ScaleBiOPlugin

        # Up to 0.20 the host looks a plugin up by the name as it is listed, from 0.21 on by the normalised one.
        key = base.normalize_plugin_name(name) if hasattr(base, "normalize_plugin_name") else name
        manager.register(key)
        assert [(name, type(plugin)) for name, plugin in manager.plugins.items()] == [(key, ScaleBiOPlugin)]

    def test_where_the_host_normalises_names_both_are_one_plugin(self):
        from axolotl.integrations import base

        normalize = getattr(base, "normalize_plugin_name", lambda name: FULL_NAME)
        assert normalize("scalebio") == normalize(FULL_NAME) == normalize("scalebio_plugin:ScaleBiOPlugin") == FULL_NAME

    @pytest.mark.parametrize("block", [{"penalty": 3.0}, {}, None, False])
    @pytest.mark.parametrize("plugins", [None, [], ["axolotl.integrations.liger.LigerPlugin"]])
    def test_a_block_without_the_plugin_is_an_error(self, manager, config, block, plugins):
        from axolotl.utils.config import validate_config

        config.update({"scalebio": block, "plugins": plugins})
        with pytest.raises(ValueError, match=r"`scalebio:` block.*add `plugins: \[scalebio\]`"):
            validate_config(config)

    @pytest.mark.parametrize("key", ["scalebio.penalty", "scalebio__penalty", "ScaleBiO", "scale_bio"])
    def test_so_is_what_is_called_like_it(self, manager, config, key):
        from axolotl.utils.config import validate_config

        config.update({key: 20, "plugins": ["axolotl.integrations.liger.LigerPlugin"]})
        with pytest.raises(ValueError, match=rf"has a `{re.escape(key)}:` block.*add `plugins: \[scalebio\]`"):
            validate_config(config)

    def test_a_config_without_the_block_is_what_the_host_makes_of_it(self, manager, config):
        from axolotl.utils.config import validate_config

        assert validate_config(config) == validate_config.__wrapped__(config)

    def test_a_plugin_that_cannot_be_imported_stops_the_run(self, manager, config, monkeypatch):
        """The host would swallow an ImportError, up to 0.20, and run plain SFT."""
        from axolotl.cli.config import prepare_plugins

        config.plugins = ["scalebio"]
        monkeypatch.setitem(sys.modules, "scalebio_plugin.plugin", None)
        with pytest.raises(RuntimeError, match=r"ScaleBiOPlugin cannot be imported"):
            prepare_plugins(config)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["wheel", "editable"], scope="class")
class TestBuiltAndInstalled:
    """Built and installed into environments of its own, offline."""

    @pytest.fixture(scope="class")
    def wheel(self, kind, tmp_path_factory):
        folder = tmp_path_factory.mktemp(kind)
        run(sys.executable, "-c", f"import hatchling.build as b; b.build_{kind}({str(folder)!r})", cwd=ROOT)
        (wheel,) = folder.glob("*.whl")
        return wheel

    @pytest.fixture
    def python(self, wheel, tmp_path):
        venv.create(tmp_path / "venv", symlinks=True)
        python = tmp_path / "venv/bin/python"
        self.pip(python, "install", "--no-compile", "--no-deps", "--no-index", wheel)
        return python

    @staticmethod
    def pip(python: Path, *arguments: object) -> None:
        run(sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check", "--python", python, *arguments)

    @staticmethod
    def site_packages(python: Path) -> Path:
        (directory,) = python.parents[1].glob("lib/python*/site-packages")
        return directory

    def test_the_path_files_are_at_the_root_alone(self, wheel):
        names = [name for name in zipfile.ZipFile(wheel).namelist() if name.endswith((".pth", ".start"))]
        assert sorted(name for name in names if not name.startswith("_")) == [
            "scalebio_axolotl.pth",
            "scalebio_axolotl.start",
        ]

    def test_the_example_configs_travel_with_the_code(self, kind, wheel):
        names = zipfile.ZipFile(wheel).namelist()
        assert ("scalebio_plugin/example_configs/quickstart.yml" in names) is (kind == "wheel")  # else in the checkout

    def test_a_process_without_the_host_has_imported_our_two_modules_only(self, python, tmp_path):
        code = """
            import sys
            stdlib = {"__main__", "sitecustomize", *sys.stdlib_module_names}
            print(*sorted(name for name in sys.modules if name.partition(".")[0] not in stdlib))
        """
        assert run(python, "-c", dedent(code), cwd=tmp_path) == "scalebio_plugin scalebio_plugin.boot"

    def test_the_host_knows_the_name(self, python, tmp_path):
        host = sysconfig.get_paths()["purelib"]
        (self.site_packages(python) / "zz_host.pth").write_text(host + "\n")
        code = "from axolotl.integrations.base import load_plugin; print(type(load_plugin('scalebio')).__name__)"
        done = subprocess.run([python, "-c", code], cwd=tmp_path, capture_output=True, text=True)
        assert (done.returncode, done.stdout.split()[-1:]) == (0, ["ScaleBiOPlugin"]), done.stderr

    def test_uninstalling_takes_it_away(self, python, tmp_path):
        self.pip(python, "uninstall", "--yes", "scalebio-axolotl")
        assert not list((tmp_path / "venv/lib").rglob("*scalebio*"))
        assert run(python, "-c", "import sys; print('scalebio_plugin' in sys.modules)", cwd=tmp_path) == "False"

    def test_a_path_file_left_behind_is_silent(self, kind, python, tmp_path):
        site_packages = self.site_packages(python)
        if kind == "wheel":
            shutil.rmtree(site_packages / "scalebio_plugin")
        else:
            (site_packages / "_scalebio_axolotl.pth").write_text(str(tmp_path / "moved") + "\n")
        assert run(python, "-c", "import sys; print('scalebio_plugin' in sys.modules)", cwd=tmp_path) == "False"


@pytest.mark.host_contract
@pytest.mark.slow
def test_config_schema_shows_every_leaf_of_the_block():
    command = [sys.executable, "-m", "axolotl.cli.main", "config-schema"]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    for leaf in ("mixture_learning_rate", "active_layers", "max_repeats", "base_model"):
        assert leaf in printed
