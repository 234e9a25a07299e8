"""Bounded cubic B-splines against the published table and against scipy."""

from __future__ import annotations

import pytest
import torch
from scipy import ndimage

from DiffeoRegLib.space.controls import largest_control, upsample_controls
from DiffeoRegLib.space.sample import array_from_tensor, identity_vox

# 1 / K of equation 9, Table 16 of the paper, strides 1, 2, 4 ...
TABLE_2D = [
    0.44999999999999996, 0.4923274169638207, 0.47980320571640545, 0.4845970764531083, 0.48612715818186963,
    0.48728730908780815, 0.4879642422739664, 0.48831189411920906, 0.48848723983607806,
]  # fmt: skip
TABLE_3D = [
    0.36, 0.3854469526363808, 0.39803114051999844, 0.4007250760586097, 0.40175329749498856,
    0.40253633025170044, 0.4029187201371043,
]  # fmt: skip


@pytest.mark.parametrize(
    ("dim", "level", "bound"),
    [(2, k, b) for k, b in enumerate(TABLE_2D)] + [(3, k, b) for k, b in enumerate(TABLE_3D)],
)
def test_bounds_of_the_paper(dim, level, bound):
    assert largest_control((2**level,) * dim, 1.0) == pytest.approx((bound,) * dim, abs=1e-9)


@pytest.mark.parametrize(
    ("shape", "strides"), [((21, 17), (4, 2)), ((9, 13, 12), (2, 4, 1)), ((16, 10, 15), (8, 2, 3))]
)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-6)])
def test_spline_is_scipys(shape, strides, dtype, tolerance):
    controls = torch.rand(1, 1, *[-(-n // s) for n, s in zip(shape, strides, strict=True)], dtype=dtype)
    place = identity_vox(shape, torch.float64)[0]
    steps = torch.tensor(strides, dtype=torch.float64).view(-1, *[1] * len(shape))
    expected = ndimage.map_coordinates(
        array_from_tensor(controls[0, 0].double()),
        array_from_tensor((place + 0.5) / steps - 0.5),
        order=3, prefilter=False, mode="nearest",
    )  # fmt: skip
    found = upsample_controls(controls, strides, shape)[0, 0]
    assert abs(array_from_tensor(found) - expected).max() < tolerance
