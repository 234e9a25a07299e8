"""The half-way affine: known matrices, exact inverses, a whole map that is a known affine."""

from __future__ import annotations

import math

import pytest
import torch

from DiffeoRegLib.errors import InputError, ShapeError
from DiffeoRegLib.networks.sitreg_affine import affine_matrix, halfway_affines
from DiffeoRegLib.space.sample import identity_vox
from Testing.sitreg_cases import moving_network, pictures

SHAPES = [(21, 30), (17, 12, 21)]
SPACINGS = {2: (0.8, 1.7), 3: (1.2, 3.0, 0.7)}


def parameters(dim, seed=0, batch=1, size=0.2):
    generator = torch.Generator().manual_seed(seed)
    return (torch.rand(batch, dim * (dim + 1), generator=generator) - 0.5) * size


def test_scale_shear_turn_and_shift_have_their_places():
    numbers = torch.zeros(1, 6, dtype=torch.float64)
    numbers[0, 0] = math.log(2)
    assert torch.allclose(
        affine_matrix(numbers, 2)[0], torch.diag(torch.tensor([2.0, 1, 1], dtype=torch.float64))
    )
    turn = torch.zeros(1, 6, dtype=torch.float64)
    turn[0, 3] = 0.3
    expected = torch.tensor(
        [[math.cos(0.3), math.sin(0.3)], [-math.sin(0.3), math.cos(0.3)]], dtype=torch.float64
    )
    assert torch.allclose(affine_matrix(turn, 2)[0, :2, :2], expected)
    shear = torch.zeros(1, 6, dtype=torch.float64)
    shear[0, 2] = 0.3
    expected = torch.tensor([[math.cosh(0.3), math.sinh(0.3)], [math.sinh(0.3), math.cosh(0.3)]])
    assert torch.allclose(affine_matrix(shear, 2)[0, :2, :2], expected.double())
    # The translation acts first: it is scaled by what follows.
    both = numbers.clone()
    both[0, 4:] = torch.tensor([0.5, -0.25])
    assert affine_matrix(both, 2)[0, :2, 2].tolist() == pytest.approx([1.0, -0.25])


@pytest.mark.parametrize("shape", SHAPES)
def test_the_two_halves_undo_each_other(shape):
    dim = len(shape)
    first, second = parameters(dim, 0, 2), parameters(dim, 1, 2)
    forward, back = halfway_affines(first, second, shape, SPACINGS[dim])
    points = torch.rand(2, dim, 50, dtype=torch.float64) * 20
    assert float((forward.at(points) - points).abs().max()) > 0.5
    assert float((back.at(forward.at(points)) - points).abs().max()) < 1e-12
    exchanged = halfway_affines(second, first, shape, SPACINGS[dim])
    assert torch.equal(exchanged[0].linear, back.linear)
    assert torch.equal(exchanged[1].offset_vox, forward.offset_vox)


@pytest.mark.parametrize("shape", SHAPES)
def test_coordinates_are_centred_and_isotropic(shape):
    """A pure rotation turns about the centre and keeps physical distances."""
    dim = len(shape)
    turn = torch.zeros(1, dim * (dim + 1))
    turn[0, dim + dim * (dim - 1) // 2] = 0.4
    spacing = torch.tensor(SPACINGS[dim], dtype=torch.float64)[:, None]
    forward, _ = halfway_affines(turn, torch.zeros_like(turn), shape, SPACINGS[dim])
    center = (torch.tensor(shape, dtype=torch.float64) - 1)[None, :, None] / 2
    assert torch.allclose(forward.at(center), center)
    points = torch.rand(1, dim, 30, dtype=torch.float64) * 20
    lengths = [((p - center) * spacing).norm(dim=1) for p in (points, forward.at(points))]
    assert torch.allclose(lengths[0], lengths[1])


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("stride", [1, 2, 4])
def test_on_coarse_grids_it_is_the_same_map(shape, stride):
    dim = len(shape)
    affine, _ = halfway_affines(parameters(dim), parameters(dim, 1), shape)
    grid = [-(-n // stride) for n in shape]
    u = torch.rand(1, dim, *grid, dtype=torch.float64)
    found = identity_vox(grid, torch.float64) + affine.after(u, stride)
    coarse = identity_vox(grid, torch.float64) + u
    expected = affine.at((coarse + 0.5) * stride - 0.5)
    torch.testing.assert_close((found + 0.5) * stride - 0.5, expected)


@torch.no_grad()
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("mode", ["standard", "complete", "complete-exact"])
@pytest.mark.parametrize("fast", [False, True])
def test_a_network_without_deformation_gives_a_of_a(shape, mode, fast):
    dim = len(shape)
    network = moving_network(dim, affine=True, fast=fast)
    for head in network.pyramid.heads:
        head.last.weight.zero_()
        head.last.bias.zero_()
    orders = parameters(dim, 0), parameters(dim, 1)
    network.pyramid.affine.forward = lambda z1, z2: orders
    maps = network(*pictures(shape), mode=mode, spacing=SPACINGS[dim])
    affine, _ = halfway_affines(*orders, shape, SPACINGS[dim])
    at = identity_vox(shape, torch.float64)
    expected = affine.at(affine.at(at)) - at
    assert float(expected.abs().max()) > 1
    assert float((maps.u12 - expected).abs().max()) < 1e-4
    assert float(maps.deformable("12").abs().max()) == 0
    assert float((maps.halfway()[0] - (affine.at(at) - at)).abs().max()) < 1e-4


@torch.no_grad()
@pytest.mark.parametrize("shape", SHAPES)
def test_exact_points_with_an_affine(shape):
    dim = len(shape)
    maps = moving_network(dim, strength=3.0, affine=True)(
        *pictures(shape), mode="complete-exact", spacing=SPACINGS[dim]
    )
    points = torch.rand(2000, dim, dtype=torch.float64) * torch.tensor(shape)
    there, determinant = maps.points_and_determinants(points, "12")
    back, inverse = maps.points_and_determinants(there, "21")
    assert float((back - points).abs().max()) < 1e-9
    assert float((determinant * inverse - 1).abs().max()) < 1e-6
    assert float(determinant.min()) > 0


@torch.no_grad()
def test_bad_sizes():
    with pytest.raises(ShapeError, match="12 affine parameters"):
        affine_matrix(torch.zeros(1, 6), 3)
    for spacing in ((1.0, 2.0), (1.0, 0.0, 1.0)):
        with pytest.raises(ShapeError, match="voxel sizes"):
            halfway_affines(torch.zeros(1, 12), torch.zeros(1, 12), (5, 5, 5), spacing)
    network = moving_network(2, affine=True)
    with pytest.raises(InputError, match="larger than this network"):
        network(*pictures((70, 30)))
