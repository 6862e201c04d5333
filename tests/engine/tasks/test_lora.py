"""LoRA is PEFT's own; its folders load in PEFT, and what does not fit is refused by name."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from ctr.engine.adapters import Adapter
from ctr.engine.errors import DataError, SpecError
from ctr.engine.hooks import Reset
from ctr.engine.task import Phase
from ctr.engine.tasks.causal_lm import CausalLm
from ctr.engine.tasks.language_models import LanguageModel
from ctr.engine.tasks.lora import base_digest, targets

from .small_text import FAMILIES, GPT2, LORA, QWEN2, begun, build, gradients, make

THEIRS = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")  # PEFT's own, about transformers
BASES = pytest.mark.parametrize("model", FAMILIES.values(), ids=FAMILIES)


def adapter_of(task: CausalLm, module: LanguageModel) -> Adapter:
    found = task.adapter(module)
    assert found is not None
    return found


def plain(tmp_path: Path, model: dict[str, Any]) -> Any:
    """Return the unmodified base, as transformers builds it."""
    return build(make(tmp_path), model).net


@BASES
@THEIRS
@pytest.mark.parametrize("scaling", ["alpha_over_rank", "rank_stabilised"])
def test_forward_and_backward_are_those_of_peft(model: dict[str, Any], scaling: str, tmp_path: Path) -> None:
    from peft import LoraConfig, get_peft_model
    from transformers.pytorch_utils import Conv1D

    task, module = begun(tmp_path, model, {**LORA, "scaling": scaling, "targets": "all_linear"})
    names = [factor.name for factor in adapter_of(task, module).factors]
    base = plain(tmp_path, model)
    transposed = isinstance(base.get_submodule(names[0]), Conv1D)
    config = LoraConfig(
        r=3, lora_alpha=9, target_modules=names, use_rslora=scaling == "rank_stabilised", fan_in_fan_out=transposed
    )
    theirs = get_peft_model(base, config)
    theirs.load_state_dict(module.net.state_dict())
    batch = task.batch(0, 0)
    ours = task.forward(module, batch, {})
    assert ours.logits is not None
    logits = theirs(input_ids=batch.tensors["ids"]).logits.flatten(0, 1)[batch.tensors["where"]]
    torch.testing.assert_close(ours.logits, logits, rtol=1e-5, atol=1e-6)
    ours.loss.backward()
    torch.nn.functional.cross_entropy(logits, batch.tensors["labels"]).backward()
    grads = gradients(module)
    assert len(grads) == 2 * len(names)
    for name, p in theirs.named_parameters():
        if p.grad is not None:
            torch.testing.assert_close(grads[f"net.{name}"], p.grad, rtol=1e-4, atol=1e-7)
    assert {f.scaling for f in adapter_of(task, module).factors} == {
        3.0 if scaling == "alpha_over_rank" else 9 / math.sqrt(3)
    }


@BASES
def test_the_pairs_are_what_the_base_gains(model: dict[str, Any], tmp_path: Path) -> None:
    """Merging scaling · B · A into the base, transposed weights included, and emptying B changes no output."""
    task, module = begun(tmp_path, model, {**LORA, "targets": "all_linear"})
    adapter = adapter_of(task, module)
    for f in adapter.factors:
        assert f.a.shape[0] == f.b.shape[1] == 3 and f.base.shape == (f.b.shape[0], f.a.shape[1])
    before = task.forward(module, task.batch(0, 0), {}).logits
    digest = base_digest(module)
    adapter.reset(Reset(merge=True), torch.Generator().manual_seed(1), None)
    after = task.forward(module, task.batch(0, 0), {}).logits
    assert before is not None and after is not None
    torch.testing.assert_close(after, before, rtol=1e-4, atol=1e-5)
    assert all(not f.b.any() for f in adapter.factors) and base_digest(module) != digest


def test_a_redraw_is_of_peft_s_own_kind_and_another_for_each_target(tmp_path: Path) -> None:
    task, module = begun(tmp_path, {**QWEN2, "width": 64}, {**LORA, "rank": 16, "targets": "all_linear"})
    adapter = adapter_of(task, module)
    drawn = {f.name: f.a.detach().clone() for f in adapter.factors}
    adapter.reset(Reset(), torch.Generator().manual_seed(1), None)
    again = {f.name: f.a.detach().clone() for f in adapter.factors}
    for name in drawn:
        bound = 1 / math.sqrt(drawn[name].shape[1])
        for one in (drawn[name], again[name]):
            assert 0.97 * bound < one.abs().max() <= bound
            assert one.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.1)
    everything = [*drawn.values(), *again.values()]
    assert not any(
        torch.equal(left, right)
        for i, left in enumerate(everything)
        for right in everything[:i]
        if left.shape == right.shape
    )


def test_the_first_draw_hangs_on_the_run_s_seed_alone(tmp_path: Path) -> None:
    """Whatever the base's weights came from: one base for all seeds, and an adapter for each."""

    def drawn(seed: int, **model: Any) -> Tensor:
        module = build(make(tmp_path, seed=seed), {**QWEN2, **model}, LORA)
        return module.net.base_model.model.model.layers[0].self_attn.q_proj.lora_A["default"].weight  # type: ignore[no-any-return]

    assert torch.equal(drawn(1), drawn(1)) and not torch.equal(drawn(1), drawn(2))
    assert torch.equal(drawn(1), drawn(1, init_seed=7)) and torch.equal(drawn(1), drawn(1, layers=3))


