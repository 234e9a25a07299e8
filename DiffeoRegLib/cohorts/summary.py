"""All rows of a cohort together: a table for programs and the words for people; the page is in page.py."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from DiffeoRegLib.cells import cell
from DiffeoRegLib.cohorts.job import Job
from DiffeoRegLib.cohorts.page import html_page
from DiffeoRegLib.cohorts.store import DONE, FAILED, Store
from DiffeoRegLib.report.pair_numbers import NUMBERS, Numbers, spread
from DiffeoRegLib.whole_file import replace_file

TABLE, PAGE = "summary.csv", "summary.html"


@dataclass(frozen=True)
class CohortRow:
    """What is known of a row in the end.

    fixed, moving: file names.  state: see store.  attempts: how many there were.  folder: of its results,
    relative to the cohort's.  report: its page there, or its numbers, or empty.
    """

    number: int
    name: str
    fixed: str
    moving: str
    method: str
    state: str
    attempts: int
    folder: str
    report: str = ""
    problem: str = ""
    numbers: Numbers = field(default_factory=dict)
    labels: Numbers = field(default_factory=dict)


def rows_of(store: Store, jobs: Sequence[Job]) -> list[CohortRow]:
    """Every row as the folder tells it: finished rows from their results, the others from their status."""
    rows = []
    for job in jobs:
        status, record = store.status(job), store.record(job)
        # Asked when the command ends: then nobody runs a row that has no end.
        known: dict[str, Any] = {"state": status.interrupted().state, "problem": status.problem}
        if record is not None:
            files = record["files"]
            known = {
                "state": DONE,
                "report": f"{job.folder}/{files.get('page') or files['report']}",
                "numbers": record["numbers"],
                "labels": record["labels"],
            }
        fixed, moving = Path(job.inputs["fixed"]).name, Path(job.inputs["moving"]).name
        rows.append(
            CohortRow(
                job.number, job.name, fixed, moving, str(job.values["method"]),
                attempts=len(status.attempts), folder=job.folder, **known,
            )
        )  # fmt: skip
    return rows


def summarise(rows: Sequence[CohortRow]) -> dict[str, Any]:
    """How many rows are in which state, and the spread of every number over the finished ones."""
    done = [row for row in rows if row.state == DONE]
    return {
        "rows": len(rows),
        "done": len(done),
        "failed": sum(row.state == FAILED for row in rows),
        "numbers": {name: spread(row.numbers.get(name) for row in done) for name in NUMBERS},
    }


def write_summary(folder: Path, rows: Sequence[CohortRow]) -> None:
    """Write the table and the page, each wholly or not at all; raises OutputError."""
    replace_file(folder / TABLE, as_csv(rows).encode("utf-8"))
    replace_file(folder / PAGE, html_page(rows, summarise(rows)).encode("utf-8"))


def as_csv(rows: Sequence[CohortRow]) -> str:
    """A row each; what was not measured stays empty."""
    labels = sorted({name for row in rows for name in row.labels}, key=int)
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    about = ["row", "name", "fixed", "moving", "method", "state", "attempts"]
    writer.writerow([*about, *NUMBERS, *(f"dice_{name}" for name in labels), "report", "problem"])
    for row in rows:
        values = [row.numbers.get(name) for name in NUMBERS] + [row.labels.get(name) for name in labels]
        cells = ["" if value is None else f"{value:.6g}" for value in values]
        names = map(cell, (row.name, row.fixed, row.moving, row.method, row.state))
        writer.writerow([row.number, *names, row.attempts, *cells, cell(row.report), cell(row.problem)])
    return text.getvalue()


def summary_lines(summary: Mapping[str, Any]) -> list[list[str]]:
    """Mean, deviation, least and greatest of every number there is, as text."""
    lines = []
    for name, title in NUMBERS.items():
        values = summary["numbers"][name]
        if values["count"]:
            cells = [values[key] for key in ("mean", "sd", "min", "max")]
            lines.append([title, *("-" if cell is None else f"{cell:.4g}" for cell in cells)])
    return lines
