"""The byte tokenizer: one token per byte, exact both ways, and the same when it is loaded again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ctr.engine.tasks.byte_tokenizer import MARKS, byte_tokenizer, mark

TOKENIZER: Any = byte_tokenizer()
CHAT = [
    {"role": "system", "content": "Be"},
    {"role": "user", "content": " Hi "},
    {"role": "assistant", "content": "Yé"},
]
TEXTS = [
    "Héllo  wörld\n\t\x01 \u2028 日本語 🎉",
    "x" * 3000,
    " ",
    "\r\n\r\n",
    "e\u0301\u0300 \ufeff\u200d",
    "<|end|>",
    "\U0010ffff",
]


@pytest.mark.parametrize("text", TEXTS)
def test_a_byte_is_a_token_and_comes_back(text: str) -> None:
    ids = TOKENIZER(text)["input_ids"]
    assert ids == list(text.encode())
    assert TOKENIZER.decode(ids) == TOKENIZER.decode(ids, skip_special_tokens=True) == text


@given(st.text(alphabet=st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=60))
def test_any_text_comes_back(text: str) -> None:
    ids = TOKENIZER(text)["input_ids"]
    assert ids == list(text.encode()) and TOKENIZER.decode(ids) == text


def test_marks_are_numbered_behind_the_bytes() -> None:
    assert len(TOKENIZER) == 256 + len(MARKS)
    assert [TOKENIZER.convert_tokens_to_ids(mark(name)) for name in MARKS] == list(range(256, 256 + len(MARKS)))
    assert (TOKENIZER.pad_token_id, TOKENIZER.bos_token_id, TOKENIZER.eos_token_id) == (256, 257, 258)


def test_a_chat_is_written_with_its_roles() -> None:
    expected = "\0system\0Be\0end\0\0user\0 Hi \0end\0\0assistant\0Yé\0end\0"
    assert TOKENIZER.apply_chat_template(CHAT, tokenize=False) == expected
    asked = TOKENIZER.apply_chat_template(CHAT[:2], tokenize=False, add_generation_prompt=True)
    assert asked == expected.removesuffix("Yé\0end\0")
    assert len(TOKENIZER(expected)["input_ids"]) == 2 + 4 + 3 + 6  # bytes and marks


def test_it_is_the_same_when_loaded_again(tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    TOKENIZER.save_pretrained(tmp_path)
    again = AutoTokenizer.from_pretrained(tmp_path)
    for text in [*TEXTS, "a\0end\0b"]:
        assert again(text)["input_ids"] == TOKENIZER(text)["input_ids"]
        assert again.decode(again(text)["input_ids"]) == text
    assert again.apply_chat_template(CHAT, tokenize=False) == TOKENIZER.apply_chat_template(CHAT, tokenize=False)
    assert (again.pad_token, again.bos_token, again.eos_token) == ("\0pad\0", "\0bos\0", "\0eos\0")