@BASES
@pytest.mark.parametrize("adapts", [True, False])
def test_the_reference_is_the_base_s_own_answer_and_changes_no_gradient(
    model: dict[str, Any], adapts: bool, tmp_path: Path
) -> None:
    """Also in a phase that trains all weights, in which the adapter stands aside anyway."""
    task, module = begun(tmp_path, model, LORA)
    task.begin(Phase("main", 0, 2, 5, adapts=adapts))
    batch = task.batch(0, 0)
    task.forward(module, batch, {}).loss.backward()
    wanted = gradients(module)
    outputs = task.forward(module, batch, {"reference": frozenset({-1})})
    outputs.loss.backward()
    found = gradients(module)
    assert found.keys() == wanted.keys() and all(torch.equal(found[name], wanted[name]) for name in wanted)
    reference = outputs.extra["reference"]
    logits = plain(tmp_path, model)(input_ids=batch.tensors["ids"]).logits.flatten(0, 1)[batch.tensors["where"]]
    torch.testing.assert_close(reference.logits, logits, rtol=1e-5, atol=1e-6)
    assert reference.loss == torch.nn.functional.cross_entropy(reference.logits, batch.tensors["labels"])
    assert not reference.loss.requires_grad and bool(reference.loss == outputs.loss) != adapts


# ------------------------------------------------------------------------------------------------------- targets
def test_targets_are_found_by_rule_and_by_end(tmp_path: Path) -> None:
    net = plain(tmp_path, QWEN2)
    attention = [f"model.layers.{i}.self_attn.{m}_proj" for i in range(2) for m in "qkvo"]
    assert targets(net, "attention") == attention
    assert len(targets(net, "all_linear")) == 14 and "lm_head" not in targets(net, "all_linear")
    assert targets(net, ["v_proj", "1.self_attn.q_proj"]) == [attention[2], attention[6], attention[4]]
    assert targets(net, [attention[3]]) == [attention[3]]
    other = plain(tmp_path, GPT2)
    assert targets(other, "attention") == [
        f"transformer.h.{i}.attn.{m}" for i in range(2) for m in ("c_attn", "c_proj")
    ]


@pytest.mark.parametrize(
    ("adapter", "text"),
    [
        (
            {"targets": ("q_prj",)},
            r"adapter.targets: no linear map is named q_prj; names end in .*Did you mean q_proj\?",
        ),
        ({"targets": ("proj",)}, r"adapter.targets: no linear map is named proj; names end in down_proj, gate_proj"),
        ({"targets": ("embed_tokens",)}, r"adapter.targets: no linear map is named embed_tokens"),
        (
            {"rank": 9},
            r"adapter.rank: 9 is larger than a side of model.layers.0.self_attn.k_proj \(8 x 16\); take at most 8",
        ),
    ],
)
def test_an_adapter_that_fits_nowhere_is_refused(adapter: dict[str, Any], text: str, tmp_path: Path) -> None:
    with pytest.raises(SpecError, match=text):
        build(make(tmp_path), QWEN2, {**LORA, **adapter})


