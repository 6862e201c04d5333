"""The plugin in whole runs: what it asks for, adds, logs and leaves alone; and the errors of its settings."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from ctr.engine.errors import PluginError
from ctr.engine.events import Forward
from ctr.engine.events_log import read_events
from ctr.engine.host import implementations
from ctr.engine.matrix import Matrix
from ctr.engine.seeding import mix, stream
from ctr.engine.series import read_series, series_index
from ctr.plugins.geometry import Geometry
from ctr.plugins.geometry.metrics import effective_rank, spectrum
from ctr.plugins.geometry.terms import gossip, gossip_of_source, repulsion, sparsity
from tests.engine.tiny import Tiny, bits, finish, make, train_spec
from tests.plugins.test_geometry_standin import Text

torch.set_num_threads(1)
SEED = 3
OFF: dict[str, Any] = {"metrics": {"hidden": [], "shares": False}}
EVERY: dict[str, Any] = {"metrics": {"hidden": [-1, 1], "attention": [0, 1], "branches": True}}
ACTIVE: dict[str, Any] = {
    "diversity": {"weight": 0.3, "layers": [0, 1]},
    "repulsion": {"weight": 0.5, "sample": 8, "schedule": {"kind": "warmup", "warmup": 3}},
    "sparsity": {"weight": 0.1, "layer": 1},
    "gossip": {"weight": 2.0, "tau": 0.1, "sample": 7, "peers": 3},
    "branch_repulsion": {"weight": 0.2},
    "load_balance": {"weight": 5.0, "schedule": {"kind": "cosine", "per": "step", "until": 11}},
    "inhibition": {"weight": 0.4},
    **EVERY,
}
TERMS = [name for name in ACTIVE if name != "metrics"]


def plugin(settings: dict[str, Any]) -> Geometry:
    generator = torch.Generator().manual_seed(mix(stream(SEED, "plugin:geometry")))
    return Geometry(Geometry.Config.model_validate(settings), generator)


def run(folder: Path, settings: dict[str, Any] | None, task: Text | None = None, **more: Any) -> Any:
    """Make a run of the stand-in, with what the plugin needs asked of it as a real run would."""
    plugins = {} if settings is None else {"geometry": plugin(settings)}
    kernel = make(folder, plugins, task=task or Text(SEED), seed=SEED, **{"epochs": 3, **more})
    if settings is not None:
        kernel.needs = Geometry.needs(plugins["geometry"].config)
    return kernel


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    return bits(finish(run(tmp_path_factory.mktemp("plain"), None)))


# ---------------------------------------------------------------------------------------------- neutrality, needs
def test_it_is_hosted_with_two_hooks() -> None:
    assert set(implementations(Geometry)) == {"extra_loss", "on_epoch_end"}


@pytest.mark.parametrize("settings", [{}, OFF, EVERY], ids=["default", "off", "measuring"])
def test_without_weight_it_asks_for_nothing_and_changes_no_bit(
    settings: dict[str, Any], plain: dict[str, bytes], tmp_path: Path
) -> None:
    assert Geometry.needs(Geometry.Config.model_validate(settings)) == {}
    task = Text(SEED)
    assert bits(finish(run(tmp_path, settings, task))) == plain
    assert not any(key.startswith("geometry.term") for key in series_index(tmp_path))
    measured = sum(1 for asked in task.asked if asked)
    assert measured == (0 if settings is OFF else 4 * 2)  # at the start and after 3 epochs, 2 batches of the probe each


@pytest.mark.parametrize("term", TERMS)
def test_each_term_alone_acts_and_asks_for_its_layers_only(term: str, plain: dict[str, bytes], tmp_path: Path) -> None:
    task, settings = Text(SEED), {term: ACTIVE[term], **OFF}
    wanted = {
        "diversity": {"attention": {0, 1}}, "repulsion": {"hidden": {-1}}, "sparsity": {"hidden": {1}},
        "gossip": {"hidden": {-1}},
    }.get(term, {"branches": {-1}})  # fmt: skip
    assert bits(finish(run(tmp_path, settings, task))) != plain
    assert [asked for asked in task.asked if asked] == [wanted] * len(task.asked)
    assert [k for k in series_index(tmp_path) if ".term." in k] == [f"geometry.term.{term}"]


def test_needs_of_several_terms_are_united() -> None:
    config = Geometry.Config.model_validate({**ACTIVE, "gossip": {"weight": 1, "layer": 4}, "repulsion": {"layer": 9}})
    assert Geometry.needs(config) == {"hidden": {1, 4}, "attention": {0, 1}, "branches": {-1}}


def test_terms_leave_the_global_stream_alone(tmp_path: Path) -> None:
    """Otherwise dropout would differ between arms from the second step on, and seeds would be pairs in name only."""
    kernel = run(tmp_path, ACTIVE)
    ask, states = kernel.hooks.extra_loss, []

    def asked(forward: Any) -> Any:
        before = torch.default_generator.get_state()
        terms = ask(forward=forward)
        states.append(torch.equal(before, torch.default_generator.get_state()))
        return terms

    kernel.hooks.extra_loss = asked
    finish(kernel)
    assert len(states) == 18 and all(states)


# ---------------------------------------------------------------------------------------------- own generators
def values(folder: Path, term: str) -> list[float]:
    return read_series(folder, f"geometry.term.{term}")[1].tolist()


def test_a_term_draws_the_same_whatever_other_terms_draw(tmp_path: Path) -> None:
    """At the first step the weights are equal, so that only a draw could make a difference."""
    alone = {"gossip": ACTIVE["gossip"], **OFF}
    finish(run(tmp_path / "a", alone))
    finish(run(tmp_path / "b", {**alone, "repulsion": {"weight": 1.0, "sample": 5}}))
    finish(run(tmp_path / "c", {**alone, "repulsion": {"weight": 1.0, "sample": 6}}))
    first = [values(tmp_path / name, "gossip")[0] for name in "abc"]
    assert first[0] == first[1] == first[2] > 0


def test_draws_differ_between_micro_batches_and_terms() -> None:
    one = plugin(ACTIVE)
    found = set()
    for seed in (5, 6):
        one._generator.manual_seed(seed)
        found |= {one._drawing(name, part).initial_seed() for name in ("gossip", "repulsion") for part in (0, 1)}
    assert len(found) == 8


# ---------------------------------------------------------------------------------------------- padding
def dirty(task: Text) -> Text:
    task.words = torch.where(task.mask, task.words, torch.randint(0, 11, task.words.shape))
    return task


def test_what_stands_in_the_padding_changes_no_bit_of_a_run(tmp_path: Path) -> None:
    clean = bits(finish(run(tmp_path / "a", ACTIVE)))
    assert bits(finish(run(tmp_path / "b", ACTIVE, dirty(Text(SEED))))) == clean
    for folder, settings in (("c", {**ACTIVE, "mask": False}), ("d", {**ACTIVE, "faithful": True})):
        assert bits(finish(run(tmp_path / folder, settings, dirty(Text(SEED))))) != clean
    assert logged(tmp_path / "a") == logged(tmp_path / "b")


FORMS: list[tuple[dict[str, Any], Callable[[Any, Any, Any], dict[str, Any]]]] = [
    (
        {},
        lambda h, m, draw: {
            "repulsion": repulsion(h, m, 4, draw("repulsion")),
            "sparsity": sparsity(h, m),
            "gossip": gossip(h, m, 0.1, 3, 7, draw("gossip")),
        },
    ),
    (
        {"mask": False},
        lambda h, m, draw: {
            "repulsion": repulsion(h, None, 4, draw("repulsion")),
            "sparsity": sparsity(h),
            "gossip": gossip(h, None, 0.1, 3, 7, draw("gossip")),
        },
    ),
    (
        {"faithful": True},
        lambda h, m, draw: {
            "repulsion": repulsion(h, None, 4, None),
            "sparsity": sparsity(h),
            "gossip": gossip_of_source(h, m, 0.1, 3, 7, draw("gossip")),
        },
    ),
]


@pytest.mark.parametrize(("settings", "expected"), FORMS, ids=["default", "unmasked", "faithful"])
def test_each_padding_has_its_form(settings: dict[str, Any], expected: Callable[..., Any], tmp_path: Path) -> None:
    """Faithful: the first rows, padding included, for repulsion; real rows, the source's draws, for gossip."""
    small = {name: {"weight": 1.0} for name in ("repulsion", "sparsity", "gossip")}
    small["repulsion"]["sample"] = 4
    small["gossip"] |= {"tau": 0.1, "peers": 3, "sample": 7}
    kernel = run(tmp_path, {**small, **OFF, **settings})
    ask, seen = kernel.hooks.extra_loss, []

    def asked(forward: Any) -> Any:
        terms = ask(forward=forward)
        one, again = kernel.hooks.plugins["geometry"], forward.outputs.hidden[-1].detach()
        wanted = expected(again, forward.batch.tensors["mask"], lambda name: one._drawing(name, 0))
        seen.append({term.name: term.value.item() for _, term in terms} == {k: v.item() for k, v in wanted.items()})
        return terms

    kernel.hooks.extra_loss = asked
    finish(kernel)
    assert seen and all(seen)


