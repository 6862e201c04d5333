"""Tasks and plugins that are nothing but settings, and a study that uses them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field, field_validator

from ctr.engine.spec import RunRef, StudySpec, load_study
from ctr.engine.task import Metric

STUDY = """\
study: toy
seeds: [1, 2, 3]
model: {kind: net, width: 8}
task: {kind: pictures, data: {source: noise, size: 5}}
train:
  epochs: 3
  micro_batch: 16
  optimizer: {kind: sgd, base_lr: 0.1}
arms:
  base: {}
  treated: {plugins: {scale: {by: 1.1}}}
"""


class Strict(BaseModel, extra="forbid", frozen=True):
    pass


class Noise(Strict):
    source: Literal["noise"]
    size: int = Field(ge=1, le=100, description="how many")


class Folder(Strict):
    source: Literal["folder"]
    path: str = Field(min_length=1)


class Pictures:
    """Pictures of noise."""

    class Config(Strict):
        data: Noise | Folder = Field(discriminator="source", description="where they come from")
        crop: int = 0

    class Net(Strict):
        kind: Literal["net"]
        width: int = Field(8, ge=1)

    class Named(Strict):
        kind: Literal["named"]
        name: str

    Model = Annotated[Net | Named, Field(discriminator="kind")]

    class Adapter(Strict):
        rank: int = Field(ge=1)

    metrics = {"accuracy": Metric("%", "higher")}


class Words:
    class Config(Strict):
        length: int = Field(ge=1)

    class Model(Strict):
        size: int

    metrics = {"perplexity": Metric("", "lower")}


class Scale:
    """Scales."""

    class Config(Strict):
        by: float = Field(ge=0, allow_inf_nan=False, description="the factor")
        start: int = Field(0, ge=0)


class Replay:
    class Config(RunRef):
        pass


class Sloppy:
    """Its validator breaks, and it lets any number through."""

    class Config(BaseModel, frozen=True):
        number: float | list[int] = 0.0

        @field_validator("number")
        @classmethod
        def _broken(cls, value: Any) -> Any:
            if value == 13:
                raise TypeError("thirteen")
            return value


class Bare:
    pass


@dataclass
class Fakes:
    tasks: Mapping[str, Any] = field(default_factory=lambda: {"pictures": Pictures, "words": Words})
    plugins: Mapping[str, Any] = field(
        default_factory=lambda: {"scale": Scale, "replay": Replay, "sloppy": Sloppy, "bare": Bare}
    )
    broken: Mapping[str, str] = field(default_factory=lambda: {"cracked": "ImportError: no module named \x1b[31mfoo"})


def study(folder: Path, text: str | bytes = STUDY, *sets: str, name: str = "x.yaml") -> StudySpec:
    """Write a study and load it with the fakes."""
    path = folder / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return load_study(path, sets, Fakes())
