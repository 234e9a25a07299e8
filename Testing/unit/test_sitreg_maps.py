"""SITReg's maps: exchange, identity, inverse consistency, exact points, and never a fold."""

from __future__ import annotations

import pytest
import torch

from DiffeoRegLib.errors import SettingsError
from DiffeoRegLib.flows.inversion import inversion_residual, invert_with_report
from DiffeoRegLib.networks.sitreg_maps import MODES
from DiffeoRegLib.space.field import compose, minimum_corner_determinant
from DiffeoRegLib.space.sample import identity_vox, warp
from Testing.sitreg_cases import moving_network, pictures

SHAPES = [(23, 30), (17, 22, 13)]
GRIDS = [{}, {"fast": True}, {"samples_per_control": 2}, {"samples_per_control": 1}]


def inside_mean(u_vox, at_vox):
    """Mean absolute component over voxels whose first step stayed in the field of view."""
    last = torch.tensor(u_vox.shape[2:]).view(1, -1, *[1] * (u_vox.dim() - 2)) - 1
    at = identity_vox(u_vox.shape[2:]) + at_vox
    return float(u_vox.abs().mean(1)[((at >= 0) & (at <= last)).all(1)].mean())


@torch.no_grad()
@pytest.mark.parametrize(("shape", "strength"), [(SHAPES[0], 30.0), (SHAPES[1], 0.3), ((19, 21, 17), 30.0)])
@pytest.mark.parametrize("options", [*GRIDS, {"symmetric": False}, {"precision": "bfloat16"}])
def test_exchanged_images_give_exchanged_maps_to_the_last_bit(shape, strength, options):
    network = moving_network(len(shape), strength=strength, **options)
    one, other = pictures(shape, batch=2)
    for mode in ("standard", "complete"):
        maps, back = network(one, other, mode=mode), network(other, one, mode=mode)
        assert torch.equal(maps.u12, back.u21)
        assert torch.equal(maps.u21, back.u12)
        assert torch.equal(maps.halfway()[0], back.halfway()[1])
        assert torch.equal(maps.halfway_inverse()[0], back.halfway_inverse()[1])
        assert float((maps.u12 - maps.u21).abs().max()) > 0.1


@torch.no_grad()
@pytest.mark.parametrize("shape", SHAPES)
def test_exchange_with_the_affine_stage_and_exact_inverses(shape):
    network = moving_network(len(shape), strength=1.0, affine=True)
    one, other = pictures(shape)
    spacing = (1.0, 2.5, 0.7)[: len(shape)]
    for mode in MODES:
        maps = network(one, other, mode=mode, spacing=spacing)
        back = network(other, one, mode=mode, spacing=spacing)
        assert torch.equal(maps.u12, back.u21)
        assert torch.equal(maps.deformable("12"), back.deformable("21"))
        assert torch.equal(maps.halfway()[0], back.halfway()[1])


@torch.no_grad()
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("mode", MODES)
def test_equal_images_stay(shape, mode):
    network = moving_network(len(shape), strength=0.05)
    image = pictures(shape)[0]
    maps = network(image, image, mode=mode)
    assert float(network(*pictures(shape), mode=mode).u12.abs().max()) > 0.05
    assert float(maps.u12.abs().max()) < 1e-3


@torch.no_grad()
@pytest.mark.parametrize(
    ("strength", "least", "bound"), [(0.08, 0.8, 5e-3), (0.45, 3.5, 0.025), (30.0, 8.5, 0.08)]
)
def test_inverse_consistency_of_the_standard_mode(strength, least, bound):
    maps = moving_network(3, 4, strength)(*pictures((48, 40, 56)))
    assert float(maps.u12.abs().max()) > least
    assert inside_mean(compose(maps.u12, maps.u21), maps.u21) <= bound


