"""A synthetic TransMorph-TVF state dictionary with the published names, and the forward pass they describe.

The pass is written from the names alone: whole windows by reshaping, masks from slices of the rolled grid.
"""

from __future__ import annotations

import itertools

import torch
from torch.nn import functional

EMBED, DEPTHS, HEADS, WINDOW, STEPS, INNER, MLP = 4, (1, 2, 1, 2), (1, 1, 2, 2), (2, 2, 2), 2, 3, 2
SHAPE = (64, 64, 64)


def offsets(window):
    """Row of the bias table for every pair of places of a window."""
    places = torch.tensor(list(itertools.product(*[range(w) for w in window])))
    row = torch.zeros(len(places), len(places), dtype=torch.long)
    for axis, w in enumerate(window):
        row = row * (2 * w - 1) + places[:, None, axis] - places[None, :, axis] + w - 1
    return row


class PublishedTVF:
    """Random weights by their published names, and what the published code of 2022 makes of two images."""

    def __init__(self, seed=3):
        self.generator = torch.Generator().manual_seed(seed)
        self.state = {}
        self.add("transformer.patch_embed.proj", (EMBED, 2, 4, 4, 4))
        self.add("transformer.patch_embed.norm", (EMBED,))
        for stage, depth in enumerate(DEPTHS):
            c, place = EMBED * 2**stage, f"transformer.layers.{stage}"
            for index in range(depth):
                self.add_block(f"{place}.blocks.{index}", c, HEADS[stage])
            if stage + 1 < len(DEPTHS):
                self.add(f"{place}.downsample.norm", (8 * c,))
                self.add(f"{place}.downsample.reduction", (2 * c, 8 * c), bias=False)
            self.add(f"transformer.norm{stage}", (c,))
        for level in range(3):
            c = EMBED * 2 ** (2 - level)
            self.add(f"up{level}.conv1.0", (c, 3 * c, 3, 3, 3), bias=False)
            self.add(f"up{level}.conv2.0", (c, c, 3, 3, 3), bias=False)
        for t in range(STEPS):
            self.add(f"cs.{t}.0", (EMBED // 2, 2, 3, 3, 3), bias=False)
            self.add(f"up3s.{t}.conv1.0", (INNER, EMBED + EMBED // 2, 3, 3, 3), bias=False)
            self.add(f"up3s.{t}.conv2.0", (INNER, INNER, 3, 3, 3), bias=False)
            self.add(f"reg_heads.{t}.0", (3, INNER, 3, 3, 3), spread=0.06)
        for name, size in (("", SHAPE), ("_down", [n // 2 for n in SHAPE])):
            axes = [torch.arange(n, dtype=torch.float32) for n in size]
            self.state[f"spatial_trans{name}.grid"] = torch.stack(torch.meshgrid(*axes, indexing="ij"))[None]

    def add(self, name, shape, bias=True, spread=0.3):
        center = 1.0 if len(shape) == 1 else 0.0
        self.state[f"{name}.weight"] = torch.randn(shape, generator=self.generator) * spread + center
        if bias:
            self.state[f"{name}.bias"] = torch.randn(shape[:1], generator=self.generator) * spread

    def add_block(self, place, c, heads):
        self.add(f"{place}.norm1", (c,))
        rows = int(offsets(WINDOW).max()) + 1
        table = torch.randn(rows, heads, generator=self.generator)
        self.state[f"{place}.attn.relative_position_bias_table"] = table
        self.state[f"{place}.attn.relative_position_index"] = offsets(WINDOW)
        self.add(f"{place}.attn.qkv", (3 * c, c), bias=False)
        self.add(f"{place}.attn.proj", (c, c))
        self.add(f"{place}.norm2", (c,))
        self.add(f"{place}.mlp.fc1", (MLP * c, c))
        self.add(f"{place}.mlp.fc2", (c, MLP * c))

    def linear(self, x, name):
        return functional.linear(x, self.state[f"{name}.weight"], self.state.get(f"{name}.bias"))

    def norm(self, x, name):
        return functional.layer_norm(
            x, x.shape[-1:], self.state[f"{name}.weight"], self.state[f"{name}.bias"]
        )

    def conv(self, x, name):
        y = functional.conv3d(x, self.state[f"{name}.weight"], padding=1)
        return functional.leaky_relu(functional.instance_norm(y))

    def attended(self, x, place, heads, shifted):
        """Tokens (1, *grid, C); every grid holds whole windows."""
        grid, c = x.shape[1:-1], x.shape[-1]
        shifts = [w // 2 if shifted else 0 for w in WINDOW]
        if shifted:
            x = x.roll([-s for s in shifts], (1, 2, 3))
        label = torch.zeros(grid)
        ranges = [
            (slice(0, -w), slice(-w, -(w // 2)), slice(-(w // 2), None)) for w in WINDOW
        ]  # as the published code cuts the rolled grid
        for number, part in enumerate(itertools.product(*ranges)):
            label[part] = number
        windows, labels = self.cut(x, c), self.cut(label[None, ..., None], 1)[..., 0]
        q, k, v = (
            self.linear(windows, f"{place}.qkv").view(*windows.shape[:2], 3, heads, -1).permute(2, 0, 3, 1, 4)
        )
        table = self.state[f"{place}.relative_position_bias_table"]
        scores = (q * (c // heads) ** -0.5) @ k.transpose(-1, -2) + table[offsets(WINDOW)].permute(2, 0, 1)
        if shifted:
            scores = scores - 100.0 * (labels[:, None, :, None] != labels[:, None, None, :])
        out = (scores.softmax(-1) @ v).transpose(1, 2).reshape(windows.shape)
        out = self.joined(self.linear(out, f"{place}.proj"), grid)
        return out.roll(shifts, (1, 2, 3)) if shifted else out

    def cut(self, x, c):
        sides = [side for n, w in zip(x.shape[1:-1], WINDOW, strict=True) for side in (n // w, w)]
        return x.reshape(*sides, c).permute(0, 2, 4, 1, 3, 5, 6).flatten(3, 5).flatten(0, 2)

    def joined(self, windows, grid):
        counts = [n // w for n, w in zip(grid, WINDOW, strict=True)]
        return windows.view(*counts, *WINDOW, -1).permute(0, 3, 1, 4, 2, 5, 6).reshape(1, *grid, -1)

    def features(self, images):
        """Of all stages, finest first."""
        patch = "transformer.patch_embed"
        x = functional.conv3d(
            images, self.state[f"{patch}.proj.weight"], self.state[f"{patch}.proj.bias"], stride=4
        )
        x, found = self.norm(x.movedim(1, -1), f"{patch}.norm"), []
        for stage, depth in enumerate(DEPTHS):
            for index in range(depth):
                place = f"transformer.layers.{stage}.blocks.{index}"
                x = x + self.attended(
                    self.norm(x, f"{place}.norm1"), f"{place}.attn", HEADS[stage], index % 2
                )
                hidden = functional.gelu(self.linear(self.norm(x, f"{place}.norm2"), f"{place}.mlp.fc1"))
                x = x + self.linear(hidden, f"{place}.mlp.fc2")
            found.append(self.norm(x, f"transformer.norm{stage}").movedim(-1, 1))
            if stage + 1 < len(DEPTHS):
                corners = [
                    (0, 0, 0),
                    (1, 0, 0),
                    (0, 1, 0),
                    (0, 0, 1),
                    (1, 1, 0),
                    (1, 0, 1),
                    (0, 1, 1),
                    (1, 1, 1),
                ]
                parts = [x[:, a::2, b::2, c::2] for a, b, c in corners]
                place = f"transformer.layers.{stage}.downsample"
                x = self.linear(self.norm(torch.cat(parts, -1), f"{place}.norm"), f"{place}.reduction")
        return found

    def up(self, x, skip, name):
        wide = functional.interpolate(x, scale_factor=2, mode="trilinear", align_corners=False)
        return self.conv(self.conv(torch.cat([wide, skip], 1), f"{name}.conv1.0"), f"{name}.conv2.0")

    def warp(self, values, u_vox):
        """With positions scaled for centres at the ends and read as if faces were there."""
        axes = [torch.arange(n, dtype=torch.float32) for n in values.shape[2:]]
        position = torch.stack(torch.meshgrid(*axes, indexing="ij"))[None] + u_vox
        scaled = [2 * (position[:, a] / (n - 1) - 0.5) for a, n in enumerate(values.shape[2:])]
        return functional.grid_sample(values, torch.stack(scaled[::-1], -1), align_corners=False)

    def velocities(self, moving, fixed):
        """All velocities, and the displacement on the full grid that the published code makes of them."""
        images = torch.cat([moving, fixed], 1)
        features = self.features(images)
        x = features.pop()
        for level in range(3):
            x = self.up(x, features.pop(), f"up{level}")
        halves = functional.avg_pool3d(images, 3, stride=2, padding=1)
        moved, total, found = halves[:, :1], 0, []
        for t in range(STEPS):
            context = self.conv(torch.cat([moved, halves[:, 1:]], 1), f"cs.{t}.0")
            head = self.up(x, context, f"up3s.{t}")
            name = f"reg_heads.{t}.0"
            v = functional.conv3d(head, self.state[f"{name}.weight"], self.state[f"{name}.bias"], padding=1)
            found.append(v)
            total = total + self.warp(v, v)
            moved = self.warp(halves[:, :1], total)
        return found, functional.interpolate(total, scale_factor=2, mode="trilinear", align_corners=False)
