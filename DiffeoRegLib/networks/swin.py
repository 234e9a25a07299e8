"""Swin transformer in 2D or 3D: features of a stack of images at strides of 4, 8, 16 and 32 voxels.

Tokens are patches of the images; each attends to the tokens of its window, windows are moved by half their
size in every other block, and from stage to stage 2^d tokens become one.  Windows, masks: see `windows.py`.
Source: Liu et al., Swin Transformer, ICCV 2021, in the form of Chen et al., TransMorph, Medical Image
Analysis 2022.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from DiffeoRegLib.errors import SettingsError, ShapeError
from DiffeoRegLib.networks.unet import convolution
from DiffeoRegLib.networks.windows import Windows, windows_of

TABLE_SPREAD = 0.02


@dataclass(frozen=True)
class SwinConfig:
    """Sizes of the transformer.

    embed: channels of the first stage, doubled from stage to stage.  depths, heads: blocks and heads of
    attention per stage.  window: tokens per axis.  patch: voxels per token and axis.  mlp_ratio: hidden over
    other channels.
    drop_path: how often the last block is left out in training; earlier ones in proportion to their place.
    shift_lone: windows move also where one holds a whole axis, as in the published networks.
    Raises SettingsError for sizes that do not fit.
    """

    embed: int = 96
    depths: tuple[int, ...] = (2, 2, 4, 2)
    heads: tuple[int, ...] = (4, 4, 8, 8)
    window: tuple[int, ...] = (5, 6, 7)
    channels_in: int = 2
    patch: int = 4
    mlp_ratio: int = 4
    drop_path: float = 0.3
    shift_lone: bool = False

    def __post_init__(self) -> None:
        if len(self.window) not in (2, 3) or min(self.window) < 1:
            raise SettingsError(f"Windows have 2 or 3 sides of at least one token, not {self.window}.")
        if len(self.depths) != len(self.heads) or len(self.depths) < 2 or min(self.depths) < 1:
            raise SettingsError("A transformer needs two stages or more, each with its blocks and heads.")
        if min((self.embed, self.channels_in, self.patch, self.mlp_ratio)) < 1:
            raise SettingsError(
                "A transformer needs at least one channel everywhere, and a patch of a voxel."
            )
        for channels, heads in zip(self.channels, self.heads, strict=True):
            if heads < 1 or channels % heads:
                raise SettingsError(f"{channels} channels do not split into {heads} heads.")
        if not 0 <= self.drop_path < 1:
            raise SettingsError(f"Blocks are left out with a share in [0, 1), not {self.drop_path}.")

    @property
    def dim(self) -> int:
        """2 or 3."""
        return len(self.window)

    @property
    def channels(self) -> tuple[int, ...]:
        """Of the features of every stage."""
        return tuple(self.embed * 2**stage for stage in range(len(self.depths)))

    @property
    def coarsest(self) -> int:
        """Voxels per token of the last stage: images are filled up to a multiple of it."""
        return int(self.patch * 2 ** (len(self.depths) - 1))


class Swin(nn.Module):
    """The transformer; its images have sides that are multiples of `coarsest`."""

    def __init__(self, config: SwinConfig, checkpointing: bool = False) -> None:
        super().__init__()
        self.config, self.checkpointing = config, checkpointing
        patch = config.patch
        self.embed = convolution(config.dim)(config.channels_in, config.embed, patch, stride=patch)
        self.embed_norm = nn.LayerNorm(config.embed)
        rates = _rates(config)
        self.stages = nn.ModuleList(
            nn.ModuleList(_Block(config, stage, rates.pop(0)) for _ in range(depth))
            for stage, depth in enumerate(config.depths)
        )
        self.merge = nn.ModuleList(_Merge(c, config.dim) for c in config.channels[:-1])
        self.norms = nn.ModuleList(nn.LayerNorm(c) for c in config.channels)

    def forward(self, images: Tensor) -> list[Tensor]:
        """(N, channels_in, *shape) to a list of (N, C_k, *shape / (patch 2^k)), finest first.

        Raises ShapeError for other channels, axes or sides.
        """
        config = self.config
        if images.dim() != config.dim + 2 or images.shape[1] != config.channels_in:
            raise ShapeError(
                f"This network takes (N, {config.channels_in}, *{config.dim}D shape), "
                f"not {tuple(images.shape)}."
            )
        if any(n % config.coarsest for n in images.shape[2:]):
            raise ShapeError(
                f"Sides must be multiples of {config.coarsest} voxels, not {tuple(images.shape[2:])}."
            )
        x = self.embed_norm(self.embed(images).movedim(1, -1))
        features: list[Tensor] = []
        for stage, blocks in enumerate(self.stages):
            if stage:
                x = self.merge[stage - 1](x)
            x = self._stage(blocks, x)
            features.append(self.norms[stage](x).movedim(-1, 1))
        return features

    def _stage(self, blocks: nn.Module, x: Tensor) -> Tensor:
        """Tokens (N, *grid, C) after all blocks of a stage."""
        grid, config = tuple(x.shape[1:-1]), self.config
        flat = x.flatten(1, -2)
        for index, block in enumerate(blocks.children()):
            windows = windows_of(grid, config.window, index % 2 == 1, config.shift_lone, x.device)
            if self.checkpointing and torch.is_grad_enabled():
                flat = checkpoint(block, flat, windows, use_reentrant=False)
            else:
                flat = block(flat, windows)
        return flat.view(x.shape)


class Attention(nn.Module):
    """Attention within windows with a bias for every offset between two places."""

    def __init__(self, channels: int, heads: int, window: tuple[int, ...]) -> None:
        super().__init__()
        self.heads = heads
        self.table = nn.Parameter(torch.zeros(math.prod(2 * w - 1 for w in window), heads))
        nn.init.trunc_normal_(self.table, std=TABLE_SPREAD)
        self.qkv = nn.Linear(channels, 3 * channels, bias=False)
        self.proj = nn.Linear(channels, channels)

    def forward(self, x: Tensor, windows: Windows) -> Tensor:
        """(N, tokens, channels) to the same shape."""
        batch, _, channels = x.shape
        size = windows.size
        placed = self.qkv(_Placed.apply(x, windows.order, windows.back))  # type: ignore[no-untyped-call]
        placed = placed.view(batch, -1, size, 3, self.heads, channels // self.heads)
        bias = self.table[windows.pairs].view(size, size, self.heads).permute(2, 0, 1)
        found = []
        for (count, mask), part in zip(
            windows.groups, placed.split([count for count, _ in windows.groups], 1), strict=True
        ):
            added = (bias if mask is None else bias + mask)[None].to(part.dtype)
            query, key, value = part.flatten(0, 1).permute(2, 0, 3, 1, 4).unbind(0)
            seen = _attended(query, key, value, added)
            found.append(seen.transpose(1, 2).reshape(batch, count * size, channels))
        tokens = _Back.apply(torch.cat(found, 1), windows.back)  # type: ignore[no-untyped-call]
        out: Tensor = self.proj(tokens)
        return out


class _Placed(torch.autograd.Function):
    """Tokens at the places of all windows.  Nothing sees the filling: no gradient comes from there.

    The gradient is a reading, too: torch would add up row by row, as if a token were read more than once.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, order: Tensor, back: Tensor) -> Tensor:
        ctx.back = back
        return x.index_select(1, order)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        return grads[0].index_select(1, ctx.back), None, None