def test_without_a_mask_every_position_is_real(tmp_path: Path) -> None:
    task = Text(SEED)
    task.mask = torch.ones_like(task.mask)
    masked = bits(finish(run(tmp_path / "a", {"sparsity": {"weight": 1.0}, **OFF}, task)))
    assert bits(finish(run(tmp_path / "b", {"sparsity": {"weight": 1.0}, **OFF, "mask": False}, task))) == masked


def test_autocast_does_not_reach_the_terms() -> None:
    """Cosines near 1 in bfloat16 would come in steps of 0.004."""
    task, one = Text(SEED), plugin({"repulsion": {"weight": 1.0}, "sparsity": {"weight": 1.0}})
    batch = task.rows(range(5))
    outputs = task.forward(task.build(), batch, {"hidden": {-1}})
    forward = Forward("main", 0, 0, 0, Silent(), outputs, batch)
    plainly = [term.value for term in one.extra_loss(forward)]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert (outputs.hidden[-1] @ outputs.hidden[-1].mT).dtype == torch.bfloat16
        assert [term.value for term in one.extra_loss(forward)] == plainly
    assert plainly[0].dtype == torch.float32


class Silent:
    """A log that nobody reads."""

    def _nothing(self, *said: Any) -> None:
        return None

    number = state = mark = level = _nothing


