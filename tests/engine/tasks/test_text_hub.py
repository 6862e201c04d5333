"""Data sets by hub name, through a stand-in for the package `datasets`; nothing here needs a network."""

from __future__ import annotations

import sys
from types import SimpleNamespace
from typing import Any

import pytest

from ctr.engine.errors import DataError, MissingDependency
from ctr.engine.tasks.text_config import HubData
from ctr.engine.tasks.text_sources import divide, fingerprint, read

CHAT = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yes"}]


class Split(list[dict[str, Any]]):
    @property
    def column_names(self) -> list[str]:
        return list(self[0])


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The splits that `load_dataset` gives, by name, and under `asked` what it was asked for."""
    splits: dict[str, Any] = {"asked": []}

    def load_dataset(name: str, subset: str | None, *, split: str, revision: str | None) -> Any:
        splits["asked"].append((name, subset, split, revision))
        if split not in splits:
            raise ConnectionError("Couldn't reach 'a/b' on the Hub (LocalEntryNotFoundError)")
        return splits[split]

    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=load_dataset))
    return splits


def data(**more: Any) -> HubData:
    return HubData(source="hub", name="a/b", **more)


def test_rows_and_splits_of_a_data_set(hub: dict[str, Any]) -> None:
    hub["train"] = Split([{"text": text, "who": i % 2} for i, text in enumerate(["one", " ", "two", "three", "four"])])
    hub["validation"] = Split([{"text": f"v{i}", "who": 7} for i in range(3)])
    settings = data(val_split="validation", group_column="who", config="s", revision="r", max_rows=3, test_fraction=0.5)
    source = read(settings)
    assert [(row.id, row.text, row.group) for row in source.rows] == [
        ("train/0", "one", "0"), ("train/2", "two", "0"), ("train/3", "three", "1"),
        ("validation/0", "v0", "7"), ("validation/1", "v1", "7"), ("validation/2", "v2", "7"),
    ]  # fmt: skip
    assert hub["asked"] == [("a/b", "s", "train", "r"), ("a/b", "s", "validation", "r")]
    assert divide(source, settings)["val"] == [3, 4, 5]
    before = fingerprint(settings)
    hub["train"][0]["text"] = "One"
    assert fingerprint(settings) != before


def test_a_column_may_hold_messages(hub: dict[str, Any]) -> None:
    hub["train"] = Split([{"chat": CHAT}])
    assert read(data(column="chat")).rows[0].messages == tuple(CHAT)
    hub["train"] = Split([{"chat": CHAT}, {"chat": []}, {"chat": 3}])
    with pytest.raises(DataError) as raised:
        read(data(column="chat"))
    assert str(raised.value).splitlines()[0].startswith("hub:a/b:train/1: messages is empty")
    assert str(raised.value).splitlines()[1] == "hub:a/b:train/2: text is the number 3; it must be a text"


def test_a_hub_that_cannot_be_reached_says_what_to_do_offline(hub: dict[str, Any]) -> None:
    with pytest.raises(
        DataError, match=r"hub:a/b: the split train cannot be loaded: ConnectionError: Couldn't reach"
    ) as e:
        read(data())
    assert "without a network, fetch it once" in str(e.value) and "HF_HOME" in str(e.value)


def test_a_column_that_is_not_there_is_named_with_those_that_are(hub: dict[str, Any]) -> None:
    hub["train"] = Split([{"texts": "a", "id": 1}])
    with pytest.raises(
        DataError, match=r"data.column is text; the split train has the columns texts, id. Did you mean te"
    ):
        read(data())
    with pytest.raises(DataError, match="data.group_column is who"):
        read(data(column="texts", group_column="who"))


def test_a_split_without_text_is_refused(hub: dict[str, Any]) -> None:
    hub["train"] = Split([{"text": ""}])
    with pytest.raises(DataError, match="hub:a/b: the split train has no row with text in text"):
        read(data())


def test_without_the_package_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(MissingDependency, match=r"data.source: hub needs the package datasets.*pip install datasets"):
        read(data())
