"""Routes where something is off: losses without end, tasks trained twice, one block alone, phases from the cache."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from typer.testing import CliRunner

from ctr.engine.cli import app
from ctr.engine.errors import UsageError
from ctr.engine.events_log import read_events
from ctr.engine.matrix import Matrix
from ctr.plugins.routed.command import try_routes
from ctr.plugins.routed.methods import Comparison
from ctr.plugins.routed.objective import Objective, pareto
from ctr.plugins.routed.panel import sections
from tests.engine.tasks.small_text import train
from tests.plugins.test_compose import trained

pytestmark = pytest.mark.filterwarnings("ignore")  # PEFT's and transformers' own
MORE = ", adapter: continued"
ABC = ("task: A", f"task: B{MORE}", f"task: C{MORE}")
LOUD = "1e30A+B"  # speaks so loud that the losses are not finite
NAN, INF = float("nan"), float("inf")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained(tmp_path_factory.mktemp("faults"), *ABC, rows=60)


def routed(methods: str) -> dict[str, str]:
    return {"  baseline: {}\n": f"  baseline:\n    plugins:\n      routed:\n        methods:\n{methods}"}


def test_losses_that_are_not_finite_are_told_as_none(run: Path) -> None:
    done = CliRunner().invoke(app, ["routes", str(run), "--route", LOUD, "--route", "A+B", "--json"])
    assert done.exit_code == 0, done.output
    loud, plain = json.loads(done.output)["routes"][1:]
    assert loud["objective"] is None and None in loud["losses"].values() and None in loud["gains"].values()
    assert None not in [plain["objective"], *plain["losses"].values()]
    table = CliRunner().invoke(app, ["routes", str(run), "--route", LOUD])
    assert table.exit_code == 0 and "nan" not in table.output and "inf" not in table.output


def test_a_search_leaves_what_is_not_finite(run: Path) -> None:
    methods = {
        "grid": {"kind": "grid", "start": LOUD, "weights": {"A": [1, 0.5], "B": [1]}},
        "greedy": {"kind": "greedy", "start": LOUD, "vary": ["A"], "by": "phase", "scales": [0, 1]},
        "prompt": {"kind": "contextual", "candidates": [LOUD, "A", "A+B"], "prefix": 4},
        "lost": {"kind": "grid", "start": LOUD, "weights": {"B": [0.5, 1]}, "keep_learning": 0.5},
    }
    found = {one["method"]: one for one in try_routes(run, {"methods": methods})["routes"]}
    assert found["grid"]["objective"] is not None and found["greedy"]["objective"] is not None
    assert all(counts[0] == 0 for counts in found["prompt"]["chosen"].values())
    assert found["prompt"]["fixed_route"] != LOUD and found["prompt"]["oracle_gap"] >= 0
    assert found["lost"]["notes"] == ["0 of 2 candidates keep what was learned"]
    assert json.loads(json.dumps(found, allow_nan=False)) == found


def test_what_is_not_a_number_keeps_nothing_and_beats_nobody() -> None:
    matrix = Matrix(["A", "B", "C"], phases={"A": "A", "B": "B", "C": "C"})
    for label, row in {"start": (3, 3, 3), "A": (1, 3, 3), "B": (1, 1, 3), "C": (1, 1, 1)}.items():
        for task, loss in zip("ABC", row, strict=True):
            matrix.put(label, task, float(loss))
    one = Objective("frontier", matrix, ["A", "B", "C"])
    for wrong in (NAN, INF):
        for task in "ABC":
            assert not one.passes({"A": 1.0, "B": 1.0, "C": 1.0, task: wrong}, 0.5, None), (task, wrong)
    assert one.passes({"A": 1.0, "B": 1.0, "C": 1.0}, 0.5, 0.0)
    points = [(NAN, 1.0), (1.0, 0.0), (2.0, NAN), (0.5, 0.5), (0.4, 0.4)]
    assert pareto(points) == [False, True, False, True, False]


def test_a_run_ends_well_with_a_route_that_is_not_finite(tmp_path: Path) -> None:
    methods = f"          loud: {{kind: route, route: {LOUD}}}\n          plain: {{kind: route, route: A}}\n"
    run = trained(tmp_path, *ABC[:2], replaced=routed(methods))
    found = [e["data"] for e in read_events(run) if e["event"] == "record" and e["name"] == "route"]
    assert [one["objective"] is None for one in found] == [False, True, False]
    assert sections(cast(Any, SimpleNamespace(events=list(read_events(run)))))


def test_phases_from_the_cache_are_composed_as_those_trained_here(tmp_path: Path) -> None:
    methods = {"fixed": {"kind": "route", "route": "A+0.5B"}, "greedy": {"kind": "greedy", "scales": [0, 0.5]}}
    listed = "".join(f"          {name}: {json.dumps(one)}\n" for name, one in methods.items())
    arms = f"  baseline: {{}}\n  other:\n    plugins:\n      routed:\n        methods:\n{listed}"
    run = trained(tmp_path, *ABC[:2], replaced={"  baseline: {}\n": arms})
    other = run.with_name("other-s1")
    assert train(tmp_path / "spoken.yaml", other, arm="other").status == "finished"
    (taken,) = [e for e in read_events(other) if e["event"] == "cached"]
    assert taken["phases"][-1] == "B", "the last phase too was trained by the other arm"
    then = [e["data"] for e in read_events(other) if e["event"] == "record" and e["name"] == "route"]
    for folder in (run, other):
        found = try_routes(folder, {"methods": methods})["routes"]
        same = [{k: v for k, v in one.items() if k != "seconds"} for one in found]
        assert same == [{k: v for k, v in one.items() if k != "seconds"} for one in then]


@pytest.mark.parametrize("text", ["B=0.9 B=0.8", "B=", "B", "=1", "B=1e999", "B=nan", "B=200", "X=1", "B\x1b[2J=1", ""])
def test_grids_that_mean_nothing(text: str, run: Path) -> None:
    done = CliRunner().invoke(app, ["routes", str(run), "--grid", text])
    assert isinstance(done.exception, UsageError), done.output


def test_a_task_that_is_trained_twice_is_one_task(tmp_path: Path) -> None:
    run = trained(tmp_path, "task: A", f"task: B{MORE}", f"task: A, name: again{MORE}")
    methods: dict[str, Any] = {
        "fixed": {"kind": "route", "route": "A+0.5B+0.5again"},
        "greedy": {"kind": "greedy", "vary": ["again"], "scales": [0, 1]},
    }
    found = try_routes(run, {"methods": methods})
    assert found["tasks"] == ["B", "A"] and found["phases"] == ["A", "B", "again"]
    assert list(found["rows"]) == ["start", "A", "B", "again"]
    assert {one["method"] for one in found["routes"]} == {"sequential", "fixed", "greedy"}


@pytest.mark.parametrize(
    "model",
    [
        "model: {kind: tiny, width: 16, layers: 1, heads: 4, kv_heads: 2, context: 64, dropout: 0.1}",
        "model: {kind: tiny, family: gpt2, width: 16, layers: 3, heads: 4, context: 64, dropout: 0.1}",
    ],
)
def test_other_models(model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own = "model: {kind: tiny, width: 16, layers: 2, heads: 4, kv_heads: 2, context: 64, dropout: 0.1}"
    run = trained(tmp_path, *ABC, replaced={own: model})
    methods = {
        "greedy": {"kind": "greedy", "vary": ["B", "C"], "scales": [0, 0.5, 1]},
        "modules": {"kind": "coordinate", "by": "module", "scales": [0, 1], "passes": 2},
        "slope": {"kind": "gradient", "by": "tensor", "space": "factor", "steps": 3},
    }
    found = try_routes(run, {"methods": methods})["routes"]
    monkeypatch.setattr("ctr.engine.tasks.language_models.can_begin_above", lambda *_: False)
    again = try_routes(run, {"methods": methods})["routes"]
    for one, whole in zip(found, again, strict=True):
        assert [one[k] for k in ("route", "losses", "chosen_by")] == [
            whole[k] for k in ("route", "losses", "chosen_by")
        ]
    assert found[1]["passes"] <= again[1]["passes"] and (found[1]["passes"] < again[1]["passes"]) == ("gpt2" in model)


def test_a_search_lets_go_of_what_it_kept(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept: list[Comparison] = []
    before = Comparison.run

    def looked_at(self: Comparison, name: str, method: Any) -> Any:
        kept.append(self)
        return before(self, name, method)

    monkeypatch.setattr(Comparison, "run", looked_at)
    try_routes(run, {"methods": {"greedy": {"kind": "greedy", "scales": [0, 1]}}})
    scorer = kept[0].scorer
    assert (scorer._climb, scorer._last, scorer._best) == (None, None, None)
