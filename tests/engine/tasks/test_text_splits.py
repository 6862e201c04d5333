"""Splits of text: by group, shared by data sets that tell of the same entities; by row; and as the source does."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import TypeAdapter

from ctr.engine.errors import DataError
from ctr.engine.tasks.text_config import TextData
from ctr.engine.tasks.text_sources import TextRow, TextSource, divide, read
from ctr.engine.tasks.text_splits import place_of

STT = Path(__file__).parents[4] / "shared" / "data" / "stt"


def settings(**more: Any) -> Any:
    return TypeAdapter(TextData).validate_python({"source": "text", "path": "x", **more})


def source(rows: Iterable[tuple[str, str | None]], **given: list[int]) -> TextSource:
    return TextSource("place", tuple(TextRow(str(i), text, group=group) for i, (text, group) in enumerate(rows)), given)


def groups(source: TextSource, index: Iterable[int]) -> set[str | None]:
    return {source.rows[i].group for i in index}


NUMBERS = source((f"row {i}", None) for i in range(100))
ENTITIES = source((f"fact {i}", f"Entity-{i // 4:04d}") for i in range(4000))


def test_every_row_is_in_exactly_one_split() -> None:
    for how, rows in (("group", ENTITIES), ("row", NUMBERS), ("row", ENTITIES), ("faithful", ENTITIES)):
        splits = divide(rows, settings(split_by=how, calibration_fraction=0.1))
        assert set(splits) == {"train", "val", "test", "calibration"}
        assert sorted(sum(splits.values(), [])) == list(range(len(rows.rows)))
        assert how == "faithful" or all(part == sorted(part) for part in splits.values())


def test_rows_are_cut_at_the_fractions() -> None:
    splits = divide(NUMBERS, settings(test_fraction=0.2, val_fraction=0.105))
    assert {name: len(part) for name, part in splits.items()} == {"test": 20, "val": 11, "train": 69}
    more = divide(NUMBERS, settings(test_fraction=0.2, val_fraction=0.3))
    assert more["test"] == splits["test"]  # a fraction cut later changes none cut earlier
    assert divide(NUMBERS, settings(test_fraction=0.2, split_seed=1))["test"] != splits["test"]


def test_equal_rows_fall_into_one_split() -> None:
    rows = source((f"row {i % 30}", None) for i in range(90))
    splits = divide(rows, settings(test_fraction=0.2, val_fraction=0.2))
    assert [len(splits[name]) for name in ("test", "val", "train")] == [18, 18, 54]
    texts = [{rows.rows[i].text for i in part} for part in splits.values()]
    assert not texts[0] & texts[1] and not texts[0] & texts[2] and not texts[1] & texts[2]


def test_a_group_falls_into_one_split_by_its_name_alone() -> None:
    data = settings(test_fraction=0.2, val_fraction=0.2)
    splits = divide(ENTITIES, data)
    for name, low, high in (("test", 0.0, 0.2), ("val", 0.2, 0.4), ("train", 0.4, 1.0)):
        assert all(low <= place_of(str(group), 0) < high for group in groups(ENTITIES, splits[name]))
        assert abs(len(splits[name]) / 4000 - (high - low)) < 0.04  # 1000 groups: three standard deviations are 0.038
    other = source((f"else {i}", f"Entity-{999 - i:04d}") for i in range(1000))
    theirs = divide(other, data)
    assert all(groups(ENTITIES, splits[name]) == groups(other, theirs[name]) for name in splits)
    assert groups(other, divide(other, settings(split_seed=1))["test"]) != groups(other, theirs["test"])


def test_rows_without_a_group_stand_for_themselves() -> None:
    rows = source([("same", None), ("same", None), *((f"row {i}", f"g{i}") for i in range(100))])
    splits = divide(rows, settings())
    assert next(name for name, part in splits.items() if 0 in part) == next(
        name for name, part in splits.items() if 1 in part
    )


def test_splits_that_a_source_comes_with_are_kept() -> None:
    rows = source(((f"row {i}", None) for i in range(100)), val=[90, 91, 92])
    data = TypeAdapter(TextData).validate_python({"source": "hub", "name": "a/b", "val_split": "validation"})
    splits = divide(rows, data)
    assert splits["val"] == [90, 91, 92] and len(splits["test"]) == 10 and len(splits["train"]) == 87
    assert data.splits() == {"val", "test"}


PLAIN = [(f"row {i}", None) for i in range(9)]
BAD: dict[str, tuple[list[Any], dict[str, Any], str]] = {
    "one row": (PLAIN[:1], {}, r"place: has one row to be split into train, test, val; give more rows"),
    "two rows": (PLAIN[:2], {}, r"has 2 rows to be split"),
    "one group": (
        [("a", "g"), ("b", "g"), ("c", "g")],
        {},
        r"of 1 groups is none; .*, take another data.split_seed or",
    ),
    "no groups": (PLAIN, {"split_by": "group"}, r"no row names a group; set data.group_prefix, or use `split_by: row`"),
    "few": (PLAIN[:4], {"split_by": "faithful"}, r"the val split is empty"),
    "all held out": (
        PLAIN[:4],
        {"val_fraction": 0.45, "test_fraction": 0.5},
        r"the train split is empty.*; lower the fra",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_a_split_without_rows_is_refused(case: str) -> None:
    rows, more, message = BAD[case]
    with pytest.raises(DataError, match=message):
        divide(source(rows), settings(**more))


def test_the_faithful_split_is_the_sources() -> None:
    order = torch.randperm(100, generator=torch.Generator().manual_seed(10007)).tolist()
    splits = divide(NUMBERS, settings(split_by="faithful", split_seed=10007, val_fraction=0.4, test_fraction=0.1))
    assert splits["train"] == order[:75] and splits["val"] == order[75:95] and splits["test"] == order[95:]


def leak(b: str, seed: int, path: Path, **more: Any) -> float:
    """Return the share of A's first eight held-out entities that are in the first 150 rows that train B."""
    a, b = f"{path}/accretion_task_a.txt", f"{path}/accretion_task_b_{b}.txt"
    faithful = more.get("split_by") == "faithful"
    ours = settings(path=a, group_prefix="Entity-", split_seed=seed, **more)
    theirs = settings(path=b, group_prefix="Entity-", split_seed=seed + 10000 * faithful, **more)
    one, two = read(ours), read(theirs)
    held_out, trained = divide(one, ours)["val"], divide(two, theirs)["train"]
    if faithful:
        held_out, trained = held_out[:8], trained[:150]
    seen = groups(two, trained)
    return sum(one.rows[i].group in seen for i in held_out) / len(held_out)


@pytest.mark.skipif(not STT.is_dir(), reason=f"the source's files are not at {STT}")
@pytest.mark.parametrize("condition", ["related", "related_strong", "rehearsal"])
def test_the_faithful_split_leaks_and_ours_does_not(condition: str) -> None:
    shares = [leak(condition, seed, STT, split_by="faithful") for seed in range(6)]
    assert (min(shares), max(shares)) == (0.25, 0.875)  # the source's 25 to 88 %
    assert [leak(condition, seed, STT) for seed in range(6)] == [0.0] * 6


@pytest.mark.parametrize("part", ["b_related", "b_related_strong", "b_rehearsal", "c"])
def test_generated_parts_share_their_split(part: str) -> None:
    for seed in range(6):
        one, two = (
            TypeAdapter(TextData).validate_python(
                {"source": "generated", "family": "accretion", "part": name, "split_seed": seed}
            )
            for name in ("a", part)
        )
        a, b = read(one), read(two)
        held_out = {name: groups(a, index) for name, index in divide(a, one).items() if name != "train"}
        theirs = divide(b, two)
        assert all(groups(b, theirs[name]) == found for name, found in held_out.items())
        assert not groups(b, theirs["train"]) & set().union(*held_out.values())
