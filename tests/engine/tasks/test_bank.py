"""A bank beside a language model: each slot is PEFT's LoRA, and what PEFT knows not of is said and refused by name."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import TypeAdapter
from torch import Generator, Tensor
from torch.nn.functional import cross_entropy

from ctr.engine.bank_optimizer import BankOptimizer
from ctr.engine.errors import DataError, SpecError
from ctr.engine.hooks import Reset
from ctr.engine.lora_bank import BankAdapter, LoraBank
from ctr.engine.task import Context
from ctr.engine.tasks import bank as banks
from ctr.engine.tasks.language_config import BankSettings, LanguageModelSettings
from ctr.engine.tasks.language_models import LanguageModel, assemble, groups
from ctr.engine.tasks.lora import base_digest

from .small_text import FAMILIES, GPT2, QWEN2, build, make

THEIRS = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")  # PEFT's own, about transformers
BASES = pytest.mark.parametrize("model", FAMILIES.values(), ids=FAMILIES)
SITES = pytest.mark.parametrize(
    ("targets", "head"),
    [("attention", False), ("all_linear", False), ("all_linear", True)],
    ids=["attention", "linear", "and head"],
)
SLOTS, RANK = 3, 2


def assembled(model: dict[str, Any], seed: int = 1, **settings: Any) -> LanguageModel:
    """Return a model with a bank beside it, whose B are zero."""
    about = {"kind": "bank", "slots": SLOTS, "rank": RANK, "alpha": 9.0, **settings}
    context = Context(seed, torch.device("cpu"), Path())
    made: Any = TypeAdapter(LanguageModelSettings).validate_python(model)
    return assemble(made, BankSettings.model_validate(about), context)


def banked(model: dict[str, Any], **settings: Any) -> tuple[LanguageModel, LoraBank]:
    """Return a model and its bank, whose B are random, so that every slot says something of its own."""
    module = assembled(model, **settings)
    assert module.bank is not None
    generator = Generator().manual_seed(5)
    for p in module.bank.lora_B.values():
        p.data.copy_(torch.randn(p.shape, generator=generator) / 4)
    return module, module.bank


def base(model: dict[str, Any]) -> Any:
    """Return the unmodified base, as transformers builds it."""
    return assembled(model, slots=1).net


def peft_of(model: dict[str, Any], bank: LoraBank, slot: int) -> Any:
    """Return PEFT's model with one slot's factors beside a base of its own, in float64."""
    from peft import LoraConfig, get_peft_model
    from transformers.pytorch_utils import Conv1D

    net = base(model)
    names = [site.name for site in bank.sites]
    config = LoraConfig(
        r=bank.rank, lora_alpha=bank.scaling * bank.rank, target_modules=names,  # type: ignore[arg-type]
        fan_in_fan_out=isinstance(net.get_submodule(names[0]), Conv1D),
    )  # fmt: skip
    theirs = get_peft_model(net, config).double()
    for name, (a, b) in bank.slot(slot).items():
        layer = theirs.base_model.model.get_submodule(name)
        layer.lora_A["default"].weight.data.copy_(a)
        layer.lora_B["default"].weight.data.copy_(b)
    return theirs


def rows(count: int, length: int = 11) -> Tensor:
    return torch.randint(0, 263, (count, length), generator=Generator().manual_seed(3))


def loss_of(net: Any, ids: Tensor) -> tuple[Tensor, Tensor]:
    """Return logits and the sum over rows of a row's mean loss."""
    logits = net(input_ids=ids, use_cache=False).logits
    losses = cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten(), reduction="none")
    return logits, losses.view(len(ids), -1).mean(1).sum()


def their_gradients(theirs: Any, bank: LoraBank) -> tuple[dict[str, tuple[Tensor, Tensor]], dict[str, Tensor]]:
    """Return the gradients of PEFT's factors by site, and those of the base's weights by plain name."""
    layers = {site.name: theirs.base_model.model.get_submodule(site.name) for site in bank.sites}
    factors = {n: (m.lora_A["default"].weight.grad, m.lora_B["default"].weight.grad) for n, m in layers.items()}
    named = theirs.base_model.model.named_parameters()
    plain = {name.replace(".base_layer.", "."): p.grad for name, p in named if ".lora_" not in name}
    return factors, plain


