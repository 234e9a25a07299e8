"""Rows of results as text: one line while running, Markdown tables with ratios, JSON."""

from __future__ import annotations

import json
import platform
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

Row = dict[str, Any]
# name in the row, heading, format
COLUMNS = (
    ("dice", "Dice", "{:.4f}"),
    ("tre_mm", "TRE mm", "{:.2f}"),
    ("hd95_mm", "HD95 mm", "{:.2f}"),
    ("folded_percent", "folded %", "{:.4f}"),
    ("folded_whole_percent", "folded % (whole grid)", "{:.4f}"),
    ("sd_log_jacobian", "SDlogJ", "{:.3f}"),
    ("inverse_mean_mm", "inverse error mm", "{:.4f}"),
    ("inverse_max_mm", "largest", "{:.2f}"),
    ("nmi", "NMI", "{:.4f}"),
    ("register_seconds", "register s", "{:.1f}"),
    ("register_cpu_seconds", "register CPU s", "{:.1f}"),
    ("inverse_cpu_seconds", "inverse CPU s", "{:.1f}"),
    ("wall_seconds", "wall s", "{:.1f}"),
    ("cpu_seconds", "CPU s", "{:.1f}"),
    ("peak_mb", "MB", "{:.0f}"),
)


def _text(row: Row, key: str, pattern: str) -> str:
    value = row.get(key)
    return "-" if value is None or not np.isfinite(value) else pattern.format(value)


def one_line(row: Row) -> str:
    """Progress line of one run."""
    if row["status"] != "ok":
        return (
            f"{row['pair']}  {row['method']}  {row['status']}  ({_text(row, 'cpu_seconds', '{:.1f}')} CPU s)"
        )
    known = [column for column in COLUMNS if row.get(column[0]) is not None]
    values = [f"{heading} {_text(row, key, pattern)}" for key, heading, pattern in known]
    return f"{row['pair']}  {row['method']}  " + "  ".join(values)


def phase_seconds(report: dict[str, Any]) -> dict[str, float]:
    """Seconds per phase of our report.json."""
    phases = report["seconds"]
    return {str(name): float(seconds) for name, seconds in phases.items()}


def merge(files: Iterable[Sequence[Row]]) -> list[Row]:
    """Rows of several result files; a later file replaces the same set, pair and method."""
    found: dict[tuple[str, str, str], Row] = {}
    for rows in files:
        found.update({(row["set"], row["pair"], row["method"]): row for row in rows})
    return sorted(found.values(), key=lambda row: (row["set"], row["pair"]))


def means(rows: Sequence[Row], group: str) -> list[Row]:
    """One row per method of a set: means over its finished pairs (largest inverse error: the largest)."""
    result: list[Row] = []
    for method in dict.fromkeys(row["method"] for row in rows if row["set"] == group):
        mine = [row for row in rows if row["set"] == group and row["method"] == method]
        done = [row for row in mine if row["status"] == "ok"]
        row: Row = {"set": group, "method": method, "runs": f"{len(done)} of {len(mine)}"}
        row["status"] = "ok" if done else mine[0]["status"]
        for key, _, _ in COLUMNS:
            values = [r[key] for r in done if r.get(key) is not None and np.isfinite(r[key])]
            if values:
                row[key] = float(np.max(values) if key == "inverse_max_mm" else np.mean(values))
        row["pairs"] = sorted(r["pair"] for r in done)
        result.append(row)
    return result


def _ratios(row: Row, reference: Row | None) -> list[str]:
    if reference is None or not (
        row["status"] == reference["status"] == "ok" and row["pairs"] == reference["pairs"]
    ):
        return ["-"] * 4
    cells = []
    for key in ("dice", "tre_mm"):
        known = key in row and key in reference
        cells.append(f"{row[key] - reference[key]:+.4f}" if known else "-")
    for key in ("register_seconds", "cpu_seconds"):
        known = key in row and reference.get(key, 0) > 0
        cells.append(f"{row[key] / reference[key]:.2f}x" if known else "-")
    return cells


def markdown(rows: Sequence[Row], reference: str) -> str:
    """Per set: the means with differences and ratios against the reference method, then every pair."""
    lines: list[str] = []
    for group in dict.fromkeys(row["set"] for row in rows):
        here = [row for row in rows if row["set"] == group]
        columns = [c for c in COLUMNS if any(row.get(c[0]) is not None for row in here)]
        ratio_heads = [f"{what} vs {reference}" for what in ("Dice", "TRE", "register s", "CPU s")]
        lines += [f"## {group}", "", _line(["method", "runs", *(c[1] for c in columns), *ratio_heads])]
        lines.append(_line(["---"] * (2 + len(columns) + 4)))
        summary = means(rows, group)
        base = next((row for row in summary if row["method"] == reference), None)
        for row in summary:
            if row["status"] == "ok":
                cells = [_text(row, key, pattern) for key, _, pattern in columns] + _ratios(row, base)
            else:
                cells = [row["status"], *[""] * (len(columns) + 3)]
            lines.append(_line([row["method"], row["runs"], *cells]))
        lines += [
            "",
            _line(["pair", "method", *(c[1] for c in columns)]),
            _line(["---"] * (2 + len(columns))),
        ]
        for row in here:
            cells = [_text(row, key, pattern) for key, _, pattern in columns]
            cells = cells if row["status"] == "ok" else [row["status"], *[""] * (len(columns) - 1)]
            lines.append(_line([row["pair"], row["method"], *cells]))
        lines.append("")
    return "\n".join(lines)


def _line(cells: Iterable[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "/") for cell in cells) + " |"


def save(rows: Sequence[Row], path: Path, reference: str) -> None:
    """Write the rows as .json, or the tables as .md."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".md":
        path.write_text(markdown(rows, reference) + "\n", encoding="utf-8")
        return
    machine = {
        "system": platform.platform(),
        "processor": platform.machine(),
        "python": platform.python_version(),
    }
    path.write_text(json.dumps({"machine": machine, "rows": list(rows)}, indent=1), encoding="utf-8")
