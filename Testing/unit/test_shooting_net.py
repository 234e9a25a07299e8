"""The networks that predict a momentum: sizes, the start, what looks and exchange mean, the gradients."""

from __future__ import annotations

import math

import pytest
import torch

from DiffeoRegLib.errors import SettingsError, ShapeError, UnknownNameError
from DiffeoRegLib.flows.exponential import exp
from DiffeoRegLib.flows.shooting import ShootingDiverged
from DiffeoRegLib.networks.build import NetworkConfig, build_network
from DiffeoRegLib.networks.momentum_net import MomentumNet
from DiffeoRegLib.networks.preweight_net import LIMIT, PreweightNet
from DiffeoRegLib.networks.pyramid import parameter_count
from DiffeoRegLib.networks.shooting_net import squarings_for
from DiffeoRegLib.networks.shooting_sizes import ShootingOptions, ShootingSizes, on_map_grid, sharpened
from DiffeoRegLib.space.field import compose, downsample_image, upsample_field
from DiffeoRegLib.space.sample import warp
from Testing.momentum_cases import NAMES, lively, pictures, sizes_of, small, with_looks

# ---------------------------------------------------------------- the momentum


def test_parameters_of_the_published_momentum_network():
    """Layer by layer as section 3 of the specification lists them; groups halve what a layer sees."""
    conv = [
        (1, 16), (8, 32), (16, 32), (32, 32), (32, 64), (64, 64), (64, 64), (64, 128), (128, 128), (128, 128),
        (128, 256), (256, 256), (256, 128), (128, 128), (128, 32), (32, 32), (64, 16), (16, 3),
    ]  # fmt: skip
    up = [(256, 128), (128, 64), (32, 32)]
    expected = sum(27 * a * b + b for a, b in conv) + sum(8 * a * b + b for a, b in up)
    assert parameter_count(MomentumNet(3)) == expected == 5_917_347
    assert parameter_count(MomentumNet(3, 0.5)) == 1_480_211


