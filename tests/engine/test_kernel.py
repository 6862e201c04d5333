"""The laws of the kernel, on a thirty-line task: order, neutrality, accumulation, boundaries, resume."""

from __future__ import annotations

import math
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ctr.engine.combine import resolve_lr, resolve_reset
from ctr.engine.errors import DataError, GuardError, Interrupted, PluginError, StorageError, VerificationError
from ctr.engine.events import Step
from ctr.engine.events_log import read_events
from ctr.engine.hooks import EpochAdvice, LossTerm, LrAdvice, Reset, hookimpl
from ctr.engine.matrix import Matrix
from ctr.engine.rundir import request
from ctr.engine.series import read_series

from .tiny import Tiny, bits, finish, make, train_spec

torch.set_num_threads(1)


class Scale:
    def __init__(self, scale: float, why: str = "") -> None:
        self.advice = LrAdvice(scale=scale, why=why)

    @hookimpl
    def schedule_lr(self) -> LrAdvice:
        return self.advice


class Ceiling(Scale):
    def __init__(self, ceiling: float) -> None:
        self.advice = LrAdvice(ceiling=ceiling, why="bound")


class Penalty:
    """Adds weight times the mean squared logit, with noise from its own generator."""

    def __init__(self, weight: float, noise: bool = False) -> None:
        self.weight, self.generator = weight, torch.Generator() if noise else None

    @hookimpl
    def extra_loss(self, forward: Any) -> list[LossTerm]:
        value = forward.outputs.logits.square().mean()
        return [LossTerm("squared", value, self.weight)]


class Counter:
    """Remembers how often it was asked, and asks for accumulation from epoch 1 on."""

    def __init__(self) -> None:
        self.seen = 0

    @hookimpl
    def on_epoch_end(self, epoch: Any) -> EpochAdvice:
        self.seen += 1
        epoch.log.number("seen", self.seen)
        return EpochAdvice(grad_accum=2 if self.seen > 1 else None)

    @hookimpl
    def schedule_lr(self) -> LrAdvice:
        return LrAdvice(scale=1 / self.seen)

    def state(self) -> dict[str, Any]:
        return {"seen": self.seen}

    def restore(self, state: dict[str, Any]) -> None:
        self.seen = state["seen"]


# ------------------------------------------------------------------------------------------------ the loop itself
def test_the_loop_equals_one_written_by_hand(tmp_path: Path) -> None:
    from ctr.engine.seeding import mix, stream

    kernel = finish(make(tmp_path))
    task = Tiny(3)
    module = task.build()
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1, momentum=0.9, fused=True)
    for epoch, rate in enumerate([0.1, 0.1, 0.05]):  # one epoch of warm-up, then a cosine over two
        for index in range(task.batches(epoch)):
            batch = task.batch(epoch, index)
            torch.default_generator.manual_seed(mix(stream(3, "forward"), 0, epoch, index))
            optimizer.zero_grad()
            task.forward(module, batch, {}).loss.backward()
            optimizer.param_groups[0]["lr"] = rate
            optimizer.step()
    expected = {name: value.numpy().tobytes() for name, value in module.state_dict().items()}
    assert {name: bits(kernel)[name] for name in expected} == expected
    assert kernel.position.step == 18


def test_accumulation_equals_one_large_batch(tmp_path: Path) -> None:
    """With no batch statistics or dropout, 4 + 4 + 4 + ... + 2 items give the gradient of one batch of 22."""

    def weights(folder: Path, micro: int, accum: int) -> list[torch.Tensor]:
        task = Tiny(3, micro=micro, dropout=0.0)
        plain = torch.nn.Sequential(torch.nn.Linear(5, 8), torch.nn.Tanh(), torch.nn.Linear(8, 3))
        torch.manual_seed(1)
        for p in plain.parameters():
            torch.nn.init.normal_(p)
        task.build = lambda: plain.double()  # type: ignore[method-assign]
        task.x = task.x.double()
        kernel = finish(make(folder, task=task, grad_accum=accum))
        assert kernel.position.step == 3
        return [p.detach() for p in kernel.module.parameters()]

    small, large = weights(tmp_path / "a", 4, 6), weights(tmp_path / "b", 22, 1)
    for left, right in zip(small, large, strict=True):
        torch.testing.assert_close(left, right, rtol=1e-12, atol=1e-14)


def test_terms_are_weighted_by_the_share_of_items_like_the_task_loss(tmp_path: Path) -> None:
    kernel = finish(make(tmp_path, {"p": Penalty(0.5)}, grad_accum=6, epochs=1, log_steps=1))
    steps, total = read_series(tmp_path, "train.total")
    _, loss = read_series(tmp_path, "train.loss")
    _, raw = read_series(tmp_path, "p.term.squared")
    assert list(steps) == [0] and kernel.position.step == 1
    assert total[0] == pytest.approx(loss[0] + 0.5 * raw[0], rel=1e-6)