# ---------------------------------------------------------------------------------------------- what is logged
def test_metrics_and_shares_are_logged_at_the_start_and_after_every_epoch(tmp_path: Path) -> None:
    finish(run(tmp_path, ACTIVE))
    index = set(series_index(tmp_path))
    measured = {
        *(f"{name}{of}" for name in ("effective_rank", "isotropy", "active_fraction") for of in ("", ".layer1")),
        "head_similarity",
        *(f"branch_{name}" for name in ("entropy", "active_fraction", "usage_min", "usage_max", "usage_std")),
        "branch_score_entropy",
        *(f"share.{name}" for name in ("task", *TERMS)),
    }
    weighted = {f"geometry.{kind}.{name}" for kind in ("term", "weight") for name in TERMS}
    assert {key for key in index if key.startswith("geometry.")} == {f"geometry.{m}" for m in measured} | weighted
    for name in measured:
        assert read_series(tmp_path, f"geometry.{name}")[0].tolist() == [0, 6, 12, 18], name
    about = {key: entry["better"] for key, entry in series_index(tmp_path).items()}
    assert about["geometry.effective_rank"] == about["geometry.effective_rank.layer1"] == "higher"
    assert about["geometry.isotropy"] == "lower" and about["geometry.share.task"] is None
    rows = [read_series(tmp_path, f"geometry.share.{name}")[1] for name in ("task", *TERMS)]
    assert sum(rows).tolist() == pytest.approx([1, 1, 1, 1])  # type: ignore[arg-type]
    assert all((row[:2] > 0).all() for row in rows)


