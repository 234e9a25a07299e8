"""Synthetic weights in both layouts of the authors' SITReg code, and the forward pass they describe."""

from __future__ import annotations

import itertools

import torch
from torch.nn import functional

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
