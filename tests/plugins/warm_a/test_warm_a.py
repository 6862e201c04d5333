"""The plugin at its moments: what it answers at which boundary, what it refuses, and what it tells."""

from __future__ import annotations

import json
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from scipy.linalg import subspace_angles

from ctr.engine.errors import PluginError
from ctr.engine.events import Boundary, Epoch, Step
from ctr.engine.events_log import read_events
from ctr.engine.hooks import Reset, hookimpl
from ctr.engine.lora_bank import BankAdapter, LoraBank, Site
from ctr.engine.series import read_series
from ctr.plugins.warm_a import WarmA
from tests.engine.test_kernel import crash_after
from tests.engine.tiny import Tiny, bits, finish, make, train_spec

from .standin import Documents

torch.set_num_threads(1)
NOTHING: Any = None


def warm(**settings: Any) -> WarmA:
    return WarmA(WarmA.Config(**settings), None)


def run(folder: Path, *, task: Any = None, **settings: Any) -> Any:
    """Train five epochs of two documents each, reset between them as the settings say."""
    return finish(make(folder, {"warm_a": warm(**settings)}, task=task or Documents(3), epochs=5))


def resets(folder: Path, owner: str = "warm_a") -> list[dict[str, Any]]:
    found = [r["reset"] | {"kind": r["kind"], "step": r["step"]} for r in read_events(folder)
             if r["event"] == "boundary" and r["reset"]]  # fmt: skip
    return [r for r in found if r["owner"] == owner]


def series(folder: Path, name: str) -> list[tuple[int, float]]:
    steps, values = read_series(folder, f"warm_a.{name}")
    return list(zip(steps.tolist(), values.tolist(), strict=True))


# -------------------------------------------------------------------------------------------------- settings
@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"a": "pull"}, "a: pull needs rho"),
        ({"rho": 0.5}, r"rho \(given 0.5\) is for a: pull; remove it or set a: pull"),
        ({"a": "pull", "rho": 1.5}, "less than or equal to 1"),
        ({"b": "scale"}, "b: scale needs gamma"),
        ({"gamma": 0.5}, r"gamma \(given 0.5\) is for b: scale"),
        ({"b": "scale", "gamma": 0}, "greater than 0"),
        ({"a": "redraw", "until": 3}, "until draws A anew, which a: redraw does at every reset"),
        ({"a": "redraw", "guard": {"groups": 2}}, "guard draws A anew, which a: redraw does"),
        ({"a": "redraw", "b": "keep"}, "a: redraw draws A anew, beside which a B that stays is noise"),
        ({"until": 2, "b": "scale", "gamma": 0.5}, "until draws A anew, beside which a B that stays is noise"),
        ({"guard": {"groups": 2}, "b": "keep"}, "guard draws A anew, beside which a B that stays is noise"),
        ({"merge": True, "b": "keep"}, "b: keep would count it twice; set b: zero"),
        ({"moments": "keep", "rewarm_steps": 5}, "moments: keep clears none"),
        ({"rewarm_steps": 1}, "rewarm_steps 1 is the full rate at once"),
        ({"at": []}, "at least 1 item"),
        ({"at": ["phase", "phase"]}, "names a boundary twice"),
        ({"at": ["run"]}, "'document', 'phase', 'epoch' or 'steps'"),
        ({"a": "cold"}, "'keep', 'redraw', 'norm', 'pull' or 'orth'"),
        ({"guard": {"margin": -1}}, "greater than or equal to 0"),
        ({"decay": 1.0}, "Extra inputs are not permitted"),
    ],
)
def test_settings_that_mean_nothing_are_refused(settings: dict[str, Any], text: str) -> None:
    with pytest.raises(ValidationError, match=text):
        WarmA.Config(**settings)


def planned(*phases: dict[str, Any]) -> Any:
    def one(trains: str = "adapter", plugins: str = "all", reset_at: Any = ()) -> Any:
        return SimpleNamespace(trains=trains, plugins=plugins, train=SimpleNamespace(reset_at=reset_at))

    return SimpleNamespace(phases=[one(**phase) for phase in phases])


ONE, MANY, EVERY = SimpleNamespace(one=True), SimpleNamespace(one=False), SimpleNamespace(steps=7)


