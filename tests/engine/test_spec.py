"""A study becomes runs: overlays keep places, references are checked, identities hold what decides the numbers."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from ctr.engine import criteria_spec, phases, spec, study_spec, train_spec, treatment
from ctr.engine.errors import SpecError
from ctr.engine.host import discover
from ctr.engine.overlay import merge, put, split_path, stack
from ctr.engine.points import point_name
from ctr.engine.spec import RunSpec, difference, json_schema, load_study
from ctr.engine.text import slug_problem
from ctr.engine.train_spec import AdamwSpec, SgdSpec, TrainSpec
from ctr.engine.yaml_reader import read, read_text

from .spec_fakes import STUDY, Fakes, Pictures, study

ROOT = Path(__file__).parents[2]
SHIPPED = sorted((ROOT / "specs").glob("*.yaml"))


def one(folder: Path, text: str = STUDY, *sets: str, arm: str = "treated", seed: int = 2) -> RunSpec:
    """Return the first run of an arm with a seed."""
    return next(run for run in study(folder, text, *sets).runs() if (run.arm, run.seed) == (arm, seed))


# ---------------------------------------------------------------------------------------------------- the whole
def test_a_study_expands_to_arms_by_seeds(tmp_path: Path) -> None:
    found = study(tmp_path)
    assert [run.name for run in found.runs()] == [f"{arm}-s{seed}" for arm in ("base", "treated") for seed in (1, 2, 3)]
    assert found.contrasts == (("treated", "base"),) and found.select.better == "lower"
    run = found.runs()[-1]
    assert run.plugins["scale"].by == 1.1 and run.model.width == 8 and run.tasks["main"].config.data.size == 5
    assert [(p.name, p.task, p.adapter, p.train.epochs) for p in run.phases] == [("main", "main", "fresh", 3)]
    assert found.index() == {
        "study": "toy", "question": "", "seeds": [1, 2, 3], "arms": ["base", "treated"],
        "points": [{"name": "", "values": {}}], "contrasts": [["treated", "base"]], "on": ["test.loss"],
        "select": {"on": "val.loss", "better": "lower"}, "determinism": "strict",
        "metrics": {"test.loss": {"unit": "", "better": "lower"}, "val.loss": {"unit": "", "better": "lower"}},
    }  # fmt: skip


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_shipped_specs_are_valid_and_open_with_question_minutes_and_no(path: Path) -> None:
    found = load_study(path, (), discover())
    assert found.study == path.stem and found.question and {run.seed for run in found.runs()} == set(found.seeds)
    comments = [line for line in path.read_text(encoding="utf-8").split("\n\n")[0].split("\n") if line.startswith("#")]
    for word in ("Question", "Minutes", 'A "no"'):
        assert any(line.startswith(f"# {word}") for line in comments), word


def test_the_commit_regimes_spec_is_the_sources_setting() -> None:
    found = load_study(ROOT / "specs" / "commit_regimes_cifar10.yaml", (), discover())
    runs = {run.arm: run for run in found.runs()}
    train = runs["baseline"].phases[0].train
    assert found.seeds[:1] == (42,) and {42, 137, 2024} <= set(found.seeds) and runs["baseline"].model.width == 32
    assert isinstance(train.optimizer, SgdSpec) and train.optimizer.momentum == 0.9 and not train.optimizer.nesterov
    assert (train.epochs, train.micro_batch, train.optimizer.base_lr, train.optimizer.weight_decay) == (
        30,
        128,
        0.01,
        5e-4,
    )
    assert (train.schedule.kind, train.schedule.warmup_epochs, train.schedule.per) == ("cosine", 2, "epoch")
    assert runs["replay"].refs() == {"replay_rates": ("controller", "next")}


def test_reading_a_study_loads_no_torch() -> None:
    code = (
        "import sys; from pathlib import Path; from ctr.engine.spec import load_study, json_schema; "
        f"load_study(Path({str(SHIPPED[0])!r})); json_schema(); assert not {{'torch', 'scipy'}} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


# ----------------------------------------------------------------------------------------------------- overlays
def merged(base: str, over: str) -> Any:
    return merge(read_text(base, "base"), read_text(over, "over"))


def test_mappings_merge_lists_and_scalars_replace_null_removes() -> None:
    found = merged("{a: {b: 1, c: [1, 2]}, d: 3, e: {f: 1}}", "{a: {c: [3], g: {h: null, i: 1}}, d: null, e: 5}")
    assert found.data == {"a": {"b": 1, "c": [3], "g": {"i": 1}}, "e": 5}
    assert set(found.removed) == {"d"} and set(found.mapping["a"].mapping["g"].removed) == {"h"}


def test_another_kind_replaces_its_mapping_and_the_same_kind_merges() -> None:
    base = "{o: {kind: sgd, momentum: 0.9, base_lr: 1}}"
    assert merged(base, "{o: {kind: adam, base_lr: 2}}").data == {"o": {"kind": "adam", "base_lr": 2}}
    assert merged(base, "{o: {kind: sgd, base_lr: 2}}").data == {"o": {"kind": "sgd", "momentum": 0.9, "base_lr": 2}}
    assert merged(base, "{o: {base_lr: 2}}").data == {"o": {"kind": "sgd", "momentum": 0.9, "base_lr": 2}}


def test_another_source_of_data_replaces_its_settings_and_an_ordinary_source_does_not() -> None:
    base = read_text("data: {source: cifar10, root: data}\nplugins: {p: {source: a, scale: 2}}\n", "a.yaml")
    over = read_text("data: {source: npz, path: x}\nplugins: {p: {source: b}}\n", "b.yaml")
    merged = merge(base, over).data
    assert merged == {"data": {"source": "npz", "path": "x"}, "plugins": {"p": {"source": "b", "scale": 2}}}


def test_every_value_keeps_the_place_it_came_from() -> None:
    found = merged("a:\n  b: 1\n  c: 2\n", "a:\n\n  c: 3\n  d: 4\n").mapping["a"].mapping
    assert [(n.place.file, n.place.line) for n in found.values()] == [("base", 2), ("over", 3), ("over", 4)]


def test_merging_is_like_one_overlay_after_the_other() -> None:
    base, first, second = "{a: {b: 1, c: 2, d: 3}}", "{a: {b: 5, c: null}}", "{a: {c: 7, d: null, e: {f: 1}}}"
    nodes = [read_text(text, "x") for text in (base, first, second)]
    together = merge(nodes[0], stack(nodes[1], nodes[2]))
    assert merge(merge(nodes[0], nodes[1]), nodes[2]).data == together.data == {"a": {"b": 5, "c": 7, "e": {"f": 1}}}


def test_dotted_keys_find_names_with_dots() -> None:
    root = read_text("{arms: {v1.0: {train: {}}, v1: {}}, phases: [{train: {}}]}", "x")
    assert split_path(root, "arms.v1.0.train.epochs") == ["arms", "v1.0", "train", "epochs"]
    assert split_path(root, "arms.v1.train") == ["arms", "v1", "train"]
    assert split_path(root, "phases.0.train.a.b") == ["phases", "0", "train", "a", "b"]


def test_a_number_picks_an_item_of_a_list() -> None:
    root = read_text("{phases: [{task: a, train: {x: 1}}, {task: b}]}", "x")
    over = put(None, root, ["phases", "0", "train", "y"], read_text("2", "y"))
    over = put(over, root, ["phases", "1", "task"], read_text("c", "y"))
    assert merge(root, over).data == {"phases": [{"task": "a", "train": {"x": 1, "y": 2}}, {"task": "c"}]}


def test_sets_lie_over_the_file_in_any_order(tmp_path: Path) -> None:
    sets = ["train.optimizer.base_lr=1e-3", "train.optimizer.kind=adamw", "task.data.size=7", "question=a: b"]
    for order in (sets[:3], sets[2::-1]):
        run = one(tmp_path, STUDY, *order)
        optimizer = run.phases[0].train.optimizer
        assert isinstance(optimizer, AdamwSpec) and optimizer.base_lr == 1e-3
        assert run.tasks["main"].config.data.size == 7
    assert one(tmp_path, STUDY, "question='a: b'").question == "a: b"
    assert one(tmp_path, STUDY, "train.epochs=4", "train.epochs=5").phases[0].train.epochs == 5
    assert one(tmp_path, STUDY, "train.optimizer.base_lr=").phases[0].train.optimizer.base_lr is None
    assert one(tmp_path, STUDY, "arms.treated.plugins.scale.by=2").plugins["scale"].by == 2
    assert study(tmp_path, STUDY, "arms.base=null").arms == ("treated",)
    assert one(tmp_path, STUDY, "arms.treated.task.data.size=9").tasks["main"].config.data.size == 9


def test_an_arm_overlays_and_removes(tmp_path: Path) -> None:
    text = STUDY.replace("base_lr: 0.1}", "base_lr: 0.1, momentum: 0.9}\n  clip_norm: 1")
    text = text.replace("{plugins: {scale: {by: 1.1}}}", "{train: {clip_norm: null, optimizer: {base_lr: 0.2}}}")
    treated, base = one(tmp_path, text).phases[0].train, one(tmp_path, text, arm="base").phases[0].train
    assert (treated.clip_norm, treated.optimizer.base_lr, base.clip_norm, base.optimizer.base_lr) == (None, 0.2, 1, 0.1)
    assert isinstance(treated.optimizer, SgdSpec) and treated.optimizer.momentum == 0.9


def test_plugins_at_the_top_act_in_every_arm_and_an_arm_can_remove_one(tmp_path: Path) -> None:
    text = STUDY.replace("arms:\n", "plugins: {scale: {by: 3}}\narms:\n  without: {plugins: {scale: null}}\n")
    got = {run.arm: {name: config.by for name, config in run.plugins.items()} for run in study(tmp_path, text).runs()}
    assert got == {"without": {}, "base": {"scale": 3}, "treated": {"scale": 1.1}}


def test_what_may_be_null_is_null_by_default() -> None:
    """Null removes, and what is removed is the default: a null that is not the default could not be said."""
    for model in models():
        for name, field in model.model_fields.items():
            if type(None) in getattr(field.annotation, "__args__", ()):
                assert field.default is None, f"{model.__name__}.{name}"


# ------------------------------------------------------------------------------------------------------ extends
def test_a_study_extends_another(tmp_path: Path) -> None:
    (tmp_path / "base").mkdir()
    (tmp_path / "base" / "b.yaml").write_text(STUDY)
    over = (
        "extends: base/b.yaml\nstudy: over\ntask: {data: {size: 6}}\narms: {base: null, more: {train: {epochs: 9}}}\n"
    )
    found = study(tmp_path, over)
    assert (found.study, found.arms, found.seeds) == ("over", ("treated", "more"), (1, 2, 3))
    assert found.runs()[0].tasks["main"].config.data.size == 6 and found.runs()[-1].phases[0].train.epochs == 9
    again = study(tmp_path, found.text(), name="flat.yaml")
    assert [run.document() for run in again.runs()] == [run.document() for run in found.runs()]


def test_a_null_inside_an_arm_is_the_arms_own_wherever_it_is_written(tmp_path: Path) -> None:
    (tmp_path / "b.yaml").write_text(STUDY.replace("epochs: 3", "epochs: 3\n  clip_norm: 2"))
    over = "extends: b.yaml\narms: {treated: {train: {clip_norm: null}}, new: {train: {clip_norm: null}}}\n"
    clips = {run.arm: run.phases[0].train.clip_norm for run in study(tmp_path, over).runs()}
    assert clips == {"base": 2, "treated": None, "new": None}
    assert one(tmp_path, "extends: b.yaml\n", "arms.treated.train.clip_norm=null").phases[0].train.clip_norm is None


# ----------------------------------------------------------------------------------------------- phases and tasks
TWO = STUDY.replace("task: {kind: pictures, data: {source: noise, size: 5}}", "{tasks}").replace(
    "arms:\n", "phases: {phases}\narms:\n"
)


def test_an_adapter_is_trained_only_where_there_is_one(tmp_path: Path) -> None:
    text = TWO.replace("{tasks}", "task: {kind: words, length: 2}").replace(
        "{phases}", "[{task: main, trains: adapter}]"
    )
    with pytest.raises(SpecError, match=r"phases\[0\].trains: the run has no adapter; use all"):
        study(tmp_path, text.replace("{kind: net, width: 8}", "{size: 1}"))


def test_an_adapter_is_refused_where_the_models_of_a_task_take_none(tmp_path: Path) -> None:
    text = "adapter: {rank: 2}\n" + TWO.replace("{tasks}", "task: {kind: words, length: 2}").replace(
        "phases: {phases}\n", ""
    )
    with pytest.raises(SpecError, match=r"1:1: adapter: the models of this task take no adapter; remove it"):
        study(tmp_path, text.replace("{kind: net, width: 8}", "{size: 1}"))


def test_with_an_adapter_phases_train_it_unless_they_say_all(tmp_path: Path) -> None:
    tasks = "tasks: {A: {kind: pictures, data: {source: noise, size: 1}}, B: {kind: words, length: 2}}"
    listed = "[{task: A, trains: all, plugins: none, seed: 0}, {task: B}, {task: A, adapter: continued}]"
    text = "adapter: {rank: 2}\n" + TWO.replace("{tasks}", tasks)
    run = one(tmp_path, text.replace("{phases}", listed))
    assert [(p.trains, p.plugins, p.seed) for p in run.phases] == [
        ("all", "none", 0),
        ("adapter", "all", None),
        ("adapter", "all", None),
    ]
    assert run.adapter.rank == 2
    early = "[{task: A, trains: all}, {task: B, adapter: continued}]"
    with pytest.raises(SpecError, match=r"phases\[1\].adapter: no phase before this one has an adapter to go on with"):
        study(tmp_path, text.replace("{phases}", early))


def test_phases_overlay_the_training_and_are_named_after_their_tasks(tmp_path: Path) -> None:
    tasks = "tasks: {A: {kind: pictures, data: {source: noise, size: 1}}, B: {kind: words, length: 2}}"
    listed = "[{task: A}, {task: B, train: {epochs: 7}, adapter: continued, moments: keep}, {task: A, trains: adapter}]"
    run = one(tmp_path, "adapter: {rank: 2}\n" + TWO.replace("{tasks}", tasks).replace("{phases}", listed))
    assert [(p.name, p.train.epochs, p.moments) for p in run.phases] == [
        ("A", 3, "clear"),
        ("B", 7, "keep"),
        ("A-2", 3, "clear"),
    ]
    assert list(run.tasks) == ["A", "B"] and run.tasks["B"].config.length == 2
    assert {p.train.micro_batch for p in run.phases} == {16} and run.phases[2].trains == "adapter"


def test_contrasts_are_on_metrics_of_the_last_phase_and_selection_on_those_of_every_task(tmp_path: Path) -> None:
    tasks = "tasks: {A: {kind: pictures, data: {source: noise, size: 1}}, B: {kind: words, length: 2}}"
    text = TWO.replace("{tasks}", tasks).replace("{phases}", "[{task: A}, {task: B}]")
    known = "test.loss, test.perplexity, val.loss, val.perplexity"
    with pytest.raises(SpecError, match=f'"test.accuracy": no such metric; metrics: {known}'):
        study(tmp_path, text + "compare: {on: [test.accuracy]}\n")
    assert "test.perplexity" in study(tmp_path, text + "compare: {on: [test.perplexity]}\n").metrics
    with pytest.raises(SpecError, match='"val.perplexity": no such metric; metrics: calibration.loss, val.loss'):
        study(tmp_path, text + "compare: {on: [test.loss], select: {on: val.perplexity}}\n")
    assert study(tmp_path, STUDY + "compare: {on: [test.accuracy]}\n").metrics["test.accuracy"]["better"] == "higher"


def test_phases_may_fill_in_what_the_study_leaves_open(tmp_path: Path) -> None:
    text = STUDY.replace("  epochs: 3\n", "").replace("arms:\n", "phases: [{task: main, train: {epochs: 4}}]\narms:\n")
    assert one(tmp_path, text).phases[0].train.epochs == 4


# -------------------------------------------------------------------------------------------------------- sweeps
def test_sweeps_make_points_of_every_arm_or_of_one(tmp_path: Path) -> None:
    text = STUDY.replace(
        "{plugins: {scale: {by: 1.1}}}", "{plugins: {scale: {by: 1.1}}, sweep: {plugins.scale.by: [2, 3]}}"
    )
    text = text.replace("arms:\n", "sweep: {train.optimizer.base_lr: [0.01, 2e-2], task.data.size: [1, 2]}\narms:\n")
    found = study(tmp_path, text)
    assert len(found.treatments) == 4 + 8 and len(found.runs()) == 36
    assert [point["name"] for point in found.index()["points"]][:3] == [
        "base_lr-0.01_size-1", "base_lr-0.01_size-2", "base_lr-0.02_size-1"
    ]  # fmt: skip
    run = found.runs()[-1]
    assert run.name == "treated-s3-base_lr-0.02_size-2_by-3" and run.plugins["scale"].by == 3
    assert run.point == {"train.optimizer.base_lr": 0.02, "task.data.size": 2, "plugins.scale.by": 3}
    assert run.phases[0].train.optimizer.base_lr == 0.02 and run.tasks["main"].config.data.size == 2
    assert len({run.name for run in found.runs()}) == 36


def test_a_swept_kind_replaces_and_a_swept_null_removes(tmp_path: Path) -> None:
    text = STUDY.replace(
        "arms:\n", "sweep: {train.optimizer: [{kind: adam}, {base_lr: 1}], train.clip_norm: [null, 1]}\narms:\n"
    )
    runs = [run for run in study(tmp_path, text).runs() if run.arm == "base" and run.seed == 1]
    got = [
        (r.phases[0].train.optimizer.kind, r.phases[0].train.optimizer.base_lr, r.phases[0].train.clip_norm)
        for r in runs
    ]
    assert got == [("adam", None, None), ("adam", None, 1), ("sgd", 1, None), ("sgd", 1, 1)]
    assert [run.point_name for run in runs[:2]] == ["optimizer-adam_clip_norm-none", "optimizer-adam_clip_norm-1"]


@pytest.mark.parametrize(
    ("values", "name"),
    [
        ({}, ""),
        ({"train.optimizer.base_lr": 1e-05}, "base_lr-1e-05"),
        ({"a.x": 1, "b.x": True}, "a.x-1_b.x-true"),
        ({"a": None}, "a-none"),
        ({"a": -0.5}, "a--0.5"),
        ({"a": {"kind": "cosine"}}, "a-cosine"),
    ],
)
def test_point_names(values: Mapping[str, Any], name: str) -> None:
    assert point_name(values) == name


@pytest.mark.parametrize(
    "value", ["../../x", "[/]", "", "é" * 300, "\x1b[31m", "a..b", ".", "con", [1, [2]], {"kind": "/"}]
)
def test_a_point_name_is_a_slug_whatever_is_swept(value: Any) -> None:
    assert slug_problem(point_name({"a.b": value})) is None
    assert slug_problem(point_name({"plugins.x/y": value, f"a.{value}": 1})) is None
    assert point_name({"a": value}) != point_name({"a": [value]})


def test_point_names_of_different_texts_differ() -> None:
    assert len({point_name({"a": text}) for text in ("x y", "x-y", "x/y", "x  y", "X y")}) == 5


def test_an_arm_at_a_point_may_read_an_arm_without_points(tmp_path: Path) -> None:
    text = STUDY.replace(
        "{plugins: {scale: {by: 1.1}}}", "{plugins: {replay: {arm: base}}, sweep: {train.epochs: [1]}}"
    )
    assert one(tmp_path, text).refs() == {"replay": ("base", "same")}


# --------------------------------------------------------------------------------------------- documents, identity
RICH = STUDY.replace(
    "arms:\n", "sweep: {train.clip_norm: [0.5]}\nplugins: {sloppy: {number: [1, 2]}}\narms:\n"
).replace("by: 1.1}", "by: 1.1}, replay: {arm: base, seed: next}")


def test_a_run_is_read_back_from_its_yaml(tmp_path: Path) -> None:
    run = one(tmp_path, RICH + "  third: {train: {reset_at: [epoch, {steps: 5}]}}\n", arm="third")
    (tmp_path / "spec.yaml").write_text(run.text())
    for document in (read(tmp_path / "spec.yaml"), run.document(), json.loads(json.dumps(run.document()))):
        again = RunSpec.from_document(document, Fakes())
        assert again == run and again.name == "third-s2-clip_norm-0.5"
        assert again.phases[0].train.reset_at == ("epoch", train_spec.EverySteps(steps=5))


def test_a_document_that_is_not_a_run_is_refused(tmp_path: Path) -> None:
    document = one(tmp_path).document()
    document["phases"][0]["train"]["epochs"] = 0
    del document["seed"]
    with pytest.raises(SpecError) as found:
        RunSpec.from_document(document, Fakes())
    assert [problem.path for problem in found.value.problems] == ["phases[0].train.epochs", "seed"]


def test_references(tmp_path: Path) -> None:
    run = one(tmp_path, RICH)
    assert run.refs() == {"replay": ("base", "next")}
    settled = run.with_ref("replay", 3)
    assert settled.refs() == {"replay": ("base", 3)} and run.refs() == {"replay": ("base", "next")}
    assert settled.document()["plugins"]["replay"] == {"arm": "base", "seed": 3}


def identity(run: RunSpec, data: str = "d", device: str = "cpu", refs: Mapping[str, str] | None = None) -> str:
    return run.identity({"train": data}, device, refs or {})


SAME = [
    ("study: toy", "study: other"), ("study: toy", "study: toy\nquestion: why"), ("[1, 2, 3]", "[5, 2]"),
    ("  treated:", "  renamed:"), ("arms:\n", "log: {steps: 3}\ncheckpoint: {keep: 9}\narms:\n"),
    ("arms:\n", "compare: {contrasts: [base - treated], on: [val.loss]}\narms:\n"),
    ("arms:\n", "criteria: {cheap: {metric: val.loss, worse_by_at_most: 10 %}}\narms:\n"),
    ("epochs: 3", "epochs: 3\n  threads: 7"), ("epochs: 3", "epochs: 3\n  device: cpu"),
    ("epochs: 3", "epochs: 3\n  grad_accum: 1"), ("  base: {}\n", "  base: {}\n  c: {}\n"),
]  # fmt: skip
OTHER = [
    ("width: 8", "width: 9"), ("size: 5", "size: 6"), ("epochs: 3", "epochs: 4"), ("base_lr: 0.1", "base_lr: 0.2"),
    ("by: 1.1", "by: 1.2"), ("epochs: 3", "epochs: 3\n  determinism: fast"), ("{scale: {by: 1.1}}", "{}"),
    ("arms:\n", "compare: {select: {on: val.accuracy}}\narms:\n"), ("16", "8"),
]  # fmt: skip


def test_identity_holds_what_decides_the_numbers_and_nothing_else(tmp_path: Path) -> None:
    run = one(tmp_path)
    for old, new in SAME:
        text = STUDY.replace(old, new)
        arm = "renamed" if "renamed" in new else "treated"
        assert identity(one(tmp_path, text, arm=arm)) == identity(run), new
    others = {identity(one(tmp_path, STUDY.replace(old, new))) for old, new in OTHER}
    assert (
        len(others | {identity(run), identity(one(tmp_path, seed=1)), identity(one(tmp_path, arm="base"))})
        == len(OTHER) + 2
    )
    assert len({identity(run), identity(run, data="e"), identity(run, device="cuda")}) == 3


def test_identity_of_a_reference_is_the_run_it_reads(tmp_path: Path) -> None:
    text = STUDY.replace("scale: {by: 1.1}", "replay: {arm: base}")
    renamed = text.replace("base: {}", "other: {}").replace("arm: base", "arm: other")
    run, same = one(tmp_path, text), one(tmp_path, renamed)
    assert identity(run, refs={"replay": "abc"}) == identity(same, refs={"replay": "abc"})
    assert identity(run, refs={"replay": "abc"}) != identity(run, refs={"replay": "abd"})


def test_difference_names_each_value() -> None:
    old = {"a": {"b": 1, "c": [1, 2]}, "d": {}, "same": 1}
    assert difference(old, {"a": {"b": 2, "c": [1]}, "e": "\x1b", "same": 1}) == [
        "a.b: 1 → 2", "a.c[1]: 2 → (absent)", "d: an empty mapping → (absent)", 'e: (absent) → "\\x1b"'
    ]  # fmt: skip


# -------------------------------------------------------------------------------------------------------- schema
def fits(value: Any, schema: Mapping[str, Any], whole: Mapping[str, Any]) -> bool:
    """Check a value against the part of JSON schema that the study's uses."""
    if "$ref" in schema:
        assert schema["$ref"].startswith("#/$defs/")
        if not fits(value, whole["$defs"][schema["$ref"][len("#/$defs/") :]], whole):
            return False
    kinds = {"object": dict, "array": list, "string": str, "boolean": bool, "null": type(None), "integer": int}
    kind = schema.get("type")
    if kind == "number":
        if not isinstance(value, int | float) or isinstance(value, bool):
            return False
    elif kind and (not isinstance(value, kinds[kind]) or (kind == "integer" and isinstance(value, bool))):
        return False
    if "anyOf" in schema and not any(fits(value, branch, whole) for branch in schema["anyOf"]):
        return False
    if ("const" in schema and value != schema["const"]) or ("enum" in schema and value not in schema["enum"]):
        return False
    if isinstance(value, int | float) and not schema.get("minimum", value) <= value <= schema.get("maximum", value):
        return False
    if isinstance(value, dict):
        if not set(schema.get("required", ())) <= set(value):
            return False
        more = schema.get("additionalProperties", True)
        rows = [(entry, schema.get("properties", {}).get(key, more)) for key, entry in value.items()]
        return all(part is True or (part is not False and fits(entry, part, whole)) for entry, part in rows)
    if isinstance(value, list):
        first = schema.get("prefixItems", [])
        return all(fits(v, first[i] if i < len(first) else schema.get("items", {}), whole) for i, v in enumerate(value))
    return True


