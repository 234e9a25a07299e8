"""The command: exit status and one sentence for what goes wrong, JSON lines, files all or nothing."""

from __future__ import annotations

import errno
import io
import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
import torch

from DiffeoRegLib import __version__, outputs
from DiffeoRegLib.cli import commands, console, exit_status, main
from DiffeoRegLib.errors import (
    Cancelled,
    DeviceError,
    MemoryLimitError,
    NoOverlapError,
    OutputError,
    ShapeError,
)
from DiffeoRegLib.methods.base import Progress
from DiffeoRegLib.volumes.files import read_points, read_volume, write_points, write_volume
from DiffeoRegLib.volumes.resample import warp_volume
from DiffeoRegLib.volumes.transform_files import read_transform, write_transform
from Testing.fake_run import blobs, fake_result, hostile_grid, labels_of, pair_of, transforms

PRINTED = "a library that prints"
RESULTS = {"transform.h5", "inverse.h5", "moved.nii.gz", "report.json", "report.html"}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A folder with a pair of images, segmentations, landmarks and transforms."""
    folder = tmp_path_factory.mktemp("data")
    fixed = blobs(hostile_grid((12, 14, 16)), "fixed")
    transform, inverse, initial = transforms(fixed.grid)
    points = fixed.grid.world_from_index(np.array([[5.0, 6, 7], [4, 5, 8]]))
    write_volume(fixed, folder / "fixed.nii.gz")
    write_volume(pair_of(fixed, transform), folder / "moving.nii.gz")
    write_volume(labels_of(fixed), folder / "fixed_seg.nii.gz")
    write_volume(pair_of(labels_of(fixed), transform), folder / "moving_seg.nii.gz")
    write_points(points, folder / "fixed.csv")
    write_points(transform.map_points(points), folder / "moving.fcsv")
    write_points(points[:1], folder / "one.csv")
    write_transform(transform, folder / "transform.h5")
    write_transform(inverse, folder / "inverse.h5")
    write_transform(initial, folder / "initial.tfm")
    (folder / "cut.nii.gz").write_bytes((folder / "fixed.nii.gz").read_bytes()[:300])
    return folder


@pytest.fixture
def calls(monkeypatch):
    """Replaces the registration by one with a known answer; holds what it was called with."""
    seen = []

    def register(fixed, moving, settings, **others):
        seen.append({"settings": settings, **others})
        report = others["progress"]
        report(Progress("alignment", 0.0, "starting"))
        sys.stdout.write(PRINTED + "\n")
        report(Progress("level 1", 0.5, "half"))
        report(Progress("level 2", 1.0, "all"))
        return fake_result(fixed, moving, others["evaluation"], settings)

    monkeypatch.setattr(commands.pipeline, "register", register)
    return seen


def run(*words):
    return main([str(word) for word in words])


def register_words(data, out, *more):
    return ["register", data / "fixed.nii.gz", data / "moving.nii.gz", "-o", out, *more]


def one_sentence(capsys):
    """What was said on the error stream, which must be one line without a traceback."""
    said = [line for line in capsys.readouterr().err.strip().splitlines() if line != PRINTED]
    assert len(said) == 1, said
    assert said[0].startswith("diffeoreg: ")
    return said[0]


# ---------------------------------------------------------------- help


def test_help_teaches_with_examples(capsys):
    assert run("--help") == 0
    text = capsys.readouterr().out
    for word in ("register", "apply", "evaluate", "methods", "device", "examples:"):
        assert word in text


@pytest.mark.parametrize("command", ["register", "apply", "evaluate", "methods", "device"])
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
        (["--steps", "0"], "at least 1"),
        (["--steps", "-3"], "at least 1"),
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
        (["--no-such-flag"], "--no-such-flag"),
        (["--fixed-mask", "missing.nii.gz"], "missing.nii.gz"),
        (["--moving-seg", "missing.nii.gz"], "missing.nii.gz"),
    ],
)
def test_bad_flags(flags, said, data, tmp_path, calls, capsys):
    out = tmp_path / "out"
    assert run(*register_words(data, out, "--quiet", *flags)) == 2
    assert said in one_sentence(capsys)
    assert not out.exists()
    assert calls == []


def test_bad_images(data, tmp_path, calls, capsys):
    for name in ("missing.nii.gz", "cut.nii.gz", "fixed.csv"):
        assert run("register", data / name, data / "moving.nii.gz", "-o", tmp_path / "o", "--quiet") == 2
        assert name in one_sentence(capsys)
    assert not (tmp_path / "o").exists()


def test_missing_arguments(capsys):
    assert run("register", "a.nii.gz") == 2
    assert "MOVING" in one_sentence(capsys)
    assert run("unregister") == 2
    assert "register" in one_sentence(capsys)


def test_landmarks_that_do_not_pair_up(data, tmp_path, calls, capsys):
    words = ["--landmarks", data / "fixed.csv", data / "one.csv", "--quiet"]
    assert run(*register_words(data, tmp_path / "o", *words)) == 2
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
def test_exit_status(problem, status, said, data, tmp_path, monkeypatch, capsys):
    def register(*_, **__):
        raise problem

    monkeypatch.setattr(commands.pipeline, "register", register)
    assert run(*register_words(data, tmp_path / "out", "--quiet")) == status
    assert said in one_sentence(capsys)
    assert list(tmp_path.iterdir()) == []


def test_debug_shows_the_traceback(data, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(commands.pipeline, "register", lambda *_, **__: 1 / 0)
    assert run(*register_words(data, tmp_path / "out", "--debug")) == 1
    assert "Traceback" in capsys.readouterr().err


def test_exit_status_of_plain_exceptions():
    assert exit_status(RuntimeError("x")) == 1
    assert exit_status(Cancelled("x")) == 130


# ---------------------------------------------------------------- register


def test_register_writes_the_fixed_names_and_nothing_else(data, tmp_path, calls, capsys):
    out = tmp_path / "new" / "out"
    assert run(*register_words(data, out)) == 0
    assert {path.name for path in out.iterdir()} == RESULTS
    assert {path.name for path in tmp_path.iterdir()} == {"new"}
    said = capsys.readouterr()
    assert "Folded cells" in said.out
    assert "A remark of the run." in said.err
    report = json.loads((out / "report.json").read_text())
    assert report["transform"]["transform_stored_error_mm"] < 0.02
    assert report["seconds"]["writing"] > 0
    assert next(iter(report["seconds"])) == "reading"


def test_settings_reach_the_registration(data, tmp_path, calls):
    flags = {
        "preset": "brain-mr", "effort": "fast", "steps": 5, "similarity": "mse", "iterations": "9,8", "levels": "4,2",
        "padding-mm": 3, "taper-mm": 2, "device": "cpu", "threads": 1, "memory-limit-gb": 2,
        "working-spacing-mm": 2.5, "seed": 4, "init": data / "initial.tfm",
    }  # fmt: skip
    words = [word for name, value in flags.items() for word in (f"--{name}", value)]
    assert run(*register_words(data, tmp_path / "o", *words, "--no-html", "--quiet")) == 0
    settings = calls[0]["settings"]
    assert (settings.preset, settings.effort, settings.steps, settings.similarity) == (
        "brain-mr",
        "fast",
        5,
        "mse",
    )
    assert (settings.iterations, settings.levels_mm, settings.seed) == ((9, 8), (4.0, 2.0), 4)
    assert (settings.padding_mm, settings.taper_mm, settings.working_spacing_mm) == (3, 2, 2.5)
    assert (settings.memory_limit_gb, settings.threads, settings.device, settings.init) == (
        2,
        1,
        "cpu",
        "auto",
    )
    expected = transforms(hostile_grid((12, 14, 16)))[2].moving_from_fixed
    assert np.allclose(calls[0]["initial"].moving_from_fixed, expected)
    assert not (tmp_path / "o" / "report.html").exists()


def test_masks_segmentations_and_landmarks_reach_the_registration(data, tmp_path, calls):
    segs = {side: data / f"{side}_seg.nii.gz" for side in ("fixed", "moving")}
    words = ["--moving-mask", segs["moving"], "--exclude-moving-mask", "--moving-seg", segs["moving"]]
    words += ["--fixed-seg", segs["fixed"], "--guidance-fixed-seg", segs["fixed"]]
    words += ["--guidance-moving-seg", segs["moving"], "--guide-with-landmarks"]
    words += ["--landmarks", data / "fixed.csv", data / "moving.fcsv", "--quiet"]
    assert run(*register_words(data, tmp_path / "o", *words)) == 0
    masks, guidance, evaluation = (calls[0][name] for name in ("masks", "guidance", "evaluation"))
    assert masks.fixed is None
    assert masks.moving.is_labels
    assert (masks.exclude_fixed, masks.exclude_moving) == (False, True)
    assert guidance.fixed_labels is not None
    assert guidance.moving_points_mm.shape == (2, 3)
    assert evaluation.fixed_labels is not None
    report = json.loads((tmp_path / "o" / "report.json").read_text())
    assert report["landmarks"]["final"]["mean"] < 1e-3
    assert report["labels"]["mean"]["final"]["dice"] > 0.85
    moved = read_volume(tmp_path / "o" / "moved_seg.nii.gz", labels=True)
    assert set(moved.data.unique().tolist()) == {0, 1, 2}


def test_landmarks_do_not_guide_unless_asked(data, tmp_path, calls):
    words = ["--fixed-landmarks", data / "fixed.csv", "--moving-landmarks", data / "moving.fcsv", "--quiet"]
    assert run(*register_words(data, tmp_path / "o", *words)) == 0
    assert calls[0]["guidance"] is None
    assert calls[0]["evaluation"].fixed_points_mm.shape == (2, 3)


def test_written_transforms_are_itk_files_in_lps(data, tmp_path, calls):
    out = tmp_path / "out"
    assert run(*register_words(data, out, "--quiet")) == 0
    transform, inverse, _ = transforms(hostile_grid((12, 14, 16)))
    point = hostile_grid((12, 14, 16)).center_mm
    flip = np.array([-1, -1, 1])
    for name, ours in (("transform.h5", transform), ("inverse.h5", inverse)):
        theirs = np.array(sitk.ReadTransform(str(out / name)).TransformPoint((point * flip).tolist())) * flip
        assert np.allclose(theirs, ours.map_points(point[None])[0], atol=0.02)


def test_existing_results_are_kept_without_overwrite(data, tmp_path, calls, capsys):
    out = tmp_path / "out"
    out.mkdir()
    (out / "moved_seg.nii.gz").write_text("precious")
    (out / "notes.txt").write_text("mine")
    assert run(*register_words(data, out, "--quiet")) == 3
    assert "--overwrite" in one_sentence(capsys)
    assert calls == []
    assert run(*register_words(data, out, "--quiet", "--overwrite")) == 0
    # The older segmentation has no counterpart in this run: next to the new files it would mislead.
    assert {path.name for path in out.iterdir()} == RESULTS | {"notes.txt"}
    assert (out / "notes.txt").read_text() == "mine"


def test_output_that_is_a_file_or_cannot_be_written(data, tmp_path, calls, capsys):
    (tmp_path / "file").write_text("x")
    for out in (tmp_path / "file", tmp_path / "file" / "below"):
        assert run(*register_words(data, out, "--quiet")) == 3
        assert "file" in one_sentence(capsys)
    assert calls == []


def test_a_read_only_place_is_found_before_the_work(data, tmp_path, calls, capsys, monkeypatch):
    def refuse(self, *_, **__):
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(Path, "mkdir", refuse)
    assert run(*register_words(data, tmp_path, "--quiet")) == 3
    assert "Read-only file system" in one_sentence(capsys)
    assert calls == []


def test_a_disk_that_fills_up_leaves_nothing_new(data, tmp_path, calls, capsys, monkeypatch):
    out = tmp_path / "out"
    assert run(*register_words(data, out, "--quiet")) == 0
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    capsys.readouterr()

    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(outputs, "write_volume", full)
    assert run(*register_words(data, out, "--quiet", "--overwrite")) == 3
    assert "No space left" in one_sentence(capsys)
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before
    assert run(*register_words(data, tmp_path / "second", "--quiet")) == 3
    assert {path.name for path in tmp_path.iterdir()} == {"out"}


def test_too_little_space_is_said_with_numbers(data, tmp_path, calls, capsys, monkeypatch):
    usage = outputs.shutil.disk_usage(tmp_path)._replace(free=10)
    monkeypatch.setattr(outputs.shutil, "disk_usage", lambda _: usage)
    assert run(*register_words(data, tmp_path / "out", "--quiet")) == 3
    assert "MB are free" in one_sentence(capsys)
    assert list(tmp_path.iterdir()) == []


def test_a_wrongly_written_transform_is_not_kept(data, tmp_path, calls, capsys, monkeypatch):
    wrong = transforms(hostile_grid((12, 14, 16)))[2]
    monkeypatch.setattr(outputs, "read_transform", lambda _: wrong)
    assert run(*register_words(data, tmp_path / "out", "--quiet")) == 3
    assert "read back" in one_sentence(capsys)
    assert list(tmp_path.iterdir()) == []
    assert run(*register_words(data, tmp_path / "out", "--quiet", "--no-check")) == 0


# ---------------------------------------------------------------- how it talks


def test_json_lines_and_nothing_else(data, tmp_path, calls, capsys):
    assert run(*register_words(data, tmp_path / "o", "--json")) == 0
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


def test_json_errors_are_events_too(data, tmp_path, capsys):
    assert run("register", "missing.nii.gz", data / "moving.nii.gz", "-o", tmp_path / "o", "--json") == 2
    said = capsys.readouterr()
    last = json.loads(said.out.splitlines()[-1])
    assert (last["event"], last["kind"], last["exit_code"]) == ("error", "FileFormatError", 2)
    assert "missing.nii.gz" in said.err
    assert run("register", "--json") == 2
    assert json.loads(capsys.readouterr().out)["kind"] == "SettingsError"


def test_plain_lines_without_a_terminal(data, tmp_path, calls, capsys):
    assert run(*register_words(data, tmp_path / "o")) == 0
    said = capsys.readouterr().err
    assert " 48% level 1: half" in said


def test_quiet_says_only_the_result(data, tmp_path, calls, capsys):
    assert run(*register_words(data, tmp_path / "o", "--quiet")) == 0
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


# ---------------------------------------------------------------- apply, evaluate, methods, device


def test_apply_an_image(data, tmp_path, capsys):
    words = ["apply", data / "transform.h5", data / "moving.nii.gz", "--like", data / "fixed.nii.gz"]
    assert run(*words, "-o", tmp_path / "moved.nrrd") == 0
    moving, fixed = read_volume(data / "moving.nii.gz"), read_volume(data / "fixed.nii.gz")
    expected = warp_volume(moving, read_transform(data / "transform.h5"), fixed.grid)
    moved = read_volume(tmp_path / "moved.nrrd")
    assert moved.grid.same_as(fixed.grid)
    assert torch.allclose(moved.data, expected.data, atol=1e-4)
    assert "16 x 14 x 12" in capsys.readouterr().out
    assert run(*words, "-o", tmp_path / "moved.nrrd", "--quiet") == 3
    assert run(*words, "-o", tmp_path / "moved.nrrd", "--overwrite", "--interpolation", "cubic") == 0
    assert not torch.allclose(read_volume(tmp_path / "moved.nrrd").data, expected.data, atol=1e-2)


def test_apply_fills_with_the_darkest_value(data, tmp_path):
    fixed = read_volume(data / "fixed.nii.gz")
    dark = type(fixed)(fixed.data - 1000, fixed.grid, "ct")
    write_volume(dark, tmp_path / "ct.nii.gz")
    shift = np.eye(4)
    shift[0, 3] = 500
    write_transform(type(transforms(fixed.grid)[2])(shift), tmp_path / "away.tfm")
    words = ["apply", tmp_path / "away.tfm", tmp_path / "ct.nii.gz", "--like", data / "fixed.nii.gz"]
    assert run(*words, "-o", tmp_path / "o.nii.gz") == 0
    assert read_volume(tmp_path / "o.nii.gz").data.unique().tolist() == [float(dark.data.min())]


@pytest.mark.parametrize("flag", ["--labels", "--smooth-labels"])
def test_apply_labels_makes_up_no_value(flag, data, tmp_path):
    words = [
        "apply",
        data / "transform.h5",
        data / "moving_seg.nii.gz",
        "--like",
        data / "fixed.nii.gz",
        flag,
    ]
    assert run(*words, "-o", tmp_path / "seg.nii.gz") == 0
    assert set(read_volume(tmp_path / "seg.nii.gz", labels=True).data.unique().tolist()) == {0, 1, 2}


def test_apply_points_both_ways(data, tmp_path):
    assert run("apply", data / "transform.h5", data / "moving.fcsv", "-o", tmp_path / "back.csv") == 0
    assert np.allclose(read_points(tmp_path / "back.csv"), read_points(data / "fixed.csv"), atol=1e-3)
    words = ["apply", data / "transform.h5", data / "fixed.csv", "--inverse", "-o", tmp_path / "there.csv"]
    assert run(*words) == 0
    assert np.allclose(read_points(tmp_path / "there.csv"), read_points(data / "moving.fcsv"), atol=1e-3)


def test_apply_the_inverse_to_an_image(data, tmp_path):
    words = [
        "apply",
        data / "transform.h5",
        data / "fixed.nii.gz",
        "--like",
        data / "moving.nii.gz",
        "--inverse",
    ]
    assert run(*words, "-o", tmp_path / "o.nii.gz") == 0
    found, moving = read_volume(tmp_path / "o.nii.gz").data, read_volume(data / "moving.nii.gz").data
    assert np.corrcoef(found.flatten(), moving.flatten())[0, 1] > 0.99


def test_apply_refuses(data, tmp_path, capsys):
    volume = ["apply", data / "transform.h5", data / "moving.nii.gz"]
    out = ["-o", tmp_path / "o.nii.gz", "--quiet"]
    like = ["--like", data / "fixed.nii.gz"]
    for words, status, said in (
        ([*volume, *out], 2, "--like"),
        ([*volume, *like, "--interpolation", "sinc", *out], 2, "cubic, linear"),
        (["apply", data / "none.h5", data / "moving.nii.gz", *like, *out], 2, "none.h5"),
        (["apply", data / "transform.h5", data / "none.nii.gz", *like, *out], 2, "none.nii.gz"),
        ([*volume, *like, "-o", tmp_path / "no" / "o.nii.gz"], 3, "no folder"),
        ([*volume, *like, "-o", tmp_path / "o.docx"], 3, ".nii.gz"),
    ):
        assert run(*words) == status
        assert said in one_sentence(capsys)
    assert list(tmp_path.iterdir()) == []


def test_evaluate_a_transform(data, capsys):
    words = ["evaluate", "--transform", data / "transform.h5", "--inverse", data / "inverse.h5"]
    words += ["--fixed", data / "fixed.nii.gz", "--moving", data / "moving.nii.gz"]
    words += ["--fixed-seg", data / "fixed_seg.nii.gz", "--moving-seg", data / "moving_seg.nii.gz"]
    words += ["--landmarks", data / "fixed.csv", data / "moving.fcsv"]
    assert run(*words, "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert found["labels"]["mean"]["final"]["dice"] > 0.85
    assert found["landmarks"]["final"]["max"] < 1e-3
    assert found["folds"]["folded_percent"] == 0
    assert found["inverse_consistency_mm"]["mean"] < 0.05
    assert found["similarity"]["final"]["ncc"] > 0.99
    assert run(*words) == 0
    text = capsys.readouterr().out
    for word in ("label 2", "Landmark error", "Folded cells", "Inverse consistency"):
        assert word in text


def test_evaluate_label_maps_that_are_moved_already(data, capsys):
    seg = data / "fixed_seg.nii.gz"
    assert run("evaluate", "--fixed-seg", seg, "--moved-seg", seg, "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert found["labels"]["per_label"]["1"]["final"] == {"dice": 1.0, "hd95_mm": 0.0}


def test_evaluate_needs_something_to_measure(data, capsys):
    assert run("evaluate") == 2
    assert "nothing to measure" in one_sentence(capsys)
    assert run("evaluate", "--moved-seg", data / "fixed_seg.nii.gz") == 2
    assert "--fixed-seg" in one_sentence(capsys)
    assert run("evaluate", "--transform", data / "transform.h5", "--inverse", data / "inverse.h5") == 2
    assert "--fixed" in one_sentence(capsys)


def test_methods_lists_the_catalogue(capsys):
    assert run("methods") == 0
    text = capsys.readouterr().out
    assert "svf" in text
    assert "lung-ct" in text
    assert run("methods", "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert {"affine", "svf"} <= {method["name"] for method in found["methods"]}


def test_device_says_why(capsys):
    assert run("device", "--device", "cpu") == 0
    assert "why" in capsys.readouterr().out
    assert run("device", "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert found["why"]
    assert found["memory_free_gib"] > 0


# ---------------------------------------------------------------- signals, in a real process

SLOW = textwrap.dedent(
    """
    import sys, time
    from DiffeoRegLib import outputs
    from DiffeoRegLib.cli import commands, main
    from DiffeoRegLib.methods.base import Progress
    from Testing.fake_run import fake_result

    def register(fixed, moving, settings, **others):
        result = fake_result(fixed, moving)
        if sys.argv[1] == "registering":
            others["progress"](Progress("slow", 0.5, "waiting"))
            time.sleep(60)
        return result

    def slow_page(*_):
        sys.stderr.write("waiting")
        sys.stderr.flush()
        time.sleep(60)

    commands.pipeline.register = register
    outputs.html_page = slow_page
    sys.exit(main(sys.argv[2:]))
    """
)


@pytest.mark.skipif(
    os.name == "nt", reason="Windows has no POSIX signals; the panel ends the process tree there"
)
@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM"])
@pytest.mark.parametrize("where", ["registering", "writing"])
def test_a_signal_leaves_no_file(name, where, data, tmp_path, repository):
    words = [str(word) for word in register_words(data, tmp_path / "out")]
    process = subprocess.Popen(
        [sys.executable, "-c", SLOW, where, *words],
        cwd=repository,
        env={**os.environ, "PYTHONPATH": str(repository)},
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
    )
    said = b""
    deadline = time.monotonic() + 60
    while b"waiting" not in said and time.monotonic() < deadline:
        said += os.read(process.stderr.fileno(), 4096)
    assert b"waiting" in said
    if where == "writing":
        assert [path.name[:11] for path in tmp_path.iterdir()] == [".diffeoreg-"]
    process.send_signal(getattr(signal, name))
    rest = process.communicate(timeout=30)[1]
    assert process.returncode == 130
    assert rest.strip() == b"diffeoreg: Cancelled; nothing was written."
    assert list(tmp_path.iterdir()) == []
