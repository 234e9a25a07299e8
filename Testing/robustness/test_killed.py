"""Killed at any moment: nothing is left on the disk, nothing changes, and the next run works."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from DiffeoRegLib.volumes.files import write_volume
from DiffeoRegPanel.runner import Runner
from Testing.robustness.profile import SEED, times
from Testing.worker_jobs import LONG, gone, pair, registration

KILLS, STOPS = times(3, most=200), times(2, most=50)
LONGEST_SECONDS = 60.0
pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="signals are POSIX")


def wait_for(run):
    """The last event of a run; a hang is a failure."""
    end = time.monotonic() + LONGEST_SECONDS
    while run.last is None:
        assert time.monotonic() < end, "The run never ended."
        run.poll()
        time.sleep(0.01)
    return run.last


def test_a_worker_killed_at_random_moments(tmp_path):
    random = np.random.default_rng(SEED)
    runner = Runner(temporary=tmp_path)
    job = registration(LONG)
    before = job["fixed"].array.copy(), job["moving"].array.copy()
    killed = survived = 0
    try:
        for _ in range(KILLS):
            run = runner.start(job)
            # From before the first message to the end of a run of some seconds.
            time.sleep(float(random.uniform(0, 1) ** 2 * 6))
            worker = runner.pid
            os.kill(worker, signal.SIGKILL)
            killed += 1
            last = wait_for(run)
            # A job that had not begun is handed to a new worker, and done; one that had ended is a result.
            survived += last.kind == "result"
            assert last.kind in ("error", "result")
            if last.kind == "error":
                assert last.error_kind == "memory"
                assert last.message.endswith(".")
                assert last.result is None
            assert gone(worker)
            assert not list(tmp_path.iterdir())
            np.testing.assert_array_equal(job["fixed"].array, before[0])
            np.testing.assert_array_equal(job["moving"].array, before[1])
        result = wait_for(runner.start(registration()))
        assert result.kind == "result"
        assert result.result["report"]["folds"]["folded_percent"] == 0
    finally:
        runner.close()
    assert not list(tmp_path.iterdir())
    assert killed == KILLS
    sys.stdout.write(f"{killed} kills, {survived} of them before a job had begun or after its end\n")


def test_a_command_stopped_at_random_moments(tmp_path, repository):
    """A polite kill: all results or none, and no temporary folder."""
    random = np.random.default_rng([SEED, 1])
    for volume in pair():
        write_volume(volume, tmp_path / f"{volume.name}.nii.gz")
    files = {path.name for path in tmp_path.iterdir()}
    words = [
        sys.executable,
        "-m",
        "DiffeoRegLib",
        "register",
        *sorted(str(tmp_path / name) for name in files),
    ]
    words += ["-o", str(tmp_path / "out"), "--overwrite", "--effort", "fast", "--device", "cpu", "--quiet"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    seconds = 6.0
    for _ in range(STOPS):
        started = time.monotonic()
        child = subprocess.Popen(
            words, cwd=repository, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
        )
        time.sleep(float(random.uniform(0.3, 1.0)) * seconds)
        child.send_signal(signal.SIGTERM)
        said = child.communicate(timeout=LONGEST_SECONDS)[1].decode()
        if child.returncode == 0:
            seconds = min(seconds, time.monotonic() - started)
        assert child.returncode in (0, 130, -signal.SIGTERM), said
        assert "Traceback" not in said
        assert {path.name for path in tmp_path.iterdir()} <= files | {"out"}
        if (tmp_path / "out").exists():
            assert whole(tmp_path / "out")


def whole(folder: Path) -> bool:
    return {"transform.h5", "inverse.h5", "moved.nii.gz", "report.json", "report.html"} == {
        path.name for path in folder.iterdir()
    }
