"""Folders of adapters: what PEFT saved is read as it means it, and PEFT reads back exactly what is written."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from ctr.engine.adapter_files import SavedAdapter, check_same_base, read_adapter
from ctr.engine.adapter_writing import write_adapter
from ctr.engine.deltas import Pair, added, scaled, truncated
from ctr.engine.errors import DataError, StorageError, UsageError

from . import peft_bases as bases

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning", "ignore::RuntimeWarning")
torch.set_num_threads(1)
KINDS: dict[str, dict[str, Any]] = {
    "plain": {},
    "rslora": {"use_rslora": True},
    "patterns": {
        "rank_pattern": {"q_proj": 2, r"layers\.1\.mlp\..*": 3, "^transformer.h.0.attn.c_attn": 1, "h.1.*c_proj": 5},
        "alpha_pattern": {"0.self_attn.q_proj": 3, ".*up_proj": 1.5, "c_fc": 7, r"h\.[01]\.attn\.c_attn": 5},
    },
}
KINDS["rslora and patterns"] = {**KINDS["rslora"], **KINDS["patterns"]}
NAME = "model.layers.0.self_attn.q_proj"


@pytest.fixture(params=bases.FAMILIES)
def family(request: Any) -> str:
    return str(request.param)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return the folder of a plain adapter that PEFT saved."""
    bases.trained("qwen2", 1, target_modules=["q_proj", "v_proj"]).save_pretrained(tmp_path / "theirs")
    return tmp_path / "theirs"


def edit(folder: Path, name: str = "adapter_config.json", **changed: Any) -> None:
    found = json.loads((folder / name).read_text()) if (folder / name).exists() else {}
    (folder / name).write_text(json.dumps({**found, **changed}))


def rewrite(folder: Path, change: Any) -> None:
    """Change the tensors of an adapter by a function that may return others."""
    tensors = load_file(folder / "adapter_model.safetensors")
    tensors = change(tensors) or tensors
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / "adapter_model.safetensors")


# ------------------------------------------------------------------------------------------------------------ reading
@pytest.mark.parametrize("kind", KINDS)
def test_what_peft_saved_is_read_as_it_means_it(kind: str, family: str, tmp_path: Path) -> None:
    net = bases.trained(family, 1, **KINDS[kind])
    net.save_pretrained(tmp_path / "theirs")
    saved = read_adapter(tmp_path / "theirs")
    wanted = bases.change(net)
    assert saved.delta.keys() == wanted.keys() == bases.shapes(family).keys()
    assert saved.transposed == (family == "gpt2") and saved.base is None and saved.note == {}
    ranks = {pair.rank for pair in saved.delta.values()}
    assert len(ranks) > 2 if "patterns" in kind else ranks == {4}
    for name, change in wanted.items():
        assert torch.allclose(saved.delta[name].dense(), change, rtol=1e-5, atol=1e-6), name


@given(st.lists(st.sampled_from(["q", "q_proj", ".*q_proj", "^q_proj", "0.q_proj", r"1\.q_proj", "x|q_proj", "a.b"])))
@settings(max_examples=100, deadline=None)
def test_patterns_are_looked_up_as_peft_does(keys: list[str]) -> None:
    from peft.utils.other import get_pattern_key

    from ctr.engine.adapter_files import _setting

    pattern = {key: float(i + 1) for i, key in enumerate(dict.fromkeys(keys))}
    for name in ("q_proj", "h.0.q_proj", "h.10.q_proj", "h.1.q_proj", "aXb", "a.b.c", "q"):
        wanted = pattern.get(get_pattern_key(pattern.keys(), name), 99.0)  # type: ignore[arg-type]
        assert _setting(Path("f"), {"r": 99, "rank_pattern": pattern}, name, "r", "rank_pattern") == wanted


def test_half_precision_is_read_without_a_loss(folder: Path) -> None:
    rewrite(folder, lambda tensors: {name: tensor.bfloat16() for name, tensor in tensors.items()})
    raw = load_file(folder / "adapter_model.safetensors")
    pair = read_adapter(folder).delta[NAME]
    assert pair.a.dtype == torch.float32 and torch.equal(pair.a, raw[f"base_model.model.{NAME}.lora_A.weight"].float())


