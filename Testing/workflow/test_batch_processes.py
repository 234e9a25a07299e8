"""`diffeoreg batch` with real workers: killed in the middle, resumed, and no row done twice."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from DiffeoRegLib.volumes.file_guard import stem_of
from DiffeoRegLib.volumes.files import read_volume
from DiffeoRegLib.volumes.transform_files import read_transform
from Testing.cohort_cases import table_of
from Testing.command import run

FLAGS = ["--init", "mass", "--levels", "8,4", "--iterations", "10,4", "--no-html", "--device", "cpu"]
SECONDS = 600
"""Enough on a computer that does twenty other things; an idle one needs five."""
posix = pytest.mark.skipif(os.name == "nt", reason="kills process groups")


@pytest.fixture(scope="module")
def table(samples, tmp_path_factory):
    """The shipped pairs, both ways."""
    brain, hippocampus = samples / "brain_slices", samples / "hippocampus" / "images"
    pairs = [
        (hippocampus / "hippocampus_006.nii.gz", hippocampus / "hippocampus_138.nii.gz"),
        (brain / "oasis2d_0001.nrrd", brain / "oasis2d_0010.nrrd"),
    ]
    pairs += [pair[::-1] for pair in pairs]
    lines = ["fixed,moving,name", *(f"{a},{b},{stem_of(a)}" for a, b in pairs)]
    return table_of(tmp_path_factory.mktemp("tables"), lines)


NAMES = ["hippocampus_006", "oasis2d_0001", "hippocampus_138", "oasis2d_0010"]


@pytest.fixture(scope="module")
def undisturbed(table, tmp_path_factory):
    """The same rows by `diffeoreg register`, one after the other, in this process."""
    out = tmp_path_factory.mktemp("undisturbed")
    for line in table.read_text(encoding="utf-8").splitlines()[1:]:
        fixed, moving, name = line.split(",")
        assert run("register", fixed, moving, "-o", out / name, "--quiet", "--threads", 1, *FLAGS) == 0
    return out


def begin(table, out, *more):
    """The command in a process group of its own."""
    words = ["batch", table, "-o", out, "--workers", "2", "--threads", "1", *FLAGS, *more]
    return subprocess.Popen(
        [sys.executable, "-m", "DiffeoRegLib", *map(str, words)],
        cwd=Path(__file__).parents[2],
        start_new_session=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        encoding="utf-8",
    )


def wait(process, status):
    """What a command said until it ended with a status."""
    said, errors = process.communicate(timeout=SECONDS)
    assert process.returncode == status, errors
    return said, errors


def stories(out):
    """Every row's status, by name; a row that nobody began has none."""
    return {
        path.stem: json.loads(path.read_text(encoding="utf-8")) for path in (out / "status").glob("*.json")
    }


def until(out, process, found):
    """Wait for a state of the rows, by their stories."""
    end = time.monotonic() + SECONDS
    while time.monotonic() < end and process.poll() is None:
        known = stories(out)
        if found(known):
            return known
        time.sleep(0.02)
    raise AssertionError((process.poll(), stories(out), process.communicate(timeout=10)))


def running(known):
    return [name for name, story in known.items() if story["state"] == "running"]


def fresh(known, before):
    """Rows that run in a process that was not there before."""
    return [name for name in running(known) if known[name]["attempts"][-1]["pid"] not in before]


def done(known):
    return [name for name, story in known.items() if story["state"] == "done"]


