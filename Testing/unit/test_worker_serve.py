"""The worker's two threads, with messages and jobs made up: order, Stop, errors in words."""

from __future__ import annotations

import io
import json
import os
import threading
import time
from dataclasses import dataclass

import pytest
import torch

from DiffeoRegLib.errors import DeviceError, InputError, MemoryLimitError
from DiffeoRegLib.exchange import pack, unpack
from DiffeoRegLib.worker import serve
from DiffeoRegLib.worker.channel import Channel
from DiffeoRegLib.worker.serve import Server, remove, told


@dataclass(frozen=True)
class Step:
    phase: str = "refine"
    fraction: float = 0.5
    message: str = "half"


class Wire:
    """A server with a pipe into it, all it has said, and no process that could be ended."""

    def __init__(self, monkeypatch, tmp_path, idle_seconds=30.0):
        incoming, self._pipe = os.pipe()
        self.said, self.folder = io.BytesIO(), tmp_path
        self.server = Server(Channel(os.fdopen(incoming, "rb"), self.said), idle_seconds)
        self.left = threading.Event()
        monkeypatch.setattr(serve, "leave", self._leave)
        self._listener = threading.Thread(target=self.server.listen, daemon=True)
        self._listener.start()

    def _leave(self, status):
        self.left.set()

    def tell(self, line):
        os.write(self._pipe, (line if isinstance(line, str) else json.dumps(line)).encode() + b"\n")

    def hang_up(self):
        os.close(self._pipe)

    def job(self, identity, **content):
        folder = self.folder / f"diffeoreg-{identity}"
        folder.mkdir()
        pack(content, folder, "job")
        self.tell({"job": str(folder), "id": identity})
        return folder

    def events(self, kind):
        lines = [json.loads(line) for line in self.said.getvalue().splitlines()]
        return [line for line in lines if line["event"] == kind]

    def work(self, do):
        threading.Thread(target=self.server.work, args=(do,), daemon=True).start()

    def until(self, kind, count=1):
        end = time.monotonic() + 10
        while len(self.events(kind)) < count:
            assert time.monotonic() < end, self.said.getvalue()
            time.sleep(0.005)
        return self.events(kind)


@pytest.fixture
def wire(monkeypatch, tmp_path):
    wire = Wire(monkeypatch, tmp_path)
    yield wire
    if not wire.left.is_set():
        wire.hang_up()
        assert wire.left.wait(10)


def test_jobs_are_done_in_turn_and_answered_in_their_folders(wire):
    def do(job, steps):
        steps(Step())
        return {"twice": 2 * job["n"]}

    folders = [wire.job(str(n), n=n) for n in (3, 4)]
    wire.work(do)
    assert [event["id"] for event in wire.until("result", 2)] == ["3", "4"]
    assert [unpack(folder, "result") for folder in folders] == [{"twice": 6}, {"twice": 8}]
    middle = [event for event in wire.events("progress") if event["phase"] == "refine"]
    assert middle[0] == {
        "event": "progress", "id": "3", "phase": "refine", "fraction": 0.5, "message": "half",
        "eta_seconds": None,
    }  # fmt: skip


def test_the_time_left_is_told_once_it_is_known(wire):
    def do(job, steps):
        time.sleep(0.6)
        steps(Step(fraction=0.5))
        return {}

    wire.job("1")
    wire.work(do)
    wire.until("result")
    assert wire.events("progress")[-1]["eta_seconds"] == pytest.approx(0.6, abs=0.3)


def test_the_running_job_is_stopped_at_its_next_step(wire):
    begun = threading.Event()

    def do(job, steps):
        begun.set()
        while True:
            steps(Step())
            time.sleep(0.002)

    wire.job("7")
    wire.work(do)
    assert begun.wait(10)
    wire.tell({"stop": "7"})
    assert wire.until("cancelled")[0]["id"] == "7"
    assert not wire.events("error")


