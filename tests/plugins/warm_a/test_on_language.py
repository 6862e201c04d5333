"""The same hook on ordinary LoRA through PEFT, in whole runs; what the base says alone; and the guard on a stream."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ctr.engine.events_log import read_events
from ctr.engine.keeper import Keeper
from ctr.engine.kernel import Kernel
from ctr.engine.series import read_series, series_index
from tests.engine.tasks.small_text import bits, study, train

torch.set_num_threads(1)
EVERY = {"micro_batch: 4": "micro_batch: 4\n  reset_at: [epoch, {steps: 2}]"}
CONTINUED = {"  - {task: A}\n": "  - {task: A}\n  - {task: base, name: again}\n"}


def arm(settings: str) -> dict[str, str]:
    return {"baseline: {}": f"baseline: {{plugins: {{warm_a: {settings}}}}}"}


def resets(folder: Path) -> list[dict[str, Any]]:
    found = [r["reset"] | {"kind": r["kind"], "step": r["step"]} for r in read_events(folder)
             if r["event"] == "boundary" and r["reset"]]  # fmt: skip
    return [r for r in found if r["owner"] == "warm_a"]


class Seen:
    """What the model scores on the validation split before and after each reset, with and without its adapter."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.rows: list[dict[str, Any]] = []
        reset = Keeper.reset

        def watched(keeper: Keeper, kernel: Kernel, kind: str, *more: Any) -> Any:
            before = self._scores(kernel)
            done = reset(keeper, kernel, kind, *more)
            if done and done["owner"] == "warm_a":
                after = self._scores(kernel)
                self.rows.append({"kind": kind, "before": before, "after": after})
            return done

        monkeypatch.setattr(Keeper, "reset", watched)

    def _scores(self, kernel: Kernel) -> tuple[np.ndarray, np.ndarray]:
        task: Any = kernel.plans[min(kernel.position.phase, len(kernel.plans) - 1)].task
        module: Any = kernel.module
        whole = task.evaluate(module, "val").loss_sum
        with module.without_adapter():
            alone = task.evaluate(module, "val").loss_sum
        return whole, alone


@pytest.fixture
def run(tmp_path: Path) -> Callable[..., Path]:
    def run(name: str, *replaced: dict[str, str], dies_at: int | None = None, fails: str = "") -> Path:
        (tmp_path / f"{name}-spec").mkdir(exist_ok=True)
        pieces = {old: new for one in replaced for old, new in one.items()}
        spec = study(tmp_path / f"{name}-spec", pieces)
        folder = tmp_path / name / "spoken" / "run"
        if dies_at is not None:
            assert train(spec, folder, dies_at=dies_at).error == "RuntimeError: killed"
        outcome = train(spec, folder)
        if fails:
            assert outcome.status == "failed" and fails in (outcome.error or "")
        else:
            assert outcome.status == "finished", outcome.error
        return folder

    return run