class _Back(torch.autograd.Function):
    """The other way: what stands at the places of all windows, for every token."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, back: Tensor) -> Tensor:
        ctx.back, ctx.shape = back, x.shape
        return x.index_select(1, back)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return grads[0].new_zeros(ctx.shape).index_copy_(1, ctx.back, grads[0]), None


def _attended(query: Tensor, key: Tensor, value: Tensor, added: Tensor) -> Tensor:
    """Attention with something added to every score, all (windows, heads, size, channels).

    torch's own is the faster one, but for a gradient on a CPU, where it takes many more passes.
    """
    if query.device.type != "cpu" or not (torch.is_grad_enabled() and query.requires_grad):
        return functional.scaled_dot_product_attention(query, key, value, attn_mask=added)
    scores = (query * query.shape[-1] ** -0.5) @ key.transpose(-1, -2)
    shares: Tensor = scores.add_(added).softmax(-1)
    return shares.to(value.dtype) @ value


class _Block(nn.Module):
    """Attention and a perceptron, each after a normalisation and around it a residual way."""

    def __init__(self, config: SwinConfig, stage: int, drop_path: float) -> None:
        super().__init__()
        channels, hidden = config.channels[stage], config.channels[stage] * config.mlp_ratio
        self.norm1 = nn.LayerNorm(channels)
        self.attention = Attention(channels, config.heads[stage], config.window)
        self.norm2 = nn.LayerNorm(channels)
        self.mlp = nn.Sequential(nn.Linear(channels, hidden), nn.GELU(), nn.Linear(hidden, channels))
        self.drop_path = drop_path

    def forward(self, x: Tensor, windows: Windows) -> Tensor:
        """(N, tokens, channels) to the same shape."""
        x = x + self._kept(self.attention(self.norm1(x), windows))
        return x + self._kept(self.mlp(self.norm2(x)))

    def _kept(self, x: Tensor) -> Tensor:
        """In training nothing, for some of the batch, and more for the others: the mean stays."""
        if not self.training or self.drop_path == 0:
            return x
        kept = 1 - self.drop_path
        return x * (torch.empty(len(x), 1, 1, dtype=x.dtype, device=x.device).bernoulli_(kept) / kept)


class _Merge(nn.Module):
    """2^d neighbours to one token of twice the channels."""

    def __init__(self, channels: int, dim: int) -> None:
        super().__init__()
        # The order of the published networks: by how many axes are odd, earlier axes first.
        self.corners = sorted(
            itertools.product((0, 1), repeat=dim), key=lambda o: (sum(o), [-step for step in o])
        )
        self.norm = nn.LayerNorm(channels * 2**dim)
        self.reduce = nn.Linear(channels * 2**dim, 2 * channels, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(N, *grid, C) to (N, *grid / 2, 2 C)."""
        parts = [x[(slice(None), *[slice(o, None, 2) for o in corner])] for corner in self.corners]
        out: Tensor = self.reduce(self.norm(torch.cat(parts, -1)))
        return out


def _rates(config: SwinConfig) -> list[float]:
    """How often each block is left out."""
    last = sum(config.depths) - 1
    return [config.drop_path * index / last for index in range(last + 1)]
