"""The tables of a report as plain text cells; HTML and Markdown only dress them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from .stats import difference_unit

NONE = "–"


@dataclass(frozen=True)
class Table:
    """A table with its title and a note; the first `texts` and the last `words` columns hold words, others numbers."""

    title: str
    note: str
    head: list[str]
    rows: list[list[str]]
    texts: int = 1
    words: int = 0

    def is_number(self, column: int) -> bool:
        return self.texts <= column < len(self.head) - self.words


def plain(value: float | None, sign: str = "") -> str:
    """Return a number with five significant digits, three for a difference; a dash where there is none."""
    if value is None:
        return NONE
    return f"{value:{sign}.{3 if sign else 5}g}" if math.isfinite(value) else str(value)


def interval(bounds: Any) -> str:
    return f"[{bounds[0]:+.3g}, {bounds[1]:+.3g}]" if bounds else NONE


def p_value(p: float | None) -> str:
    return NONE if p is None else "< 0.0001" if p < 1e-4 else f"{p:.2g}" if p < 0.1 else f"{p:.2f}"


def seconds(value: float | None) -> str:
    if value is None or not math.isfinite(value):
        return NONE
    minutes, rest = divmod(round(value), 60)
    return f"{value:.1f} s" if value < 60 else f"{minutes} min {rest:02d} s"


def mean_sd(spread: Mapping[str, Any]) -> str:
    if spread["mean"] is None:
        return NONE
    return plain(spread["mean"]) + (f" ± {spread['sd']:.2g}" if spread["sd"] is not None else "")


def contrast_name(row: Mapping[str, Any]) -> str:
    return f"{row['a']} − {row['b']}" + (f" at {row['point']}" if row["point"] else "")


def tables(report: Mapping[str, Any]) -> list[Table]:
    """Return every table in the order of the report; those without rows are left out."""
    from .report_items import item_tables
    from .report_routes import route_tables
    from .report_transfer_tables import transfer_tables
    from .report_treatment_tables import treatment_tables

    every = [
        *_differences(report),
        *item_tables(report),
        *treatment_tables(report),
        _values(report),
        *transfer_tables(report),
        *route_tables(report),
    ]
    every += [_matching(report), _runs(report)]
    return [table for table in every if table.rows]


def _differences(report: Mapping[str, Any]) -> list[Table]:
    """One table a point: the figures that the verdict rests on."""
    tables = []
    for point in dict.fromkeys(row["point"] for row in report["contrasts"]):
        rows = [_difference(row) for row in report["contrasts"] if row["point"] == point]
        filled = [
            i
            for i in range(len(DIFFERENCE_HEAD))
            if DIFFERENCE_HEAD[i] != "bootstrap" or any(r[i] != NONE for r in rows)
        ]
        title = "Paired differences" + (f" at {point}" if point else "")
        head, *rows = ([row[i] for i in filled] for row in [DIFFERENCE_HEAD, *rows])
        tables.append(Table(title, DIFFERENCES, head, rows, 3))
    return tables


DIFFERENCE_HEAD = [
    "contrast", "metric", "verdict", "n", "mean", "sd", "95 % t interval", "p (t)", "p (Holm)", "p (sign flip)",
    "attainable", "bootstrap", "won/tied/lost", "g_z", "seeds needed", "last weights",
]  # fmt: skip
DIFFERENCES = (
    "First arm minus second at equal seed, on the selected weights, turned so that positive is better. Improves: the t "
    "interval lies above zero and the Holm-adjusted p of the paired t-test is below 0.05; Holm runs over all contrasts "
    "(and points) of a metric that could be tested. The sign-flip test is exact up to 20 seeds; attainable is the "
    "smallest p it can reach with this many seeds, before Holm. Bootstrap: BCa, from 10 seeds on. g_z: mean over sd, "
    "with Hedges' correction. Seeds needed: for 80 % power at 0.05, were the true effect the measured one. Last "
    "weights: the mean difference on the weights at the end of training, for comparison."
)


def _difference(row: Mapping[str, Any]) -> list[str]:
    unit = difference_unit(row["unit"])
    return [
        f"{row['a']} − {row['b']}",
        row["metric"] + (f" [{unit}]" if unit else ""),
        row["verdict"],
        str(row["n"]) + (f" of {row['n'] + len(row['dropped'])}" if row["dropped"] else ""),
        plain(row["mean"], "+"),
        plain(row["sd"], "-"),
        interval(row["interval"]),
        p_value(row["t_p"]),
        p_value(row["holm_p"]) + (f" (of {row['family']})" if row["family"] > 1 else ""),
        p_value(row["sign_p"])
        + ("" if row["sign_exact"] or row["sign_p"] is None else f" ± {row['sign_resolution']:.0e}"),
        p_value(row["attainable_p"]),
        interval(row["bootstrap"]) + (f" {row['bootstrap_kind']}" if row["bootstrap"] else ""),
        f"{row['wins']}/{row['ties']}/{row['losses']}",
        plain(row["effect"], "+"),
        row["seeds_note"] or NONE if row["seeds_needed"] is None else str(row["seeds_needed"]),
        plain(row["last"]["mean"], "+"),
    ]


def _values(report: Mapping[str, Any]) -> Table:
    seeds = [str(seed) for seed in report["seeds"]]
    rows = [
        [
            row["arm"] + (f" at {row['point']}" if row["point"] else ""),
            row["metric"] + (f" [{row['unit']}]" if row["unit"] else ""),
            mean_sd(row["selected"]),
            str(row["selected"]["n"]),
            mean_sd(row["last"]),
            *(plain(row["selected"]["by_seed"][seed]) for seed in seeds),
        ]
        for row in report["values"]
    ]
    head = ["arm", "metric", "selected weights", "n", "last weights", *(f"seed {seed}" for seed in seeds)]
    on = report["select"].get("on")
    chosen = f" Selected: the epoch with the best {on}." if on else ""
    return Table(
        "Values by arm", f"Mean ± sd (n − 1) over seeds; by seed on the selected weights.{chosen}", head, rows, 2
    )


def _matching(report: Mapping[str, Any]) -> Table:
    names = {"weights": "initial weights", "data_order": "data order", "evaluation_items": "evaluation items"}
    rows = [
        [str(row["seed"]) + (f" at {row['point']}" if row["point"] else ""), *(agreement(row[what]) for what in names)]
        for row in report["matching"]
    ]
    note = f"Hashes compared over the arms at each seed. Runs are {report['exactness']}."
    return Table("Are the arms matched?", note, ["seed", *names.values()], rows, 4)


def agreement(found: Mapping[str, Any]) -> str:
    """Say whether arms share a hash, and who differs or has none."""
    hashes = found["hashes"]
    if found["said"] in ("matched", "one arm"):
        return f"{found['said']} ({next(iter(hashes))[:8]})"
    groups = "; ".join(f"{', '.join(arms)}: {digest[:8]}" for digest, arms in hashes.items())
    missing = f"no hash: {', '.join(found['missing'])}" if found["missing"] else ""
    return f"{found['said']} ({'; '.join(part for part in (groups, missing) if part) or 'no hash'})"


def _runs(report: Mapping[str, Any]) -> Table:
    rows = [
        [
            row["name"],
            row["state"],
            NONE if row["code"] is None else str(row["code"]),
            NONE if row["steps"] is None else f"{row['steps']:,}",
            str(row["epochs"]),
            seconds(row["seconds"]),
            "; ".join(row["resumed"]) or NONE,
            row["error"] or "; ".join(row["problems"]) or NONE,
        ]
        for row in report["runs"]
    ]
    head = ["run", "state", "code", "steps", "epochs", "time", "resumed", "what went wrong"]
    note = "Code is the exit code of the run; time is time spent training, over all its processes."
    return Table("Runs", note, head, rows, 2, 2)


def settings(plugins: Mapping[str, Any]) -> str:
    """Return an arm's plugins with their settings on one line."""
    return ", ".join(f"{name} {_flow(value)}" for name, value in plugins.items()) or "no plugin"


def _flow(value: Any) -> str:
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{k}: {_flow(v)}" for k, v in value.items()) + "}"
    return str(value)