def test_a_batch_without_trainable_items_is_scored_and_moves_nothing(tmp_path: Path) -> None:
    task = Tiny(3)
    task.counts = dict.fromkeys(range(6), 0)
    kernel = make(tmp_path, task=task, epochs=1)
    before = {name: p.clone() for name, p in kernel.module.named_parameters()}
    finish(kernel)
    assert kernel.position.step == 0
    assert all(torch.equal(p, before[name]) for name, p in kernel.module.named_parameters())


@pytest.mark.parametrize("log_steps", [1, 5, 64])
def test_the_cadence_of_the_log_changes_no_bit(tmp_path: Path, log_steps: int) -> None:
    one = finish(make(tmp_path / "a", {"c": Counter()}, log_steps=64))
    other = finish(make(tmp_path / "b", {"c": Counter()}, log_steps=log_steps))
    assert bits(one) == bits(other)
    assert stored(tmp_path / "a") == stored(tmp_path / "b")
    epochs = [[r["train"] for r in read_events(tmp_path / f) if r["event"] == "epoch"] for f in ("a", "b")]
    assert epochs[0] == epochs[1]


def stored(folder: Path) -> dict[str, bytes]:
    """Return every series that is not made of wall-clock time, and their index."""
    found = {path.name: path.read_bytes() for path in sorted((folder / "series").iterdir())}
    return {name: data for name, data in found.items() if not name.startswith("clock.")} | {
        "index": (folder / "series.json").read_bytes()
    }


# ------------------------------------------------------------------------------------------------ laws of combination
def test_rates_multiply_and_the_lowest_ceiling_binds(tmp_path: Path) -> None:
    finish(make(tmp_path, {"half": Scale(0.5), "third": Scale(0.3), "low": Ceiling(0.014), "high": Ceiling(9.0)}))
    _, lr = read_series(tmp_path, "train.lr")
    assert lr[0] == 0.014 and lr[-1] == min(0.05 * 0.5 * 0.3, 0.014)
    rates = resolve_lr({"base": 0.1}, [("a", LrAdvice(ceiling=0.02)), ("b", LrAdvice(ceiling=0.03))])
    assert rates.lr == {"base": 0.02} and rates.binding("base") == "a"
    assert resolve_lr({"base": 0.01}, [("a", LrAdvice(ceiling=0.02))]).binding("base") is None


def test_rates_by_group_and_as_tensors() -> None:
    advice = LrAdvice(scale={"head": torch.tensor(0.5)}, ceiling={"head": 0.01})
    rates = resolve_lr({"base": 0.1, "head": 0.1}, [("a", advice)])
    assert rates.lr["base"] == 0.1 and torch.equal(rates.lr["head"], torch.tensor(0.01))


def test_no_base_rate_and_no_ceiling_is_refused_with_the_two_ways_out(tmp_path: Path) -> None:
    with pytest.raises(PluginError, match=r"set train.optimizer.base_lr, or name a plugin that answers a ceiling"):
        make(tmp_path / "a", base_lr=None).run()
    finish(make(tmp_path / "b", {"c": Ceiling(0.02)}, base_lr=None))
    assert set(read_series(tmp_path / "b", "train.lr")[1]) == {0.02}


def test_the_order_of_registration_changes_no_bit(tmp_path: Path) -> None:
    plugins = {"b": Scale(0.7), "a": Scale(1.3), "d": Penalty(0.1), "c": Penalty(0.3), "e": Counter()}
    one = finish(make(tmp_path / "a", plugins))
    plugins = {"e": Counter(), **{name: plugins[name] for name in "dcab"}}
    assert bits(one) == bits(finish(make(tmp_path / "b", plugins)))
    assert stored(tmp_path / "a") == stored(tmp_path / "b")


@pytest.mark.parametrize("plugin", [Scale(1.0), Ceiling(math.inf), Penalty(0.0)], ids=["scale", "ceiling", "term"])
def test_an_inert_setting_changes_no_bit(tmp_path: Path, plugin: Any) -> None:
    assert bits(finish(make(tmp_path / "a"))) == bits(finish(make(tmp_path / "b", {"p": plugin})))


def test_two_owners_of_a_reset_are_refused_by_name() -> None:
    with pytest.raises(PluginError, match="plugins a and b both answered adapter_reset"):
        resolve_reset([("a", Reset()), ("b", Reset())])


def test_the_largest_accumulation_replaces_the_specs_from_the_next_epoch(tmp_path: Path) -> None:
    class Ask:
        def __init__(self, accum: int) -> None:
            self.accum = accum

        @hookimpl
        def on_epoch_end(self, epoch: Any) -> EpochAdvice | None:
            return EpochAdvice(grad_accum=self.accum) if epoch.kind == "epoch" and epoch.epoch == 0 else None

    finish(make(tmp_path, {"a": Ask(2), "b": Ask(3)}))
    used = [r["grad_accum"] for r in read_events(tmp_path) if r["event"] == "epoch" and r["kind"] == "epoch"]
    assert used == [1, 3, 1]  # asked anew at every epoch: who does not repeat the answer lets it go


