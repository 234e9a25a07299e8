"""One attempt at a row, in a worker: work beside, then everything into place by one rename."""

from __future__ import annotations

import json
import os
import platform
import secrets
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from DiffeoRegLib import __version__
from DiffeoRegLib.cohorts.job import Job, Outcome, fingerprint, settings_digest
from DiffeoRegLib.cohorts.store import DONE, FAILED, FORMAT, INTERRUPTED, RECORD, Attempt, Store
from DiffeoRegLib.errors import OutputError
from DiffeoRegLib.whole_file import replace_file


@dataclass(frozen=True)
class Made:
    """What a registration gives its row.

    files: what it wrote, by kind.  numbers, labels: see report.pair_numbers.  facts: what else to keep.
    """

    files: Mapping[str, Path]
    numbers: Mapping[str, float | None]
    labels: Mapping[str, float | None]
    facts: Mapping[str, Any]


Work = Callable[[Job, Path], Made]
"""Registers a row and writes everything into a folder that does not exist yet."""
Sentence = Callable[[BaseException], str]


def attempt(store: Store, job: Job, session: str, retries: int, work: Work, sentence: Sentence) -> Outcome:
    """Do a row unless it is done, and write down what became of it.

    retries: how often a row is tried again after its worker died; more deaths in this session fail it.
    sentence: what the user reads about an exception.  Whatever a row raises is its own outcome, so that the
    others go on.
    """
    if store.record(job) is not None:
        return Outcome(job.name, DONE)
    status = store.status(job)
    lost = [one for one in status.attempts if one.session == session and one.outcome in ("", INTERRUPTED)]
    token = secrets.token_hex(4)
    status = status.begun(Attempt(token, session, platform.node(), os.getpid(), now()))
    if len(lost) > retries:
        problem = died(len(lost))
        store.write_status(status.ended(token, FAILED, now(), problem))
        return Outcome(job.name, FAILED, problem)
    store.write_status(status)
    stage = store.stage(job, token)
    try:
        _work(store, job, stage, token, work)
        outcome = Outcome(job.name, DONE)
    except Exception as problem:  # noqa: BLE001 - a row's failure must not reach the others
        outcome = Outcome(job.name, FAILED, sentence(problem))
    finally:
        shutil.rmtree(stage, ignore_errors=True)
    latest = store.status(job)
    # Another attempt may have begun meanwhile, when this worker was given up: then the status is that one's.
    if latest.attempts and latest.attempts[-1].token == token:
        store.write_status(latest.ended(token, outcome.state, now(), outcome.problem))
    return outcome


def died(times: int) -> str:
    """What is said of a row that kills its workers."""
    often = "once" if times == 1 else f"{times} times"
    return f"Its worker process died {often}, killed from outside or by a lack of memory."


def now() -> str:
    """UTC to the second, ISO 8601."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def _work(store: Store, job: Job, stage: Path, token: str, work: Work) -> None:
    try:
        store.make_work()
    except OSError as error:
        raise OutputError(
            f"'{stage.parent}' cannot be written to ({error.strerror or error}). Workers need the folder of "
            "the results under the same name as this computer."
        ) from error
    # Before the work: a file that changes during it is then found changed by a resume.
    inputs = {flag: {"path": path, **fingerprint(Path(path))} for flag, path in job.inputs.items()}
    made = work(job, stage)
    for kind, path in made.files.items():
        if kind in job.files:
            path.rename(stage / job.files[kind])
    record = {
        "format": FORMAT, "name": job.name, "attempt": token, "diffeoreg": __version__,
        "settings": job.settings, "settings_sha256": settings_digest(job.settings), "inputs": inputs,
        "files": {kind: job.files.get(kind, path.name) for kind, path in made.files.items()},
        "numbers": made.numbers, "labels": made.labels, **made.facts,
    }  # fmt: skip
    text = json.dumps(record, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    replace_file(stage / RECORD, text.encode("utf-8"))
    store.commit(stage, job)
