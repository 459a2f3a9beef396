"""The arms, run one after the other through the user's launcher; one that is judged is not run again."""

from __future__ import annotations

import hashlib
import json
import shlex
import shutil
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import yaml

from ..report.files import replace_file
from ..report.mixture_file import SCHEMA, read_mixture, write_mixture
from ..report.words import printable
from . import arms as of_arms
from .arms import LEARNED, OWN, PROPORTIONAL, RANDOM, RUN, VALIDATION, VALIDATION_DRAWN, Config
from .process import ending_as_ctrl_c, only_one_in, status_of
from .result import JUDGED, Judged, document_of, read_judged

_WEIGHTS = ("*.safetensors", "*.bin", "*.pt", "*.pth")  # of a final model, in an arm's folder
_MODELS_GO = "models-go"  # stands in an arm's folder from its start without --keep until its models are deleted


@dataclass(frozen=True)
class Plan:
    """What to compare.

    Attributes:
        config: As the user wrote it.
        folder: Where every arm has a folder of its own.
        arms: `run` is always one: it tells the sources and the steps.
        own: Weights of the arm `own`.
        steps: Optimizer steps instead of the config's.
        launch: The command that trains, to which the path of a config is added.
        keep: Whether models and checkpoints stay once an arm is judged.
    """

    config: Mapping[str, Any]
    folder: Path
    arms: Sequence[str]
    seeds: Sequence[int]
    launch: Sequence[str]
    own: Mapping[str, float] | None = None
    steps: int | None = None
    single: bool = False
    keep: bool = False


