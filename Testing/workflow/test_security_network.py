"""Nothing leaves the computer: the commands run where every socket that is opened is watched."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from Testing.cohort_cases import table_of
from Testing.train_command import written

WATCH = '''
"""Read by Python before anything else, in every process: says what sockets do, stops all but loopback."""
import os
import sys

OWN = ("127.", "::1", "localhost")

def watch(event, arguments):
    if event in ("socket.connect", "socket.bind", "socket.sendto", "socket.sendmsg"):
        address = arguments[1]
        host = str(address[0]) if isinstance(address, tuple) else "here"
    elif event in ("socket.getaddrinfo", "socket.gethostbyname"):
        host = str(arguments[0])
    elif event == "urllib.Request":
        host = str(arguments[0])
    else:
        return
    with open(os.environ["SOCKETS"], "a", encoding="utf-8") as log:
        log.write(f"{event} {host}\\n")
    if host not in ("here", "None") and not host.startswith(OWN):
        raise ConnectionRefusedError(f"{event} of {host} is not allowed here")

sys.addaudithook(watch)
'''
COMMANDS = """
import sys
from DiffeoRegLib.cli import main
words, commands = sys.argv[1:], [[]]
for word in words:
    commands.append([]) if word == ";" else commands[-1].append(word)
for command in commands:
    status = main([*command, "--quiet"])
    if status:
        sys.exit(f"{command} ended with {status}")
"""
QUICK = ("--levels", "4", "--iterations", "2", "--device", "cpu", "--threads", "1")


@pytest.fixture
def watched(tmp_path: Path, repository: Path):
    """Runs Python where sockets are watched; returns how it ended, and what they did."""
    (tmp_path / "watch").mkdir()
    (tmp_path / "watch" / "sitecustomize.py").write_text(WATCH, encoding="utf-8")
    path = os.pathsep.join([str(tmp_path / "watch"), str(repository)])
    log = tmp_path / "sockets.txt"

    def run(*words: object) -> tuple[subprocess.CompletedProcess[str], list[str]]:
        done = subprocess.run(
            [sys.executable, "-c", *map(str, words)],
            env={**os.environ, "PYTHONPATH": path, "SOCKETS": str(log)},
            cwd=tmp_path, capture_output=True, encoding="utf-8", check=False, timeout=600,
        )  # fmt: skip
        return done, log.read_text(encoding="utf-8").splitlines() if log.exists() else []

    return run


def test_the_watch_sees_and_stops(watched) -> None:
    """Without this the tests below would hold whatever the commands did."""
    text = "import socket; socket.socket().connect(('192.0.2.1', 80))"
    done, seen = watched(text)
    assert done.returncode != 0
    assert "is not allowed here" in done.stderr
    assert seen == ["socket.connect 192.0.2.1"]


def test_no_command_opens_a_connection(watched, samples: Path, tmp_path: Path) -> None:
    fixed, moving = (samples / "brain_slices" / f"oasis2d_00{n}.nrrd" for n in ("01", "10"))
    table = table_of(tmp_path, ["fixed,moving", f"{fixed},{moving}"])
    commands = [
        ["register", fixed, moving, "-o", "one", *QUICK],
        ["group", fixed, moving, fixed, "-o", "several", *QUICK],
        ["evaluate", "--pairs", table, "-o", "scores", *QUICK],
        ["train", written(tmp_path / "run.yaml", steps=2, validate_every=2), "-o", "run", "--threads", "1"],
    ]
    words = [word for command in commands for word in (*command, ";")][:-1]
    done, seen = watched(COMMANDS, *words)
    assert done.returncode == 0, done.stderr
    assert seen == []
    made = ["one/transform.h5", "several/mean.nii.gz", "scores/pairs.csv", "run/last.safetensors"]
    assert all((tmp_path / name).is_file() for name in made)


@pytest.mark.skipif(os.name == "nt", reason="Windows has its processes talk over loopback sockets, too")
def test_the_workers_of_this_computer_are_heard_on_loopback_only(
    watched, samples: Path, tmp_path: Path
) -> None:
    fixed, moving = (samples / "brain_slices" / f"oasis2d_00{n}.nrrd" for n in ("01", "10"))
    table = table_of(tmp_path, ["fixed,moving", f"{fixed},{moving}"])
    done, seen = watched(COMMANDS, "batch", table, "-o", "cohort", "--workers", "1", "--no-html", *QUICK[:-2])
    assert done.returncode == 0, done.stderr
    bound = {line.split()[1] for line in seen if line.startswith("socket.bind")}
    assert "127.0.0.1" in bound
    assert bound <= {"127.0.0.1", "here"}
    assert {line.split()[1] for line in seen if line.startswith("socket.connect")} <= {"127.0.0.1", "here"}