def test_snapshots_of_one_name_are_refused_and_stop_phase_ends_it(tmp_path: Path) -> None:
    class Save:
        @hookimpl
        def on_epoch_end(self, epoch: Any) -> EpochAdvice:
            return EpochAdvice(save="best", stop_phase=epoch.kind == "epoch" and epoch.epoch == 1)

    finish(make(tmp_path / "a", {"a": Save()}, epochs=5))
    kinds = [r["kind"] for r in read_events(tmp_path / "a") if r["event"] == "epoch"]
    assert kinds == ["start", "epoch", "epoch", "phase", "run"]
    assert (tmp_path / "a" / "snapshots" / "best").is_dir()
    with pytest.raises(PluginError, match="plugins a and b both save a snapshot named best"):
        make(tmp_path / "b", {"a": Save(), "b": Save()}).run()


# ------------------------------------------------------------------------------------------------ boundaries, phases
def test_boundaries_come_where_the_design_says(tmp_path: Path) -> None:
    seen: list[tuple[str, int, int]] = []

    class Watch:
        @hookimpl
        def adapter_reset(self, boundary: Any) -> None:
            seen.append((boundary.kind, boundary.step, boundary.phase_index))

    marks = ["epoch", type("Every", (), {"steps": 4})()]
    task = Tiny(3, lora=True)
    task.documents = {2: (0,)}
    finish(make(tmp_path, {"w": Watch()}, task=task, epochs=2, reset_at=marks))
    assert seen == [
        ("run", 0, 0), ("phase", 0, 0), ("document", 2, 0), ("steps", 4, 0), ("epoch", 6, 0), ("steps", 8, 0),
        ("document", 8, 0),
    ]  # fmt: skip


def test_a_batch_never_crosses_a_boundary(tmp_path: Path) -> None:
    task = Tiny(3, lora=True)
    task.documents = {3: (0,)}
    kernel = finish(make(tmp_path, task=task, epochs=1, grad_accum=6))
    assert kernel.position.step == 2
    assert list(read_series(tmp_path, "train.items")[1]) == [0, 12]


def test_phases_reset_the_adapter_and_remember_what_each_changed(tmp_path: Path) -> None:
    task = Tiny(3, lora=True)
    specs = [train_spec(name="A", epochs=2), train_spec(name="B", epochs=1)]
    kernel = finish(make(tmp_path, task=task, phases=specs))
    assert list(kernel.snapshots) == ["A", "B"]
    a, b = kernel.snapshots["A"], kernel.snapshots["B"]
    assert a["start"]["hidden.b"].abs().sum() == 0 == b["start"]["hidden.b"].abs().sum()
    assert a["end"]["hidden.b"].abs().sum() > 0 and not torch.equal(a["end"]["hidden.a"], b["start"]["hidden.a"])
    resets = [r["reset"] for r in read_events(tmp_path) if r["event"] == "boundary"]
    assert resets[0] is None and resets[2]["after"]["b"] == 0.0 < resets[2]["before"]["b"]
    assert isinstance(kernel.matrix, Matrix) and list(kernel.matrix.rows) == ["start", "A", "B"]


def test_a_reset_keeps_a_zeroes_b_and_clears_moments(tmp_path: Path) -> None:
    class Warm:
        @hookimpl
        def adapter_reset(self, boundary: Any) -> Reset | None:
            return Reset(a="keep", clear=frozenset({"b"})) if boundary.kind == "epoch" else None

    task = Tiny(3, lora=True)
    kernel = make(tmp_path, {"w": Warm()}, task=task, epochs=2, reset_at=["epoch"])
    finish(kernel)
    record = next(r["reset"] for r in read_events(tmp_path) if r["event"] == "boundary" and r["kind"] == "epoch")
    assert record["owner"] == "w" and record["before"]["a"] == record["after"]["a"] and record["after"]["b"] == 0


def test_moments_that_a_reset_clears_are_looked_at_afterwards(tmp_path: Path) -> None:
    """A counter that lies in no tensor would stay where it is."""
    kernel = make(tmp_path, {"f": Fold()}, task=Tiny(3, lora=True), epochs=1, optimizer="adamw", settings={})
    finish(kernel)
    factor = kernel.adapter.factors[0]
    state = kernel.optimizer.state[factor.a]
    generator = torch.Generator().manual_seed(0)
    assert state["step"] == 6 and state["exp_avg"].any()
    kernel.adapter.reset(Reset(a="keep", clear=frozenset({"b"})), generator, kernel.optimizer)
    assert state["step"] == 6 and not kernel.optimizer.state[factor.b]["step"].any()
    kernel.adapter.reset(Reset(), generator, kernel.optimizer)
    assert not any(value.any() for value in state.values())
    state["step"] = 6
    with pytest.raises(VerificationError, match="step of A at hidden is to be cleared and is not"):
        kernel.adapter.reset(Reset(), generator, kernel.optimizer)


