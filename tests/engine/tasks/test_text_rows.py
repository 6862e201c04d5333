"""Rows as tokens: labels checked by hand, bytes that add up, and no Python call per token."""

from __future__ import annotations

import copy
import sys
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from ctr.engine.errors import DataError
from ctr.engine.tasks.byte_tokenizer import byte_tokenizer
from ctr.engine.tasks.text_reading import TextRow
from ctr.engine.tasks.text_rows import Encoded, encode, notes

MARKED = (  # as templates of the hub are that mark what the assistant says
    "{{ bos_token }}{% for message in messages %}{{ '<|' + message['role'] + '|>' }}"
    "{% if message['role'] == 'assistant' %}{% generation %}{{ message['content'] + '<|close|>' }}{% endgeneration %}"
    "{% else %}{{ message['content'] + '<|close|>' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)


def byte_level() -> Any:
    """A tokenizer of bytes that begins and ends each text, with the tokens of a chat; ids from 256 on are no text."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet(), key=lambda one: (ord(one) > 255, ord(one)))
    tokenizer = Tokenizer(models.BPE(vocab={letter: number for number, letter in enumerate(letters)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<|pad|>", "<|begin|>", "<|end|>", "<|close|>", "<|system|>", "<|user|>", "<|assistant|>"]
    tokenizer.add_special_tokens(special)
    ends = [(name, tokenizer.token_to_id(name)) for name in ("<|begin|>", "<|end|>")]
    tokenizer.post_processor = processors.TemplateProcessing(single="<|begin|> $A <|end|>", special_tokens=ends)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<|pad|>", bos_token="<|begin|>", eos_token="<|end|>",
        additional_special_tokens=special[3:], chat_template=MARKED,
    )  # fmt: skip


BYTES: Any = byte_level()
OURS: Any = byte_tokenizer()


def said(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


CHAT = TextRow(
    "7",
    messages=(
        said("system", "Be kind."),
        said("user", "yes or no?"),
        said("assistant", "yes"),
        said("user", "sure?"),
        said("assistant", "Sí!"),
    ),
)


def words(text: str, **more: Any) -> Any:
    """A tokenizer of words, marks and single characters beyond ASCII, out of a text; `[UNK]` for all else."""
    pieces = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Punctuation()])
    vocabulary = {"[UNK]": 0, "[END]": 1}
    for piece, _ in pieces.pre_tokenize_str(text):
        vocabulary.setdefault(piece, len(vocabulary))
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pieces
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="[UNK]", **{"pad_token": "[END]", **more})


def with_template(template: str) -> Any:
    tokenizer = copy.deepcopy(BYTES)
    tokenizer.chat_template = template
    return tokenizer


def trained_text(encoded: Encoded, row: int = 0) -> str:
    text: str = BYTES.decode(encoded.ids[row][encoded.trained[row]])
    return text


def test_every_token_of_a_text_but_the_first_is_trained() -> None:
    encoded = encode([TextRow("1", "né")], BYTES, 64, place="p")
    assert encoded.ids[0].tolist() == BYTES("né")["input_ids"] and encoded.ids[0].dtype == np.int32
    assert encoded.trained[0].tolist() == [False, True, True, True, True]
    assert (encoded.bytes, encoded.kept, encoded.dropped, encoded.cut) == ([3], [0], 0, 0)


def test_a_row_is_cut_at_the_end() -> None:
    encoded = encode([TextRow("1", "abcdef"), TextRow("2", "né"), TextRow("3", "ab")], BYTES, 4, place="p")
    assert [ids.tolist() for ids in encoded.ids] == [BYTES(text)["input_ids"][:4] for text in ("abcdef", "né", "ab")]
    assert encoded.bytes == [3, 3, 2] and encoded.cut == 2
    assert encode([TextRow("2", "né")], BYTES, 3, place="p").bytes == [None]  # half a character has no bytes to count


def test_without_a_begin_token_the_first_token_is_not_trained_and_its_bytes_not_counted() -> None:
    encoded = encode([TextRow("1", "red  blue green")], words("red blue green"), 9, place="p")
    assert encoded.trained[0].tolist() == [False, True, True]
    assert encoded.bytes == [len("  blue green")]


def test_a_word_that_the_tokenizer_does_not_know_leaves_the_bytes_open() -> None:
    rows = [TextRow("1", "red pink blue"), TextRow("2", "pink red blue"), TextRow("3", "red blue")]
    assert encode(rows, words("red blue"), 9, place="p").bytes == [None, 9, 5]


def test_rows_without_a_trained_token_are_dropped_and_counted() -> None:
    tokenizer = words("red blue")
    encoded = encode([TextRow("1", "red"), TextRow("2", "red blue"), TextRow("3", "blue")], tokenizer, 9, place="p")
    assert (encoded.kept, encoded.dropped, len(encoded.ids)) == ([1], 2, 1)
    with pytest.raises(DataError, match=r"p: none of 2 rows has a trained token within max_length 9; raise max_len"):
        encode([TextRow("1", "red"), TextRow("3", "blue")], tokenizer, 9, place="p")
    with pytest.raises(DataError, match="none of 1 rows"):  # the assistant comes after the cut
        encode([CHAT], BYTES, 10, place="p")


UNMARKED = BYTES.chat_template.replace("{% generation %}", "").replace("{% endgeneration %}", "")
FORGETFUL = (  # writes `!` before the last turn of the assistant only, so that no chat begins with a shorter one
    "{% for m in messages %}{{ '<|' + m['role'] + '|>' }}"
    "{% if m['role'] == 'assistant' and loop.last %}{{ '! ' }}{% endif %}{{ m['content'] | trim + '<|close|>' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)
EARLY = FORGETFUL.replace("<|assistant|>", "<|assistant|>think")  # asks with words that no finished chat has


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        (BYTES.chat_template, "yes<|close|>Sí!<|close|>"),
        (UNMARKED, "yes<|close|>Sí!<|close|>"),
        (FORGETFUL, "yes<|close|>! Sí!<|close|>"),
        (EARLY, "yes<|close|>Sí!<|close|>"),
    ],
    ids=["marked", "prefixes", "an earlier turn changes", "the prompt is no prefix"],
)
def test_only_what_the_assistant_says_is_trained(template: str, expected: str) -> None:
    encoded = encode([TextRow("1", "né"), CHAT], with_template(template), 200, place="p")
    assert trained_text(encoded, 1) == expected
    spoken = expected.replace("<|close|>", "")
    assert encoded.bytes == [3, len(spoken.encode())]
    assert encoded.trained[1][-1] and not encoded.trained[1][: 1 + 1 + 8 + 1].any()


def test_a_mask_by_hand() -> None:
    row = TextRow("1", messages=(said("user", "a"), said("assistant", "bc")))
    encoded = encode([row], with_template(UNMARKED), 64, place="p")
    assert BYTES.convert_ids_to_tokens(encoded.ids[0].tolist()) == [
        "<|begin|>", "<|user|>", "a", "<|close|>", "<|assistant|>", "b", "c", "<|close|>",
    ]  # fmt: skip
    assert encoded.trained[0].tolist() == [False, False, False, False, False, True, True, True]


def test_a_token_across_the_border_belongs_to_the_side_where_it_begins() -> None:
    template = "{% for m in messages %}{{ m['role'][0] + ':' + m['content'] + ' ' }}{% endfor %}"
    template += "{% if add_generation_prompt %}a:{% endif %}"
    tokenizer = words("u : hello a yes", chat_template=template)
    row = TextRow("1", messages=(said("user", "hello"), said("assistant", "yes")))
    encoded = encode([row], tokenizer, 64, place="p")
    names = tokenizer.convert_ids_to_tokens(encoded.ids[0].tolist())
    assert list(zip(names, encoded.trained[0].tolist(), strict=True)) == [
        ("u", False), (":", False), ("hello", False), ("a", False), (":", False), ("yes", True),
    ]  # fmt: skip
    assert encoded.bytes == [3]


def test_messages_need_a_chat_template() -> None:
    with pytest.raises(DataError, match=r"p: holds messages, and the tokenizer .* has no chat template; use a model"):
        encode([CHAT], with_template(""), 64, place="p")


def test_what_a_template_says_against_a_row_is_told_with_its_place() -> None:
    refuses = "{{ raise_exception('roles must alternate') if messages[0]['role'] == 'system' else 'x' }}"
    with pytest.raises(DataError, match=r"p:7: the chat template refuses these messages: roles must alternate; mend"):
        encode([CHAT], with_template(refuses), 64, place="p")


@pytest.mark.parametrize("template", [BYTES.chat_template, UNMARKED, FORGETFUL])
def test_a_template_that_leaves_the_system_message_out_is_refused(template: str) -> None:
    loop = "{% for message in messages %}" if "message in" in template else "{% for m in messages %}"
    assert loop in template
    skips = template.replace(loop, loop.replace("messages", f"messages if {loop.split()[2]}['role'] != 'system'"))
    with pytest.raises(
        DataError, match=r"p:7: the chat template leaves out or changes messages\[0\] \(system\); remove"
    ):
        encode([CHAT], with_template(skips), 200, place="p")


def test_a_template_that_cannot_say_where_the_assistant_speaks_is_refused() -> None:
    shouts = "{% for m in messages %}{{ m['content'] | upper if loop.last else m['content'] }}{% endfor %}"
    shouts += "{% if add_generation_prompt %}?{% endif %}"
    with pytest.raises(DataError, match=r"leaves out or changes messages\[4\] \(assistant\)"):
        encode([CHAT], with_template(shouts), 200, place="p")


def test_padding_falls_back_on_the_end_token() -> None:
    stand_in = words("a", pad_token=None, eos_token="[END]")
    encode([TextRow("1", "a a")], stand_in, 9, place="p")
    assert stand_in.pad_token == "[END]" and stand_in.pad_token_id == 1
    with pytest.raises(
        DataError, match="p: the tokenizer has neither a pad token nor an end token.*; name one of them"
    ):
        encode([TextRow("1", "a a")], words("a", pad_token=None), 9, place="p")


def test_what_was_cut_or_left_out_is_said() -> None:
    encoded = encode([TextRow("1", "a a a a"), TextRow("2", "a"), TextRow("3", "a a")], words("a"), 3, place="p")
    assert notes("val", encoded, 3) == [
        "1 of 3 rows of val are longer than 3 tokens and were cut off",
        "1 of 3 rows of val have no token to train and were left out",
    ]
    assert notes("val", encode([TextRow("3", "a a")], words("a"), 3, place="p"), 3) == []


@settings(max_examples=40, deadline=None)
@given(
    st.lists(
        st.text(st.characters(exclude_categories=["Cs"], exclude_characters="<"), min_size=1, max_size=9), min_size=1
    )
)
def test_bytes_are_those_of_the_text_whatever_stands_beside_it(texts: list[str]) -> None:
    rows = [TextRow(str(i), text) for i, text in enumerate(texts)]
    rows.insert(1, CHAT)
    encoded = encode(rows, BYTES, 200, place="p")
    assert encoded.bytes == [7 if row.text is None else len(row.text.encode()) for row in rows]
    assert encoded.kept == list(range(len(rows)))


def calls(size: int) -> int:
    """Count Python calls, and calls from Python, while 50 rows of `size` bytes are encoded; the least of three times.

    What earlier tests left behind, such as a finalizer, may run in one of them.
    """
    rows = [TextRow(str(i), "abcdefghi " * (size // 10)) for i in range(50)]
    encode(rows[:1], BYTES, 100_000, place="p")
    return min(counted(rows) for _ in range(3))


def counted(rows: list[TextRow]) -> int:
    count = 0

    def note(frame: Any, event: str, argument: Any) -> None:
        nonlocal count
        count += event in ("call", "c_call")

    sys.setprofile(note)
    try:
        encode(rows, BYTES, 100_000, place="p")
    finally:
        sys.setprofile(None)
    return count


def test_nothing_runs_per_token_in_python() -> None:
    short, long = calls(20), calls(2000)
    assert short == long and short < 50 * 40


def test_bytes_as_tokens_are_those_that_the_byte_tokenizer_gives() -> None:
    texts = ["né", "a", "日本 \n", "abcdef"]
    encoded = encode([TextRow(str(i), text) for i, text in enumerate(texts)], OURS, 5, place="p")
    assert [ids.tolist() for ids in encoded.ids] == [
        OURS(text, add_special_tokens=True)["input_ids"][:5] for text in texts if text != "a"
    ]
    assert (encoded.kept, encoded.dropped, encoded.cut) == ([0, 2, 3], 1, 2)
    assert encoded.bytes == [2, 4, 4] and all(
        flags.tolist()[0] is False and flags[1:].all() for flags in encoded.trained
    )


def test_a_chat_of_the_byte_tokenizer() -> None:
    encoded = encode([TextRow("1", "né"), CHAT], OURS, 200, place="p")
    assert OURS.decode(encoded.ids[1][encoded.trained[1]]) == "yes\0end\0Sí!\0end\0"
    assert encoded.bytes == [2, 7]
