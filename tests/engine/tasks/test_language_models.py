"""Models that come from files, what a run of them refuses, and the peace they keep on the terminal."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from ctr.engine.errors import DataError, SpecError
from ctr.engine.task import Phase
from ctr.engine.tasks.causal_lm import CausalLm
from ctr.engine.tasks.language_config import PretrainedModel, TinyModel

from .small_text import FAMILIES, LORA, QWEN2, begun, build, make, study, train

TINY = "{kind: tiny, width: 16, layers: 2, heads: 4, kv_heads: 2, context: 64, dropout: 0.1}"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A small model and its tokenizer as transformers saves them."""
    return save(QWEN2, tmp_path)


def save(model: dict[str, Any], tmp_path: Path) -> Path:
    module = build(make(tmp_path), model)
    path = tmp_path / "model"
    module.net.save_pretrained(path)
    module.tokenizer.save_pretrained(path)
    return path


@pytest.mark.parametrize("model", FAMILIES.values(), ids=FAMILIES)
@pytest.mark.filterwarnings("error")
def test_a_saved_model_is_itself_again(
    model: dict[str, Any], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path = save(model, tmp_path)
    capfd.readouterr()
    task, module = begun(tmp_path, {"kind": "pretrained", "name": str(path)}, LORA)
    tiny = build(make(tmp_path), model, LORA)
    left, right = module.state_dict(), tiny.state_dict()
    assert left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)
    other = begun(tmp_path, model, LORA)[0]
    assert [(task._split("train").flat == other._split("train").flat).all()] == [True]
    assert module.plain_head and module.context == 64 and not module.coarse
    said = capfd.readouterr()
    assert said.out == said.err == ""


def test_a_pretrained_run_trains_and_knows_its_model(folder: Path, tmp_path: Path) -> None:
    spec = study(tmp_path, {TINY: f"{{kind: pretrained, name: {folder}}}"})
    assert train(spec, tmp_path / "run").status == "finished"


def test_the_fingerprint_follows_the_weights(folder: Path) -> None:
    def mark() -> str:
        return CausalLm.model_fingerprints(PretrainedModel(kind="pretrained", name=str(folder)))["model"]

    before = mark()
    assert before == mark() and len(before) == 64
    weights = load_file(folder / "model.safetensors")
    name = sorted(weights)[0]
    weights[name].flatten()[0] += 1
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    changed = mark()
    (folder / "tokenizer_config.json").write_text("{}")
    assert len({before, changed, mark()}) == 3
    (folder / "notes.md").write_text("nothing to do with it")
    assert CausalLm.model_fingerprints(TinyModel(kind="tiny")) == {}


# ------------------------------------------------------------------------------------------------------ refusals
def refused(path: str, **more: Any) -> str:
    with pytest.raises((SpecError, DataError)) as found:
        build(make(Path(path).parent), {"kind": "pretrained", "name": path, **more})
    return str(found.value)


def test_a_folder_that_holds_no_model_is_refused(tmp_path: Path, folder: Path) -> None:
    nowhere, empty = tmp_path / "nowhere", tmp_path / "empty"
    empty.mkdir()
    assert f"model.name: {nowhere} is no folder; give the folder that holds config.json" in refused(str(nowhere))
    assert f"model.name: {empty} has no config.json, so it is no model" in refused(str(empty))
    text = "is no causal language model that can be loaded: "
    for name, content in (
        ("model.safetensors", b"\0" * 8),
        ("config.json", b'{"model_type": "vit"}'),
        ("config.json", b"{"),
    ):
        (folder / name).write_bytes(content)
        assert text in refused(str(folder))
    (folder / "model.safetensors").unlink()
    assert text in refused(str(folder))


