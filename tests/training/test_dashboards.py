"""What the trackers of the host show of a mixture besides its metrics, read from what they wrote."""

from __future__ import annotations

import json
import logging
import sqlite3
import sys
from collections.abc import Iterator
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from scalebio_plugin.report.history import read_history, thinned
from scalebio_plugin.report.mixture_file import mixture_document, read_mixture
from scalebio_plugin.report.summary import summarise
from scalebio_plugin.training.callbacks import ScaleBiOCallback
from scalebio_plugin.training.dashboards import COLUMNS, Dashboards, rows
from tests import host
from tests.report.histories import drifting_history, facts

HOST = tuple(map(int, metadata.version("axolotl").split(".")[:2]))
NAMES = {"clean", "wrong", "offtopic"}
SAVES: dict[str, Any] = {"save_strategy": "steps", "save_steps": 3}  # a mixture to show in mid-run


@pytest.fixture(scope="module")
def tracked(inputs: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[host.Run]:
    """A run with TensorBoard and W&B, which is offline."""
    import wandb

    folder = tmp_path_factory.mktemp("tracked")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WANDB_DIR", str(folder))
        patch.setenv("WANDB_SILENT", "true")
        patch.setenv("WANDB_PROJECT", "")  # the host sets it, and it would stay
        config = {"use_tensorboard": True, "use_wandb": True, "wandb_project": "mixture", "output_dir": f"{folder}/out"}
        run = host.train(inputs, **config, **SAVES)
        wandb.finish()
        yield run


def wandb_run(run: host.Run) -> Path:
    (found,) = Path(run.cfg.output_dir).parent.glob("wandb/offline-run-*")
    return found


def wandb_tables(run: host.Run, key: str) -> list[dict[str, Any]]:
    """In the order in which they were logged: the step is in the name."""
    paths = sorted(
        wandb_run(run).glob(f"files/media/table/{key}_*.json"), key=lambda path: int(path.name.split("_")[-2])
    )
    return [json.loads(path.read_text()) for path in paths]


def test_tensorboard_has_all_sources_in_one_chart(tracked: host.Run) -> None:
    """Its own plugin finds the layout in the run's event files, and the curves by it."""
    from tensorboard.backend.event_processing.data_provider import MultiplexerDataProvider
    from tensorboard.backend.event_processing.plugin_event_multiplexer import EventMultiplexer
    from tensorboard.context import RequestContext
    from tensorboard.plugins.base_plugin import TBContext
    from tensorboard.plugins.custom_scalar.custom_scalars_plugin import CustomScalarsPlugin
    from tensorboard.plugins.scalar.scalars_plugin import ScalarsPlugin

    files = EventMultiplexer().AddRunsFromDirectory(f"{tracked.cfg.output_dir}/runs")
    files.Reload()
    plugins: dict[str, Any] = {}
    context = TBContext(
        data_provider=MultiplexerDataProvider(files, tracked.cfg.output_dir), plugin_name_to_instance=plugins
    )
    plugins["scalars"], plugin = ScalarsPlugin(context), CustomScalarsPlugin(context)
    (category,) = json.loads(plugin.layout_impl(RequestContext(), ""))["category"]
    charts = {chart["title"]: chart["multiline"]["tag"] for chart in category["chart"]}
    assert list(charts) == ["weights", "gaps", "evidence", "losses"]
    (run,) = files.Runs()
    for title, metric in [("weights", "weight"), ("gaps", "gap")]:
        (pattern,) = charts[title]
        curves = plugin.scalars_impl(RequestContext(), run, pattern, "")["tag_to_events"]
        assert set(curves) == {f"train/scalebio/{metric}/{name}" for name in NAMES}
        assert {len(events) for events in curves.values()} == {6}


def test_wandb_has_a_table_and_one_chart_of_the_weights_at_every_save(tracked: host.Run) -> None:
    document = read_mixture(tracked.folder / "mixture.json")
    half, end = wandb_tables(tracked, "scalebio/mixture")
    assert end["columns"] == list(COLUMNS)
    assert end["data"] == rows(document)
    assert half["data"] != end["data"]
    history = read_history(tracked.folder / "history.jsonl")
    half, end = wandb_tables(tracked, "scalebio/weights_table")
    assert len(half["data"]) == 3 * len(NAMES)
    curve = [(step, weight) for step, name, weight in _columns(end, "step", "lineKey", "lineVal") if name == "clean"]
    assert curve == [(record["step"], record["weights"]["clean"]) for record in history]


def _columns(table: dict[str, Any], *names: str) -> list[tuple[Any, ...]]:
    at = [table["columns"].index(name) for name in names]
    return [tuple(row[i] for i in at) for row in table["data"]]


def test_wandb_has_the_files_in_an_artifact(tracked: host.Run) -> None:
    content = next(wandb_run(tracked).glob("*.wandb")).read_bytes()
    for name in ("mixture.json", "report.html"):
        assert name.encode() in content
    assert b"scalebio-" in content


def test_mlflow_has_the_files_among_its_artifacts(
    inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import mlflow

    where = (tmp_path / "store").as_uri()
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")  # a database would need packages beside MLflow's smallest
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "")  # the host sets both, and they would stay
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "")
    host.train(
        inputs,
        output_dir=str(tmp_path / "out"),
        use_mlflow=True,
        mlflow_tracking_uri=where,
        mlflow_experiment_name="mixture",
        max_steps=2,
    )
    client = mlflow.MlflowClient(tracking_uri=where)
    (run,) = client.search_runs([client.get_experiment_by_name("mixture").experiment_id])
    assert run.info.status == "FINISHED"
    assert [file.path for file in client.list_artifacts(run.info.run_id, "scalebio")] == [
        "scalebio/mixture.json",
        "scalebio/report.html",
    ]


