"""MetaRegNet: its two branches, its maps, its losses, and one synthetic tumour learned by heart."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from DiffeoRegLib.errors import SettingsError, ShapeError, UnknownNameError
from DiffeoRegLib.losses.regularity import fold_sum
from DiffeoRegLib.losses.similarity import mse
from DiffeoRegLib.networks.build import NetworkConfig, build_network
from DiffeoRegLib.networks.metaregnet import (
    RELEASED,
    MetamorphicMaps,
    MetaRegNet,
    MetaRegNetConfig,
    MetaRegNetOptions,
)
from DiffeoRegLib.networks.pyramid import parameter_count
from DiffeoRegLib.space.field import compose
from DiffeoRegLib.space.jacobian import folded_percent
from DiffeoRegLib.space.sample import identity_vox, warp
from DiffeoRegLib.training.objective import Batch
from Testing.metaregnet_cases import SHAPE, objective
from Testing.sitreg_cases import pictures

SMALL = {"encoder": (4, 8, 8), "decoder": (8, 8, 8, 4, 4), "up": (4, 4, 4)}


def network(seed=0, spread=0.3, options=None, **sizes):
    """A small network with heads that say something."""
    torch.manual_seed(seed)
    made = MetaRegNet(MetaRegNetConfig(**{**SMALL, **sizes}), options)
    for head in (made.motion_head, made.appearance_head):
        torch.nn.init.normal_(head.weight, std=spread)
    return made


# ---------------------------------------------------------------- the network


@pytest.mark.parametrize("options", [None, MetaRegNetOptions(checkpointing=True)])
def test_without_a_pathology_the_image_is_the_moving_one_bit_for_bit(options):
    """No gradient reaches the intensity branch, and the loss is that of the images and the folds."""
    made = network(options=options)
    moving, fixed = pictures(SHAPE)
    maps = made(moving, fixed)
    batch = Batch(moving, fixed, pathology=torch.zeros_like(fixed))
    out = warp(moving, maps.u12) + maps.appearance * batch.pathology
    assert torch.equal(out, warp(moving, maps.u12))
    assert float(maps.appearance.detach().abs().max()) > 0.01
    value, terms = objective()(maps, batch)
    assert float(terms["appearance"]) == 0
    expected = mse(fixed, warp(moving, maps.u12)) + 1e-3 * fold_sum(maps.u12)
    torch.testing.assert_close(value, expected)
    value.backward()
    for part in (made.appearance_head, made.appearance):
        assert all(not bool(p.grad.any()) for p in part.parameters())
    for part in (made.motion_head, made.motion, made.unet):
        assert all(bool(p.grad.any()) for p in part.parameters())
    plain, _ = objective([("mse", 1.0), ("folds", 1e-3)])(made(moving, fixed), Batch(moving, fixed))
    assert torch.equal(plain, value.detach())


def test_where_everything_is_pathological_any_difference_can_be_added():
    """u = 0, q = fixed - moving: the images agree, and what the branch ends with is in its reach."""
    moving, fixed = pictures(SHAPE)
    maps = MetamorphicMaps(torch.zeros(1, 2, *SHAPE), fixed - moving)
    value, _ = objective([("mse", 1.0)])(maps, Batch(moving, fixed, pathology=torch.ones_like(fixed)))
    assert float(value) < 1e-14
    branch = network(lipschitz="exact", blocks=7).appearance.double()
    wanted = (0.999 * (fixed - moving).sign()).double()
    x = wanted.atanh()
    with torch.no_grad():
        for block in reversed(branch.blocks()):
            target = x
            for _ in range(60):
                x = target - (block(x) - x)
        torch.testing.assert_close(branch(x).tanh(), wanted, rtol=0, atol=1e-9)


def test_the_branches_have_nothing_in_common():
    made = network()
    motion = {id(p) for part in (made.motion_head, made.motion) for p in part.parameters()}
    intensity = {id(p) for part in (made.appearance_head, made.appearance) for p in part.parameters()}
    assert not motion & intensity
    blocks = [p for block in made.motion for p in block.parameters()]
    assert len({id(p) for p in blocks}) == len(blocks) == 14
    assert len({id(p) for p in made.parameters()}) == len(list(made.parameters()))
    maps = made(*pictures(SHAPE))
    taken = [p for part in (made.motion_head, made.motion) for p in part.parameters()]
    for gradient in torch.autograd.grad(maps.appearance.sum(), taken, allow_unused=True):
        assert gradient is None or not bool(gradient.any())


def test_parameters_of_both_published_sizes():
    """By hand: every convolution of the U-Net, then heads and blocks."""
    with torch.device("meta"):
        counts = [
            parameter_count(MetaRegNet(MetaRegNetConfig(**sizes))) for sizes in ({}, {"dim": 3}, RELEASED)
        ]
    assert counts == [80_014, 240_744, 439_848]
    assert parameter_count(network().appearance) == 7 * (9 + 1)


def plain_unet(made, images):
    """The U-Net written out for three levels."""
    unet, leaky = made.unet, functional.leaky_relu

    def layer(block, x):
        convolution = block[0]
        stride = convolution.stride[0]
        x = functional.conv2d(x, convolution.weight, convolution.bias, stride=stride, padding=1)
        return leaky(x, 0.2)

    def up(step, x, skip):
        wide = functional.conv_transpose2d(x, step.weight, step.bias, stride=2, padding=1, output_padding=1)
        return torch.cat([wide, skip], 1)

    e1 = layer(unet.down[0], images)
    e2 = layer(unet.down[1], e1)
    x = layer(unet.decoder[0], layer(unet.down[2], e2))
    x = layer(unet.decoder[1], up(unet.up[0], x, e2))
    x = layer(unet.decoder[2], up(unet.up[1], x, e1))
    x = layer(unet.decoder[3], x)
    return layer(unet.decoder[4], up(unet.up[2], x, images))


def test_the_network_written_out():
    made = network(blocks=3)
    moving, fixed = pictures((40, 48), batch=2)
    features = plain_unet(made, torch.cat([moving, fixed], 1))
    starts = [
        0.5 * functional.conv2d(features, head.weight, padding=1)
        for head in (made.motion_head, made.appearance_head)
    ]
    maps = made(moving, fixed)
    torch.testing.assert_close(maps.u12, made.motion(starts[0]), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(maps.appearance, made.appearance(starts[1]).tanh(), rtol=1e-4, atol=1e-5)
    assert not maps.velocities_vox


@pytest.mark.parametrize(("dim", "shape"), [(2, (21, 35)), (3, (9, 17, 10))])
@torch.no_grad()
def test_images_of_any_size(dim, shape):
    maps = network(dim=dim)(*pictures(shape, batch=2))
    assert maps.u12.shape == (2, dim, *shape)
    assert maps.appearance.shape == (2, 1, *shape)
    assert maps.u21.shape == maps.u12.shape


def test_training_starts_from_next_to_no_motion():
    torch.manual_seed(0)
    maps = MetaRegNet(MetaRegNetConfig())(*pictures(SHAPE))
    for value in (maps.u12, maps.appearance):
        assert 0 < float(value.detach().abs().max()) < 0.05


def test_the_inverse_and_its_gradient():
    noise = torch.randn(1, 2, 6, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    u_vox = 2 * functional.interpolate(noise, SHAPE, mode="bicubic", align_corners=True)
    u_vox = u_vox.requires_grad_()
    maps = MetamorphicMaps(u_vox, torch.zeros(1, 1, *SHAPE, dtype=torch.float64))
    inside = (slice(None), slice(None), slice(8, -8), slice(8, -8))
    gap = compose(maps.u12, maps.u21)[inside]
    assert float(u_vox.detach()[inside].abs().max()) > 1
    assert float(gap.detach().norm(dim=1).max()) < 2e-3
    (gradient,) = torch.autograd.grad(maps.u21.square().sum(), u_vox)
    assert bool(gradient.any())
    assert torch.equal(maps.deformable("12"), maps.u12)
    assert torch.equal(maps.deformable("21"), maps.u21)
    with pytest.raises(UnknownNameError, match="way"):
        maps.deformable("13")


def test_composed_states_are_a_flow():
    """The same states as velocities of a seventh of the time: with short enough steps, without folds."""
    pair = pictures(SHAPE)
    plain, composed = (network(spread=0.8, compose=compose_)(*pair) for compose_ in (False, True))
    velocities = composed.velocities_vox
    assert len(velocities) == 7
    torch.testing.assert_close(7 * velocities[-1], plain.u12)
    torch.testing.assert_close(composed.appearance, plain.appearance)
    u_vox = velocities[0]
    for velocity in velocities[1:]:
        u_vox = u_vox + warp(velocity, u_vox)
    torch.testing.assert_close(composed.u12, u_vox)
    assert folded_percent(plain.u12) > 1
    finer = network(spread=0.8, compose=True, options=MetaRegNetOptions(substeps=8))(*pair)
    torch.testing.assert_close(finer.velocities_vox, velocities)
    assert folded_percent(finer.u12) < 0.1 * folded_percent(plain.u12)


def test_built_by_name():
    made = build_network(
        NetworkConfig("metaregnet", {"dim": 3, "blocks": 4}, {"checkpointing": True}), "bf16"
    )
    assert isinstance(made, MetaRegNet)
    assert (made.config.blocks, made.options.precision, made.options.checkpointing) == (4, "bfloat16", True)


def test_what_cannot_be():
    for sizes in ({"dim": 4}, {"encoder": ()}, {"up": (4, 4)}, {"decoder": (8, 8, 8, 4)}, {"blocks": 0}):
        with pytest.raises(SettingsError):
            MetaRegNetConfig(**{**SMALL, **sizes})
    with pytest.raises(UnknownNameError, match="norm"):
        MetaRegNetConfig(lipschitz="none")
    with pytest.raises(SettingsError, match="parts"):
        MetaRegNetOptions(substeps=0)
    made = network()
    one, other = pictures(SHAPE)
    with pytest.raises(ShapeError, match="one shape"):
        made(one, other[..., 1:])
    with pytest.raises(ShapeError, match="two images"):
        made(one[:, :, None], other[:, :, None])


# ---------------------------------------------------------------- one pair by heart


def tumour_pair():
    """A striped disc; bent and with a bright spot."""
    x, y = identity_vox((48, 48), torch.float32)[0] - 23.5
    radius = (x.square() + y.square()).sqrt()
    moving = torch.sigmoid((18 - radius) / 1.5) * (0.5 + 0.25 * torch.sin(x / 3) * torch.cos(y / 4))
    u_vox = torch.stack([2.5 * torch.exp(-(x.square() + (y - 4).square()) / 150), 1.5 * torch.sin(x / 12)])
    mask = (((x - 5).square() + (y + 6).square()) < 30).float()[None, None]
    moving = moving[None, None]
    fixed = torch.where(mask > 0, 1.0, warp(moving, u_vox[None]))
    return moving, fixed, mask


def test_it_learns_one_pair_by_heart():
    moving, fixed, mask = tumour_pair()
    torch.manual_seed(0)
    made = MetaRegNet(MetaRegNetConfig(encoder=(8, 16, 16), decoder=(16, 16, 16, 8, 8), up=(8, 8, 8)))
    optimiser = torch.optim.Adam(made.parameters())
    batch, healthy = Batch(moving, fixed, pathology=mask), 1 - mask
    start = (healthy * (fixed - moving).square()).sum()
    for step in range(240):
        optimiser.param_groups[0]["lr"] = 4e-3 * (1 - step / 240)
        maps = made(moving, fixed)
        loss, _ = objective()(maps, batch)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    with torch.no_grad():
        maps = made.eval()(moving, fixed)
        out = warp(moving, maps.u12) + maps.appearance * mask
    left = (healthy * (fixed - out).square()).sum()
    assert float(left) < 0.2 * float(start)
    assert folded_percent(maps.u12) < 0.2
    assert float((mask * (fixed - out).abs()).sum() / mask.sum()) < 0.1