# ------------------------------------------------------------------------------------------------------------ writing
@st.composite
def deltas(draw: Any, family: str) -> dict[str, Pair]:
    """Draw a delta of some of a base's targets, whose ranks and scalings differ, negative ones among them."""
    found = {}
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    for name in draw(st.lists(st.sampled_from(sorted(bases.shapes(family))), min_size=1, unique=True)):
        out, into = bases.shapes(family)[name]
        rank = draw(st.sampled_from([1, 2, 3, 16]))
        a, b = (torch.randn(size, generator=generator) / 3 for size in ((rank, into), (out, rank)))
        found[name] = Pair(a, b, draw(st.sampled_from([1.0, 2.0, 0.3, -0.7, 1 / 3])))
    return found


@pytest.mark.parametrize("which", bases.FAMILIES)
@given(st.data())
@settings(max_examples=8, deadline=None)
def test_peft_merges_a_written_delta_to_base_plus_delta(which: str, data: st.DataObject) -> None:
    delta = data.draw(deltas(which))
    with tempfile.TemporaryDirectory() as place:
        path = Path(place) / "ours"
        digest = write_adapter(path, delta, {"base": "abc", "route": "A"}, transposed=which == "gpt2")
        found, wanted = bases.merged(which, path), bases.summed(which, delta)
        again = read_adapter(path)
    assert found.keys() == wanted.keys()
    for name in wanted:
        touched = name.removesuffix(".weight") in delta
        assert torch.allclose(found[name], wanted[name], rtol=1e-5, atol=2e-6) if touched else True, name
        assert touched or torch.equal(found[name], wanted[name]), name
    assert again.base == "abc" and again.note["route"] == "A" and again.digest == digest == again.note["sha256"]
    assert again.delta.keys() == delta.keys()
    for name, pair in delta.items():
        assert torch.equal(again.delta[name].a, pair.a) and again.delta[name].rank == pair.rank
        assert again.delta[name].scaling == pytest.approx(abs(pair.scaling), rel=1e-15)
        assert torch.equal(again.delta[name].b, pair.b if pair.scaling > 0 else -pair.b)


@pytest.mark.parametrize("kind", KINDS)
def test_sums_of_adapters_are_what_peft_merges(kind: str, family: str, tmp_path: Path) -> None:
    """0.7·X − 0.4·Y of two kinds, as the sum of the weights that PEFT gives each alone."""
    nets = [bases.trained(family, 1, **KINDS[kind]), bases.trained(family, 2, r=3, lora_alpha=5)]
    read = []
    for i, net in enumerate(nets):
        net.save_pretrained(tmp_path / str(i))
        read.append(read_adapter(tmp_path / str(i)))
    check_same_base(dict(zip("XY", read, strict=True)))
    whole = added([scaled(read[0].delta, 0.7), scaled(read[1].delta, -0.4)])
    write_adapter(tmp_path / "sum", whole, {}, transposed=read[0].transposed)
    found, plain = bases.merged(family, tmp_path / "sum"), bases.summed(family, {})
    for name, left in bases.change(nets[0]).items():
        wanted = 0.7 * left - 0.4 * bases.change(nets[1])[name]
        gained = found[f"{name}.weight"].double() - plain[f"{name}.weight"].double()
        assert torch.allclose(gained.T if family == "gpt2" else gained, wanted, atol=5e-6), name
    cut, errors = truncated(whole, 2)
    write_adapter(tmp_path / "cut", cut, {}, transposed=read[0].transposed)
    assert {pair.rank for pair in read_adapter(tmp_path / "cut").delta.values()} == {2} and max(errors.values()) > 0.01


class Nested(torch.nn.Module):
    """Linear maps whose names end in each other's, or are each other's as a regex."""

    def __init__(self) -> None:
        super().__init__()
        for name in ("q", "x_q", "axb"):
            self.add_module(name, torch.nn.Linear(3, 3, bias=False))
        self.inner = torch.nn.ModuleDict({name: torch.nn.Linear(3, 3, bias=False) for name in ("q", "axb")})
        self.a = torch.nn.ModuleDict({"b": torch.nn.Linear(3, 3, bias=False)})
        self.config = {"model_type": "custom"}

    def prepare_inputs_for_generation(self) -> None:
        """Be what PEFT expects of a causal model."""


