"""The convolutional pyramid: published sizes, level shapes, block orders, exchange of the images."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from DiffeoRegLib.errors import InputError, SettingsError
from DiffeoRegLib.networks.pyramid import AffineHead, Encoder, Head, Pyramid, PyramidConfig, parameter_count

LUMIR = (12, 32, 64, 128, 128, 128), (12, 64, 128, 256, 256, 256)
PUBLISHED = {
    "OASIS": (PyramidConfig((8, 40, 40, 40), (16, 72, 72, 72)), 1_196_820),
    "OASIS 5": (PyramidConfig((8, *[36] * 4), (16, *[62] * 4)), 1_234_615),
    "OASIS raw": (PyramidConfig((8, *[36] * 5, 48, 64, 88), (16, *[62] * 5), affine=True), 2_464_872),
    "LPBA40": (PyramidConfig((8, *[36] * 6), (16, *[62] * 6)), 1_847_745),
    "Lung250M": (PyramidConfig((8, *[36] * 5), (16, *[62] * 5)), 1_541_180),
    "LUMIR": (PyramidConfig(*LUMIR, groups=4, head_groups=4), 15_076_110),
    "MIR": (PyramidConfig((12, 16, 32, 64, 128, 128), LUMIR[1], head_groups=4), 12_898_510),
}
SMALL = {
    2: PyramidConfig((4, 6, 8), (6, 8), dim=2),
    3: PyramidConfig((4, 6, 8), (6, 8)),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_parameter_counts_of_the_published_models(name):
    config, count = PUBLISHED[name]
    with torch.device("meta"):
        assert parameter_count(Pyramid(config)) == count


@pytest.mark.parametrize("dim", [2, 3])
def test_levels_of_odd_images(dim):
    shape = (13, 10, 7)[:dim]
    features = Encoder(SMALL[dim])(torch.rand(2, 1, *shape))
    for level, values in enumerate(features):
        assert values.shape[1:] == (SMALL[dim].encoder[level], *[-(-n // 2**level) for n in shape])


@pytest.mark.parametrize("dim", [2, 3])
@pytest.mark.parametrize("groups", [0, 2])
def test_exchanged_features_exchange_the_controls_exactly(dim, groups):
    config = PyramidConfig((6,), (8,), dim=dim, head_groups=groups)
    head = Head(config, 6, 8)
    for shape in ((9, 7, 5), (14, 11, 13), (3, 2, 17)):
        z1, z2 = (torch.randn(1, 6, *shape[:dim]) for _ in range(2))
        forward, back = head(z1, z2)
        swapped = head(z2, z1)
        assert torch.equal(forward, swapped[1])
        assert torch.equal(back, swapped[0])
        assert not torch.equal(forward, back)


def test_the_split_convolution_is_the_one_of_the_paper():
    head = Head(SMALL[3], 6, 8)
    z1, z2 = torch.randn(2, 1, 6, 5, 6, 7)
    whole = nn.Sequential(head.first, nn.ReLU(), head.second, nn.ReLU(), head.last)
    for found, pair in zip(head(z1, z2), ((z1, z2), (z2, z1)), strict=True):
        expected = whole(torch.cat([pair[0] - pair[1], pair[0] + pair[1]], 1))
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_the_encoder_is_the_one_of_the_paper():
    encoder = Encoder(PyramidConfig((4, 6), (6,), dim=2))
    image = torch.rand(1, 1, 7, 8)
    residual = encoder.entry(image)
    first = encoder.blocks[0](residual)
    wider = [nn.functional.pad(x, (0, 0, 0, 1)) for x in (residual, first)]
    second = encoder.skip[0](nn.functional.avg_pool2d(wider[0], 2)) + encoder.down[0](wider[1])
    found = encoder(image)
    torch.testing.assert_close(found[0], first)
    torch.testing.assert_close(found[1], encoder.blocks[1](second))


def test_block_orders_differ_in_order_only():
    kinds = {}
    for order in ("conv-norm-act", "conv-act-norm"):
        encoder = Encoder(PyramidConfig((4,), (4,), order=order))
        kinds[order] = [type(layer).__name__ for layer in encoder.blocks[0]]
    assert kinds["conv-norm-act"] == ["Conv3d", "GroupNorm", "ReLU"] * 2
    assert kinds["conv-act-norm"] == ["Conv3d", "ReLU", "GroupNorm"] * 2


@pytest.mark.parametrize("dim", [2, 3])
def test_affine_head(dim):
    head = AffineHead(5, dim)
    z1, z2 = (torch.randn(3, 5, *[1] * dim) for _ in range(2))
    forward, back = head(z1, z2)
    assert forward.shape == (3, dim * (dim + 1))
    assert torch.equal(forward, head(z2, z1)[1])
    assert torch.equal(back, head(z2, z1)[0])
    # Both hidden layers work: in the published code of 2024 the first reaches nothing.
    forward.sum().backward()
    assert all(bool(p.grad.any()) for p in head.parameters())
    with pytest.raises(InputError, match="larger than this network"):
        head(*torch.randn(2, 1, 5, *[2] * dim))


@pytest.mark.parametrize(
    "wrong",
    [
        {"dim": 4}, {"heads": ()}, {"heads": (4, 4, 4)}, {"groups": 3}, {"head_groups": 3}, {"order": "norm"},
        {"affine_layers": 0},
    ],
)  # fmt: skip
def test_sizes_that_do_not_fit(wrong):
    with pytest.raises(SettingsError):
        PyramidConfig(**({"encoder": (4, 4), "heads": (4, 4)} | wrong))
