"""One worker process: its pipes, what it said last, and its end, on every operating system."""

from __future__ import annotations

import collections
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import DiffeoRegLib
from DiffeoRegLib.errors import OutputError

LOG_LINES = 400
LINE_CHARACTERS = 2000
WORDS_CHARACTERS = 300
KILLED = (-9, 137)
"""Exit statuses of a process that the system has ended."""
Message = dict[str, Any]


class Worker:
    """A running worker.

    on_message(worker, message) and on_end(worker, exit status) are called in a thread of this object.
    ready: it has said so.  killed: by `kill`.  complaint: sentence and kind of why it cannot work at all.
    Raises OutputError when the process cannot be started.
    """

    def __init__(
        self,
        command: Sequence[str],
        on_message: Callable[[Worker, Message], None],
        on_end: Callable[[Worker, int], None],
    ) -> None:
        self._lines: collections.deque[str] = collections.deque(maxlen=LOG_LINES)
        self._on_message, self._on_end = on_message, on_end
        self._writing = threading.Lock()
        self.ready = False
        self.killed = False
        self.complaint: tuple[str, str] | None = None
        root = Path(DiffeoRegLib.__file__).resolve().parents[1]
        try:
            self._process = subprocess.Popen(
                [str(word) for word in command],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                cwd=root, env=_environment(root), **_own_group(),
            )  # fmt: skip
        except (OSError, ValueError) as error:
            raise OutputError(
                f"The computation process '{command[0]}' could not be started: {error}. "
                "Check that this program exists and may be run."
            ) from error
        self._listeners = [
            threading.Thread(target=work, name=f"diffeoreg {name}", daemon=True)
            for name, work in (("errors", self._read_errors), ("messages", self._read_messages))
        ]
        for listener in self._listeners:
            listener.start()

    @property
    def pid(self) -> int:
        """Process number."""
        return self._process.pid

    @property
    def alive(self) -> bool:
        """Whether the process runs."""
        return self._process.poll() is None

    @property
    def log(self) -> str:
        """The last lines of its error stream."""
        return "\n".join(list(self._lines))

    def send(self, **message: Any) -> bool:
        """One message to the worker; False when it is gone."""
        line = (json.dumps(message) + "\n").encode("utf-8")
        stdin = self._process.stdin
        with self._writing:
            try:
                if stdin is not None and not stdin.closed:
                    stdin.write(line)
                    stdin.flush()
                    return True
            except OSError as error:
                self._lines.append(f"The message could not be delivered: {error}")
        return False

    def leave(self, seconds: float) -> None:
        """Let it go: the end of its input ends it at once; killed if it does not go in time."""
        self._hang_up()
        try:
            self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            self.kill()

    def kill(self) -> None:
        """End the process and all it has started, now."""
        self.killed = True
        kill_tree(self._process)

    def _hang_up(self) -> None:
        with self._writing:
            try:
                if self._process.stdin is not None:
                    self._process.stdin.close()
            except OSError as error:  # it was gone before the last message reached it
                self._lines.append(f"The last message could not be delivered: {error}")

    def _read_errors(self) -> None:
        assert self._process.stderr is not None
        with self._process.stderr as lines:
            for line in lines:
                self._lines.append(line.decode("utf-8", "replace").rstrip()[:LINE_CHARACTERS])

    def _read_messages(self) -> None:
        assert self._process.stdout is not None
        with self._process.stdout as lines:
            for line in lines:
                self._take(line)
        self._hang_up()
        try:
            status = self._process.wait(5.0)
        except subprocess.TimeoutExpired:  # it has closed its output but lives: nothing can be hoped from it
            kill_tree(self._process)
            status = self._process.wait()
        self._listeners[0].join(1.0)
        self._on_end(self, status)

    def _take(self, line: bytes) -> None:
        """One line of its output: a message, or words of a library that go to the log."""
        try:
            message = json.loads(line)
        except ValueError:
            message = None
        if isinstance(message, dict):
            self._on_message(self, message)
        else:
            self._lines.append(line.decode("utf-8", "replace").rstrip()[:LINE_CHARACTERS])


def words_about(status: int, log: str) -> tuple[str, str]:
    """Why a worker that was not asked to has ended: a sentence, and the kind of error."""
    if status in KILLED:
        return (
            "The computation was ended by the system, most likely because the memory was not enough. "
            "Close other programs, or set a larger working voxel size or a memory limit.",
            "memory",
        )
    last = next((line for line in reversed(log.splitlines()) if line.strip()), "")
    how = f"signal {-status}" if status < 0 else f"exit status {status}"
    said = f"; its last words: {last.strip()[:WORDS_CHARACTERS]}" if last else ""
    return (
        f"The computation process ended unexpectedly ({how}{said}): apply again, and if it happens once "
        "more, copy the log and report it.",
        "unexpected",
    )


def kill_tree(process: subprocess.Popen[bytes]) -> None:
    """End a process and its children."""
    if sys.platform == "win32":
        if process.poll() is None:
            subprocess.run(
                ["taskkill", "/T", "/F", "/PID", str(process.pid)],
                capture_output=True, check=False, creationflags=subprocess.CREATE_NO_WINDOW,
            )  # fmt: skip
        return
    if process.returncode is None:  # once it has been waited for, its number may belong to somebody else
        try:
            os.killpg(process.pid, signal.SIGKILL)
        except ProcessLookupError:
            process.poll()


def _own_group() -> Mapping[str, Any]:
    """Options that put the process into a group of its own, without a console window."""
    if sys.platform == "win32":
        return {"creationflags": subprocess.CREATE_NEW_PROCESS_GROUP | subprocess.CREATE_NO_WINDOW}
    return {"start_new_session": True}


def _environment(root: Path) -> dict[str, str]:
    """The environment as it is, with the engine's folder first on Python's path."""
    before = os.environ.get("PYTHONPATH")
    path = os.pathsep.join([str(root), *([before] if before else [])])
    return {**os.environ, "PYTHONPATH": path}
