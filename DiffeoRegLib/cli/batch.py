"""`diffeoreg batch`: a table of registrations, some at a time, resumable after whatever stops it."""

from __future__ import annotations

import argparse
import secrets
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from DiffeoRegLib import __version__
from DiffeoRegLib.catalog import card
from DiffeoRegLib.cli.batch_rows import jobs_from
from DiffeoRegLib.cli.batch_worker import run_row
from DiffeoRegLib.cli.console import Console, table
from DiffeoRegLib.cohorts.job import Job, Outcome
from DiffeoRegLib.cohorts.names import dataset_description
from DiffeoRegLib.cohorts.pools import (
    LOCAL,
    SLURM,
    DaskPool,
    Slurm,
    local_client,
    remote_client,
    require_dask,
    slurm_client,
    slurm_script,
)
from DiffeoRegLib.cohorts.runner import Run
from DiffeoRegLib.cohorts.store import DONE, FAILED, RUNNING, Plan, Store, plan
from DiffeoRegLib.cohorts.summary import (
    PAGE,
    TABLE,
    CohortRow,
    rows_of,
    summarise,
    summary_lines,
    write_summary,
)
from DiffeoRegLib.device import memory_bytes
from DiffeoRegLib.errors import (
    Cancelled,
    ClusterError,
    InputError,
    OutputError,
    OutputExistsError,
    SettingsError,
)
from DiffeoRegLib.geodesic_files import require_safetensors

THREADS_EACH = 4
LOGS = "logs"


def batch(arguments: argparse.Namespace, console: Console) -> None:
    """Do what is not done; raises InputError at the end when rows failed, Cancelled when stopped."""
    require_dask(arguments.scheduler)
    _check(arguments)
    store = Store(Path(arguments.output).absolute())
    slurm = Slurm(
        queue=arguments.queue, account=arguments.account, walltime=arguments.walltime,
        memory=arguments.memory, cores=arguments.cores, options=tuple(arguments.slurm_option),
        setup=tuple(arguments.setup),
    )  # fmt: skip
    jobs = jobs_from(arguments)
    if arguments.show_job_script:
        script = slurm_script(slurm, store.folder / LOGS)
        console.result(script, {"command": "batch", "job_script": script})
        return
    if any(card(job.values["method"]).geodesic or job.values["keep_path"] for job in jobs):
        require_safetensors(OutputError)
    _check_folder(store, resume=arguments.resume)
    with store.alone():
        planned = _planned(store, jobs, arguments, console)
        try:
            outcomes = _run(store, planned.todo, arguments, slurm, console)
        except (Cancelled, ClusterError) as problem:
            _finish(store, jobs, console)
            what = "Stopped." if isinstance(problem, Cancelled) else str(problem)
            raise type(problem)(f"{what} {_so_far(store, jobs)}".strip()) from problem
        store.clean()
        rows = _finish(store, jobs, console)
        _say(store, rows, outcomes, console)


def _check(arguments: argparse.Namespace) -> None:
    for name, least in (("workers", 1), ("retries", 0), ("cores", 1)):
        value = getattr(arguments, name)
        if value is not None and value < least:
            raise SettingsError(f"--{name} must be at least {least}, not {value}.")
    if arguments.redo_changed and not arguments.resume:
        raise SettingsError("--redo-changed goes with --resume.")
    if arguments.show_job_script and arguments.scheduler != SLURM:
        raise SettingsError("--show-job-script goes with --scheduler slurm.")


def _check_folder(store: Store, *, resume: bool) -> None:
    if store.folder.exists() and not store.folder.is_dir():
        raise OutputError(f"'{store.folder}' is a file; -o needs a folder.")
    begun = store.status_file("any").parent
    if any(begun.glob("*.json")) and not resume:
        raise OutputExistsError(
            f"'{store.folder}' holds a cohort already. Go on in it with --resume, or choose another folder."
        )
    if resume and not begun.is_dir():
        raise InputError(f"There is nothing to resume in '{store.folder}': no cohort was begun there.")