def test_hooks_see_the_adapter_in_training_as_it_is_before_a_reset_and_as_it_began(tmp_path: Path) -> None:
    seen: dict[str, list[Any]] = {}

    def look(key: str, event: Any) -> None:
        b = [bool(f.b.any()) for f in event.factors]
        seen.setdefault(key, []).append((b, sorted(event.start), event.step))

    class Watch:
        @hookimpl
        def adapter_reset(self, boundary: Any) -> None:
            look(boundary.kind, boundary)

        @hookimpl
        def schedule_lr(self, step: Any) -> LrAdvice:
            look("step", step)
            return LrAdvice()

        @hookimpl
        def on_epoch_end(self, epoch: Any) -> None:
            look(f"at {epoch.kind}", epoch)

    specs = [train_spec(name="A", epochs=2, reset_at=["epoch"]), train_spec(name="B", epochs=1)]
    kernel = make(tmp_path, {"w": Watch()}, task=Tiny(3, lora=True), phases=specs)
    kernel.plans[1].phase = replace(kernel.plans[1].phase, adapts=False)
    kernel.plans[1].fresh_adapter = False
    finish(kernel)
    assert seen["run"] == seen["phase"] == seen["at start"] == [([False], ["hidden"], 0)]
    assert seen["epoch"] == [([True], ["hidden"], 6)], "before the reset"
    assert seen["step"][:2] == [([False], ["hidden"], 0), ([True], ["hidden"], 1)]
    assert seen["at phase"] == [([True], ["hidden"], 12), ([], [], 18)], "none where none is trained"
    assert seen["step"][12] == ([], [], 12)


def test_who_does_not_ask_for_the_adapter_does_not_pay(tmp_path: Path) -> None:
    class Dear:
        @property
        def factors(self) -> Any:
            raise ArithmeticError("asked for")

    kernel = make(tmp_path, task=Tiny(3, lora=True))
    kernel.active = Dear()
    step = kernel.moment(Step, kernel.plans[0], 0.0, {}, *kernel._asides([], None))
    with pytest.raises(ArithmeticError, match="asked for"):
        step.factors  # noqa: B018


def test_a_reset_without_an_adapter_is_refused(tmp_path: Path) -> None:
    class Warm:
        @hookimpl
        def adapter_reset(self) -> Reset:
            return Reset()

    with pytest.raises(PluginError, match="plugin w answered adapter_reset at boundary run, but no adapter is"):
        make(tmp_path, {"w": Warm()}).run()


# ------------------------------------------------------------------------------------------------ resume
def crash_after(kernel: Any, step: int) -> None:
    """Make a run raise when it comes to a step, as a kill would end it between two updates."""
    update = kernel._update

    def update_or_die(*args: Any) -> None:
        if kernel.position.step == step:
            raise RuntimeError("killed")
        update(*args)

    kernel._update = update_or_die
    with pytest.raises(RuntimeError, match="killed"):
        kernel.run()
    kernel.keeper.heartbeat.stop()


@pytest.mark.parametrize("every", [{"every_steps": 1}, {"every_steps": 4}, {"every_epochs": 1}])
@pytest.mark.parametrize("at", [1, 5, 6, 7, 9])
def test_resumed_equals_uninterrupted(tmp_path: Path, every: dict[str, int], at: int) -> None:
    def one(folder: Path) -> Any:
        plugins = {"c": Counter(), "p": Penalty(0.1)}
        return make(folder, plugins, checkpoint=every, grad_accum=1, clip_norm=0.5)

    straight = finish(one(tmp_path / "a"))
    crash_after(one(tmp_path / "b"), at)
    resumed = finish(one(tmp_path / "b"))
    assert bits(straight) == bits(resumed)
    assert stored(tmp_path / "a") == stored(tmp_path / "b")
    told = [[(r["event"], r.get("kind"), r["step"], r.get("train")) for r in read_events(tmp_path / f)] for f in "ab"]
    left = [row for row in told[0] if row[0] != "checkpoint"]
    assert left == [row for row in told[1] if row[0] not in ("checkpoint", "resumed")]


class Fold:
    """Folds the adapter into the base at every boundary that is listed, and begins a new one."""

    @hookimpl
    def adapter_reset(self, boundary: Any) -> Reset | None:
        return Reset(merge=True) if boundary.kind in ("epoch", "steps") else None