def our_gradients(bank: LoraBank, slot: int) -> dict[str, tuple[Tensor, Tensor]]:
    """Return the gradients of one slot's factors by site."""
    found = {}
    for key, stack in bank._stacks.items():
        a, b = bank.lora_A[key].grad, bank.lora_B[key].grad
        assert a is not None and b is not None
        found.update({site.name: (a[i, slot], b[i, slot]) for i, site in enumerate(stack)})
    return found


def close(ours: Tensor | None, theirs: Tensor | None) -> None:
    assert ours is not None and theirs is not None
    torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)


# ------------------------------------------------------------------------------------------------------------ PEFT
@BASES
@THEIRS
@SITES
@pytest.mark.parametrize("training", [False, True], ids=["evaluation", "training"])
def test_one_slot_is_peft_s_adapter(model: dict[str, Any], targets: str, head: bool, training: bool) -> None:
    """Outputs and the gradients of all factors and of all weights of the base; in training with the same dropout."""
    model = {**model, "dropout": 0.2}
    module, bank = banked(model, slots=1, targets=targets, head=head)
    theirs = peft_of(model, bank, 0).requires_grad_(True).train(training)
    module.double().requires_grad_(True).train(training)
    ids = rows(1)
    torch.manual_seed(8)
    expected, loss = loss_of(theirs, ids)
    loss.backward()
    torch.manual_seed(8)
    with bank.speaking():
        logits, loss = loss_of(module.net, ids)
    loss.backward()
    close(logits, expected)
    factors, plain = their_gradients(theirs, bank)
    for name, (a, b) in our_gradients(bank, 0).items():
        close(a, factors[name][0])
        close(b, factors[name][1])
        assert a.any() and b.any()
    ours = dict(module.net.named_parameters())
    assert ours.keys() == plain.keys()
    for name, p in ours.items():
        close(p.grad, plain[name])


@BASES
@THEIRS
@SITES
@pytest.mark.parametrize("present", [None, [2, 0], [1]], ids=["all", "two", "one"])
def test_n_slots_are_n_adapters(model: dict[str, Any], targets: str, head: bool, present: list[int] | None) -> None:
    """Each row by the adapter of its slot, whichever others are there; a slot that sits out gets no gradient."""
    module, bank = banked(model, targets=targets, head=head)
    module.double().requires_grad_(True).train()
    slots = list(range(SLOTS)) if present is None else present
    ids = rows(len(slots))
    with bank.speaking(None if present is None else torch.tensor(present)):
        logits, loss = loss_of(module.net, ids)
    loss.backward()
    total: dict[str, Tensor] = {}
    for row, slot in enumerate(slots):
        theirs = peft_of(model, bank, slot).requires_grad_(True).train()
        expected, loss = loss_of(theirs, ids[row : row + 1])
        loss.backward()
        close(logits[row : row + 1], expected)
        factors, plain = their_gradients(theirs, bank)
        for name, (a, b) in our_gradients(bank, slot).items():
            close(a, factors[name][0])
            close(b, factors[name][1])
        total = {name: total.get(name, 0) + grad for name, grad in plain.items()}
    for slot in set(range(SLOTS)) - set(slots):
        assert not any(side.any() for pair in our_gradients(bank, slot).values() for side in pair)
    for name, p in module.net.named_parameters():
        close(p.grad, total[name])


