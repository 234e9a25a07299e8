"""The affine network: its coordinates, its steps and their composition, what it learns, what it refuses."""

from __future__ import annotations

import math

import pytest
import torch

from DiffeoRegLib.errors import SettingsError, ShapeError, UnknownNameError
from DiffeoRegLib.networks.affine_net import Affine, AffineNet, AffineNetConfig, AffineNetOptions
from DiffeoRegLib.networks.build import NetworkConfig, build_network
from DiffeoRegLib.networks.pyramid import parameter_count
from DiffeoRegLib.space.sample import identity_vox, warp

SMALL = {
    "shared": 3,
    "channels": (4, 5, 4),
    "strides": (1, 2, 1),
    "pooled": (2, 1, 1),
    "parts": 2,
    "hidden": 6,
}


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def small(dim=3, dtype=torch.float32, spread=0.05, spacing=None, **options):
    """A small network whose last layer, and so its answer, is random."""
    torch.manual_seed(1)
    network = AffineNet(AffineNetConfig(**SMALL, dim=dim, spacing=spacing), AffineNetOptions(**options))
    torch.nn.init.normal_(network.numbers.weight, std=spread)
    torch.nn.init.normal_(network.numbers.bias, std=spread)
    return network.to(dtype)


def images(shape, dtype=torch.float32):
    return tuple(torch.rand(1, 1, *shape, generator=generator(k), dtype=dtype) for k in (1, 2))


def random_affine(dim, seed, spread=0.2):
    numbers = torch.randn(2, dim, dim + 1, generator=generator(seed), dtype=torch.float64) * spread
    return Affine(torch.eye(dim, dtype=torch.float64) + numbers[..., :dim], numbers[..., dim])


def placed(affine, points, shape, spacing):
    """Where voxel positions (d, n) are mapped: in numbers that are written out here once more."""
    spacing = torch.tensor(spacing, dtype=torch.float64)
    size = torch.tensor(shape, dtype=torch.float64)
    half = (size * spacing).max() / 2
    middle = (size - 1) / 2
    place = (points.T - middle) * spacing / half
    moved = place @ affine.linear[0].T + affine.shift[0]
    return (moved * half / spacing + middle).T


# ---------------------------------------------------------------- coordinates and composition


@pytest.mark.parametrize(
    ("shape", "spacing"),
    [((9, 12, 7), (1.0, 1.0, 1.0)), ((8, 9, 11), (3.0, 1.0, 1.5)), ((9, 14), (2.0, 0.7))],
)
def test_a_composed_map_is_one_map_after_the_other(shape, spacing):
    """A = A1 A2 and b = A1 b2 + b1, against coordinates carried step by step; the other order differs."""
    outer, inner = random_affine(len(shape), 3), random_affine(len(shape), 4)
    points = identity_vox(shape, torch.float64, torch.device("cpu"))[0].flatten(1)
    wanted = placed(outer, placed(inner, points, shape, spacing), shape, spacing)
    found = points + outer.after(inner).u_vox(shape, spacing)[0].flatten(1)
    assert float((found - wanted).abs().max()) < 1e-6
    wrong = points + inner.after(outer).u_vox(shape, spacing)[0].flatten(1)
    assert float((wrong - wanted).abs().max()) > 0.1


def test_a_rotation_keeps_distances_in_mm_where_voxels_are_no_cubes():
    a, spacing, shape = math.radians(25), (3.0, 1.0, 1.5), (10, 30, 21)
    linear = torch.eye(3, dtype=torch.float64)
    linear[:2, :2] = torch.tensor([[math.cos(a), -math.sin(a)], [math.sin(a), math.cos(a)]])
    u_vox = Affine(linear[None], torch.zeros(1, 3, dtype=torch.float64)).u_vox(shape, spacing)
    size = torch.tensor(spacing, dtype=torch.float64).view(1, 3, 1, 1, 1)
    index = identity_vox(shape, torch.float64, torch.device("cpu"))
    before, after = (index * size)[0].flatten(1), ((index + u_vox) * size)[0].flatten(1)
    middle = (torch.tensor(shape, dtype=torch.float64) - 1) / 2 * torch.tensor(spacing, dtype=torch.float64)
    torch.testing.assert_close((after.T - middle).norm(dim=1), (before.T - middle).norm(dim=1))
    turned = (before.T - middle) @ linear.T + middle
    torch.testing.assert_close(after.T, turned)


