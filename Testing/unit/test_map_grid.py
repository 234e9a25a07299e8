"""The grid of the momentum, and the operator that takes the kernel out of gradients."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from DiffeoRegLib.errors import SettingsError
from DiffeoRegLib.methods.map_grid import Kernels, SpectralPreconditioner, map_grid
from DiffeoRegLib.space.grid import Grid

D = torch.float64


def _grid(shape, spacing):
    return Grid(shape, np.diag([*spacing, *[1.0] * (4 - len(shape))]))


@pytest.mark.parametrize(
    ("shape", "sigma", "expected"),
    [
        ((160, 192, 160), 0.05, (40, 39, 40)),
        ((200, 200), 0.02, (100, 100)),
        ((96, 96), 0.02, (96, 96)),
        ((160, 160), 0.5, (20, 20)),  # never fewer than eight voxels, of strides that long
    ],
)
def test_the_narrowest_kernel_gets_about_two_steps(shape, sigma, expected):
    working = _grid(shape, [1.0] * len(shape))
    place = map_grid(working, Kernels((sigma, 2 * sigma), (1.0, 1.0)))
    if sigma < 0.5:
        assert place.grid.shape == expected
        steps = [sigma / s for s in place.spacing]
        assert all(s >= 1.5 for s in steps)
        assert all(s < 3 for s, n, m in zip(steps, shape, expected, strict=True) if n != m)
    assert min(place.grid.shape) >= 8


def test_units_of_the_box_stretch_with_it_and_mm_do_not():
    working = _grid((100, 50, 40), (1.0, 1.0, 2.5))
    box = map_grid(working, Kernels((0.1,), (1.0,)))
    assert box.unit_mm == pytest.approx((99, 49, 97.5))
    assert box.sigmas == (0.1,)
    mm = map_grid(working, Kernels((9.9,), (1.0,), 5.0, "mm"))
    assert mm.unit_mm == pytest.approx((99,) * 3)
    assert mm.sigmas[0] * mm.mean_unit_mm == pytest.approx(9.9)
    assert mm.preweight_sigma * mm.mean_unit_mm == pytest.approx(5.0)
    widths_mm = [mm.sigmas[0] / s * step for s, step in zip(mm.spacing, mm.grid.spacing, strict=True)]
    assert widths_mm == pytest.approx([9.9] * 3)


def test_voxels_of_the_map_are_centred_on_those_of_the_image():
    working = _grid((100, 100), (0.5, 0.5))
    place = map_grid(working, Kernels((0.1,), (1.0,)))
    assert place.grid.same_as(working.coarsened([5, 5]))


@pytest.mark.parametrize("units", ["box", "mm"])
def test_a_kernel_below_one_and_a_half_voxels_is_refused(units):
    sigma = 1.4 / (63 if units == "box" else 1)
    with pytest.raises(SettingsError, match=r"1\.4 voxels"):
        map_grid(_grid((64, 64), (1.0, 1.0)), Kernels((sigma, 50.0), (1.0, 1.0), units=units))


@pytest.mark.parametrize(
    "bad",
    [
        {"sigmas": ()},
        {"sigmas": (0.1, -0.1), "weights": (1.0, 1.0)},
        {"sigmas": (0.1,), "weights": (1.0, 1.0)},
        {"preweight_sigma": 0.0},
        {"units": "inch"},
    ],
)
def test_bad_kernels_are_refused(bad):
    with pytest.raises(SettingsError):
        Kernels(**bad)


@pytest.mark.parametrize("shape", [(24, 31), (12, 15, 14)])
def test_the_preconditioner_is_symmetric_positive_and_undoes_the_kernel(shape):
    place = map_grid(_grid(shape, [1.0] * len(shape)), Kernels((0.15, 0.3), (1.0, 1.0)))
    operator = SpectralPreconditioner(place, (0.4, 0.6), 0.1, torch.zeros(1, dtype=D))
    a, b = torch.randn(2, 1, len(shape), *place.grid.shape, dtype=D).unbind(0)
    assert float((operator(a) * b).sum()) == pytest.approx(float((a * operator(b)).sum()), rel=1e-10)
    assert float((operator(a) * a).sum()) > 0
    assert operator(a).shape == a.shape
    # Constants pass the kernel unchanged, the quickest waves not at all.
    assert torch.allclose(operator(torch.ones_like(a)), torch.full_like(a, 1 / 1.1))
    index = torch.arange(place.grid.shape[0])
    wave = ((-1.0) ** index).to(D).view(1, 1, -1, *[1] * (len(shape) - 1)).expand_as(a)
    if place.grid.shape[0] % 2 == 0:
        assert torch.allclose(operator(wave), wave / 0.1, rtol=0.05)
