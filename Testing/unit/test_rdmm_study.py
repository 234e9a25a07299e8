"""The pieces of the synthetic study: what is measured, kept, put in tables, and drawn."""

from __future__ import annotations

import json
from dataclasses import asdict, replace

import pytest
import torch

from DiffeoRegLib.settings import Settings
from Testing.benchmarks.rdmm_figure import draw
from Testing.benchmarks.rdmm_synthetic import (
    KERNELS,
    Outcome,
    Record,
    claim,
    dice,
    measured,
    read_records,
    run,
    spread,
    stretch,
    tables,
)
from Testing.planar_objects import Picture, picture

SHAPE = (80, 80)
CASE = picture(2, SHAPE)
"""Its foreground changes enough for a few iterations to show."""
SHORT = Settings(iterations=(5, 0, 0))


def record(method: str, pair: int, overlap: float, outside: float) -> Record:
    scores = (("inside", "ellipse", overlap), ("outside", "triangle", overlap - 0.1))
    return Record(pair, "all", method, scores, outside, 2.0, 0.1, 0.0, 3.0)


def shifted(case: Picture, by: int) -> Picture:
    """A case whose fixed objects are the moving ones, moved along the first axis by voxels."""
    way = by / (case.shape[0] - 1)
    fixed = tuple(replace(t, centre=(t.centre[0] + way, t.centre[1])) for t in case.moving)
    return Picture(case.moving, fixed, case.shape)


def test_a_known_shift_is_measured_as_it_is():
    case = shifted(CASE, 3)
    inverse = torch.zeros(1, 2, *SHAPE)
    inverse[:, 0] = -3
    outcome = Outcome(inverse, -inverse, None, 1.5, ())
    found = measured(2, "all", "vsvf", case, outcome)
    assert [(role, kind) for role, kind, _ in found.dice] == [(t.role, t.kind) for t in case.moving]
    assert min(value for *_, value in found.dice) > 0.999
    assert max(value for *_, value in dice(case, torch.zeros_like(inverse))) < 0.97
    assert found.displaced_outside == pytest.approx(3)
    assert found.displaced_inside == pytest.approx(3)
    assert found.stretched_outside == pytest.approx(0, abs=1e-6)
    assert (found.folded_percent, found.seconds) == (0, 1.5)


def test_outside_is_where_the_moving_image_is_not_soft():
    forward = torch.zeros(1, 2, *SHAPE)
    forward[:, 1] = 2 * CASE.soft()[:, 0].float()
    found = measured(0, "all", "vsvf", CASE, Outcome(forward, forward, None, 0.0, ()))
    assert found.displaced_inside == pytest.approx(2)
    assert found.displaced_outside == 0


def test_stretch_is_the_size_of_the_derivative():
    first, second = torch.meshgrid(torch.arange(9.0), torch.arange(9.0), indexing="ij")
    u = torch.stack([0.3 * first, 0.4 * first + 0 * second])[None]
    assert torch.allclose(stretch(u), torch.tensor(0.5), atol=1e-5)


@pytest.mark.parametrize(
    "name", ["none", "vsvf", "lddmm", "rdmm-regions", "rdmm", "lddmm-soft", "lddmm-wide"]
)
def test_every_method_runs_and_brings_objects_nearer(name):
    outcome = run(name, CASE, SHORT)
    before = dice(CASE, torch.zeros_like(outcome.inverse_vox))[0][2]
    after = dice(CASE, outcome.inverse_vox)[0][2]
    if name == "none":
        assert after == before
        return
    assert after > before + 0.02
    assert outcome.seconds > 0
    assert "L-BFGS" in " ".join(outcome.notes)
    assert (outcome.geodesic is None) == (name == "vsvf")
    if outcome.geodesic is not None:
        sigma = outcome.geodesic.sigma_mm(0.0)
        assert (float(sigma.max()) > 2 * float(sigma.min())) == (name == "rdmm-regions")


def test_records_are_read_back_and_a_cut_line_is_left_out(tmp_path):
    path = tmp_path / "records.jsonl"
    assert read_records(path) == []
    rows = [record("lddmm", 0, 0.9, 1.0), record("rdmm", 0, 0.8, 2.0)]
    path.write_text(
        "".join(json.dumps(asdict(row)) + "\n" for row in rows) + '{"pair": 1, "mo', encoding="utf-8"
    )
    assert read_records(path) == rows


def test_tables_give_means_over_objects_and_pairs():
    rows = [record("lddmm", 0, 0.9, 1.0), record("lddmm", 1, 0.7, 2.0), record("rdmm", 0, 0.8, 4.0)]
    scores, numbers = tables(rows).split("\n\n")
    assert scores.splitlines()[2].startswith(
        "| lddmm | 2 | 0.750 (0.129) | - | 0.700 (0.141) | 0.800 (0.141) |"
    )
    assert scores.splitlines()[3].startswith("| rdmm | 1 | 0.750 (0.071) |")
    means = "| lddmm | 1.500 (0.707) | 2.000 (0.000) | 0.1000 (0.0000) | 0.00 (0.00) | 3.0 (0.0) |"
    assert numbers.splitlines()[2] == means
    assert {line.count("|") for line in scores.splitlines()} == {10}
    assert spread([], 2) == "-"


def test_the_claim_compares_the_pairs_both_did():
    rows = [
        record("lddmm", 0, 0.9, 1.0), record("lddmm", 1, 0.9, 9.0),
        record("rdmm-regions", 0, 0.88, 0.25),
    ]  # fmt: skip
    said = claim(rows)
    assert said == (
        "rdmm-regions against lddmm, 1 pairs: outside 0.250 against 1.000 voxels (0.25 of it), "
        "stretched 0.1000 against 0.1000 (1.00), Dice inside 0.8800 against 0.9000"
    )
    assert claim(rows[:2]) == ""


def test_the_figure_shows_methods_with_and_without_a_geodesic(tmp_path):
    pytest.importorskip("matplotlib")
    settings = Settings(iterations=(1, 0, 0))
    outcomes = {name: run(name, CASE, settings) for name in ("vsvf", "lddmm-soft", "rdmm-regions")}
    draw(tmp_path / "figure.png", CASE, outcomes)
    data = (tmp_path / "figure.png").read_bytes()
    assert data.startswith(b"\x89PNG")
    assert 20_000 < len(data) < 400_000


def test_the_kernels_are_those_of_the_paper():
    assert KERNELS.sigmas == (0.02, 0.04, 0.06, 0.08)
    assert KERNELS.weights == (0.1, 0.3, 0.3, 0.3)
