"""`diffeoreg register`: what reaches the registration, and files all or nothing."""

from __future__ import annotations

import errno
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

from DiffeoRegLib import outputs
from DiffeoRegLib.volumes.files import read_volume
from Testing.command import RESULTS, one_sentence, register_words, run
from Testing.fake_run import hostile_grid, transforms

# ---------------------------------------------------------------- register


def test_register_writes_the_fixed_names_and_nothing_else(pair_files, tmp_path, registrations, capsys):
    out = tmp_path / "new" / "out"
    assert run(*register_words(pair_files, out)) == 0
    assert {path.name for path in out.iterdir()} == RESULTS
    assert {path.name for path in tmp_path.iterdir()} == {"new"}
    said = capsys.readouterr()
    assert "Folded cells" in said.out
    assert "A remark of the run." in said.err
    report = json.loads((out / "report.json").read_text(encoding="utf-8"))
    assert report["transform"]["transform_stored_error_mm"] < 0.02
    assert report["seconds"]["writing"] > 0
    assert next(iter(report["seconds"])) == "reading"


def test_settings_reach_the_registration(pair_files, tmp_path, registrations):
    flags = {
        "preset": "brain-mr", "effort": "fast", "steps": 5, "similarity": "mse", "iterations": "9,8",
        "levels": "4,2",
        "padding-mm": 3, "taper-mm": 2, "device": "cpu", "threads": 1, "memory-limit-gb": 2,
        "working-spacing-mm": 2.5, "seed": 4, "init": pair_files / "initial.tfm",
    }  # fmt: skip
    words = [word for name, value in flags.items() for word in (f"--{name}", value)]
    assert run(*register_words(pair_files, tmp_path / "o", *words, "--no-html", "--quiet")) == 0
    settings = registrations[0]["settings"]
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
    assert np.allclose(registrations[0]["initial"].moving_from_fixed, expected)
    assert not (tmp_path / "o" / "report.html").exists()


def test_masks_segmentations_and_landmarks_reach_the_registration(pair_files, tmp_path, registrations):
    segs = {side: pair_files / f"{side}_seg.nii.gz" for side in ("fixed", "moving")}
    words = ["--moving-mask", segs["moving"], "--exclude-moving-mask", "--moving-seg", segs["moving"]]
    words += ["--fixed-seg", segs["fixed"], "--guidance-fixed-seg", segs["fixed"]]
    words += ["--guidance-moving-seg", segs["moving"], "--guide-with-landmarks"]
    words += ["--landmarks", pair_files / "fixed.csv", pair_files / "moving.fcsv", "--quiet", "--no-html"]
    assert run(*register_words(pair_files, tmp_path / "o", *words)) == 0
    masks, guidance, evaluation = (registrations[0][name] for name in ("masks", "guidance", "evaluation"))
    assert masks.fixed is None
    assert masks.moving.is_labels
    assert (masks.exclude_fixed, masks.exclude_moving) == (False, True)
    assert guidance.fixed_labels is not None
    assert guidance.moving_points_mm.shape == (2, 3)
    assert evaluation.fixed_labels is not None
    report = json.loads((tmp_path / "o" / "report.json").read_text(encoding="utf-8"))
    assert report["landmarks"]["final"]["mean"] < 1e-3
    assert report["labels"]["mean"]["final"]["dice"] > 0.85
    moved = read_volume(tmp_path / "o" / "moved_seg.nii.gz", labels=True)
    assert set(moved.data.unique().tolist()) == {0, 1, 2}


def test_landmarks_do_not_guide_unless_asked(pair_files, tmp_path, registrations):
    words = [
        "--fixed-landmarks",
        pair_files / "fixed.csv",
        "--moving-landmarks",
        pair_files / "moving.fcsv",
        "--quiet",
        "--no-html",
    ]
    assert run(*register_words(pair_files, tmp_path / "o", *words)) == 0
    assert registrations[0]["guidance"] is None
    assert registrations[0]["evaluation"].fixed_points_mm.shape == (2, 3)


