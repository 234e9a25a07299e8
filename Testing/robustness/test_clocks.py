"""Clocks that jump while something runs: durations stay durations, nothing hangs, nothing is thrown away."""

from __future__ import annotations

import ast
import os
import time
from pathlib import Path

import pytest

from DiffeoRegLib.pipeline import register
from DiffeoRegLib.settings import Settings
from DiffeoRegPanel import folders
from DiffeoRegPanel.runner import Runner
from Testing.robustness.test_killed import wait_for
from Testing.worker_jobs import QUICK, pair

DAY = 24 * 3600.0
WALL_CLOCK = {"DiffeoReg/DiffeoRegPanel/folders.py"}
"""Ages of files are told by the clock that dates them."""


class Jumping:
    """A wall clock that goes back a day and forth two with every look at it."""

    def __init__(self) -> None:
        self.looks, self.usual = 0, time.time

    def __call__(self) -> float:
        self.looks += 1
        return self.usual() + (-DAY if self.looks % 2 else 2 * DAY)


def seconds_in(report):
    for value in report.values():
        if isinstance(value, dict):
            yield from seconds_in(value)
        elif isinstance(value, int | float):
            yield value


def test_no_duration_is_taken_from_the_wall_clock(repository):
    """Only `monotonic` and `perf_counter` measure; `time.time` jumps when a computer sets its clock."""
    found = set()
    for package in ("DiffeoRegLib", "DiffeoReg"):
        for path in (repository / package).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                wall = isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name)
                if wall and node.value.id == "time" and node.attr in ("time", "time_ns"):
                    found.add(path.relative_to(repository).as_posix())
                if isinstance(node, ast.ImportFrom) and node.module == "time":
                    assert not {"time", "time_ns"} & {name.name for name in node.names}, path
    assert found == WALL_CLOCK


def test_a_run_while_the_clock_jumps(monkeypatch, tmp_path):
    monkeypatch.setattr(time, "time", Jumping())
    settings = Settings(**{name: tuple(v) if isinstance(v, list) else v for name, v in QUICK.items()})
    report = register(*pair(), settings).report
    seconds = list(seconds_in(report["seconds"]))
    assert seconds
    assert all(0 <= value < 60 for value in seconds)
    runner = Runner(temporary=tmp_path)
    try:
        assert wait_for(runner.start({"kind": "probe"})).kind == "result"
    finally:
        runner.close()
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(os.name != "posix", reason="only there a process can be asked whether it runs")
@pytest.mark.parametrize("jump", [-3650 * DAY, -DAY, 2 * DAY, 3650 * DAY])
def test_a_folder_in_use_is_not_taken_for_an_old_one(monkeypatch, tmp_path, jump):
    """Another session starts after the clock was set: what this one is working in stays."""
    busy = folders.new_folder(tmp_path)
    usual = time.time
    monkeypatch.setattr(time, "time", lambda: usual() + jump)
    folders.sweep(tmp_path)
    assert busy.is_dir()


def test_what_a_crashed_session_left_is_still_swept(tmp_path):
    left = folders.new_folder(tmp_path)
    (left / folders.MARK).write_text("999999999", encoding="ascii")  # a process that there is not
    old = time.time() - 2 * DAY
    os.utime(left, (old, old))
    folders.sweep(tmp_path)
    assert not left.exists()
    assert Path(tmp_path).is_dir()
