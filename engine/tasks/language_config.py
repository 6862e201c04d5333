"""What can be set about language models and their adapters; loads neither torch nor transformers."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag, ValidationInfo, field_validator

from .text_config import TextData


class Settings(BaseModel):
    """The base of every settings class here: no unknown key, no silent conversion, nothing infinite."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class TinyModel(Settings):
    """A language model made from numbers, with random weights and one token per byte: nothing is fetched."""

    kind: Literal["tiny"]
    family: Literal["qwen2", "gpt2"] = Field(default="qwen2", description="the architecture")
    width: int = Field(default=64, ge=4, le=65536, description="features of a token vector")
    layers: int = Field(default=4, ge=1, le=1000, description="blocks")
    heads: int = Field(default=4, ge=1, le=1024, description="attention heads; must divide width")
    kv_heads: Annotated[int, Field(ge=1, le=1024)] | None = Field(
        default=None, description="heads of keys and values; must divide heads; null: as many as heads; qwen2 only"
    )
    mlp: Annotated[int, Field(ge=1, le=2**20)] | None = Field(
        default=None, description="features inside the feed-forward block; null: 2.75 (qwen2) or 4 (gpt2) times width"
    )
    context: int = Field(default=1024, ge=2, le=2**20, description="longest row in tokens")
    vocab: Annotated[int, Field(ge=264, le=2**24)] | None = Field(
        default=None, description="size of the embedding; null: that of the byte tokenizer; larger ones give a shape"
    )
    dropout: float = Field(
        default=0.0, ge=0, lt=1, description="dropout of attention weights; gpt2: of embedding and residuals too"
    )
    init_seed: Annotated[int, Field(ge=0, le=2**63 - 1)] | None = Field(
        default=None, description="draw the weights from this seed, one base for all runs; null: from the run's seed"
    )

    @field_validator("heads")
    @classmethod
    def _divides(cls, value: int, info: ValidationInfo) -> int:
        width = info.data.get("width")
        if width is not None and (width % value or (info.data.get("family") == "qwen2" and width // value % 2)):
            raise ValueError(f"must divide width ({width}) into heads of an even number of features")
        return value

    @field_validator("kv_heads")
    @classmethod
    def _groups(cls, value: int | None, info: ValidationInfo) -> int | None:
        heads = info.data.get("heads")
        if value is not None and info.data.get("family") == "gpt2":
            raise ValueError("gpt2 has as many heads of keys and values as heads; remove it")
        if value is not None and heads is not None and heads % value:
            raise ValueError(f"must divide heads ({heads})")
        return value


class PretrainedModel(Settings):
    """A causal language model of transformers, by its name on the hub or by a local folder."""

    kind: Literal["pretrained"]
    name: str = Field(min_length=1, max_length=400, description="owner/name on the hub, or a folder such as ./model")
    revision: Annotated[str, Field(min_length=1, max_length=100)] | None = Field(
        default=None, description="branch, tag or commit on the hub; null: its main branch"
    )
    dtype: Literal["float32", "bfloat16"] = Field(
        default="float32", description="of frozen weights; bfloat16 halves their memory and needs trains: adapter"
    )


LanguageModelSettings = Annotated[TinyModel | PretrainedModel, Field(discriminator="kind")]


def _targets_tag(value: object) -> str:
    return "named" if isinstance(value, list | tuple) else "rule"


Targets = Annotated[
    Annotated[Literal["attention", "all_linear"], Tag("rule")]
    | Annotated[tuple[Annotated[str, Field(min_length=1)], ...], Field(min_length=1, max_length=10_000), Tag("named")],
    Discriminator(_targets_tag),
]


class LoraSettings(Settings):
    """Low-rank adapters beside frozen weights: scaling · B · A at each target."""

    kind: Literal["lora"]
    rank: int = Field(default=8, ge=1, le=65536, description="rows of A, columns of B")
    alpha: float = Field(default=16.0, gt=0, le=1e6, description="strength; see scaling")
    scaling: Literal["alpha_over_rank", "rank_stabilised"] = Field(
        default="alpha_over_rank", description="alpha / rank, or alpha / sqrt(rank), which high ranks need"
    )
    dropout: float = Field(default=0.0, ge=0, lt=1, description="dropout of what A reads, in training")
    targets: Targets = Field(
        default="attention",
        description="linear maps inside attention, all linear maps but the head, or ends of names such as [q_proj]",
    )
    load: Annotated[str, Field(min_length=1)] | None = Field(
        default=None, description="folder of a saved PEFT adapter to start from; null for a new one"
    )


class BankSettings(Settings):
    """A bank of low-rank adapters, one per slot; for a task of many documents at once, such as `document_stream`."""

    kind: Literal["bank"]
    slots: int = Field(default=16, ge=1, le=4096, description="documents adapted to at once, each by its own adapter")
    rank: int = Field(default=16, ge=1, le=65536, description="rows of A, columns of B")
    alpha: float = Field(default=16.0, gt=0, le=1e6, description="strength; see scaling")
    scaling: Literal["auto", "alpha_over_rank", "rank_stabilised", "none"] = Field(
        default="auto",
        description="alpha / rank, alpha / sqrt(rank), or 1; auto: alpha / rank for Adam, whose steps do not grow with "
        "the gradient, and alpha / sqrt(rank) for SGD: so a first step changes outputs alike at every rank",
    )
    targets: Targets = Field(
        default="all_linear",
        description="linear maps inside attention, all linear maps but the head, or ends of names such as [q_proj]; "
        "a name may be that of any module that maps features to features, such as self_attn or mlp, around which "
        "the adapter is then a side path",
    )
    head: bool = Field(default=True, description="an adapter beside the output head too")


AdapterSettings = Annotated[LoraSettings | BankSettings, Field(discriminator="kind")]


class CausalLmConfig(Settings):
    """The settings of the task `causal_lm`."""

    data: TextData = Field(description="where the text comes from and how it is split")
    max_length: int = Field(default=128, ge=2, le=2**20, description="longest row in tokens; longer ones are cut off")
    rows: Literal["bucket", "pack", "pad"] = Field(
        default="bucket",
        description="bucket: rows of like length together; pack: several rows in one, apart from each other; "
        "pad: every row to max_length, as the source does",
    )
    eval_tokens: int = Field(default=8192, ge=2, le=2**24, description="tokens per forward pass in evaluations")
    probe_rows: int = Field(default=32, ge=1, le=10_000, description="validation rows that the probe holds")