def test_a_metric_is_that_of_all_real_tokens_of_the_probe(tmp_path: Path) -> None:
    task = Text(SEED)
    kernel = finish(run(tmp_path, {}, task))
    with torch.no_grad():
        batch = task.rows(range(7))
        hidden = kernel.module.eval()(batch.tensors["words"], batch.tensors["mask"])[1][-1]
    rank = effective_rank(spectrum(hidden[batch.tensors["mask"]]))
    assert read_series(tmp_path, "geometry.effective_rank")[1][-1] == pytest.approx(float(rank), rel=1e-5)


def test_a_share_is_that_of_the_weighted_gradient(tmp_path: Path) -> None:
    """The probe's batches count by their trained tokens, as micro-batches do."""
    task = Text(SEED)
    kernel = run(tmp_path, {"sparsity": {"weight": 0.7}, "metrics": {"hidden": []}}, task)
    parameters = list(kernel.module.parameters())
    kernel.module.eval()
    batches = task.probe(0)
    items = sum(batch.count for batch in batches)
    outputs = [(task.forward(kernel.module, b, {"hidden": {-1}}), b) for b in batches]
    losses = sum(o.loss * b.count / items for o, b in outputs)
    terms = sum(0.7 * sparsity(o.hidden[-1], b.tensors["mask"]) * b.count / items for o, b in outputs)
    norms = []
    for value in (losses, terms):
        grads = torch.autograd.grad(value, parameters, retain_graph=True, allow_unused=True)  # type: ignore[arg-type]
        norms.append(torch.cat([g.flatten() for g in grads if g is not None]).norm().item())
    kernel.module.train()
    finish(kernel)
    found = [read_series(tmp_path, f"geometry.share.{name}")[1][0] for name in ("task", "sparsity")]
    assert found == pytest.approx([norms[0] / sum(norms), norms[1] / sum(norms)], rel=1e-5)


def test_weights_follow_their_schedules(tmp_path: Path) -> None:
    """The warm-up counts epochs of each phase; the cosine counts steps of the run, ends, and says so once."""
    finish(run(tmp_path, ACTIVE, phases=[train_spec(name="A", epochs=2), train_spec(name="B", epochs=1)], epochs=3))
    steps, weights = read_series(tmp_path, "geometry.weight.repulsion")
    assert steps.tolist() == [0, 6, 12] and weights.tolist() == pytest.approx([0.5 / 3, 1 / 3, 0.5 / 3])
    steps, weights = read_series(tmp_path, "geometry.weight.load_balance")
    assert steps.tolist() == list(range(12)) and weights[0] == 5 and weights[11] == 0
    assert weights.tolist() == sorted(weights, reverse=True)
    assert read_series(tmp_path, "geometry.term.load_balance")[0].tolist() == list(range(12))
    assert read_series(tmp_path, "geometry.share.load_balance")[1][-1] == 0


def test_a_term_below_every_trained_parameter_is_marked(tmp_path: Path) -> None:
    task = Text(SEED)
    build = task.build

    def frozen() -> Any:
        module: Any = build()
        for part in (module.words, module.places, module.blocks[0]):
            part.requires_grad_(False)
        return module

    task.build = frozen  # type: ignore[method-assign]
    finish(run(tmp_path, {"sparsity": {"weight": 1.0, "layer": 0}}, task))
    marks = [r["why"] for r in read_events(tmp_path) if r["event"] == "mark"]
    assert marks == ["sparsity: no trained parameter has any bearing on it; choose a later layer"]
    assert not read_series(tmp_path, "geometry.share.sparsity")[1].any()


# ---------------------------------------------------------------------------------------------- resume
def stop_in(kernel: Any, step: int, where: str) -> None:
    """Raise inside the update after `step` updates: before it, in the middle of an accumulation, or in evaluation."""

    def die(*args: Any) -> Any:
        raise RuntimeError("killed")

    task, update, backward = kernel.plans[0].task, kernel._update, kernel.backward
    evaluate = task.evaluate

    def update_or_die(*args: Any) -> None:
        update(*args) if kernel.position.step < step or where != "step" else die()

    def backward_or_die(plan: Any, batch: Any, index: int, count: int) -> Any:
        second = kernel.position.step >= step and index % 2 == 1 and where == "accumulation"
        return die() if second else backward(plan, batch, index, count)

    kernel._update, kernel.backward = update_or_die, backward_or_die
    task.evaluate = lambda *a: die() if kernel.position.step >= step and where == "evaluation" else evaluate(*a)
    with pytest.raises(RuntimeError, match="killed"):
        kernel.run()
    kernel.keeper.heartbeat.stop()


