"""The command: help, one sentence and the right status for what goes wrong, JSON lines."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from DiffeoRegLib import __version__
from DiffeoRegLib.cli import commands, console, exit_status
from DiffeoRegLib.errors import (
    Cancelled,
    DeviceError,
    MemoryLimitError,
    NoOverlapError,
    OutputError,
    ShapeError,
)
from Testing.command import PRINTED, one_sentence, register_words, run

# ---------------------------------------------------------------- help


def test_help_teaches_with_examples(capsys):
    assert run("--help") == 0
    text = capsys.readouterr().out
    for word in ("register", "apply", "shoot", "evaluate", "train", "methods", "device", "examples:"):
        assert word in text


@pytest.mark.parametrize("command", ["register", "apply", "shoot", "evaluate", "train", "methods", "device"])
def test_every_command_explains_itself(command, capsys):
    assert run(command, "--help") == 0
    assert "--json" in capsys.readouterr().out


def test_version(capsys):
    assert run("--version") == 0
    assert capsys.readouterr().out.strip() == f"diffeoreg {__version__}"


def test_no_command_shows_the_help(capsys):
    assert run() == 2
    assert "examples:" in capsys.readouterr().out


def test_help_does_not_load_torch():
    code = "import sys; from DiffeoRegLib.cli import main; main(['--help']); sys.exit('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=False, timeout=60)
    assert done.returncode == 0


# ---------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--method", "svff"], "Did you mean 'svf'"),
        (["--preset", "brain"], "brain-mr"),
        (["--effort", "slow"], "accurate, balanced, fast"),
        (["--similarity", "cc"], "lncc"),
        (["--init", "nowhere.tfm"], "identity, geometry"),
        (["--device", "gpu"], "auto, cpu, cuda, mps"),
        (["--interpolation", "spline"], "cubic, linear"),
        (["--steps", "0"], "from 1 up"),
        (["--steps", "-3"], "from 1 up"),
        (["--steps", "many"], "whole number or 'auto'"),
        (["--iterations", "5,a"], "whole numbers"),
        (["--levels", "8,x"], "numbers like"),
        (["--levels", "8,4", "--iterations", "5"], "2 levels"),
        (["--threads", "0"], "threads"),
        (["--memory-limit-gb", "-1"], "memory_limit_gb"),
        (["--padding-mm", "-1"], "padding_mm"),
        (["--working-spacing-mm", "0"], "working_spacing_mm"),
        (["--exclude-fixed-mask"], "--fixed-mask"),
        (["--exclude-moving-mask"], "--moving-mask"),
        (["--guide-with-landmarks"], "--landmarks"),
        (["--smooth-labels"], "--moving-seg"),
        (["--fixed-seg", "a.nii.gz"], "--moving-seg"),
        (["--guidance-fixed-seg", "a.nii.gz"], "--guidance-moving-seg"),
        (["--fixed-landmarks", "a.csv"], "both images"),
        (["--extra", "passes"], "NAME=VALUE"),
        (["--extra", "passes=1", "--extra", "passes=2"], "given twice"),
        (["--no-such-flag"], "--no-such-flag"),
        (["--fixed-mask", "missing.nii.gz"], "missing.nii.gz"),
        (["--moving-seg", "missing.nii.gz"], "missing.nii.gz"),
    ],
)
def test_bad_flags(flags, said, pair_files, tmp_path, registrations, capsys):
    out = tmp_path / "out"
    assert run(*register_words(pair_files, out, "--quiet", *flags)) == 2
    assert said in one_sentence(capsys)
    assert not out.exists()
    assert registrations == []


def test_settings_of_one_method(pair_files, tmp_path, registrations):
    """Numbers, words and yes or no arrive as what they are."""
    given = ["--extra", "passes=3", "--extra", "mode=complete", "--extra", "fast=true"]
    assert run(*register_words(pair_files, tmp_path / "out", *given)) == 0
    assert registrations[0]["settings"].extras == {"passes": 3, "mode": "complete", "fast": True}


def test_bad_images(pair_files, tmp_path, registrations, capsys):
    for name in ("missing.nii.gz", "cut.nii.gz", "fixed.csv"):
        assert (
            run("register", pair_files / name, pair_files / "moving.nii.gz", "-o", tmp_path / "o", "--quiet")
            == 2
        )
        assert name in one_sentence(capsys)
    assert not (tmp_path / "o").exists()


def test_missing_arguments(capsys):
    assert run("register", "a.nii.gz") == 2
    assert "MOVING" in one_sentence(capsys)
    assert run("unregister") == 2
    assert "register" in one_sentence(capsys)


def test_words_left_over_name_the_help_of_their_command(capsys):
    assert run("evaluate", "somewhere") == 2
    assert "Unrecognized arguments: somewhere. See `diffeoreg evaluate --help`." in one_sentence(capsys)


def test_landmarks_that_do_not_pair_up(pair_files, tmp_path, registrations, capsys):
    words = ["--landmarks", pair_files / "fixed.csv", pair_files / "one.csv", "--quiet"]
    assert run(*register_words(pair_files, tmp_path / "o", *words)) == 2
    assert "has 2" in one_sentence(capsys)


# ---------------------------------------------------------------- exit status of what goes wrong inside


@pytest.mark.parametrize(
    ("problem", "status", "said"),
    [
        (NoOverlapError("The images share no space."), 2, "share no space"),
        (DeviceError("No such device."), 2, "No such device"),
        (OutputError("Disk gone."), 3, "Disk gone"),
        (MemoryLimitError("Too large."), 4, "Too large"),
        (MemoryError(), 4, "--memory-limit-gb"),
        (torch.cuda.OutOfMemoryError("CUDA out of memory"), 4, "--memory-limit-gb"),
        (Cancelled("Cancelled; nothing was written."), 130, "Cancelled"),
        (KeyboardInterrupt(), 130, "Cancelled"),
        (ShapeError("wrong\nshape"), 1, "Unexpected ShapeError: wrong shape"),
        (ZeroDivisionError("division by zero"), 1, "--debug"),
    ],
)
def test_exit_status(problem, status, said, pair_files, tmp_path, monkeypatch, capsys):
    def register(*_, **__):
        raise problem

    monkeypatch.setattr(commands.pipeline, "register", register)
    assert run(*register_words(pair_files, tmp_path / "out", "--quiet")) == status
    assert said in one_sentence(capsys)
    assert list(tmp_path.iterdir()) == []


def test_debug_shows_the_traceback(pair_files, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(commands.pipeline, "register", lambda *_, **__: 1 / 0)
    assert run(*register_words(pair_files, tmp_path / "out", "--debug")) == 1
    assert "Traceback" in capsys.readouterr().err


def test_exit_status_of_plain_exceptions():
    assert exit_status(RuntimeError("x")) == 1
    assert exit_status(Cancelled("x")) == 130


# ---------------------------------------------------------------- how it talks


def test_json_lines_and_nothing_else(pair_files, tmp_path, registrations, capsys):
    assert run(*register_words(pair_files, tmp_path / "o", "--json", "--no-html")) == 0
    said = capsys.readouterr()
    events = [json.loads(line) for line in said.out.splitlines()]
    assert PRINTED in said.err
    kinds = [event["event"] for event in events]
    assert set(kinds) == {"progress", "log", "result"}
    assert kinds[-1] == "result"
    steps = [event for event in events if event["event"] == "progress"]
    assert set(steps[0]) == {"event", "phase", "fraction", "message", "eta_seconds"}
    fractions = [step["fraction"] for step in steps]
    assert fractions == sorted(fractions)
    assert (fractions[0], fractions[-1]) == (0.0, 1.0)
    assert events[-1]["report"]["folds"]["folded_percent"] == 0
    assert Path(events[-1]["files"]["transform"]).is_file()


def test_json_errors_are_events_too(pair_files, tmp_path, capsys):
    assert (
        run("register", "missing.nii.gz", pair_files / "moving.nii.gz", "-o", tmp_path / "o", "--json") == 2
    )
    said = capsys.readouterr()
    last = json.loads(said.out.splitlines()[-1])
    assert (last["event"], last["kind"], last["exit_code"]) == ("error", "FileFormatError", 2)
    assert "missing.nii.gz" in said.err
    assert run("register", "--json") == 2
    assert json.loads(capsys.readouterr().out)["kind"] == "SettingsError"


def test_plain_lines_without_a_terminal(pair_files, tmp_path, registrations, capsys):
    assert run(*register_words(pair_files, tmp_path / "o", "--no-html")) == 0
    said = capsys.readouterr().err
    assert " 48% level 1: half" in said


def test_quiet_says_only_the_result(pair_files, tmp_path, registrations, capsys):
    assert run(*register_words(pair_files, tmp_path / "o", "--quiet", "--no-html")) == 0
    said = capsys.readouterr()
    assert said.err.splitlines() == [PRINTED]
    assert "Written to" in said.out


def test_a_terminal_gets_a_bar_with_the_time_left():
    terminal = io.StringIO()
    terminal.isatty = lambda: True
    bar = console.BarConsole(io.StringIO(), terminal)
    clock = iter([0.0, 10.0, 20.0])
    bar._left = console.TimeLeft(lambda: next(clock))
    for fraction in (0.0, 0.25, 0.5):
        bar.progress("level 1", fraction, "working [not markup]")
    assert bar._bar.tasks[0].fields["left"] == "20 s left"
    bar.log("a remark")
    bar.close()
    assert "a remark" in terminal.getvalue()


def test_time_left():
    clock = iter([100.0, 100.1, 130.0])
    left = console.TimeLeft(lambda: next(clock))
    assert left.seconds(0.0) is None
    assert left.seconds(0.5) is None
    assert left.seconds(0.25) == pytest.approx(90.0)


@pytest.mark.parametrize(
    ("seconds", "said"), [(4.4, "4 s"), (125, "2 min 05 s"), (3780, "1 h 03 min"), (-1, "0 s")]
)
def test_durations(seconds, said):
    assert console.duration(seconds) == said
