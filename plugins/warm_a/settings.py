"""The settings of warm A; frozen, unknown keys refused, and what would mean nothing refused with the reason."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, Field, model_validator


class Settings(BaseModel, extra="forbid", frozen=True, allow_inf_nan=False):
    """What all settings share."""


def _distinct(kinds: tuple[str, ...]) -> tuple[str, ...]:
    if len(set(kinds)) < len(kinds):
        raise ValueError(f"names a boundary twice: {list(kinds)}")
    return kinds


class Guard(Settings, frozen=True):
    """When adaptation counts as harmful."""

    groups: int = Field(
        default=0, ge=0, le=10_000, description="resets whose gains are judged together; 0 turns the guard off"
    )
    margin: float = Field(
        default=0.0, ge=0, description="loss in nats a token over them that is borne before A is redrawn"
    )


class WarmAConfig(Settings, frozen=True):
    """What becomes of A, B and the moments, at which boundaries, and what is measured."""

    a: Literal["keep", "redraw", "norm", "pull", "orth"] = Field(
        default="keep",
        description="A stays; is drawn anew; keeps its directions at the start's lengths; goes back towards the start; "
        "or has its rows made orthogonal",
    )
    rho: Annotated[float, Field(ge=0, le=1)] | None = Field(
        default=None, description="a: pull: the share of what A has learned that stays"
    )
    until: Annotated[int, Field(ge=1)] | None = Field(
        default=None, description="resets of a trained A after which it is drawn anew at each; null: never"
    )
    b: Literal["zero", "keep", "scale"] = Field(
        default="zero", description="B is zeroed, which gives the base back; stays; or is multiplied by gamma"
    )
    gamma: Annotated[float, Field(gt=0, le=100)] | None = Field(default=None, description="b: scale: the factor on B")
    moments: Literal["clear", "keep", "clear_b"] = Field(
        default="clear",
        description="which moments and step counters the optimizer forgets: of both factors, none, of B",
    )
    merge: bool = Field(
        default=False, description="fold scaling * B * A into the base first; of one adapter, not of a bank"
    )
    at: Annotated[
        tuple[Literal["document", "phase", "epoch", "steps"], ...], Field(min_length=1), AfterValidator(_distinct)
    ] = Field(
        default=("document", "phase"),
        description="boundaries at which it answers; the engine's own rule holds at others",
    )
    rewarm_steps: int = Field(
        default=0,
        ge=0,
        le=10**9,
        description="steps over which the rate rises again after a reset that cleared moments",
    )
    angle_slots: int = Field(
        default=4,
        ge=0,
        le=4096,
        description="slots of a bank whose angles are measured, evenly spread; 0 measures none",
    )
    guard: Guard = Field(
        default=Guard(), description="redraw A where adapting has done harm of late; needs a second forward"
    )

    @model_validator(mode="after")
    def _means_something(self) -> WarmAConfig:
        for wanted, name, kind in ((self.a == "pull", "rho", "a: pull"), (self.b == "scale", "gamma", "b: scale")):
            given = getattr(self, name)
            if wanted and given is None:
                raise ValueError(f"{kind} needs {name}")
            if not wanted and given is not None:
                raise ValueError(f"{name} (given {given}) is for {kind}; remove it or set {kind}")
        drawn = [name for name in ("until", "guard") if (self.until if name == "until" else self.guard.groups)]
        if self.a == "redraw" and drawn:
            raise ValueError(f"{drawn[0]} draws A anew, which a: redraw does at every reset; remove it")
        if self.b != "zero" and (self.a == "redraw" or drawn):
            what = drawn[0] if drawn else "a: redraw"
            raise ValueError(f"{what} draws A anew, beside which a B that stays is noise; set b: zero, or keep A")
        if self.merge and self.b != "zero":
            raise ValueError(f"merge folds B A into the base, so b: {self.b} would count it twice; set b: zero")
        if self.rewarm_steps and self.moments == "keep":
            raise ValueError("rewarm_steps follow a reset that cleared moments, and moments: keep clears none")
        if self.rewarm_steps == 1:
            raise ValueError("rewarm_steps 1 is the full rate at once; take 2 or more, or 0 for none")
        return self
