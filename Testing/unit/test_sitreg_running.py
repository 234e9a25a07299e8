"""Running SITReg: gradients, checkpointing, half precision, input sizes, sentences for what does not fit."""

from __future__ import annotations

import pytest
import torch

from DiffeoRegLib.errors import InputError, SettingsError, ShapeError, UnknownNameError
from DiffeoRegLib.networks.precision import precision_gap_vox
from DiffeoRegLib.networks.pyramid import PyramidConfig
from DiffeoRegLib.networks.sitreg import SITReg
from DiffeoRegLib.networks.sitreg_options import SITRegOptions
from DiffeoRegLib.space.sample import warp
from Testing.sitreg_cases import moving_network, pictures

SHAPES = [(15, 22), (9, 12, 11)]


def loss_of(network, one, other, mode="standard", spacing=None):
    """A similarity in both ways and at half way, and a penalty on the deformable part."""
    maps = network(one, other, mode=mode, spacing=spacing)
    halves = [warp(image, u) for image, u in zip((one, other), maps.halfway(), strict=True)]
    return (
        (warp(one, maps.u12) - other).square().mean()
        + (warp(other, maps.u21) - one).square().mean()
        + (halves[0] - halves[1]).square().mean()
        + maps.deformable("12").square().mean()
    )


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(
    "options", [{}, {"fast": True}, {"samples_per_control": 1}, {"symmetric": False}, {"checkpointing": True}]
)
@pytest.mark.parametrize("mode", ["standard", "complete"])
def test_the_gradient_is_the_slope_of_the_loss(shape, options, mode):
    network = moving_network(
        len(shape), strength=0.1, affine=True, dtype=torch.float64, **({"tolerance_vox": 1e-12} | options)
    )
    one, other = pictures(shape, dtype=torch.float64)
    loss_of(network, one, other, mode).backward()
    generator = torch.Generator().manual_seed(1)
    parameters = [p for p in network.parameters() if p.grad is not None]
    along = [torch.randn(p.shape, generator=generator, dtype=p.dtype) for p in parameters]
    slope = sum(float((p.grad * a).sum()) for p, a in zip(parameters, along, strict=True))
    step, losses = 1e-9, []  # small: every kink of an interpolation that is crossed counts in full
    with torch.no_grad():
        for sign in (1, -1):
            for p, a in zip(parameters, along, strict=True):
                p.add_(a, alpha=sign * step)
            losses.append(float(loss_of(network, one, other, mode)))
            for p, a in zip(parameters, along, strict=True):
                p.sub_(a, alpha=sign * step)
    assert abs(slope) > 1e-5
    assert (losses[0] - losses[1]) / (2 * step) == pytest.approx(slope, rel=1e-3)


@pytest.mark.parametrize("shape", SHAPES)
def test_every_weight_learns(shape):
    network = moving_network(len(shape), strength=0.1, affine=True)
    loss_of(network, *pictures(shape)).backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None, name
        assert bool(parameter.grad.isfinite().all()), name
        assert bool(parameter.grad.any()), name


@pytest.mark.parametrize("mode", ["standard", "complete"])
def test_checkpointing_changes_no_number(mode):
    gradients = []
    for checkpointing in (False, True):
        network = moving_network(3, strength=0.3, checkpointing=checkpointing)
        loss = loss_of(network, *pictures((13, 12, 17)), mode)
        loss.backward()
        gradients.append([float(loss.detach()), *[p.grad for p in network.parameters()]])
    assert gradients[0][0] == gradients[1][0]
    for one, other in zip(gradients[0][1:], gradients[1][1:], strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-8)


@pytest.mark.parametrize("part", ["network", "encoder"])
def test_checkpointing_keeps_less_for_the_gradient(part):
    held = []
    for checkpointing in (False, True):
        network = moving_network(3, strength=0.3, checkpointing=checkpointing)
        weights = {p.untyped_storage().data_ptr() for p in network.parameters()}
        kept = {}

        def keep(tensor, kept=kept, weights=weights):
            if tensor.untyped_storage().data_ptr() not in weights:
                kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        one, other = pictures((13, 12, 17))
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            if part == "network":
                result = network(one, other).routes[0].onward
            else:
                result = network.pyramid.encoder(one, checkpointing=checkpointing)[-1]
        assert result.requires_grad
        held.append(sum(kept.values()))
    assert held[1] < 0.5 * held[0]


