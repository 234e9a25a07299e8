"""Rows of the results page as files, each written whole; which are kept; how long the rest takes."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import re
import subprocess
from collections.abc import Iterable, Sequence
from functools import cache
from pathlib import Path
from statistics import fmean
from typing import Any

Row = dict[str, Any]
ROOT = Path(__file__).resolve().parents[2]
NOT_IN_A_RESULT = ("training", "worker", "cohorts")
"""Parts of the library that do not take part in registering a pair."""
JUDGES = ("peer_scores.py", "peer_pair.py", "peer_data.py", "results_pairs.py")
UNKNOWN_SECONDS = 120.0
"""Guess for a way that nobody has timed yet."""
TRIED_AGAIN = "not installed"
"""Status that costs nothing to look at again."""


def digest(parts: Iterable[bytes]) -> str:
    """Twelve hex digits of SHA-256."""
    found = hashlib.sha256()
    for part in parts:
        found.update(hashlib.sha256(part).digest())
    return found.hexdigest()[:12]


@cache
def code_of_ours(root: Path = ROOT) -> str:
    """Of every source and catalogue that a result of ours depends on, and of those who judge it."""
    library = root / "DiffeoRegLib"
    files = [
        path
        for path in sorted([*library.rglob("*.py"), *library.glob("Resources/*.json")])
        if path.relative_to(library).parts[0] not in NOT_IN_A_RESULT
    ]
    judges = [root / "Testing" / "benchmarks" / name for name in JUDGES]
    return digest(path.read_bytes() for path in [*files, *judges] if path.exists())


@cache
def code_of_peers(peer_python: str, root: Path = ROOT) -> str:
    """Of what runs and judges the peers, and of the versions that their interpreter has."""
    folder = root / "Testing" / "benchmarks"
    files = [folder / name for name in ("peer_runners.py", *JUDGES)]
    code = "import importlib.metadata as m; print(sorted((d.name, d.version) for d in m.distributions()))"
    try:
        told = subprocess.run([peer_python, "-c", code], capture_output=True, check=False, timeout=120)
        versions = told.stdout
    except OSError:  # no such interpreter: every peer's row will say so
        versions = b"none"
    return digest([*(path.read_bytes() for path in files if path.exists()), versions])


def machine_words() -> str:
    """Processor, cores and system."""
    name, known = platform.processor() or platform.machine(), Path("/proc/cpuinfo")
    if known.exists():
        found = re.search(r"model name\s*:\s*(.+)", known.read_text(encoding="utf-8"))
        name = found.group(1) if found else name
    return f"{name}, {os.cpu_count()} cores, {platform.system()}"


def commit_of(root: Path = ROOT) -> str:
    """Short name of the commit, with + when files differ from it; 'unknown' outside a clone."""
    try:
        told = [
            subprocess.run(
                ["git", "-C", str(root), *words], capture_output=True, check=True, encoding="utf-8"
            )
            for words in (["rev-parse", "--short", "HEAD"], ["status", "--porcelain", "--", "DiffeoRegLib"])
        ]
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return told[0].stdout.strip() + ("+" if told[1].stdout.strip() else "")


class Store:
    """Rows under a folder: SET/PAIR--METHOD--SETTING[--DEVICE].json."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def path(self, where: str, pair: str, way: str) -> Path:
        """The file of a row."""
        return self.folder / where / f"{pair}--{way}.json"

    def read(self, where: str, pair: str, way: str) -> Row | None:
        """A row, if it is there; one that cannot be read (a full disk, a hand) counts as missing."""
        return _read(self.path(where, pair, way))

    def write(self, where: str, pair: str, way: str, row: Row) -> None:
        """Replace it whole: a stop in between leaves what was there."""
        path = self.path(where, pair, way)
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_suffix(".part")
        part.write_text(json.dumps(row, indent=1) + "\n", encoding="utf-8")
        part.replace(path)

    def rows(self) -> list[Row]:
        """All of them, in the order of their names."""
        found = (_read(path) for path in sorted(self.folder.glob("*/*.json")))
        return [row for row in found if row is not None]


def _read(path: Path) -> Row | None:
    try:
        row = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return None
    return row if isinstance(row, dict) and "status" in row else None


def kept(row: Row | None, code: str, settings: str, *, old_code: bool, retry: bool) -> bool:
    """A row stands if it answers the same question by the same code.

    old_code: also by other code.  retry: rows that failed do not stand.
    """
    if row is None or row.get("settings") != settings:
        return False
    if row["status"].startswith(TRIED_AGAIN) or (retry and row["status"] != "ok"):
        return False
    return old_code or row.get("code") == code


def expected_seconds(rows: Sequence[Row], where: str, method: str, setting: str) -> tuple[float, bool]:
    """CPU seconds of a row with its judging, from rows that there are, and whether it is a mere guess.

    Of the same set first, then of any set.
    """
    alike = [
        row
        for row in rows
        if (row.get("method"), row.get("setting")) == (method, setting) and "cpu_seconds" in row
    ]
    for chosen in ([row for row in alike if row.get("set") == where], alike):
        if chosen:
            seconds = fmean(row["cpu_seconds"] + row.get("judging_seconds", 0.0) for row in chosen)
            return seconds, False
    return UNKNOWN_SECONDS, True


def words_of_seconds(seconds: float) -> str:
    """1 h 5 min, 12 min, 40 s."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"