@pytest.mark.parametrize(
    ("settings", "phases", "adapter", "text"),
    [
        ({}, [{}], None, "resets an adapter, and this run has none; add one, such as adapter: {kind: lora}"),
        ({}, [{"trains": "all"}, {"plugins": "none"}], ONE, "no phase of this run both trains the adapter and asks"),
        ({"merge": True}, [{}], MANY, "merge: the adapters of a bank belong to different documents"),
        ({"at": ("steps",)}, [{}], ONE, "at names steps, a boundary that no phase .* train.reset_at: [{steps: 100}]"),
        ({"at": ("phase", "epoch")}, [{"reset_at": (EVERY,)}], ONE, "at names epoch, .* train.reset_at: [epoch]"),
        ({"at": ("steps",)}, [{"trains": "all", "reset_at": (EVERY,)}, {}], ONE, "at names steps"),
        ({"at": ("steps", "epoch")}, [{"reset_at": ("epoch",)}, {"reset_at": (EVERY,)}], ONE, None),
        ({"merge": True}, [{}], ONE, None),
        ({}, [{"trains": "all", "plugins": "none"}, {}], MANY, None),
    ],
)
def test_a_run_in_which_it_could_not_act_is_refused_before_it_begins(
    settings: dict[str, Any], phases: list[dict[str, Any]], adapter: Any, text: str | None
) -> None:
    found = WarmA.misfit(WarmA.Config(**settings), planned(*phases), adapter)
    if text is None:
        assert found is None
    else:
        assert found is not None
        left, _, right = text.partition(" .* ")
        assert found.startswith(left) and right in found


# -------------------------------------------------------------------------------------------------- what it answers
def test_by_default_a_lives_on_and_b_and_the_moments_do_not(tmp_path: Path) -> None:
    kernel = run(tmp_path)
    rows = resets(tmp_path)
    assert [r["kind"] for r in rows] == ["phase"] + ["document"] * 10
    assert [r["index"] for r in rows[1:]] == list(range(10)), "which document it was"
    for row in rows:
        assert (row["a"], row["b"], row["clear"], row["merge"]) == ("keep", 0.0, ["a", "b"], False)
        assert row["before"]["a"] == row["after"]["a"] and row["after"]["b"] == 0
    sizes = [row["before"]["a"] for row in rows]
    assert sizes[0] == sizes[1] and len(set(sizes)) == 10, "A went on from where the document before left it"
    assert float(kernel.optimizer.state[kernel.adapter.factors[0].b]["momentum_buffer"].norm()) > 0


def test_cold_is_what_the_engine_does_of_itself(tmp_path: Path) -> None:
    cold, alone = run(tmp_path / "cold", a="redraw"), finish(make(tmp_path / "alone", task=Documents(3), epochs=5))
    assert bits(cold) == bits(alone)
    mine, engine = resets(tmp_path / "cold"), resets(tmp_path / "alone", "engine")
    assert [{**row, "owner": ""} for row in mine] == [{**row, "owner": ""} for row in engine] and len(mine) == 11


def row_lengths(a: torch.Tensor) -> list[float]:
    return a.norm(dim=1).tolist()


