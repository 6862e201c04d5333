"""Two runs or studies held against each other: which pairs there are, what differs, and what is refused."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from typer.testing import CliRunner

from ctr.engine.cli import app
from ctr.engine.compare import compared, render
from ctr.engine.errors import DataError, UsageError
from ctr.engine.rundir import read_json, write_json

from .report_folders import Built

ACCURACY = {1: 80.0, 2: 82.0, 3: 81.0, 4: 83.0}


def study(
    folder: Path, more: float = 0.0, seeds: Sequence[int] = (1, 2, 3, 4), arms: Sequence[str] = ("baseline", "treated"),
    spread: float = 0.1, spec: str = "plugins: {}\n", items: str = "items", failed: Sequence[int] = (), **index: Any,
) -> Path:  # fmt: skip
    built = Built(folder, arms=arms, contrasts=[(arms[-1], arms[0])])
    for arm in arms:
        for seed in seeds:
            value = ACCURACY.get(seed, 80.0) + more + spread * seed
            hashes = {"weights": f"w{seed}", "data_order": f"o{seed}", "evaluation_items": items}
            status = "failed" if seed in failed else "finished"
            built.run(arm, seed, value, spec=spec, hashes=hashes, status=status, epochs=2)
    return built.close(**index)


def fingerprinted(folder: Path, fingerprints: Mapping[str, str]) -> Path:
    for file in folder.glob("*/provenance.json"):
        write_json(file, {**dict(read_json(file) or {}), "fingerprints": dict(fingerprints)})
    return folder


def shown(found: Mapping[str, Any]) -> str:
    console = Console(width=300)
    with console.capture() as capture:
        console.print(render(found))
    return capture.get()


def test_a_clear_difference_is_called_with_its_interval(tmp_path: Path) -> None:
    first, second = study(tmp_path / "a", more=5.0), study(tmp_path / "b", spread=0.2)
    found = compared(first, second)
    rows = found["contrasts"]
    assert [(row["a"], row["b"], row["n"], row["verdict"]) for row in rows] == [
        ("a/baseline", "b/baseline", 4, "improves"),
        ("a/treated", "b/treated", 4, "improves"),
    ]
    assert rows[0]["mean"] == pytest.approx(5 - 0.25) and rows[0]["family"] == 2
    assert "a/baseline improves test.accuracy over b/baseline: +4.75 pp, 95 % interval [" in shown(found)


def test_seeds_without_a_partner_are_named_and_left_out(tmp_path: Path) -> None:
    first, second = study(tmp_path / "a", seeds=(1, 2, 3)), study(tmp_path / "b", 1.0, seeds=(2, 3, 4), spread=0.3)
    found = compared(first, second)
    assert found["contrasts"][0]["seeds"] == (2, 3) and found["seeds_only"] == {"a": [1], "b": [4]}
    assert "seeds only in a, which have no partner: 1" in shown(found)


def test_different_seeds_leave_nothing_to_pair(tmp_path: Path) -> None:
    found = compared(study(tmp_path / "a", seeds=(1, 2)), study(tmp_path / "b", seeds=(3, 4)))
    assert found["contrasts"][0]["n"] == 0
    said = shown(found)
    assert "Nothing can be said about a/baseline and b/baseline on test.accuracy: no complete pair of seeds" in said


def test_one_missing_seed_drops_its_pair_with_the_reason(tmp_path: Path) -> None:
    found = compared(study(tmp_path / "a", more=1.0, failed=[3]), study(tmp_path / "b"))
    assert found["contrasts"][0]["seeds"] == (1, 2, 4)
    assert "seed 3 dropped: a/baseline-s3 failed" in shown(found)


def test_where_nothing_can_be_claimed_the_seeds_still_needed_are_said(tmp_path: Path) -> None:
    found = compared(study(tmp_path / "a", 0.2, spread=-0.2), study(tmp_path / "b", spread=0.0), ["baseline"])
    row = found["contrasts"][0]
    assert row["verdict"] == "no difference"
    assert f"no difference can be claimed; {row['seeds_needed'] - 4} more seed" in found["more_seeds"][0]


@pytest.mark.parametrize("what", ["data", "items"])
def test_other_data_are_refused_with_the_reason(what: str, tmp_path: Path) -> None:
    first = fingerprinted(study(tmp_path / "a"), {"main.images": "aaaa"})
    second = study(tmp_path / "b", items="others" if what == "items" else "items")
    fingerprinted(second, {"main.images": "bbbb" if what == "data" else "aaaa"})
    text = {"data": "the data differ in main.images: a has aaaa, b has bbbb", "items": "the evaluation items differ"}
    with pytest.raises(DataError, match=text[what]):
        compared(first, second)
    assert CliRunner().invoke(app, ["compare", str(first), str(second)]).exception is not None


def test_other_metrics_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="different metrics: test.accuracy, and test.loss"):
        compared(study(tmp_path / "a"), study(tmp_path / "b", on=["test.loss"]))


def test_the_resolved_specs_are_held_against_each_other(tmp_path: Path) -> None:
    first = study(tmp_path / "a", spec="study: a\nplugins: {constant_scale: {scale: 1.1}}\n")
    second = study(tmp_path / "b", spec="study: b\nplugins: {constant_scale: {scale: 1.3}}\n")
    found = compared(first, second, ["treated"])
    assert found["spec_differences"] == [
        {"a": "a/treated", "b": "b/treated", "lines": ["plugins.constant_scale.scale: 1.1 → 1.3"]}
    ]
    assert "the resolved specs are equal" in shown(compared(first, first))


def test_two_runs_are_compared_and_two_arms_by_name(tmp_path: Path) -> None:
    first, second = study(tmp_path / "a"), study(tmp_path / "b", arms=("plain", "other"))
    found = compared(first / "treated-s2", second / "plain-s2")
    assert [(row["a"], row["b"], row["seeds"]) for row in found["contrasts"]] == [("a/treated", "b/plain", (2,))]
    with pytest.raises(UsageError, match="no arm is in both: .*; say which, such as --arm baseline=plain"):
        compared(first, second)
    found = compared(first, second, ["treated=plain"])
    assert found["contrasts"][0]["n"] == 4
    with pytest.raises(UsageError, match="the second has no arm plan; it has plain, other. Did you mean plain?"):
        compared(first, second, ["treated=plan"])


def test_equal_names_are_told_apart_and_equal_runs_recognised(tmp_path: Path) -> None:
    first, second = study(tmp_path / "x" / "a"), study(tmp_path / "y" / "a")
    found = compared(first, second, ["baseline"])
    assert found["contrasts"][0]["sentence"].startswith("a(first)/baseline and a(second)/baseline are identical")


@pytest.mark.parametrize("name", ["", "nowhere"])
def test_a_folder_that_is_neither_is_a_usage_error(name: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="neither a run's folder nor a study's"):
        compared(study(tmp_path / "a"), tmp_path / name)