@torch.no_grad()
@pytest.mark.parametrize("shape", [(45, 61), (29, 26, 33)])
def test_half_precision_stays_in_the_convolutions(shape):
    network = moving_network(len(shape), strength=0.1, precision="bfloat16")
    images = pictures(shape)
    seen = []
    for layer in (network.pyramid.heads[0].last, network.pyramid.encoder.down[0]):
        layer.register_forward_hook(lambda _layer, _inputs, output: seen.append(output.dtype))
    maps = network(*images, keep_atoms=True)
    assert set(seen) == {torch.bfloat16}
    assert maps.u12.dtype == torch.float32
    assert all(u.dtype == torch.float32 for atoms in maps.atoms for u in atoms.u_vox)
    # More digits than bfloat16 has: nothing was rounded after the last convolution.
    u = maps.atoms[-1].u_vox[0]
    assert float((u - u.bfloat16().float()).abs().max()) > 0
    gap = precision_gap_vox(network, *images)
    assert 0 < gap < 0.1 * float(maps.u12.abs().max())
    assert network.options.precision == "bfloat16"


@torch.no_grad()
def test_a_callers_autocast_does_not_reach_the_fields():
    network = moving_network(3, strength=1.0)
    images = pictures((17, 22, 13))
    plain = network(*images).u12
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(network(*images).u12, plain)


@torch.no_grad()
@pytest.mark.parametrize(
    "options", [{}, {"fast": True}, {"samples_per_control": 2}, {"samples_per_control": 1}]
)
@pytest.mark.parametrize("shape", [(9, 10), (33, 17), (9, 9, 9), (16, 12, 20), (31, 10, 13)])
def test_any_size_and_number_of_levels(shape, options):
    images = pictures(shape)
    for levels in (2, 4):
        maps = moving_network(len(shape), levels, **options)(*images)
        for u in (maps.u12, maps.u21, *maps.halfway(), *maps.halfway_inverse()):
            assert u.shape == (1, len(shape), *shape)
            assert bool(u.isfinite().all())


@torch.no_grad()
def test_coarse_samples_change_little():
    images = pictures((48, 40, 56))
    maps = {}
    for samples in (0, 2, 4):
        network = moving_network(3, 4, 0.3, samples_per_control=samples)
        maps[samples] = network(*images, keep_atoms=True)
    assert [atoms.stride for atoms in maps[0].atoms] == [1, 1, 1, 1]
    assert [atoms.stride for atoms in maps[2].atoms] == [4, 2, 1, 1]
    assert [atoms.stride for atoms in maps[4].atoms] == [2, 1, 1, 1]
    size = float(maps[0].u12.abs().mean())
    apart = [float((maps[samples].u12 - maps[0].u12).abs().mean()) for samples in (4, 2)]
    assert apart[0] < apart[1] < 0.25 * size


@torch.no_grad()
def test_fast_leaves_out_the_finest_head():
    network = moving_network(3, 3, 0.3, fast=True)
    images = pictures((17, 22, 13))
    before = network(*images).u12
    network.pyramid.heads[0].last.weight.mul_(2)
    assert torch.equal(network(*images).u12, before)
    network.pyramid.heads[1].last.weight.mul_(2)
    assert not torch.equal(network(*images).u12, before)


def test_sizes_that_do_not_fit():
    network = moving_network(3, 4)
    with pytest.raises(InputError, match=r"\(8, 20, 20\) voxels is too small for 4 levels, which need 9"):
        network(*pictures((8, 20, 20)))
    image = torch.zeros(1, 1, 20, 20, 20)
    for other in (torch.zeros(1, 1, 20, 20, 21), torch.zeros(1, 1, 20, 20)):
        with pytest.raises(ShapeError, match="of one shape"):
            network(image, other)
    with pytest.raises(ShapeError, match="of one shape"):
        network(*torch.zeros(2, 1, 2, 20, 20, 20))
    with pytest.raises(UnknownNameError, match="Did you mean 'complete'"):
        network(image, image, mode="complet")
    with pytest.raises(UnknownNameError, match="'21'"):
        network(image, image, direction="21")
    alone = SITReg(PyramidConfig((4,), (4,)), SITRegOptions(fast=True))
    with pytest.raises(SettingsError, match="no other"):
        alone(image, image)


def test_options_that_make_no_sense():
    for wrong in ({"samples_per_control": 3}, {"samples_per_control": -1}, {"tolerance_vox": 0.0}):
        with pytest.raises(SettingsError):
            SITRegOptions(**wrong)
    with pytest.raises(UnknownNameError, match="float32"):
        SITRegOptions(precision="float16")
