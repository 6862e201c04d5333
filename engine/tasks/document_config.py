"""What can be set about a stream of documents; loads no data."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, ValidationInfo, field_validator

from .text_config import GeneratedText, HubData, JsonlFile, MarkovText, Settings, TextFile


class TokenFile(Settings):
    """A file of token ids, a one-dimensional integer array as numpy saves it; `begin` opens each document."""

    source: Literal["tokens"]
    path: str = Field(min_length=1, description="the .npy file, seen from where ctr is run")
    begin: int = Field(ge=0, le=2**31 - 1, description="the token with which every document begins")


DocumentData = Annotated[
    TextFile | JsonlFile | HubData | GeneratedText | MarkovText | TokenFile, Field(discriminator="source")
]


class DocumentStreamConfig(Settings):
    """The settings of the task `document_stream`."""

    data: DocumentData = Field(description="where the documents come from; each row of text is one")
    split: Literal["all", "train", "val", "test"] = Field(
        default="all", description="which of the data's rows are streamed; all: every one, whatever the fractions say"
    )
    order: Literal["longest_first", "shortest_first", "given"] = Field(
        default="longest_first",
        description="the queue of documents; sorted, those of a group are of like length and few places are padding",
    )
    chunk: int = Field(default=48, ge=1, le=2**16, description="tokens scored, then trained on, in one step")
    window: int = Field(
        default=2048, ge=1, le=2**20, description="tokens that a chunk is predicted from at most, itself included"
    )
    parts: tuple[Annotated[int, Field(ge=1)], ...] = Field(
        default=(),
        max_length=1000,
        description="documents of the queue before each phase that trains all weights on what was scored, ascending, "
        "each rounded up to whole groups; the stream then needs one phase more than there are parts",
    )
    eval_tokens: int = Field(default=8192, ge=2, le=2**24, description="tokens per forward pass without adapters")
    probe_rows: int = Field(default=32, ge=1, le=10_000, description="documents whose beginnings the probe holds")

    @field_validator("window")
    @classmethod
    def _holds_a_chunk(cls, value: int, info: ValidationInfo) -> int:
        chunk = info.data.get("chunk")
        if chunk is not None and value < chunk:
            raise ValueError(f"must hold a chunk of {chunk} tokens at least")
        return value

    @field_validator("parts")
    @classmethod
    def _ascends(cls, value: tuple[int, ...]) -> tuple[int, ...]:
        if any(right <= left for left, right in zip(value, value[1:], strict=False)):
            raise ValueError("must ascend: each is counted from the beginning of the queue")
        return value
