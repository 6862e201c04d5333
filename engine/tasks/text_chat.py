"""Which stretches of a rendered chat the assistant says; without torch."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ctr.engine.errors import DataError
from ctr.engine.text import printable

from .text_reading import TextRow

_MARKED = re.compile(r"\{%-?\s*generation\s*-?%\}")


@dataclass(frozen=True)
class Chat:
    """A chat as its template writes it.

    `spans` are the stretches (first character, one past the last) that the assistant says. `closed` are ends of spans
    that hold bare content: a special token that begins there closes the turn and is the assistant's too.
    """

    text: str
    spans: tuple[tuple[int, int], ...] = ()
    closed: tuple[int, ...] = ()


def template(tokenizer: Any, place: str) -> str:
    """Return the tokenizer's chat template; raises `DataError` where it has none, and never makes one up."""
    found = getattr(tokenizer, "chat_template", None)
    if isinstance(found, dict):  # several by name
        found = found.get("default")
    if not found:
        name = printable(getattr(tokenizer, "name_or_path", "") or type(tokenizer).__name__, 200)
        text = f"{place}: holds messages, and the tokenizer {name} has no chat template"
        raise DataError(f"{text}; use a model that has one (a chat or instruct model), or rows of text")
    return str(found)


def marks_the_assistant(template: str) -> bool:
    """Say whether a template marks by itself what the assistant says."""
    return bool(_MARKED.search(template))


def render(tokenizer: Any, row: TextRow, place: str) -> Chat:
    """Write a chat out and find what the assistant says.

    A turn of the assistant reaches from where the chat before it, with the prompt to answer, ends, to where the chat
    with it ends. Where a template writes an earlier turn differently once later ones follow, the chat does not begin
    with these; then the turn is its content, found in order, and the special token that closes it.
    """
    messages = list(row.messages)
    text = written(tokenizer, messages, f"{place}:{row.id}")
    spans: list[tuple[int, int]] = []
    closed: list[int] = []
    position = 0
    for index, message in enumerate(messages):
        span = _turn(tokenizer, messages, index, text) if message["role"] == "assistant" else None
        content = message["content"].strip()
        start = text.find(content, position)
        if span is None and start < 0:
            raise _changed(place, row, index)
        if span is None:
            span = (start, start + len(content))
            if message["role"] == "assistant":
                closed.append(span[1])
        if message["role"] == "assistant":
            spans.append(span)
        position = span[1]
    return Chat(text, tuple(spans), tuple(closed))


def check_whole(chat: str, row: TextRow, place: str) -> None:
    """Raise `DataError` where the template left out, or changed, what is said to the assistant."""
    for index, message in enumerate(row.messages):
        if message["role"] != "assistant" and message["content"].strip() not in chat:
            raise _changed(place, row, index)


def _changed(place: str, row: TextRow, index: int) -> DataError:
    role = row.messages[index]["role"]
    what = f"{place}:{row.id}: the chat template leaves out or changes messages[{index}] ({role})"
    return DataError(f"{what}; remove the message, or use a tokenizer with another template")


def written(tokenizer: Any, messages: Sequence[Mapping[str, str]], where: str, prompt: bool = False) -> str:
    """Return a chat as text; what the template says against it becomes a `DataError`."""
    try:
        text = tokenizer.apply_chat_template(
            [dict(one) for one in messages], tokenize=False, add_generation_prompt=prompt
        )
    except Exception as error:  # a template is a stranger's program
        said = printable(error, 300) or type(error).__name__
        raise DataError(
            f"{where}: the chat template refuses these messages: {said}; mend them or remove the row"
        ) from error
    return str(text)


def _turn(tokenizer: Any, messages: list[Mapping[str, str]], index: int, text: str) -> tuple[int, int] | None:
    """Return the span of one turn of the assistant, or None where the chat does not begin with what came before."""
    if index == 0:
        return None
    try:
        before = written(tokenizer, messages[:index], "", prompt=True)
        after = text if index == len(messages) - 1 else written(tokenizer, messages[: index + 1], "")
    except DataError:  # it takes the whole chat, but not this part of it
        return None
    return (len(before), len(after)) if text.startswith(before) and text.startswith(after) else None
