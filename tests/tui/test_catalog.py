"""Finding runs and judging their silence."""

from __future__ import annotations

import json
import os
import shutil
import time
from pathlib import Path

from ctr.tui.catalog import Catalog
from ctr.tui.facts import Facts

from .fake_runs import FakeRun, index, study

NOW = 2_000_000_000.0


def beat(path: Path, at: float, **more: object) -> None:
    """Rewrite the heartbeat of a run by its own clock."""
    status = json.loads((path / "status.json").read_text())
    (path / "status.json").write_text(json.dumps({**status, "heartbeat": at, **more}))
    os.utime(path / "status.json", (at, at))


def live(root: Path) -> Path:
    run = FakeRun(root / "demo", "controller", 1)
    run.advance(5)
    run.write_status("live")
    run.close()
    return run.path


def label(catalog: Catalog) -> str:
    return next(catalog.runs()).facts.label


def test_a_run_is_stale_after_ten_silent_heartbeats_never_failed_and_live_again_at_the_next(tmp_path: Path) -> None:
    path = live(tmp_path)
    beat(path, NOW)
    catalog = Catalog(tmp_path)
    catalog.scan(NOW, 0.0)
    assert label(catalog) == "live"
    catalog.scan(NOW + 9, 9.0)
    assert label(catalog) == "live"
    catalog.scan(NOW + 11, 11.0)
    assert label(catalog) == "stale"
    beat(path, NOW + 12)
    catalog.scan(NOW + 12, 12.0)
    assert label(catalog) == "live"


def test_a_slower_heartbeat_gives_a_run_more_time(tmp_path: Path) -> None:
    beat(live(tmp_path), NOW, heartbeat_interval=60)
    catalog = Catalog(tmp_path)
    catalog.scan(NOW + 599, 0.0)
    assert label(catalog) == "live"


def test_jumps_of_the_wall_clock_neither_kill_a_run_nor_make_time_negative(tmp_path: Path) -> None:
    path = live(tmp_path)
    catalog = Catalog(tmp_path)
    for k, jump in enumerate((0.0, -86_400.0, +86_400.0, -1e9, 3.0)):
        beat(path, NOW + k, monotonic=-5.0, eta_seconds=-3.0)
        catalog.scan(NOW + k + jump, float(k))
        facts = next(catalog.runs()).facts
        assert facts.age >= 0 and facts.monotonic >= 0 and (facts.eta_seconds or 0) >= 0
        if k:
            assert facts.label == "live", jump


def test_a_host_whose_clock_is_an_hour_behind_is_live_once_it_was_seen_to_beat(tmp_path: Path) -> None:
    path = live(tmp_path)
    beat(path, NOW - 3600)
    catalog = Catalog(tmp_path)
    catalog.scan(NOW, 0.0)
    assert label(catalog) == "stale"
    beat(path, NOW - 3599)
    catalog.scan(NOW + 1, 1.0)
    assert label(catalog) == "live"


def test_a_vanished_run_is_shown_as_gone_and_a_vanished_root_as_missing(tmp_path: Path) -> None:
    root = tmp_path / "runs"
    path = live(root)
    catalog = Catalog(root)
    catalog.scan(NOW, 0.0)
    shutil.rmtree(path)
    catalog.scan(NOW, 1.0)
    assert label(catalog) == "gone"
    shutil.rmtree(root)
    catalog.scan(NOW, 2.0)
    assert catalog.missing


def test_runs_that_the_index_names_and_nobody_has_begun_are_queued(tmp_path: Path) -> None:
    index(tmp_path / "demo", ["a", "b"], [1, 2])
    catalog = Catalog(tmp_path)
    catalog.scan(NOW, 0.0)
    assert [r.facts.label for r in catalog.runs()] == ["queued"] * 4
    assert [(r.facts.arm, r.facts.seed) for r in catalog.runs()] == [("a", 1), ("a", 2), ("b", 1), ("b", 2)]


def test_a_run_that_comes_later_is_found(tmp_path: Path) -> None:
    catalog = Catalog(tmp_path)
    catalog.scan(NOW, 0.0)
    live(tmp_path)
    for tick in range(1, 30):
        catalog.scan(NOW, float(tick))
    assert label(catalog) != "queued" and len(list(catalog.runs())) == 1


def test_the_folder_given_may_be_a_root_a_study_or_a_run(tmp_path: Path) -> None:
    folder = study(tmp_path, seeds=(1, 2))
    for root, many in ((tmp_path, 6), (folder, 6), (folder / "baseline-s1", 1)):
        catalog = Catalog(root)
        catalog.scan(NOW, 0.0, 10.0)
        assert len(list(catalog.runs())) == many, root


def test_looking_at_5000_runs_again_costs_a_bounded_slice(tmp_path: Path) -> None:
    one = live(tmp_path)
    text = (one / "status.json").read_text().replace('"live"', '"finished"')
    for k in range(5000):
        folder = tmp_path / "many" / f"arm-s{k}"
        folder.mkdir(parents=True)
        (folder / "status.json").write_text(text)
    catalog = Catalog(tmp_path)
    for tick in range(40):
        catalog.scan(NOW, float(tick), 0.5)
    assert sum(r.facts.label == "finished" for r in catalog.runs()) == 5000
    begin = time.process_time()
    for tick in range(40, 50):
        catalog.scan(NOW, float(tick))
    assert (time.process_time() - begin) / 10 < 0.25  # a slice is 0.03 s; a full reading of all would take seconds


def test_facts_prefer_the_metric_that_the_study_compares_on() -> None:
    facts = Facts(val={"loss": 0.5, "accuracy": 90.0, "f1": 0.8})
    assert facts.metric("f1") == ("f1", 0.8)
    assert facts.metric("") == ("accuracy", 90.0)
    assert Facts(val={"loss": 0.5}).metric("accuracy") == ("loss", 0.5)
