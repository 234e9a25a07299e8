"""The worker as a real process, spoken to as the panel does: JSON lines, raw files, and every way to end."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys

import pytest

from DiffeoRegLib.exchange import pack, unpack
from Testing.worker_jobs import LONG, registration

COMMAND = [sys.executable, "-m", "DiffeoRegLib.worker"]


class Child:
    """A worker process and what it says."""

    def __init__(self, repository, *arguments, command=COMMAND):
        self.process = subprocess.Popen(
            [*command, *arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            cwd=repository,
        )  # fmt: skip

    def tell(self, line):
        text = line if isinstance(line, bytes) else json.dumps(line).encode()
        self.process.stdin.write(text + b"\n")
        self.process.stdin.flush()

    def next(self, *kinds):
        for line in self.process.stdout:
            event = json.loads(line)
            if event["event"] in kinds:
                return event
        raise AssertionError(f"The worker ended without {kinds}: {self.process.stderr.read().decode()}")

    def job(self, folder, job, identity="1"):
        folder.mkdir()
        pack(job, folder, "job")
        self.tell({"job": str(folder), "id": identity})

    def end(self):
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        for stream in (self.process.stdin, self.process.stdout, self.process.stderr):
            with contextlib.suppress(BrokenPipeError):
                stream.close()


@pytest.fixture(scope="module")
def child(repository):
    child = Child(repository)
    assert child.next("ready")["versions"]["torch"]
    yield child
    child.end()


def test_a_job_is_answered(child, tmp_path):
    child.job(tmp_path / "diffeoreg-a", registration())
    assert child.next("result", "error", "cancelled") == {"event": "result", "id": "1"}
    result = unpack(tmp_path / "diffeoreg-a", "result")
    assert result["moved"].array.shape == registration()["fixed"].array.shape
    assert result["report"]["folds"] is not None


def test_garbage_is_answered_with_a_remark_and_changes_nothing(child, tmp_path):
    child.tell(b"\x00\xff no json")
    assert "ignored" in child.next("log")["message"]
    child.job(tmp_path / "diffeoreg-a", {"kind": "probe"}, "p")
    assert child.next("result", "error")["id"] == "p"


def test_a_missing_or_damaged_job_is_an_error_of_the_input(child, tmp_path):
    child.tell({"job": str(tmp_path / "diffeoreg-none"), "id": "m"})
    error = child.next("result", "error")
    assert (error["id"], error["kind"]) == ("m", "input")


def test_bad_settings_are_an_error_of_the_input(child, tmp_path):
    child.job(tmp_path / "diffeoreg-a", registration({"effort": "heroic"}))
    error = child.next("result", "error")
    assert error["kind"] == "input"
    assert "heroic" in error["message"]


@pytest.mark.parametrize("until", [0.0, 0.02, 0.3])
def test_stop_is_heard_wherever_the_run_is(child, tmp_path, until):
    child.job(tmp_path / "diffeoreg-a", registration(LONG), "s")
    while child.next("progress", "result")["fraction"] < until:
        pass
    child.tell({"stop": "s"})
    assert child.next("cancelled", "result", "error")["event"] == "cancelled"


@pytest.mark.parametrize("message", [None, {"quit": True}])
def test_without_its_parent_it_stops_in_the_middle_and_leaves_no_folder(repository, tmp_path, message):
    child = Child(repository)
    try:
        child.job(tmp_path / "diffeoreg-a", registration(LONG))
        child.next("progress")
        if message:
            child.tell(message)
        else:
            child.process.stdin.close()
        assert child.process.wait(5) == 0
        assert not (tmp_path / "diffeoreg-a").exists()
    finally:
        child.end()


def test_it_leaves_after_a_while_without_work(repository):
    child = Child(repository, "--idle-seconds", "0.2")
    try:
        child.next("ready")
        assert child.process.wait(10) == 0
    finally:
        child.end()


@pytest.mark.parametrize(
    ("raised", "words"),
    [
        ("ImportError('libc10.so: cannot open shared object file')", "cannot be loaded (libc10.so"),
        ("ModuleNotFoundError('No module named torch', name='torch')", "is not installed"),
    ],
)
def test_a_missing_or_broken_torch_is_said_in_a_sentence(repository, tmp_path, raised, words):
    (tmp_path / "torch").mkdir()
    (tmp_path / "torch" / "__init__.py").write_text(f"raise {raised}\n", encoding="utf-8")
    program = (
        f"import sys; sys.path.insert(0, {str(tmp_path)!r})\n"
        "from DiffeoRegLib.worker.serve import main\n"
        "main([])\n"
    )
    child = Child(repository, command=[sys.executable, "-c", program])
    try:
        error = child.next("ready", "error")
        assert (error["event"], error["id"], error["kind"]) == ("error", None, "torch")
        assert words in error["message"]
        assert "Install" in error["message"]
        assert child.process.wait(10) == 3
        assert b"Traceback" in child.process.stderr.read()
    finally:
        child.end()


def test_what_libraries_print_never_gets_among_the_messages(repository):
    program = (
        "import os, sys\n"
        "from DiffeoRegLib.worker.channel import Channel\n"
        "channel = Channel.of_this_process()\n"
        "print('python prints'); os.write(1, b'a C library prints\\n'); os.system('echo a child prints')\n"
        "assert sys.stdin.read() == ''\n"
        "channel.send('ready', got=[message for message in channel])\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], input=b'{"stop": "1"}\n', capture_output=True, cwd=repository,
        check=True,
    )  # fmt: skip
    assert json.loads(done.stdout) == {"event": "ready", "got": [{"stop": "1"}]}
    for words in (b"python prints", b"a C library prints", b"a child prints"):
        assert words in done.stderr


def test_the_panels_packages_suffice(repository):
    """Slicer brings no nibabel and no matplotlib: the worker's jobs must load without them."""
    program = (
        "import sys\n"
        "for name in ('nibabel', 'matplotlib', 'rich', 'safetensors', 'SimpleITK'):\n"
        "    sys.modules[name] = None\n"
        "import DiffeoRegLib.worker.jobs\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True, cwd=repository, timeout=60)