def gone(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    state = Path(f"/proc/{pid}/stat")
    return state.is_file() and state.read_text(encoding="utf-8").rpartition(")")[2].split()[0] == "Z"


def same_results(out, undisturbed):
    """The same numbers, to the last bit; the bytes of the files hold more, such as where HDF5 put them."""
    for name in NAMES:
        one, other = out / name, undisturbed / name
        moved = read_volume(one / "moved.nii.gz")
        assert torch.equal(moved.data, read_volume(other / "moved.nii.gz").data), name
        size = np.array(moved.grid.shape)
        points = moved.grid.world_from_index(np.random.default_rng(0).uniform(-5, size + 5, (999, len(size))))
        for file in ("transform.h5", "inverse.h5"):
            found = [read_transform(folder / file).map_points(points) for folder in (one, other)]
            assert np.array_equal(*found), (name, file)


@posix
def test_a_killed_scheduler_and_a_killed_worker_cost_only_what_was_running(table, undisturbed, tmp_path):
    out = tmp_path / "out"
    # The local scheduler lives in the command's process.
    process = begin(table, out)
    first = until(out, process, lambda known: done(known) and running(known))
    os.kill(process.pid, signal.SIGKILL)
    process.communicate(timeout=SECONDS)
    workers = {attempt["pid"] for story in first.values() for attempt in story["attempts"]}
    end = time.monotonic() + SECONDS
    while not all(gone(pid) for pid in workers) and time.monotonic() < end:
        time.sleep(0.02)
    assert all(gone(pid) for pid in workers)  # they do not outlive it
    between = stories(out)
    assert not any((out / name).exists() for name in set(NAMES) - set(done(between)))
    kept = {name: (out / name / "row.json").stat().st_mtime_ns for name in done(between)}

    process = begin(table, out, "--resume", "--retries", "1")
    known = until(out, process, lambda known: fresh(known, workers))
    victim = fresh(known, workers)[0]
    os.kill(known[victim]["attempts"][-1]["pid"], signal.SIGKILL)
    said, errors = wait(process, 0)
    assert f"4 of 4 rows are finished, {4 - len(kept)} of them now" in said
    assert f"{len(kept)} of 4 rows are finished" in errors

    after = stories(out)
    assert sorted(done(after)) == sorted(NAMES)
    # What ran when the first command was killed was begun again, and the victim once more.
    assert len(after[victim]["attempts"]) == 2 + (victim in running(between))
    for name, story in after.items():
        outcomes = [attempt["outcome"] for attempt in story["attempts"]]
        assert outcomes.count("done") == 1
        assert set(outcomes) <= {"done", "interrupted"}
        if name in kept:
            assert outcomes == between_outcomes(between, name)
    assert [one["outcome"] for one in after[victim]["attempts"]][-2:] == ["interrupted", "done"]
    assert {name: (out / name / "row.json").stat().st_mtime_ns for name in kept} == kept
    same_results(out, undisturbed)
    assert not (out / ".work").exists()


def between_outcomes(known, name):
    return [attempt["outcome"] for attempt in known[name]["attempts"]]


@posix
def test_ctrl_c_keeps_finished_rows_and_says_how_to_go_on(table, tmp_path):
    out = tmp_path / "out"
    process = begin(table, out)
    known = until(out, process, lambda known: done(known) and running(known))
    began = time.monotonic()
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to the workers too
    _, errors = wait(process, 130)
    assert "Traceback" not in errors
    last = errors.strip().splitlines()[-1]
    assert last.startswith("diffeoreg: Stopped. ")
    assert last.endswith("rows are finished and kept; the same command with --resume does the rest.")
    assert time.monotonic() - began < SECONDS / 5  # it does not wait for the rows at work
    pids = {attempt["pid"] for story in stories(out).values() for attempt in story["attempts"]}
    assert all(gone(pid) for pid in pids)
    assert {path.parent.name for path in out.glob("*/row.json")} >= set(done(known))
    assert (out / "summary.csv").exists()


@pytest.fixture
def scheduler():
    """A Dask scheduler with one worker, as a user starts them."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        address = f"tcp://127.0.0.1:{one.getsockname()[1]}"
    python = [sys.executable, "-m", "distributed.cli.dask_scheduler", "--no-dashboard", "--host", address]
    work = [sys.executable, "-m", "distributed.cli.dask_worker", address, "--nthreads", "1", "--no-dashboard",
            "--death-timeout", "60"]  # fmt: skip
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "cwd": Path(__file__).parents[2]}
    processes = [subprocess.Popen(words, **quiet) for words in (python, work)]
    yield address, processes
    for process in processes[::-1]:
        process.terminate()
        process.wait(timeout=SECONDS)


@posix
def test_a_scheduler_elsewhere_is_used_and_its_loss_is_one_sentence(table, tmp_path, scheduler):
    address, (server, _) = scheduler
    out = tmp_path / "out"
    process = begin(table, out, "--scheduler", address)
    until(out, process, lambda known: done(known) and running(known))
    server.kill()
    _, errors = wait(process, 2)
    last = errors.strip().splitlines()[-1]
    assert last.startswith("diffeoreg: The scheduler does not answer any more. ")
    assert last.endswith("the same command with --resume does the rest.")
    assert "Traceback" not in errors