@dataclass
class Comparison:
    """The arms of a plan, as far as they have been judged."""

    plan: Plan
    judged: dict[str, dict[int, Judged]] = field(default_factory=dict)

    def run(self) -> dict[str, Any]:
        """Run what is missing; compare.json is written after every arm.

        Raises:
            ValueError: The config is unfit, or the folder holds a comparison of another one or is being worked on.
            RuntimeError: An arm's process failed.
        """
        of_arms.refuse_unfit(self.plan.config)
        of_arms.refuse_other_sources(self.plan.config, self.plan.arms, self.plan.own)
        self.plan.folder.mkdir(parents=True, exist_ok=True)
        with only_one_in(self.plan.folder) as lock, ending_as_ctrl_c():
            self._remember()
            for seed in self.plan.seeds:
                self._arm(RUN, seed, lock)
                for arm in self._others(seed):
                    self._arm(arm, seed, lock)
        return self.document()

    def document(self) -> dict[str, Any]:
        reference = LEARNED if LEARNED in self.judged else RUN
        return document_of(self.judged, reference, RUN if reference == LEARNED else None)

    def _others(self, seed: int) -> list[str]:
        names = list(self._document(seed)["weights"])
        singles = [f"{of_arms.SINGLE}{name}" for name in names] if self.plan.single else []
        chosen = [arm for arm in (*self.plan.arms, *singles) if arm != RUN]
        if self.plan.config["scalebio"].get("split_by") and VALIDATION_DRAWN in chosen:
            self._say(f"{VALIDATION_DRAWN} is left out: with split_by the validation rows are no source of their own")
            chosen.remove(VALIDATION_DRAWN)
        return chosen

    def _remember(self) -> None:
        """Once an arm has got anywhere a folder is one config's: arms of different ones tell nothing of each other."""
        path = self.plan.folder / "config.yml"
        ours = yaml.safe_dump({"config": dict(self.plan.config), "steps": self.plan.steps}, sort_keys=True)
        got_anywhere = any(any(self.plan.folder.glob(f"*/{left}")) for left in (JUDGED, "checkpoint-*"))
        if got_anywhere and path.is_file() and _told_apart_by(path.read_text(encoding="utf-8")) != _told_apart_by(ours):
            raise ValueError(
                f"{self.plan.folder} holds the comparison of another config or of other --steps; name another --dir"
            )
        replace_file(path, ours.encode())

    def _arm(self, arm: str, seed: int, lock: IO[bytes]) -> None:
        folder = self.plan.folder / folder_name(arm, seed)
        if arm == OWN or arm.startswith(RANDOM):
            self._refuse_other_weights(arm, seed)
        if (judged := read_judged(folder)) is None:
            began = time.monotonic()
            self._say(f"{self._position(arm, seed)} …")
            self._train(self._config(arm, seed, folder), folder, lock)
            if (judged := read_judged(folder)) is None:
                raise RuntimeError(f"{folder} has no {JUDGED} though its run ended well; see {folder / 'log.txt'}")
            self._say(f"{self._position(arm, seed)}: test loss {judged.loss:.4f}{self._left(time.monotonic() - began)}")
        if not self.plan.keep and (folder / _MODELS_GO).exists():  # also of an arm that was killed once it was judged
            _drop_models(folder)
        self.judged.setdefault(arm, {})[seed] = judged
        replace_file(self.plan.folder / "compare.json", written(self.document()).encode() + b"\n")

    def _config(self, arm: str, seed: int, folder: Path) -> Config:
        plan = self.plan
        if arm == RUN:
            return of_arms.run_config(plan.config, folder, seed, plan.steps)
        config = of_arms.run_config(plan.config, folder, seed, self.judged[RUN][seed].steps)
        if arm in (PROPORTIONAL, VALIDATION):
            return of_arms.plain_config(config, with_validation=arm == VALIDATION)
        if arm == LEARNED:
            return of_arms.applied_config(config, self._learned(seed))
        mixture = self._mixture(arm, seed)
        write_mixture(mixture, {"schema": SCHEMA, "weights": self._weights(arm, seed)})
        applied = of_arms.drawn_config if arm == VALIDATION_DRAWN else of_arms.applied_config
        return applied(config, mixture)

    def _weights(self, arm: str, seed: int) -> dict[str, float]:
        document = self._document(seed)
        if arm == VALIDATION_DRAWN:
            return of_arms.validation_drawn_weights(self.plan.config, document)
        return of_arms.weights_of(arm, list(document["weights"]), self.plan.own)

    def _mixture(self, arm: str, seed: int) -> Path:
        return self.plan.folder / f"{folder_name(arm, seed)}.json"

    def _refuse_other_weights(self, arm: str, seed: int) -> None:
        """An arm goes on, and is not run again, on the weights that it was begun on alone."""
        path, asked = self._mixture(arm, seed), self._weights(arm, seed)
        begun = read_mixture(path)["weights"] if path.is_file() else asked
        if begun.keys() != asked.keys() or any(abs(begun[name] - asked[name]) > 1e-9 for name in asked):
            raise ValueError(f"{path.with_suffix('')} was trained on other weights ({path}); name another --dir")

    def _learned(self, seed: int) -> Path:
        return self.plan.folder / f"{RUN}-{seed}" / "scalebio" / "mixture.json"

    def _document(self, seed: int) -> dict[str, Any]:
        return read_mixture(self._learned(seed), needs=("weights", "sources", "validation"))

    def _train(self, config: Config, folder: Path, lock: IO[bytes]) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        path, log = folder / "config.yml", folder / "log.txt"
        if self.plan.keep:
            (folder / _MODELS_GO).unlink(missing_ok=True)
        else:
            (folder / _MODELS_GO).touch()
        path.write_text(yaml.safe_dump(config, sort_keys=False, allow_unicode=True), encoding="utf-8")
        status = status_of([*self.plan.launch, str(path)], log, lock)
        if status:
            last = "\n".join(log.read_text(errors="replace").splitlines()[-30:])
            raise RuntimeError(f"{last}\n\nthe run in {folder} failed (exit status {status}); full log: {log}")

    # ---- what a person is told

    def _position(self, arm: str, seed: int) -> str:
        done = sum(len(seeds) for seeds in self.judged.values())
        return f"seed {seed}, {arm} (run {done + (seed not in self.judged.get(arm, {}))} of {self._total()})"

    def _total(self) -> int:
        singles = len(self._document(self.plan.seeds[0])["weights"]) if self.plan.single and RUN in self.judged else 0
        return (len({*self.plan.arms, RUN}) + singles) * len(self.plan.seeds)

    def _left(self, seconds: float) -> str:
        left = self._total() - sum(len(seeds) for seeds in self.judged.values()) - 1
        return f"; about {left * seconds / 60:.0f} minutes still" if left else ""

    @staticmethod
    def _say(line: str) -> None:
        print(f"scalebio: {printable(line)}", file=sys.stderr, flush=True)


def launch_of(command: str | None) -> list[str]:
    """In words; None: `axolotl train` of the environment that this runs in."""
    if command is not None:
        return shlex.split(command)
    beside = Path(sys.executable).with_name("axolotl")
    return [str(beside) if beside.is_file() else "axolotl", "train"]


def folder_name(arm: str, seed: int) -> str:
    """The arm's name, with a digest of it where it has letters that no folder can have."""
    plain = "".join(letter if letter.isalnum() or letter in "-_." else "_" for letter in arm)
    return f"{plain}-{seed}" if plain == arm else f"{plain}-{hashlib.sha256(arm.encode()).hexdigest()[:8]}-{seed}"


def written(document: Mapping[str, Any]) -> str:
    """compare.json as text."""
    return json.dumps(document, indent=2, allow_nan=False)


def _told_apart_by(text: str) -> str:
    """Of a comparison's config what its arms depend on: judged in smaller batches they come to the same."""
    begun = yaml.safe_load(text)
    begun["config"].pop("eval_batch_size", None)
    return yaml.safe_dump(begun, sort_keys=True)


def _drop_models(folder: Path) -> None:
    """What a judged arm needs no longer: it would be one model for each arm and seed."""
    for checkpoint in folder.glob("checkpoint-*"):
        shutil.rmtree(checkpoint)
    for pattern in _WEIGHTS:
        for file in folder.glob(pattern):
            file.unlink()
    (folder / _MODELS_GO).unlink()