def test_a_waiting_job_is_stopped_at_once_and_never_begun(wire):
    release, done = threading.Event(), []

    def do(job, steps):
        release.wait(10)
        done.append(job["n"])
        return {}

    wire.job("1", n=1)
    wire.job("2", n=2)
    wire.job("3", n=3)
    wire.work(do)
    wire.until("progress")
    wire.tell({"stop": "2"})
    assert wire.until("cancelled")[0]["id"] == "2"
    release.set()
    wire.until("result", 2)
    assert done == [1, 3]


def test_a_job_stopped_in_its_last_step_has_no_result(wire):
    def do(job, steps):
        wire.tell({"stop": "1"})
        time.sleep(0.2)
        return {"x": 1}

    folder = wire.job("1")
    wire.work(do)
    wire.until("cancelled")
    assert not (folder / "result.json").exists()


def test_a_failed_job_does_not_hurt_the_next(wire):
    def do(job, steps):
        if job["bad"]:
            raise InputError("The image is bad.")
        return {}

    wire.job("1", bad=True)
    wire.job("2", bad=False)
    wire.work(do)
    assert wire.until("result")[0]["id"] == "2"
    (error,) = wire.events("error")
    assert error == {"event": "error", "id": "1", "message": "The image is bad.", "kind": "input"}


@pytest.mark.parametrize("line", ["garbage", "[1, 2]", '"word"', "{", "\xff\xfe", "{}", '{"stop": "none"}'])
def test_lines_that_are_no_message_do_no_harm(wire, line):
    wire.tell(line)
    wire.job("1")
    wire.work(lambda job, steps: {})
    wire.until("result")


def test_the_end_of_the_input_ends_the_process_and_its_folders(wire, tmp_path):
    folder = wire.job("1")
    being_written = tmp_path / "diffeoreg-2"
    being_written.mkdir()
    other = tmp_path / "thesis"
    other.mkdir()
    wire.tell({"folder": str(being_written), "id": "2"})
    wire.tell({"folder": str(other), "id": "3"})
    wire.hang_up()
    assert wire.left.wait(10)
    assert not folder.exists()
    assert not being_written.exists()
    assert other.exists()  # not one of ours by its name


def test_it_leaves_when_idle_but_not_while_a_job_is_being_written(monkeypatch, tmp_path):
    wire = Wire(monkeypatch, tmp_path, idle_seconds=0.1)
    wire.tell({"folder": str(tmp_path / "diffeoreg-1"), "id": "1"})
    worker = threading.Thread(target=wire.server.work, args=(lambda job, steps: {},), daemon=True)
    time.sleep(0.2)
    worker.start()
    worker.join(0.5)
    assert worker.is_alive()
    wire.tell({"stop": "1"})
    worker.join(5)
    assert not worker.is_alive()
    wire.hang_up()
    assert wire.left.wait(10)


@pytest.mark.parametrize(
    ("problem", "kind", "words"),
    [
        (InputError("No overlap."), "input", "No overlap."),
        (MemoryLimitError("Too large."), "memory", "Too large."),
        (MemoryError(), "memory", "working voxel"),
        (torch.OutOfMemoryError("CUDA out of memory."), "memory", "working voxel"),
        (RuntimeError("DefaultCPUAllocator: not enough memory: you tried"), "memory", "working voxel"),
        (DeviceError("No cuda."), "device", "No cuda."),
        (ModuleNotFoundError("No module named 'scipy'", name="scipy"), "unexpected", "'scipy'"),
        (ValueError("odd\nthing"), "unexpected", "Unexpected ValueError: odd thing"),
        (KeyError(), "unexpected", "KeyError"),
    ],
)
def test_every_problem_has_a_sentence_and_a_kind(problem, kind, words):
    message, told_kind = told(problem)
    assert told_kind == kind
    assert words in message
    assert "\n" not in message


def test_a_folder_is_removed_although_somebody_writes_into_it(tmp_path):
    folder = tmp_path / "diffeoreg-x"
    folder.mkdir()
    (folder / "inner").mkdir()
    (folder / "inner" / "file").write_text("1", encoding="utf-8")
    remove(folder)
    assert not folder.exists()
    remove(folder)
