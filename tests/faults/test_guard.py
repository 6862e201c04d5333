"""A number that is not finite, planted in each place of a real run: it is named, with the batch, and nothing moves."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from ctr.engine.series import read_series, series_index

from .harness import Forks, committed, status

CULPRITS = {
    "term": "term noise of plugin planted",
    "gradient": "the gradient of term noise of plugin planted",
    "tensor_rate": "the rate scale of plugin planted",
    "rate": "planted",
    "data": "the data: images of item",
}


def stopped_by_the_guard(forks: Forks, study: Path, runs: Path, what: str, *words: str) -> None:
    """Run twice: the guard stops the run at step 4, and a second start meets the same fault and no other."""
    run = runs / "f" / "a-s1"
    for _ in range(2):
        one = forks.run("run", study, "--runs", runs, *words)
        assert one.code == 5, one.said()
        assert CULPRITS[what] in one.said() and "step 4" in one.said() and "Traceback" not in one.said()
        note = json.loads((run / "nan" / "4.json").read_bytes())
        assert len(note["items"]) == 18 and note["step"] == 4
        assert status(run)["status"] == "failed" and status(run)["code"] == 5
        steps = [int(path.name.partition("-")[2]) for path in committed(run)]
        assert steps and max(steps) == 4  # weights after four updates, the last that were sound
        for key in series_index(run):
            at = read_series(run, key)[0]
            assert at.max(initial=0) <= (4 if key.startswith(("val.", "phase_controller.")) else 3), key


@pytest.mark.parametrize("what", ["term", pytest.param("gradient", marks=pytest.mark.slow)])
def test_a_term_that_is_no_number(forks: Forks, make_study: Callable[..., Path], tmp_path: Path, what: str) -> None:
    stopped_by_the_guard(forks, make_study(planted=f"at: 4, what: {what}"), tmp_path, what)


@pytest.mark.slow
@pytest.mark.parametrize("what", ["rate", "tensor_rate"])
def test_a_rate_that_is_no_number(forks: Forks, make_study: Callable[..., Path], tmp_path: Path, what: str) -> None:
    stopped_by_the_guard(forks, make_study(planted=f"at: 4, what: {what}"), tmp_path, what)


def test_a_pixel_that_is_no_number(forks: Forks, make_study: Callable[..., Path], tmp_path: Path) -> None:
    study = make_study(task="nan_images, epoch: 2, micro: 1".replace(", ", "\n  "))
    stopped_by_the_guard(forks, study, tmp_path, "data")
    (item,) = {note.split("of item ")[1].split(";")[0] for note in [status(tmp_path / "f" / "a-s1")["error"]]}
    assert int(item) in json.loads((tmp_path / "f" / "a-s1" / "nan" / "4.json").read_bytes())["items"]
