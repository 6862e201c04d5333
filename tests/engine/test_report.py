"""The report over folders that were never trained: what it says, that it never raises, that nothing gets through."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator
from html.parser import HTMLParser
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from ctr.engine.events_log import EventLog
from ctr.engine.figure_data import Line, thin, trace, watched_series
from ctr.engine.figures import band
from ctr.engine.report import build_report, render_tables
from ctr.engine.report_markdown import opening
from ctr.engine.report_read import read_study
from ctr.engine.rundir import write_json

from .report_folders import STEPS, Built

SEEDS = (1, 2, 3, 4, 5, 6)
GAINS = (0.4, 0.5, 0.45, 0.6, 0.35, 0.5)


@pytest.fixture(autouse=True)
def plates(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Draw nothing where the figures are not what is tested: drawing takes most of the time."""
    if "drawn" not in request.fixturenames:
        for name in ("figures.panels", "figure_pairs.differences"):
            monkeypatch.setattr(f"ctr.engine.{name}", lambda *what: b"\x89PNG")


@pytest.fixture
def drawn() -> None:
    """Asks for real figures."""


@pytest.fixture
def study(tmp_path: Path) -> Built:
    return Built(tmp_path / "study")


def fill(study: Built, gains: Any = GAINS, **controller: Any) -> None:
    for seed, gain in zip(SEEDS, gains, strict=False):
        study.run("baseline", seed, 90.0 + seed / 10, last=89.0)
        study.run("controller", seed, 90.0 + seed / 10 + gain, last=89.0, **controller)


def only(report: dict[str, Any]) -> dict[str, Any]:
    (row,) = report["contrasts"]
    assert isinstance(row, dict)
    return row


def spoken(report: dict[str, Any], width: int = 80) -> str:
    out = StringIO()
    Console(file=out, width=width, color_system="truecolor", force_terminal=True).print(render_tables(report))
    return out.getvalue()


def hashes(folder: Path) -> dict[str, str]:
    files = [*folder.glob("report.*"), *folder.glob("figures/*")]
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


# ------------------------------------------------------------------------------------------------ what it says
def test_a_verdict_with_its_figures_in_every_sink(study: Built) -> None:
    fill(study)
    report = build_report(study.close())
    row = only(report)
    assert row["verdict"] == "improves" and row["mean"] == pytest.approx(np.mean(GAINS)) and row["n"] == 6
    assert row["sign_p"] == row["attainable_p"] == 1 / 32 and row["last"]["mean"] == 0
    assert row["sentence"].startswith(
        "controller improves test.accuracy over baseline: +0.467 pp, 95 % interval [+0.37"
    )
    assert json.loads((study.path / "report.json").read_text())["verdicts"] == [row["sentence"]]
    assert "controller improves test.accuracy over baseline" in (study.path / "report.md").read_text()
    assert "controller improves test.accuracy over baseline" in (study.path / "report.html").read_text()
    assert "controller improves test.accuracy over baseline" in spoken(report)


def test_the_same_folders_give_the_same_bytes(drawn: None, study: Built) -> None:
    fill(study, GAINS[:2], regimes=[(0, "S0_EXPLORE"), (3, "S1_BOUNDARY")])
    build_report(study.close())
    first = hashes(study.path)
    (study.path / "figures" / "seed-99.png").write_bytes(b"of an earlier report")
    build_report(study.path)
    assert hashes(study.path) == first
    assert {"report.html", "report.md", "report.json", "figures/all-seeds.png", "figures/seed-1.png"} <= set(first)
    assert b"Matplotlib" not in (study.path / "figures" / "seed-1.png").read_bytes()


def test_selected_and_last_epochs_of_a_validation_metric(study: Built) -> None:
    study.on = ["val.loss"]
    for seed in (1, 2):
        study.run("baseline", seed, 90, val=lambda e: [9.0, 0.9, 0.5, 0.7, 0.8, 0.85, 0.95][e])
        study.run("controller", seed, 90, val=lambda e, s=seed: [9.0, 0.9, 0.8, 0.4 + s / 10, 0.6, 0.9, 0.65][e])
    report = build_report(study.close())
    values = {row["arm"]: row for row in report["values"]}
    assert (
        values["baseline"]["selected"]["by_seed"] == {"1": 0.5, "2": 0.5} and values["baseline"]["last"]["mean"] == 0.95
    )
    assert values["controller"]["selected"]["by_seed"] == pytest.approx({"1": 0.5, "2": 0.6})
    assert only(report)["differences"] == pytest.approx([0.0, -0.1])  # a higher loss is worse
    assert only(report)["last"]["mean"] == pytest.approx(0.3)


