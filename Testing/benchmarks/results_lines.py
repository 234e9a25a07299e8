"""Rows of the results page put together: a line per method and setting on a set, over the set's pairs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

import results_ways
from results_rows import Row

KEY = ("method", "setting", "device")
ENOUGH = 0.75
"""A pair belongs to its set once it has this share of the rows that the fullest pair has."""


@dataclass(frozen=True)
class Line:
    """A method with a setting on a set: its rows by pair, of the pairs of the set."""

    where: str
    method: str
    setting: str
    device: str
    rows: dict[str, Row]
    pairs: tuple[str, ...]

    @property
    def done(self) -> list[Row]:
        """Rows with scores."""
        return [row for row in self.rows.values() if row["status"] == "ok"]

    @property
    def complete(self) -> bool:
        """Every pair of the set was run: only then it has means."""
        return len(self.done) == len(self.pairs)

    @property
    def anchor(self) -> str:
        """What links lead to."""
        return anchor_of(self.where, self.method, self.setting, self.device)

    def mean(self, key: str) -> float | None:
        """Over the pairs that have the value; None when the line is not complete or nothing has it."""
        values = [row[key] for row in self.done if row.get(key) is not None]
        return fmean(values) if values and self.complete else None

    def largest(self, key: str) -> float | None:
        """Over its pairs."""
        return max((row[key] for row in self.done if row.get(key) is not None), default=None)


def anchor_of(where: str, method: str, setting: str, device: str = "cpu") -> str:
    """brain-svf-balanced."""
    return "-".join([where, method, setting, *([] if device == "cpu" else [device])]).replace(" ", "-")


def pairs_of(here: Sequence[Row]) -> tuple[str, ...]:
    """The pairs of a set that nearly everything was run on: others would make means of different pairs."""
    counts: dict[str, int] = {}
    for row in here:
        counts[row["pair"]] = counts.get(row["pair"], 0) + 1
    started = dict.fromkeys(row["pair"] for row in here if row["method"] == "start")
    return tuple(pair for pair in started if counts[pair] >= ENOUGH * max(counts.values()))


def lines_of(rows: Sequence[Row], where: str) -> list[Line]:
    """All lines of a set in the order of the catalogue, over the pairs that nearly everything was run on."""
    everything = [row for row in rows if row["set"] == where]
    pairs = pairs_of(everything)
    here = [row for row in everything if row["pair"] in pairs]
    order = [("start", "start", "cpu")]
    order += [(way.method, way.setting, way.device) for way in results_ways.ways_of(where, cuda=True)]
    order += [tuple(row[name] for name in KEY) for row in here]
    found = list[Line]()
    for method, setting, device in dict.fromkeys(order):
        mine = {row["pair"]: row for row in here if tuple(row[n] for n in KEY) == (method, setting, device)}
        if mine:
            found.append(Line(where, method, setting, device, mine, pairs))
    return found


def others_text(rows: Sequence[Row], where: str) -> list[str]:
    """What was run on the other pairs, a sentence per pair."""
    here = [row for row in rows if row["set"] == where and row["status"] == "ok"]
    pairs, text = pairs_of([row for row in rows if row["set"] == where]), list[str]()
    for pair in dict.fromkeys(row["pair"] for row in here if row["pair"] not in pairs):
        told = []
        for row in (one for one in here if one["pair"] == pair):
            name = "start" if row["method"] == "start" else f"{row['method']} ({row['setting']})"
            figures = [number(row[key], digits) + unit for key, digits, unit in
                       (("dice", 3, ""), ("tre_mm", 2, " mm")) if row.get(key) is not None]  # fmt: skip
            told.append(f"{name} {', '.join(figures)}")
        text += [f"Not with everything, so not in the means: `{pair}`: {'; '.join(told)}.", ""]
    return text


def number(value: float | None, digits: int) -> str:
    """.645 for fractions of one, 12.3 otherwise; - where there is none."""
    if value is None or value != value:
        return "-"
    text = f"{value:.{digits}f}"
    return text.replace("0.", ".", 1) if text.startswith(("0.", "-0.")) and digits else text


def accuracy_cells(line: Line, key: str, digits: int) -> str:
    """The mean, and every pair behind it where there are several."""
    values = {pair: line.rows[pair].get(key) for pair in line.pairs if pair in line.rows}
    if not any(value is not None for value in values.values()):
        return "-"
    having = [pair for pair in line.pairs if key in line.rows.get(pair, {}) or pair not in line.rows]
    if len(line.pairs) == 1 or len(having) == 1:
        return number(next(v for v in values.values() if v is not None), digits)
    each = " / ".join(number(values.get(pair), digits) for pair in having)
    mean = line.mean(key)
    return f"{each}" if mean is None else f"**{number(mean, digits)}** ({each})"
