"""What a report says of treatments beyond its contrasts: criteria, geometry against loss, and doses."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from .outcomes import Outcomes
from .report_criteria import criteria
from .report_doses import doses
from .report_read import Study
from .report_tradeoffs import tradeoffs
from .text import printable, slug_problem

Drawn = tuple[dict[str, str], bytes]


def treatments(study: Study) -> dict[str, Any]:
    """Return the three parts; each is empty where the study has nothing of its kind."""
    outcomes = Outcomes(study)
    return {"criteria": criteria(outcomes), "tradeoffs": tradeoffs(outcomes), "doses": doses(outcomes)}


def pictures(report: Mapping[str, Any]) -> Iterator[Drawn]:
    """Draw geometry against loss, and each swept key."""
    from .figure_doses import dose_response
    from .figure_tradeoffs import against_loss

    rows = [row for row in report["tradeoffs"] if row["loss"] and row["loss"]["mean"] is not None]
    if rows:
        title = f"{report['study']}: what plugins measure against {rows[0]['loss']['metric']}, 95 % t intervals"
        yield _about("tradeoffs", "against-loss", title), against_loss(rows, report["arms"], title)
    for number, key in enumerate(dict.fromkeys(row["key"] for row in report["doses"])):
        rows = [row for row in report["doses"] if row["key"] == key]
        name = key if not slug_problem(key, 40) else str(number)
        title = f"{report['study']}: outcomes against {key}, mean and 95 % t interval over seeds"
        yield _about("doses", f"dose-{name}", title), dose_response(rows, report["arms"], title)


def _about(kind: str, name: str, title: str) -> dict[str, str]:
    return {"kind": kind, "path": f"figures/{name}.png", "title": printable(title, 200), "alt": printable(title, 200)}