def test_an_earlier_phase_selects_nothing_however_low_its_loss(study: Built) -> None:
    """The base's own text may be far easier than the task that is compared."""
    study.on, study.phase_of = ["val.loss"], lambda epoch: int(epoch > 3)
    for arm in ("baseline", "controller"):
        study.run(arm, 1, 90, val=lambda e: [9.0, 0.3, 0.2, 0.1, 0.8, 0.6, 0.7][e])
    report = build_report(study.close())
    assert {row["selected"]["mean"] for row in report["values"]} == {0.6}


def test_equal_weights_prove_identical_and_unequal_ones_do_not(study: Built) -> None:
    for seed in (1, 2):
        study.run("baseline", seed, 90.0, digest=f"d{seed}")
        study.run("controller", seed, 90.0, digest=f"d{seed}")
    row = only(build_report(study.close()))
    assert row["verdict"] == "identical" and row["identical_weights"]["last"] == [1, 2] and row["family"] == 0
    assert "the last weights have equal hashes at both seeds" in row["sentence"]
    other = Built(study.path.parent / "other")
    for seed in (1, 2):
        other.run("baseline", seed, 90.0)
        other.run("controller", seed, 90.0)
    assert "only the numbers agree" in only(build_report(other.close()))["sentence"]


def test_matching_is_proved_or_the_odd_arm_is_named(study: Built) -> None:
    base = {"weights": "aaaa", "data_order": "bbbb", "evaluation_items": "cccc"}
    for seed in (1, 2):
        study.run("baseline", seed, 90.0, hashes=base)
        study.run("controller", seed, 90.1, hashes=base if seed == 1 else {**base, "data_order": "dddd"})
    report = build_report(study.close())
    first, second = report["matching"]
    assert {first[what]["said"] for what in base} == {"matched"}
    assert second["data_order"] == {
        "said": "differs",
        "hashes": {"bbbb": ["baseline"], "dddd": ["controller"]},
        "missing": [],
    }
    assert "seed 2: the arms are not matched: data order differ" in spoken(report, 200)
    assert "differs (baseline: bbbb; controller: dddd)" in (study.path / "report.html").read_text()


def test_a_failed_seed_drops_the_pair_and_is_named(study: Built) -> None:
    fill(study, GAINS[:3])
    study.run("baseline", 9, 90.0)
    study.run("controller", 9, 0.0, status="failed", error="GuardError: the loss is nan at step 17")
    report = build_report(study.close())
    assert only(report)["seeds"] == [1, 2, 3] and only(report)["n"] == 3
    named = "seed 9 dropped: controller-s9 failed (GuardError: the loss is nan at step 17)"
    assert named in report["incomplete"][0] and named in (study.path / "report.html").read_text()
    assert "n = 3 cannot reach 0.05, 6 seeds can" in spoken(report)


def test_seeds_that_were_not_run_yet_share_a_line(study: Built) -> None:
    study.on = ["test.accuracy", "val.loss"]
    fill(study, GAINS[:2])
    for seed in (7, 8):
        study.runs += [{"name": f"{arm}-s{seed}", "arm": arm, "seed": seed, "point": ""} for arm in study.arms]
    report = build_report(study.close())
    why = "seeds 7, 8 dropped: controller has no run; baseline has no run"
    assert report["incomplete"] == [f"controller - baseline on test.accuracy, val.loss: {why}"]
    assert [row["seed"] for row in report["matching"]] == [1, 2]
    assert report["problems"] == ["4 of 8 runs have no folder: baseline-s7, controller-s7, baseline-s8, controller-s8"]


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_value_that_is_no_number_drops_the_pair(study: Built, value: float) -> None:
    fill(study, GAINS[:3])
    study.run("baseline", 9, 90.0)
    study.run("controller", 9, value)
    report = build_report(study.close())
    assert only(report)["seeds"] == [1, 2, 3] and report["incomplete"] == [
        f"controller - baseline on test.accuracy: seed 9 dropped: controller is {value}"
    ]


