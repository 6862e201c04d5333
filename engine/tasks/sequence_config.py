"""What can be set about synthetic sequences and the toy transformer; loads no torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, TypeAlias

from pydantic import Field, model_validator

from ctr.engine.train_spec import Settings

MARKERS = 3


class SequenceData(Settings):
    """A rule that sequences follow, how many are held out, and how training data are drawn."""

    vocab: int = Field(default=32, ge=16, le=65536, description="tokens there are; the model's too")
    seq: int = Field(default=24, ge=4, le=4096, description="tokens that the model reads at once; the model's too")
    marker: Literal[0, 1, 2] | None = Field(
        default=None,
        description="token at the first place that tells tasks apart, for which 0 to 2 are then kept; null for none",
    )
    offset: int = Field(default=0, ge=0, description="added to every target, modulo the content tokens")
    stream: Literal["positional", "consecutive"] = Field(
        default="positional",
        description="draw each micro-batch from its own place's generator, or all one after the other from one, as the "
        "source does",
    )
    items_per_epoch: int = Field(
        default=2560, ge=1, le=10**9, description="sequences of an epoch, in whole micro-batches, without epoch_batches"
    )
    split_seed: int = Field(default=0, ge=0, description="what val, calibration and test are drawn from, in every run")
    val_items: int = Field(default=256, ge=2, le=2**20, description="sequences of the validation split")
    calibration_items: int = Field(
        default=0, ge=0, le=2**20, description="sequences of the calibration split; 0 for none"
    )
    test_items: int = Field(default=512, ge=2, le=2**20, description="sequences of the test split")

    @property
    def content(self) -> int:
        """How many tokens sequences are made of: all, or all but the markers."""
        return self.vocab - (0 if self.marker is None else MARKERS)

    def sizes(self) -> dict[str, int]:
        """Return how many sequences each split has, without those that have none."""
        sizes = {"val": self.val_items, "calibration": self.calibration_items, "test": self.test_items}
        return {split: size for split, size in sizes.items() if size}

    @model_validator(mode="after")
    def _offset_is_a_token(self) -> SequenceData:
        if self.offset >= self.content:
            text = f"offset {self.offset} goes round the {self.content} content tokens"
            raise ValueError(f"{text}; give {self.offset % self.content}, which means the same")
        return self


class SequenceConfig(Settings):
    """The settings of the task `sequence`."""

    data: SequenceData = Field(default=SequenceData(), description="the rule, the splits and how data are drawn")
    eval_batch: int = Field(default=256, ge=1, le=2**20, description="sequences per forward pass in evaluations")


class ToySettings(Settings):
    """A small pre-norm transformer, whose feed-forward blocks can be divided into gated branches.

    `faithful` is the source's form, without an attention mask. As targets are the inputs one place later, every
    position but the last can then read its answer, and the loss falls far below what a causal model can reach.
    """

    kind: Literal["toy"]
    dim: int = Field(default=48, ge=1, le=8192, description="features of a hidden state; a multiple of heads")
    heads: int = Field(default=4, ge=1, le=256, description="attention heads of a block")
    layers: int = Field(default=2, ge=1, le=256, description="blocks")
    compartments: int = Field(
        default=0, ge=0, le=256, description="branches of a feed-forward block; 0 for one that is not divided"
    )
    top_k: int = Field(default=1, ge=1, le=256, description="branches that are open for a token")
    mode: Literal["router", "dendritic"] = Field(
        default="router", description="branches are scored by a linear layer on the input, or each by its own activity"
    )
    inhibition_strength: float = Field(
        default=0.5, ge=0, le=1e6, description="what a dendritic branch's score loses for answering as others do"
    )
    causal: bool = Field(default=True, description="a position sees itself and those before it; false where faithful")
    faithful: bool = Field(
        default=False, description="the source's form: no mask, so all positions but the last can copy their answers"
    )

    @model_validator(mode="before")
    @classmethod
    def _faithful_has_no_mask(cls, given: Any) -> Any:
        if isinstance(given, Mapping) and given.get("faithful") is True:
            return {"causal": False, **given}
        return given

    @model_validator(mode="after")
    def _consistent(self) -> ToySettings:
        if self.faithful and self.causal:
            text = "faithful is the source's form, which has no mask, and causal: true contradicts it"
            raise ValueError(f"{text}; remove causal, or set faithful: false")
        if not self.faithful and not self.causal:
            text = "causal: false lets every position but the last copy its answer from the input"
            raise ValueError(f"{text}; set faithful: true to say that this is meant, or remove causal")
        if self.dim % self.heads:
            raise ValueError(f"dim {self.dim} is no multiple of heads {self.heads}")
        self._check_branches()
        return self

    def _check_branches(self) -> None:
        if self.compartments and self.top_k > self.compartments:
            text = f"top_k {self.top_k} opens more branches than there are"
            raise ValueError(f"{text}; it must be from 1 to compartments, {self.compartments}")
        if not self.compartments and (self.top_k > 1 or self.mode == "dendritic"):
            text = f"top_k {self.top_k} and mode {self.mode} are about branches, and compartments is 0"
            raise ValueError(f"{text}; set compartments, or remove them")
        if self.mode == "router" and self.inhibition_strength != 0.5:
            text = f"inhibition_strength {self.inhibition_strength:g} acts on dendritic branches alone"
            raise ValueError(f"{text}; set mode: dendritic, or remove it")


SequenceModelSettings: TypeAlias = ToySettings
