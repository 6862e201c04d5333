"""Generated texts: who shares entities and facts with whom, who contradicts whom, and that no place in a file tells."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest

from ctr.engine.errors import DataError
from ctr.engine.generate import CONDITIONS, KNOBS, MOST, PARTS, Row, accretion, conflict, conflict2, generate
from ctr.engine.seeding import stream

SOURCE = Path(__file__).parents[4] / "shared" / "data" / "stt" / "accretion_task_a.txt"
EVERY = [(family, part) for family, parts in PARTS.items() for part in parts]
ANSWER = re.compile(r"Answer (\w+): ([^.]*)\.")


def answer(row: Row) -> tuple[str, ...]:
    found = ANSWER.search(row.text)
    assert found and found[1] == row.group, row
    return tuple(found[2].split(", "))


def answers(part: str, **knobs: Any) -> dict[str, tuple[str, ...]]:
    return {row.group: answer(row) for row in generate("accretion", part, 256, 3, **knobs)}


def period(facts: Sequence[object], longest: int = 64) -> int | None:
    """Return the shortest period at which facts repeat along the file, or None."""
    for step in range(1, longest + 1):
        if all(later == earlier for later, earlier in zip(facts[step:], facts, strict=False)):
            return step
    return None


# ------------------------------------------------------------------------------------------------------ every part
@pytest.mark.parametrize(("family", "part"), EVERY)
def test_rows_are_short_lines_of_ascii_that_begin_with_no_other_entity(family: str, part: str) -> None:
    rows = generate(family, part, 64, 1)
    longest = 180 if part in ("b_related_strong", "b_rehearsal") else 126  # and two marks: 128 tokens
    for row in rows:
        assert row.text.isascii() and row.text.isprintable() and 55 <= len(row.text) <= longest, row
        assert set(re.findall(r"\b[ENKU]\d{4}\b", row.text)) == {row.group}
    assert len({row.text for row in rows}) == len(rows)


@pytest.mark.parametrize(("family", "part"), EVERY)
def test_more_entities_add_rows_and_another_seed_changes_them(family: str, part: str) -> None:
    few, many, other = (generate(family, part, n, seed) for n, seed in ((20, 5), (40, 5), (20, 6)))
    assert many[: len(few)] == few and len(many) == 2 * len(few)
    same = sum(one.text == two.text for one, two in zip(few, other, strict=True))
    assert same <= 2


@pytest.mark.parametrize(("family", "part"), [one for one in EVERY if one[1] != "neutral"])
def test_parts_of_a_family_have_the_same_entities_in_the_same_order(family: str, part: str) -> None:
    assert [r.group for r in generate(family, part, 30, 2)] == [r.group for r in generate(family, "a", 30, 2)]


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_facts_are_no_function_of_a_place_in_the_file(seed: int) -> None:
    names = [row.text.partition(". ")[0][5:] for row in generate("accretion", "a", 256, seed)]
    assert period(names) is None
    for facts in (
        [accretion.facts(i, stream(seed, "x"), {"customs": 0.5}) for i in range(256)],
        [accretion.guild(i, stream(seed, "x")) for i in range(256)],
        [conflict.facts(0, i, stream(seed, "x"), False) for i in range(256)],
        [conflict2.facts(1, i, stream(seed, "x"), False) for i in range(256)],
    ):
        assert period(facts) is None
        columns = zip(*facts, strict=True) if isinstance(facts[0], (list, tuple)) else [facts]
        assert all(period(list(column)) is None for column in columns)
    assert period([i % 8 for i in range(256)]) == 8


def test_the_check_of_periods_finds_the_one_of_the_source() -> None:
    if not SOURCE.exists():
        pytest.skip(f"needs {SOURCE}, which is not part of this package")
    lines = sorted(SOURCE.read_text().splitlines())
    assert period([line.partition("guild ")[2].partition(".")[0] for line in lines]) == 8


def test_every_word_is_drawn_and_none_is_favoured() -> None:
    key = stream(0, "generate.accretion")
    facts = [accretion.facts(i, key, {"customs": 0.0}) for i in range(4000)]
    for column in zip(*facts, strict=True):
        counts = [column.count(word) for word in set(column)]
        assert len(counts) == 8 and 400 < min(counts) and max(counts) < 600  # 500 each, sd 21


def test_the_texts_are_those_of_earlier_versions() -> None:
    """Data that change silently make old runs unlike new ones; whoever changes them raises the version."""
    whole = "\n".join(row.text for family, part in EVERY for row in generate(family, part, 256, 0))
    assert sha256(whole.encode()).hexdigest()[:16] == "7e922dce8527f7f0"


# ------------------------------------------------------------------------------------------------------ accretion
def test_b_tells_the_facts_of_a_again() -> None:
    for part in ("b_related", "b_related_strong", "b_rehearsal"):
        assert answers(part) == answers("a")
    a, related, strong, rehearsal = (
        [row.text for row in generate("accretion", part, 100, 3)]
        for part in ("a", "b_related", "b_related_strong", "b_rehearsal")
    )
    assert all(line.startswith(first + " ") for line, first in zip(rehearsal, a, strict=True))
    assert not any(first in line for line, first in zip(related + strong, a + a, strict=True))
    assert all(line.startswith(first + " Check ") for line, first in zip(strong, related, strict=True))


def test_the_sentence_says_what_the_answer_says() -> None:
    for part in PARTS["accretion"]:
        for row in generate("accretion", part, 100, 3):
            told = row.text.partition(" Answer ")[0]
            assert all(re.search(rf"\b{word}\b", told) for word in answer(row)), row


def test_c_contradicts_every_fact_of_a_in_the_same_form() -> None:
    a, c = answers("a"), answers("c")
    assert a.keys() == c.keys()
    assert not any(one == two for who in a for one, two in zip(a[who], c[who], strict=True))
    assert not any("guild" in row.text for row in generate("accretion", "c", 50, 3))


def test_neutral_speaks_of_nobody_that_a_knows() -> None:
    neutral = answers("neutral")
    assert not neutral.keys() & answers("a").keys()
    known = {word for told in answers("a").values() for word in told}
    assert not known & {word for told in neutral.values() for word in told}


@pytest.mark.parametrize(("customs", "share"), [(0.0, 1 / 8), (0.5, 0.5 + 0.5 / 8), (1.0, 1.0)])
def test_facts_follow_the_guild_as_often_as_asked(customs: float, share: float) -> None:
    key = stream(0, "generate.accretion")
    hits = [
        word == words[accretion.guild(entity, key)]
        for entity in range(1000)
        for word, words in zip(accretion.facts(entity, key, {"customs": customs}), accretion.FIRST, strict=True)
    ]
    assert abs(sum(hits) / len(hits) - share) < 0.03  # sd 0.008
    told = {accretion.facts(entity, key, {"customs": customs}) for entity in range(1000)}
    assert len(told) == 8 if customs == 1.0 else len(told) > 500


# ------------------------------------------------------------------------------------------------------- conflict
@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("module", [conflict, conflict2])
def test_the_two_archives_agree_on_nothing(module: Any, shared: bool) -> None:
    pairs = [[module.facts(other, i, 9, shared) for other in (0, 1)] for i in range(300)]
    assert not any(one == two for a, b in pairs for one, two in zip(a, b, strict=True))
    first, second = ({word for pair in pairs for word in pair[n][:4]} for n in (0, 1))
    assert first == second if shared else not first & second


@pytest.mark.parametrize(("family", "places"), [("conflict", conflict.ARCHIVES), ("conflict2", conflict2.LOGS)])
@pytest.mark.parametrize("named", [0.0, 0.3, 1.0])
def test_as_many_rows_name_their_archive_as_asked_and_alike_in_both(
    family: str, places: tuple[str, str], named: float
) -> None:
    a, b = (generate(family, part, 1000, 4, named=named) for part in ("a", "b"))
    says_a, says_b = (
        [f" of the {place} " in row.text for row in rows] for place, rows in zip(places, (a, b), strict=True)
    )
    assert says_a == says_b
    assert abs(sum(says_a) / len(says_a) - named) < (0.05 if 0 < named < 1 else 1e-12)
    assert not any(f" {places[1]} " in row.text for row in a)


def test_each_phrasing_names_its_archive_at_times() -> None:
    rows = generate("conflict", "a", 64, 0)
    told = [sum("north" in row.text for row in rows[number::4]) for number in range(4)]
    assert all(16 <= count <= 48 for count in told)


@pytest.mark.parametrize("phrasings", [1, 2, 3, 4])
def test_an_entity_has_the_phrasings_asked_for_and_one_set_of_facts(phrasings: int) -> None:
    rows = generate("conflict", "b", 20, 0, phrasings=phrasings)
    assert len(rows) == 20 * phrasings and rows == [
        row for i in range(20) for row in generate("conflict", "b", 20, 0)[4 * i : 4 * i + phrasings]
    ]
    for number, row in enumerate(rows):
        facts = conflict.facts(1, number // phrasings, stream(0, "generate.conflict"), False)
        assert all(re.search(rf"\b{word}\b", row.text) for word in facts)


# --------------------------------------------------------------------------------------------------------- errors
@pytest.mark.parametrize(
    ("family", "part", "entities", "seed", "knobs", "told"),
    [
        ("acretion", "a", 1, 0, {}, "no family of generated data acretion; there are accretion, conflict, conflict2. "),
        ("", "a", 1, 0, {}, "no family of generated data of an empty name"),
        ("accretion", "b", 1, 0, {}, "no part of accretion b; there are a, b_related"),
        ("accretion", "\x1b[2J", 1, 0, {}, "no part of accretion \\x1b[2J;"),
        ("accretion", "a", 0, 0, {}, "entities is 0; give a whole number from 1 to 1000000"),
        ("accretion", "a", MOST + 1, 0, {}, "entities is 1000001; "),
        ("accretion", "a", 2.0, 0, {}, "entities is 2.0; "),
        ("accretion", "a", True, 0, {}, "entities is True; "),
        ("accretion", "a", 1, -1, {}, "seed is -1; give a whole number from 0 to "),
        ("accretion", "a", 1, 2**63, {}, "seed is 9223372036854775808; "),
        ("accretion", "a", 1, 0, {"named": 0.5}, "no knob of accretion named; there are customs."),
        ("conflict", "a", 1, 0, {"nmaed": 0.5}, "Did you mean named?"),
        ("conflict", "a", 1, 0, {"named": 1.01}, "named is 1.01; give a number from 0.0 to 1.0"),
        ("conflict", "a", 1, 0, {"named": float("nan")}, "named is nan; give a number from 0.0 to 1.0"),
        ("conflict", "a", 1, 0, {"named": True}, "named is True; give a number"),
        ("conflict", "a", 1, 0, {"named": "0.5"}, "named is 0.5; give a number"),
        ("conflict", "a", 1, 0, {"phrasings": 5}, "phrasings is 5; give a whole number from 1 to 4"),
        ("conflict", "a", 1, 0, {"phrasings": 2.0}, "phrasings is 2.0; give a whole number"),
        ("conflict", "a", 1, 0, {"shared_values": 1}, "shared_values is 1; give true or false"),
    ],
)
def test_what_is_unknown_or_out_of_range_is_refused_by_name(
    family: str, part: str, entities: Any, seed: Any, knobs: dict[str, Any], told: str
) -> None:
    with pytest.raises(DataError) as caught:
        generate(family, part, entities, seed, **knobs)
    assert told in str(caught.value)


def test_a_whole_number_is_a_number() -> None:
    assert generate("conflict", "a", 3, 0, named=1) == generate("conflict", "a", 3, 0, named=1.0)


def test_the_tables_agree_with_each_other() -> None:
    assert PARTS.keys() == KNOBS.keys() == CONDITIONS.keys()
    assert all(set(CONDITIONS[family].values()) <= set(PARTS[family]) for family in PARTS)
    assert all(knob.low <= knob.default <= knob.high for knobs in KNOBS.values() for knob in knobs.values())


def test_the_library_is_light() -> None:
    heavy = ("torch", "numpy", "pydantic", "transformers", "typer", "orjson")
    code = f"import sys, ctr.engine.generate; print(*[name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout.split() == [] and not done.returncode, done.stdout + done.stderr
