"""`ctr export`: the language model of a run as a folder that transformers loads, and PEFT beside its adapters.

An adapter is worth nothing without the base it was trained beside. Where a phase of the run trained that base, it lies
in checkpoints alone until it is exported.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from .errors import DataError, UsageError
from .output import say
from .text import printable


def export(
    run: Annotated[Path, typer.Argument(help="The folder of a run, such as runs/STUDY/ARM-s1.")],
    out: Annotated[Path, typer.Argument(help="The folder to write; it must not exist.")],
    merged: Annotated[bool, typer.Option("--merged", help="With the adapter folded into the weights.")] = False,
) -> None:
    """Write the base of a run's language model, as it stands at its newest checkpoint, for transformers and PEFT."""
    for line in write_model(run, out, merged):
        say(line)


def write_model(run: Path, out: Path, merged: bool = False) -> list[str]:
    """Write model and tokenizer to `out` and say which of the run's adapters belong beside them.

    Raises `UsageError` for a folder that is no run, an `out` that exists, or a run of another kind of model;
    `DataError` where no checkpoint can be read.
    """
    from .checkpoint import CheckpointStore
    from .rundir import RunDir
    from .storage import staged_folder
    from .tasks.lora import base_digest

    folder = RunDir(run)
    if not folder.spec.is_file():
        raise UsageError(f"{printable(run)}: is no folder of a run; it holds no spec.yaml")
    if out.exists():
        raise UsageError(f"{printable(out)}: exists; give a folder that does not")
    loaded = CheckpointStore(run).newest()
    if loaded is None:
        raise DataError(f"{printable(run)}: has no checkpoint that could be read, so there are no weights to export")
    model = _rebuilt(folder, loaded)
    digest = base_digest(model)
    net = _merged(model) if merged else _bare(model)
    with staged_folder(out) as stage:
        net.save_pretrained(stage)
        model.tokenizer.save_pretrained(stage)
    return [f"{printable(out)}: the model of {run.name} after step {loaded.step}", *_beside(run, digest, merged)]


def _rebuilt(folder: Any, loaded: Any) -> Any:
    """Make the model as the run did, without its data, and put its weights back."""
    import torch

    from . import resume
    from .seeding import mix, stream
    from .spec import RunSpec
    from .task import Context
    from .tasks.language_config import PretrainedModel, TinyModel
    from .tasks.language_models import assemble
    from .yaml_reader import read

    spec = RunSpec.from_document(read(folder.spec))
    if not isinstance(spec.model, TinyModel | PretrainedModel):
        raise UsageError(f"{printable(folder.path)}: its model is no language model, so transformers could not load it")
    torch.default_generator.manual_seed(mix(stream(spec.seed, "init")))  # a base that was never trained is in no file
    context: Any = Context(spec.seed, torch.device("cpu"), folder.path)
    model = assemble(spec.model, spec.adapter, context)
    model.load_state_dict(resume.module_tensors(loaded.tensors), strict=False)
    return model


def _bare(model: Any) -> Any:
    """Return the transformers model without what stands beside it."""
    return model.net.unload() if model.has_adapter else model.causal


def _merged(model: Any) -> Any:
    if not model.has_adapter:
        what = "a bank, whose adapters belong to different documents" if model.bank is not None else "no adapter"
        raise UsageError(f"--merged: the run has {what}; leave it out for the base alone")
    return model.net.merge_and_unload(safe_merge=True)


def _beside(run: Path, digest: str, merged: bool) -> list[str]:
    """Say which of the run's adapters were trained beside these weights, by their hashes."""
    from .adapter_files import MANIFEST
    from .rundir import read_json

    if merged:
        return ["with its adapter folded in; the run's saved adapters do not belong beside it"]
    said = []
    for folder in sorted((run / "adapters").glob("*")) if (run / "adapters").is_dir() else ():
        note = read_json(folder / MANIFEST)
        known = note.get("base") if isinstance(note, dict) else None
        fits = known is not None and known == digest
        said.append(f"adapter {printable(folder.name)} {'belongs' if fits else 'does not belong'} beside it")
    return said