@pytest.mark.slow
def test_trackio_takes_the_table(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the host, whose older versions cannot start it: they pass an argument that it does not know."""
    import trackio
    from transformers.integrations import TrackioCallback

    logged: list[dict[str, Any]] = []
    monkeypatch.setattr(trackio, "log", logged.append)
    history, names = drifting_history(2, 8)
    document = mixture_document(summarise(history, names), facts(dict.fromkeys(names, 900)), None)
    Dashboards([TrackioCallback()]).show({**document, "steps": 8}, lambda: history)
    (line,) = logged
    assert line["train/global_step"] == 8
    table = line["scalebio/mixture"].data
    records = table if isinstance(table, list) else table.to_dict(orient="records")  # as newer versions have it
    assert [list(record.values()) for record in records] == rows(document)


@pytest.mark.slow
@pytest.mark.host_contract
@pytest.mark.skipif(HOST < (0, 21), reason="before 0.21 the host passes trackio an argument that it does not know")
def test_trackio_has_a_table_of_every_save(inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import trackio  # noqa: F401

    for module in [module for name, module in sys.modules.items() if name.startswith("trackio")]:
        if hasattr(module, "TRACKIO_DIR"):  # read from the environment when it is imported
            monkeypatch.setattr(module, "TRACKIO_DIR", tmp_path / "trackio")
    monkeypatch.setenv("TRACKIO_PROJECT_NAME", "")  # the host sets it, and it would stay
    config = {"use_trackio": True, "trackio_project_name": "mixture", "output_dir": str(tmp_path / "out")}
    run = host.train(inputs, **config, **SAVES)
    (database,) = (tmp_path / "trackio").glob("*.db")
    with sqlite3.connect(database) as connection:
        logged = [json.loads(line) for (line,) in connection.execute("select metrics from metrics order by id")]
    tables = [line["scalebio/mixture"]["_value"] for line in logged if "scalebio/mixture" in line]
    assert len(tables) == 2
    document = read_mixture(run.folder / "mixture.json")
    assert [record["weight"] for record in tables[1]] == list(document["weights"].values())


def test_no_tracker_that_the_config_left_off_is_told_of_it(inputs: Path, tmp_path: Path) -> None:
    run = host.train(inputs, output_dir=str(tmp_path / "out"), max_steps=1)
    assert Dashboards(run.trainer.callback_handler.callbacks).trackers == []


class _Broken:
    """A writer on a full disk."""

    def add_custom_scalars(self, layout: Any) -> None:
        raise OSError("no room")


def test_what_a_tracker_refuses_is_one_line_and_it_is_left_alone(caplog: pytest.LogCaptureFixture) -> None:
    from transformers.integrations import TensorBoardCallback

    dashboards = Dashboards(
        [TensorBoardCallback(_Broken()), TensorBoardCallback(SimpleNamespace(add_custom_scalars=list))]
    )
    with caplog.at_level(logging.WARNING, "axolotl.scalebio"):
        dashboards.begin()
    (line,) = caplog.messages
    assert "its charts did not reach TensorBoard (OSError: no room)" in line
    assert len(dashboards.trackers) == 1


@pytest.mark.parametrize(("main", "told"), [(True, 1), (False, 0)])
def test_the_main_process_alone_tells_them(main: bool, told: int, tmp_path: Path) -> None:
    from transformers.integrations import TensorBoardCallback

    layouts: list[Any] = []
    writer = SimpleNamespace(add_custom_scalars=layouts.append)
    trainer = SimpleNamespace(callback_handler=SimpleNamespace(callbacks=[TensorBoardCallback(writer)]))
    learning = SimpleNamespace(
        manager=SimpleNamespace(hook=SimpleNamespace(scalebio_run_started=lambda run: None)),
        facts=None,
        folder=SimpleNamespace(begin=lambda: None, path=tmp_path),
    )
    state = SimpleNamespace(global_step=0, is_world_process_zero=main)
    ScaleBiOCallback(trainer, learning).on_train_begin(None, state, None)  # type: ignore[arg-type]
    assert len(layouts) == told


def test_a_mixture_is_shown_once_after_a_step() -> None:
    shown: list[int] = []
    dashboards = Dashboards([])
    dashboards.trackers = [SimpleNamespace(show=lambda document, history: shown.append(document["steps"]), name="")]  # type: ignore[list-item]
    for step in (3, 6, 6):
        dashboards.show({"steps": step}, list)
    assert shown == [3, 6]


def test_a_long_history_is_thinned_and_keeps_its_ends() -> None:
    history, _ = drifting_history(2, 1234)
    kept = [record["step"] for record in thinned(history, 500)]
    assert (len(kept), kept[0], kept[-1]) == (500, 1, 1234)
    assert {b - a for a, b in zip(kept, kept[1:], strict=False)} == {2, 3}
    assert thinned(history[:500], 500) == history[:500]


def test_a_rule_without_intervals_has_rows_too() -> None:
    history, names = drifting_history(2, 4)
    known = {name: replace(of, interval=None) for name, of in summarise(history, names).items()}
    document = mixture_document(known, facts(dict.fromkeys(names, 900)), None)
    assert [row[2:4] for row in rows(document)] == [[None, None], [None, None]]