@pytest.mark.parametrize("listed", [False, True], ids=["as written", "as a list"])
def test_no_target_is_taken_for_another(listed: bool, tmp_path: Path) -> None:
    """With targets as a list, as PEFT's own configs have them, and plain patterns, the same delta would go astray."""
    from peft import PeftModel
    from peft.tuners.lora import LoraLayer

    def pair(rank: int, scaling: float) -> Pair:
        return Pair(torch.randn(rank, 3), torch.randn(3, rank), scaling)

    delta = {"q": pair(2, 2.0), "a.b": pair(1, 0.5), "inner.q": pair(3, 1.0), "axb": pair(3, 1.0)}
    write_adapter(tmp_path / "ours", delta, {})
    said = json.loads((tmp_path / "ours" / "adapter_config.json").read_text())
    assert len(said["rank_pattern"]) == 2 and said["r"] == 3
    if listed:
        plain = {key: {k[1:].replace("\\", ""): v for k, v in said[key].items()} for key in said if "_pattern" in key}
        edit(tmp_path / "ours", target_modules=[name.replace("\\", "") for name in said["target_modules"].split("|")],
             **plain)  # fmt: skip
    torch.manual_seed(0)
    net = Nested()
    before = {name: p.detach().clone() for name, p in net.named_parameters()}
    if listed:
        with pytest.raises(RuntimeError, match="size mismatch for base_model.model.inner.q.lora_A"):
            PeftModel.from_pretrained(net, str(tmp_path / "ours"))  # type: ignore[arg-type]
        return
    theirs = PeftModel.from_pretrained(net, str(tmp_path / "ours"))  # type: ignore[arg-type]
    layers = {name for name, part in theirs.base_model.model.named_modules() if isinstance(part, LoraLayer)}
    assert layers == set(delta)
    after = dict(theirs.merge_and_unload().named_parameters())  # type: ignore[operator]
    for name, value in before.items():
        change = delta[name.removesuffix(".weight")].dense() if name.removesuffix(".weight") in delta else 0.0
        assert torch.allclose(after[name].double(), value.double() + change, atol=1e-6), name


def test_a_written_adapter_can_be_of_half_precision_and_targets_without_rank_are_left_out(tmp_path: Path) -> None:
    delta = {"p": Pair(torch.randn(2, 3), torch.randn(4, 2), 1.0), "q": Pair(torch.zeros(0, 3), torch.zeros(4, 0), 1.0)}
    write_adapter(tmp_path / "ours", delta, {}, dtype=torch.bfloat16)
    raw = load_file(tmp_path / "ours" / "adapter_model.safetensors")
    assert len(raw) == 2 and {tensor.dtype for tensor in raw.values()} == {torch.bfloat16}
    zero = scaled({"p": delta["p"]}, 0.0)
    write_adapter(tmp_path / "zero", zero, {})
    assert not read_adapter(tmp_path / "zero").delta["p"].dense().any()


def test_what_cannot_be_written_is_refused_and_leaves_nothing(tmp_path: Path) -> None:
    good = {"p": Pair(torch.randn(2, 3), torch.randn(4, 2), 1.0)}
    (tmp_path / "there").mkdir()
    with pytest.raises(UsageError, match="there: exists; give a folder that does not"):
        write_adapter(tmp_path / "there", good, {})
    with pytest.raises(DataError, match="changes no target, so there is no adapter to write"):
        write_adapter(tmp_path / "ours", {}, {})
    for a, dtype in ((torch.full((2, 3), torch.nan), torch.float32), (torch.full((2, 3), 1e30), torch.float16)):
        with pytest.raises(DataError, match=f"factor A of p holds a number that is not finite as {dtype}"):
            write_adapter(tmp_path / "ours", {"p": Pair(a, good["p"].b, 1.0)}, {}, dtype=dtype)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["there"]


@pytest.mark.parametrize("nth", range(1, 5))
def test_a_full_disk_leaves_no_half_an_adapter(nth: int, tmp_path: Path, monkeypatch: Any) -> None:
    real, seen = os.write, 0

    def full(*given: Any) -> int:
        nonlocal seen
        seen += 1
        if seen >= nth:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(*given)

    monkeypatch.setattr(os, "write", full)
    delta = {"p": Pair(torch.randn(2, 3), torch.randn(4, 2), 1.0)}
    if nth > 3:  # three files, a write each
        write_adapter(tmp_path / "ours", delta, {})
        assert len(list((tmp_path / "ours").iterdir())) == 3
        return
    with pytest.raises(StorageError, match="cannot be written: No space left on device"):
        write_adapter(tmp_path / "ours", delta, {})
    assert not list(tmp_path.iterdir())


