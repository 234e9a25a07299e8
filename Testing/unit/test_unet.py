"""The U-Net that other networks share: sizes, precision, checkpointing."""

from __future__ import annotations

import pytest
import torch

from DiffeoRegLib.errors import SettingsError, ShapeError, UnknownNameError
from DiffeoRegLib.networks.pyramid import parameter_count
from DiffeoRegLib.networks.unet import UNet, UNetConfig, UNetOptions

SMALL = {"encoder": (4, 6, 6), "final": (5,)}
DECODERS = {1: (7, 6, 6, 4), 2: (7, 6, 6), 4: (7, 6), 8: (7,)}


def small(stride=1, dim=2, **options):
    """A network with random weights drawn from one seed."""
    torch.manual_seed(0)
    config = UNetConfig(decoder=DECODERS[stride], dim=dim, stride=stride, **SMALL)
    return UNet(config, UNetOptions(**options))


def images(shape, seed=0):
    return torch.rand(1, 2, *shape, generator=torch.Generator().manual_seed(seed))


def conv(entering, leaving, dim):
    return 3**dim * entering * leaving + leaving


@pytest.mark.parametrize("dim", [2, 3])
def test_parameters_of_the_published_sizes(dim):
    """Encoder 2-16-32-32-32; each step up sees what came before and the skip of its stride."""
    layers = [(2, 16), (16, 32), (32, 32), (32, 32)]  # strides 2 to 16
    layers += [(32, 32), (64, 32), (64, 32), (48, 32)]  # strides 16 to 2
    half = UNetConfig(decoder=(32, 32, 32, 32), final=(16,), stride=2, dim=dim)
    assert parameter_count(UNet(half)) == sum(conv(*pair, dim) for pair in [*layers, (32, 16)])
    layers += [(34, 32), (32, 16), (16, 16)]  # full resolution, with both images
    assert parameter_count(UNet(UNetConfig(dim=dim))) == sum(conv(*pair, dim) for pair in layers)


@pytest.mark.parametrize("stride", DECODERS)
@pytest.mark.parametrize("shape", [(16, 24), (13, 1), (9, 11, 7)])
def test_any_size_gives_features_of_the_covering_grid(shape, stride):
    network = small(stride, len(shape))
    out = network(images(shape))
    assert tuple(out.shape) == (1, 5, *[-(-n // stride) for n in shape])


def test_filling_repeats_the_border_and_is_cropped_away():
    network, image = small(2), images((16, 16))
    image[:, :, 13:] = image[:, :, 12:13]
    torch.testing.assert_close(network(image[:, :, :13]), network(image)[:, :, :7], rtol=0, atol=0)


@pytest.mark.parametrize("stride", [1, 2])
def test_features_move_with_the_images(stride):
    """A shift by the coarsest stride: far from the border the features are the same numbers elsewhere."""
    network, image = small(stride), images((96, 96))
    moved = torch.roll(image, 8, 2)
    inner = slice(48 // stride, 56 // stride)
    before, after = network(image), network(moved)
    back = slice(inner.start - 8 // stride, inner.stop - 8 // stride)
    torch.testing.assert_close(after[:, :, inner, inner], before[:, :, back, inner], rtol=1e-5, atol=1e-6)
    assert float((after[:, :, inner, inner] - before[:, :, inner, inner]).detach().abs().max()) > 1e-3


@pytest.mark.parametrize("stride", [1, 2])
def test_checkpointing_changes_no_bit(stride):
    found = []
    for checkpointing in (False, True):
        network = small(stride, 3, checkpointing=checkpointing)
        runs = []
        network.down[0].register_forward_pre_hook(lambda *_, runs=runs: runs.append(1))
        out = network(images((8, 9, 10)))
        out.square().mean().backward()
        assert len(runs) == (2 if checkpointing else 1)  # once more for the gradient
        found.append([out.detach(), *[p.grad for p in network.parameters()]])
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))
    assert all(float(gradient.abs().max()) > 0 for gradient in found[0][1:])


def test_half_precision_stays_inside_and_near():
    exact, rounded = (small(2, 3, precision=p)(images((16, 16, 16))) for p in ("float32", "bfloat16"))
    assert rounded.dtype == torch.float32
    gap = float((exact - rounded).detach().abs().max() / exact.detach().abs().max())
    assert 1e-5 < gap < 0.03


def test_float64_stays():
    assert small().double()(images((8, 8)).double()).dtype == torch.float64


@pytest.mark.parametrize(
    ("sizes", "words"),
    [
        ({"dim": 4}, "2 or 3 dimensions"),
        ({"encoder": ()}, "an encoder level"),
        ({"final": (0,)}, "one channel"),
        ({"stride": 3}, "power of two"),
        ({"stride": 32}, "at most 16"),
        ({"stride": 2}, "decoder has 4 levels, not 5"),
        ({"slope": 1.5}, "slope"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(sizes, words):
    with pytest.raises(SettingsError, match=words):
        UNetConfig(**sizes)


def test_inputs_that_do_not_fit_are_refused():
    with pytest.raises(ShapeError, match="takes"):
        small()(images((8, 8))[:, :1])
    with pytest.raises(ShapeError, match="takes"):
        small()(images((8, 8, 8)))
    with pytest.raises(UnknownNameError):
        UNetOptions(precision="fp16")