@pytest.mark.parametrize("policy", ["norm", "pull", "orth"])
def test_each_policy_makes_of_a_what_it_says(policy: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Held against A as it stood before and after the last reset of a run."""
    seen: list[tuple[torch.Tensor, torch.Tensor]] = []
    kernel = make(tmp_path, {"warm_a": warm(a=policy, rho=0.25 if policy == "pull" else None)}, task=Documents(3))
    reset, factor = kernel.adapter.reset, kernel.adapter.factors[0]
    start = kernel.adapter.start["hidden"].clone()

    def watched(*args: Any) -> Any:
        before = factor.a.detach().clone()
        done = reset(*args)
        seen.append((before, factor.a.detach().clone()))
        return done

    monkeypatch.setattr(kernel.adapter, "reset", watched)
    finish(kernel)
    before, after = seen[-1]
    assert not torch.equal(before, after) and {r["a"] for r in resets(tmp_path)} == {policy}
    if policy == "pull":
        torch.testing.assert_close(after, start + 0.25 * (before - start))
    elif policy == "norm":
        assert row_lengths(after) == pytest.approx(row_lengths(start))
        torch.testing.assert_close(after / after.norm(dim=1, keepdim=True), before / before.norm(dim=1, keepdim=True))
    else:
        assert float(after[0] @ after[1]) == pytest.approx(0, abs=1e-5)
        assert float(after.norm()) == pytest.approx(float(start.norm()), rel=1e-5)


@pytest.mark.parametrize(
    ("settings", "b", "clear"),
    [
        ({"b": "keep", "moments": "keep"}, 1.0, []),
        ({"b": "scale", "gamma": 0.25, "moments": "clear_b"}, 0.25, ["b"]),
    ],
)
def test_b_and_the_moments_become_what_is_asked(
    settings: dict[str, Any], b: float, clear: list[str], tmp_path: Path
) -> None:
    run(tmp_path, **settings)
    for row in resets(tmp_path):
        assert (row["b"], row["clear"]) == (b, clear)
        assert row["after"]["b"] == pytest.approx(b * row["before"]["b"], rel=1e-6)


def test_it_answers_at_its_own_boundaries_and_leaves_the_others_to_the_engine(tmp_path: Path) -> None:
    marks = ["epoch", type("Every", (), {"steps": 4})()]
    task = Documents(3)
    plugins = {"warm_a": warm(at=["steps"], b="keep", moments="keep")}
    finish(make(tmp_path, plugins, task=task, epochs=2, reset_at=marks))
    assert [(r["kind"], r["step"]) for r in resets(tmp_path)] == [("steps", 4), ("steps", 8)]
    engine = [(r["kind"], r["step"]) for r in resets(tmp_path, "engine")]
    assert engine == [("phase", 0), ("document", 0), ("document", 3), ("document", 6), ("document", 9)]


def test_a_stays_warm_for_so_many_resets_and_is_then_drawn_anew_at_each(tmp_path: Path) -> None:
    """What was never trained is not counted: phase and first document begin with the same A."""
    run(tmp_path, until=3)
    assert [r["a"] for r in resets(tmp_path)] == ["keep"] * 5 + ["redraw"] * 6


def test_two_owners_of_a_reset_are_refused_by_name(tmp_path: Path) -> None:
    class Cold:
        @hookimpl
        def adapter_reset(self, boundary: Boundary) -> Reset | None:
            return Reset() if boundary.kind == "document" else None

    kernel = make(tmp_path, {"warm_a": warm(), "cold": Cold()}, task=Documents(3))
    with pytest.raises(PluginError, match="plugins cold and warm_a both answered adapter_reset; a reset has one owner"):
        kernel.run()
    apart = make(tmp_path / "apart", {"warm_a": warm(at=["phase"]), "cold": Cold()}, task=Documents(3), epochs=1)
    finish(apart)
    assert len(resets(tmp_path / "apart")) == 1 and len(resets(tmp_path / "apart", "cold")) == 2


def test_a_phase_that_trains_all_weights_is_left_alone(tmp_path: Path) -> None:
    """Though its boundaries come: no adapter is trained there."""
    specs = [train_spec(name=name, epochs=2, reset_at=["epoch"]) for name in "ABC"]
    kernel = make(tmp_path, {"warm_a": warm(at=["phase", "epoch"], rewarm_steps=40)}, task=Documents(3), phases=specs)
    middle = kernel.plans[1]
    middle.phase, middle.fresh_adapter = type(middle.phase)("B", 1, 2, 4), False
    finish(kernel)
    assert [(r["kind"], r["step"]) for r in resets(tmp_path)] == [
        ("phase", 0), ("epoch", 6), ("phase", 24), ("epoch", 30)
    ]  # fmt: skip
    steps, scales = read_series(tmp_path, "warm_a.scale")
    full = [scale for step, scale in zip(steps.tolist(), scales.tolist(), strict=True) if 12 <= step < 24]
    assert full == [1.0], "and its rate is its own"


def test_a_run_that_never_asks_is_told_so(tmp_path: Path) -> None:
    task = Tiny(3, lora=True)
    finish(make(tmp_path, {"warm_a": warm(at=["document", "epoch"])}, task=task, epochs=2))
    (mark,) = [r for r in read_events(tmp_path) if r["event"] == "mark"]
    assert (mark["owner"], mark["name"]) == ("warm_a", "never-asked")
    assert mark["why"] == "no boundary of kind document or epoch came in this run, so it reset nothing"
    run(tmp_path / "asked")
    assert not [r for r in read_events(tmp_path / "asked") if r["event"] == "mark"]


# -------------------------------------------------------------------------------------------------- the rate
def rates(folder: Path) -> list[float]:
    return read_series(folder, "train.lr")[1].tolist()  # type: ignore[no-any-return]


def test_the_rate_rises_again_after_a_reset_that_cleared_moments(tmp_path: Path) -> None:
    """Three steps a document: the ramp of four is cut off by the next reset, and begins anew."""
    run(tmp_path / "long", rewarm_steps=4)
    run(tmp_path / "short", rewarm_steps=2)
    run(tmp_path / "none")
    plain = rates(tmp_path / "none")
    assert [a / b for a, b in zip(rates(tmp_path / "long"), plain, strict=True)] == pytest.approx(
        [0.25, 0.5, 0.75] * 10
    )
    assert [a / b for a, b in zip(rates(tmp_path / "short"), plain, strict=True)] == pytest.approx([0.5, 1, 1] * 10)


def test_where_b_alone_forgets_b_alone_is_warmed_up(tmp_path: Path) -> None:
    run(tmp_path / "b", moments="clear_b", rewarm_steps=2)
    run(tmp_path / "none", moments="clear_b")
    assert rates(tmp_path / "b") == rates(tmp_path / "none")  # of group base
    ratio = [
        read_series(tmp_path / name, "train.lr[lora_b]")[1] / read_series(tmp_path / "none", "train.lr[lora_a]")[1]
        for name in ("b", "none")
    ]
    assert ratio[0].tolist() == pytest.approx([0.5, 1, 1] * 10) and ratio[1].tolist() == [1.0] * 30
    plugins = {"warm_a": warm(moments="clear_b", rewarm_steps=2)}
    task = Tiny(3, lora=True)  # whose factors are in one group with the rest
    with pytest.raises(
        PluginError, match="plugin warm_a, .* group lora_b up, and this task has base; set moments: clear"
    ):
        make(tmp_path / "other", plugins, task=task).run()


# -------------------------------------------------------------------------------------------------- what it tells
def test_it_tells_before_each_reset_how_a_and_b_stand_and_at_the_phase_s_end(tmp_path: Path) -> None:
    kernel = run(tmp_path)
    at = [3 * n for n in range(1, 11)]
    ratios, norms = series(tmp_path, "a_ratio"), series(tmp_path, "b_norm")
    assert [step for step, _ in ratios] == [step for step, _ in norms] == at
    before = {r["step"]: r["before"] for r in resets(tmp_path)}
    first = resets(tmp_path)[0]["after"]["a"]
    for (step, ratio), (_, norm) in list(zip(ratios, norms, strict=True))[:-1]:
        assert ratio == pytest.approx(before[step]["a"] / first) and norm == pytest.approx(before[step]["b"])
    factor = kernel.adapter.factors[0]
    assert norms[-1][1] == pytest.approx(float(factor.b.detach().norm())), "the last document has no reset after it"
    assert ratios[-1][1] == pytest.approx(float(factor.a.detach().norm()) / first)


def test_angles_are_between_a_as_a_reset_left_it_and_as_the_next_finds_it(tmp_path: Path) -> None:
    """Also where A is drawn anew in between: a draw is no turn."""
    task = Documents(3)
    seen: list[tuple[int, torch.Tensor]] = []
    kernel = make(tmp_path, {"warm_a": warm(a="redraw")}, task=task, epochs=2)
    reset, factor = kernel.adapter.reset, kernel.adapter.factors[0]

    def watched(*args: Any) -> Any:
        found = factor.a.detach().clone()
        done = reset(*args)
        seen.append((kernel.position.step, torch.stack([found, factor.a.detach().clone()])))
        return done

    kernel.adapter.reset = watched
    finish(kernel)
    told = {name: series(tmp_path, f"angle_{name}") for name in ("min", "mean", "max")}
    assert {len(rows) for rows in told.values()} == {4}
    left = {step: pair[1] for step, pair in seen}
    found = {step: pair[0] for step, pair in seen} | {12: factor.a.detach()}
    for i, (start, end) in enumerate([(0, 3), (3, 6), (6, 9), (9, 12)]):
        theta = subspace_angles(left[start].T.double().numpy(), found[end].T.double().numpy())[::-1]
        assert [told[n][i] for n in told] == [
            (end, pytest.approx(value, abs=1e-6)) for value in (theta[0], theta.mean(), theta[1])
        ]
    assert 0 < told["max"][0][1] < math.pi / 2


def test_nothing_is_measured_of_angles_where_none_are_asked_for(tmp_path: Path) -> None:
    run(tmp_path / "none", angle_slots=0)
    run(tmp_path / "some")
    assert not (tmp_path / "none" / "series" / "warm_a.angle_mean.f64").exists()
    assert len(series(tmp_path / "some", "angle_mean")) == 10 and len(series(tmp_path / "none", "a_ratio")) == 10


# -------------------------------------------------------------------------------------------------- a bank
class Stream:
    """A bank of six slots with two sites, and the events that a stream of documents would give the plugin."""

    def __init__(self, sink: Any, plugin: WarmA) -> None:
        parts = {"q": torch.nn.Linear(5, 4), "v": torch.nn.Linear(5, 4)}
        self.bank = LoraBank(parts, [Site("q", 5, 4), Site("v", 5, 4)], 6, 2, 4.0)
        self.adapter, self.plugin, self.sink, self.step = BankAdapter(self.bank), plugin, sink, 0
        self.adapter.redraw(torch.Generator().manual_seed(1))

    def boundary(self, group: int, slots: list[int]) -> Reset | None:
        event = Boundary("S", 0, 0, self.step, self.sink, "document", group, slots, self.adapter)
        event.owner = "warm_a"
        answer = self.plugin.adapter_reset(event)
        assert answer is not None
        self.adapter.reset(answer, torch.Generator().manual_seed(group), None, slots)
        return answer

    def train(self, slots: list[int]) -> None:
        """Take two steps; the slots that are present move."""
        for _ in range(2):
            event = Step("S", 0, 0, self.step, self.sink, 0.0, {"lora_a": 1.0}, NOTHING, NOTHING, self.adapter)
            assert self.plugin.schedule_lr(event).scale == 1.0
            generator = torch.Generator().manual_seed(self.step)
            for f in self.adapter.factors:
                for factor in (f.a, f.b):
                    factor[slots] += torch.randn(factor[slots].shape, generator=generator)
            self.step += 1

    def end(self) -> None:
        event = Epoch("S", 0, 1, self.step, self.sink, "phase", 1, None, {}, None, 1, 1, {}, NOTHING, NOTHING, NOTHING,
                      self.adapter)  # fmt: skip
        event.owner = "warm_a"
        self.plugin.on_epoch_end(event)


def test_of_a_bank_only_the_slots_that_were_trained_are_told_of(bench: Any) -> None:
    """A ragged last group sets some slots alone; what stands in the others was told of before."""
    everybody, ragged = list(range(6)), [0, 1]
    one = Stream(bench(None).sink, warm())
    one.boundary(0, everybody)
    one.train(everybody)
    whole = dict(one.adapter.norms(everybody))
    start = {name: a.clone() for name, a in one.adapter.start.items()}
    now = {f.name: f.a.clone() for f in one.adapter.factors}
    one.boundary(1, ragged)
    one.train(ragged)
    part = dict(one.adapter.norms(ragged))
    one.end()
    assert one.sink.of("number", "b_norm") == [(2, pytest.approx(whole["b"])), (4, pytest.approx(part["b"]))]
    ratio = torch.cat([(now[n].square().mean((1, 2)) / start[n].square().mean((1, 2))).sqrt() for n in now]).mean()
    assert one.sink.of("number", "a_ratio")[0] == (2, pytest.approx(float(ratio)))
    assert {float(norm) for f in one.adapter.factors for norm in f.b[2:].flatten(1).norm(dim=1)} != {0.0}


@pytest.mark.parametrize(("most", "slots", "looked_at"), [
    (4, [0, 1, 2, 3, 4, 5], [0, 1, 3, 4]), (2, [0, 1, 2, 3, 4, 5], [0, 3]), (9, [1, 4], [1, 4]), (1, [2, 5], [2])
])  # fmt: skip
def test_angles_are_those_of_some_slots_evenly_spread(
    most: int, slots: list[int], looked_at: list[int], bench: Any
) -> None:
    one = Stream(bench(None).sink, warm(angle_slots=most))
    one.boundary(0, slots)
    before = {f.name: f.a.double().numpy().copy() for f in one.adapter.factors}
    one.train(slots)
    assert {name: a.shape for name, a in one.plugin.before.items()} == dict.fromkeys("qv", (len(looked_at), 2, 5))
    angles = [subspace_angles(before[f.name][j].T, f.a[j].double().numpy().T) for f in one.adapter.factors
              for j in looked_at]  # fmt: skip
    one.boundary(1, slots)
    told = one.sink.of("number", "angle_mean")
    assert told == [(2, pytest.approx(sum(a.mean() for a in angles) / len(angles), abs=1e-6))]


def test_warm_a_passes_from_a_slot_to_its_own_next_document(bench: Any) -> None:
    one = Stream(bench(None).sink, warm(a="norm"))
    everybody = list(range(6))
    one.boundary(0, everybody)
    one.train(everybody)
    trained = {f.name: f.a.clone() for f in one.adapter.factors}
    one.boundary(1, everybody)
    for f in one.adapter.factors:
        torch.testing.assert_close(f.a.norm(dim=-1), one.adapter.start[f.name].norm(dim=-1))
        cosines = torch.nn.functional.cosine_similarity(f.a, trained[f.name], dim=-1)
        torch.testing.assert_close(cosines, torch.ones(6, 2))
        assert not f.b.any()


@pytest.mark.parametrize("broken_after", [0, 1, 2])
def test_what_it_remembers_survives_a_checkpoint_in_the_middle_of_a_document(broken_after: int, bench: Any) -> None:
    def told(broken: int | None) -> list[Any]:
        plugin = warm(until=2, guard={"groups": 9})
        one = Stream(bench(None).sink, plugin)
        slots, answers = [0, 2, 3, 4, 5], []
        for group in range(4):
            answers.append(one.boundary(group, slots))
            one.train(slots)
            plugin = one.plugin
            plugin.gained, plugin.tokens = plugin.gained + torch.tensor(-0.3), plugin.tokens + 7
            if broken == group:
                held = plugin.state()
                before = held.pop("before")
                one.plugin = warm(until=2, guard={"groups": 9})
                one.plugin.restore({**json.loads(json.dumps(held)), "before": before})
        one.end()
        return [*one.sink.rows, *answers]

    assert told(broken_after) == told(None)
    assert [a.a for a in told(None)[-4:]] == ["keep", "keep", "keep", "redraw"]


def test_a_run_that_was_asked_before_it_was_killed_is_not_told_that_it_never_was(bench: Any) -> None:
    def marks(asked: bool) -> list[Any]:
        one = Stream(bench(None).sink, warm())
        if asked:
            one.boundary(0, [0, 1])
        again = warm()
        again.restore(json.loads(json.dumps(one.plugin.state())))
        event = Epoch("S", 0, 1, 0, one.sink, "run", 1, None, {}, None, 1, 1, {}, NOTHING, NOTHING, NOTHING)  # type: ignore[arg-type]
        event.owner = "warm_a"
        again.on_epoch_end(event)
        return one.sink.of("mark", "never-asked")

    assert marks(True) == [] and len(marks(False)) == 1


def test_an_alarm_at_a_phase_s_end_is_answered_once_also_by_a_run_that_was_killed_in_between(tmp_path: Path) -> None:
    def one(folder: Path) -> Any:
        specs = [train_spec(name="A", epochs=3), train_spec(name="B", epochs=3)]
        plugins = {"warm_a": warm(guard={"groups": 1})}
        return make(folder, plugins, task=Documents(3, compared=True), phases=specs)

    finish(one(tmp_path / "a"))
    crash_after(one(tmp_path / "b"), 18)  # after both resets; the checkpoint is of the phase's end
    finish(one(tmp_path / "b"))
    marks = [r["step"] for r in read_events(tmp_path / "a") if r["event"] == "mark"]
    assert 18 in marks, "else the case is not the one meant"
    told = [[(r["kind"], r["a"]) for r in resets(tmp_path / folder) if r["step"] == 18] for folder in "ab"]
    assert told[0] == told[1] == [("phase", "redraw"), ("document", "keep")]
