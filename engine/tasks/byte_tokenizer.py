"""A tokenizer of one token per byte: nothing to download, exact on any text, and saved like any other.

Its marks hold a NUL character, which no row of text may hold, so that no text can be mistaken for a mark.
"""

from __future__ import annotations

from functools import cache
from typing import Any

MARKS = ("pad", "bos", "eos", "system", "user", "assistant", "end")
_TEMPLATE = (
    "{% for m in messages %}{{ '\\0' + m['role'] + '\\0' + m['content'] + '\\0end\\0' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '\\0assistant\\0' }}{% endif %}"
)


def mark(name: str) -> str:
    """Return the text of a mark."""
    return f"\0{name}\0"


def _letters() -> list[str]:
    """Return the letter that byte-level tokenizers write for each byte: itself where it is seen, else from U+0100."""
    seen = {*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)}
    letters, more = [], 256
    for byte in range(256):
        letters.append(chr(byte) if byte in seen else chr(more))
        more += byte not in seen
    return letters


def byte_tokenizer() -> Any:
    """Return a new `PreTrainedTokenizerFast`: ids 0 to 255 are the bytes, then come the marks."""
    from transformers import PreTrainedTokenizerFast

    tokenizer = PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=_engine(), pad_token=mark("pad"), bos_token=mark("bos"), eos_token=mark("eos"),
        additional_special_tokens=[mark(name) for name in MARKS[3:]], clean_up_tokenization_spaces=False,
    )  # fmt: skip
    tokenizer.chat_template = _TEMPLATE.replace("\\0", "\\x00")
    tokenizer.one_token_per_byte = True
    return tokenizer


@cache
def _engine() -> Any:
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    engine = Tokenizer(models.BPE(vocab={letter: byte for byte, letter in enumerate(_letters())}, merges=[]))
    engine.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    engine.decoder = decoders.ByteLevel()
    engine.add_special_tokens([AddedToken(mark(name), special=True, normalized=False) for name in MARKS])
    return engine
