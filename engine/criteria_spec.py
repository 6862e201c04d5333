"""Criteria in a spec: a change is bounded in words that say the direction, an arm's value as it is."""

from __future__ import annotations

import re
from typing import Annotated, Literal, TypeAlias

from pydantic import AfterValidator, Field, WithJsonSchema

from .train_spec import Settings

PERCENT = r"^\d{1,9}(\.\d{1,9})? ?%$"
LARGEST = 1e100


def _amount(value: float | str) -> float | str:
    if not (re.match(PERCENT, value) if isinstance(value, str) else 0 <= value <= LARGEST):
        raise ValueError(
            "must be a number from 0 to 1e100, in the metric's unit, or a share of the baseline such as 10 %"
        )
    return value


Amount: TypeAlias = Annotated[
    float | str,
    AfterValidator(_amount),
    WithJsonSchema(
        {"anyOf": [{"type": "number", "minimum": 0, "maximum": LARGEST}, {"type": "string", "pattern": PERCENT}]}
    ),
]


class Condition(Settings):
    """One number and its bound.

    The change of an arm against another takes one of `better_by`, `worse_by_at_most` and `within`; the value of an arm
    takes `at_least`, `at_most` or both.
    """

    metric: str = Field(
        min_length=1, max_length=200,
        description="a metric such as val.loss, a plugin's series such as geometry.effective_rank, or a reading of the "
        "evaluation matrix such as backward_transfer.A.after.B",
    )  # fmt: skip
    better_by: Amount | None = Field(
        default=None, description="the least change for the better, as a number in the metric's unit or as 10 %"
    )
    worse_by_at_most: Amount | None = Field(
        default=None, description="the most change for the worse, as a number in the metric's unit or as 10 %"
    )
    within: Amount | None = Field(
        default=None, description="the most change either way, as a number in the metric's unit or as 10 %"
    )
    at_least: Annotated[float, Field(ge=-LARGEST, le=LARGEST)] | None = Field(
        default=None, description="the least value of the arm"
    )
    at_most: Annotated[float, Field(ge=-LARGEST, le=LARGEST)] | None = Field(
        default=None, description="the greatest value of the arm"
    )
    better: Literal["higher", "lower"] | None = Field(
        default=None, description="the better direction, of a series whose plugin declares none"
    )


class Criterion(Condition):
    """A rule that a contrast, an arm, or every contrast of the study passes or fails."""

    contrast: str | None = Field(
        default=None, description="two arms such as `treated - baseline`; every contrast of the study if not given"
    )
    arm: str | None = Field(default=None, description="an arm whose own value is bounded, in place of a contrast")
    evidence: Literal["interval", "mean"] = Field(
        default="interval", description="interval: the whole 95 % interval must keep to the bound; mean: the mean"
    )
    weights: Literal["selected", "last"] = Field(
        default="selected", description="the weights at which metrics and series are read"
    )
    provided: tuple[Condition, ...] = Field(
        default=(), max_length=20, description="what must hold too, of the same arms, weights and evidence"
    )
