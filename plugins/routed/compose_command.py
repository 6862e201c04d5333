"""`ctr compose`: the adapter that a route means, as a folder that PEFT loads beside the run's base.

What is written is loaded back and scored beside what the route itself scores, before the folder gets its name.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal
from warnings import catch_warnings, simplefilter

import typer

from ctr.engine.errors import StorageError, UsageError, VerificationError
from ctr.engine.output import say
from ctr.engine.text import printable

from .route import Route, RouteError, parse

if TYPE_CHECKING:
    from ctr.engine.compositions import Composition
    from ctr.engine.deltas import Delta
    from ctr.engine.task import Evaluation

    from .finished import FinishedRun

Space = Literal["factor", "effective"]
# loss per unit of any item by which a folder's score may differ from its route's: float32 adds up in another order, and
# a merge into bfloat16 rounds every weight to 8 bits
TOLERANCE = {"float32": 1e-4, "bfloat16": 2e-2}


def compose(
    run: Annotated[Path, typer.Argument(help="The folder of a run, such as runs/STUDY/ARM-s1.")],
    route: Annotated[str, typer.Option("--route", help="What to compose, such as A+0.9B+0.25C.")],
    out: Annotated[Path, typer.Option("--out", help="The folder to write; it must not exist.")],
    space: Annotated[
        Space, typer.Option("--space", help="effective: changes of weights add up; factor: A and B are added apart.")
    ] = "effective",
    rank: Annotated[int | None, typer.Option("--rank", min=1, help="Cut every target to this rank.")] = None,
    merged: Annotated[bool, typer.Option("--merged", help="Write the model with the adapter folded in.")] = False,
) -> None:
    """Write the composition of a run's adapters that a route means, and verify that it scores as the route does."""
    for line in write_composition(run, route, out, space, rank, merged):
        say(line)


def write_composition(
    run: Path, route: str, out: Path, space: Space = "effective", rank: int | None = None, merged: bool = False
) -> list[str]:
    """Write a route's adapter, or with `merged` the whole model, to `out`; return what to say about it.

    Raises `UsageError` for a route that is none or does not fit the run, an `out` that exists, or a folder that is no
    run with adapters; `DataError` for a damaged snapshot; `StorageError` where the disk refuses; `VerificationError`
    where what was written does not score as the route. After an error there is no `out`.
    """
    try:
        asked = parse(route)
    except RouteError as error:
        raise UsageError(f"--route: {error}") from error
    if out.exists():
        raise UsageError(f"{printable(out)}: exists; give a folder that does not")
    from ctr.engine.compositions import Composition
    from ctr.engine.deltas import truncated

    from .finished import open_run

    found = open_run(run)
    try:
        asked = asked.fit(found.snapshots.phases, found.snapshots.layout)
        found.check_base(asked.phases)
        whole = found.snapshots.compose(asked, space)
    except RouteError as error:
        raise UsageError(f"--route: {error}") from error
    if not any(pair.rank and pair.b.any() for pair in whole.pairs.values()):
        raise UsageError(f"--route: {asked} changes nothing of the base, so there is no adapter to write")
    pairs, errors = truncated(whole.pairs, rank) if rank is not None else (dict(whole.pairs), {})
    spoken = _scores(found, whole)
    kept = spoken if rank is None else _scores(found, Composition(pairs))
    note = _note(found, asked, space, rank, errors, merged)
    with _staged(out) as stage:
        model = _fold(found, pairs, stage) if merged else _beside(found, pairs, stage)
        off = _compared(found, kept, model)
        _finish(stage, note, spoken, kept, off)
        if out.exists():
            raise UsageError(f"{printable(out)}: somebody made it meanwhile; give a folder that does not exist")
    return _said(found, out, asked, space, pairs, errors, spoken, kept, off, merged)


def _scores(found: FinishedRun, composition: Composition) -> dict[str, Evaluation]:
    return {name: evaluate([composition], "val")[0] for name, evaluate in found.evaluate.items()}


@contextmanager
def _staged(out: Path) -> Iterator[Path]:
    from safetensors import SafetensorError

    from ctr.engine.storage import staged_folder

    try:
        with staged_folder(out) as stage:
            yield stage
    except SafetensorError as error:  # how it tells of a disk that refuses
        raise StorageError(f"{printable(out)}: cannot be written: {printable(error, 200)}") from error


# ------------------------------------------------------------------------------------------------------------- writing
def _beside(found: FinishedRun, pairs: Delta, stage: Path) -> Any:
    """Write the adapter, and return the run's base with what PEFT reads of it; the run's own adapter is gone."""
    from peft import PeftModel

    from ctr.engine.adapter_writing import fill_adapter
    from ctr.engine.tasks.language_models import LanguageModel

    transposed = all(one.transposed for one in found.saved.values())
    fill_adapter(stage, pairs, {}, transposed=transposed)
    with catch_warnings():
        simplefilter("ignore")  # PEFT's own, on transformers' renamed properties
        net: Any = found.model.net.unload()
        peft = PeftModel.from_pretrained(net, str(stage), torch_device=str(found.about.device))
        return LanguageModel(net, found.model.tokenizer, peft)