def test_a_shift_of_one_is_half_of_the_longest_edge():
    """The longest edge is 40 voxels of 1 mm here; along an axis of 4 mm, its half is five voxels."""
    shift = torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]])
    u_vox = Affine(torch.eye(3).expand(2, 3, 3), shift).u_vox((6, 40, 10), (4.0, 1.0, 1.0))
    torch.testing.assert_close(u_vox[0, 0], torch.full((6, 40, 10), 5.0))
    torch.testing.assert_close(u_vox[1, 1], torch.full((6, 40, 10), 20.0))
    assert not u_vox[0, 1:].any()


# ---------------------------------------------------------------- the network


@pytest.mark.parametrize("dim", [2, 3])
def test_parameters_of_the_published_sizes(dim):
    pairs = [(1, 16), (32, 32), (32, 32), (32, 32), (32, 32), (32, 16), (16, 16), (16, 4)]
    numbers = dim * (dim + 1)
    wanted = sum(3**dim * a * b + b for a, b in pairs) + (4 * 4**dim + 1) * 32 + 33 * numbers
    assert parameter_count(AffineNet(AffineNetConfig(dim=dim))) == wanted


@pytest.mark.parametrize("shape", [(32, 24, 28), (17, 23, 9), (5, 3, 4), (33, 26), (7, 1)])
def test_untrained_it_says_the_identity_of_any_size(shape):
    network = build_network(NetworkConfig("affine-network", {"dim": len(shape)})).eval()
    with torch.no_grad():
        maps = network(*images(shape))
    for u_vox in (maps.u12, maps.u21):
        assert tuple(u_vox.shape) == (1, len(shape), *shape)
        assert not u_vox.any()
    assert torch.equal(maps.there.linear, torch.eye(len(shape))[None])


@pytest.mark.parametrize("dim", [2, 3])
def test_every_step_sees_the_image_warped_once_by_all_before_it(dim):
    shape, spacing = (12, 14, 10)[:dim], (1.0, 2.0, 1.5)[:dim]
    moving, fixed = images(shape)
    one = small(dim, spacing=spacing, test_steps=1).eval()
    total = one(moving, fixed).there
    for _ in range(2):
        seen = warp(moving, total.u_vox(shape, spacing))
        total = total.after(one(seen, fixed).there)
    several = small(dim, spacing=spacing, test_steps=3).eval()(moving, fixed).there
    torch.testing.assert_close(several.linear, total.linear)
    torch.testing.assert_close(several.shift, total.shift)
    assert not torch.allclose(several.linear, one(moving, fixed).there.linear, atol=1e-3)


def test_training_and_use_take_their_own_number_of_steps():
    pair = images((12, 14))
    network = small(2, steps=1, test_steps=2)
    once, twice = network.train()(*pair).there, network.eval()(*pair).there
    torch.testing.assert_close(once.linear, small(2, test_steps=1).eval()(*pair).there.linear)
    torch.testing.assert_close(twice.linear, small(2, test_steps=2).eval()(*pair).there.linear)
    assert not torch.equal(once.linear, twice.linear)
    growing = small(2, steps=2, several_from=10).train()
    for step, wanted in ((0, once), (9, once), (10, twice)):
        growing.at_step(step)
        torch.testing.assert_close(growing(*pair).there.linear, wanted.linear)


def test_the_way_back_is_the_network_on_exchanged_images():
    moving, fixed = images((10, 12, 8))
    network = small().eval()
    maps, exchanged = network(moving, fixed), network(fixed, moving)
    assert torch.equal(maps.affine("21").linear, exchanged.affine("12").linear)
    assert torch.equal(maps.u21, exchanged.u12)
    with pytest.raises(UnknownNameError):
        maps.affine("11")