@pytest.mark.parametrize("at", [7, 13, 19])
def test_what_was_merged_into_a_frozen_base_survives_a_kill(tmp_path: Path, at: int) -> None:
    def one(folder: Path) -> Any:
        task, marks = Tiny(3, lora=True), ["epoch", type("Every", (), {"steps": 4})()]
        return make(folder, {"f": Fold()}, task=task, epochs=4, reset_at=marks, checkpoint={"every_steps": 3})

    straight = finish(one(tmp_path / "a"))
    crash_after(one(tmp_path / "b"), at)
    resumed = finish(one(tmp_path / "b"))
    assert bits(straight) == bits(resumed) and stored(tmp_path / "a") == stored(tmp_path / "b")
    assert straight.keeper.merged == resumed.keeper.merged == {"0.base"}
    assert not torch.equal(straight.module[0].base, Tiny(3, lora=True).build()[0].base)  # type: ignore[index]


def test_a_snapshot_holds_the_base_that_its_adapter_was_trained_beside(tmp_path: Path) -> None:
    """What is selected is read again at the run's end, when later merges have moved the base."""
    task = Tiny(3, lora=True)
    finish(make(tmp_path, {"f": Fold()}, task=task, epochs=5, base_lr=2.0, reset_at=["epoch"]))
    seen = [r["evaluations"]["val"]["loss"] for r in read_events(tmp_path) if r["event"] == "epoch" and r["train"]]
    told = {r["weights"]: r["values"]["loss"] for r in read_events(tmp_path)
            if r["event"] == "evaluation" and r["split"] == "val"}  # fmt: skip
    assert seen.index(min(seen)) < 4, "else the case is not the one meant"
    assert told == {"selected": min(seen), "last": seen[-1]}


def test_phases_resume_with_snapshots_and_rows(tmp_path: Path) -> None:
    def one(folder: Path) -> Any:
        specs = [train_spec(name="A", epochs=2), train_spec(name="B", epochs=2, optimizer="adamw", settings={})]
        return make(folder, task=Tiny(3, lora=True), phases=specs, checkpoint={"every_steps": 5})

    straight = finish(one(tmp_path / "a"))
    crash_after(one(tmp_path / "b"), 17)
    resumed = finish(one(tmp_path / "b"))
    assert bits(straight) == bits(resumed)
    assert straight.matrix.document() == resumed.matrix.document()
    for phase, moments in straight.snapshots.items():
        for moment, held in moments.items():
            again = resumed.snapshots[phase][moment]
            assert held and all(torch.equal(held[key], again[key]) for key in held)


def test_a_stop_commits_a_checkpoint_and_says_interrupted(tmp_path: Path) -> None:
    stop = threading.Event()

    class Stop:
        @hookimpl
        def schedule_lr(self, step: Any) -> LrAdvice:
            if step.step == 7:
                stop.set()
            return LrAdvice()

    with pytest.raises(Interrupted):
        make(tmp_path / "b", {"s": Stop()}, stop=stop).run()
    resumed = make(tmp_path / "b", {"s": Scale(1.0)})
    assert resumed.position.step == 8 and resumed.position.micro == 2
    assert bits(finish(resumed)) == bits(finish(make(tmp_path / "a")))


class Asks:
    """Stands for somebody else: files a request while step 3 is made."""

    def __init__(self, folder: Path, what: Any) -> None:
        self.folder, self.what = folder, what

    @hookimpl
    def schedule_lr(self, step: Any) -> None:
        if step.step == 3:
            request(self.folder, self.what, who="anna@laptop")


def test_requests_are_obeyed_between_two_updates_and_recorded(tmp_path: Path) -> None:
    kernel = finish(make(tmp_path / "a", {"a": Asks(tmp_path / "a", "checkpoint")}, log_steps=1))
    control = [r for r in read_events(tmp_path / "a") if r["event"] == "control"]
    assert [(r["request"], r["who"], r["step"]) for r in control] == [("checkpoint", "anna@laptop", 4)]
    assert bits(kernel) == bits(finish(make(tmp_path / "plain")))
    with pytest.raises(Interrupted):
        make(tmp_path / "b", {"a": Asks(tmp_path / "b", "stop")}, log_steps=1).run()
    request(tmp_path / "b", "stop", who="late")
    again = finish(make(tmp_path / "b"))  # the late request was for the process that is gone
    assert bits(again) == bits(kernel)
    assert any("late came before this start" in r.get("text", "") for r in read_events(tmp_path / "b"))


def test_a_paused_run_waits_and_goes_on_where_it_stood(tmp_path: Path) -> None:
    kernel = make(tmp_path, {"a": Asks(tmp_path, "pause")}, log_steps=1)
    thread = threading.Timer(0.6, lambda: request(tmp_path, "resume", who="anna"))
    thread.start()
    finish(kernel)
    control = [(r["request"], r["step"]) for r in read_events(tmp_path) if r["event"] == "control"]
    assert control == [("pause", 4), ("resume", 4)]
    assert bits(kernel) == bits(finish(make(tmp_path / "plain")))