def test_points_are_compared_at_equal_point_and_share_one_family(tmp_path: Path) -> None:
    study = Built(tmp_path / "sweep", points=("width_8", "width_16"))
    for point, lift in (("width_8", 0.0), ("width_16", 5.0)):
        for seed, gain in zip(SEEDS, GAINS, strict=True):
            study.run("baseline", seed, 80 + lift, point=point)
            study.run("controller", seed, 80 + lift + gain, point=point)
    report = build_report(study.close())
    assert [(row["point"], row["n"], row["family"]) for row in report["contrasts"]] == [
        ("width_8", 6, 2),
        ("width_16", 6, 2),
    ]
    assert report["contrasts"][0]["mean"] == pytest.approx(np.mean(GAINS))
    assert " on " not in report["verdicts"][0] and "test.accuracy at width_8" in report["verdicts"][0]
    assert (study.path / "figures" / "seed-1-width_16.png").exists()


def test_an_arm_of_points_meets_an_arm_without(tmp_path: Path) -> None:
    study = Built(tmp_path / "sweep", points=("", "a", "b"))
    for seed in (1, 2, 3):
        study.run("baseline", seed, 80.0)
        for point, gain in (("a", 1.0), ("b", 2.0)):
            study.run("controller", seed, 80 + gain + seed / 10, point=point)
    report = build_report(study.close())
    assert [(row["point"], row["mean"]) for row in report["contrasts"]] == [
        ("a", pytest.approx(1.2)),
        ("b", pytest.approx(2.2)),
    ]


def test_fast_is_called_matched_but_not_exact(study: Built) -> None:
    study.determinism = "fast"
    fill(study, GAINS[:2])
    report = build_report(study.close())
    assert report["exactness"].startswith("matched, not bit-exact") and "matched, not bit-exact" in spoken(report)


@pytest.mark.parametrize(
    ("first", "other", "why"),
    [
        ({"threads": 1}, {"threads": 2}, "threads: 1, 2"),
        ({"device": "cpu"}, {"device": "cuda"}, "device: cpu, cuda"),
        ({"versions": {"torch": "2.1"}}, {"versions": {"torch": "2.2"}}, "torch: 2.1, 2.2"),
        ({"threads": 1}, {"threads": 1}, None),
        ({}, {"threads": 2, "versions": [1]}, None),
    ],
)
def test_runs_of_another_arithmetic_are_not_called_exact(study: Built, first: Any, other: Any, why: str | None) -> None:
    for arm, about in (("baseline", first), ("controller", other)):
        path = study.run(arm, 1, 90.0) / "provenance.json"
        write_json(path, {**json.loads(path.read_bytes()), **about})
    report = build_report(study.close())
    assert report["exactness"] == (f"matched, not bit-exact ({why})" if why else "bit-exact")


def test_a_run_that_was_resumed_under_another_arithmetic_is_not_called_exact(study: Built) -> None:
    def more(log: EventLog) -> None:
        log.write("warning", 3, owner="engine", text="resumed", differs={"threads": [1, 2], "moon": [1, 2]})

    study.run("baseline", 1, 90.0)
    study.run("controller", 1, 90.5, more=more)
    report = build_report(study.close())
    assert report["exactness"] == "matched, not bit-exact (threads: 1, 2)"


def test_decisions_warnings_and_errors_are_told(study: Built) -> None:
    def more(log: EventLog) -> None:
        log.write("warning", 3, owner="engine", text="the disk is nearly full")
        log.write(
            "error", 4, kind="PluginError", text="division by zero", plugin="geometry", hook="extra_loss", phase="main"
        )

    study.run("baseline", 1, 90.0)
    study.run("controller", 1, 90.5, regimes=[(0, "S0_EXPLORE"), (3, "S1_BOUNDARY")], more=more)
    report = build_report(study.close())
    run = next(run for run in report["runs"] if run["arm"] == "controller")
    assert run["decisions"][0] == "epoch 0, step 0: phase_controller.regime = S0_EXPLORE"
    assert run["decisions"][1] == f"epoch 2, step {3 * STEPS}: phase_controller.regime = S1_BOUNDARY"
    assert run["decisions"][2].endswith("transition: Epoch 2: -> S1_BOUNDARY (dL=-0.1000)")
    assert run["warnings"] == ["engine: the disk is nearly full"]
    assert run["errors"] == ["PluginError: division by zero [plugin geometry, hook extra_loss, phase main]"]


