"""GroupMorph: both forms, all-to-one and all-moving, what makes no difference, what the maps promise."""

from __future__ import annotations

import itertools

import pytest
import torch

from DiffeoRegLib.errors import SettingsError, ShapeError, UnknownNameError
from DiffeoRegLib.networks import group_unet
from DiffeoRegLib.networks.build import NetworkConfig, build_network
from DiffeoRegLib.networks.groupmorph import CLASSIC, GroupMaps, centred
from DiffeoRegLib.networks.pyramid import parameter_count
from DiffeoRegLib.networks.weights import network_of, read_checkpoint
from DiffeoRegLib.plain import as_plain
from DiffeoRegLib.space.field import compose
from DiffeoRegLib.space.filters import gaussian_smooth
from DiffeoRegLib.space.sample import warp
from DiffeoRegLib.training.checkpoint import write_checkpoint

SIZES = {"encoder": [4, 8], "decoder": [8, 8, 8], "final": [4], "dim": 2}
HALF = {"stride": 2, "decoder": [8, 8]}
STACK = {"form": "stack", "images": 4}
FORMS = [{}, STACK, HALF, {**STACK, **HALF}, {"times": True}, {**STACK, "presence": True}]
every_form = pytest.mark.parametrize(
    "changes", FORMS, ids=["set", "stack", "half", "half-stack", "times", "flags"]
)


def network_config(options=None, **changes):
    return NetworkConfig("groupmorph", {**SIZES, **changes}, options or {})


def small(options=None, seed=0, precision="fp32", **changes):
    """A network with random weights that moves images by some voxels, in evaluation mode."""
    torch.manual_seed(seed)
    network = build_network(network_config(options, **changes), precision)
    with torch.no_grad():
        network.mean.weight.normal_(std=0.3)
        network.variance.weight.normal_(std=0.1)
    return network.eval()


def group(count=4, shape=(22, 27), seed=0):
    return torch.rand(count, 1, *shape, generator=torch.Generator().manual_seed(seed))