@BASES
@THEIRS
@SITES
@pytest.mark.parametrize("scaling", ["alpha_over_rank", "rank_stabilised", "none"])
def test_an_exported_slot_loads_in_peft(
    model: dict[str, Any], targets: str, head: bool, scaling: str, tmp_path: Path
) -> None:
    from peft import PeftModel

    module, bank = banked(model, targets=targets, head=head, scaling=scaling, rank=3)
    module.eval()
    ids = rows(SLOTS)
    with torch.no_grad(), bank.speaking():
        ours = module.net(input_ids=ids, use_cache=False).logits
    assert bank.scaling == {"alpha_over_rank": 3.0, "rank_stabilised": 9 / math.sqrt(3), "none": 1.0}[scaling]
    for slot in range(SLOTS):
        banks.export_slot(module, slot, tmp_path / str(slot))
        theirs = PeftModel.from_pretrained(base(model), tmp_path / str(slot)).eval()
        with torch.no_grad():
            logits = theirs(input_ids=ids, use_cache=False).logits
        torch.testing.assert_close(logits[slot], ours[slot], rtol=1e-5, atol=1e-5)
        apart = [float((logits[row] - ours[row]).abs().max()) for row in range(SLOTS) if row != slot]
        assert min(apart) > 1e-2, "the other slots are others"
        layer = theirs.base_model.model.get_submodule(bank.sites[0].name)
        assert layer.scaling["default"] == pytest.approx(bank.scaling, rel=1e-12)
    names = sorted(path.name for path in (tmp_path / "0").iterdir())
    assert names == ["adapter_config.json", "adapter_model.safetensors", "ctr.json"]
    config = (tmp_path / "0" / "adapter_config.json").read_text()
    assert str(tmp_path) not in config
    # of maps that are all transposed PEFT is told so; where some are, it finds out by itself
    assert json.loads(config)["fan_in_fan_out"] is (model is GPT2 and not head)


@BASES
def test_an_exported_slot_is_one_that_a_run_can_begin_with(model: dict[str, Any], tmp_path: Path) -> None:
    module, bank = banked(model, targets="attention", head=False)
    banks.export_slot(module, 1, tmp_path / "slot")
    assert json.loads((tmp_path / "slot" / "ctr.json").read_text()) == {"slot": 1, "base": base_digest(module)}
    lora = {"kind": "lora", "rank": RANK, "alpha": 9.0, "load": str(tmp_path / "slot")}
    again = build(make(tmp_path), model, lora)
    for name, (a, b) in bank.slot(1).items():
        layer = again.net.base_model.model.get_submodule(name)
        assert torch.equal(layer.lora_A["default"].weight, a) and torch.equal(layer.lora_B["default"].weight, b)
    with pytest.raises(DataError, match="was trained beside another base"):
        build(make(tmp_path), {**model, "init_seed": 1}, lora)


@pytest.mark.parametrize(("model", "around"), [(QWEN2, "self_attn"), (QWEN2, "mlp"), (GPT2, "attn")])
def test_a_slot_with_a_side_path_is_no_peft_adapter(model: dict[str, Any], around: str, tmp_path: Path) -> None:
    inner = "q_proj" if model is QWEN2 else "c_attn"
    module, _ = banked(model, targets=(inner, around))
    with pytest.raises(
        DataError, match=rf"slot 1 has an adapter around \S+\.0\.{around}, which is no linear map: PEFT"
    ):
        banks.export_slot(module, 1, tmp_path / "slot")
    assert not (tmp_path / "slot").exists()


def test_what_is_not_there_cannot_be_exported(tmp_path: Path) -> None:
    module, _ = banked(QWEN2)
    with pytest.raises(IndexError, match="slot 3 of a bank of 3"):
        banks.export_slot(module, 3, tmp_path / "slot")
    with pytest.raises(DataError, match=r"no slot 0 to export: the model has no bank; add adapter: \{kind: bank\}"):
        banks.export_slot(build(make(tmp_path), QWEN2), 0, tmp_path / "slot")
    assert not (tmp_path / "slot").exists()