CASES = [("step", 7, 1), ("step", 17, 1), ("accumulation", 7, 2), ("evaluation", 9, 2)]


@pytest.mark.parametrize("form", [{}, {"faithful": True}], ids=["default", "faithful"])
@pytest.mark.parametrize(("where", "step", "accum"), CASES)
def test_resumed_equals_uninterrupted(where: str, step: int, accum: int, form: dict[str, Any], tmp_path: Path) -> None:
    """With every term, draws and dropout; the cosine's last word, at step 11, lies behind the checkpoint of step 15."""

    def one(folder: str) -> Any:
        more = {"epochs": 4, "grad_accum": accum, "checkpoint": {"every_steps": 5}}
        return run(tmp_path / folder, {**ACTIVE, **form}, **more)

    straight = finish(one("a"))
    stop_in(one("b"), step, where)
    assert bits(finish(one("b"))) == bits(straight)
    assert logged(tmp_path / "a") == logged(tmp_path / "b")


def logged(folder: Path) -> dict[str, bytes]:
    found = {path.name: path.read_bytes() for path in (folder / "series").iterdir()}
    return {name: data for name, data in found.items() if not name.startswith("clock.")}


def test_the_step_of_a_last_word_is_remembered() -> None:
    one, other = plugin(ACTIVE), plugin(ACTIVE)
    one._ended["gossip"] = 12
    other.restore(one.state())
    assert other._ended == {"gossip": 12} and other._ended is not one._ended


# ---------------------------------------------------------------------------------------------- errors
@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"gossip": {"layer": 7}}, r"gossip.layer asks for hidden states of layer 7; this model has no such layer"),
        ({"gossip": {"layer": 7}, "sparsity": {"layer": 1}}, r"of layer 7; this model gave those of 1: name one"),
        ({"diversity": {"layers": [0, 5]}}, r"attention maps of layer 5; this model gave those of 0: name one"),
    ],
)  # fmt: skip
def test_a_layer_that_is_not_there_is_named_with_those_that_are(
    settings: dict[str, Any], text: str, tmp_path: Path
) -> None:
    settings = {name: {"weight": 1.0, **one} for name, one in settings.items()}
    with pytest.raises(PluginError, match=r"plugin geometry, hook extra_loss, .*step 0: .*" + text):
        finish(run(tmp_path, {**settings, **OFF}))


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"hidden": [3]}, r"metrics.hidden asks for hidden states of layer 3"),
        ({"attention": [-9]}, r"metrics.attention asks for attention maps of layer -9"),
        ({"branches": True}, r"metrics.branches needs branches; this model has none"),
    ],
)
def test_a_metric_that_cannot_be_had_stops_the_run_before_the_first_step(
    settings: dict[str, Any], text: str, tmp_path: Path
) -> None:
    task = Text(SEED)
    forward = task.forward
    task.forward = lambda module, batch, needs: forward(  # type: ignore[method-assign]
        module, batch, {what: layers for what, layers in needs.items() if what != "branches"}
    )
    with pytest.raises(PluginError, match=r"hook on_epoch_end, step 0: " + text):
        finish(run(tmp_path, {"metrics": settings}, task))


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"gossip": {"weight": -1}}, r"gossip.weight\n.*greater than or equal to 0"),
    ({"gossip": {"weight": float("inf")}}, "finite"),
    ({"gossip": {"tau": 1.0}}, r"gossip.tau\n.*less than 1"),
    ({"gossip": {"peers": 0}}, "gossip.peers"),
    ({"repulsion": {"sample": 1}}, "repulsion.sample"),
    ({"repulsion": {"weigth": 1}}, r"repulsion.weigth\n.*not permitted"),
    ({"repulse": {}}, r"repulse\n.*not permitted"),
    ({"diversity": {"layers": []}}, "diversity.layers"),
    ({"diversity": {"layers": [1, 1]}}, r"names a layer twice: \[1, 1\]"),
    ({"sparsity": {"schedule": {"kind": "linear"}}}, r"sparsity.schedule.kind\n.*'constant', 'warmup' or 'cosine'"),
    ({"sparsity": {"schedule": {"kind": "cosine"}}}, "set until to more than 0"),
    ({"sparsity": {"schedule": {"kind": "cosine", "warmup": 5, "until": 5}}}, "set until to more than 5"),
    ({"sparsity": {"schedule": {"kind": "warmup"}}}, "kind warmup needs warmup"),
    ({"sparsity": {"schedule": {"warmup": 2}}}, r"kind constant has no warmup \(given 2\); set kind: warmup"),
    ({"sparsity": {"schedule": {"until": 2}}}, "kind constant has no until and no floor"),
    ({"sparsity": {"schedule": {"kind": "warmup", "warmup": 1, "floor": 0.5}}}, "kind warmup has no until"),
    ({"sparsity": {"schedule": {"kind": "cosine", "until": 5, "floor": 1.5}}}, "less than or equal to 1"),
    ({"faithful": True, "mask": False}, "mask: false contradicts it; remove mask"),
    ({"metrics": {"threshold": -0.1}}, "metrics.threshold"),
]


