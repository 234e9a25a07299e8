"""The runner with a real worker: results, Cancel, violent deaths, and nothing left behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
import vtk
from vtk.util import numpy_support

from DiffeoRegLib.errors import OutputError
from DiffeoRegLib.exchange import Image, pack
from DiffeoRegLib.space.sample import array_from_tensor
from DiffeoRegLib.volumes.resample import warp_volume
from DiffeoRegLib.worker import inputs
from DiffeoRegPanel import runner as runner_module
from DiffeoRegPanel.folders import MARK, sweep
from DiffeoRegPanel.runner import Runner
from Testing.scenes import points_of
from Testing.worker_jobs import FIXED, LONG, gone, pair, registration

LAZY = """
import json, os, subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
print(json.dumps({"event": "ready"}), flush=True)
job = json.loads(sys.stdin.readline()); job = json.loads(sys.stdin.readline())
event = {"event": "progress", "id": job["id"], "phase": str(child.pid), "fraction": 0.1}
print(json.dumps(event), flush=True)
time.sleep(60)
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return tmp_path_factory.mktemp("exchange")


@pytest.fixture(scope="module")
def runner(place):
    """One warm worker for all tests of this file."""
    runner = Runner(temporary=place)
    yield runner
    runner.close()
    assert runner.state == "stopped"
    assert not list(place.iterdir())


def until(condition, seconds=60.0):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "It did not happen in time."
        time.sleep(0.01)


def begun(run):
    """Wait for the first progress."""
    events = []
    until(lambda: events.extend(run.poll()) or any(event.kind == "progress" for event in events))
    return next(event for event in events if event.kind == "progress")


def vtk_points(parts, points):
    """Points through the parts as VTK maps them: what Slicer will do."""
    for part in parts:
        if "matrix" in part:
            matrix = np.array(part["matrix"])
            points = points @ matrix[:3, :3].T + matrix[:3, 3]
            continue
        image = part["displacement"]
        # The grid in a frame of its own: VTK's plain grid transform knows no directions.
        data = vtk.vtkImageData()
        data.SetDimensions(*image.array.shape[2::-1])
        flat = np.ascontiguousarray(image.array.reshape(-1, 3))
        data.GetPointData().SetScalars(numpy_support.numpy_to_vtk(flat, deep=True))
        grid = vtk.vtkGridTransform()
        grid.SetDisplacementGridData(data)
        grid.SetInterpolationModeToCubic()
        inverse = np.linalg.inv(image.world_from_voxel)
        index = (points @ inverse[:3, :3].T + inverse[:3, 3])[:, ::-1]
        moved = np.array([grid.TransformPoint(x) for x in index])
        points = points + (moved - index)
    return points


def test_the_result_is_what_vtk_and_the_engine_agree_on(runner, place):
    events = []
    run = runner.start(registration())
    last = run.wait(on_event=events.append)
    assert last.kind == "result", last.message
    assert run.finished
    assert [event.fraction for event in events] == sorted(event.fraction for event in events)
    assert not list(place.iterdir())
    points = points_of(FIXED)[::7]
    transform = inputs.transform_of(last.result["transform"])
    moved = transform.map_points(points)
    assert np.linalg.norm(moved - points, axis=1).max() > 1
    np.testing.assert_allclose(vtk_points(last.result["transform"], points), moved, atol=1e-4)
    again = warp_volume(pair()[1], transform, FIXED, fill=float(pair()[1].data.min()))
    np.testing.assert_allclose(last.result["moved"].array, array_from_tensor(again.data), atol=0.05)


def test_the_second_job_finds_the_worker_warm(runner):
    runner.start({"kind": "probe"}).wait()
    worker = runner.pid
    run = runner.start({"kind": "probe"})
    begun(run)
    assert run.wait().result["torch"]
    assert runner.state == "idle"
    assert runner.pid == worker


def test_jobs_wait_for_each_other_and_one_that_waits_can_be_cancelled(runner):
    runs = [runner.start(registration()) for _ in range(3)]
    runs[1].cancel()
    assert [run.wait().kind for run in runs] == ["result", "cancelled", "result"]


@pytest.mark.parametrize("fraction", [None, 0.0, 0.05, 0.5])
def test_cancel_is_heard_everywhere_and_the_worker_stays_warm(runner, place, fraction, monkeypatch):
    monkeypatch.setattr(runner_module, "PATIENCE_SECONDS", 60.0)  # a busy computer must not look deaf
    runner.start({"kind": "probe"}).wait()
    worker = runner.pid
    run = runner.start(registration(LONG))
    while fraction is not None and begun(run).fraction < fraction:
        pass
    run.cancel()
    run.cancel()
    assert run.wait().kind == "cancelled"
    assert not list(place.iterdir())
    assert runner.start({"kind": "probe"}).wait().kind == "result"
    assert runner.pid == worker


def test_cancel_before_the_worker_is_ready(place):
    runner = Runner(temporary=place)
    run = runner.start(registration())
    assert runner.state == "starting"
    run.cancel()
    assert run.wait().kind == "cancelled"
    runner.close()
    assert not list(place.iterdir())


def test_slow_disks_hold_nobody_up(runner, place, monkeypatch):
    written = threading.Event()

    def slow(*arguments):
        assert written.wait(60)
        pack(*arguments)

    monkeypatch.setattr(runner_module, "pack", slow)
    run = runner.start({"kind": "probe"})  # returns although nothing can be written yet
    assert run.poll() == []
    run.cancel()
    assert not run.finished
    written.set()
    assert run.wait().kind == "cancelled"
    assert not list(place.iterdir())


