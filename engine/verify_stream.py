"""Showing on a user's own spec that a stream of documents is scored fairly: `ctr verify-stream`.

A score may depend on what came before it alone, is of a whole distribution, is booked before anything learns from it,
and once. These are the invariants by which adapting while scoring is judged.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from .errors import UsageError, VerificationError
from .output import say

ROUNDING = 1e-5  # of a sum of probabilities in float32
TEXTS = {
    "I1": "future tokens move no past score",
    "I2": "cold documents are independent",
    "I3": "within a group, documents are independent",
    "I4": "a chunk is scored before it is trained on",
    "I5": "a whole distribution is scored",
    "I6": "every chunk is scored once",
    "I7": "a new document meets the model itself",
    "I8": "a cold draw depends on its group, site and slot alone",
    "I9": "a finished slot does not move",
    "I10": "the same stream gives the same scores",
    "I11": "what scores is given no target",
    "I12": "no pass comes before the first score",
}


@dataclass(frozen=True)
class Finding:
    """One invariant: how it was tried, the largest difference seen, and whether it holds.

    `difference` is None where nothing is subtracted, `holds` where the spec claims no such thing.
    """

    name: str
    how: str
    difference: float | None
    holds: bool | None


def verify_stream(
    spec: Annotated[str, typer.Argument(help="A spec file, or the name of a shipped spec.")],
    arm: Annotated[str | None, typer.Option("--arm", help="Which arm; default: the last.")] = None,
    groups: Annotated[int, typer.Option("--groups", min=2, help="Groups of documents to walk through.")] = 3,
    sets: Annotated[list[str] | None, typer.Option("--set", help="Change a setting, such as train.threads=1.")] = None,
) -> None:
    """Try every invariant of scoring while adapting on the first groups of a spec's stream; exit 6 if one fails."""
    from .cli import spec_path

    found = findings(spec_path(spec), arm=arm, sets=sets or (), groups=groups)
    for one in found:
        verdict = "not claimed" if one.holds is None else "holds" if one.holds else "FAILS"
        seen = "" if one.difference is None else f"; largest difference {one.difference:.3g}"
        say(f"{one.name:<4} {verdict:<12} {TEXTS[one.name]}")
        say(f"                  {one.how}{seen}")
    broken = [one.name for one in found if one.holds is False]
    if broken:
        raise VerificationError(f"{', '.join(broken)} of {len(found)} invariants failed")


def findings(path: Path, *, arm: str | None, sets: Sequence[str], groups: int = 3) -> list[Finding]:
    """Walk through the first groups of a stream several times and compare; weights are those the run begins with.

    Raises `UsageError` where no phase streams documents, or none of the first documents has the chunks that it takes.
    """
    from .host import discover
    from .stream_walks import Stage
    from .verify import order_of

    with tempfile.TemporaryDirectory(prefix="ctr-verify-") as root:
        registry = discover()
        stage = Stage(order_of(path, sets, arm, Path(root) / "run"), registry, groups)
        return [*_by_walks(stage), *_by_trial(stage)]


def _by_walks(stage: Any) -> Iterator[Finding]:
    """Judge what takes whole walks: plain, again, with a document changed, and without updates from a chunk on."""
    document, chunks = stage.longest()
    if chunks < 3:
        text = f"the longest document of the first group has {chunks} chunks, and three are needed"
        raise UsageError(f"{text}: take a smaller chunk or longer documents")
    at = stage.early(document)
    plain, again = stage.walk(), stage.walk()
    changed, frozen = stage.walk(stage.changed(document, at)), stage.walk(frozen_from=at)
    group = set(stage.task.plan.groups[0].tolist())
    own = [key for key in plain.losses if key[0] == document]
    mates = [key for key in plain.losses if key[0] in group and key[0] != document]
    others = [key for key in plain.losses if key[0] not in group]
    # what was changed must be seen to matter, or a check that finds no difference says nothing
    later = plain.apart(changed, [key for key in own if key[1] > at])
    waked = plain.apart(frozen, [key for key in plain.losses if key[0] in group and key[1] > at])
    where = f"document {stage.task.documents.ids[document]} changed after chunk {at}"

    past = plain.apart(changed, [key for key in own if key[1] <= at])
    yield Finding("I1", f"{where}, whose later scores moved by {later:.3g}", past, past == 0 and later > 0)
    near, ahead = plain.apart(changed, mates), plain.apart(changed, others)
    if not any(key[1] > at + 1 for key in mates):
        for name in ("I2", "I3"):  # a bond could only show in a score that follows an update on what was changed
            yield Finding(name, "no other document of the first group is long enough for a bond to show", None, None)
    else:
        far = max(near, ahead)
        cold = f"{where}; all other documents", far, far == 0
        yield Finding("I2", *(cold if plain.cold else ("A outlives its document", None, None)))
        yield Finding("I3", f"{where}; the others of its group (later groups moved by {ahead:.3g})", near, near == 0)
    early = plain.apart(frozen, [key for key in plain.losses if key[0] in group and key[1] <= at])
    how = f"no update from chunk {at} on, by which later scores moved by {waked:.3g}"
    if waked > 0:
        yield Finding("I4", how, early, early == 0)
    else:
        yield Finding("I4", "updates move no score of this arm, so their order cannot be seen", None, None)
    all_of_them = plain.width == stage.built.module.vocab
    sums = plain.normalised
    yield Finding("I5", f"probabilities of {plain.width} tokens, summed", sums, all_of_them and sums < ROUNDING)
    yield Finding("I6", f"entries in the ledger of {len(plain.losses)} chunks", None, plain.once)
    yield Finding("I9", "every update, and the slots without part in it", plain.moved, plain.moved == 0)
    twice = plain.apart(again, list(plain.losses))
    yield Finding("I10", "the same walk twice", twice, twice == 0)
    before = float(plain.before_first - 1)
    yield Finding("I12", "passes until the first score, its own apart", before, before == 0)


def _by_trial(stage: Any) -> Iterator[Finding]:
    for name, how, seen in (
        ("I7", "first chunks with the bank and without it", stage.first_chunks_differ()),
        ("I8", "slots drawn all at once, and one by one after other draws", stage.draws_differ()),
        ("I11", "logits with other targets in the batch", stage.labels_matter()),
    ):
        yield Finding(name, how, seen, seen == 0)
