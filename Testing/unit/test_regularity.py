"""Regularity in millimetres: exact values for simple fields, the same cost on any grid, masks, gradients."""

from __future__ import annotations

import math

import pytest
import torch
from torch.autograd import gradcheck

from DiffeoRegLib.errors import InputError, SettingsError, ShapeError
from DiffeoRegLib.losses.regularity import bending, diffusion, fold_penalty, kinetic_energy
from DiffeoRegLib.space.jacobian import jacobian_determinant
from DiffeoRegLib.space.sample import identity_vox

GRIDS = [((6, 5, 7), (3.0, 0.8, 1.5)), ((8, 6), (0.5, 2.0))]
every_grid = pytest.mark.parametrize(("shape", "spacing"), GRIDS)
PENALTIES = [
    diffusion,
    bending,
    kinetic_energy,
    lambda u, s, **k: fold_penalty(4 * u, s, epsilon=0.5, **k),
    lambda u, s, **k: fold_penalty(4 * u, s, epsilon=0.5, kind="central", **k),
]
every_penalty = pytest.mark.parametrize(
    "penalty", PENALTIES, ids=["diffusion", "bending", "kinetic", "fold-corners", "fold-central"]
)


def points_mm(shape, spacing):
    """Voxel positions times spacing, (1, d, *shape) float64."""
    return identity_vox(shape, torch.float64) * factors(spacing)


def factors(spacing):
    return torch.tensor(spacing, dtype=torch.float64).reshape(1, -1, *[1] * len(spacing))


def in_vox(u_mm, spacing):
    return u_mm / factors(spacing)


def linear_mm(matrix, shape, spacing):
    return torch.einsum("ab,nb...->na...", matrix, points_mm(shape, spacing))


@every_penalty
@every_grid
def test_no_motion_is_exactly_zero(penalty, shape, spacing):
    assert penalty(torch.zeros(1, len(shape), *shape), spacing) == 0


@every_grid
def test_translation(shape, spacing):
    shift_mm = torch.arange(1.0, len(shape) + 1, dtype=torch.float64).reshape(1, -1, *[1] * len(shape))
    u_vox = in_vox(shift_mm.expand(1, len(shape), *shape), spacing)
    assert diffusion(u_vox, spacing) < 1e-25
    assert bending(u_vox, spacing) < 1e-25
    assert fold_penalty(u_vox, spacing) == 0
    assert float(kinetic_energy(u_vox, spacing)) == pytest.approx(0.5 * float(shift_mm.square().sum()))


@every_grid
def test_affine_motion(shape, spacing):
    """Diffusion is the squared Frobenius norm of the displacement gradient, bending nothing."""
    generator = torch.Generator().manual_seed(1)
    matrix = 0.3 * torch.randn(len(shape), len(shape), generator=generator, dtype=torch.float64)
    u_vox = in_vox(linear_mm(matrix, shape, spacing), spacing)
    assert float(diffusion(u_vox, spacing)) == pytest.approx(float(matrix.square().sum()), rel=1e-12)
    assert bending(u_vox, spacing) < 1e-20


@every_grid
def test_rotation_costs_diffusion_by_its_angle_only(shape, spacing):
    angle = 0.4
    rotation = torch.eye(len(shape), dtype=torch.float64)
    rotation[0, 0] = rotation[1, 1] = math.cos(angle)
    rotation[1, 0] = math.sin(angle)
    rotation[0, 1] = -math.sin(angle)
    u_vox = in_vox(linear_mm(rotation - torch.eye(len(shape), dtype=torch.float64), shape, spacing), spacing)
    assert float(diffusion(u_vox, spacing)) == pytest.approx(4 * (1 - math.cos(angle)), rel=1e-12)
    assert bending(u_vox, spacing) < 1e-20
    assert fold_penalty(u_vox, spacing) == 0


@every_grid
def test_quadratic_motion(shape, spacing):
    """u_0 = x^T Q x / 2 with symmetric Q: bending = sum of Q squared, mixed entries counted twice."""
    generator = torch.Generator().manual_seed(2)
    raw = torch.randn(len(shape), len(shape), generator=generator, dtype=torch.float64)
    hessian = raw + raw.T
    x = points_mm(shape, spacing)
    u_mm = torch.zeros_like(x)
    u_mm[:, 0] = 0.5 * torch.einsum("na...,ab,nb...->n...", x, hessian, x)
    assert float(bending(in_vox(u_mm, spacing), spacing)) == pytest.approx(
        float(hessian.square().sum()), rel=1e-9
    )


@pytest.mark.parametrize("penalty", [diffusion, bending, kinetic_energy])
def test_the_same_motion_costs_the_same_on_another_grid(penalty):
    """24 mm wide, 1 mm isotropic against 2 x 1 x 0.5 mm; cell centres over one field of view."""

    def cost(spacing):
        shape = tuple(round(24 / s) for s in spacing)
        x = points_mm(shape, spacing) + 0.5 * factors(spacing)
        k = 2 * math.pi / 24
        u_mm = torch.stack(
            [(k * x[:, 0]).sin() * (k * x[:, 1]).cos(), (k * x[:, 2]).sin(), (k * (x[:, 0] + x[:, 2])).cos()],
            1,
        )
        return float(penalty(in_vox(u_mm, spacing), spacing))

    assert cost((2.0, 1.0, 0.5)) == pytest.approx(cost((1.0, 1.0, 1.0)), rel=0.06)


