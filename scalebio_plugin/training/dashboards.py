"""The mixture where people look while it trains: in the trackers that the host's config turned on.

Metrics reach them through the Trainer's log; here is what a metric cannot be. All of it by the main process alone, and
never at the price of the run: what a tracker refuses is a line of the log, and nothing more goes there.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from axolotl.utils.logging import get_logger
from transformers import TrainerCallback
from transformers.integrations import MLflowCallback, TensorBoardCallback, TrackioCallback, WandbCallback

from ..report.history import HistoryRecord, series, thinned
from ..report.mixture_file import summaries_of
from ..report.words import printable

LOG = get_logger("axolotl.scalebio")
MOST_POINTS = 500  # of a curve
FILES = ("mixture.json", "report.html")
COLUMNS = ("source", "weight", "low", "high", "gap", "s.e.", "evidence", "loss")
CHARTS = {"weights": "weight", "gaps": "gap", "evidence": "evidence", "losses": "loss"}


class Tracker:
    """One of the host's, while a run goes on; each method does nothing where the tracker has no place for it."""

    name = ""

    def __init__(self, callback: TrainerCallback):
        self.callback = callback

    def begin(self) -> None:
        """Once the host has begun its own run there."""

    def show(self, document: Mapping[str, Any], history: Sequence[HistoryRecord]) -> None:
        """The mixture as it is, at a save and at the end: the content of mixture.json, and the updates up to it."""

    def keep(self, files: Sequence[Path]) -> None:
        """What a run leaves, at its end."""


class TensorBoard(Tracker):
    """All sources in one chart of weights, of gaps, of evidence and of losses: the tab "Custom Scalars"."""

    name = "TensorBoard"

    def begin(self) -> None:
        layout = {title: ["Multiline", [f"^train/scalebio/{metric}/"]] for title, metric in CHARTS.items()}
        self.callback.tb_writer.add_custom_scalars({"scalebio": layout})


class WandB(Tracker):
    """A table of the sources, their weights in one chart, and at the end an artifact with the files."""

    name = "W&B"

    def show(self, document: Mapping[str, Any], history: Sequence[HistoryRecord]) -> None:
        import wandb

        names, kept = list(document["weights"]), thinned(history, MOST_POINTS)
        curves = series(kept, "weights", names).T.tolist()
        steps, labels = [record["step"] for record in kept], [printable(name) for name in names]
        chart = wandb.plot.line_series(steps, curves, labels, "Mixture weights", "optimiser step")
        table = wandb.Table(columns=list(COLUMNS), data=rows(document))
        wandb.log({"scalebio/weights": chart, "scalebio/mixture": table, "train/global_step": document["steps"]})

    def keep(self, files: Sequence[Path]) -> None:
        import wandb

        run = wandb.run.id if wandb.run else "run"
        artifact = wandb.Artifact(f"scalebio-{run}", type="mixture")
        for path in files:
            artifact.add_file(str(path))
        wandb.log_artifact(artifact)


class MLflow(Tracker):
    """The files among the artifacts; the host has ended its run there by then."""

    name = "MLflow"
    run_id = ""

    def begin(self) -> None:
        import mlflow

        self.run_id = mlflow.active_run().info.run_id

    def keep(self, files: Sequence[Path]) -> None:
        from mlflow import MlflowClient

        client = MlflowClient()
        for path in files:
            client.log_artifact(self.run_id, str(path), "scalebio")


class Trackio(Tracker):
    """A table of the sources. The host has ended its run there before the end: the last save is the last one."""

    name = "trackio"

    def show(self, document: Mapping[str, Any], history: Sequence[HistoryRecord]) -> None:
        import pandas as pd
        import trackio

        table = pd.DataFrame(rows(document), columns=list(COLUMNS))
        trackio.log({"scalebio/mixture": trackio.Table(dataframe=table), "train/global_step": document["steps"]})


_OF: tuple[tuple[type, type[Tracker]], ...] = (
    (TensorBoardCallback, TensorBoard),
    (WandbCallback, WandB),
    (MLflowCallback, MLflow),
    (TrackioCallback, Trackio),
)


def rows(document: Mapping[str, Any]) -> list[list[Any]]:
    """A line of COLUMNS for each source, largest weight first."""
    return [
        [printable(name), of.weight, *(of.interval or (None, None)), of.gap, of.gap_se, of.evidence, of.loss]
        for name, of in summaries_of(document).items()
    ]


class Dashboards:
    """Those that are on.

    Args:
        callbacks: Of the host's trainer.
    """

    def __init__(self, callbacks: Sequence[TrainerCallback]):
        self.trackers = [of(callback) for callback in callbacks for kind, of in _OF if isinstance(callback, kind)]
        self.shown_at: int | None = None

    def begin(self) -> None:
        self._each("its charts", lambda tracker: tracker.begin())

    def show(self, document: Mapping[str, Any], history: Callable[[], Sequence[HistoryRecord]]) -> None:
        """The mixture after an optimiser step, once.

        Args:
            history: Reads it, where there is a tracker.
        """
        if self.trackers and document["steps"] != self.shown_at:
            self.shown_at = document["steps"]
            known = history()
            self._each("the mixture", lambda tracker: tracker.show(document, known))

    def keep(self, folder: Path) -> None:
        files = [folder / name for name in FILES if (folder / name).is_file()]
        self._each("the files", lambda tracker: tracker.keep(files))

    def _each(self, what: str, tell: Callable[[Tracker], None]) -> None:
        for tracker in list(self.trackers):
            try:
                tell(tracker)
            except Exception as error:
                self.trackers.remove(tracker)
                LOG.warning(
                    f"scalebio: {what} did not reach {tracker.name} ({type(error).__name__}: {error}); nothing more is "
                    "sent there but the metrics. The run goes on"
                )