# ------------------------------------------------------------------------------------------------ the guard
class Poison:
    """Plants a number that is not finite: as a term, as a weight, or in a gradient only."""

    def __init__(self, how: str) -> None:
        self.how = how

    @hookimpl
    def extra_loss(self, forward: Any) -> list[LossTerm]:
        logits = forward.outputs.logits
        if forward.step < 7:
            return [LossTerm("bad", logits.mean())]
        if self.how == "term":
            return [LossTerm("bad", logits.mean() / 0.0 * 0.0)]
        if self.how == "weight":
            return [LossTerm("bad", logits.mean(), math.inf)]
        return [LossTerm("bad", (logits.mean() * 0.0).abs().sqrt())]  # finite, with an infinite slope


@pytest.mark.parametrize(
    ("how", "culprit"),
    [
        ("term", r"term bad of plugin p \(nan\)"),
        ("weight", r"the weight of term bad of plugin p \(inf\)"),
        ("gradient", r"the gradient of term bad of plugin p in 0.weight"),
    ],
)
def test_the_guard_names_the_term_and_moves_nothing(tmp_path: Path, how: str, culprit: str) -> None:
    check_guard(tmp_path, culprit, {"p": Poison(how)})


def check_guard(folder: Path, culprit: str, plugins: dict[str, Any], **more: Any) -> None:
    clean = make(folder / "clean", {**plugins, "p": Poison("never")} if "p" in plugins else plugins, **more)
    kernel = make(folder / "bad", plugins, checkpoint={"every_steps": 2}, **more)
    with pytest.raises(GuardError, match=culprit) as caught:
        kernel.run()
    assert caught.value.step == 7 and kernel.position.step == 7
    update = clean._update
    clean._update = lambda *a: update(*a) if clean.position.step < 7 else stop_here()  # type: ignore[method-assign]
    with pytest.raises(StopIteration):
        clean.run()
    own, clean_bits = bits(kernel), bits(clean)
    parameters = [name for name, _ in kernel.module.named_parameters()]
    assert all(own[name] == clean_bits[name] for name in parameters)
    note = (folder / "bad" / "nan" / "7.json").read_text()
    assert '"items"' in note and '"culprit"' in note
    assert max(read_series(folder / "bad", "train.loss")[0]) == 6
    newest = sorted((folder / "bad" / "checkpoints").iterdir())[-1].name
    assert newest.endswith("-6")


def stop_here() -> None:
    raise StopIteration


def test_the_guard_names_the_data_with_its_items(tmp_path: Path) -> None:
    kernel = make(tmp_path)
    task = kernel.plans[0].task
    task.x[11] = math.nan  # type: ignore[attr-defined]
    with pytest.raises(GuardError, match="the data: x of item 11"):
        kernel.run()


def test_the_guard_names_the_task_loss(tmp_path: Path) -> None:
    kernel = make(tmp_path)
    forward = kernel.plans[0].task.forward

    def poisoned(module: Any, batch: Any, needs: Any) -> Any:
        outputs = forward(module, batch, needs)
        if module.training and kernel.position.step >= 7:
            outputs.loss = outputs.loss * math.inf
        return outputs

    kernel.plans[0].task.forward = poisoned  # type: ignore[method-assign]
    with pytest.raises(GuardError, match=r"step 7 .*: the task loss \(inf\)"):
        kernel.run()


def test_a_norm_that_overflows_is_no_silent_zero(tmp_path: Path) -> None:
    class Steep:
        @hookimpl
        def extra_loss(self, forward: Any) -> list[LossTerm]:
            return [LossTerm("steep", forward.outputs.logits.sum(), 1e30)]

    with pytest.raises(GuardError):
        make(tmp_path, {"s": Steep()}, clip_norm=1.0).run()


@pytest.mark.parametrize("scale", [math.nan, math.inf, -1.0])
def test_a_rate_that_is_no_rate_is_an_error_at_once(tmp_path: Path, scale: float) -> None:
    with pytest.raises(GuardError, match=f"plugin s: schedule_lr answered scale {scale} for group base"):
        make(tmp_path, {"s": Scale(scale)}).run()


def test_a_rate_tensor_that_is_not_finite_is_named(tmp_path: Path) -> None:
    with pytest.raises(GuardError, match=r"the rate scale of plugin s \(nan\)"):
        make(tmp_path, {"s": Scale(torch.tensor(math.nan))}).run()  # type: ignore[arg-type]


# ------------------------------------------------------------------------------------------------ what a reviewer broke
class Script:
    """Answers what a list says, step by step."""

    def __init__(self, answers: dict[int, Any]) -> None:
        self.answers = answers

    @hookimpl
    def schedule_lr(self, step: Any) -> Any:
        return self.answers.get(step.step)


def same_log(tmp_path: Path, plugins: Any) -> None:
    """Train with the log flushed at every step and at the end only; both must say the same."""
    for name, steps in (("often", 1), ("seldom", 640)):
        finish(make(tmp_path / name, plugins(), log_steps=steps))
    assert stored(tmp_path / "often") == stored(tmp_path / "seldom")