@torch.no_grad()
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("affine", [False, True])
@pytest.mark.parametrize("mode", ["standard", "complete"])
@pytest.mark.parametrize("fast", [False, True])
def test_halfway_maps_meet(shape, affine, mode, fast):
    network = moving_network(len(shape), strength=0.1, affine=affine, fast=fast, tolerance_vox=1e-5)
    maps = network(*pictures(shape), mode=mode)
    ones, twos = maps.halfway(), maps.halfway_inverse()
    # Between the voxels of a coarse grid an inverse interpolated from there is not quite one.
    bound = 0.04 if fast else 0.02
    for half, inverse in zip(ones, twos, strict=True):
        assert inside_mean(compose(half, inverse), inverse) < bound
    # f12 = (a o d1) o (a^-1 o d2)^-1
    assert inside_mean(compose(ones[0], twos[1]) - maps.u12, twos[1]) < bound
    assert inside_mean(compose(ones[1], twos[0]) - maps.u21, twos[0]) < bound


@torch.no_grad()
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("strength", "method"), [(1.0, "picard"), (30.0, "mixed")])
def test_atoms_invert_quickly_and_do_not_fold(shape, strength, method):
    maps = moving_network(len(shape), strength=strength)(*pictures(shape), mode="complete")
    for atoms in maps.atoms:
        for u, v in zip(atoms.u_vox, atoms.v_vox, strict=True):
            assert float(minimum_corner_determinant(u).min()) > 0
            assert float(inversion_residual(u, v).max()) < 0.01
            assert invert_with_report(u, method, 0.01, most_iterations=12)[1].unsolved == 0


@torch.no_grad()
@pytest.mark.parametrize("options", [{}, {"fast": True}])
def test_one_way_is_half_the_result_and_the_same_half(options):
    network = moving_network(3, strength=1.0, affine=True, **options)
    images = pictures((17, 22, 13), batch=2)
    one_way, both = network(*images, direction="12"), network(*images)
    assert torch.equal(one_way.u12, both.u12)
    assert torch.equal(one_way.deformable("12"), both.deformable("12"))
    for asked in (lambda m: m.u21, lambda m: m.deformable("21"), lambda m: m.halfway()):
        with pytest.raises(SettingsError, match="direction `both`"):
            asked(one_way)


@torch.no_grad()
def test_a_batch_is_its_items():
    network = moving_network(3, strength=30.0)
    one, other = pictures((17, 22, 13), batch=2)
    together = network(one, other).u12
    for item in range(2):
        alone = network(one[item : item + 1], other[item : item + 1]).u12
        torch.testing.assert_close(together[item : item + 1], alone, rtol=0, atol=1e-3)


@torch.no_grad()
def test_the_ablation_uses_no_inverse():
    network = moving_network(2, levels=1, strength=0.2, symmetric=False)
    images = pictures((23, 30))
    maps = network(*images, keep_atoms=True)
    u12, u21 = maps.atoms[0].u_vox
    # d1 = u(z1, z2), and what stands for d2^-1 is the same map (equations 7 and 12).
    torch.testing.assert_close(maps.u12, compose(u12, u12))
    torch.testing.assert_close(maps.u21, compose(u21, u21))
    with pytest.raises(SettingsError, match="symmetric network"):
        maps.map_points(torch.zeros(1, 2))
    with pytest.raises(SettingsError, match="no inverse"):
        network(*images, mode="complete-exact")


@torch.no_grad()
def test_one_level_is_its_equations():
    network = moving_network(2, levels=1, strength=0.3, tolerance_vox=1e-6)
    maps = network(*pictures((23, 30)), keep_atoms=True)
    u12, u21 = maps.atoms[0].u_vox
    inverse = invert_with_report(u21, tolerance_vox=1e-6)[0]
    delta = compose(u12, inverse)
    torch.testing.assert_close(maps.halfway()[0], delta, rtol=0, atol=1e-5)
    torch.testing.assert_close(maps.u12, compose(delta, delta), rtol=0, atol=1e-5)
    # Read where delta leads, u21^-1's argument comes back: u12 = delta o u21.
    assert inside_mean(warp(delta, u21) + u21 - u12, u21) < 0.02