def test_gradients_go_through_all_steps():
    """Against differences of the loss; a gradient of the last step alone would be another one."""
    shape = (9, 11)
    # Smooth pictures: the sampler is linear between voxels.
    moving, fixed = (torch.nn.functional.avg_pool2d(i, 5, 1, 2) for i in images(shape, torch.float64))
    network = small(2, torch.float64, spread=0.01, steps=3).train()

    def loss():
        return (warp(moving, network(moving, fixed).u12) - fixed).square().mean()

    loss().backward()
    bias, step = network.numbers.bias, 1e-6
    assert bias.grad is not None
    found = bias.grad.clone()
    for index in range(len(bias)):
        values = []
        for sign in (1, -1):
            with torch.no_grad():
                bias[index] += sign * step
                values.append(float(loss()))
                bias[index] -= sign * step
        assert float(found[index]) == pytest.approx((values[0] - values[1]) / (2 * step), rel=1e-3, abs=1e-8)


def test_it_learns_to_shift():
    """Blobs beside each other, up to a quarter of the picture apart."""
    torch.manual_seed(2)
    sizes = AffineNetConfig(8, channels=(16, 16, 8), strides=(2, 1, 1), pooled=(1, 1, 1), dim=2)
    network = AffineNet(sizes, AffineNetOptions(steps=2)).train()
    index = identity_vox((16, 16), torch.float32, torch.device("cpu"))
    draws = generator(5)

    def blobs():
        centre = 7.5 + 8 * (torch.rand(8, 2, 1, 1, generator=draws) - 0.5)
        return (-((index - centre) ** 2).sum(1, keepdim=True) / 12).exp()

    optimiser = torch.optim.Adam(network.parameters(), 3e-3)
    losses = []
    for _ in range(120):
        moving, fixed = blobs(), blobs()
        loss = (warp(moving, network(moving, fixed).u12) - fixed).square().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append((float(loss.detach()), float((moving - fixed).square().mean())))
    after, before = (sum(column[-20:]) for column in zip(*losses, strict=True))
    assert after < 0.4 * before, (after, before)


def test_half_precision_is_for_convolutions_only():
    pair = images((16, 12, 14))
    exact, rounded = small().eval()(*pair).there, small(precision="bfloat16").eval()(*pair).there
    assert rounded.linear.dtype == torch.float32
    assert not torch.equal(exact.linear, rounded.linear)
    torch.testing.assert_close(exact.linear, rounded.linear, atol=5e-3, rtol=0)


# ---------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("shapes", "said"),
    [
        (((1, 1, 8, 8, 8), (1, 1, 8, 8, 9)), "of one shape"),
        (((1, 1, 8, 8), (1, 1, 8, 8)), "3D shape"),
        (((1, 2, 8, 8, 8), (1, 2, 8, 8, 8)), "two images"),
    ],
)
def test_images_that_do_not_fit_are_refused(shapes, said):
    with pytest.raises(ShapeError, match=said):
        small()(*(torch.zeros(shape) for shape in shapes))


@pytest.mark.parametrize(
    ("sizes", "said"),
    [
        ({"dim": 4}, "2 or 3 dimensions"),
        ({"channels": [4, 5]}, "do not match"),
        ({"strides": [1, 3, 1, 1, 1, 1, 1]}, "1 or 2"),
        ({"shared": 0}, "one channel"),
        ({"spacing": [1.0, 2.0]}, "3 sizes"),
        ({"spacing": [1.0, 2.0, 0.0]}, "3 sizes"),
        ({"width": 3}, "width"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(sizes, said):
    with pytest.raises(SettingsError, match=said):
        build_network(NetworkConfig("affine-network", sizes))


@pytest.mark.parametrize(
    ("options", "said"),
    [({"steps": 0}, "1 to 16"), ({"several_from": -1}, "from 0 up"), ({"precision": "fp8"}, "precision")],
)
def test_options_that_make_no_sense_are_refused(options, said):
    with pytest.raises(SettingsError, match=said):
        build_network(NetworkConfig("affine-network", {}, options))