def test_a_rate_may_become_a_tensor_and_a_ceiling_go_away(tmp_path: Path) -> None:
    answers = {2: LrAdvice(scale=torch.tensor(0.5)), 4: LrAdvice(ceiling=0.01), 5: LrAdvice(), 7: LrAdvice(scale=0.5)}
    same_log(tmp_path, lambda: {"s": Script(answers)})
    _, lr = read_series(tmp_path / "seldom", "train.lr")
    assert lr[:8].tolist() == pytest.approx([0.1, 0.1, 0.05, 0.1, 0.01, 0.1, 0.1, 0.05])
    steps, ceilings = read_series(tmp_path / "seldom", "s.ceiling")
    assert (steps.tolist(), ceilings.tolist()) == ([4, 5], [0.01, math.inf])


def test_tensors_changed_in_place_are_logged_as_they_were(tmp_path: Path) -> None:
    class Mean:
        def __init__(self) -> None:
            self.mean, self.advice = torch.zeros(()), LrAdvice(scale=torch.ones(()))

        @hookimpl
        def schedule_lr(self, step: Any) -> LrAdvice:
            self.mean += 1
            step.log("mean", self.mean)
            self.advice.scale.mul_(0.5)  # type: ignore[union-attr]
            return self.advice

    same_log(tmp_path, lambda: {"m": Mean()})
    assert read_series(tmp_path / "seldom", "m.mean")[1].tolist() == list(range(1, 19))
    assert read_series(tmp_path / "seldom", "m.scale")[1][:3].tolist() == [0.5, 0.25, 0.125]


def test_a_term_that_wakes_up_is_in_the_total_from_the_first_step_on(tmp_path: Path) -> None:
    class Wakes(Penalty):
        @hookimpl
        def extra_loss(self, forward: Any) -> list[LossTerm]:
            self.weight = 0.0 if forward.step < 6 else 0.5
            return [LossTerm("squared", forward.outputs.logits.square().mean(), self.weight)]

    same_log(tmp_path, lambda: {"w": Wakes(0.0)})
    assert len(read_series(tmp_path / "often", "train.total")[0]) == 18


def test_kept_moments_meet_the_settings_of_their_phase(tmp_path: Path) -> None:
    def trained(folder: Path, **second: Any) -> dict[str, bytes]:
        phases = [train_spec(name="A", epochs=1), train_spec(name="B", epochs=1, **second)]
        return bits(finish(make(folder, phases=phases, moments="keep")))

    plain = trained(tmp_path / "a")
    assert trained(tmp_path / "b", settings={"momentum": 0.9, "weight_decay": 1.0}) != plain
    assert trained(tmp_path / "c") == plain
    with pytest.raises(DataError, match="phase B keeps moments of SGD, but trains with AdamW; set moments: clear"):
        trained(tmp_path / "d", optimizer="adamw", settings={})


def test_a_validation_that_is_no_number_selects_nothing_for_ever(tmp_path: Path) -> None:
    kernel = make(tmp_path, epochs=3)
    evaluate, asked = kernel.plans[0].task.evaluate, iter([False, True, False, False, False, False, False, False])

    def poisoned(module: Any, split: str, items: Any = None) -> Any:
        found = evaluate(module, split, items)
        if next(asked):
            found.loss_sum[:] = math.nan
        return found

    kernel.plans[0].task.evaluate = poisoned  # type: ignore[method-assign]
    finish(kernel)
    saved = [r["step"] for r in read_events(tmp_path) if r["event"] == "snapshot" and r["slug"] == "selected"]
    assert saved[:2] == [6, 12]
    assert any("is not a number" in r.get("text", "") for r in read_events(tmp_path) if r["event"] == "warning")


def test_buffers_and_flags_are_put_back_after_a_hook(tmp_path: Path) -> None:
    class Careless:
        @hookimpl
        def on_epoch_end(self, epoch: Any) -> None:
            for p in epoch.probe.params.values():
                p.requires_grad_(False)
            torch.set_grad_enabled(False)
            epoch.probe._module.train()
            epoch.probe._module(epoch.probe.batches[0].tensors["x"])

    assert bits(finish(make(tmp_path / "a"))) == bits(finish(make(tmp_path / "b", {"c": Careless()})))


def test_an_answer_for_a_group_that_nobody_has_is_refused(tmp_path: Path) -> None:
    with pytest.raises(
        PluginError, match=r"plugin s: schedule_lr answered for group bse; this run has base. Did you mean"
    ):
        make(tmp_path, {"s": Script({0: LrAdvice(scale={"bse": 0.5})})}).run()


def test_a_negative_tensor_is_no_rate(tmp_path: Path) -> None:
    with pytest.raises(GuardError, match=r"the rate scale of plugin s \(-1.0\)"):
        make(tmp_path, {"s": Script({0: LrAdvice(scale=torch.tensor(-1.0))})}).run()