def references(schema: Any) -> Iterator[str]:
    for key, value in (
        schema.items() if isinstance(schema, dict) else enumerate(schema) if isinstance(schema, list) else ()
    ):
        yield from [value] if key == "$ref" else references(value)


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_shipped_specs_fit_the_schema(path: Path) -> None:
    whole = json_schema(discover())
    assert fits(read(path).data, whole, whole)


def test_the_schema_knows_what_is_installed() -> None:
    whole = json_schema(Fakes())
    assert {reference[len("#/$defs/") :] for reference in references(whole)} <= set(whole["$defs"])
    json.dumps(whole, allow_nan=False)
    base = read_text(STUDY, "x").data
    for good in (
        {}, {"sweep": {"train.epochs": [1]}}, {"arms": {"a": {"train": {"clip_norm": None, "epochs": None}}}},
        {"arms": {"a": {"plugins": {"scale": None, "bare": {}}}}},
        {"arms": {"a": {"train": {"optimizer": {"base_lr": 2}}}}},
        {"phases": [{"task": "main", "train": {"epochs": 3}}]}, {"plugins": {"replay": {"arm": "a", "seed": 3}}},
        {"arms": {"a": {"task": {"data": {"size": 3}}, "model": {"width": 1}}}},
        {"criteria": {"a": {"metric": "val.loss", "better_by": "10 %", "provided": [{"metric": "x", "within": 2}]}}},
    ):  # fmt: skip
        assert fits({**base, **good}, whole, whole), good
    for bad in (
        {"x": 1}, {"plugins": {"scal": {}}}, {"plugins": {"scale": {"to": 1}}}, {"seeds": "x"}, {"seeds": [-1]},
        {"criteria": {"a": {"metric": "val.loss", "beter_by": 1}}}, {"criteria": {"a": {"metric": "x", "within": -1}}},
        {"model": {"kind": "x"}}, {"task": {"kind": "x"}}, {"task": {"kind": "words", "data": {}}},
        {"arms": {"a": {"seeds": [1]}}},
        {"arms": {"a": {"train": {"device": "cpu"}}}}, {"train": {"optimizer": {"kind": "sgd", "betas": [0, 0]}}},
        {"arms": {"a": {"train": {"epochs": 0}}}}, {"phases": [{"train": {"epoch": 3}}]}, {"sweep": {"a": 1}},
    ):  # fmt: skip
        assert not fits({**base, **bad}, whole, whole), bad
    assert not fits({"seeds": [1]}, whole, whole) and fits({"extends": "x.yaml"}, whole, whole)


