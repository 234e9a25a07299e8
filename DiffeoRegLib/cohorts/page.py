"""One self-contained HTML page about a cohort: what came of every row, and how the numbers are spread."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from DiffeoRegLib.cohorts.strips import STRIP_STYLE, Dot, strip
from DiffeoRegLib.report.pair_numbers import NUMBERS, Numbers
from DiffeoRegLib.report.style import STYLE

if TYPE_CHECKING:
    from DiffeoRegLib.cohorts.summary import CohortRow

TITLES = {"inverse_max_mm": "largest inverse error (mm)"}
"""Where the title of a number needs the column before it."""
SHOWN = ("dice_initial", "dice", "tre_initial_mm", "tre_mm", "folded_percent", "inverse_max_mm", "seconds")
PLOTS = {
    "dice": "Dice of the labels, registered",
    "tre_mm": "Landmark error (mm), registered",
    "folded_percent": "Folded (%)",
    "seconds": "Seconds",
}
LEFT = ' class="name"'
STATES = {"done": "done", "failed": "failed", "interrupted": "not finished", "waiting": "not begun"}


def html_page(rows: Sequence[CohortRow], summary: Mapping[str, Any]) -> str:
    """The page as text; nothing is loaded from elsewhere, the reports of the rows are linked."""
    title = f"{summary['done']} of {summary['rows']} registrations done"
    body = [
        f"<h1>{title}</h1>",
        f'<p class="soft">{escape(_subtitle(rows, summary))}</p>',
        _problems(rows),
        _plots(rows),
        _spread(summary),
        _table(rows),
    ]
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{title}</title><style>{STYLE}{STRIP_STYLE}</style></head>\n"
        f"<body><main>{''.join(body)}</main></body></html>\n"
    )


def _subtitle(rows: Sequence[CohortRow], summary: Mapping[str, Any]) -> str:
    methods = ", ".join(sorted({row.method for row in rows}))
    failed = f", {summary['failed']} failed" if summary["failed"] else ""
    open_rows = summary["rows"] - summary["done"] - summary["failed"]
    return f"DiffeoReg, method {methods}{failed}" + (f", {open_rows} not finished" if open_rows else "")


def _problems(rows: Sequence[CohortRow]) -> str:
    lines = "".join(
        f"<li>Row {row.number}, {escape(row.name)}: {escape(row.problem)}</li>" for row in rows if row.problem
    )
    if not lines:
        return ""
    return f'<section class="verdict bad"><h2>Rows that failed</h2><ul>{lines}</ul></section>'


def _plots(rows: Sequence[CohortRow]) -> str:
    """A strip for every number that was measured; before and after on one scale where both are known."""
    plots = []
    for name, title in PLOTS.items():
        before = {"dice": "dice_initial", "tre_mm": "tre_initial_mm"}.get(name)
        dots = _dots(rows, name)
        if dots:
            earlier = _dots(rows, before) if before else []
            plots.append(strip(title, dots, earlier, whole=(0.0, 1.0) if name == "dice" else None))
    if not plots:
        return ""
    words = "A dot is a row: point at it for its name, click it for its report. The line is the median."
    return f'<section><h2>Spread</h2><p class="note">{words}</p>{"".join(plots)}</section>'


def _dots(rows: Sequence[CohortRow], name: str) -> list[Dot]:
    found = [(row, row.numbers.get(name)) for row in rows]
    return [Dot(value, row.name, quote(row.report)) for row, value in found if value is not None]


def _spread(summary: Mapping[str, Any]) -> str:
    lines = ""
    for name, title in NUMBERS.items():
        values = summary["numbers"][name]
        if values["count"]:
            cells = "".join(f"<td>{_number(values[key])}</td>" for key in ("mean", "sd", "min", "max"))
            lines += f"<tr><td>{escape(TITLES.get(name, title))}</td><td>{values['count']}</td>{cells}</tr>"
    if not lines:
        return ""
    head = "".join(f"<th>{word}</th>" for word in ("", "rows", "mean", "sd", "least", "greatest"))
    return f"<section><h2>Numbers</h2>{_wide(head, lines)}</section>"


def _table(rows: Sequence[CohortRow]) -> str:
    shown = [name for name in SHOWN if any(row.numbers.get(name) is not None for row in rows)]
    titles = ("row", "name", "state", "attempts", *(TITLES.get(name, NUMBERS[name]) for name in shown))
    head = "".join(f"<th{LEFT if title == 'name' else ''}>{escape(title)}</th>" for title in titles)
    lines = "".join(f"<tr>{_cells(row, row.numbers, shown)}</tr>" for row in rows)
    return f"<section><h2>Rows</h2>{_wide(head, lines)}</section>"


def _cells(row: CohortRow, numbers: Numbers, shown: Sequence[str]) -> str:
    name = escape(row.name)
    if row.report:
        name = f'<a href="{quote(row.report)}">{name}</a>'
    state = escape(STATES.get(row.state, row.state))
    about = f'<td>{row.number}</td><td class="name">{name}</td><td>{state}</td>'
    return f"{about}<td>{row.attempts}</td>" + "".join(f"<td>{_number(numbers.get(n))}</td>" for n in shown)


def _wide(head: str, lines: str) -> str:
    return f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{lines}</tbody></table></div>'


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}"