# ----------------------------------------------------------------------------------------------------------- sites
@pytest.mark.parametrize(
    ("model", "around"),
    [
        (QWEN2, "self_attn"),
        (QWEN2, "mlp"),
        (QWEN2, "0"),
        (QWEN2, "norm"),
        (GPT2, "attn"),
        (GPT2, "mlp"),
        (GPT2, "ln_1"),
    ],
)
def test_a_side_path_adds_to_what_a_block_gives(model: dict[str, Any], around: str) -> None:
    """Whatever the block does inside, and however it is called: its output gains scaling · B · A · input."""
    module, bank = banked(model, targets=(around,), head=False)
    module.double().eval()
    site = bank.sites[0]
    part = module.net.get_submodule(site.name)
    assert site.name.endswith(around) and (site.reads, site.writes) == (16, 16)
    inside: list[Tensor] = []
    outside: list[tuple[Tensor, Tensor]] = []

    def before(_: Any, inputs: Any, named: Any, output: Any) -> None:
        inside.append(output if isinstance(output, Tensor) else output[0])

    def after(_: Any, inputs: Any, named: Any, output: Any) -> None:
        read = inputs[0] if inputs else named["hidden_states"]
        outside.append((read, output if isinstance(output, Tensor) else output[0]))

    part.register_forward_hook(before, prepend=True, with_kwargs=True)
    part.register_forward_hook(after, with_kwargs=True)
    with torch.no_grad(), bank.speaking():
        module.net(input_ids=rows(SLOTS), use_cache=False)
    (x, spoken), own = outside[0], inside[0]
    pairs = [bank.slot(slot)[site.name] for slot in range(SLOTS)]
    added = torch.stack([bank.scaling * x[i] @ a.T @ b.T for i, (a, b) in enumerate(pairs)])
    assert added.abs().max() > 0.01
    torch.testing.assert_close(spoken, own + added, rtol=1e-12, atol=1e-12)


def test_sites_are_found_by_rule_and_by_end() -> None:
    def sites(model: dict[str, Any] = QWEN2, **settings: Any) -> list[tuple[str, int, int]]:
        found = assembled(model, **settings).bank
        assert found is not None
        return [(site.name.removeprefix("model.layers."), site.reads, site.writes) for site in found.sites]

    shapes = {"q_proj": (16, 16), "k_proj": (16, 8), "v_proj": (16, 8), "o_proj": (16, 16)}
    attention = [(f"{i}.self_attn.{name}", *shape) for i in range(2) for name, shape in shapes.items()]
    head = ("lm_head", 16, 263)
    assert sites(targets="attention", head=False) == attention and sites(targets="attention") == [*attention, head]
    assert len(sites(targets="all_linear")) == 15 and sites()[-1] == head
    mixed = sites(targets=("v_proj", "1.self_attn.q_proj", "self_attn", "lm_head"))
    assert mixed == [
        ("0.self_attn.v_proj", 16, 8), ("1.self_attn.v_proj", 16, 8), ("1.self_attn.q_proj", 16, 16),
        ("0.self_attn", 16, 16), ("1.self_attn", 16, 16), head,
    ]  # fmt: skip
    fused = [(f"transformer.h.{i}.attn.c_attn", 16, 48) for i in range(2)]
    assert sites(GPT2, targets=("c_attn",), head=False) == fused


@pytest.mark.parametrize(
    ("model", "settings", "text"),
    [
        (QWEN2, {"targets": ("q_prj",)}, r"adapter.targets: no module is named q_prj; names end in .*mean q_proj\?"),
        (QWEN2, {"targets": ("mlp", "attn")}, r"adapter.targets: no module is named attn; names end in act_fn, down_"),
        (GPT2, {"targets": ("c_attnn",)}, r"adapter.targets: no module is named c_attnn; .* Did you mean c_attn\?"),
        (QWEN2, {"targets": ("embed_tokens",)}, r"adapter.targets: model.embed_tokens does not map a vector of every"),
        (GPT2, {"targets": ("wpe",)}, r"adapter.targets: transformer.wpe does not map a vector of every token"),
        (QWEN2, {"targets": ("rotary_emb",)}, r"adapter.targets: model.rotary_emb does not map .* name linear maps"),
        (QWEN2, {"targets": ("layers",)}, r"adapter.targets: model.layers does not map a vector of every token"),
        (QWEN2, {"targets": ("model",)}, r"adapter.targets: model does not map a vector of every token to another"),
        (QWEN2, {"rank": 9}, r"adapter.rank: 9 is larger than a side of model.layers.0.self_attn.k_proj \(8 x 16\); "
         r"take at most 8, or other targets"),
        (QWEN2, {"rank": 17, "targets": ("self_attn",)}, r"adapter.rank: 17 .* model.layers.0.self_attn \(16 x 16\)"),
        (GPT2, {"rank": 17, "targets": ("c_fc",)}, r"adapter.rank: 17 .* transformer.h.0.mlp.c_fc \(64 x 16\); take"),
    ],
)  # fmt: skip
def test_a_site_that_fits_nowhere_is_refused(model: dict[str, Any], settings: dict[str, Any], text: str) -> None:
    with pytest.raises(SpecError, match=text):
        assembled(model, **settings)