# ----------------------------------------------------------------------------------------------------------- refusals
@pytest.mark.parametrize(
    ("said", "text"),
    [
        ({"init_lora_weights": "pissa_niter_4"}, "init_lora_weights pissa_niter_4 took its factors out of the base's"),
        ({"init_lora_weights": "OLoRA"}, "init_lora_weights OLoRA took .* or convert it by PEFT's save_pretrained"),
        ({"use_dora": True}, "use_dora gives the base's rows other norms, so zeroing B would not restore the base"),
        ({"kasa_config": {"beta": 1}}, "kasa_config cut"),
        ({"bias": "all"}, "bias all trained biases too, .*; train it with bias: none"),
        ({"lora_bias": True}, "lora_bias adds what is in neither factor"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save replaced parts of the base"),
        ({"trainable_token_indices": [1]}, "trainable_token_indices trained rows of the embedding"),
        ({"layer_replication": [[0, 2]]}, "layer_replication gave the base other layers"),
        ({"target_parameters": ["experts.up"]}, "target_parameters adapts parameters"),
        ({"alora_invocation_tokens": [1, 2]}, "alora_invocation_tokens adapts some tokens"),
        ({"arrow_config": {"top_k": 3}}, "arrow_config weighs experts"),
        ({"use_qalora": True}, "use_qalora pools"),
        ({"use_bdlora": {"nblocks": 2}}, "use_bdlora holds blocks"),
        ({"monteclora_config": {"x": 1}}, "monteclora_config draws"),
    ],
)
def test_variants_that_cannot_obey_the_laws_are_refused(said: dict[str, Any], text: str, folder: Path) -> None:
    edit(folder, **said)
    with pytest.raises(DataError, match=f"theirs is no plain LoRA: {text}"):
        read_adapter(folder)


def test_an_embedding_s_adapter_and_another_kind_are_refused(tmp_path: Path) -> None:
    bases.trained("qwen2", 1, target_modules=["q_proj", "embed_tokens"]).save_pretrained(tmp_path / "embeds")
    with pytest.raises(DataError, match="no plain LoRA: .*lora_embedding_A .* is an adapter beside an embedding; save"):
        read_adapter(tmp_path / "embeds")
    edit(tmp_path / "embeds", peft_type="ADALORA")
    with pytest.raises(DataError, match="embeds is no LoRA adapter but one of peft_type ADALORA, whose change is no"):
        read_adapter(tmp_path / "embeds")


@pytest.mark.parametrize(
    ("said", "text"),
    [
        ({"r": 0}, rf"says rank 0 at {NAME}, and A is \(4, 8\), B \(8, 4\)"),
        ({"r": 3}, rf"says rank 3 at {NAME}, and A is \(4, 8\)"),
        ({"rank_pattern": {"q_proj": 2}}, rf"says rank 2 at {NAME}"),
        ({"r": None}, "r and lora_alpha must be numbers"),
        ({"lora_alpha": "much"}, "does not describe a LoRA adapter: r and lora_alpha must be numbers"),
        ({"lora_alpha": True}, rf"lora_alpha of {NAME} is no finite number"),
        ({"alpha_pattern": {"q_proj": float("nan")}}, "is not JSON"),
        ({"alpha_pattern": {"(": 2}}, "their patterns map a regex to one"),
        ({"alpha_pattern": [1]}, "their patterns map a regex to one"),
    ],
)
def test_a_config_that_does_not_fit_its_factors_is_refused(said: dict[str, Any], text: str, folder: Path) -> None:
    edit(folder, **said)
    with pytest.raises(DataError, match=text):
        read_adapter(folder)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda t: {k: v + (torch.inf if "lora_A" in k else 0) for k, v in t.items() if "layers.0.self_attn.q" in k},
         f"factor A of {NAME} holds a number that is not finite; .* take an earlier adapter"),
        (lambda t: {k: v.where(v > 1, torch.nan) for k, v in t.items() if "lora_B" in k}, "factor B of .* not finite"),
        (lambda t: {k: v for k, v in t.items() if NAME not in k or "lora_A" not in k},
         f"theirs has one of the factors A and B of {NAME} alone"),
        (lambda t: {"base_model.model.x.lora_magnitude_vector": torch.ones(3)},
         r"x.lora_magnitude_vector \(3,\) is no factor of a linear map"),
        (lambda t: {"base_model.model.x.lora_A.weight": torch.ones(2, 3, 1, 1)}, r"\(2, 3, 1, 1\) is no factor"),
        (lambda t: {"base_model.model.x.lora_A.weight": torch.ones(2, 3, dtype=torch.int32)}, "is no factor"),
        (lambda t: {"base_model.model.x.lora_A.weight": torch.ones(0, 3), "base_model.model.x.lora_B.weight":
                    torch.ones(3, 0)}, r"says rank 4 at x, and A is \(0, 3\)"),
    ],
)  # fmt: skip
def test_tensors_that_are_no_pairs_of_finite_factors_are_refused(change: Any, text: str, folder: Path) -> None:
    rewrite(folder, change)
    with pytest.raises(DataError, match=text):
        read_adapter(folder)