def test_transfer_is_read_from_matrices_of_several_tasks(study: Built) -> None:
    for seed in (1, 2):
        folder = study.run("baseline", seed, 90.0, spec="phases: [{name: A, task: A}, {name: B, task: B}]\n")
        rows = [("start", 4.0, 4.0), ("A", 1.0, 3.5), ("B", 2.0 + seed, 1.0)]
        cells = [{"label": label, "values": {"A": a, "B": b}} for label, a, b in rows]
        write_json(folder / "matrix.json", {"tasks": ["A", "B"], "metric": "loss", "better": "lower", "rows": cells})
    told = build_report(study.close())["transfer"]
    found = {(row["kind"], row["task"], row["after"]): row["mean"] for row in told}
    assert found[("learning", "B", "B")] == 2.5 and found[("backward transfer", "A", "B")] == -2.5


# ------------------------------------------------------------------------------------------------ what is broken
def test_a_missing_and_a_broken_folder_are_named(drawn: None, study: Built) -> None:
    fill(study, GAINS[:3])
    study.runs.append({"name": "controller-s8", "arm": "controller", "seed": 8, "point": ""})
    broken = study.path / "controller-s2"
    (broken / "status.json").write_text('{"status": "fini')
    (broken / "provenance.json").unlink()
    (broken / "spec.yaml").write_text("a: &x [*x]\n")
    (broken / "events.jsonl").write_bytes(b"\x00garbage\n{}\n[1]\n" + (broken / "events.jsonl").read_bytes()[:-7])
    for path in (broken / "series").iterdir():
        path.write_bytes(path.read_bytes()[:21])
    (study.path / "leftover-s1").mkdir()
    report = build_report(study.close())
    said = "\n".join(report["problems"])
    for name in (
        "controller-s2: status.json",
        "controller-s2: provenance.json",
        "controller-s2: spec.yaml",
        "leftover-s1",
    ):
        assert name in said
    assert "1 of 7 runs have no folder: controller-s8" in said and only(report)["seeds"] == [1, 3]


@pytest.mark.parametrize(
    "text", [None, "", "[]", "{", '{"runs": [1, {"name": "../../etc", "seed": 1}], "arms": 3, "on": {}}']
)
def test_a_study_without_an_index_still_has_a_report(study: Built, text: str | None) -> None:
    fill(study, GAINS[:1])
    if text is not None:
        (study.path / "study.json").write_text(text)
    report = build_report(study.path)
    assert [run["name"] for run in report["runs"]] == ["baseline-s1", "controller-s1"] and report["problems"]
    assert "No contrast is named" in spoken(report)


def test_what_the_figures_draw_is_what_was_applied(study: Built) -> None:
    folder = study.run("controller", 1, 90.0, regimes=[(0, "S0_EXPLORE"), (3, "S1_BOUNDARY"), (6, "S2_AXIS_LOCK")])
    study.close()
    (run,) = read_study(folder.parent).runs
    assert watched_series([run]) == "phase_controller.deriv"
    drawn = trace(run, "val.loss", "phase_controller.deriv")
    # S2 was detected after the last of 6 epochs: it was never applied, so it is not shaded
    assert drawn.spans == [(0.0, 3.0, "S0_EXPLORE"), (3.0, 6.0, "S1_BOUNDARY")] and drawn.end == 6.0
    assert drawn.levels == [(-0.05, "S1 below"), (0.01, "S2 below")]
    assert drawn.metric.x.tolist() == [0, 1, 2, 3, 4, 5, 6] and drawn.metric.y[0] == 2.0
    assert drawn.epoch_loss.x.tolist() == [0.5, 1.5, 2.5, 3.5, 4.5, 5.5] and drawn.watched.x.tolist() == [
        1,
        2,
        3,
        4,
        5,
        6,
    ]
    assert drawn.lr.x[-1] == 6.0 and drawn.lr.y[0] == 0.01