def test_a_norm_of_single_heads_takes_no_adapter() -> None:
    """It reads (batch, seq, heads, features): there is no one vector of a token."""
    from transformers import Qwen3Config, Qwen3ForCausalLM

    net = Qwen3ForCausalLM(
        Qwen3Config(
            vocab_size=263, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=2,
            head_dim=8, intermediate_size=24, max_position_embeddings=16,
        )
    )  # fmt: skip
    settings = {"kind": "bank", "slots": 2, "rank": 2, "targets": ("q_norm",)}
    with pytest.raises(SpecError, match=r"adapter.targets: model.layers.0.self_attn.q_norm does not map a vector"):
        banks.attach(net, None, BankSettings.model_validate(settings), 1)
    other = banks.attach(net, None, BankSettings.model_validate({**settings, "targets": ("q_proj",)}), 1)
    assert other.bank is not None and [site.name for site in other.bank.sites][-1] == "lm_head"


def test_a_model_without_a_head_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    net = base(QWEN2)
    monkeypatch.setattr(type(net), "get_output_embeddings", lambda self: None)
    settings = {"kind": "bank", "slots": 1, "rank": 2, "targets": ("q_proj",)}
    with pytest.raises(SpecError, match=r"adapter.head: this model has no output head .* set it to false"):
        banks.attach(net, None, BankSettings.model_validate(settings), 1)
    without = banks.attach(net, None, BankSettings.model_validate({**settings, "head": False}), 1)
    assert without.bank is not None and len(without.bank.sites) == 2


@pytest.mark.parametrize("model", [{**QWEN2, "context": 2}, {**GPT2, "context": 3}])
def test_a_context_shorter_than_what_modules_are_tried_on_is_no_matter(model: dict[str, Any]) -> None:
    assert assembled(model).plain_head


def test_the_first_draw_hangs_on_seed_site_and_slot_alone() -> None:
    def drawn(seed: int = 1, name: str = "model.layers.1.self_attn.q_proj", slot: int = 1, **more: Any) -> Tensor:
        found = assembled({**QWEN2, **more.pop("model", {})}, seed, **more).bank
        assert found is not None and not any(b.any() for b in found.lora_B.values())
        return found.slot(slot)[name][0]

    first = drawn()
    assert torch.equal(first, drawn(targets="attention", head=False, slots=2, model={"init_seed": 9, "layers": 3}))
    for other in (drawn(2), drawn(name="model.layers.0.self_attn.q_proj"), drawn(slot=0)):
        assert not torch.equal(first, other)


# --------------------------------------------------------------------------------------------------------- silence
@BASES
def test_a_bank_is_silent_until_it_speaks(model: dict[str, Any]) -> None:
    """To the bit: logits, hidden states and the gradient of the base are those of a model that has none."""
    module, bank = banked(model, targets=("self_attn" if model is QWEN2 else "attn", "mlp"))
    plain = LanguageModel(base(model), module.tokenizer)
    ids = rows(SLOTS)
    found: list[list[Any]] = []
    for which in (module, plain):
        which.train_what(adapter=False)
        out = which.net(input_ids=ids, use_cache=False, output_hidden_states=True)
        out.logits.square().sum().backward()
        grads = [p.grad for p in which.net.parameters()]
        found.append([out.logits, which.hidden(ids, None), *out.hidden_states, *grads])
    for ours, theirs in zip(*found, strict=True):
        assert torch.equal(ours, theirs)
    assert all(p.grad is None and not p.requires_grad for p in bank.parameters())
    with bank.speaking():
        assert not torch.equal(module.hidden(ids, None), found[0][1])


