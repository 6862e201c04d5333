"""Routes read back as they were written, fit a run or say why not, and weigh every place once."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ctr.plugins.routed.route import KINDS, Layout, Route, RouteError, Term, parse

TARGETS = [f"model.layers.{i}.self_attn.{name}" for i in range(6) for name in ("q_proj", "v_proj")] + ["lm_head"]
LAYOUT = Layout.of(TARGETS)
NAMES = st.from_regex(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,6}", fullmatch=True)
WEIGHTS = st.floats(-9, 9, allow_nan=False).map(lambda x: x + 0.0)
GROUPS = st.lists(
    st.tuples(st.sampled_from(["early", "block.3", "a", TARGETS[0], f"{TARGETS[1]}.b"]), WEIGHTS),
    max_size=3,
    unique_by=lambda group: group[0],
)


@given(st.lists(st.tuples(NAMES, WEIGHTS, GROUPS), max_size=5, unique_by=lambda term: term[0]))
def test_what_is_written_reads_back(terms: list[tuple[str, float, list[tuple[str, float]]]]) -> None:
    route = Route(tuple(Term(name, weight, tuple(groups)) for name, weight, groups in terms))
    assert parse(str(route)) == route
    assert parse(f" {str(route).replace('+', ' + ')} ") == route


@pytest.mark.parametrize(
    ("text", "again"),
    [
        ("A+0.9B+0.25C", None), ("A + .9*B", "A+0.9B"), ("A+-0.5B", None), ("1e-5B", "1e-05B"), ("2e3*e3", "2000*e3"),
        ("C[early=0.25, middle=.4]", "C[early=0.25,middle=0.4]"), ("0", None), ("0.5C[block.3=1]", None),
        ("1e+2A+B", "100A+B"), ("1*2nd", None),
    ],
)  # fmt: skip
def test_forms(text: str, again: str | None) -> None:
    assert str(parse(text)) == (again or text)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "is no term of a route"), ("A+", "is no term"), ("A+A", "phase A is named twice"), ("1.5", "is no term"),
        ("A[", "is no term"), ("A[x]", "'x' is no group; write group=weight"), ("A[x=]", "'' is no weight"),
        ("A[x=inf]", "'inf' is no weight"), ("A[x=nan]", "'nan' is no weight"), ("0.9 0.8B", "is no term"),
        ("A++B", "is no term"), ("A[a=1,a=2]", "group a is named twice"), ("1e999A", "is no weight"),
        ("A[[a=1]]", "is no term"), ("A\x1b[2J", "is no term"), ("A" * 200_000, "a route of 200,000 characters"),
    ],
)  # fmt: skip
def test_what_is_no_route_is_refused(text: str, why: str) -> None:
    with pytest.raises(RouteError) as error:
        parse(text)
    assert why in str(error.value) and len(str(error.value)) < 400


def test_places_bands_and_blocks() -> None:
    bands = {name: LAYOUT.places[name][0].band for name in TARGETS}
    assert [bands[f"model.layers.{i}.self_attn.q_proj"] for i in range(6)] == [
        "early", "early", "middle", "middle", "late", "late",
    ]  # fmt: skip
    assert bands["lm_head"] is None and LAYOUT.places["lm_head"][0].block is None and LAYOUT.depth == 6
    assert LAYOUT.groups("block") == [f"block.{i}" for i in range(6)]
    assert LAYOUT.groups("factor") == ["a", "b"] and LAYOUT.groups("phase") == [""]
    assert len(LAYOUT.groups("module")) == 13 and len(LAYOUT.groups("tensor")) == 26
    assert [Layout.of([f"h.{i}.attn" for i in range(n)]).groups("band") for n in (1, 2, 3)] == [
        ["early"], ["early", "middle"], ["early", "middle", "late"],
    ]  # fmt: skip
    ten = Layout.of([f"h.{i}.attn" for i in range(12)])
    assert ten.groups("block")[:3] == ["block.0", "block.1", "block.2"], "by depth, not by spelling"


def test_a_route_fits_a_run_or_says_why_not() -> None:
    fitted = parse("0.25C+A+0B+0D[early=0]").fit(["A", "B", "C", "D"], LAYOUT)
    assert str(fitted) == "A+0.25C"
    for text, why in [
        ("A+Q", "no phase Q trained the adapter; those that did are A, B"),
        ("A[early=1,block.1=2]", "groups of a phase are of one kind"),
        ("A[block.17=1]", "block.17: this adapter has block.0"),
        ("A[model.layers=1]", "is no target of this adapter"),
    ]:
        with pytest.raises(RouteError, match=why):
            parse(text).fit(["A", "B"], LAYOUT)


@given(st.sampled_from(KINDS), WEIGHTS, st.data())
def test_every_place_has_the_weight_of_its_group(kind: str, weight: float, data: st.DataObject) -> None:
    groups = LAYOUT.groups(kind)  # type: ignore[arg-type]
    own = (
        {group: data.draw(WEIGHTS) for group in data.draw(st.lists(st.sampled_from(groups), unique=True))}
        if kind != "phase"
        else {}
    )
    weights = Route((Term("A", weight, tuple(own.items())),)).weights(LAYOUT)["A"]
    for target, pair in LAYOUT.places.items():
        for place, given_weight in zip(pair, weights[target], strict=True):
            assert given_weight == own.get(place.group(kind) or "none", weight)  # type: ignore[arg-type]


def test_one_weight_is_changed_at_a_time() -> None:
    route = parse("A+0.9B").with_weight("C", "block.1", 0.5).with_weight("B", "", 0.7)
    assert str(route) == "A+0.7B+0C[block.1=0.5]"
    assert math.isclose(route.weights(LAYOUT)["C"]["model.layers.1.self_attn.q_proj"][1], 0.5)
    assert route.weights(LAYOUT)["C"]["lm_head"] == (0.0, 0.0)
