"""Published weights: both layouts give the numbers of the published order of operations, or an error."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch.nn import functional

from DiffeoRegLib.errors import FileFormatError
from DiffeoRegLib.networks.sitreg_options import SITRegOptions
from DiffeoRegLib.networks.sitreg_weights import import_published, read_published

ENCODER, HEADS, NORMALISED = (4, 6, 8), (6, 4), (4, 6)
LEVELS = "_not_none_dense_extration_networks"


def numbers(shape, generator):
    return torch.randn(shape, generator=generator) * 0.3


class Published:
    """A synthetic state dictionary, and the published forward pass read from it by name."""

    def __init__(self, recent, dim=3, affine=True, head_groups=0):
        self.recent, self.dim, self.head_groups = recent, dim, head_groups
        self.state = {}
        self.generator = torch.Generator().manual_seed(3)
        unit = ".conv" if recent else ""
        features = "_feature_extractor"
        self.add(f"{features}.initial_projection", ENCODER[0], 1, 1)
        self.add_block(
            f"{features}.{'initial_convs' if recent else 'initial_conv'}", ENCODER[0], ENCODER[0], True
        )
        for i, (before, after) in enumerate(itertools.pairwise(ENCODER)):
            place = f"{features}.downsampling_blocks.{i}"
            self.add(f"{place}.downsampling{unit}", after, before, 2)
            self.add(f"{place}.projection{unit}", after, before, 1)
            self.add_block(f"{place}.{'conv' if recent else 'double_conv'}", after, after, True)
        for i, channels in enumerate(HEADS):
            inside = "convolutions" if recent else "_convolution_block"
            self.add_block(f"{LEVELS}.{i}.{inside}", 2 * ENCODER[i], channels, bool(head_groups))
            self.add(
                f"{LEVELS}.{i}.{'final_convolution.conv' if recent else '_final_conv'}", dim, channels, 1
            )
            if not recent:
                self.add_kernels(i)
        if affine:
            layers = (
                ("linears.0", "linears.1", "final_linear")
                if recent
                else ("_linear_1", "_linear_2", "_final_linear")
            )
            for name, rows in zip(layers, (16, 16, dim * (dim + 1)), strict=True):
                self.state[f"_affine_extraction_network.{name}.weight"] = numbers((rows, 16), self.generator)
                self.state[f"_affine_extraction_network.{name}.bias"] = numbers((rows,), self.generator)
        if recent:
            for name in (
                "_image_coordinate_system",
                "_feature_coordinate_systems.0",
                f"{LEVELS}.0._feature_coordinate_system",
            ):
                self.state[f"{name}._indicator"] = torch.empty(0)

    def add(self, name, rows, columns, size):
        self.state[f"{name}.weight"] = numbers((rows, columns, *[size] * self.dim), self.generator)
        self.state[f"{name}.bias"] = numbers((rows,), self.generator)

    def add_block(self, name, before, after, normalised):
        for n, columns in enumerate((before, after)):
            self.add(f"{name}.convolutions.{n}{'.conv' if self.recent else ''}", after, columns, 3)
            if normalised:
                norm = f"{name}.{'normalizers' if self.recent else 'normalizer_modules'}.{n}"
                self.state[f"{norm}.weight"] = numbers((after,), self.generator) + 1
                self.state[f"{norm}.bias"] = numbers((after,), self.generator)

    def add_kernels(self, level):
        stride = 2**level
        taps = 4 * stride - stride % 2
        place = ((torch.arange(taps) - (taps - 1) / 2) / stride).abs()
        near, far = 2 / 3 - place**2 + place**3 / 2, (2 - place).clamp(min=0) ** 3 / 6
        for axis in range(self.dim):
            kernel = torch.where(place < 1, near, far)
            self.state[f"{LEVELS}.{level}._upsampler.upsampling_kernels.{axis}"] = kernel

    def conv(self, x, name, **how):
        convolve = functional.conv2d if self.dim == 2 else functional.conv3d
        return convolve(x, self.state[f"{name}.weight"], self.state[f"{name}.bias"], **how)

    def block(self, x, name, groups):
        for n in range(2):
            x = self.conv(x, f"{name}.convolutions.{n}{'.conv' if self.recent else ''}", padding=1)
            norm = f"{name}.{'normalizers' if self.recent else 'normalizer_modules'}.{n}"
            if not self.recent:
                x = x.relu()
            if groups:
                x = functional.group_norm(x, groups, self.state[f"{norm}.weight"], self.state[f"{norm}.bias"])
            if self.recent:
                x = x.relu()
        return x

    def features(self, image):
        unit = ".conv" if self.recent else ""
        features = "_feature_extractor"
        skip = self.conv(image, f"{features}.initial_projection")
        found = [self.block(skip, f"{features}.{'initial_convs' if self.recent else 'initial_conv'}", 2)]
        pool = functional.avg_pool2d if self.dim == 2 else functional.avg_pool3d
        for i in range(len(ENCODER) - 1):
            place = f"{features}.downsampling_blocks.{i}"
            down = self.conv(found[-1], f"{place}.downsampling{unit}", stride=2)
            skip = self.conv(pool(skip, 2), f"{place}.projection{unit}") + down
            found.append(self.block(skip, f"{place}.{'conv' if self.recent else 'double_conv'}", 2))
        return found

    def controls(self, level, z1, z2):
        name = f"{LEVELS}.{level}"
        x = torch.cat([z1 - z2, z1 + z2], 1)
        x = self.block(
            x, f"{name}.{'convolutions' if self.recent else '_convolution_block'}", self.head_groups
        )
        return self.conv(x, f"{name}.{'final_convolution.conv' if self.recent else '_final_conv'}")

    def affine(self, z1, z2):
        x = torch.cat([(z1 - z2).flatten(1), (z1 + z2).flatten(1)], 1)
        layers = ("linears.1", "final_linear") if self.recent else ("_linear_1", "_linear_2", "_final_linear")
        for name in layers:
            place = f"_affine_extraction_network.{name}"
            x = functional.linear(x, self.state[f"{place}.weight"], self.state[f"{place}.bias"])
            x = x if name.endswith("final_linear") else x.relu()
        return x


@torch.no_grad()
@pytest.mark.parametrize("dim", [2, 3])
@pytest.mark.parametrize(("recent", "head_groups"), [(False, 0), (True, 0), (True, 2)])
def test_imported_weights_compute_what_they_did(recent, dim, head_groups):
    published = Published(recent, dim, head_groups=head_groups)
    network = import_published(published.state, head_groups=head_groups)
    one, other = torch.rand(2, 1, 1, *[8] * dim)
    features = [published.features(image) for image in (one, other)]
    for mine, theirs in zip(network.pyramid.encoder(one), features[0], strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-5)
    for level, head in enumerate(network.pyramid.heads):
        z1, z2 = (of_image[level] for of_image in features)
        expected = published.controls(level, z1, z2), published.controls(level, z2, z1)
        torch.testing.assert_close(head(z1, z2), expected, rtol=1e-4, atol=1e-4)
    z1, z2 = (torch.rand(1, 8, *[1] * dim) for _ in range(2))
    expected = published.affine(z1, z2), published.affine(z2, z1)
    torch.testing.assert_close(network.pyramid.affine(z1, z2), expected, rtol=1e-4, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("recent", [False, True])
def test_a_checkpoint_file(recent, tmp_path):
    state = Published(recent, affine=False).state
    torch.save({"registration_network": state, "optimizer": {"state": {}}}, tmp_path / "published.pt")
    network = read_published(tmp_path / "published.pt", options=SITRegOptions(fast=True))
    assert not network.training
    assert network.options.fast
    assert network.config.order == ("conv-norm-act" if recent else "conv-act-norm")
    maps = network(*torch.rand(2, 1, 1, 12, 11, 13))
    assert bool(maps.u12.isfinite().all())


def test_files_that_are_no_checkpoint(tmp_path):
    whole = tmp_path / "whole.pt"
    torch.save({"registration_network": Published(True).state}, whole)
    (tmp_path / "cut.pt").write_bytes(whole.read_bytes()[:2000])
    (tmp_path / "text.pt").write_text("weights", encoding="utf-8")
    torch.save({"network": {}}, tmp_path / "other.pt")
    torch.save([1, 2], tmp_path / "list.pt")
    for name, sentence in (
        ("cut", "cannot be read"), ("text", "cannot be read"), ("none", "cannot be read"),
        ("other", "not a checkpoint"), ("list", "not a checkpoint"),
    ):  # fmt: skip
        with pytest.raises(FileFormatError, match=sentence):
            read_published(tmp_path / f"{name}.pt")


def altered(recent, change):
    state = dict(Published(recent).state)
    change(state)
    return state


@pytest.mark.parametrize("recent", [False, True])
def test_nothing_may_be_missing_left_over_or_altered(recent):
    last = f"{LEVELS}.1.{'final_convolution.conv' if recent else '_final_conv'}"
    down = f"_feature_extractor.downsampling_blocks.0.downsampling{'.conv' if recent else ''}"
    cases = {
        "lack 'extra": lambda s: s.pop(f"{last}.bias"),
        "which no SITReg network": lambda s: s.update({"extra.weight": torch.zeros(1)}),
        "SITReg network their other": lambda s: s.update({f"{down}.weight": torch.zeros(6, 4, 3, 3, 3)}),
        "not finite": lambda s: s.update({f"{last}.bias": torch.full((3,), float("nan"))}),
        "no convolution": lambda s: s.pop("_feature_extractor.initial_projection.weight"),
        "at 0 of 3 levels": lambda s: [s.pop(name) for name in list(s) if name.startswith(LEVELS)],
    }
    for sentence, change in cases.items():
        with pytest.raises(FileFormatError, match=sentence.replace("'extra", f"'{last}")):
            import_published(altered(recent, change))


def test_heads_of_2023_are_not_normalised():
    with pytest.raises(FileFormatError, match="heads of 2023"):
        import_published(Published(False).state, head_groups=2)


def test_other_constants_are_another_network():
    kernel = f"{LEVELS}.1._upsampler.upsampling_kernels.0"
    with pytest.raises(FileFormatError, match="upsampling_kernels"):
        import_published(altered(False, lambda s: s.update({kernel: s[kernel] * 1.01})))
    marker = "_image_coordinate_system._indicator"
    with pytest.raises(FileFormatError, match="_indicator"):
        import_published(altered(True, lambda s: s.update({marker: torch.zeros(3)})))
