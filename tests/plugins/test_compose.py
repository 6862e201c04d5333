"""`ctr compose`: what a route means, written, loaded back and held to the route's own scores; and what is refused."""

from __future__ import annotations

import errno
import json
import os
import resource
import shutil
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from ctr.engine import adapter_writing, deltas
from ctr.engine.adapter_files import read_adapter
from ctr.engine.cli import app
from ctr.engine.errors import CtrError, DataError, StorageError, UsageError, VerificationError
from ctr.plugins.routed.compose_command import write_composition
from ctr.plugins.routed.finished import FinishedRun, open_run
from ctr.plugins.routed.route import parse
from tests.engine.tasks.small_text import study, train, write_rows

pytestmark = pytest.mark.filterwarnings("ignore")  # PEFT's and transformers' own
TASK = "  A: {kind: causal_lm, max_length: 48, data: {source: text, path: FOLDER/a.txt}}\n"
SHORT = {"epochs: 2": "epochs: 1"}


def trained(folder: Path, *phases: str, replaced: dict[str, str] | None = None, rows: int = 40) -> Path:
    """Train a base, then an adapter through phases A, B, …, and return the run's folder."""
    tasks = "".join(TASK.replace("A:", f"{t}:").replace("a.txt", f"{t.lower()}.txt") for t in "ABC"[: len(phases)])
    listed = "".join(f"  - {{{phase}}}\n" for phase in phases)
    path = study(folder, {TASK: tasks, "  - {task: A}\n": listed, **SHORT, **(replaced or {})})
    for i, letter in enumerate("abc"):
        write_rows(folder / f"{letter}.txt", rows, seed=4 + i)
    run = folder / "runs" / "spoken" / "baseline-s1"
    outcome = train(path, run)
    assert outcome.status == "finished", outcome.error
    return run


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a run of three phases, each going on with the adapter of the one before."""
    more = ", adapter: continued"
    return trained(tmp_path_factory.mktemp("composed"), "task: A", f"task: B{more}", f"task: C{more}")


@pytest.fixture(scope="module")
def opened(run: Path) -> FinishedRun:
    return open_run(run)


@pytest.fixture
def copy(run: Path, tmp_path: Path) -> Path:
    """Return a copy of the run that a test may damage."""
    return Path(shutil.copytree(run, tmp_path / "copy" / run.name))


def test_the_whole_route_is_the_run_s_own_last_adapter_to_the_bit(run: Path, tmp_path: Path) -> None:
    for space in ("effective", "factor"):
        write_composition(run, "A+B+C", tmp_path / space, space)  # type: ignore[arg-type]
        own, found = read_adapter(run / "adapters" / "C"), read_adapter(tmp_path / space)
        assert own.delta.keys() == found.delta.keys() and found.base == own.base
        for name, pair in own.delta.items():
            assert torch.equal(pair.a, found.delta[name].a) and torch.equal(pair.b, found.delta[name].b)
            assert pair.scaling == found.delta[name].scaling


@pytest.mark.parametrize(
    ("space", "rank", "merged"),
    [
        ("effective", None, False),
        ("effective", 2, False),
        ("effective", None, True),
        ("effective", 2, True),
        ("factor", None, False),
        ("factor", 2, True),
    ],
)
def test_what_is_written_scores_as_the_route(
    space: Any, rank: int | None, merged: bool, run: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    said = write_composition(run, "A + 0.9B + 0.25C", out, space, rank, merged)
    note = json.loads((out / "ctr.json").read_text())
    digests = {p: {"sha256": read_adapter(run / "adapters" / p).digest} for p in "ABC"}
    assert note["phases"] == digests and note["base"] == read_adapter(run / "adapters" / "A").base
    assert (note["run"], note["route"], note["space"], note["merged"]) == (run.name, "A+0.9B+0.25C", space, merged)
    assert note["ctr"] == version("ctr-engine") and note["step"] == 12 and note["rank"] == rank
    scores = note["scores"]["tasks"]
    assert list(scores) == ["A", "B", "C", "base"] and note["scores"]["split"] == "val"
    cut = rank is not None and space == "effective"  # in factor space the rank is 2 anyway
    for name, one in scores.items():
        assert one["largest_difference"] < 1e-5 and (one["written"] != one["route"]) == cut, name
        assert any(line.startswith(f"task {name}: val.loss {one['route']:.6g}") for line in said)
    assert (max(note["truncation"].values(), default=0.0) > 0.001) == cut
    assert (out / ("model.safetensors" if merged else "adapter_config.json")).is_file()
    if not merged:
        largest = max(pair.rank for pair in read_adapter(out).delta.values())
        assert largest == (6 if rank is None and space == "effective" else 2)
        assert f"an adapter of rank {largest} of {run.name} for A+0.9B+0.25C in {space} space" in said[0]
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_run_is_opened_as_it_ended_and_scores_depend_on_route_and_space(run: Path, opened: FinishedRun) -> None:
    """So agreement of a folder's scores with its route's says something."""
    evaluate = opened.evaluate["C"]
    recorded = [json.loads(line) for line in (run / "events.jsonl").read_text().splitlines()]
    (wanted,) = [r for r in recorded if r["event"] == "evaluation" and (r["split"], r["weights"]) == ("val", "last")]
    routes = [("A+B+C", "effective"), ("A", "factor"), ("A+3C", "factor"), ("A+3C", "effective")]
    asked = [opened.snapshots.compose(parse(route), space) for route, space in routes]  # type: ignore[arg-type]
    own, last, *others = (one.mean() for one in evaluate([{}, *asked], "val"))
    assert own == pytest.approx(wanted["values"]["loss"], abs=1e-12) and opened.about.step == 12
    assert last == own and len({own, *others}) == 4


# ----------------------------------------------------------------------------------------------------------- refusals
@pytest.mark.parametrize(
    ("route", "space", "text"),
    [
        ("A+Z", "effective", "--route: A.Z: no phase Z trained the adapter; those that did are A, B, C"),
        ("A+oneB+", "effective", "--route: .* is no term of a route"),
        ("A+nan*B", "effective", "--route: 'nan.B' is no term of a route"),
        ("A+1e999B", "effective", "--route: .*is no weight; a finite number is expected"),
        ("C[early=x]", "effective", "--route: .*is no weight"),
        ("C[block.9=1]", "effective", "--route: block.9: this adapter has block.0, block.1"),
        ("C[a=0.5]", "effective", "--route: .*in effective space a target has one weight"),
        ("0", "effective", "--route: 0 changes nothing of the base, so there is no adapter to write"),
        ("0", "factor", "--route: 0 changes nothing of the base"),
    ],
)
def test_a_route_that_is_none_is_refused(
    route: str, space: Any, text: str, run: Path, opened: FinishedRun, tmp_path: Path, monkeypatch: Any
) -> None:
    monkeypatch.setattr("ctr.plugins.routed.finished.open_run", lambda _: opened)  # which is refused before it is used
    with pytest.raises(UsageError, match=text):
        write_composition(run, route, tmp_path / "out", space)
    assert not list(tmp_path.iterdir())


def test_no_run_and_an_out_that_exists_are_refused(run: Path, copy: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="is no folder of a run; it holds no spec.yaml"):
        write_composition(tmp_path, "A", tmp_path / "out")
    (tmp_path / "there").mkdir()
    with pytest.raises(UsageError, match="there: exists; give a folder that does not"):
        write_composition(run, "A", tmp_path / "there")
    shutil.rmtree(copy / "checkpoints")
    with pytest.raises(DataError, match="has no checkpoint that could be read"):
        write_composition(copy, "A", tmp_path / "out")


def test_a_run_without_adapters_is_refused(tmp_path: Path) -> None:
    plain = {"adapter: {kind: lora, rank: 2, alpha: 4, dropout: 0.1}\n": ""}
    run = trained(tmp_path, "task: A, trains: all", replaced=plain)
    with pytest.raises(UsageError, match=r"its last phase trains no adapter: \{kind: lora\} that could be composed"):
        write_composition(run, "A", tmp_path / "out")


def test_phases_that_began_afresh_add_up_in_effective_space_alone(tmp_path: Path) -> None:
    run = trained(tmp_path, "task: A", "task: B")
    with pytest.raises(UsageError, match="--route: .*a phase begins with a fresh one; use space: effective"):
        write_composition(run, "A+B", tmp_path / "out", "factor")
    write_composition(run, "A+B", tmp_path / "out")
    parts = [read_adapter(run / "adapters" / phase).delta for phase in "AB"]
    for name, pair in read_adapter(tmp_path / "out").delta.items():
        assert torch.allclose(pair.dense(), parts[0][name].dense() + parts[1][name].dense(), atol=1e-7)


def flip(folder: Path) -> None:
    file = folder / "adapter_model.safetensors"
    data = bytearray(file.read_bytes())
    data[-5] ^= 1
    file.write_bytes(data)


def forget(folder: Path) -> None:
    flip(folder)
    (folder / "ctr.json").unlink()


def rebase(folder: Path) -> None:
    note = json.loads((folder / "ctr.json").read_text())
    (folder / "ctr.json").write_text(json.dumps({**note, "base": "f" * 64}))


@pytest.mark.parametrize(
    ("damage", "kind", "text"),
    [
        (flip, DataError, "adapters/B/adapter_model.safetensors: does not match the sha256 that ctr.json has of it"),
        (forget, VerificationError, "adapters/B: does not hold the adapter that phase B ended with, as the checkpoint"),
        (shutil.rmtree, DataError, "adapters/B holds no adapter_config.json"),
        (rebase, DataError, r"B and A were trained beside different bases \(sha256 ffffffffffff… and \w{12}…\)"),
    ],
)
def test_a_damaged_snapshot_is_told_by_its_file(
    damage: Any, kind: type[CtrError], text: str, copy: Path, tmp_path: Path
) -> None:
    damage(copy / "adapters" / "B")
    with pytest.raises(kind, match=text):
        write_composition(copy, "A+B", tmp_path / "out")
    assert not (tmp_path / "out").exists()
    if damage is rebase:
        with pytest.raises(DataError, match="B: phase B trained it beside another base .* no route can name it"):
            write_composition(copy, "B", tmp_path / "out")
        write_composition(copy, "A", tmp_path / "out")  # which it does not concern


@pytest.mark.parametrize("merged", [False, True])
def test_a_full_disk_leaves_nothing(merged: bool, run: Path, tmp_path: Path, monkeypatch: Any) -> None:
    def full(*_: Any) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    if merged:  # safetensors writes past Python
        found = open_run(run)
        monkeypatch.setattr("ctr.plugins.routed.finished.open_run", lambda _: found)
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (8192, before[1]))
    else:
        monkeypatch.setattr(os, "write", full)
    try:
        with pytest.raises(StorageError, match="out: cannot be written: "):
            write_composition(run, "A+0.5B", tmp_path / "out", merged=merged)
    finally:
        if merged:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("merged", [False, True])
def test_what_does_not_score_as_the_route_is_not_kept(
    merged: bool, run: Path, tmp_path: Path, monkeypatch: Any
) -> None:
    """Planted: a file, or a merge, that holds 5 % more than the route means."""
    fill, merge = adapter_writing.fill_adapter, deltas.applied

    def louder(folder: Path, delta: Any, *args: Any, **more: Any) -> str:
        return fill(folder, deltas.scaled(delta, 1.05), *args, **more)

    monkeypatch.setattr(adapter_writing, "fill_adapter", louder)
    monkeypatch.setattr(deltas, "applied", lambda delta, *args: merge(deltas.scaled(delta, 1.05), *args))
    text = r"task \w+: the route scores [\d.]+, what was written [\d.]+; item .* differs by .*, and 0.0001 is allowed"
    with pytest.raises(VerificationError, match=text):
        write_composition(run, "A+B+5C", tmp_path / "out", merged=merged)
    assert not list(tmp_path.iterdir())


def test_the_command_ends_with_the_code_of_what_went_wrong(run: Path, copy: Path, tmp_path: Path) -> None:
    def call(*words: str) -> tuple[int, str]:
        done = CliRunner().invoke(app, ["compose", *words])
        code = done.exit_code if not isinstance(done.exception, CtrError) else done.exception.exit_code
        return code, (done.output + str(done.exception)).replace("\n", " ")

    out = str(tmp_path / "out")
    assert call(str(run), "--route", "A+Z", "--out", out)[0] == 2
    assert call(str(run), "--route", "A", "--out", out, "--rank", "0")[0] == 2
    assert call(str(run), "--route", "A", "--out", out, "--space", "nowhere")[0] == 2
    flip(copy / "adapters" / "A")
    code, said = call(str(copy), "--route", "A", "--out", out)
    assert code == 3 and "adapters/A/adapter_model.safetensors: does not match the sha256" in said
    code, said = call(str(run), "--route", "A+0.9B", "--space", "factor", "--out", out)
    assert code == 0 and "an adapter of rank 2 of baseline-s1 for A+0.9B in factor space" in said
