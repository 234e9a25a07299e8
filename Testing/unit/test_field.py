"""Fields: composition, levels, grids, units and Jacobian determinants, on hostile shapes."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import SimpleITK as sitk
import torch

from DiffeoRegLib.errors import GeometryError, InputError, ShapeError
from DiffeoRegLib.space.field import (
    change_grid,
    compose,
    downsample_field,
    downsample_image,
    folded_percent,
    jacobian_determinant,
    log_jacobian,
    minimum_cell_bound,
    minimum_corner_determinant,
    sd_log_jacobian,
    u_mm_from_vox,
    u_vox_from_mm,
    upsample_field,
    upsample_image,
)
from DiffeoRegLib.space.grid import Grid
from DiffeoRegLib.space.sample import array_from_tensor, identity_vox, sample

DTYPE = torch.float64
SHAPES = [(9, 14), (7, 11, 8)]


def _random(shape, size=1.0, seed=0, batch=1):
    generator = torch.Generator().manual_seed(seed)
    return (torch.rand(batch, len(shape), *shape, dtype=DTYPE, generator=generator) - 0.5) * 2 * size


def _linear(shape, scale=0.1):
    """u(x) = A x + b on a grid, with A and b."""
    d = len(shape)
    a = torch.tensor([[0.5, -0.2, 0.1], [0.3, 0.4, -0.6], [-0.1, 0.2, -0.3]], dtype=DTYPE)[:d, :d] * scale
    b = torch.tensor([0.7, -0.4, 0.2], dtype=DTYPE)[:d]
    x = identity_vox(shape, DTYPE)
    return torch.einsum("ab,nb...->na...", a, x) + b.view(1, -1, *[1] * d), a, b


def _oblique(shape, spacing=(1.5, 0.7, 3.0)):
    c, s = math.cos(0.4), math.sin(0.4)
    turn = np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]]) @ np.array([[1, 0, 0], [0, c, -s], [0, s, c]])
    matrix = np.eye(4)
    matrix[:3, :3] = turn @ np.diag([-1, 1, 1]) @ np.diag(spacing)
    matrix[:3, 3] = (20, -35, 7)
    return Grid(shape, matrix)


@pytest.mark.parametrize("shape", SHAPES)
def test_composition_is_the_outer_map_after_the_inner(shape):
    outer, inner = _linear(shape)[0], _random(shape, 1.5)
    x = identity_vox(shape, DTYPE)
    middle = (x + inner).clamp(min=0)
    middle = torch.minimum(middle, x.amax(dim=tuple(range(2, x.dim())), keepdim=True))
    _, a, b = _linear(shape)
    expected = inner + torch.einsum("ab,nb...->na...", a, middle) + b.view(1, -1, *[1] * len(shape))
    torch.testing.assert_close(compose(outer, inner), expected)


@pytest.mark.parametrize("shape", SHAPES)
def test_no_motion_composes_to_exactly_nothing(shape):
    zero, u = torch.zeros(1, len(shape), *shape), _random(shape, 3.0).float()
    assert torch.equal(compose(zero, zero), zero)
    assert torch.equal(compose(zero, u), u)
    torch.testing.assert_close(compose(u, zero), u, atol=1e-4, rtol=0)


def test_composition_leaves_its_arguments_alone():
    outer, inner = _random((5, 6), 1.0, 1), _random((5, 6), 1.0, 2)
    before = outer.clone(), inner.clone()
    compose(outer, inner)
    assert torch.equal(outer, before[0])
    assert torch.equal(inner, before[1])


def test_composition_gradients():
    outer, inner = _random((4, 5, 3), 0.4, 1).requires_grad_(), _random((4, 5, 3), 0.4, 2).requires_grad_()
    assert torch.autograd.gradcheck(compose, (outer, inner))


def test_composition_refuses_other_grids():
    with pytest.raises(ShapeError):
        compose(torch.zeros(1, 2, 4, 4), torch.zeros(1, 2, 4, 5))
    with pytest.raises(ShapeError):
        compose(torch.zeros(1, 3, 4, 4), torch.zeros(1, 3, 4, 4))


@pytest.mark.parametrize(
    ("shape", "strides"), [((13, 9), (2, 3)), ((9, 14, 7), (4, 1, 2)), ((5, 1, 3), (8, 4, 2))]
)
def test_upsampling_follows_the_cell_centred_rule(shape, strides):
    coarse = tuple(-(-n // s) for n, s in zip(shape, strides, strict=True))
    image = _random(coarse, seed=4)
    s = torch.tensor(strides, dtype=DTYPE).view(1, -1, *[1] * len(shape))
    position = (identity_vox(shape, DTYPE) + 0.5) / s - 0.5
    torch.testing.assert_close(upsample_image(image, strides, shape), sample(image, position))
    torch.testing.assert_close(upsample_field(image, strides, shape), sample(image, position) * s)


@pytest.mark.parametrize(("shape", "strides"), [((16, 24), (2, 4)), ((8, 12, 16), (2, 3, 4))])
def test_linear_fields_survive_going_down_and_up(shape, strides):
    u, _, _ = _linear(shape)
    coarse = downsample_field(u, strides)
    grid_step = torch.tensor(strides, dtype=DTYPE).view(1, -1, *[1] * len(shape))
    position = (identity_vox(coarse.shape[2:], DTYPE) + 0.5) * grid_step - 0.5
    torch.testing.assert_close(coarse * grid_step, sample(u, position))
    inner = (slice(None), slice(None), *[slice(s, n - s) for n, s in zip(shape, strides, strict=True)])
    torch.testing.assert_close(upsample_field(coarse, strides, shape)[inner], u[inner])


def test_constant_fields_are_exact_at_every_level():
    u = torch.tensor([3.0, -1.5, 0.75]).view(1, 3, 1, 1, 1).expand(1, 3, 11, 7, 5)
    coarse = downsample_field(u, (4, 2, 3))
    torch.testing.assert_close(coarse[0, :, 0, 0, 0], torch.tensor([0.75, -0.75, 0.25]))
    torch.testing.assert_close(upsample_field(coarse, (4, 2, 3), (11, 7, 5)), u, rtol=1e-6, atol=0)


def test_overhanging_blocks_repeat_the_border():
    image = torch.tensor([1.0, 3.0, 5.0]).view(1, 1, 1, 3)
    torch.testing.assert_close(downsample_image(image, (1, 2)).flatten(), torch.tensor([2.0, 5.0]))


def test_upsampling_refuses_a_grid_of_another_size():
    with pytest.raises(ShapeError):
        upsample_image(torch.zeros(1, 1, 4, 4), (2, 2), (9, 8))
    with pytest.raises(ShapeError):
        downsample_image(torch.zeros(1, 1, 4, 4), (2, 2, 2))


@pytest.mark.parametrize("shape", [(10, 12), (10, 12, 8)])
def test_change_of_grid_keeps_the_motion_in_the_patient(shape):
    from_grid = _oblique(shape)
    to_grid = from_grid.cropped([2] * len(shape), [8, 9, 7][: len(shape)]).refined([2, 3, 1][: len(shape)])
    u, a, b = _linear(shape)
    changed = change_grid(u, from_grid, to_grid)
    index = np.stack(np.meshgrid(*[np.arange(n) for n in to_grid.shape], indexing="ij"), -1)
    position = torch.tensor(from_grid.index_from_world(to_grid.world_from_index(index))).movedim(-1, 0)[None]
    field_mm = u_mm_from_vox(
        torch.einsum("ab,nb...->na...", a, position) + b.view(1, -1, *[1] * len(shape)), from_grid
    )
    torch.testing.assert_close(u_mm_from_vox(changed, to_grid), field_mm, atol=1e-9, rtol=0)


def test_change_of_grid_to_a_level_and_back_is_upsampling():
    grid = _oblique((8, 6, 10))
    coarse = _random((4, 3, 5))
    changed = change_grid(coarse, grid.coarsened((2, 2, 2)), grid)
    torch.testing.assert_close(changed, upsample_field(coarse, (2, 2, 2), grid.shape), atol=1e-9, rtol=0)


def test_change_of_grid_refuses_turned_axes():
    grid = _oblique((5, 6, 7))
    flipped = Grid(grid.shape, grid.world_from_voxel @ np.diag([-1.0, 1, 1, 1]))
    with pytest.raises(GeometryError):
        change_grid(torch.zeros(1, 3, 5, 6, 7), grid, flipped)
    with pytest.raises(GeometryError):
        change_grid(torch.zeros(1, 3, 5, 6, 7), grid, Grid((5, 6, 7), np.eye(4)))
    with pytest.raises(ShapeError):
        change_grid(torch.zeros(1, 3, 5, 6, 8), grid, grid)


@pytest.mark.parametrize("shape", SHAPES)
def test_world_vectors_are_differences_of_world_positions(shape):
    grid, u = _oblique(shape), _random(shape, 2.0)
    index = array_from_tensor(identity_vox(shape, DTYPE)[0]).reshape(len(shape), -1).T
    moved = index + array_from_tensor(u[0]).reshape(len(shape), -1).T
    expected = grid.world_from_index(moved) - grid.world_from_index(index)
    u_mm = u_mm_from_vox(u, grid)
    np.testing.assert_allclose(array_from_tensor(u_mm[0]).reshape(3, -1).T, expected, atol=1e-12)
    torch.testing.assert_close(u_vox_from_mm(u_mm, grid), u)


def test_world_vectors_of_another_grid_are_refused():
    with pytest.raises(ShapeError):
        u_vox_from_mm(torch.zeros(1, 3, 4, 4, 5), _oblique((4, 4, 4)))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("kind", ["central", "corners"])
def test_determinant_of_a_linear_field(shape, kind):
    u, a, _ = _linear(shape)
    expected = torch.linalg.det(torch.eye(len(shape), dtype=DTYPE) + a)
    determinant = jacobian_determinant(u, kind)
    torch.testing.assert_close(determinant, expected.expand_as(determinant))


@pytest.mark.parametrize("shape", [(5, 4), (4, 3, 5)])
def test_corner_determinants_are_a_loop_over_cells_and_corners(shape):
    d = len(shape)
    u = _random(shape, 1.0, 7, batch=2)
    values = array_from_tensor(u)
    expected = np.zeros((2, 2**d, *[n - 1 for n in shape]))
    for n, cell, (bits, corner) in itertools.product(
        range(2), np.ndindex(*[m - 1 for m in shape]), enumerate(itertools.product((0, 1), repeat=d))
    ):
        node = np.add(cell, corner)
        jacobian = np.eye(d)
        for axis in range(d):
            low, high = node.copy(), node.copy()
            low[axis], high[axis] = cell[axis], cell[axis] + 1
            jacobian[:, axis] += values[(n, slice(None), *high)] - values[(n, slice(None), *low)]
        expected[(n, bits, *cell)] = np.linalg.det(jacobian)
    np.testing.assert_allclose(array_from_tensor(jacobian_determinant(u, "corners")), expected, atol=1e-12)
    lowest = array_from_tensor(minimum_corner_determinant(u))
    np.testing.assert_allclose(lowest[:, 0], expected.min(1), atol=1e-12)


def test_slabs_do_not_change_the_minimum(monkeypatch):
    u = _random((9, 4, 5), 1.0, 3)
    whole = minimum_corner_determinant(u), minimum_cell_bound(u)
    monkeypatch.setattr("DiffeoRegLib.space.jacobian.SLAB_VALUES", 45)
    torch.testing.assert_close(minimum_corner_determinant(u), whole[0])
    torch.testing.assert_close(minimum_cell_bound(u), whole[1])


@pytest.mark.parametrize("shape", [(6, 7), (5, 6, 7)])
def test_one_known_fold(shape):
    u = torch.zeros(1, len(shape), *shape)
    u[(0, 0, *[2] * len(shape))] = (
        1.5  # jumps over its neighbour along axis 0, in the cells that touch that edge
    )
    touching = 2 ** (len(shape) - 1)
    cells = math.prod(n - 1 for n in shape)
    assert folded_percent(u) == pytest.approx(100 * touching / cells)
    mask = torch.zeros(1, 1, *shape)
    mask[(0, 0, *[slice(2, 4)] * len(shape))] = 1
    assert folded_percent(u, mask) == pytest.approx(100.0)
    assert float(jacobian_determinant(u).min()) > 0  # central differences do not see it
    with pytest.raises(InputError):
        folded_percent(u, torch.zeros(1, 1, *shape))


def test_nan_counts_as_folded():
    u = torch.zeros(1, 2, 3, 3)
    u[0, 0, 0, 0] = float("nan")
    assert folded_percent(u) == pytest.approx(25.0)


def _determinant_inside(u, points):
    """det(I + Du) of the interpolant of one cell at points (n, d) in 0..1, by differences of exact values."""
    d = u.shape[1]
    columns = []
    for axis in range(d):
        ends = []
        for side in (0.0, 1.0):
            moved = points.clone()
            moved[:, axis] = side
            ends.append(sample(u, moved.T.reshape(1, d, -1))[0])
        columns.append((ends[1] - ends[0]).T)
    return torch.linalg.det(torch.eye(d, dtype=u.dtype) + torch.stack(columns, -1))


def test_corners_decide_a_whole_cell_in_2d():
    points = torch.rand(400, 2, dtype=DTYPE, generator=torch.Generator().manual_seed(0))
    for seed in range(20):
        u = _random((2, 2), 1.0, seed)
        lowest = float(minimum_corner_determinant(u))
        assert float(_determinant_inside(u, points).min()) >= lowest - 1e-12
        assert float(minimum_cell_bound(u)) == pytest.approx(lowest, abs=1e-12)


def test_corners_do_not_decide_a_cell_in_3d_but_the_bound_does():
    points = torch.rand(2000, 3, dtype=DTYPE, generator=torch.Generator().manual_seed(0))
    missed = 0
    for seed in range(400):
        u = _random((2, 2, 2), 0.55, seed)
        inside = float(_determinant_inside(u, points).min())
        bound = float(minimum_cell_bound(u))
        assert bound <= min(inside, float(minimum_corner_determinant(u))) + 1e-12
        missed += float(minimum_corner_determinant(u)) > 0 > inside
    assert missed > 0  # the reason for minimum_cell_bound


def test_a_field_read_inside_its_cells_has_the_determinants_of_the_cell():
    u = _random((4, 5, 3), 0.3, 2)
    fine_shape = tuple(
        5 * (n - 1) + 1 for n in u.shape[2:]
    )  # nodes fall on nodes: no fine cell straddles a coarse one
    fine = sample(u, identity_vox(fine_shape, DTYPE) / 5) * 5
    certified = minimum_cell_bound(u)
    fine_minimum = minimum_corner_determinant(fine)
    blocks = -torch.nn.functional.max_pool3d(-fine_minimum, 5)
    assert bool((blocks >= certified - 1e-12).all())
    assert bool((blocks <= minimum_corner_determinant(u) + 1e-12).all())


@pytest.mark.parametrize("shape", SHAPES)
def test_determinants_are_simpleitks(shape):
    d = len(shape)
    grid = _oblique(shape)
    spacing = grid.spacing
    u = _random(shape, 0.4, 5)
    mm = array_from_tensor(u)[0] * np.array(spacing).reshape(-1, *[1] * d)
    image = sitk.GetImageFromArray(np.moveaxis(mm[::-1], 0, -1).copy(), isVector=True)
    image.SetSpacing(spacing[::-1])
    theirs = sitk.GetArrayFromImage(sitk.DisplacementFieldJacobianDeterminant(image))
    inner = (slice(1, -1),) * d  # at the border ITK halves the difference, we take it one-sided
    ours = array_from_tensor(jacobian_determinant(u))[0]
    np.testing.assert_allclose(ours[inner], theirs[inner], atol=1e-6)


def test_log_jacobian_of_a_swelling():
    u, a, _ = _linear((9, 8, 10))
    expected = float(torch.linalg.det(torch.eye(3, dtype=DTYPE) + a).log())
    assert float(log_jacobian(u).mean()) == pytest.approx(expected)
    assert sd_log_jacobian(u) == pytest.approx(0.0, abs=1e-12)
    shifted = float(log_jacobian(u, learn2reg=True).mean())
    assert shifted == pytest.approx(math.log(math.exp(expected) + 3))


def test_sd_log_jacobian_counts_only_the_mask():
    u = _random((8, 9), 0.2, 1)
    mask = torch.zeros(1, 1, 8, 9)
    mask[..., 2:5, 3:7] = 1
    values = array_from_tensor(log_jacobian(u))[0, 2:5, 3:7]
    assert sd_log_jacobian(u, mask) == pytest.approx(values.std())
    cropped = array_from_tensor(log_jacobian(u, learn2reg=True))[0, 2:-2, 2:-2]
    assert sd_log_jacobian(u, learn2reg=True) == pytest.approx(cropped.std())
    with pytest.raises(InputError):
        sd_log_jacobian(u, torch.zeros(1, 1, 8, 9))


def test_determinant_gradients():
    u = _random((3, 4, 3), 0.3).requires_grad_()
    assert torch.autograd.gradcheck(lambda a: jacobian_determinant(a, "corners"), u)
    assert torch.autograd.gradcheck(jacobian_determinant, u)