def test_missing_and_damaged_files_are_told(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="nowhere holds no adapter_config.json; give the folder of a saved adapter"):
        read_adapter(tmp_path / "nowhere")
    config, tensors = folder / "adapter_config.json", folder / "adapter_model.safetensors"
    said, data = config.read_text(), tensors.read_bytes()
    for text, what in (("{", "is not JSON"), ("[1]", "is no JSON object, so it describes no adapter")):
        config.write_text(text)
        with pytest.raises(DataError, match=f"adapter_config.json: {what}"):
            read_adapter(folder)
    config.write_text(said)
    for cut in (b"", data[:-1], b"\xff" * 100, b"\x02\0\0\0\0\0\0\0{}"):
        tensors.write_bytes(cut)
        with pytest.raises(DataError, match="adapter_model.safetensors.*(cannot be read|holds no factor)"):
            read_adapter(folder)
    tensors.unlink()
    with pytest.raises(DataError, match="adapter_model.safetensors cannot be read: No such file or directory$"):
        read_adapter(folder)
    (folder / "adapter_model.bin").write_bytes(b"")
    with pytest.raises(DataError, match="is a pickle, which could run code: save it by safe_serialization=True"):
        read_adapter(folder)


def test_a_flipped_bit_is_found_by_the_manifest_and_folders_without_one_are_read(folder: Path) -> None:
    data = (folder / "adapter_model.safetensors").read_bytes()
    assert read_adapter(folder).digest == hashlib.sha256(data).hexdigest()
    edit(folder, "ctr.json", base="b" * 64, phase="A")  # as before there were hashes
    assert read_adapter(folder).base == "b" * 64
    edit(folder, "ctr.json", sha256=hashlib.sha256(data).hexdigest())
    assert read_adapter(folder).note["phase"] == "A"
    (folder / "adapter_model.safetensors").write_bytes(data[:-3] + bytes([data[-3] ^ 1]) + data[-2:])
    with pytest.raises(DataError, match="adapter_model.safetensors: does not match the sha256 that ctr.json has of it"):
        read_adapter(folder)
    (folder / "ctr.json").write_text("[]")
    with pytest.raises(DataError, match="ctr.json: is no JSON object; remove it to go without"):
        read_adapter(folder)


def test_adapters_of_different_bases_are_not_added() -> None:
    def saved(base: str | None, **targets: tuple[int, int]) -> SavedAdapter:
        pairs = {name: Pair(torch.ones(1, into), torch.ones(out, 1), 1.0) for name, (out, into) in targets.items()}
        return SavedAdapter(Path("x"), pairs, "d", base, False, {})

    one = saved("1" * 64, q=(3, 4))
    check_same_base({"A": one, "B": replace(one, base=None), "C": saved("1" * 64, k=(5, 5))})
    check_same_base({})
    text = "B and A were trained beside different bases .sha256 222222222222… and 111111111111….; changes of one base"
    with pytest.raises(DataError, match=text):
        check_same_base({"A": one, "B": saved("2" * 64, q=(3, 4))})
    with pytest.raises(DataError, match=r"B changes q as \(4, 3\), and A as \(3, 4\); they belong to different bases"):
        check_same_base({"A": one, "B": saved(None, q=(4, 3))})