def test_a_model_of_which_weights_are_missing_is_refused(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    gone = [weights.pop(f"model.layers.{i}.mlp.up_proj.weight") for i in range(2)]
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    text = f"model.name: {folder} holds no weights for model.layers.0.mlp.up_proj.weight and 1 more; give a folder that"
    assert gone and text in refused(str(folder))
    weights |= {f"model.layers.{i}.mlp.up_proj.weight": gone[0][:3].clone() for i in range(2)}
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    assert f"model.name: {folder} " in refused(str(folder))


def test_a_pickle_is_not_opened(folder: Path) -> None:
    class Exploit:
        def __reduce__(self) -> Any:
            return Path.touch, (folder / "touched",)

    (folder / "model.safetensors").unlink()
    torch.save(Exploit(), folder / "pytorch_model.bin")
    assert "is no causal language model" in refused(str(folder))
    assert not (folder / "touched").exists()


def test_a_name_on_the_hub_that_cannot_be_reached(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(*args: Any, local_files_only: bool = False, **more: Any) -> str:
        raise ConnectionError("no cache" if local_files_only else "no route to host\n\x1b[31mred")

    monkeypatch.setattr("huggingface_hub.snapshot_download", unreachable)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError) as found:
        CausalLm.model_fingerprints(PretrainedModel(kind="pretrained", name="someone/something"))
    text = str(found.value)
    assert "someone/something is not here and could not be fetched from the hub: no route to host" in text
    assert "\x1b" not in text and "HF_HUB_OFFLINE=1 and give a local folder as model.name" in text


@pytest.mark.parametrize("name", ["a/b/c", "so me", "..", "-x"])
def test_a_name_that_the_hub_cannot_have(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SpecError, match="model.name: "):
        CausalLm.model_fingerprints(PretrainedModel(kind="pretrained", name=name))


def test_rows_longer_than_the_context_are_refused(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="task.max_length: 65 is more than the model's context of 64 tokens"):
        begun(tmp_path, QWEN2, max_length=65)
    begun(tmp_path, QWEN2, max_length=64)


def test_coarse_weights_are_frozen_ones(folder: Path, tmp_path: Path) -> None:
    model = {"kind": "pretrained", "name": str(folder), "dtype": "bfloat16"}
    task, module = begun(tmp_path, model, LORA)
    kinds = {name: p.dtype for name, p in module.named_parameters()}
    assert {kinds[name] for name in kinds if ".lora_" in name} == {torch.float32}
    assert {kinds[name] for name in kinds if ".lora_" not in name} == {torch.bfloat16}
    task.forward(module, task.batch(0, 0), {}).loss.backward()
    full = begun(tmp_path, QWEN2, LORA)
    assert task.evaluate(module, "val").mean() == pytest.approx(full[0].evaluate(full[1], "val").mean(), rel=0.02)
    with pytest.raises(
        SpecError, match=r"model.dtype: .*too coarse to be trained; set model.dtype: float32, or trains: ada"
    ):
        task.begin(Phase("main", 0, 1, 4))


def test_tokens_that_the_model_does_not_have_are_refused(tmp_path: Path) -> None:
    """A tokenizer that was given more words than the embedding has rows would fail in the middle of training."""
    path = save({**QWEN2, "vocab": 264}, tmp_path)
    module = build(make(tmp_path), QWEN2)
    module.tokenizer.add_tokens(["ash birch", "cedar", "elm"])
    module.tokenizer.save_pretrained(path)
    assert "the tokenizer gives token 265, which is past the model's vocabulary of 264; model.name must" in refused(
        str(path)
    )


def test_language_and_images_share_no_model(tmp_path: Path) -> None:
    image = "{kind: image_classification, data: {source: digits}}"
    old = "{kind: causal_lm, max_length: 48, data: {source: text, path: FOLDER/a.txt}}"
    outcome = train(study(tmp_path, {old: image}), tmp_path / "run")
    assert outcome.status == "failed" and outcome.code == 3
    assert outcome.error is not None and "cannot share" in outcome.error and "LanguageModel" in outcome.error


def test_images_and_language_share_no_model(tmp_path: Path) -> None:
    image = "base: {kind: image_classification, data: {source: digits}}"
    old = "base: {kind: causal_lm, max_length: 48, data: {source: text, path: FOLDER/base.txt}}"
    lora = "adapter: {kind: lora, rank: 2, alpha: 4, dropout: 0.1}\n"
    spec = study(tmp_path, {old: image, lora: "", TINY: "{kind: small_resnet, width: 2}"})
    outcome = train(spec, tmp_path / "run")
    assert outcome.status == "failed" and outcome.code == 3 and outcome.error is not None
    assert "is no language model, so causal_lm cannot share it" in outcome.error


# -------------------------------------------------------------------------------------------------- the terminal
def test_a_run_says_nothing_that_is_not_ctr_s_own(folder: Path, tmp_path: Path) -> None:
    """No progress bar, advice or warning of transformers or PEFT, with every warning shown."""
    spec = study(
        tmp_path,
        {TINY: f"{{kind: pretrained, name: {folder}}}", "threads: 1": "threads: 1\n  gradient_checkpointing: true"},
    )
    code = f"""
from pathlib import Path
from tests.engine.tasks.small_text import train
outcome = train(Path({str(spec)!r}), Path({str(tmp_path / "run")!r}))
assert outcome.status == "finished", outcome
"""
    root = Path(__file__).parents[3]
    done = subprocess.run(
        [sys.executable, "-W", "always", "-c", code], cwd=root, capture_output=True, text=True, timeout=110
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "" and done.stderr == ""


def test_the_fingerprint_follows_everything_that_is_loaded_wherever_the_folder_lies(tmp_path: Path) -> None:
    """A chat template decides rows; and a folder of one's own may be called as the hub calls its own."""
    folder = tmp_path / "snapshots" / "mine"
    (folder / "additional_chat_templates").mkdir(parents=True)
    seen = []
    for name in ("config.json", "model.safetensors", "chat_template.jinja", "additional_chat_templates/tool.jinja"):
        (folder / name).write_text(name)
        found = CausalLm.model_fingerprints(PretrainedModel(kind="pretrained", name=str(folder)))["model"]
        (folder / name).write_text("changed")
        seen += [found, CausalLm.model_fingerprints(PretrainedModel(kind="pretrained", name=str(folder)))["model"]]
    assert len(set(seen)) == len(seen)
