"""What of the host's trainer takes a run up and saves it: the host's files, and ours beside them."""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import nullcontext
from functools import partial
from signal import SIGINT
from types import MappingProxyType
from typing import Any

import torch
from accelerate.utils import broadcast_object_list, gather_object
from axolotl.core.trainers.base import AxolotlTrainer
from axolotl.utils.logging import get_logger
from torch import nn
from transformers.trainer_utils import SaveStrategy, rotate_checkpoints

from ..engines.base import plain_name
from ..report.identity import write_identity
from ..report.tables import weights_line
from . import checkpoint as checkpoints
from .checkpoint import HISTORY, InnerPart, MixturePart
from .learning import Learning
from .manifest import write_manifest
from .phase import Phase
from .restored_options import not_followed, options_of
from .resume_from import is_newest, newest_whole, out_of_the_way, refuse_problem
from .same_run import refuse_another_run
from .signals import begin_worker, held_from_children

LOG = get_logger("axolotl.scalebio")


class ResumableTrainer(AxolotlTrainer):
    """Without `learning` it is the host's trainer."""

    learning: Learning | None = None
    optimizer: Any
    _is_over = False  # it was when it was resumed
    _saved_at = -1  # optimiser step of the newest checkpoint
    _passed_over: Mapping[str, str] = MappingProxyType({})  # newer checkpoints, not gone on from, and their problems
    _bare: tuple[nn.Module, nn.Module] | None = None  # what `bare_model` found last, and in what

    def train(self, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any) -> Any:
        learning = self.learning
        if learning is not None and resume_from_checkpoint:
            found = self._checkpoint_to_take(resume_from_checkpoint) if self.is_world_process_zero() else None
            taken: str | None = broadcast_object_list([found])[0]
            resume_from_checkpoint = taken
            if taken is not None:
                saved = checkpoints.read_mixture(taken, learning.place)
                refuse_another_run(taken, learning.identity, learning.run.settings.on_mismatch)
                with checkpoints.of_this_format(taken):
                    learning.run.load_state_dict(saved.run)
                learning.order.resume(*saved.order_of(learning.place))
        if learning is not None:
            learning.signals.host_saves = learning.engine.ranks_hold_whole_model
        with nullcontext() if learning is None else learning.signals:
            return super().train(resume_from_checkpoint, *args, **kwargs)

    def _checkpoint_to_take(self, asked: str | bool) -> str | None:
        """The checkpoint that was asked for; where the host chose it, the newest whole one.

        Raises:
            ValueError: It, or where the host chose every one that there is, is damaged.
        """
        output_dir, taken = str(self.args.output_dir), None if asked is True else str(asked)
        automatic = bool(self.axolotl_cfg and self.axolotl_cfg.auto_resume_from_checkpoints)
        if taken is None or (automatic and is_newest(taken, output_dir)):
            taken, self._passed_over = newest_whole(output_dir)
            goes_on = f"goes on from {taken}" if taken else "starts anew"
            for newer, problem in self._passed_over.items():
                LOG.warning(f"scalebio: {newer} {problem}, so the run {goes_on}")
        else:
            refuse_problem(taken)
        if taken is not None and checkpoints.is_unchecked(taken):
            LOG.warning(
                f"scalebio: {taken} was written by an earlier version, which noted no sizes and digests of its files: "
                "nobody can tell whether they are damaged"
            )
        return taken

    def _save_checkpoint(self, model: nn.Module, trial: Any, **kwargs: Any) -> None:
        learning = self.learning
        if learning is None:
            super()._save_checkpoint(model, trial, **kwargs)
            return
        if self._is_over:
            return
        try:
            self._save_all(learning, model, trial, **kwargs)
        except Exception as error:
            error.add_note(
                f"scalebio: checkpoint-{self.state.global_step} was not written to its end (is the disk full?). Those "
                "before it are as they were: with room again, auto_resume_from_checkpoints goes on from the newest"
            )
            raise

    def _save_all(self, learning: Learning, model: nn.Module, trial: Any, **kwargs: Any) -> None:
        """In this order: ours, the host's, the manifest; then it is pushed, and older ones go."""
        run_dir = self._get_output_dir(trial=trial)
        folder = os.path.join(run_dir, f"checkpoint-{self.state.global_step}")
        os.makedirs(folder, exist_ok=True)
        if self.is_world_process_zero():
            checkpoints.forget(folder)
        orders = gather_object([(learning.order.loader, learning.order.epoch)])  # the others wait in here
        if self.is_world_process_zero():
            checkpoints.write_mixture(folder, MixturePart(learning.run.state_dict(), orders))
            learning.folder.save_history(os.path.join(folder, HISTORY))
            write_identity(folder, learning.identity)
        limit, self.args.save_total_limit = self.args.save_total_limit, None  # none goes before this one is whole
        try:
            super()._save_checkpoint(model, trial, **kwargs)
        finally:
            self.args.save_total_limit = limit
        self.accelerator.wait_for_everyone()
        if self.is_world_process_zero():
            write_manifest(folder, self.state.global_step, learning.place.world)
        self._saved_at = self.state.global_step
        if self.args.push_to_hub:
            super()._push_from_checkpoint(folder)
        if self.args.should_save and limit:
            for line in out_of_the_way(self._passed_over):
                LOG.warning(f"scalebio: {line}")
            self._passed_over = {}
            rotate_checkpoints(run_dir, limit, self.state.best_model_checkpoint, use_mtime=True)

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        """The host does in the middle of a save, where what is uploaded would not be whole: see `_save_all`."""
        if self.learning is None:
            super()._push_from_checkpoint(checkpoint_folder)

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        learning = self.learning
        if learning is None:
            super()._save_optimizer_and_scheduler(output_dir)
            return
        with learning.engine.hosts_optimizer():
            super()._save_optimizer_and_scheduler(output_dir)
        if learning.place.writes_inner:
            parameters = self.trainable_parameters()
            part = InnerPart(
                inner=None if learning.inner is None else learning.inner.state_dict(),
                position=learning.stream.state_dict(),
                record=learning.record,
                model=learning.engine.model_part(parameters),
                optimizer=learning.engine.optimizer_part(parameters, self.raw_optimizer()),
            )
            checkpoints.write_inner(output_dir, part, learning.place)

    def _load_rng_state(self, checkpoint: str | None) -> None:
        super()._load_rng_state(checkpoint)
        if self.learning is not None:
            self.learning.order.at_restored()

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        learning = self.learning
        if learning is not None and learning.layers is not None and checkpoint is not None:
            # The checkpoint has optimizer state for the layers of its period, and FSDP wants one for all that train.
            learning.layers.freeze_others(max(0, self.state.global_step - 1), self.trainable_parameters())
        asked = [] if learning is None or checkpoint is None else options_of(self.raw_optimizer())
        with nullcontext() if learning is None else learning.engine.hosts_optimizer():
            super()._load_optimizer_and_scheduler(checkpoint)
        if learning is not None and checkpoint is not None:
            self._restore(learning, checkpoint)
            for line in not_followed(asked, options_of(self.raw_optimizer())):
                LOG.warning(f"scalebio: {line}")

    def _restore(self, learning: Learning, checkpoint: str) -> None:
        """Go on from a checkpoint, once the optimizer exists: u, positions, history.

        Raises:
            ValueError: u has parameters that do not train here, or is missing where this run would go on learning.
        """
        saved = checkpoints.read_inner(checkpoint, learning.place)
        done, parameters = self.state.global_step, self.trainable_parameters()
        phase = learning.run.phase(done)
        with checkpoints.of_this_format(checkpoint):
            learning.stream.load_state_dict(saved.position, done)
        learning.record = saved.record
        learning.engine.restore_model_part(parameters, saved.model)
        if saved.optimizer is not None:
            learning.engine.restore_optimizer_part(parameters, self.raw_optimizer(), saved.optimizer)
        if saved.inner is not None:
            learning.inner = learning.engine.inner(parameters, self.raw_optimizer(), learning.inner_device)
            with checkpoints.of_this_format(checkpoint):
                learning.inner.load_state_dict(saved.inner)
        elif phase is Phase.LEARN and done > learning.run.settings.warmup_steps:
            raise ValueError(
                f"scalebio: {checkpoint} was written after learning had ended, and this run would learn on; set learn: "
                "back to what it was"
            )
        history = checkpoints.history_in(checkpoint)
        if self.is_world_process_zero() and learning.folder.restore_history(history):
            LOG.warning(f"scalebio: {history} is damaged; the run goes on without the lines that cannot be read")
        weights = weights_line(dict(zip(learning.run.names, learning.run.weights_S.tolist(), strict=True)))
        LOG.info(
            f"scalebio: resumed from {checkpoint} after optimiser step {done} of {self.state.max_steps} "
            f"({phase.in_words}); weights: {weights}"
        )

    # ---- a run that is told to end

    def _get_dataloader(self, *args: Any, **kwargs: Any) -> Any:
        """The host's, of all its loaders."""
        loader = super()._get_dataloader(*args, **kwargs)
        if self.learning is None:
            return loader
        inside = getattr(loader, "base_dataloader", loader)  # accelerate's hold one
        begin_workers = inside._get_iterator

        def begin_without_signals() -> Any:
            with held_from_children():
                return begin_workers()

        inside._get_iterator = begin_without_signals
        inside.worker_init_fn = partial(begin_worker, inside.worker_init_fn)
        return loader

    def _maybe_log_save_evaluate(self, *args: Any, **kwargs: Any) -> None:
        """After every optimiser step and epoch."""
        learning = self.learning
        if learning is None:
            super()._maybe_log_save_evaluate(*args, **kwargs)
            return
        told = learning.told_to_end(self.args.device)
        saves = told and self.args.save_strategy != SaveStrategy.NO
        if told:
            self.control.should_evaluate, self.control.should_save = False, saves
        super()._maybe_log_save_evaluate(*args, **kwargs)
        if self._saved_at == self.state.global_step and not told:  # a signal may have come while it was written
            told = saves = learning.told_to_end(self.args.device)
        if told:
            self._end_as_told(learning, saves and not self.args.save_only_model)

    def _end_as_told(self, learning: Learning, saved: bool) -> None:
        self.accelerator.wait_for_everyone()  # a launcher ends all ranks with the first, and one may still be writing
        step, first = self.state.global_step, learning.signals.first
        LOG.warning(
            f"scalebio: {first.name} ends the run after optimiser step {step}; "
            + (
                f"auto_resume_from_checkpoints goes on from checkpoint-{step}"
                if saved
                else "the state of learning is not saved, as the config says (save_strategy: no, or save_only_model)"
            )
            + (
                "; no model is saved beside it, of which no process has the whole"
                if first == SIGINT and not learning.signals.host_saves
                else ""
            )
        )
        with learning.kept_in_place():  # the host may save the model on the way out
            learning.signals.deliver()

    # ---- parameters

    def bare_model(self) -> nn.Module:
        """The model without its wrappers; accelerate reads from the disk each time which of them there can be."""
        if self._bare is None or self._bare[0] is not self.model:
            self._bare = self.model, self.accelerator.unwrap_model(self.model)
        return self._bare[1]

    def trainable_parameters(self) -> dict[str, nn.Parameter]:
        named = {plain_name(name): parameter for name, parameter in self.bare_model().named_parameters()}
        return {name: named[name] for name in self._connected().trainable}

    def raw_optimizer(self) -> torch.optim.Optimizer:
        optimizer: torch.optim.Optimizer = getattr(self.optimizer, "optimizer", self.optimizer)
        return optimizer

    def _connected(self) -> Learning:
        if self.learning is None:
            raise RuntimeError("scalebio: the trainer was not connected to the plugin; this is a bug, please report it")
        return self.learning
