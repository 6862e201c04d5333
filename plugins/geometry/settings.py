"""The settings of terms and metrics, one model each; all frozen, unknown keys refused."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, Field, model_validator


class Settings(BaseModel, extra="forbid", frozen=True, allow_inf_nan=False):
    """What all settings share."""


def _distinct(layers: tuple[int, ...]) -> tuple[int, ...]:
    if len(set(layers)) < len(layers):
        raise ValueError(f"names a layer twice: {list(layers)}")
    return layers


Layers = Annotated[tuple[int, ...], AfterValidator(_distinct)]


class Schedule(Settings, frozen=True):
    """How a weight moves; see `schedules.factor`."""

    kind: Literal["constant", "warmup", "cosine"] = Field(default="constant", description="how the weight moves")
    per: Literal["epoch", "step"] = Field(
        default="epoch", description="the unit: epochs of the phase, or steps of the run"
    )
    warmup: int = Field(default=0, ge=0, description="units over which the weight rises in a straight line")
    until: int = Field(default=0, ge=0, description="cosine: the unit from which the floor holds")
    floor: float = Field(default=0.0, ge=0, le=1, description="cosine: the share of the weight that is left")

    @model_validator(mode="after")
    def _consistent(self) -> Schedule:
        if self.kind == "constant" and self.warmup:
            raise ValueError(f"kind constant has no warmup (given {self.warmup}); set kind: warmup")
        if self.kind == "warmup" and not self.warmup:
            raise ValueError("kind warmup needs warmup, the number of units, from 1 on")
        if self.kind == "cosine" and self.until <= self.warmup:
            text = f"kind cosine falls from unit warmup ({self.warmup}) to unit until ({self.until})"
            raise ValueError(f"{text}; set until to more than {self.warmup}, the length of the phase as a rule")
        if self.kind != "cosine" and (self.until or self.floor):
            text = f"kind {self.kind} has no until and no floor (given {self.until} and {self.floor})"
            raise ValueError(f"{text}; remove them or set kind: cosine")
        return self


class Term(Settings, frozen=True):
    """What every term has."""

    weight: float = Field(
        default=0.0, ge=0, description="strength; 0 turns the term off, and nothing of it is computed"
    )
    schedule: Schedule = Field(default=Schedule(), description="how the weight moves over a phase or the run")


class HiddenTerm(Term, frozen=True):
    """A term on the hidden states of one layer."""

    layer: int = Field(default=-1, description="the layer whose hidden states are used, from 0; negative from the end")


class Diversity(Term, frozen=True):
    layers: Layers = Field(
        default=(-1,), min_length=1, description="the layers whose attention maps are used; their mean"
    )


class Repulsion(HiddenTerm, frozen=True):
    sample: int = Field(
        default=128, ge=2, le=65536, description="tokens drawn per micro-batch; the pairs are those of these"
    )


class Sparsity(HiddenTerm, frozen=True):
    pass


class Gossip(HiddenTerm, frozen=True):
    tau: float = Field(default=0.85, ge=-1, lt=1, description="the cosine above which two tokens are too close")
    peers: int = Field(default=8, ge=1, le=4096, description="tokens that each token is held against")
    sample: int = Field(default=256, ge=2, le=65536, description="tokens drawn per micro-batch")


class Metrics(Settings, frozen=True):
    """What is measured on the probe at the start and after every epoch."""

    hidden: Layers = Field(
        default=(-1,), description="layers for effective rank, isotropy, active fraction; [] for none"
    )
    attention: Layers = Field(default=(), description="layers whose mean is the head similarity; [] does without")
    branches: bool = Field(default=False, description="measure how branches are used")
    threshold: float = Field(default=0.05, ge=0, description="a number above this in size is active")
    shares: bool = Field(default=True, description="measure each term's share of the gradient norm")
    gradient_cosines: bool = Field(
        default=False, description="measure the angles between the gradients of the run's tasks, at each phase's end"
    )
