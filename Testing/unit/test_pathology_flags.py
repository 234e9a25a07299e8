"""Flags of a pathology: what reaches the registration, and what is refused in a sentence."""

from __future__ import annotations

import pytest

from DiffeoRegLib.catalog import CARDS
from DiffeoRegLib.methods.memory import memory_of
from DiffeoRegLib.methods.unused import unused_settings
from DiffeoRegLib.settings import Settings
from DiffeoRegLib.volumes.working_grid import estimate_memory_bytes
from Testing.command import one_sentence, register_words, run
from Testing.scenes import turned_grid

METHOD = ["--method", "metamorphosis"]


def test_marks_reach_the_registration(pair_files, tmp_path, registrations):
    files = pair_files / "fixed_seg.nii.gz", pair_files / "moving_seg.nii.gz"
    more = ["--pathology-classes", "1,4", "--pathology-edge-mm", "0"]
    words = [
        [*METHOD, "--pathology", files[0], "--pathology-moving", files[1], *more],
        [*METHOD, "--pathology-moving", files[1]],
        [],
    ]
    for number, flags in enumerate(words):
        out = tmp_path / str(number)
        assert run(*register_words(pair_files, out, *flags, "--quiet", "--no-html")) == 0
    both, one, none = (call["pathology"] for call in registrations)
    assert both.fixed.is_labels
    assert both.moving.is_labels
    assert (both.classes, both.edge_mm) == ((1, 4), 0.0)
    assert one.fixed is None
    assert (one.classes, one.edge_mm) == (None, 4.0)
    assert none is None


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (METHOD, "needs --pathology FILE, --pathology-moving FILE, or both"),
        (["--pathology", "fixed_seg.nii.gz"], "'svf' makes no use of a pathology"),
        (["--pathology-classes", "1"], "which is missing"),
        (["--pathology-edge-mm", "2"], "which is missing"),
        (
            [*METHOD, "--pathology", "fixed_seg.nii.gz", "--pathology-classes", "1,a"],
            "whole numbers like 1,4",
        ),
        ([*METHOD, "--pathology", "fixed_seg.nii.gz", "--pathology-edge-mm", "-1"], "0 mm or wider"),
        ([*METHOD, "--pathology", "none.nii.gz"], "none.nii.gz"),
    ],
)
def test_bad_flags(flags, said, pair_files, tmp_path, registrations, capsys):
    words = [pair_files / word if word == "fixed_seg.nii.gz" else word for word in flags]
    assert run(*register_words(pair_files, tmp_path / "out", "--quiet", *words)) == 2
    assert said in one_sentence(capsys)
    assert not (tmp_path / "out").exists()
    assert registrations == []


def test_a_table_of_pairs_has_no_marks_for_it(pair_files, tmp_path, capsys):
    table = tmp_path / "pairs.csv"
    table.write_text("fixed,moving\n", encoding="utf-8")
    assert run("evaluate", "--pairs", table, *METHOD, "-o", tmp_path / "o", "--quiet") == 2
    assert "names no pathology, which 'metamorphosis' needs" in one_sentence(capsys)


@pytest.mark.parametrize("shape", [(400, 300), (60, 70, 80)])
def test_its_memory_is_planned_with_room_for_marks(shape):
    grid = turned_grid(shape, (1.0,) * len(shape))
    plain = estimate_memory_bytes(grid)
    needed = memory_of(Settings(method="metamorphosis"))
    assert needed is not None
    assert plain <= needed(grid) < 1.3 * plain


def test_settings_without_use_for_it_are_named():
    card = CARDS["metamorphosis"]
    assert unused_settings(card, Settings(method="metamorphosis", dense_iterations=3, update_sigma=2.0)) == []
    said = unused_settings(card, Settings(method="metamorphosis", kinetic=2.0, integrator="dopri5"))
    assert said == ["'metamorphosis' has no use for these settings: integrator, kinetic."]