def test_the_rate_must_not_be_written_behind_the_kernels_back(tmp_path: Path) -> None:
    class Sly:
        @hookimpl
        def schedule_lr(self, step: Any) -> None:
            step.base_lr["base"] = 9.0

    with pytest.raises(PluginError, match="plugin s, hook schedule_lr, .* raised TypeError"):
        make(tmp_path, {"s": Sly()}).run()


def test_a_full_disk_is_not_blamed_on_the_plugin_that_spoke(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Marks:
        @hookimpl
        def on_epoch_end(self, epoch: Any) -> None:
            if epoch.kind == "epoch":
                monkeypatch.setattr(epoch.sink.events, "write", full)
                epoch.log.mark("here", "")

    def full(*args: Any, **named: Any) -> None:
        raise StorageError("no space left")

    with pytest.raises(StorageError, match="no space left"):
        make(tmp_path, {"m": Marks()}).run()


def test_a_batch_that_is_only_scored_poisons_no_sum_and_fires_no_boundary_twice(tmp_path: Path) -> None:
    seen = []

    class Watch:
        @hookimpl
        def adapter_reset(self, boundary: Any) -> None:
            seen.append((boundary.kind, boundary.step))

    task = Tiny(3, lora=True)
    task.counts = {2: 0, 3: 0}
    task.x[task.order(0)[8:16]] = math.nan
    every = type("Every", (), {"steps": 2})()
    task.evaluate = lambda module, split, items=None: Tiny(3).evaluate(torch.nn.Linear(5, 3), split)  # type: ignore
    kernel = make(tmp_path, {"w": Watch()}, task=task, epochs=1, reset_at=[every])
    finish(kernel)
    assert [row for row in seen if row[0] == "steps"] == [("steps", 2)]
    told = next(r for r in read_events(tmp_path) if r["event"] == "epoch" and r["kind"] == "epoch")
    assert math.isfinite(told["train"]["loss"])


# ------------------------------------------------------------------------------------------------- silent phases
class Watcher:
    """Notes every moment at which it is asked."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, Any, int]] = []

    @hookimpl
    def schedule_lr(self, step: Any) -> LrAdvice:
        self.asked.append(("step", step.phase, step.step))
        return LrAdvice(scale=0.5)

    @hookimpl
    def on_epoch_end(self, epoch: Any) -> None:
        self.asked.append((epoch.kind, epoch.phase, epoch.step))


def test_no_plugin_is_asked_in_a_silent_phase_and_its_run_starts_after_it(tmp_path: Path) -> None:
    """The base that a silent phase trains is the same to the bit, whoever is there to act later."""
    silent, loud = train_spec(epochs=1, silent=True), train_spec(epochs=1)
    alone = make(tmp_path / "alone", phases=[silent])
    finish(alone)
    watcher = Watcher()
    kernel = make(tmp_path / "both", {"w": watcher}, phases=[silent, loud])
    finish(kernel)
    first = alone.position.step
    assert watcher.asked[0] == ("start", None, first) and {phase for _, phase, _ in watcher.asked[1:-1]} == {"phase1"}
    assert watcher.asked[-1][0] == "run"
    assert sum(kind == "step" for kind, _, _ in watcher.asked) == kernel.position.step - first
    losses = [read_series(tmp_path / name, "train.loss")[1][:first].tolist() for name in ("alone", "both")]
    assert losses[0] == losses[1]


def test_a_phase_with_a_seed_of_its_own_draws_the_same_whatever_the_run_is(tmp_path: Path) -> None:
    def losses(folder: str, seed: int, own: int | None) -> list[float]:
        task = Tiny(0)
        task.order = lambda epoch: np.arange(len(task.x))  # type: ignore[method-assign]
        kernel = make(tmp_path / folder, phases=[train_spec(epochs=1, seed=own)], task=task, seed=seed)
        finish(kernel)
        found: list[float] = read_series(tmp_path / folder, "train.loss")[1].tolist()
        return found

    assert losses("a", 1, 9) == losses("b", 2, 9) != losses("c", 2, None)


def test_what_an_earlier_phase_trained_is_in_the_checkpoints_of_later_ones(tmp_path: Path) -> None:
    """Frozen now, and yet not what the model was built with: a resumed run must have it."""
    kernel = make(tmp_path, phases=[train_spec(epochs=1), train_spec(epochs=1)], checkpoint={"every_epochs": 1})
    begin = kernel.plans[1].task.begin

    def freeze(phase: Any) -> None:
        begin(phase)
        kernel.module[0].weight.requires_grad_(phase.index == 0)

    kernel.plans[1].task.begin = freeze
    finish(kernel)
    loaded = kernel.keeper._store.newest()
    assert torch.equal(loaded.tensors["module/0.weight"], kernel.module[0].weight) and kernel.moved >= {"0.weight"}