@pytest.mark.parametrize("shape", [(21, 18), (32, 16), (9, 20, 13)])
def test_images_are_continued_and_not_resized(shape):
    """The momentum of an image is that of the image continued by its border, at its own voxels."""
    torch.manual_seed(0)
    network = MomentumNet(len(shape), 0.25)
    torch.nn.init.normal_(network.last[1].weight)
    one, other = pictures(shape, batch=2)
    found = network(one, other)
    assert tuple(found.shape) == (2, len(shape), *[-(-n // 2) for n in shape])
    sides = [side for n in reversed(shape) for side in (0, -n % 16)]
    filled = [torch.nn.functional.pad(image, sides, mode="replicate") for image in (one, other)]
    whole = network(*filled)[(slice(None), slice(None), *[slice(-(-n // 2)) for n in shape])]
    torch.testing.assert_close(found, whole, rtol=1e-4, atol=1e-5)


def test_the_images_are_encoded_apart_at_first():
    """What the first layers make of one image does not depend on the other."""
    torch.manual_seed(0)
    network = MomentumNet(2, 0.5)
    one, other = pictures((16, 16))
    changed = torch.cat([one, other + 1], 1)
    before, after = (network.halved[0](network.first(x)) for x in (torch.cat([one, other], 1), changed))
    half = before.shape[1] // 2
    assert torch.equal(before[:, :half], after[:, :half])
    assert not torch.equal(before[:, half:], after[:, half:])


def test_a_momentum_is_read_where_the_map_grid_has_its_voxels():
    """Cell-centred: map voxel j of stride s sits at s(j + 1/2) - 1/2 of the images, so a ramp stays one."""
    shape, strides = torch.Size((18, 20, 16)), (1, 3, 2)
    place = torch.meshgrid(*[2 * (torch.arange(-(-n // 2)) + 0.5) - 0.5 for n in shape], indexing="ij")
    ramp = (3 * place[0] - 2 * place[1] + place[2])[None, None]
    found = on_map_grid(ramp, strides, shape)
    wanted = torch.meshgrid(
        *[s * (torch.arange(-(-n // s)) + 0.5) - 0.5 for n, s in zip(shape, strides, strict=True)],
        indexing="ij",
    )
    expected = (3 * wanted[0] - 2 * wanted[1] + wanted[2])[None, None]
    inner = (..., slice(1, -1), slice(1, -1), slice(None))
    torch.testing.assert_close(found[inner], expected[inner])


def test_sharpening_gives_back_what_the_kernels_take_away():
    """On waves of the periodic grid it is (1 + f) over K^ + f; constants stay, and 0 means none."""
    sizes = ShootingSizes((33, 33), (0.125, 0.25), (1.0, 3.0), sharpening=0.1)
    assert sizes.strides == (2, 2)
    place = 2 * math.pi * torch.arange(16, dtype=torch.float64) / 16
    wave = torch.cos(3 * place)[:, None].expand(16, 16)
    x = torch.stack([wave, torch.ones(16, 16, dtype=torch.float64)])[None]
    frequency = 3 / (16 * 2 / 32)
    gain = sum(c * math.exp(-2 * (math.pi * s * frequency) ** 2) for c, s in ((0.25, 0.125), (0.75, 0.25)))
    expected = torch.stack([wave * 1.1 / (gain + 0.1), x[0, 1]])[None]
    torch.testing.assert_close(sharpened(sizes, x), expected)
    plain = ShootingSizes((33, 33), (0.125, 0.25), (1.0, 3.0))
    assert sharpened(plain, x) is x


@pytest.mark.parametrize("name", NAMES)
def test_a_sharpened_momentum_moves_further(name):
    pair = pictures((32, 36))
    plain, sharp = (lively(small(name, sharpening=s), 0.05)(*pair).u12.detach() for s in (0.0, 0.05))
    assert float(sharp.abs().max()) > 1.2 * float(plain.abs().max())


# ---------------------------------------------------------------- pre-weights


def test_pre_weights_start_near_the_common_shares_and_stay_within_their_limit():
    torch.manual_seed(0)
    network = PreweightNet(2, (0.2, 0.3, 0.5))
    one, other = pictures((17, 22), batch=2)
    h = network(one, other)
    assert tuple(h.shape) == (2, 3, 17, 22)
    torch.testing.assert_close(h.square().sum(1), torch.ones(2, 17, 22))
    shares = torch.tensor([0.2, 0.3, 0.5]).view(1, 3, 1, 1)
    assert 0 < float((h.square() - shares).abs().max().detach()) < 0.1
    torch.nn.init.constant_(network.norm.weight, 1000.0)
    ratio = network(one, other).square() / shares
    # A share changes by a factor within exp(+-LIMIT) before all are brought to sum 1, two by its square.
    assert float((ratio.amax(1) / ratio.amin(1)).max().detach()) <= torch.tensor(2 * LIMIT).exp() * 1.001


def test_constant_pre_weights_are_lddmm():
    """An output of 0 gives the common shares everywhere, and then both networks make the same maps."""
    regional = lively(small("rdmm-network", most_momentum=1e4))
    torch.nn.init.zeros_(regional.preweights.norm.weight)
    single = small("lddmm-network")
    single.momentum.load_state_dict(regional.momentum.state_dict())
    pair = pictures((32, 36))
    one, other = (network(*pair).u12.detach() for network in (regional, single))
    assert float(one.abs().max()) > 1
    torch.testing.assert_close(one, other, rtol=0, atol=2e-4)
    torch.nn.init.constant_(regional.preweights.norm.weight, 1.0)
    assert float((regional(*pair).u12.detach() - other).abs().max()) > 0.01


def test_the_momentum_of_rdmm_is_limited():
    network = lively(small("rdmm-network", most_momentum=0.7), largest=50.0)
    momentum = network(*pictures((32, 36))).look("12").momentum
    assert 0.69 < float(momentum.abs().max().detach()) <= 0.7


# ---------------------------------------------------------------- maps


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("shape", [(21, 18), (32, 33), (17, 20, 19)])
def test_untrained_networks_move_next_to_nothing_at_any_size(name, shape):
    maps = small(name, len(shape))(*pictures(shape, batch=2))
    assert tuple(maps.u12.shape) == tuple(maps.u21.shape) == (2, len(shape), *shape)
    assert 0 < float(maps.u12.detach().abs().max()) < 0.2


@pytest.mark.parametrize("name", NAMES)
def test_exchanging_the_images_exchanges_the_maps(name):
    network = lively(small(name))
    one, other = pictures((26, 30))
    with torch.no_grad():
        first, second = network(one, other), network(other, one)
        assert torch.equal(first.u21, second.u12)
        assert torch.equal(first.u12, second.u21)
    assert not torch.equal(first.u12, first.u21)


@pytest.mark.parametrize("name", NAMES)
def test_a_second_look_goes_on_from_the_first(name):
    """It sees the moving image as the first left it, and its map is applied to fixed points first."""
    network = lively(small(name))
    one, other = pictures((32, 36))
    with torch.no_grad():
        both = network(one, other)
        (first,) = both.earlier
        alone = with_looks(network, 1)(one, other)
        assert torch.equal(first.u12, alone.u12)
        assert alone.earlier == ()
        again = network(warp(one, alone.u12), other)
        torch.testing.assert_close(both.u12, compose(alone.u12, again.u12))
    assert float((both.u12 - alone.u12).abs().max()) > 0.05


def test_the_second_look_comes_at_its_step_of_training():
    network = small("lddmm-network")
    network.options = ShootingOptions(looks=2, second_look_from=3)
    assert network.looks == 2  # nobody trains it
    for step, looks in ((0, 1), (2, 1), (3, 2)):
        network.at_step(step)
        assert network.looks == looks
        assert len(network(*pictures((20, 22))).earlier) == looks - 1


def test_the_velocity_of_vsvf_flows_backwards_in_the_map():
    network = with_looks(lively(small("vsvf-network")), 1)
    with torch.no_grad():
        maps = network(*pictures((32, 36)))
        look = maps.look("12")
        u_vox = exp(-look.velocity_vox, squarings_for(look.velocity_vox))
        torch.testing.assert_close(maps.u12, upsample_field(u_vox, (2, 2), (32, 36)))
    with pytest.raises(UnknownNameError):
        maps.look("13")


def test_images_move_with_the_momentum_and_lddmm_undoes_itself_with_minus_of_it():
    network = with_looks(small("lddmm-network"), 1)
    with torch.no_grad():
        network.momentum.last[1].bias.copy_(torch.tensor([0.3, 0.0]))
        u_vox = network(*pictures((32, 36))).u12
    middle = u_vox[0, :, 12:20, 12:24]
    assert float(middle[0].max()) < -1  # the map looks back
    assert float(middle[1].abs().max()) < 0.3 * float(middle[0].abs().max())


def test_kernels_are_as_wide_on_images_of_every_size():
    network = small("lddmm-network")
    metrics = [network.metric(torch.zeros(1, 2, *shape)) for shape in ((16, 18), (30, 11))]
    assert metrics[0].spacing == metrics[1].spacing == pytest.approx((2 / 31, 2 / 35))
    assert network.metric(torch.zeros(1, 2, 16, 18)) is metrics[0]  # kept


@pytest.mark.parametrize("name", NAMES)
def test_the_kinetic_energy_is_momentum_times_velocity_in_sides_of_the_box(name):
    network = lively(small(name))
    look = network(*pictures((32, 36), batch=2)).look("12")
    v = look.velocity_vox * torch.tensor(network.sizes.map_spacing).view(1, 2, 1, 1)
    expected = (look.momentum * v).sum(1).flatten(1).mean(1)
    torch.testing.assert_close(look.kinetic, expected)
    assert float(expected.min().detach()) > 0


# ---------------------------------------------------------------- gradients


@pytest.mark.parametrize("name", NAMES)
def test_every_weight_gets_a_gradient(name):
    network = lively(small(name)).train()
    one, other = pictures((32, 36))
    maps = network(one, other)
    (warp(one, maps.u12) - other).square().mean().backward()
    without = [key for key, p in network.named_parameters() if p.grad is None or not bool(p.grad.any())]
    assert without == []
    assert all(bool(p.grad.isfinite().all()) for p in network.parameters())


@pytest.mark.parametrize("name", NAMES)
def test_gradients_are_those_of_differences(name):
    """Along one direction of all weights, in double precision."""
    network = with_looks(lively(small(name)), 2).double()
    one, other = (image.double() for image in pictures((18, 20)))

    def loss():
        return (network(one, other).u12 ** 2).mean()

    value = loss()
    value.backward()
    generator = torch.Generator().manual_seed(3)
    way = [torch.randn(p.shape, generator=generator, dtype=p.dtype) for p in network.parameters()]
    slope = sum(float((p.grad * w).sum()) for p, w in zip(network.parameters(), way, strict=True))
    step, found = 1e-7, []
    with torch.no_grad():
        for sign in (1, -2):
            for p, w in zip(network.parameters(), way, strict=True):
                p.add_(w, alpha=sign * step)
            found.append(float(loss()))
    assert (found[0] - found[1]) / (2 * step) == pytest.approx(slope, rel=5e-3)  # kinks of the ReLUs


def test_half_precision_is_for_the_convolutions_alone():
    pair = pictures((32, 36))
    network = lively(small("rdmm-network"))
    full = network(*pair)
    network.options = ShootingOptions(precision="bfloat16")
    half = network(*pair)
    assert half.u12.dtype == half.look("12").momentum.dtype == torch.float32
    gap = float((full.u12 - half.u12).detach().abs().max())
    assert 0 < gap < 0.1 * float(full.u12.detach().abs().max())


def test_half_precision_has_the_gradients_of_full_precision():
    """Where the images are a few voxels at the coarsest level some convolutions came out infinite."""
    torch.manual_seed(0)
    network = MomentumNet(3, 0.5)
    pair = pictures((32, 32, 16))
    found = []
    for half in (False, True):
        network.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            network(*pair).square().mean().sqrt().backward()
        found.append(torch.cat([p.grad.flatten() for p in network.parameters()]))
    assert bool(found[1].isfinite().all())
    assert float((found[0] - found[1]).norm()) < 0.1 * float(found[0].norm())


# ---------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"box": [32]}, "2 or 3 sides"),
        ({"box": [6, 32]}, "8 voxels"),
        ({"sigmas": [0.01, 0.2]}, "0.31 voxels wide"),
        ({"sigmas": [0.0, 0.2]}, "above zero"),
        ({"weights": [1.0]}, "as many weights"),
        ({"weights": [0.0, 0.0]}, "not all 0"),
        ({"width": 0.0}, "width of a momentum network"),
        ({"most_momentum": 0.0}, "above zero"),
        ({"sharpening": -0.1}, "at least 0"),
        ({"wdth": 1.0}, "Did you mean 'width'"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(changes, words):
    with pytest.raises(SettingsError, match=words):
        build_network(NetworkConfig("rdmm-network", {**sizes_of(), **changes}))


def test_a_regulariser_is_not_predicted_of_one_kernel_or_of_a_share_of_nothing():
    for changes in ({"sigmas": [0.2], "weights": [1.0]}, {"weights": [0.0, 1.0]}):
        with pytest.raises(SettingsError, match="shares above 0"):
            small("rdmm-network", **changes)
        assert small("lddmm-network", **changes).sizes.shares[-1] == 1


@pytest.mark.parametrize("options", [{"looks": 3}, {"looks": 0}, {"steps": 0}, {"second_look_from": -1}])
def test_options_that_make_no_sense_are_refused(options):
    with pytest.raises(SettingsError):
        ShootingOptions(**options)


def test_images_that_do_not_fit_are_refused():
    network = small("rdmm-network")
    with pytest.raises(ShapeError, match="2D images"):
        network(torch.rand(1, 1, 20, 20, 20), torch.rand(1, 1, 20, 20, 20))
    with pytest.raises(ShapeError, match="one shape"):
        network(torch.rand(1, 1, 20, 20), torch.rand(1, 1, 20, 22))


@pytest.mark.parametrize("name", NAMES)
def test_a_motion_no_step_can_follow_is_said(name):
    network = small(name, looks=1, most_momentum=1e9)
    with torch.no_grad():
        network.momentum.last[1].bias.fill_(float("nan"))
    with pytest.raises(ShootingDiverged, match="NaN"):
        network(*pictures((20, 22)))
    with torch.no_grad():
        network.momentum.last[1].bias.fill_(1e7)
    with pytest.raises(ShootingDiverged, match="needs"):
        network(*pictures((20, 22)))


def test_sizes_say_where_the_map_lives():
    sizes = ShootingSizes(**{key: tuple(v) if isinstance(v, list) else v for key, v in sizes_of(3).items()})
    assert (sizes.dim, sizes.strides, sizes.shares) == (3, (2, 2, 2), (0.25, 0.75))
    assert ShootingSizes((48, 64, 48), (0.1, 0.2), (1.0, 1.0)).strides == (2, 3, 2)
    like = torch.zeros(1, 1, 17, 20, 19)
    assert tuple(downsample_image(like, sizes.strides).shape[2:]) == (9, 10, 10)
