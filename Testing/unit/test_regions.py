"""Regions of the moving image: what is refused, what is said, where they land, how they are measured."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from DiffeoRegLib.catalog import card
from DiffeoRegLib.errors import InputError, SettingsError, UnknownNameError
from DiffeoRegLib.methods.rdmm import checked_regions
from DiffeoRegLib.report.regions import region_scores, sigma_scores
from DiffeoRegLib.report.text import region_rows, summary
from DiffeoRegLib.settings import Settings
from DiffeoRegLib.space.grid import Grid
from DiffeoRegLib.space.transform import AffineTransform, CompositeTransform, DisplacementTransform
from DiffeoRegLib.volumes.regions import PlacedRegions, Regions, check_regions, place_regions
from DiffeoRegLib.volumes.volume import Volume
from Testing.scenes import turned_grid

GRID = turned_grid((16, 18, 20), (2.0, 1.5, 1.0), 12.0)
MOVING = Volume(torch.rand(GRID.shape), GRID, "moving")


def labels_on(grid=GRID, values=(1, 2)):
    """The first value in the first half along the first axis, the second in the last quarter."""
    data = torch.zeros(grid.shape, dtype=torch.int32)
    data[: grid.shape[0] // 2], data[-grid.shape[0] // 4 :] = values
    return Volume(data, grid, "parts", True)


def test_what_is_odd_is_said():
    assert check_regions(Regions(labels_on(), {1: "soft", 2: "stiff"}), MOVING, 4) == []
    notes = check_regions(
        Regions(labels_on(GRID.cropped([0, 0, 0], [16, 9, 20])), {1: "soft", 7: "stiff"}), MOVING, 4
    )
    assert notes == [
        "Regions without a voxel in 'parts': 7.",
        "Labels of 'parts' without a stiffness of their own: 2.",
        "The regions 'parts' have another geometry than 'moving'; they were read in patient space.",
    ]


@pytest.mark.parametrize(
    ("regions", "error", "words"),
    [
        (Regions(labels_on(), {3: "soft"}), InputError, "none of the labels .*3.*it has 1, 2"),
        (Regions(labels_on(values=(0, 0)), {3: "soft"}), InputError, "it has none at all"),
        (Regions(labels_on(), {}), InputError, "No region of 'parts' was given a stiffness"),
        (
            Regions(labels_on(turned_grid((16, 18), (2.0, 1.5))), {1: "soft"}),
            InputError,
            "are 2D, the image 3D",
        ),
        (Regions(labels_on(), {1: "hard"}), UnknownNameError, "stiffness 'hard'"),
        (Regions(labels_on(), {1: "soft"}, "hard"), UnknownNameError, "stiffness 'hard'"),
        (Regions(labels_on(), {1: (1.0, 0.0)}), SettingsError, "2 kernels, and there are 4"),
        (Regions(labels_on(), {1: (0.0,) * 4}), SettingsError, "not all 0"),
    ],
)
def test_what_cannot_be_used_is_refused(regions, error, words):
    with pytest.raises(error, match=words):
        check_regions(regions, MOVING, 4)


def test_methods_ask_for_regions_or_refuse_them():
    given = Regions(labels_on(), {1: "soft"})
    assert checked_regions(card("rdmm-regions"), given, MOVING, Settings()) == [
        "Labels of 'parts' without a stiffness of their own: 2."
    ]
    assert checked_regions(card("lddmm"), None, MOVING, Settings()) == []
    with pytest.raises(InputError, match="'rdmm-regions' needs regions"):
        checked_regions(card("rdmm-regions"), None, MOVING, Settings())
    for name in ("svf", "lddmm", "rdmm", "affine"):
        with pytest.raises(InputError, match=f"'{name}' has no use for regions"):
            checked_regions(card(name), given, MOVING, Settings())
    own = Settings(kernel_sigmas=(0.1, 0.2))
    with pytest.raises(SettingsError, match="and there are 2"):
        checked_regions(card("rdmm-regions"), given, MOVING, own)
    with pytest.raises(SettingsError, match="the stiffness of each is set"):
        checked_regions(card("rdmm-regions"), given, MOVING, own.with_changes(kernel_weights=(1.0, 1.0)))


def test_more_regions_than_kernels_are_fine():
    data = torch.arange(GRID.voxel_count, dtype=torch.int32).view(GRID.shape) % 9
    names = {label: (float(label), 1.0) for label in range(1, 9)}
    assert check_regions(Regions(Volume(data, GRID, "parts", True), names, (1.0, 1.0)), MOVING, 2) == []


def test_regions_are_read_where_the_moving_image_is():
    shift = np.eye(4)
    shift[:3, 3] = GRID.world_from_voxel[:3, 0] * 3
    placed = place_regions(Regions(labels_on(), {1: "soft"}, "stiff"), GRID, shift)
    assert isinstance(placed, PlacedRegions)
    assert placed.labels.shape == (1, 1, *GRID.shape)
    assert placed.rest == "stiff"
    along = placed.labels[0, 0, :, 5, 5].tolist()
    assert along == [1] * 5 + [0] * 4 + [2] * 4 + [0] * 3
    assert placed.to("cpu").labels.device.type == "cpu"
    shift[:3, 3] *= 50
    with pytest.raises(InputError, match="No region of 'parts' lies where the images are compared"):
        place_regions(Regions(labels_on(), {1: "soft"}), GRID, shift)


@pytest.mark.parametrize("dim", [2, 3])
def test_the_report_measures_every_region_where_it_lies(dim):
    """Half of the image is squeezed along the first axis, the other half stays; then all of it shifts."""
    shape, spacing = (24, 14, 12)[:dim], (2.0, 1.0, 1.5)[:dim]
    grid = turned_grid(shape, spacing, 20.0)
    slope = 0.25
    u_vox = torch.zeros(1, dim, *shape)
    u_vox[:, 0] = (slope * (11.0 - torch.arange(24.0)).clamp(min=0)).view(-1, *[1] * (dim - 1))
    column = torch.tensor(grid.world_from_voxel[:3, 0].tolist(), dtype=torch.float32)
    u_mm = torch.einsum("a,n...->na...", column, u_vox[:, 0])
    shift = np.eye(4)
    shift[:3, 3] = grid.world_from_voxel[:3, 1]
    transform = CompositeTransform((DisplacementTransform(grid, u_mm), AffineTransform(shift)))
    data = torch.zeros(shape, dtype=torch.int32)
    data[:12], data[16:] = 4, 6
    regions = Regions(Volume(data, grid, "parts", True), {4: "soft", 6: (0.0, 1.0), 9: "stiff"})
    scores = region_scores(regions, transform, grid)
    assert list(scores) == ["4", "6", "9", "rest"]
    voxel_mm3 = float(np.prod(spacing)) * np.linalg.norm(grid.world_from_voxel[:3, 2] if dim == 2 else [1])
    shown = shape[1] - 1  # the shift carries one row out of the label map
    across = shown * (shape[2] if dim == 3 else 1)
    soft, still, absent, rest = scores.values()
    assert soft["volume_mm3"] == pytest.approx(12 * across * voxel_mm3)
    assert still["volume_mm3"] == pytest.approx(8 * across * voxel_mm3)
    assert soft["displacement_mm"]["max"] == pytest.approx(slope * 11 * 2.0, rel=1e-5)
    assert soft["determinant"]["min"] == pytest.approx(1 - slope, abs=1e-5)
    assert soft["determinant"]["mean"] == pytest.approx(1 - slope, abs=0.05)
    assert still["displacement_mm"] == {"mean": 0.0, "max": 0.0}
    assert still["determinant"] == pytest.approx({"mean": 1, "std": 0, "min": 1, "max": 1})
    assert soft["folded_percent"] == still["folded_percent"] == 0
    assert absent["volume_mm3"] == 0
    assert absent["determinant"]["mean"] is None
    assert rest["stiffness"] == "rigid-like"
    rows = region_rows({"regions": scores})
    assert rows[1] == ("6", "0 1", "0.00", "0.00", "1.000", "0.000", "0")
    assert rows[2][2] == "\u2013"
    assert summary({"regions": scores}).splitlines()[-1].split()[:2] == ["rest", "rigid-like"]


def test_folds_are_counted_in_the_region_that_has_them():
    grid = Grid((12, 12), np.eye(4))
    u_mm = torch.zeros(1, 3, 12, 12)
    u_mm[:, 0, 3, 3] = 1.6
    data = torch.zeros((12, 12), dtype=torch.int32)
    data[6:], data[:2] = 1, 2
    regions = Regions(Volume(data, grid, "parts", True), {1: "soft", 2: "soft"})
    scores = region_scores(regions, DisplacementTransform(grid, u_mm), grid)
    assert scores["1"]["folded_percent"] == scores["2"]["folded_percent"] == 0
    # Before it along the first axis space is stretched, behind it two cells fold, which have six corners.
    assert scores["rest"]["folded_percent"] == pytest.approx(100 * 6 / 48)


def test_without_regions_or_deformation_there_is_little_to_say():
    assert region_scores(None, AffineTransform(np.eye(4)), GRID) is None
    assert sigma_scores(None) is None
    scores = region_scores(Regions(labels_on(), {1: "soft"}), AffineTransform(np.eye(4)), GRID)
    assert scores["1"]["displacement_mm"] == {"mean": 0.0, "max": 0.0}
    assert scores["1"]["determinant"] == {"mean": 1.0, "std": 0.0, "min": 1.0, "max": 1.0}
    assert scores["1"]["folded_percent"] == 0
