"""One row as it is handed to a worker, and what came of it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from DiffeoRegLib.errors import FileFormatError

CHUNK = 1 << 20


@dataclass(frozen=True)
class Job:
    """A row's work: only text and numbers, so that any worker on any machine can take it.

    name, number: of the row.  folder, files: see Names.  values: what the flags of a registration hold.
    settings: those of them that decide the result, besides the files, as JSON gives them back.
    inputs: the files it reads, absolute, by the flag that names them.
    """

    name: str
    number: int
    folder: str
    values: Mapping[str, Any]
    settings: Mapping[str, Any]
    inputs: Mapping[str, str]
    files: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Outcome:
    """What became of a row.

    state: `done` or `failed`.  problem: why it failed, one sentence.
    """

    name: str
    state: str
    problem: str = ""


def settings_digest(settings: Mapping[str, Any]) -> str:
    """SHA-256 over settings, the same for the same settings on every machine."""
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode("utf-8")).hexdigest()


def fingerprint(path: Path) -> dict[str, Any]:
    """Size in bytes, time of change and SHA-256 of a file, or of all files of a folder.

    Raises FileFormatError for one that cannot be read.
    """
    try:
        files = _files(path)
        total = hashlib.sha256()
        for file in files:
            total.update(b"\n")
            with file.open("rb") as stream:
                while chunk := stream.read(CHUNK):
                    total.update(chunk)
        return {**_outside(path, files), "sha256": total.hexdigest()}
    except OSError as error:
        raise FileFormatError(f"'{path}' could not be read ({error.strerror or error}).") from error


def same_file(path: Path, known: Mapping[str, Any]) -> bool:
    """True if a file is what its fingerprint says; it is read only where its time has changed."""
    if not path.exists():
        return False
    outside = _outside(path, _files(path))
    if any(outside[name] != known.get(name) for name in ("bytes", "names")):
        return False
    untouched: bool = outside["changed_ns"] == known.get("changed_ns")
    return untouched or bool(fingerprint(path)["sha256"] == known.get("sha256"))


def _files(path: Path) -> list[Path]:
    return sorted(file for file in path.rglob("*") if file.is_file()) if path.is_dir() else [path]


def _outside(path: Path, files: list[Path]) -> dict[str, Any]:
    """What can be known without reading; the names are those inside a folder, as one digest."""
    facts = [file.stat() for file in files]
    names = "\n".join(file.relative_to(path).as_posix() for file in files)
    return {
        "files": len(facts),
        "names": hashlib.sha256(names.encode("utf-8")).hexdigest() if path.is_dir() else None,
        "bytes": sum(fact.st_size for fact in facts),
        "changed_ns": max((fact.st_mtime_ns for fact in facts), default=0),
    }