def test_definitions_of_the_same_name_do_not_collide() -> None:
    whole = json_schema(Fakes())["$defs"]
    assert whole["task:words"]["properties"].keys() == {"kind", "length"}
    assert whole["task:pictures:Noise"]["properties"].keys() == {"source", "size"}
    assert "by" in whole["plugin:scale"]["properties"] and "arm" in whole["plugin:replay"]["properties"]


# -------------------------------------------------------------------------------------------- every field is read
def models() -> list[type[BaseModel]]:
    """Return the models of the spec, those of other modules apart."""
    modules = (criteria_spec, phases, train_spec, study_spec, treatment, spec)
    found = {value for module in modules for value in vars(module).values() if isinstance(value, type)}
    ours = {m.__name__ for m in modules}
    return sorted((m for m in found if issubclass(m, BaseModel) and m.__module__ in ours), key=lambda m: m.__name__)


def names_read() -> set[str]:
    """Return every attribute that is read, and every name taken from a mapping, in the engine and the plugins."""
    found: set[str] = set()
    for path in [*(ROOT / "engine").rglob("*.py"), *(ROOT / "plugins").rglob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load):
                found.add(node.attr)
            elif isinstance(node, ast.Subscript) and isinstance(node.slice, ast.Constant):
                found.add(str(node.slice.value))
            elif isinstance(node, ast.Call) and getattr(node.func, "attr", "") == "get" and node.args:
                found.add(str(getattr(node.args[0], "value", "")))
    return found


