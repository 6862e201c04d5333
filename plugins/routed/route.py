"""Routes: which phases of a run speak in its adapter, and how loud, as text that reads back as it was written.

`A+0.9B+0.25C` is the sum of what phases A, B and C changed, with these weights. Weights may differ by group:
`C[early=0.25,middle=0.4,late=0.6]`, and `0.5C[block.3=1]` is 1 in block 3 and 0.5 elsewhere. The source of the form is
the public "Surface Tension Transformers" code; groups of more kinds than bands and factors are ours.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal, get_args

GroupKind = Literal["phase", "factor", "band", "block", "module", "tensor"]
KINDS: Final = get_args(GroupKind)
FACTORS: Final = ("a", "b")
BANDS: Final = ("early", "middle", "late")
_NUMBER = r"[+-]?(?:\d+(?:\.\d*)?|\.\d+)(?:[eE][+-]?\d+)?"
_NAME = r"[A-Za-z_][\w.-]*"
_TERM = re.compile(
    rf"(?:(?P<weight>{_NUMBER})(?:\*(?P<starred>[\w.-]+))?)?(?P<phase>{_NAME})?(?:\[(?P<groups>[^\[\]]*)\])?\Z"
)
_UNENDED = re.compile(r"[+-]?(?:\d+(?:\.\d*)?|\.\d+)[eE]")  # a number whose exponent's sign comes next
_PLAIN = re.compile(r"[A-DF-Za-df-z_]")  # `2e3` is a number, so a phase called e3 is written after a star
_BLOCK = re.compile(r"block\.(\d{1,6})\Z")
_INDEX = re.compile(r"\.(\d+)\.")  # the first number in a module's name counts its blocks: `.layers.3.`, `.h.3.`
LONGEST: Final = 100_000  # characters of a route; one of every tensor of a 0.5B model has a tenth of that


class RouteError(ValueError):
    """A text that is no route, or a route that does not fit a run."""


@dataclass(frozen=True)
class Place:
    """Where a weight applies: a target's A or B, with the block it lies in and the band of its block.

    Thirds of the depth are bands: block i of n is early below n/3, middle below 2n/3, then late. A target outside of
    all blocks has neither.
    """

    target: str
    factor: str
    block: int | None = None
    band: str | None = None

    def group(self, kind: GroupKind) -> str | None:
        """Return the name of the group of this kind that the place belongs to; None where it belongs to none."""
        if kind == "block":
            return None if self.block is None else f"block.{self.block}"
        names = {"phase": "", "factor": self.factor, "band": self.band, "module": self.target}
        return names.get(kind, f"{self.target}.{self.factor}")


@dataclass(frozen=True)
class Layout:
    """The targets of a run's adapter, and where each lies."""

    places: Mapping[str, tuple[Place, Place]]

    @classmethod
    def of(cls, targets: Iterable[str]) -> Layout:
        names = list(targets)
        numbers = {name: int(found[1]) for name in names if (found := _INDEX.search(f".{name}."))}
        depth = max(numbers.values(), default=-1) + 1
        places = {}
        for name in names:
            block = numbers.get(name)
            band = None if block is None else BANDS[min(3 * block // depth, 2)]
            places[name] = (Place(name, "a", block, band), Place(name, "b", block, band))
        return cls(places)

    @property
    def depth(self) -> int:
        """How many blocks there are."""
        return max((a.block for a, _ in self.places.values() if a.block is not None), default=-1) + 1

    def groups(self, kind: GroupKind) -> list[str]:
        """Return the groups of a kind that have a place, lower blocks first."""
        order = sorted(self.places.values(), key=lambda pair: math.inf if pair[0].block is None else pair[0].block)
        return list(dict.fromkeys(g for pair in order for place in pair if (g := place.group(kind)) is not None))

    def kind_of(self, group: str) -> GroupKind:
        """Return the kind of a group by its name; raises `RouteError` naming what there is."""
        kind = _kind(group)
        if kind not in ("module", "tensor"):
            if group not in self.groups(kind):
                text = f"{group}: this adapter has {', '.join(self.groups(kind)) or f'no {kind}'}"
                raise RouteError(text)
            return kind
        if group in self.places:
            return "module"
        if group.rpartition(".")[0] in self.places and group.rpartition(".")[2] in FACTORS:
            return "tensor"
        some = ", ".join(list(self.places)[:3])
        raise RouteError(f"{group} is no target of this adapter, nor a group; its targets are {some}, ...")


def _kind(group: str) -> GroupKind:
    if group in FACTORS:
        return "factor"
    if group in BANDS:
        return "band"
    return "block" if _BLOCK.match(group) else "module"


@dataclass(frozen=True)
class Term:
    """A phase with its weight, and other weights for some of its groups."""

    phase: str
    weight: float = 1.0
    groups: tuple[tuple[str, float], ...] = ()

    def __str__(self) -> str:
        plain = _PLAIN.match(self.phase)
        weight = "" if self.weight == 1 and (plain or self.phase[0] in "eE") else number(self.weight)
        mark = "" if plain or not weight else "*"
        groups = ",".join(f"{name}={number(value)}" for name, value in self.groups)
        return f"{weight}{mark}{self.phase}" + (f"[{groups}]" if groups else "")


@dataclass(frozen=True)
class Route:
    """A sum of phases; a phase that it does not name has weight 0."""

    terms: tuple[Term, ...]

    def __str__(self) -> str:
        return "+".join(map(str, self.terms)) or "0"

    @property
    def phases(self) -> tuple[str, ...]:
        return tuple(term.phase for term in self.terms)

    @property
    def scalar(self) -> bool:
        """Whether no weight differs by group."""
        return not any(term.groups for term in self.terms)

    def fit(self, phases: Sequence[str], layout: Layout | None = None) -> Route:
        """Return the route with its terms in the order of a run's phases, groups that say nothing left out.

        Raises `RouteError` for a phase that the run does not have, or groups of an adapter's layout that it has not.
        """
        unknown = [name for name in self.phases if name not in phases]
        if unknown:
            raise RouteError(
                f"{self}: no phase {unknown[0]} trained the adapter; those that did are {', '.join(phases)}"
            )
        if layout is not None:
            for term in self.terms:
                kinds = {layout.kind_of(group) for group, _ in term.groups}
                if len(kinds) > 1:
                    text = f"{term}: groups of a phase are of one kind, given {' and '.join(sorted(kinds))}"
                    raise RouteError(text)
        kept = (Term(t.phase, t.weight, tuple(g for g in t.groups if g[1] != t.weight)) for t in self.terms)
        named = sorted((t for t in kept if t.weight or t.groups), key=lambda t: phases.index(t.phase))
        return Route(tuple(named))

    def weights(self, layout: Layout) -> dict[str, dict[str, tuple[float, float]]]:
        """Return the weights of A and of B by phase and target, of phases that the route names."""
        found = {}
        for term in self.terms:
            own = dict(term.groups)
            kind = layout.kind_of(next(iter(own))) if own else "phase"
            found[term.phase] = {
                target: (own.get(a.group(kind) or "", term.weight), own.get(b.group(kind) or "", term.weight))
                for target, (a, b) in layout.places.items()
            }
        return found

    def with_weight(self, phase: str, group: str, weight: float) -> Route:
        """Return the route with one weight changed: a phase's own, or with `group` that of one of its groups."""
        terms = {term.phase: term for term in self.terms}
        term = terms.get(phase, Term(phase, 0.0))
        if not group:
            terms[phase] = Term(phase, weight, term.groups)
        else:
            terms[phase] = Term(phase, term.weight, tuple((dict(term.groups) | {group: weight}).items()))
        return Route(tuple(terms.values()))


def number(value: float) -> str:
    """Write a weight so that it reads back as the same one."""
    return repr(float(value)).removesuffix(".0")


def parse(text: str) -> Route:
    """Read a route; raises `RouteError` saying what is wrong with which part.

    `str` of the result reads back as the same route.
    """
    if len(text) > LONGEST:
        raise RouteError(f"a route of {len(text):,} characters; at most {LONGEST:,} are read")
    plain = re.sub(r"\s*([+*=,\[\]])\s*", r"\1", text.strip())
    if plain == "0":
        return Route(())
    terms = [_term(part) for part in _parts(plain)]
    twice = [term.phase for i, term in enumerate(terms) if term.phase in {t.phase for t in terms[:i]}]
    if twice:
        raise RouteError(f"{_short(text)}: phase {twice[0]} is named twice; give it one weight")
    return Route(tuple(terms))


def _parts(text: str) -> list[str]:
    """Split at each plus that stands in no bracket and is no sign of a number or its exponent."""
    parts, depth, start = [], 0, 0
    for at, sign in enumerate(text):
        depth += (sign == "[") - (sign == "]")
        if sign == "+" and depth == 0 and at > start and not _UNENDED.fullmatch(text, start, at):
            parts.append(text[start:at])
            start = at + 1
    return [*parts, text[start:]]


def _term(text: str) -> Term:
    found = _TERM.match(text)
    phase = found and (found["phase"] or found["starred"])
    if not found or not phase or (found["phase"] and found["starred"]):
        hint = "a term is a weight and the name of a phase, such as 0.25C or C[block.3=0.5]"
        raise RouteError(f"{_short(text)!r} is no term of a route: {hint}")
    weight = _weight(found["weight"], text) if found["weight"] is not None else 1.0
    groups: dict[str, float] = {}
    for part in (found["groups"] or "").split(",") if found["groups"] is not None else ():
        name, equals, value = part.rpartition("=")
        if not equals or not name:
            raise RouteError(f"{_short(text)}: {_short(part)!r} is no group; write group=weight, such as early=0.25")
        if name in groups:
            raise RouteError(f"{_short(text)}: group {name} is named twice")
        groups[name] = _weight(value, text)
    return Term(phase, weight, tuple(groups.items()))


def _weight(text: str, where: str) -> float:
    value = float(text) if re.fullmatch(_NUMBER, text) else math.nan
    if not math.isfinite(value):
        raise RouteError(f"{_short(where)}: {_short(text)!r} is no weight; a finite number is expected")
    return value + 0.0  # no negative zero


def _short(text: str) -> str:
    return text if len(text) <= 80 else text[:77] + "..."