def _fold(found: FinishedRun, pairs: Delta, stage: Path) -> Any:
    """Write the model with the change added to its weights in float64, and return it as transformers reads it."""
    import torch
    from transformers import AutoModelForCausalLM

    from ctr.engine.deltas import applied
    from ctr.engine.tasks.language_models import LanguageModel

    bases = {factor.name: factor.base for factor in found.adapter.factors if factor.name in pairs}
    with catch_warnings(), torch.no_grad():
        simplefilter("ignore")
        for name, weight in bases.items():  # one at a time: a float64 copy of the whole model is none
            weight.copy_(applied({name: pairs[name]}, {name: weight}, torch.float64)[name])
        net: Any = found.model.net.unload()
        net.save_pretrained(stage)
        found.model.tokenizer.save_pretrained(stage)
        again: Any = AutoModelForCausalLM.from_pretrained(str(stage), dtype="auto")
    return LanguageModel(again, found.model.tokenizer)


def _note(
    found: FinishedRun, route: Route, space: Space, rank: int | None, errors: Mapping[str, float], merged: bool
) -> dict[str, Any]:
    from importlib.metadata import version

    return {
        "run": found.path.resolve().name,
        "step": found.about.step,
        "route": str(route),
        "space": space,
        "rank": rank,
        "truncation": dict(errors),
        "merged": merged,
        "phases": {phase: {"sha256": saved.digest} for phase, saved in found.saved.items()},
        "base": found.base,
        "ctr": version("ctr-engine"),
    }


def _finish(
    stage: Path,
    note: dict[str, Any],
    spoken: Mapping[str, Evaluation],
    kept: Mapping[str, Evaluation],
    off: Mapping[str, float],
) -> None:
    """Write the manifest: what went in, what it scores, and the hash of the tensors that were written."""
    from ctr.engine.adapter_files import MANIFEST
    from ctr.engine.storage import read_json, write_json

    told = read_json(stage / MANIFEST) or {}
    scores = {
        name: {"route": spoken[name].mean(), "written": kept[name].mean(), "largest_difference": off[name]}
        for name in kept
    }
    write_json(stage / MANIFEST, {**note, **told, "scores": {"split": "val", "tasks": scores}})


# ----------------------------------------------------------------------------------------------------------- verifying
def _compared(found: FinishedRun, kept: Mapping[str, Evaluation], model: Any) -> dict[str, float]:
    """Return by task the largest difference of an item's loss per unit; raises `VerificationError` beyond tolerance."""
    import numpy as np

    again = found.scores(model.to(found.about.device))
    allowed = TOLERANCE["bfloat16" if found.model.coarse else "float32"]
    off = {}
    for name, before in kept.items():
        after = again[name]
        if list(before.ids) != list(after.ids):
            raise VerificationError(f"task {name}: the route and what was written were scored on different items")
        apart = np.abs(before.loss_sum - after.loss_sum) / np.maximum(before.count, 1)
        off[name] = float(apart.max(initial=0.0))
        if not off[name] <= allowed:
            text = f"task {name}: the route scores {before.mean():.6g}, what was written {after.mean():.6g}"
            item = printable(before.ids[int(np.argmax(np.nan_to_num(apart, nan=np.inf)))], 80)
            text += f"; item {item} differs by {off[name]:.3g}, and {allowed:g} is allowed"
            raise VerificationError(f"{text}; nothing is kept")
    return off


def _said(
    found: FinishedRun,
    out: Path,
    route: Route,
    space: Space,
    pairs: Delta,
    errors: Mapping[str, float],
    spoken: Mapping[str, Evaluation],
    kept: Mapping[str, Evaluation],
    off: Mapping[str, float],
    merged: bool,
) -> list[str]:
    what = "the model" if merged else f"an adapter of rank {max(pair.rank for pair in pairs.values())}"
    lines = [f"{printable(out)}: {what} of {printable(found.path.name)} for {route} in {space} space"]
    if errors:
        worst = max(errors, key=lambda name: errors[name])
        lines.append(f"cut to its rank: relative error at most {errors[worst]:.3g}, at {worst}")
    for name, after in kept.items():
        loss = f"{spoken[name].mean():.6g}"
        if errors:
            loss += f", cut {after.mean():.6g}"
        lines.append(f"task {name}: val.loss {loss}; as loaded back, no item differs by more than {off[name]:.2g}")
    return lines
