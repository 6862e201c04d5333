"""What a spec says about a study as a whole: its name and question, seeds, comparison, log and checkpoints."""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeAlias

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from .criteria_spec import Criterion
from .text import slug_problem
from .train_spec import Settings


def _slug(name: str) -> str:
    if why := slug_problem(name):
        raise ValueError(why)
    return name


def _unlike(values: tuple[Any, ...]) -> tuple[Any, ...]:
    for index, value in enumerate(values):
        if value in values[:index]:
            raise ValueError(f"{value} is given twice")
    return values


Slug: TypeAlias = Annotated[str, AfterValidator(_slug)]
Seed: TypeAlias = Annotated[int, Field(ge=0, le=2**63 - 1)]
MetricName: TypeAlias = Annotated[str, Field(min_length=1, max_length=80)]


class RunRef(BaseModel):
    """Names another run of the study: an arm, and the seed in it. A plugin's settings may be such a reference."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    arm: str = Field(min_length=1, max_length=64, description="the arm whose run is read")
    seed: Literal["same", "next"] | Seed = Field(
        default="same", description="its seed: same as the run's own, next in the study's list, or one of the list"
    )


class SelectSpec(Settings):
    """How the weights that are compared are chosen."""

    on: MetricName = Field(default="val.loss", description="metric whose best epoch is kept; on val or calibration")


class CompareSpec(Settings):
    """Which arms are held against which, and by what."""

    contrasts: Annotated[tuple[str, ...], Field(max_length=1000)] | None = Field(
        default=None, description="pairs such as `controller - baseline`; null compares every arm with the first"
    )
    on: Annotated[tuple[MetricName, ...], Field(min_length=1, max_length=100), AfterValidator(_unlike)] = Field(
        default=("test.loss",), description="metrics that are compared, such as test.accuracy; on test or val"
    )
    select: SelectSpec = Field(default=SelectSpec(), description="how the weights that are compared are chosen")


class LogSpec(Settings):
    """How often what happened is written down; changes no number."""

    steps: int = Field(default=64, ge=1, le=1_000_000, description="most steps between two writes of the series")
    seconds: float = Field(default=0.5, ge=0.01, le=3600, description="most seconds between two writes of the series")


class CheckpointSpec(Settings):
    """How often a run can be taken up again; changes no number."""

    every_steps: Annotated[int, Field(ge=1, le=10**9)] | None = Field(
        default=None, description="steps between checkpoints; null for none by steps"
    )
    every_epochs: int = Field(
        default=1, ge=0, le=100_000, description="epochs between checkpoints; 0 for none by epochs"
    )
    every_minutes: Annotated[float, Field(gt=0, le=100_000)] | None = Field(
        default=None, description="minutes between checkpoints; null for none by time"
    )
    keep: int = Field(default=2, ge=1, le=1000, description="newest checkpoints that stay on disk")
    cache: bool = Field(
        default=True,
        description="keep the end of each phase for runs that begin with the same phases, and begin from such an end",
    )


class StudyHead(Settings):
    """What a study is beside its runs."""

    study: Slug = Field(description="name of the study and of its folder")
    question: str = Field(default="", max_length=2000, description="what the study asks; shown in its report")
    seeds: Annotated[tuple[Seed, ...], Field(min_length=1, max_length=1000), AfterValidator(_unlike)] = Field(
        description="one run per arm for each; runs are compared seed by seed"
    )
    compare: CompareSpec = Field(default=CompareSpec(), description="which arms are held against which, and by what")
    criteria: dict[str, Criterion] = Field(
        default={}, description="rules by name that the study passes or fails; they change no run"
    )
    log: LogSpec = Field(default=LogSpec(), description="how often what happened is written down")
    checkpoint: CheckpointSpec = Field(default=CheckpointSpec(), description="how often a run can be taken up again")


class ArmFile(BaseModel):
    """One treatment: what differs from the study. Mappings merge, lists and scalars replace, null removes."""

    model: Any = Field(default=None, description="the model; the first task says which it can build")
    adapter: Any = Field(default=None, description="trainable factors beside frozen weights, such as {kind: lora}")
    task: Any = Field(default=None, description="what is trained on; short for tasks: {main: ...}")
    tasks: Any = Field(default=None, description="what is trained on, by name; needs phases where there are several")
    train: Any = Field(default=None, description="how to train")
    phases: Any = Field(
        default=None, description="stretches of a run, each on one task; one phase over all if not given"
    )
    plugins: Any = Field(default=None, description="plugins that act, by name, with their settings")
    sweep: Any = Field(default=None, description="dotted settings with lists of values; every combination is a point")


class StudyFile(StudyHead, ArmFile):
    """A study in YAML."""

    extends: str | None = Field(
        default=None, description="path, relative to this file, of a study that this one lies over"
    )
    arms: Any = Field(description="the treatments by name; each is what differs from the study")
