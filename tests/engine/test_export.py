"""The model of a run as a folder: transformers loads it, and PEFT the run's adapters beside it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
from typer.testing import CliRunner

from ctr.engine.checkpoint import CheckpointStore
from ctr.engine.cli import app
from ctr.engine.errors import DataError, UsageError
from ctr.engine.export import write_model
from ctr.engine.resume import module_tensors

from .tasks.small_text import study, train

IDS = torch.tensor([[97, 115, 104, 32, 112, 105, 110, 101]])


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a finished run whose base was trained in its first phase."""
    folder = tmp_path_factory.mktemp("exported")
    path = folder / "runs" / "spoken" / "baseline-s1"
    outcome = train(study(folder), path)
    assert outcome.status == "finished", outcome.error
    return path


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = model.eval()(input_ids=IDS).logits
    return found


@pytest.mark.filterwarnings("ignore")  # PEFT's own, on transformers' renamed properties
def test_an_adapter_loads_beside_the_base_that_an_earlier_phase_trained(run: Path, tmp_path: Path) -> None:
    from peft import PeftModel

    said = write_model(run, tmp_path / "model")
    assert said[1:] == ["adapter A belongs beside it"]
    base = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    loaded = CheckpointStore(run).newest()
    assert loaded is not None
    kept = module_tensors(loaded.tensors)
    name = next(key for key in kept if key.endswith("embed_tokens.weight"))
    assert torch.equal(base.get_input_embeddings().weight, kept[name])
    alone = logits(base)
    adapted = logits(PeftModel.from_pretrained(base, run / "adapters" / "A"))
    assert not torch.allclose(alone, adapted)
    said = write_model(run, tmp_path / "merged", merged=True)
    assert "do not belong beside it" in said[1]
    folded = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    assert torch.allclose(logits(folded), adapted, atol=1e-5)
    assert AutoTokenizer.from_pretrained(tmp_path / "model")("ash")["input_ids"] == [97, 115, 104]


def test_what_cannot_be_exported_is_told(run: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="is no folder of a run; it holds no spec.yaml"):
        write_model(tmp_path, tmp_path / "model")
    (tmp_path / "there").mkdir()
    with pytest.raises(UsageError, match="exists; give a folder that does not"):
        write_model(run, tmp_path / "there")
    bare = tmp_path / "bare"
    bare.mkdir()
    (bare / "spec.yaml").write_bytes((run / "spec.yaml").read_bytes())
    with pytest.raises(DataError, match="has no checkpoint that could be read"):
        write_model(bare, tmp_path / "model")
    assert not (tmp_path / "model").exists()


def test_the_command_says_what_it_wrote(run: Path, tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["export", str(run), str(tmp_path / "model")])
    assert done.exit_code == 0, done.output
    assert "the model of baseline-s1 after step 12" in done.output.replace("\n", " ")
