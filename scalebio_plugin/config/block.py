"""The `scalebio:` block of an Axolotl config, parsed once at the border.

Pydantic only: the host merges `ScaleBiOArgs` into its own config model, so that `axolotl config-schema` shows every
leaf with its description and a misspelt key is an error that names it. What crosses the whole config (datasets,
engines, other plugins) is checked by `refusals.problems_of` from the validator below, all problems in one message.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from .keys import problems_of_keys
from .refusals import problems_of, refusal_of, refuse


def _off_of_yaml(value: Any) -> Any:
    """YAML reads `off` as a truth value."""
    return "off" if value is False else value


PositiveInt = Annotated[int, Field(ge=1)]
Weight = Annotated[float, Field(ge=0.0, le=1.0, allow_inf_nan=False)]


class _Block(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class LearnArgs(_Block):
    """How much of the run learns the mixture; then λ is final and the run an ordinary one on the mixture."""

    fraction: Annotated[float, Field(gt=0.0, le=1.0)] | None = Field(
        default=None,
        description="Learn during this fraction of the optimiser steps after the warmup. Default: 1.0, all of them.",
    )
    steps: PositiveInt | None = Field(
        default=None, description="Learn during this many optimiser steps after the warmup instead."
    )
    until: Literal["converged"] | None = Field(
        default=None,
        description="`converged`: learn until the verdict says so, or half of at_most is over and no signal can come.",
    )
    at_most: Annotated[float, Field(gt=0.0, le=1.0)] | None = Field(
        default=None, description="With `until`: the fraction of the steps that learning takes at most. Default: 0.5."
    )

    @model_validator(mode="after")
    def _one_way(self) -> LearnArgs:
        given = [key for key in ("fraction", "steps", "until") if getattr(self, key) is not None]
        if len(given) > 1:
            raise ValueError(f"give one of learn.{', learn.'.join(given)}; remove the others")
        if self.at_most is not None and self.until is None:
            raise ValueError("learn.at_most needs learn.until: converged; add it, or give learn.fraction instead")
        return self

    def last(self, max_steps: int) -> int:
        """Optimiser step (0-based, exclusive) up to which λ is learned, at most, in a run of `max_steps` of them."""
        return max(1, round(self.part * max_steps)) if self.steps is None else min(self.steps, max_steps)

    @property
    def part(self) -> float:
        """Of the steps after the warmup, at most; without `steps`."""
        most = (0.5 if self.at_most is None else self.at_most) if self.until else self.fraction
        return 1.0 if most is None else most


class InnerArgs(_Block):
    """Where the inner parameters (u) rest between their passes."""

    device: Literal["auto", "model", "cpu"] = Field(
        default="auto",
        description="`model`: beside the model; `cpu`: their values in (pinned) CPU memory, under DeepSpeed "
        "their optimizer state too; `auto`: `cpu` with LISA on a GPU, else `model`.",
    )


class LisaArgs(_Block):
    """LISA layer sampling (arXiv 2403.17919), the same layers in both parameter sets."""

    active_layers: PositiveInt = Field(default=2, description="Transformer blocks trained at a time.")
    interval: PositiveInt = Field(default=20, description="Optimiser steps between two draws of the layers.")
    train_embeddings: bool = Field(
        default=False,
        description="Also train what is outside the blocks (embeddings, final norm, head), as in the LISA paper; "
        "needed where the tokenizer grew.",
    )

    def refuse_fewer(self, layers: int, model: str) -> None:
        """Raise a ValueError where a model has fewer blocks than are to train at a time."""
        if self.active_layers > layers:
            raise ValueError(
                f"scalebio.lisa.active_layers must be at most {layers} (the layers of {model}), got "
                f"{self.active_layers}; lower it or remove the lisa: block"
            )


class PriorArgs(_Block):
    """A pull of the mixture towards given weights, by their Kullback-Leibler divergence."""

    weights: dict[str, Weight] | None = Field(
        default=None, description="{name: weight}, above 0, which must sum to 1. Default: the weights at the start."
    )
    strength: Annotated[float, Field(gt=0.0, allow_inf_nan=False)] = Field(
        default=0.1,
        description="Nats of validation loss that leaving the prior must gain for each nat of divergence.",
    )


class ScaleBiOSettings(_Block):
    """Everything under `scalebio:`. All keys are optional."""

    validation_datasets: list[dict[str, Any]] | None = Field(
        default=None,
        description="What the mixture is tuned for (L1): host dataset entries, each may carry a `weight`. "
        "Default: the host's evaluation data (`test_datasets`, or the split of `val_set_size`).",
    )
    validation_batch_size: PositiveInt | None = Field(
        default=None,
        description="Validation sequences per optimiser step. Default: a quarter of the step's training sequences "
        "(with sample_packing: as many as fit into a quarter of its packed rows), at least a micro-batch.",
    )
    objective: Literal["mean", "worst"] = Field(
        default="mean",
        description="Of several validation_datasets: `mean`, by their weights, or `worst`, whichever of them has the "
        "largest loss (the weights are where it starts).",
    )
    penalty: Annotated[float, Field(gt=0.0)] = Field(
        default=10.0,
        description="α: how weakly the validation loss pulls the model (w descends L2 + L1/α). 10 to 100; "
        "`.inf` takes the validation data out of play (a control).",
    )
    estimator: Literal["forward", "symmetric"] = Field(
        default="forward",
        description="`forward` as in the paper; `symmetric` also pushes the inner parameters away from the "
        "validation data (u descends L2 − L1/α): less bias for one more validation pass; needs penalty >= 3.",
    )
    mixture_update: str = Field(
        default="evidence",
        description="Rule that moves λ: `evidence` (by what of the summed gaps is not noise), "
        "`exponentiated_gradient` (by every gap over its running RMS), `adam` (the paper's), or an extension's.",
    )
    mixture_learning_rate: Annotated[float, Field(ge=0.0, allow_inf_nan=False)] | None = Field(
        default=None,
        description="Learning rate of λ, about what a logit moves in an update. Default: 0.05 for `evidence`, 0.01 for "
        "`adam` (the paper's), else 0.03. 0 freezes λ at `mixture_init`.",
    )
    mixture_init: Literal["uniform", "proportional"] | dict[str, Weight] = Field(
        default="proportional",
        description="Weights at the start: `proportional` to the training tokens of the sources (the ordinary run's), "
        "`uniform` over sources (the paper's), or {name: weight}, which must sum to 1.",
    )
    bounds: dict[str, tuple[Weight, Weight]] = Field(
        default_factory=dict, description="{name: [min, max]} for the weight of a source, or of a group's sum."
    )
    groups: dict[str, list[str]] = Field(
        default_factory=dict, description="{group: [source names]} for `bounds`; a source belongs to one group at most."
    )
    prior: PriorArgs | None = Field(
        default=None,
        description="Keeps the mixture near given weights where the validation loss gains little by leaving.",
    )
    warmup_steps: Annotated[int, Field(ge=0)] = Field(
        default=0,
        description="Optimiser steps in which w trains on the mixture alone; u then starts as its copy, optimizer "
        "state too.",
    )
    learn: LearnArgs = Field(default_factory=LearnArgs, description="The part of the run that learns; then λ is final.")
    update_interval: PositiveInt = Field(
        default=1, description="Optimiser steps between two updates of λ; u and w always step together."
    )
    probe_interval: Annotated[int, Field(ge=0)] | None = Field(
        default=None,
        description="Updates of λ between two probes of which source helps which validation set; 0: none. Default: 25 "
        "with several validation_datasets (more where batches are packed or compiled, so that probes are about 5% of "
        "the passes at most), none under DeepSpeed, else 0.",
    )
    inner: InnerArgs = Field(default_factory=InnerArgs, description="Where the inner parameters rest.")
    keep: Literal["model", "inner"] = Field(
        default="model",
        description="Which set the run goes on with after learning, and saves: `model`: w, which has trained on the "
        "validation rows too; `inner`: u, which has trained on none of them. While it learns, eval_loss is that of the "
        "set to keep.",
    )
    loss_unit: Literal["token", "sequence"] = Field(
        default="token",
        description="A source's loss is the mean over its target tokens (the host's), or over its sequences' means "
        "(the paper's).",
    )
    lisa: LisaArgs | None = Field(default=None, description="Layer sampling; leave out for full or adapter training.")
    names: list[str] | None = Field(
        default=None, description="Names of the sources, one per `datasets:` entry. Default: made from the entries."
    )
    split_by: str | dict[str, str] | None = Field(
        default=None,
        description="A column of the raw rows (`source`, `metadata.source`), or {entry name: column}: every value is a "
        "source of its own, which all keys then name, `<entry>/<value>`, of a single entry `<value>`.",
    )
    min_rows: PositiveInt = Field(
        default=100,
        description="With `split_by`: values of fewer rows are put together as the source `other`.",
    )
    held_out_rows: PositiveInt | None = Field(
        default=None,
        description="So many rows of each source are kept out of the training data, for a loss of their own in every "
        "evaluation, `eval_<source>_loss`: what the mixture costs there.",
    )
    on_leak: Annotated[Literal["warn", "drop", "error", "off"], BeforeValidator(_off_of_yaml)] = Field(
        default="warn",
        description="Training rows whose text also stands in the validation or test data, whatever template, case or "
        "signs it is written with: `warn`, `drop`, which trains without them, `error`, or `off`, which does not look.",
    )
    apply: str | None = Field(
        default=None,
        description="Path of a mixture.json: no learning, an ordinary run whose sampling follows its weights.",
    )
    sampling: Literal["mixture", "host"] = Field(
        default="mixture",
        description="Order of the rows while the mixture is learned: `mixture`, drawn by source as the weights have "
        "it, with a floor, also after learning; `host`, the host's.",
    )
    max_repeats: PositiveInt = Field(
        default=4,
        description="When sampling follows the weights: how often one example may be drawn, at most, in "
        "one pass over the training set (an epoch).",
    )
    on_divergence: Literal["error", "warn"] = Field(
        default="warn",
        description="While the mixture is learned, a training loss that leaps, or losses of the two sets that part by "
        "half of it: `warn`, or `error`, which stops before that step. Losses and gradients that are not finite stop "
        "the run in every phase; a weight that stays at a bound is told.",
    )
    on_mismatch: Literal["error", "warn"] = Field(
        default="error",
        description="A checkpoint of a run that differs from this one, or an applied mixture that was learned on other "
        "data: `error`, or `warn`, by which the run goes on with what it has itself where that can be right "
        "(docs/resume.md).",
    )
    extensions: list[str] = Field(
        default_factory=list, description="Hook implementations to register: `module` or `module:attribute`."
    )

    @property
    def looks_for_leaks(self) -> bool:
        """With `apply` where it is asked for: the run that learned has looked."""
        return self.on_leak in (("warn", "drop", "error") if self.apply is None else ("drop", "error"))

    @property
    def rate(self) -> float:
        """Learning rate of λ."""
        if self.mixture_learning_rate is not None:
            return self.mixture_learning_rate
        return {"evidence": 0.05, "adam": 0.01}.get(self.mixture_update, 0.03)

    @property
    def pull(self) -> float:
        """1/α, the factor of the validation loss in w's objective; 0 where the penalty is infinite."""
        return 1.0 / self.penalty

    def inner_rests_on_cpu(self, *, gpu: bool) -> bool:
        """Whether u's values lie in CPU memory between its passes, in a run with or without a GPU."""
        return self.inner.device == "cpu" or (self.inner.device == "auto" and self.lisa is not None and gpu)