# ------------------------------------------------------------------------------------------------------- folders
@pytest.fixture
def saved(tmp_path: Path) -> Callable[..., tuple[CausalLm, LanguageModel, Path]]:
    def save(model: dict[str, Any], **adapter: Any) -> tuple[CausalLm, LanguageModel, Path]:
        task, module = begun(tmp_path, model, {**LORA, **adapter})
        folder = tmp_path / "adapter"
        adapter_of(task, module).save(folder, {"phase": "A"})  # type: ignore[misc]
        return task, module, folder

    return save


@BASES
@THEIRS
@pytest.mark.parametrize("scaling", ["alpha_over_rank", "rank_stabilised"])
def test_a_saved_folder_loads_in_peft_beside_the_unmodified_base(
    model: dict[str, Any], scaling: str, saved: Any, tmp_path: Path
) -> None:
    from peft import PeftModel

    task, module, folder = saved(model, scaling=scaling, targets="all_linear")
    theirs = LanguageModel(
        plain(tmp_path, model), module.tokenizer, PeftModel.from_pretrained(plain(tmp_path, model), folder)
    )
    assert (task.evaluate(theirs, "val").loss_sum == task.evaluate(module, "val").loss_sum).all()
    names = sorted(path.name for path in folder.iterdir())
    assert names == ["adapter_config.json", "adapter_model.safetensors", "ctr.json"]
    tensors = hashlib.sha256((folder / "adapter_model.safetensors").read_bytes()).hexdigest()
    about = json.loads((folder / "ctr.json").read_text())
    assert about == {"phase": "A", "base": base_digest(module), "sha256": tensors}
    assert str(tmp_path) not in (folder / "adapter_config.json").read_text()


@BASES
def test_a_saved_adapter_comes_back_to_the_bit(model: dict[str, Any], saved: Any, tmp_path: Path) -> None:
    _, module, folder = saved(model)
    again = build(make(tmp_path, seed=9), model, {**LORA, "load": str(folder)})
    left, right = module.state_dict(), again.state_dict()
    assert left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


@pytest.mark.parametrize(
    ("model", "adapter", "text"),
    [
        ({"init_seed": 1}, {}, r"was trained beside another base \(sha256 \w{12}…\) than this model \(\w{12}…\); load"),
        (
            {},
            {"rank": 2},
            r"has \(3, 16\) for factor A of model.layers.0.self_attn.q_proj, not \(2, 16\); adapter.rank \(2\)",
        ),
        ({}, {"targets": "all_linear"}, r"has nothing for factor A of model.layers.0.mlp.gate_proj, not \(3, 16\)"),
        ({}, {"targets": ("q_proj",)}, r"has factors for targets that this run has not; set adapter.targets"),
        (
            {},
            {"alpha": 8},
            r"was saved with a scaling of 3 at model.layers.0.self_attn.q_proj, and this run's is 2.66667; set",
        ),
        ({}, {"load": "/nowhere"}, r"/nowhere holds no adapter_config.json; give the folder of a saved adapter"),
    ],
)
def test_an_adapter_of_something_else_is_refused(
    model: dict[str, Any], adapter: dict[str, Any], text: str, saved: Any, tmp_path: Path
) -> None:
    _, _, folder = saved(QWEN2)
    with pytest.raises(DataError, match=f"adapter.load: .*{text}"):
        build(make(tmp_path), {**QWEN2, **model}, {**LORA, "load": str(folder), **adapter})