PASSED_ON_WHOLE = {"momentum", "dampening", "nesterov", "betas", "eps", "weight_decay"}  # to torch, by model_dump


def test_every_field_of_every_model_is_read_somewhere() -> None:
    fields = {name for model in models() for name in model.model_fields}
    assert len(models()) > 20 and {"epochs", "seeds", "question"} <= fields
    assert fields - names_read() - PASSED_ON_WHOLE == set()


def test_every_setting_says_what_it_does_and_every_number_is_bounded() -> None:
    for model in models():
        if issubclass(model, train_spec.Resolved):
            continue
        for name, about in model.model_json_schema()["properties"].items():
            assert name == "kind" or len(about.get("description", "")) > 10, f"{model.__name__}.{name}"
            for branch in (about, *about.get("anyOf", ()), *about.get("prefixItems", ()), about.get("items", {})):
                if branch.get("type") in ("integer", "number"):
                    low, high = (
                        branch.keys() & {"minimum", "exclusiveMinimum"},
                        branch.keys() & {"maximum", "exclusiveMaximum"},
                    )
                    assert low and high, f"{model.__name__}.{name} is not bounded"


def test_settings_are_frozen() -> None:
    train = TrainSpec.model_validate({"epochs": 1, "micro_batch": 1, "optimizer": {"kind": "sgd"}})
    with pytest.raises(ValueError, match="frozen"):
        train.epochs = 2  # type: ignore[misc]