def test_a_b_of_zero_gives_the_base_back_exactly(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """At every kind of boundary that ordinary LoRA has."""
    seen = Seen(monkeypatch)
    folder = run("zero", EVERY, CONTINUED, arm("{at: [phase, epoch, steps]}"))
    assert {row["kind"] for row in seen.rows} == {"phase", "epoch", "steps"}
    assert [r["kind"] for r in resets(folder)] == [row["kind"] for row in seen.rows]
    moved = 0
    for row in seen.rows:
        (before, alone), (after, base) = row["before"], row["after"]
        assert (after == base).all() and (base == alone).all(), "the base itself has not moved"
        moved += bool((before != after).any())
    assert moved >= 4, "else nothing had been learned that could be taken back"


@pytest.mark.parametrize("family", ["", ", family: gpt2"])
def test_a_merge_keeps_what_the_model_says(family: str, run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """ReLoRA-like: the base takes over what the adapter had learned, transposed weights included."""
    seen = Seen(monkeypatch)
    gpt2 = {"kv_heads: 2, context: 64, dropout: 0.1": f"context: 64, dropout: 0.1{family}"} if family else {}
    folder = run("merged", EVERY, CONTINUED, gpt2, arm("{at: [phase, epoch, steps], merge: true}"))
    assert all(r["merge"] and r["after"]["b"] == 0 for r in resets(folder))
    moved = 0
    for row in seen.rows:
        (before, alone), (after, base) = row["before"], row["after"]
        np.testing.assert_allclose(after, before, rtol=2e-5)
        assert (after == base).all()
        moved += bool(np.abs(base / alone - 1).max() > 1e-3)
    assert moved >= 3, "else there was nothing to take over"


def test_a_run_that_merges_is_resumed_as_if_it_had_not_been_killed(run: Any) -> None:
    often = {"arms:": "checkpoint: {every_steps: 3, every_epochs: 0, cache: false}\narms:"}
    settings = (EVERY, often, arm("{at: [phase, steps], a: orth, merge: true, rewarm_steps: 3}"))
    straight = bits(run("straight", *settings))
    for dies_at in (8, 11):
        resumed = bits(run(f"resumed{dies_at}", *settings, dies_at=dies_at))
        assert straight.keys() == resumed.keys()
        assert [name for name in straight if straight[name] != resumed[name]] == []
    assert any(name.endswith("base_layer.weight") for name in straight), "the merged base is part of a checkpoint"


def test_warm_a_hands_its_directions_to_the_next_phase(run: Any) -> None:
    warm, cold = run("warm", CONTINUED, arm("{}")), run("cold", CONTINUED, arm("{a: redraw}"))
    (_, second), (_, other) = resets(warm), resets(cold)
    assert second["a"] == "keep" and second["before"]["a"] == second["after"]["a"]
    assert other["a"] == "redraw" and other["before"]["a"] != other["after"]["a"]
    angles = {name: read_series(folder, "warm_a.angle_mean")[1] for name, folder in (("w", warm), ("c", cold))}
    assert [len(a) for a in angles.values()] == [2, 2] and all(
        (a > 0).all() and (a < 1.57).all() for a in angles.values()
    )


def test_the_engine_s_own_way_named_changes_no_bit(run: Any) -> None:
    spec = (EVERY, CONTINUED, {"arms:": "checkpoint: {cache: false}\narms:"})
    plain, named = bits(run("plain", *spec)), bits(run("named", *spec, arm("{a: redraw}")))
    held = [name for name in plain if not name.startswith(("series", "train.total", "warm_a."))]
    assert [name for name in held if plain[name] != named[name]] == [] and any("lora_A" in name for name in held)


@pytest.mark.parametrize(
    ("settings", "more", "text"),
    [
        ("{at: [steps]}", {}, "plugins.warm_a: at names steps, a boundary that no phase which trains the adapter"),
        ("{}", {"adapter: {kind: lora, rank: 2, alpha: 4, dropout: 0.1}\n": "", ", trains: all": ""},
         "plugins.warm_a: resets an adapter, and this run has none"),
        ("{}", {"{task: A}": "{task: A, trains: all}"}, "plugins.warm_a: no phase of this run both trains the adapter"),
    ],
)  # fmt: skip
def test_a_run_in_which_it_cannot_act_fails_before_it_trains(
    settings: str, more: dict[str, str], text: str, run: Any
) -> None:
    folder = run("bad", arm(settings), more, fails=text)
    assert not [r for r in read_events(folder) if r["event"] in ("epoch", "boundary")]


# ------------------------------------------------------------------------------------------------------- the guard
STREAM = {
    ", dropout: 0.1}\nadapter": "}\nadapter",
    ": {kind: lora, rank: 2, alpha: 4, dropout: 0.1}": ": {kind: bank, slots: 4, rank: 2, alpha: 4}",
    "A: {kind: causal_lm, max_length: 48,": "A: {kind: document_stream, chunk: 8, window: 32,",
    "  epochs: 2\n  epoch_batches: 3\n": "  epochs: 1\n",
    "on: [test.loss]": "on: [test.bits_per_byte]",
    "base_lr: 2e-2": "base_lr: RATE",
}
FAST, SLOW = ({**STREAM, "base_lr: 2e-2": f"base_lr: {rate}"} for rate in ("0.5", "1e-3"))


def marks(folder: Path) -> list[dict[str, Any]]:
    return [r for r in read_events(folder) if r["event"] == "mark" and r["owner"] == "warm_a"]


def test_the_guard_draws_a_anew_once_adapting_does_harm(run: Any) -> None:
    """At a rate far too high, of documents that teach nothing, every group scores worse than the base alone."""
    folder = run("fast", FAST, arm("{guard: {groups: 2, margin: 0.01}}"))
    gains, told = read_series(folder, "warm_a.gain")[1], marks(folder)
    documents = [r for r in resets(folder) if r["kind"] == "document"]
    assert (gains[:6] < -0.01).all() and {m["name"] for m in told} == {"guard"}
    assert gains[6:].tolist() == [0.0] * 3, "of two chunks the first is met with B at zero, and no hook sees the last"
    assert (len(documents), len(gains)) == (10, 9), "the last group's documents are too short to be trained on"
    # the window of two begins anew after each alarm; after the last group no reset comes
    assert [r["a"] for r in documents] == ["keep", *["keep", "redraw"] * 3, *["keep"] * 3]
    assert len(told) == 3 and "before the last 2 resets adapting gained -" in told[0]["why"]


def test_a_guard_that_has_no_cause_changes_no_bit_and_its_gain_is_a_difference_of_losses(
    run: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ctr.plugins.warm_a import WarmA

    seen: list[tuple[int, float, float, int]] = []
    before = WarmA.extra_loss

    def watched(self: Any, forward: Any) -> Any:
        if forward.phase == "base":
            return before(self, forward)
        alone = forward.outputs.extra["reference"]
        first = forward.batch.tensors["places"][:, 0] == 0  # of each document its first chunk, met with B at zero
        assert torch.equal(alone.scores["nats"][first], forward.outputs.scores["nats"][first])
        nats = [float(one.scores["nats"].sum()) for one in (alone, forward.outputs)]
        tokens = int(forward.batch.tensors["real"].sum())
        assert tokens >= forward.batch.count, "last chunks are not trained on, and yet count"
        seen.append((forward.step, *nats, tokens))
        return before(self, forward)

    plain = run("plain", SLOW, {"arms:": "checkpoint: {cache: false}\narms:"}, arm("{}"))
    with monkeypatch.context() as patch:
        watched.ctr_impl = before.ctr_impl  # type: ignore[attr-defined]  # the marker of a hook
        patch.setattr(WarmA, "extra_loss", watched)
        guarded = run("guarded", SLOW, {"arms:": "checkpoint: {cache: false}\narms:"},
                      arm("{guard: {groups: 1, margin: 5.0}}"))  # fmt: skip
    assert "warm_a.gain" in series_index(guarded) and "warm_a.gain" not in series_index(plain)
    left, right = bits(plain), bits(guarded)
    assert left.keys() == right.keys() - {"warm_a.gain.f64"} and not marks(guarded)
    assert [name for name in left if left[name] != right[name]] == []
    steps, gains = read_series(guarded, "warm_a.gain")
    start = 0
    for end, gain in zip(steps.tolist(), gains.tolist(), strict=True):
        rows = [row for row in seen if start <= row[0] < end]
        tokens = sum(count for *_, count in rows)
        wanted = sum(alone - adapted for _, alone, adapted, _ in rows) / tokens
        assert gain == pytest.approx(wanted, abs=1e-6)
        start = end
    assert len(gains) > 5 and any(gains != 0)