def smooth_velocity(shape, largest, count=1, seed=0):
    """(count, d, *shape), float64, no component above `largest`, next to nothing at the border."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(count, len(shape), *shape, generator=generator, dtype=torch.float64)
    noise[..., :24, :] = noise[..., -24:, :] = 0
    noise[..., :24] = noise[..., -24:] = 0
    smooth = gaussian_smooth(noise, 8.0)
    return smooth * (largest / smooth.abs().max())


def conv(entering, leaving):
    return 27 * entering * leaving + leaving


def test_parameters_of_the_sizes_that_stand_in_for_the_papers():
    """A stack of six sees six channels, also in the last step up; a set four, and three times c to mix."""
    inner = [(16, 32), (32, 32), (32, 32), (32, 32), (64, 32), (64, 32), (48, 32), (32, 16), (16, 16)]
    shared = sum(conv(*pair) for pair in inner)
    stack = build_network(network_config(**CLASSIC, form="stack", images=6, dim=3))
    assert parameter_count(stack) == shared + conv(6, 16) + conv(38, 32) + 2 * conv(16, 18)
    one = build_network(network_config(**CLASSIC, dim=3))
    mixing = sum(3 * c * c + c for c in (16, 32, 32, 32))
    assert parameter_count(one) == shared + mixing + conv(4, 16) + conv(36, 32) + 2 * conv(16, 3)


@every_form
@pytest.mark.parametrize("fixed", [None, 2])
def test_shapes_and_what_stays(changes, fixed):
    """Test 25 of the specification: the fixed image is untouched bit for bit."""
    own = {"fixed": fixed} if changes.get("form") == "stack" else {}
    images = group()
    maps = small(**changes, **own)(images, fixed)
    grid = tuple(-(-n // changes.get("stride", 1)) for n in (22, 27))
    assert tuple(maps.velocity_vox.shape) == (4, 2, *grid)
    assert tuple(maps.u_vox.shape) == tuple(maps.inverse_vox.shape) == (4, 2, 22, 27)
    moving = [k for k in range(4) if k != fixed]
    assert maps.moving == moving
    assert len(maps.mean) == len(maps.log_variance) == len(moving)
    assert float(maps.u_vox[moving].detach().abs().max()) > 0.01
    if fixed is None:
        assert float(maps.velocity_vox.detach().mean(0).abs().max()) < 1e-6  # test 26
        assert float(maps.mean.detach().mean(0).abs().max()) > 1e-3
    else:
        assert torch.equal(maps.velocity_vox[moving], maps.mean)
        assert not bool(maps.u_vox[fixed].any())
        assert torch.equal(maps.warped(images)[fixed], images[fixed])
    torch.testing.assert_close(maps.warped(images), warp(images, maps.u_vox))
    torch.testing.assert_close(maps.u_of(1), maps.u_vox[1:2])
    torch.testing.assert_close(maps.inverse_of(3), maps.inverse_vox[3:4])


@pytest.mark.parametrize("fixed", [None, 0, 2])
def test_a_set_in_another_order_gives_the_same_in_that_order(fixed):
    network = small().double()
    images = group().double()
    maps = network(images, fixed)
    for order in itertools.islice(itertools.permutations(range(4)), 1, None, 7):
        other = network(images[list(order)], None if fixed is None else order.index(fixed))
        assert float((other.velocity_vox - maps.velocity_vox[list(order)]).detach().abs().max()) < 1e-10


def test_an_image_sees_the_others_and_knows_the_fixed_one():
    network, images = small(), group()
    maps = network(images)
    changed = images.clone()
    changed[3] = 1 - changed[3]
    assert float((network(changed).mean[0] - maps.mean[0]).detach().abs().max()) > 1e-3
    assert float((network(images, 1).mean[0] - network(images, 2).mean[0]).detach().abs().max()) > 1e-3


@pytest.mark.parametrize("form", ["set", "flags"])
@pytest.mark.parametrize("count", [2, 3, 5, 7])
def test_any_number_of_images_with_the_same_weights(form, count):
    network = small(**({} if form == "set" else {"form": "stack", "images": 7, "presence": True}))
    maps = network(group(count), None)
    assert len(maps.velocity_vox) == len(maps.mean) == count
    assert float(maps.velocity_vox.detach().mean(0).abs().max()) < 1e-6


def test_a_stack_of_two_with_one_fixed_is_a_network_of_pairs():
    """Test 25: both images on the channel axis in their order, one field."""
    network = small(form="stack", images=2, fixed=0)
    images = group(2)
    features = network.unet(torch.cat([images[:1], images[1:]], 1)[..., :20, :24])
    expected = 15 * torch.tanh(network.mean(features))
    maps = network(images[..., :20, :24])
    torch.testing.assert_close(maps.mean, expected)
    assert maps.fixed == 0
    assert tuple(maps.mean.shape) == (1, 2, 20, 24)


@pytest.mark.parametrize(
    "changes", [{}, HALF, {"dim": 3}, {"times": True}], ids=["2d", "half", "3d", "times"]
)
@pytest.mark.parametrize("fixed", [None, 1])
def test_image_by_image_is_all_at_once(changes, fixed, monkeypatch):
    """Without gradients a set is looked at one by one, its finest level in slabs of a few rows."""
    monkeypatch.setattr(group_unet, "SLAB_VOXELS", 40)
    network = small(**changes).double()
    images = group(3, (26, 23) if changes.get("dim") != 3 else (18, 10, 12)).double()
    whole = network(images, fixed)
    with torch.no_grad():
        alone = network(images, fixed)
    assert whole.mean.requires_grad
    assert not alone.mean.requires_grad
    for name in ("mean", "log_variance", "velocity_vox"):
        assert float((getattr(whole, name) - getattr(alone, name)).detach().abs().max()) < 1e-10
    assert float(whole.mean.abs().max()) > 0.3


@pytest.mark.parametrize("largest", [15.0, 5.0])
def test_the_flow_back_undoes_the_flow(largest):
    """Test 23: velocities of up to 15 voxels."""
    velocity = smooth_velocity((80, 96), largest)
    maps = GroupMaps(velocity, velocity, torch.zeros_like(velocity), (80, 96))
    error = compose(maps.u_vox, maps.inverse_vox).abs()
    assert float(error.mean()) < 0.02
    assert float(error.max()) < 0.4
    assert float(maps.u_vox.abs().max()) > 0.5 * largest


def test_without_a_flow_the_prediction_is_the_displacement():
    network = small(diffeomorphic=False, largest_vox=1.0)
    with torch.no_grad():
        network.mean.weight.mul_(0.05)
    maps = network(group())
    assert torch.equal(maps.u_vox, maps.velocity_vox)
    there_and_back = compose(maps.u_vox, maps.inverse_vox)[..., 4:-4, 4:-4]
    assert float(there_and_back.detach().abs().max()) < 2e-3


def test_a_common_shift_is_taken_out_or_not():
    draw = torch.randn(3, 2, 4, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    shifted = draw + 2.5
    assert float((centred(draw, None, True) - centred(shifted, None, True)).abs().max()) < 1e-12
    assert torch.equal(centred(shifted, None, False), shifted)
    # With a fixed image a shift is a motion.
    held = centred(shifted, 1, True)
    assert torch.equal(held[[0, 2, 3]], shifted)
    assert not bool(held[1].any())


@pytest.mark.parametrize("fixed", [None, 0])
def test_draws_have_the_variance_the_maps_state(fixed):
    torch.manual_seed(0)
    log_variance = torch.randn(3 - (fixed is not None), 1, 2, 3).double()
    mean = torch.zeros_like(log_variance)
    maps = GroupMaps(centred(mean, fixed, True), mean, log_variance, (2, 3), fixed=fixed)
    generator = torch.Generator().manual_seed(1)
    draws = torch.stack([maps.drawn(generator).velocity_vox for _ in range(4000)])
    torch.testing.assert_close(draws.var(0), maps.variance, rtol=0.12, atol=0)
    assert maps.drawn(torch.Generator().manual_seed(2)).fixed == fixed


def test_training_draws_and_evaluation_does_not():
    network = small().train()
    images = group()
    torch.manual_seed(4)
    first, second = network(images, 0), network(images, 0)
    assert torch.equal(first.mean, second.mean)
    assert not torch.equal(first.velocity_vox, second.velocity_vox)
    apart = (first.velocity_vox[1:] - first.mean) / (0.5 * first.log_variance).exp()
    assert float(apart.detach().std()) == pytest.approx(1, abs=0.05)
    network.eval()
    assert torch.equal(network(images, 0).velocity_vox, network(images, 0).velocity_vox)


def test_an_untrained_network_moves_nothing_and_is_sure_to_an_eighth_of_a_voxel():
    torch.manual_seed(0)
    maps = build_network(network_config(**CLASSIC)).eval()(group())
    assert float(maps.u_vox.detach().abs().max()) < 0.01
    assert float((0.5 * maps.log_variance).exp().mean()) == pytest.approx(0.1347, abs=1e-3)


def test_a_crop_sees_what_the_whole_volume_sees():
    """Test 26 in 2D: at an offset that the levels divide, far from the borders of the crop."""
    network = small().double()
    images = group(3, (160, 160)).double()
    whole = network(images, 0).mean
    crop = network(images[..., 32:144, 32:144], 0).mean
    assert float((whole[..., 72:104, 72:104] - crop[..., 40:72, 40:72]).abs().max()) < 1e-9
    shifted = network(images[..., 33:145, 33:145], 0).mean
    assert float((whole[..., 73:105, 73:105] - shifted[..., 40:72, 40:72]).abs().max()) > 1e-3


def test_a_crop_of_a_volume_sees_what_the_whole_sees(monkeypatch):
    """Test 26 in 3D, image by image with the finest level in slabs, as it is run."""
    monkeypatch.setattr(group_unet, "SLAB_VOXELS", 56 * 56 * 12)
    network = small(dim=3)
    images = group(3, (72, 72, 64))
    with torch.no_grad():
        whole = network(images).mean
        crop = network(images[..., 8:64, 8:64, :56]).mean
        shifted = network(images[..., 9:65, 8:64, :56]).mean
    assert float(whole.abs().max()) > 1
    inner = whole[..., 28:44, 28:44, 20:36]
    assert float((inner - crop[..., 20:36, 20:36, 20:36]).abs().max()) < 1e-4
    assert float((inner - shifted[..., 19:35, 20:36, 20:36]).abs().max()) > 1e-3


def test_a_margin_of_edge_values():
    network, images = small({"margin_vox": 8}), group(3, (20, 24))
    padded = torch.nn.functional.pad(images, [8, 8, 8, 8], mode="replicate")
    torch.testing.assert_close(network(images).mean, small()(padded).mean[..., 8:28, 8:32])
    network.train()
    torch.testing.assert_close(network(images).mean, small()(images).mean)


@every_form
def test_precision_and_odd_images(changes):
    """Test 27: float32 against float64; constant and black images."""
    network, images = small(**changes), group()
    single = network(images).u_vox
    double = small(**changes).double()(images.double()).u_vox
    assert float((single - double).abs().max()) < 1e-3
    images[0], images[1] = 0.0, 0.7
    maps = network.train()(images)
    maps.u_vox.square().mean().backward()
    assert bool(maps.u_vox.isfinite().all())
    assert all(bool(p.grad.isfinite().all()) for p in network.parameters() if p.grad is not None)


def test_half_precision_is_for_the_convolutions_alone():
    maps, half = (small(precision=p)(group()) for p in ("fp32", "bf16"))
    assert half.mean.dtype == half.log_variance.dtype == torch.float32
    assert 0 < float((maps.mean - half.mean).detach().abs().max()) < 0.5
    with torch.no_grad():
        alone = small(precision="bf16")(group())
    assert float((alone.mean - half.mean).detach().abs().max()) < 0.2


def test_times_tell_a_series_from_a_heap():
    network, images = small(times=True), group()
    even = network(images)
    torch.testing.assert_close(network(images, None, (0, 1 / 3, 2 / 3, 1)).mean, even.mean)
    assert float((network(images, None, (0, 0.1, 0.2, 1)).mean - even.mean).detach().abs().max()) > 1e-3
    with pytest.raises(SettingsError, match="as many times"):
        network(images, None, (0, 1))


@every_form
def test_weights_are_kept_with_their_description(changes, tmp_path):
    network, images = small(**changes), group()
    description = {"kind": "weights", "network": as_plain(network_config(**changes))}
    write_checkpoint(tmp_path / "w.safetensors", network.state_dict(), description)
    again = network_of(read_checkpoint(tmp_path / "w.safetensors"), "w")
    assert torch.equal(again(images).u_vox, network(images).u_vox)


def test_what_does_not_fit_is_refused():
    network, stack = small(), small(**STACK)
    images = group()
    for wrong in (images[:1], images[0], images.expand(4, 2, 22, 27)):
        with pytest.raises(ShapeError, match="two images or more"):
            network(wrong)
    with pytest.raises(SettingsError, match="0 to 3"):
        network(images, 4)
    with pytest.raises(SettingsError, match="stack of 4 images, not 3"):
        stack(images[:3])
    with pytest.raises(SettingsError, match="fixed image None"):
        stack(images, 1)
    with pytest.raises(SettingsError, match="stack of 4"):
        small(**STACK, presence=True)(group(5))
    for changes, words in (
        ({"images": 3}, "per call"),
        ({"form": "stack"}, "two images"),
        ({**STACK, "times": True}, "no times"),
        ({**STACK, "fixed": 4}, "numbered from 0"),
        ({"largest_vox": 0.0}, "above 0"),
        ({"channels_in": 2}, "one channel"),
        ({"decoder": [8], "stride": 4}, "two decoder levels"),
        ({"decoder": [8, 8]}, "3 levels"),
    ):
        with pytest.raises(SettingsError, match=words):
            build_network(network_config(**changes))
    with pytest.raises(UnknownNameError, match="form"):
        build_network(network_config(form="heap"))
    for options in ({"squarings": 50}, {"margin_vox": -1}):
        with pytest.raises(SettingsError):
            build_network(network_config(options))