def test_written_transforms_are_itk_files_in_lps(pair_files, tmp_path, registrations):
    out = tmp_path / "out"
    assert run(*register_words(pair_files, out, "--quiet", "--no-html")) == 0
    transform, inverse, _ = transforms(hostile_grid((12, 14, 16)))
    point = hostile_grid((12, 14, 16)).center_mm
    flip = np.array([-1, -1, 1])
    for name, ours in (("transform.h5", transform), ("inverse.h5", inverse)):
        theirs = np.array(sitk.ReadTransform(str(out / name)).TransformPoint((point * flip).tolist())) * flip
        assert np.allclose(theirs, ours.map_points(point[None])[0], atol=0.02)


def test_existing_results_are_kept_without_overwrite(pair_files, tmp_path, registrations, capsys):
    out = tmp_path / "out"
    out.mkdir()
    (out / "moved_seg.nii.gz").write_text("precious", encoding="utf-8")
    (out / "notes.txt").write_text("mine", encoding="utf-8")
    assert run(*register_words(pair_files, out, "--quiet")) == 3
    assert "--overwrite" in one_sentence(capsys)
    assert registrations == []
    assert run(*register_words(pair_files, out, "--quiet", "--overwrite")) == 0
    # The older segmentation has no counterpart in this run: next to the new files it would mislead.
    assert {path.name for path in out.iterdir()} == RESULTS | {"notes.txt"}
    assert (out / "notes.txt").read_text(encoding="utf-8") == "mine"


def test_output_that_is_a_file_or_cannot_be_written(pair_files, tmp_path, registrations, capsys):
    (tmp_path / "file").write_text("x", encoding="utf-8")
    for out in (tmp_path / "file", tmp_path / "file" / "below"):
        assert run(*register_words(pair_files, out, "--quiet")) == 3
        assert "file" in one_sentence(capsys)
    assert registrations == []


def test_a_read_only_place_is_found_before_the_work(pair_files, tmp_path, registrations, capsys, monkeypatch):
    def refuse(self, *_, **__):
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(Path, "mkdir", refuse)
    assert run(*register_words(pair_files, tmp_path, "--quiet")) == 3
    assert "Read-only file system" in one_sentence(capsys)
    assert registrations == []


def test_a_disk_that_fills_up_leaves_nothing_new(pair_files, tmp_path, registrations, capsys, monkeypatch):
    out = tmp_path / "out"
    assert run(*register_words(pair_files, out, "--quiet")) == 0
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    capsys.readouterr()

    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(outputs, "write_volume", full)
    assert run(*register_words(pair_files, out, "--quiet", "--overwrite")) == 3
    assert "No space left" in one_sentence(capsys)
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before
    assert run(*register_words(pair_files, tmp_path / "second", "--quiet")) == 3
    assert {path.name for path in tmp_path.iterdir()} == {"out"}


def test_too_little_space_is_said_with_numbers(pair_files, tmp_path, registrations, capsys, monkeypatch):
    usage = outputs.shutil.disk_usage(tmp_path)._replace(free=10)
    monkeypatch.setattr(outputs.shutil, "disk_usage", lambda _: usage)
    assert run(*register_words(pair_files, tmp_path / "out", "--quiet")) == 3
    assert "MB are free" in one_sentence(capsys)
    assert list(tmp_path.iterdir()) == []


def test_a_wrongly_written_transform_is_not_kept(pair_files, tmp_path, registrations, capsys, monkeypatch):
    wrong = transforms(hostile_grid((12, 14, 16)))[2]
    monkeypatch.setattr(outputs, "read_transform", lambda _: wrong)
    assert run(*register_words(pair_files, tmp_path / "out", "--quiet")) == 3
    assert "read back" in one_sentence(capsys)
    assert list(tmp_path.iterdir()) == []
    assert run(*register_words(pair_files, tmp_path / "out", "--quiet", "--no-check", "--no-html")) == 0


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
def test_a_signal_leaves_no_file(name, where, pair_files, tmp_path, repository):
    words = [str(word) for word in register_words(pair_files, tmp_path / "out")]
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
