"""The folder of a cohort: the status of every row, and the results of those that are finished.

A row is finished when its folder exists: it is made beside and renamed into place with everything in it, and
`row.json` there says what it was made from.  The files in `status` tell the story: who tried when.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import IO, Any

from DiffeoRegLib.cohorts.job import Job, same_file
from DiffeoRegLib.errors import DiffeoRegError, FileFormatError, OutputError, OutputExistsError
from DiffeoRegLib.plain import as_plain, build
from DiffeoRegLib.whole_file import make_private, replace_file

STATUS, WORK, RECORD, LOCK = "status", ".work", "row.json", ".lock"
WAITING, RUNNING, DONE, FAILED, INTERRUPTED = "waiting", "running", "done", "failed", "interrupted"
FORMAT = "diffeoreg-row-1"


@dataclass(frozen=True)
class Attempt:
    """One try at a row.

    token: its own.  session: of the command that started it.  worker, host, pid: where.
    started, ended: UTC, ISO 8601; ended is empty while it runs, and after a death.
    outcome: done, failed, or interrupted; empty while it runs.
    """

    token: str
    session: str
    host: str
    pid: int
    started: str
    ended: str = ""
    outcome: str = ""


@dataclass(frozen=True)
class Status:
    """What is known of a row.

    problem: why it failed, one sentence.
    """

    name: str
    row: int
    state: str = WAITING
    problem: str = ""
    attempts: tuple[Attempt, ...] = ()

    def begun(self, attempt: Attempt) -> Status:
        """With a new attempt; one that never ended was interrupted."""
        return replace(self, state=RUNNING, problem="", attempts=(*self.interrupted().attempts, attempt))

    def ended(self, token: str, outcome: str, when: str, problem: str = "") -> Status:
        """With the end of an attempt."""
        attempts = tuple(
            replace(one, ended=when, outcome=outcome) if one.token == token else one for one in self.attempts
        )
        return replace(self, state=outcome, problem=problem, attempts=attempts)

    def failed(self, problem: str) -> Status:
        """Given up, by a cluster that lost its workers."""
        return replace(self.interrupted(), state=FAILED, problem=problem)

    def interrupted(self) -> Status:
        """With every attempt that has no end marked as interrupted."""
        attempts = tuple(one if one.outcome else replace(one, outcome=INTERRUPTED) for one in self.attempts)
        return replace(self, state=INTERRUPTED if self.state == RUNNING else self.state, attempts=attempts)


@dataclass(frozen=True)
class Store:
    """The files of a cohort in a folder."""

    folder: Path

    def status(self, job: Job) -> Status:
        """What is known of a row; raises FileFormatError for a damaged file of status."""
        path = self.status_file(job.name)
        if not path.exists():
            return Status(job.name, job.number)
        try:
            return build(Status, json.loads(path.read_text(encoding="utf-8")))
        except (OSError, ValueError, DiffeoRegError) as error:
            raise FileFormatError(
                f"'{path}' is damaged. Remove it: results of finished rows are not touched by that."
            ) from error

    def write_status(self, status: Status) -> None:
        """Replace a row's status, wholly or not at all."""
        text = json.dumps(as_plain(status), indent=1, ensure_ascii=False) + "\n"
        replace_file(self.status_file(status.name), text.encode("utf-8"))

    def status_file(self, name: str) -> Path:
        """Where a row's status is."""
        return self.folder / STATUS / f"{name}.json"

    def place(self, job: Job) -> Path:
        """Where a row's results are when it is finished."""
        return self.folder / job.folder

    def record(self, job: Job) -> dict[str, Any] | None:
        """What a finished row was made from, with its numbers; None for a row that is not finished.

        Raises OutputExistsError for a folder in its place that no row made.
        """
        place = self.place(job)
        if not place.exists():
            return None
        try:
            content = json.loads((place / RECORD).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            content = None
        if not isinstance(content, dict) or content.get("format") != FORMAT:
            raise OutputExistsError(
                f"'{place}' is not the result of a row, but lies where that of row {job.number} belongs. "
                "Move it away, or choose another folder."
            )
        return content

    def stage(self, job: Job, token: str) -> Path:
        """Where an attempt works; on the file system of the results."""
        return self.folder / WORK / f"{job.name}.{token}"

    def make_work(self) -> None:
        """The folder of all attempts, unless it is there; nobody else may look into it."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with suppress(FileExistsError):
            make_private(self.folder / WORK)

    def commit(self, stage: Path, job: Job) -> bool:
        """Make a finished row visible by one rename; False where another worker was first.

        Raises OutputError when it cannot be done.
        """
        place = self.place(job)
        try:
            place.parent.mkdir(parents=True, exist_ok=True)
            stage.rename(place)
        except OSError as error:
            if place.exists() and self.record(job) is not None:
                return False
            raise OutputError(
                f"The results of '{job.name}' could not be put in place: {error.strerror or error}."
            ) from error
        return True

    def discard(self, job: Job) -> None:
        """Remove a row's results; they vanish at once, so that no part of them is taken for a whole."""
        if self.place(job).exists():
            aside = self.folder / WORK / f"{job.name}.old"
            shutil.rmtree(aside, ignore_errors=True)
            self.make_work()
            self.place(job).rename(aside)
            shutil.rmtree(aside, ignore_errors=True)

    def describe(self, content: Mapping[str, Any]) -> None:
        """Write what a BIDS derivative says of itself, unless it is there."""
        path = self.folder / "dataset_description.json"
        if not path.exists():
            replace_file(path, (json.dumps(content, indent=2) + "\n").encode("utf-8"))

    def clean(self) -> None:
        """Remove what interrupted attempts left."""
        shutil.rmtree(self.folder / WORK, ignore_errors=True)

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Hold the folder against a second command; a killed one holds nothing.

        Raises OutputError where another command works in the folder, or it cannot be written to.
        """
        try:
            (self.folder / STATUS).mkdir(parents=True, exist_ok=True)
            file = (self.folder / STATUS / LOCK).open("a", encoding="utf-8")
        except OSError as error:
            raise OutputError(f"'{self.folder}' cannot be written to: {error.strerror or error}.") from error
        with file:
            if not _locked(file):
                raise OutputError(
                    f"Another `diffeoreg batch` works in '{self.folder}'. Wait for it, or stop it first."
                )
            yield


@dataclass(frozen=True)
class Plan:
    """What is to be done.

    finished: rows that are.  changed: finished rows made from other settings or files, and what differs.
    todo: rows to run.
    """

    finished: tuple[Job, ...]
    changed: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    todo: tuple[Job, ...] = ()


def plan(store: Store, jobs: Sequence[Job]) -> Plan:
    """Which rows are finished, which were made from something else, which are to be done."""
    finished, todo, changed = [], [], {}
    for job in jobs:
        record = store.record(job)
        if record is None:
            todo.append(job)
            continue
        differences = changes(job, record)
        if differences:
            changed[job.name] = differences
            todo.append(job)
        else:
            finished.append(job)
    return Plan(tuple(finished), changed, tuple(todo))


def changes(job: Job, record: Mapping[str, Any]) -> tuple[str, ...]:
    """In which settings and files a finished row differs from what the table now asks for."""
    before, now = record.get("settings", {}), job.settings
    found = [
        f"{name} was {_shown(before.get(name))}, is {_shown(now.get(name))}"
        for name in sorted({*before, *now})
        if before.get(name) != now.get(name)
    ]
    known = record.get("inputs", {})
    for flag in sorted({*known, *job.inputs}):
        if flag not in known or flag not in job.inputs:
            found.append(f"{flag} was {'not ' if flag not in known else ''}given")
        elif not same_file(Path(job.inputs[flag]), known[flag]):
            found.append(f"the file of {flag} has changed")
    return tuple(found)


def _shown(value: object) -> str:
    return "not set" if value is None else json.dumps(value)


def _locked(file: IO[str]) -> bool:
    """True if the lock was free and is ours now, until the file is closed or this process ends."""
    try:
        if os.name == "nt":
            import msvcrt

            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)  # type: ignore[attr-defined]
        else:
            import fcntl

            fcntl.flock(file.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True