@pytest.mark.parametrize(("settings", "text"), REFUSED)
def test_a_setting_that_makes_no_sense_is_refused(settings: dict[str, Any], text: str) -> None:
    with pytest.raises(ValidationError, match=text):
        Geometry.Config.model_validate(settings)


def test_settings_survive_the_resolved_spec() -> None:
    config = Geometry.Config.model_validate(ACTIVE)
    assert Geometry.Config.model_validate(config.model_dump(mode="json")) == config


# ---------------------------------------------------------------------------------------------- angles between tasks
def two_tasks(folder: Path, cosines: bool) -> Any:
    """Return a run over tasks A, B whose second task has the labels of the first turned round."""
    task, other = Tiny(SEED), Tiny(SEED)
    other.y = 2 - other.y
    settings = {"metrics": {"hidden": [], "shares": False, "gradient_cosines": cosines}}
    specs = [train_spec(name="A", epochs=2), train_spec(name="B", epochs=1)]
    kernel = make(folder, {"geometry": plugin(settings)}, task=task, phases=specs, seed=SEED)
    kernel.tasks, kernel.matrix = {"A": task, "B": other}, Matrix(["A", "B"])
    kernel.plans[1].task = other
    return kernel


def test_angles_between_tasks_are_told_at_the_start_and_after_each_phase(tmp_path: Path) -> None:
    kernel = finish(two_tasks(tmp_path, True))
    steps, found = read_series(tmp_path, "geometry.gradient_cosine.A.B")
    assert steps.tolist() == [0, 12, 18] and max(abs(found)) <= 1
    module = kernel.module.eval()  # by hand, at the end
    pulls = []
    for task in kernel.tasks.values():
        module.zero_grad()
        task.forward(module, task.probe(128)[0], {}).loss.backward()
        pulls.append(torch.cat([p.grad.flatten() for p in module.parameters()]).double())
    assert found[-1] == pytest.approx(float(torch.nn.functional.cosine_similarity(*pulls, dim=0)), abs=1e-6)


def test_angles_change_no_bit_and_are_off_by_default(tmp_path: Path) -> None:
    told, silent = (finish(two_tasks(tmp_path / name, name == "on")) for name in ("on", "off"))
    assert bits(told) == bits(silent)
    assert [k for k in series_index(tmp_path / "off") if "gradient_cosine" in k] == []
    assert not Geometry.Config().metrics.gradient_cosines


def test_one_task_has_no_angle_and_says_so(tmp_path: Path) -> None:
    finish(run(tmp_path, {"metrics": {"hidden": [], "shares": False, "gradient_cosines": True}}))
    (mark,) = [r for r in read_events(tmp_path) if r["event"] == "mark"]
    assert mark["name"] == "no-gradient-cosines" and "two tasks or more" in mark["why"]