def test_fold_penalty_is_the_hinge_on_every_corner():
    generator = torch.Generator().manual_seed(3)
    u_vox = 0.6 * torch.randn(2, 3, 5, 4, 6, generator=generator, dtype=torch.float64)
    for kind in ("corners", "central"):
        hinge = (0.1 - jacobian_determinant(u_vox, kind)).clamp(min=0)
        assert hinge.count_nonzero() > 5
        value = fold_penalty(u_vox, (1.0, 2.0, 3.0), epsilon=0.1, kind=kind)
        torch.testing.assert_close(value, hinge.square().mean())
    scaled = fold_penalty(u_vox, (2.0, 0.4, 6.0), epsilon=0.1)
    assert torch.equal(scaled, fold_penalty(u_vox, (1.0, 1.0, 1.0), epsilon=0.1))


def test_corner_folds_are_seen_where_central_differences_are_blind():
    u_vox = torch.zeros(1, 2, 9, 9)
    u_vox[:, 0, 4] = 1.5  # one row jumps over the next
    assert fold_penalty(u_vox, (1.0, 1.0), epsilon=0.0) > 0
    assert fold_penalty(u_vox, (1.0, 1.0), epsilon=0.0, kind="central") == 0


@every_penalty
@every_grid
@pytest.mark.parametrize("masked", [False, True])
def test_gradient(penalty, shape, spacing, masked):
    generator = torch.Generator().manual_seed(4)
    u_vox = 0.3 * torch.randn(1, len(shape), *shape, generator=generator, dtype=torch.float64)
    mask = (
        (torch.rand(1, 1, *shape, generator=generator, dtype=torch.float64) - 0.2).clamp(min=0)
        if masked
        else None
    )
    assert gradcheck(lambda u: penalty(u, spacing, mask=mask), (u_vox.requires_grad_(),), fast_mode=True)


@every_penalty
def test_box_mask_equals_cropped_field(penalty):
    """Exact for differences that lie wholly inside; central determinants need their neighbours too."""
    generator = torch.Generator().manual_seed(5)
    u_vox = 0.3 * torch.randn(1, 3, 8, 9, 7, generator=generator, dtype=torch.float64)
    spacing = (2.0, 1.0, 0.7)
    box = (slice(None), slice(None), slice(0, 6), slice(2, 9), slice(1, 6))
    mask = torch.zeros(1, 1, 8, 9, 7)
    mask[box] = 1
    masked, cropped = penalty(u_vox, spacing, mask=mask), penalty(u_vox[box], spacing)
    if penalty is PENALTIES[-1]:
        hinge = (0.5 - jacobian_determinant(4 * u_vox)).clamp(min=0)[:, None]
        cropped = hinge[box].square().mean()
    torch.testing.assert_close(masked, cropped)


@every_penalty
def test_batch_precision_and_bad_input(penalty):
    generator = torch.Generator().manual_seed(6)
    u_vox = 0.3 * torch.randn(2, 2, 7, 6, generator=generator)
    spacing = (1.0, 3.0)
    parts = torch.stack([penalty(u_vox[n : n + 1], spacing) for n in range(2)])
    torch.testing.assert_close(penalty(u_vox, spacing), parts.mean())
    assert penalty(u_vox.bfloat16(), spacing).dtype == torch.float32
    with pytest.raises(InputError, match="empty"):
        penalty(u_vox, spacing, mask=torch.zeros(1, 1, 7, 6))
    with pytest.raises(ShapeError):
        penalty(u_vox, (1.0, 1.0, 1.0))
    with pytest.raises(ShapeError):
        penalty(u_vox, (1.0, 0.0))
    with pytest.raises(ShapeError):
        penalty(u_vox[:, :1], spacing)


def test_single_slices_and_thin_masks_have_no_differences():
    u_vox = torch.rand(1, 3, 1, 6, 5)
    flat = u_vox.clone()
    flat[:] = u_vox[..., :1, :1]
    assert diffusion(flat, (5.0, 1.0, 1.0)) == 0
    assert diffusion(u_vox, (5.0, 1.0, 1.0)) > 0
    assert bending(u_vox, (5.0, 1.0, 1.0)) > 0
    speck = torch.zeros(1, 1, 1, 6, 5)
    speck[..., 3, 2] = 1
    assert diffusion(u_vox, (5.0, 1.0, 1.0), mask=speck) == 0


def test_negative_epsilon_is_refused():
    with pytest.raises(SettingsError):
        fold_penalty(torch.zeros(1, 2, 4, 4), (1.0, 1.0), epsilon=-0.1)