@pytest.mark.parametrize("content", [b"", b"\x10\0\0\0\0\0\0\0{}", b"\xff" * 100, None])
def test_a_damaged_adapter_is_refused(content: bytes | None, saved: Any, tmp_path: Path) -> None:
    _, _, folder = saved(QWEN2)
    file = folder / "adapter_model.safetensors"
    file.unlink() if content is None else file.write_bytes(content)
    text = "cannot be read" if content is None else "does not match the sha256 that ctr.json has of it; it was damaged"
    with pytest.raises(DataError, match=f"adapter.load: .*adapter_model.safetensors:? {text}"):
        build(make(tmp_path), QWEN2, {**LORA, "load": str(folder)})
    (folder / "ctr.json").unlink()  # one that PEFT saved has none
    with pytest.raises(DataError, match="adapter.load: .*adapter_model.safetensors cannot be read"):
        build(make(tmp_path), QWEN2, {**LORA, "load": str(folder)})


@pytest.mark.parametrize(
    ("said", "text"),
    [
        (
            {"init_lora_weights": "pissa"},
            "init_lora_weights pissa took its factors out of the base's weights, so",
        ),
        (
            {"init_lora_weights": "pissa_niter_4"},
            "init_lora_weights pissa_niter_4 took .* or convert it by PEFT's",
        ),
        ({"init_lora_weights": "OLoRA"}, "init_lora_weights OLoRA took"),
        ({"init_lora_weights": "corda"}, "init_lora_weights corda took"),
        ({"init_lora_weights": "loftq"}, "init_lora_weights loftq took"),
        ({"init_lora_weights": "lora_ga"}, "init_lora_weights lora_ga took"),
        ({"use_dora": True}, "use_dora gives the base's rows other norms, so zeroing B would not restore the base"),
        ({"kasa_config": {"beta": 1}}, "kasa_config cut"),
        ({"bias": "lora_only"}, "bias lora_only trained biases too, so zeroing B would not restore the base; train it"),
        ({"lora_bias": True}, "lora_bias adds"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save replaced parts of the base"),
    ],
)
def test_an_adapter_that_b_alone_cannot_take_back_is_refused(
    said: dict[str, Any], text: str, saved: Any, tmp_path: Path
) -> None:
    _, _, folder = saved(QWEN2)
    file = folder / "adapter_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **said}))
    with pytest.raises(DataError, match=f"adapter.load: .* is no plain LoRA: {text}"):
        build(make(tmp_path), QWEN2, {**LORA, "load": str(folder)})


@THEIRS
@pytest.mark.parametrize(
    ("init", "untouched"), [("eva", True), ("orthogonal", True), ("gaussian", True), ("pissa", False), ("olora", False)]
)
def test_beginnings_are_refused_by_what_they_do_to_the_base(init: str, untouched: bool, tmp_path: Path) -> None:
    """Held against PEFT: where the base is untouched, B = 0 gives it back, and the folder is taken."""
    from peft import LoraConfig, get_peft_model

    base = plain(tmp_path, QWEN2)
    before = {name: p.detach().clone() for name, p in base.named_parameters()}
    config = LoraConfig(r=4, lora_alpha=12, target_modules=["q_proj"], init_lora_weights=init)  # type: ignore[arg-type]
    net = get_peft_model(base, config)
    now = {name.replace("base_model.model.", "").replace(".base_layer", ""): p for name, p in net.named_parameters()}
    assert all(torch.equal(now[name], value) for name, value in before.items()) == untouched
    net.save_pretrained(tmp_path / "theirs")
    settings = {**LORA, "rank": 4, "alpha": 12.0, "targets": ("q_proj",), "load": str(tmp_path / "theirs")}
    if untouched:
        build(make(tmp_path), QWEN2, settings)
    else:
        with pytest.raises(DataError, match="zeroing B would not restore the base"):
            build(make(tmp_path), QWEN2, settings)


@THEIRS
def test_an_adapter_that_peft_saved_itself_is_taken(tmp_path: Path) -> None:
    """It says nothing of its base, so that only shapes and scaling can be compared."""
    from peft import LoraConfig, get_peft_model

    net = get_peft_model(plain(tmp_path, QWEN2), LoraConfig(r=3, lora_alpha=9, target_modules=["q_proj"]))
    net.save_pretrained(tmp_path / "theirs")
    module = build(make(tmp_path), QWEN2, {**LORA, "targets": ("q_proj",), "load": str(tmp_path / "theirs")})
    theirs = dict(net.named_parameters())
    for name, p in module.named_parameters():
        assert torch.equal(p, theirs[name.removeprefix("net.")])