def test_a_run_that_diverged_is_drawn(drawn: None, study: Built) -> None:
    for seed, worst in ((1, float("inf")), (2, float("nan"))):
        study.run("baseline", seed, 90.0, val=lambda e, worst=worst: worst if e > 2 else 1e300)  # type: ignore[misc]
        study.run("controller", seed, 90.0, status="failed", epochs=0)
    report = build_report(study.close())
    assert [figure["kind"] for figure in report["figures"]] == ["all", "seed", "seed"]


def test_a_long_series_is_thinned_without_hiding_a_nan() -> None:
    y = np.zeros(100_000)
    y[50_000] = np.nan
    line = thin(Line(np.arange(100_000.0), y))
    assert len(line.x) == 600 and int(np.isnan(line.y).sum()) == 1 and line.x[0] < 100 and line.x[-1] > 99_900


def test_a_band_needs_two_seeds_and_ends_with_them() -> None:
    long, short = Line(np.arange(4.0), np.ones(4)), Line(np.arange(2.0), np.array([1.0, 3.0]))
    x, mean, low, high = band([long, short])
    assert mean.tolist() == [1, 2, 1, 1] and low[1] < 2 < high[1] and (low[2], high[2]) == (1, 1)
    x, mean, *_ = band([long, short], held=True)
    assert mean[-1] == 1 and mean[0] == 1 and x[-1] == 3


def test_an_empty_study_has_a_report(tmp_path: Path) -> None:
    report = build_report(tmp_path)
    assert report["runs"] == [] and (tmp_path / "report.html").exists()


def test_an_unfinished_run_counts_as_no_value(study: Built) -> None:
    fill(study, GAINS[:2])
    study.run("baseline", 9, 90.0, status="live", epochs=2)
    study.run("controller", 9, 90.0)
    report = build_report(study.close())
    assert "baseline-s9 is live" in report["incomplete"][0]


# ------------------------------------------------------------------------------------------------ what is hostile
EVIL = "</td><script>alert(1)</script>`|[x](https://evil.example)\x1b]0;owned\x07\u202e$\\frac{1}{0}$<img src=https://evil.example/x>"