def test_selection_on_a_split_that_the_settings_leave_out_is_refused_at_its_place(study: Any) -> None:
    text = r"tried.yaml:16:79: compare.select.on: in arm baseline, task main as it is set has no calibration split; "
    on = {"on: [test.accuracy]}": "on: [test.accuracy], select: {on: calibration.loss}}"}
    with pytest.raises(SpecError, match=text + "it has test, val"):
        load_study(study(on))
    kept = {"data: {source: digits}": "data: {source: digits, calibration_fraction: 0.1}"}
    assert load_study(study({**on, **kept})).select.on == "calibration.loss"


def test_what_a_task_evaluates_on_may_differ_by_arm_and_a_class_need_not_tell(tmp_path: Path) -> None:
    class Told(Pictures):
        @classmethod
        def splits(cls, config: Any) -> set[str]:
            return {"val", "calibration"} if config.crop else {"val"}

    path = tmp_path / "x.yaml"
    path.write_text(
        STUDY.replace("base: {}", "base: {task: {crop: 1}}")
        + "compare: {select: {on: calibration.loss}, on: [val.loss]}\n"
    )
    told = Fakes(tasks={"pictures": Told})
    with pytest.raises(
        SpecError, match=r"12:24: compare.select.on: in arm treated, task main .* no calibration split; it has val"
    ):
        load_study(path, (), told)
    assert load_study(path, ["task.crop=1"], told).select.on == load_study(path, (), Fakes()).select.on
    with pytest.raises(SpecError, match=r"compare.on\[0\]: in arm base, task main as it is set has no test split"):
        load_study(path, ["task.crop=1", "compare.on=[test.loss]"], told)
