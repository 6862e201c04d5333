"""What can be set about text data: where it comes from and how it is split; loads no data."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator

Share = Annotated[float, Field(ge=0, lt=1)]
Named = Annotated[str, Field(min_length=1)]


class Settings(BaseModel):
    """The base of every settings class here: no unknown key, no silent conversion, nothing infinite."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class Data(Settings):
    """What every source of text has: how its rows are divided into train, val, test and calibration."""

    split_seed: int = Field(default=0, description="what the splits and the probe are drawn from; same for every run")
    test_fraction: Share = Field(default=0.1, description="share of the rows, or groups, in the test split; 0 for none")
    val_fraction: Share = Field(default=0.1, description="share of the rows, or groups, in the validation split")
    calibration_fraction: Share = Field(
        default=0.0, validate_default=True, description="share kept for calibration; 0 for none"
    )
    split_by: Literal["row", "group", "faithful"] | None = Field(
        default=None,
        description="group: all rows of a group fall in one split, the same in every source of one split seed; "
        "row: equal rows fall in one split; faithful: the first three quarters of torch's permutation train, as in "
        "Surface Tension Transformers, and the rest is shared out by the fractions, validation first; it leaks facts "
        "from one source's held-out rows into another's training rows; null: group where rows have groups, else row",
    )
    max_rows: Annotated[int, Field(ge=2)] | None = Field(
        default=None, description="read no more than the first so many rows; null for all"
    )

    @field_validator("calibration_fraction")
    @classmethod
    def _something_is_left(cls, value: float, info: ValidationInfo) -> float:
        held = value + sum(info.data.get(name, 0.0) for name in ("test_fraction", "val_fraction"))
        if held >= 1:
            raise ValueError(f"the split fractions add up to {held:g}; they must leave something to train on")
        return value

    def fractions(self) -> dict[str, float]:
        """Return what is held out of the rows that are split, in the order it is taken."""
        held = {"test": self.test_fraction, "val": self.val_fraction, "calibration": self.calibration_fraction}
        return {name: share for name, share in held.items() if share}

    def splits(self) -> set[str]:
        """Name the splits beside the training split."""
        return set(self.fractions())


class TextFile(Data):
    """A text file in UTF-8: every line that is not blank is a row."""

    source: Literal["text"]
    path: str = Field(min_length=1, description="the file, seen from where ctr is run")
    group_prefix: Annotated[str, Field(min_length=1)] | None = Field(
        default=None,
        description='the first word of a line that begins so, such as "Entity-", is the row\'s group, without the '
        "punctuation around it; null for none",
    )


class JsonlFile(Data):
    """A file with a JSON object a line: {"text": …} or {"messages": [{"role", "content"}, …]}, and a "group" if any."""

    source: Literal["jsonl"]
    path: str = Field(min_length=1, description="the file, seen from where ctr is run")


class HubData(Data):
    """A data set of the hub, by its name; needs the package `datasets`."""

    source: Literal["hub"]
    name: str = Field(
        pattern=r"^[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?$", max_length=200, description="owner/name on the hub"
    )
    config: str | None = Field(default=None, description="configuration of the data set; null for its default")
    split: str = Field(default="train", min_length=1, description="the split of the data set whose rows are divided")
    val_split: Named | None = Field(
        default=None, description="the data set's split to validate on; null to take val_fraction of the rows"
    )
    test_split: Named | None = Field(
        default=None, description="the data set's split to test on; null to take test_fraction of the rows"
    )
    column: str = Field(default="text", min_length=1, description="text, or messages, of a row")
    group_column: Named | None = Field(default=None, description="what a row is about, by which rows are split")
    revision: str | None = Field(default=None, description="commit of the data set; null for its newest")

    @field_validator("val_split", "test_split")
    @classmethod
    def _faithful_draws_its_own(cls, value: str | None, info: ValidationInfo) -> str | None:
        if value and info.data.get("split_by") == "faithful":
            raise ValueError("split_by: faithful draws its own splits; leave out val_split and test_split")
        return value

    def fractions(self) -> dict[str, float]:
        given = {"val": self.val_split, "test": self.test_split}
        return {name: share for name, share in super().fractions().items() if not given.get(name)}

    def splits(self) -> set[str]:
        given = {"val": self.val_split, "test": self.test_split}
        return {*super().splits(), *(name for name, split in given.items() if split)}


class GeneratedText(Data):
    """Sentences about invented entities, made in memory; see `ctr data generate`."""

    source: Literal["generated"]
    family: Literal["accretion", "conflict", "conflict2"] = Field(description="the family of tasks")
    part: str = Field(description="accretion: a, b_related, b_related_strong, b_rehearsal, c, neutral; else: a, b")
    entities: int = Field(default=256, ge=8, le=1_000_000, description="entities that sentences are made about")
    seed: int = Field(default=0, ge=0, le=2**63 - 1, description="what facts are drawn from; the same for all parts")

    @field_validator("part")
    @classmethod
    def _exists(cls, value: str, info: ValidationInfo) -> str:
        from ctr.engine.generate import PARTS

        family = str(info.data.get("family"))  # absent where the family itself is refused
        if family in PARTS and value not in PARTS[family]:
            raise ValueError(f"family {family} has no part {value!r}; it has {', '.join(PARTS[family])}")
        return value


class MarkovText(Data):
    """Documents of 64 symbols made in memory, each after a rule of its own within one family of rules."""

    source: Literal["markov"]
    documents: int = Field(default=480, ge=2, le=1_000_000, description="documents to make")
    spread: float = Field(default=0.8, ge=0, le=10, description="how far rules lie apart; 0: one rule for all")
    median: int = Field(default=150, ge=24, le=700, description="median length in symbols; lengths are log-normal")
    seed: int = Field(default=0, ge=0, le=2**63 - 1, description="what the documents are drawn from")
    family_seed: int = Field(default=0, ge=0, le=2**63 - 1, description="what the family of rules is drawn from")


TextData = Annotated[TextFile | JsonlFile | HubData | GeneratedText | MarkovText, Field(discriminator="source")]