def test_errors_come_with_their_kind(runner):
    last = runner.start(registration({"effort": "heroic"})).wait()
    assert (last.kind, last.error_kind) == ("error", "input")
    assert "heroic" in last.message


def test_a_killed_worker_is_an_error_in_words_and_the_next_start_works(runner, place):
    run = runner.start(registration(LONG))
    begun(run)
    os.kill(runner._worker.pid, signal.SIGKILL)
    last = run.wait()
    assert (last.kind, last.error_kind) == ("error", "memory")
    assert "memory" in last.message
    assert not list(place.iterdir())
    assert runner.start({"kind": "probe"}).wait().kind == "result"


def test_a_worker_that_does_not_obey_is_killed_with_its_children(place, tmp_path, monkeypatch):
    monkeypatch.setattr(runner_module, "PATIENCE_SECONDS", 0.3)
    program = tmp_path / "lazy.py"
    program.write_text(LAZY, encoding="utf-8")
    runner = Runner([sys.executable, str(program)], temporary=place)
    run = runner.start({"kind": "probe"})
    child = int(begun(run).phase)
    worker = runner._worker.pid
    run.cancel()
    assert run.wait().kind == "cancelled"
    until(lambda: gone(child) and gone(worker))
    runner.close()
    assert not list(place.iterdir())


def test_nothing_outlives_a_killed_parent(repository, tmp_path):
    program = (
        "import sys, pathlib\n"
        f"sys.path[:0] = [{str(repository)!r}, {str(repository / 'DiffeoReg')!r}]\n"
        "from DiffeoRegPanel.runner import Runner\n"
        "from Testing.worker_jobs import LONG, registration\n"
        f"runner = Runner(temporary=pathlib.Path({str(tmp_path)!r}))\n"
        "run = runner.start(registration(LONG))\n"
        "run.wait(on_event=lambda event: print(runner._worker.pid, flush=True))\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, cwd=repository)
    worker = int(parent.stdout.readline())
    assert list(tmp_path.iterdir())
    parent.kill()
    parent.communicate()
    until(lambda: gone(worker) and not list(tmp_path.iterdir()))


@pytest.mark.parametrize(
    ("raised", "words"),
    [
        ("ImportError('undefined symbol: aoti')", "undefined symbol"),
        ("RuntimeError('bad')", "cannot be loaded"),
    ],
)
def test_a_broken_torch_is_named(place, tmp_path, monkeypatch, raised, words):
    (tmp_path / "torch").mkdir()
    (tmp_path / "torch" / "__init__.py").write_text(f"raise {raised}\n", encoding="utf-8")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    runner = Runner(temporary=place)
    last = runner.start({"kind": "probe"}).wait()
    assert (last.kind, last.error_kind) == ("error", "torch")
    assert words in last.message
    assert "Traceback" in runner.log
    runner.close()
    assert not list(place.iterdir())


def test_it_comes_back_after_the_worker_has_left(place):
    runner = Runner(temporary=place, keep_warm_seconds=0.1)
    assert runner.start({"kind": "probe"}).wait().kind == "result"
    until(lambda: runner.state == "stopped")
    assert runner.start({"kind": "probe"}).wait().kind == "result"
    runner.close()
    runner.close()


def test_what_cannot_be_started_is_said_at_once(place, tmp_path):
    with pytest.raises(OutputError, match="could not be started"):
        Runner([str(tmp_path / "none")], temporary=place).start({"kind": "probe"})
    with pytest.raises(OutputError, match="temporary folder"):
        Runner(temporary=tmp_path / "none").start({"kind": "probe"})
    assert not list(place.iterdir())


def test_a_worker_that_fails_says_its_last_words(place):
    command = [sys.executable, "-c", "raise SystemExit('no such module')"]
    last = Runner(command, temporary=place).start({"kind": "probe"}).wait()
    assert (last.kind, last.error_kind) == ("error", "unexpected")
    assert "no such module" in last.message
    assert not list(place.iterdir())


def test_what_cannot_be_written_is_an_error(runner, place):
    last = runner.start({"kind": "probe", "odd": Image(np.array([object()]), np.eye(4))}).wait()
    assert last.kind == "error"
    assert last.message
    assert not list(place.iterdir())


def test_close_cancels_what_runs(place):
    runner = Runner(temporary=place)
    run = runner.start(registration(LONG))
    begun(run)
    runner.close()
    assert run.wait().kind == "cancelled"
    assert not list(place.iterdir())


@pytest.mark.skipif(sys.platform == "win32", reason="Windows knows no file modes")
def test_folders_are_private(runner, place, monkeypatch):
    modes = []

    def look(tree, folder, name):
        modes.append(folder.stat().st_mode & 0o777)
        pack(tree, folder, name)

    monkeypatch.setattr(runner_module, "pack", look)
    runner.start({"kind": "probe"}).wait()
    assert modes == [0o700]


def test_only_old_folders_of_ours_are_swept(tmp_path):
    old_ones = {"diffeoreg-abcd1234", "diffeoreg-results1", "other"}
    names = {*old_ones, "diffeoreg-young123"}
    for name in names:
        (tmp_path / name).mkdir()
        if name != "diffeoreg-results1":
            (tmp_path / name / MARK).touch()
        if name in old_ones:
            os.utime(tmp_path / name, (1e9, 1e9))
    sweep(tmp_path)
    assert {folder.name for folder in tmp_path.iterdir()} == names - {"diffeoreg-abcd1234"}