def _planned(store: Store, jobs: Sequence[Job], arguments: argparse.Namespace, console: Console) -> Plan:
    """What is to do; rows that have changed since are refused, or put on the list."""
    planned = plan(store, jobs)
    if planned.changed and not arguments.redo_changed:
        name, differences = next(iter(planned.changed.items()))
        more = len(planned.changed) - 1
        others = f" (and {more} more rows)" if more else ""
        raise InputError(
            f"'{name}' was finished with something else: {'; '.join(differences)}{others}. Restore that, or "
            "replace the results of such rows with --redo-changed."
        )
    for name, differences in planned.changed.items():
        console.log(f"'{name}' is done again: {'; '.join(differences)}.")
    store.clean()
    for job in planned.todo:
        store.discard(job)
        status = store.status(job)
        if status.state == RUNNING:  # of a command that was killed
            store.write_status(status.interrupted())
    if arguments.bids_names:
        store.describe(dataset_description(__version__))
    if arguments.resume:
        console.log(f"{len(planned.finished)} of {len(jobs)} rows are finished; {len(planned.todo)} to do.")
    older = {str(record.get("diffeoreg")) for job in planned.finished if (record := store.record(job))}
    for version in sorted(older - {__version__}):
        console.log(f"Some finished rows were made by DiffeoReg {version}; this is {__version__}.")
    return planned


def _run(
    store: Store, todo: Sequence[Job], arguments: argparse.Namespace, slurm: Slurm, console: Console
) -> Mapping[str, Outcome]:
    if not todo:
        return {}
    session = secrets.token_hex(4)

    def report(share: float, message: str) -> None:
        console.progress("batch", share, message)

    console.progress("batch", 0.0, "starting the workers")
    with _client(store, len(todo), arguments, slurm, console) as client:
        pool = DaskPool(
            client, run_row, (str(store.folder), session, arguments.retries), f"diffeoreg-{session}",
            arguments.workers,
        )  # fmt: skip
        patience = None if arguments.scheduler == SLURM else arguments.patience
        return Run(pool, store, report, console.log, patience).all(todo)


@contextmanager
def _client(
    store: Store, rows: int, arguments: argparse.Namespace, slurm: Slurm, console: Console
) -> Iterator[Any]:
    """The workers that were asked for."""
    if arguments.scheduler == LOCAL:
        workers, threads, memory = shares(arguments, rows)
        known = "" if memory is None else f" and {memory / 1e9:.1f} GB"
        console.log(f"{workers} workers on this computer, each with {threads} threads{known}.")
        with local_client(workers, threads, memory) as client:
            yield client
    elif arguments.scheduler == SLURM:
        jobs = min(arguments.workers or rows, rows)
        console.log(f"{jobs} jobs are submitted to SLURM; rows start as soon as the first of them runs.")
        with slurm_client(slurm, jobs, store.folder / LOGS) as client:
            yield client
    else:
        with remote_client(arguments.scheduler) as client:
            yield client


def shares(arguments: argparse.Namespace, rows: int) -> tuple[int, int, int | None]:
    """Workers on this computer, and the threads and bytes of main memory of each."""
    from dask.system import CPU_COUNT

    gpus = torch.cuda.device_count() if torch.cuda.is_available() and arguments.device != "cpu" else 0
    wanted = arguments.workers or gpus or max(CPU_COUNT // THREADS_EACH, 1)
    workers = min(wanted, rows)
    free = memory_bytes("cpu")
    return workers, arguments.threads or max(CPU_COUNT // workers, 1), free and free // workers


def _finish(store: Store, jobs: Sequence[Job], console: Console) -> list[CohortRow]:
    """Write the summary of what there is."""
    console.progress("summary", 1.0, "writing the summary")
    rows = rows_of(store, jobs)
    write_summary(store.folder, rows)
    return rows


def _so_far(store: Store, jobs: Sequence[Job]) -> str:
    done = sum(store.record(job) is not None for job in jobs)
    if not done:
        return ""
    return f"{done} of {len(jobs)} rows are finished and kept; the same command with --resume does the rest."


def _say(store: Store, rows: Sequence[CohortRow], outcomes: Mapping[str, Outcome], console: Console) -> None:
    summary = summarise(rows)
    failed = [row for row in rows if row.state == FAILED]
    data = {
        "command": "batch", "folder": str(store.folder), "summary": summary,
        "rows": [
            {"name": row.name, "row": row.number, "state": row.state, "attempts": row.attempts,
             "folder": row.folder, "problem": row.problem}
            for row in rows
        ],
    }  # fmt: skip
    done_now = sum(outcome.state == DONE for outcome in outcomes.values())
    parts = [f"{summary['done']} of {len(rows)} rows are finished, {done_now} of them now"]
    lines = summary_lines(summary)
    if lines:
        parts.append(table(["", "mean", "sd", "least", "greatest"], lines))
    parts.append(f"Written to {store.folder}: {TABLE}, {PAGE}, and a folder for each row")
    console.result("\n\n".join(parts), data)
    if failed:
        first = failed[0]
        raise InputError(
            f"{len(failed)} of {len(rows)} rows failed, first row {first.number}, '{first.name}': "
            f"{first.problem} The others are finished; run again with --resume when it is mended."
        )