class Page(HTMLParser):
    """Collects the tags and the attributes of a page."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]


def hostile(study: Built) -> dict[str, Any]:
    def more(log: EventLog) -> None:
        log.write("warning", 1, owner=EVIL, text=EVIL)
        log.write("state", 0, owner=EVIL, name="regime", value=EVIL)
        log.write("mark", 2, owner=EVIL, name=EVIL, why=EVIL)
        log.write("level", 0, owner="train", series="loss", value=1.0, name=EVIL)
        log.write("level", 0, owner="train", series="loss", value=2.0, name="$\\frac$")
        log.write("error", 2, kind=EVIL, text=EVIL, plugin=EVIL, hook=None, phase=7)
        log.write("state", 0, owner=None, name=["regime"], value={"a": 1})
        log.write("epoch", 0, kind="epoch", evaluations=[1], train="x", advice=3, grad_accum="two")
        log.write("evaluation", 0, split="test", weights="selected", values=[])

    spec = 'plugins: {geometry: {note: "</script><b>|`"}}\n'
    study.arms, study.contrasts = [EVIL, "baseline"], [(EVIL, "baseline")]
    for seed in (1, 2):
        study.run("baseline", seed, 90.0)
        study.run("evil", seed, 91.0 + seed, error=EVIL, more=more, spec=spec, hashes={"weights": EVIL})
    for run in study.runs:
        run["arm"] = EVIL if run["arm"] == "evil" else run["arm"]
    return build_report(study.close(question=EVIL, study=EVIL, metrics={"test.accuracy": {"unit": EVIL, "better": 3}}))


def test_no_name_is_markup_in_html(drawn: None, study: Built) -> None:
    hostile(study)
    page = Page(text := (study.path / "report.html").read_text())
    assert "script" not in page.tags and "iframe" not in page.tags and "a" not in page.tags
    sources = [value for name, value in page.attributes if name in ("src", "href", "action", "srcset")]
    assert sources and all(value.startswith("data:image/png;base64,") for value in sources)
    assert not [name for name, _ in page.attributes if name.startswith("on")]
    assert "http://" not in text and not re.search(r"url\(|@import", text)
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e]", text)


def test_no_name_is_markup_in_markdown(study: Built) -> None:
    hostile(study)
    text = (study.path / "report.md").read_text()
    assert (
        "<script" not in text and "<img" not in text and not re.search(r"(?<!\\)\]\(https", text) and "\x1b" not in text
    )
    tables = [line for line in text.splitlines() if line.startswith("|")]
    for head, ruler, *_ in _blocks(tables):
        assert head.count("|") - head.count("\\|") == ruler.count("|")
    for block in _blocks(tables):
        assert len({line.count("|") - line.count("\\|") for line in block}) == 1


def _blocks(lines: list[str]) -> Iterator[list[str]]:
    starts = [i - 1 for i, line in enumerate(lines) if set(line) <= set("|-:")]
    for start, end in zip(starts, [*starts[1:], len(lines)], strict=True):
        yield lines[start:end]


@pytest.mark.parametrize(
    ("raw", "safe"),
    [("a|b", "a\\|b"), ("`x`", "\\`x\\`"), ("[a](b)", "\\[a\\](b)"), ("<b>&", "&lt;b&gt;&amp;"), ("# x", "\\# x"),
     ("1. x", "1\\. x"), ("- x", "\\- x"), ("a-b", "a-b"),
        ("0.25", "0.25"), ("a\nb", "a\\\\x0ab"), ("http://x", "http:&#47;&#47;x")],
)  # fmt: skip
def test_markdown_escapes(raw: str, safe: str) -> None:
    assert opening(raw) == safe


def test_no_name_drives_the_terminal(study: Built) -> None:
    report = hostile(study)
    out = StringIO()
    Console(file=out, width=80, color_system=None).print(render_tables(report))
    assert not re.search("[\x00-\x09\x0b-\x1f\x7f-\x9f\u202a-\u202e]", out.getvalue())
    assert "\\x1b]0;owned\\x07" in out.getvalue().replace("\n", "")
    bell = spoken(report)
    assert "\x07" not in bell and not re.search("\x1b[^\\[]", bell)


def test_the_terminal_keeps_to_eighty_columns(study: Built) -> None:
    fill(study)
    lines = Console(width=80).render_lines(render_tables(build_report(study.close())))
    text = ["".join(segment.text for segment in line).rstrip() for line in lines]
    assert max(map(len, text)) <= 80
    assert any(re.search(r"controller − baseline +6 +\+0\.467 +\[\+0\.37\d, \+0\.55\d\] ", line) for line in text)


def test_importing_the_report_loads_neither_torch_nor_matplotlib() -> None:
    import subprocess
    import sys

    code = "import sys, ctr.engine.report; print({'torch', 'scipy', 'matplotlib', 'rich'} & set(sys.modules))"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "set()"


def test_panels_of_plugins_stand_in_every_form_of_the_report_and_are_escaped(
    study: Built, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ctr.engine import panels

    def made(records: panels.Records) -> list[panels.Section]:
        return [
            panels.Section("Rows <b>", panels.Table(["a|b", "c"], [["<script>", 1.5], [None, 2]])),
            panels.Section("Words", panels.Text("one\n[two](x)")),
            panels.Section("Losses", panels.SeriesPlot(["train.loss", "none.such"])),
        ]

    def broken(records: panels.Records) -> list[panels.Section]:
        raise ValueError("no\x1b[2J")

    monkeypatch.setattr(panels, "installed", lambda: {"made": made, "worse": broken})
    fill(study)
    folder = study.close()
    report = build_report(folder)
    page, words = (folder / "report.html").read_text(), (folder / "report.md").read_text()
    assert "Rows &lt;b&gt;" in page and "&lt;script&gt;" in page and "<script" not in page and "<polyline" in page
    assert "The panel failed: ValueError: no\\x1b[2J" in page and "\x1b" not in page + words
    assert "Losses: train.loss: " in words and "[two](x)" not in words
    assert len(report["runs"][0]["panels"]) == 4
    before = (folder / "report.html").read_bytes()
    build_report(folder)
    assert (folder / "report.html").read_bytes() == before