@BASES
def test_after_a_reset_the_model_is_the_base_to_the_bit(model: dict[str, Any]) -> None:
    module, bank = banked(model)
    module.train_what(adapter=True)
    ids = rows(SLOTS)
    silent = module.net(input_ids=ids, use_cache=False).logits
    BankAdapter(bank).reset(Reset(a="keep"), Generator().manual_seed(1), None, [0, 2])
    with bank.speaking():
        spoken = module.net(input_ids=ids, use_cache=False).logits
    assert [torch.equal(spoken[i], silent[i]) for i in range(SLOTS)] == [True, False, True]
    assert sorted(groups(module)) == ["lora_a", "lora_b"]


@BASES
@pytest.mark.parametrize("way", ["bfloat16 base", "autocast"])
def test_short_arithmetic_leaves_the_factors_in_full(model: dict[str, Any], way: str) -> None:
    module, bank = banked(model)
    module.train_what(adapter=True)
    ids = rows(SLOTS)

    def run() -> Tensor:
        with bank.speaking():
            logits, loss = loss_of(module.net, ids)
        module.zero_grad()
        loss.float().backward()
        return logits.detach().float()

    whole = run()
    grads = torch.cat([p.grad.flatten() for p in bank.parameters() if p.grad is not None])
    if way == "autocast":
        with torch.autocast("cpu", torch.bfloat16):
            short = run()
    else:
        module.net.bfloat16()
        short = run()
    now = torch.cat([p.grad.flatten() for p in bank.parameters() if p.grad is not None])
    assert {p.dtype for p in bank.parameters()} == {torch.float32}
    assert 0 < (short - whole).norm() < 0.05 * whole.norm()
    assert 0 < (now - grads).norm() < 0.1 * grads.norm()


# -------------------------------------------------------------------------------------------------------- the scale
STEPS: dict[str, dict[str, Any]] = {
    "adamw": {"betas": (0.0, 0.999), "eps": 1e-10, "weight_decay": 0.0},
    "sgd": {"momentum": 0.0, "dampening": 0.0, "nesterov": False, "weight_decay": 0.0},
}


def moved(kind: str, rule: str, rank: int) -> float:
    """Return by how much, as a root mean square, the logits move in one step from B = 0."""
    model = {**QWEN2, "width": 128, "layers": 1, "mlp": 128, "kv_heads": 4}
    module = assembled(model, slots=1, rank=rank, alpha=16.0, scaling=rule)
    bank, ids = module.bank, rows(1, 16)
    assert bank is not None
    bank.scale_for(kind)
    module.train_what(adapter=True)
    optimizer = BankOptimizer(bank, kind, [{"params": list(bank.parameters()), "name": "all"}], lr=1e-4, **STEPS[kind])
    with bank.speaking():
        before, loss = loss_of(module.net, ids)
    loss.backward()
    optimizer.step()
    with torch.no_grad(), bank.speaking():
        after = module.net(input_ids=ids, use_cache=False).logits
    return float((after - before.detach()).square().mean().sqrt())


@pytest.mark.parametrize(
    ("kind", "rule", "law"),
    [
        ("adamw", "alpha_over_rank", 1), ("adamw", "auto", 1), ("adamw", "rank_stabilised", 4), ("adamw", "none", 16),
        ("sgd", "rank_stabilised", 1), ("sgd", "auto", 1), ("sgd", "alpha_over_rank", 1 / 16), ("sgd", "none", 16),
    ],
)  # fmt: skip
def test_a_first_step_is_alike_at_every_rank_under_its_own_rule(kind: str, rule: str, law: float) -> None:
    """From rank 8 to rank 128 the first move of the logits grows as lr·s·r under signed steps, as lr·s²·r under SGD.

    Over four seeds we measured 0.87 to 0.97 of what the law says under signed steps, and 0.80 to 1.15 under SGD.
    """
    slack = 1.25 if kind == "adamw" else 1.4
    assert law / slack < moved(kind, rule, 128) / moved(kind, rule, 8) < law * slack
