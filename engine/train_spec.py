"""What a spec says about training: the settings under `train`, each with its bounds and what it does."""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeAlias

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag, ValidationInfo, field_validator


class Settings(BaseModel):
    """The base of every settings class of a spec: no unknown key, no conversion, nothing infinite, no change.

    A setting that may be null has null as its default: in an overlay null removes, and what is removed is the default.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class Resolved(BaseModel):
    """The base of what is made from valid settings: frozen, and holding objects of foreign classes as they are."""

    model_config = ConfigDict(extra="forbid", frozen=True, arbitrary_types_allowed=True)


WeightDecay: TypeAlias = Annotated[float, Field(ge=0, le=100)]
Beta: TypeAlias = Annotated[float, Field(ge=0, lt=1)]


class GroupSpec(Settings):
    """How one parameter group differs from the rest."""

    lr_ratio: float = Field(default=1.0, ge=0, le=1e6, description="the group's base rate over the optimizer's")
    weight_decay: WeightDecay | None = Field(
        default=None, description="weight decay of this group; null takes the optimizer's"
    )


class OptimizerSpec(Settings):
    """What every optimizer has."""

    base_lr: Annotated[float, Field(ge=0, le=1000)] | None = Field(
        default=None, description="rate that the schedule scales; null where only plugins' ceilings set the rate"
    )
    weight_decay: WeightDecay = Field(default=0.0, description="strength of weight decay")
    groups: dict[str, GroupSpec] = Field(
        default_factory=dict, max_length=1000, description="what differs by parameter group; the task names the groups"
    )


class SgdSpec(OptimizerSpec):
    """Stochastic gradient descent; weight decay is coupled (added to the gradient)."""

    kind: Literal["sgd"]
    momentum: float = Field(default=0.0, ge=0, lt=1, description="share of the last update that is kept")
    dampening: float = Field(default=0.0, ge=0, le=1, description="share of the new gradient that momentum leaves out")
    nesterov: bool = Field(default=False, description="look ahead along the momentum; needs momentum and no dampening")

    @field_validator("nesterov")
    @classmethod
    def _needs_momentum(cls, value: bool, info: ValidationInfo) -> bool:
        if value and (info.data.get("momentum", 1) == 0 or info.data.get("dampening", 0) != 0):
            raise ValueError("nesterov needs a momentum above 0 and a dampening of 0")
        return value


class AdamSpec(OptimizerSpec):
    """Adam; weight decay is coupled (added to the gradient)."""

    kind: Literal["adam"]
    betas: tuple[Beta, Beta] = Field(default=(0.9, 0.999), description="memory of the mean and of the mean square")
    eps: float = Field(default=1e-8, gt=0, le=1, description="added to the root of the mean square")


class AdamwSpec(OptimizerSpec):
    """AdamW; weight decay is decoupled (the rate times the weight)."""

    kind: Literal["adamw"]
    betas: tuple[Beta, Beta] = Field(default=(0.9, 0.999), description="memory of the mean and of the mean square")
    eps: float = Field(default=1e-8, gt=0, le=1, description="added to the root of the mean square")
    weight_decay: WeightDecay = Field(default=0.01, description="strength of weight decay")


class ScheduleSpec(Settings):
    """What every schedule has; it runs over its phase."""

    per: Literal["epoch", "step"] = Field(default="step", description="how often the base rate changes")
    warmup_epochs: float = Field(
        default=0.0, ge=0, le=100_000, description="epochs in which the rate rises to base_lr; whole where per is epoch"
    )

    @field_validator("warmup_epochs")
    @classmethod
    def _whole(cls, value: float, info: ValidationInfo) -> float:
        if info.data.get("per") == "epoch" and value != int(value):
            raise ValueError("must be a whole number of epochs where the rate changes per epoch (or set per: step)")
        return value


class ConstantSpec(ScheduleSpec):
    """The base rate stays at base_lr after the warm-up."""

    kind: Literal["constant"]


class CosineSpec(ScheduleSpec):
    """The base rate falls along half a cosine after the warm-up."""

    kind: Literal["cosine"]


class LinearSpec(ScheduleSpec):
    """The base rate falls along a line after the warm-up."""

    kind: Literal["linear"]


class EverySteps(Settings):
    """A boundary every so many steps."""

    steps: int = Field(ge=1, le=10**9, description="steps between two boundaries")


def _moment(value: Any) -> str:
    return "name" if isinstance(value, str) else "every"


Moment: TypeAlias = Annotated[
    Annotated[Literal["epoch"], Tag("name")] | Annotated[EverySteps, Tag("every")], Discriminator(_moment)
]
Optimizer: TypeAlias = Annotated[SgdSpec | AdamSpec | AdamwSpec, Field(discriminator="kind")]
Schedule: TypeAlias = Annotated[ConstantSpec | CosineSpec | LinearSpec, Field(discriminator="kind")]

# one per study: arms that differ in these are not matched
MATCHED = ("device", "threads", "determinism")


class TrainSpec(Settings):
    """How a phase is trained."""

    epochs: int = Field(ge=1, le=100_000, description="epochs of the phase")
    epoch_batches: Annotated[int, Field(ge=1, le=10**9)] | None = Field(
        default=None, description="micro-batches that make an epoch; null for a full pass over the data"
    )
    micro_batch: int = Field(ge=1, le=2**20, description="items that one forward pass sees")
    grad_accum: int = Field(default=1, ge=1, le=2**16, description="micro-batches behind one update")
    optimizer: Optimizer = Field(description="what turns gradients into updates")
    schedule: Schedule = Field(
        default=ConstantSpec(kind="constant"), description="how the base rate moves over the phase"
    )
    clip_norm: Annotated[float, Field(gt=0, le=1e9)] | None = Field(
        default=None, description="largest norm of a gradient; null for no clipping"
    )
    determinism: Literal["strict", "fast"] = Field(
        default="strict", description="strict: repeatable to the bit; fast: as torch likes it; one for the study"
    )
    precision: Literal["fp32", "bf16"] = Field(
        default="fp32",
        description="bf16: autocast around forward and terms in training; weights, moments and evaluations stay fp32",
    )
    gradient_checkpointing: bool = Field(
        default=False, description="recompute activations in the backward pass: less memory, about a third more time"
    )
    compile: bool = Field(default=False, description="compile the model with torch.compile; needs determinism: fast")
    reset_at: tuple[Moment, ...] = Field(
        default=(), max_length=100, description="boundaries inside a phase at which a plugin may reset the adapter"
    )
    device: Literal["auto", "cpu", "cuda", "mps"] = Field(
        default="auto", description="where to train; one for the study"
    )
    threads: Annotated[int, Field(ge=1, le=1024)] | None = Field(
        default=None,
        description="threads of a run; null for half the cores at the study's first start; one for the study",
    )

    @field_validator("compile")
    @classmethod
    def _may_differ(cls, value: bool, info: ValidationInfo) -> bool:
        if value and info.data.get("determinism") == "strict":
            raise ValueError("compiled code does not repeat to the bit; set determinism: fast for it, or leave it out")
        return value

    @field_validator("reset_at")
    @classmethod
    def _different(cls, value: tuple[Any, ...]) -> tuple[Any, ...]:
        if len(set(value)) < len(value):
            raise ValueError("names a boundary twice")
        return value