def validation_rows(per_pass: int, accumulation: int, ranks: int) -> int:
    """Rows (sequences; packed: bins) of a validation batch by default, all ranks together.

    A quarter of the training rows of an optimiser step, at least a micro-batch of `per_pass` rows on every rank.
    """
    return max(per_pass * ranks, -(-per_pass * ranks * accumulation // 4))


def settings_of(config: Mapping[str, Any]) -> ScaleBiOSettings:
    """The block of a config of plain values, parsed into the frozen model.

    Raises:
        ValueError: Keys that there are not, or values that cannot be; all of them, by name.
    """
    given = config.get("scalebio") or {}
    try:
        return ScaleBiOSettings.model_validate(given)
    except ValidationError as error:
        raise refusal_of(problems_of_keys(given, error, ScaleBiOSettings)) from error


def _plain(value: Any) -> Any:
    """Lists of the host's models (it may have parsed `datasets:` before this validator runs) as lists of dicts."""
    if isinstance(value, list):
        return [member.model_dump(exclude_none=True) if isinstance(member, BaseModel) else member for member in value]
    return value


class ScaleBiOArgs(BaseModel):
    """What the host merges into its config model."""

    scalebio: ScaleBiOSettings = Field(
        default_factory=ScaleBiOSettings,
        description="ScaleBiO: learn how much each of `datasets:` counts for the loss on validation data.",
    )

    @model_validator(mode="before")
    @classmethod
    def _refuse_what_cannot_be_right(cls, config: Any) -> Any:
        if not isinstance(config, dict):
            return config
        if config.get("scalebio") is None:
            config["scalebio"] = {}
        plain = {key: _plain(value) for key, value in config.items()}
        block = settings_of(plain)
        refuse(problems_of({**plain, "scalebio": block.model_dump(exclude_defaults=True)}))
        return config
