"""How a grid of tokens is cut into windows that attend to themselves, and what must not be seen there.

An axis is filled up to whole windows and, in every other block, rolled by half a window.  Both put tokens
side by side that are not neighbours: a mask keeps them apart, and keeps the filling out.  Windows with the
same mask come one after the other, so that attention needs one small mask per kind of window, not per window.
Source: Liu et al., Swin Transformer, ICCV 2021, in any number of dimensions and for any size.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from DiffeoRegLib.errors import ShapeError
from DiffeoRegLib.space.filters import apply_axes, linear_resize_matrix

BLOCKED = -1e4
"""Added to what must not be seen: exactly nothing after the softmax, in every precision, and never NaN."""
FILLING = 2


@dataclass(frozen=True, eq=False)
class Windows:
    """A grid of tokens, flattened, and the windows it is cut into.

    order: (windows * size,) the token at every place of every window; places of the filling repeat token 0.
    back: (tokens,) the place where every token is found.
    size: places per window.  groups: how many windows follow one another, their mask (size, size) or None.
    pairs: (size * size,) row of the relative bias table of every pair of places.
    """

    order: Tensor
    back: Tensor
    size: int
    groups: tuple[tuple[int, Tensor | None], ...]
    pairs: Tensor


@lru_cache(maxsize=64)
@torch.inference_mode(False)
def windows_of(
    grid: tuple[int, ...], window: tuple[int, ...], shifted: bool, shift_lone: bool, device: torch.device
) -> Windows:
    """The windows of a grid; a window longer than an axis is cut to it, with the middle of its bias table.

    grid: tokens per axis.  window: of the weights, tokens per axis.  shifted: roll by half a window.
    shift_lone: roll also where one window holds a whole axis, which cuts that axis in two.
    Raises ShapeError for another number of axes.
    """
    if len(grid) != len(window):
        raise ShapeError(f"Windows of {len(window)} axes do not fit a grid of {len(grid)}.")
    used = tuple(min(n, w) for n, w in zip(grid, window, strict=True))
    axes = []
    for n, w, whole in zip(grid, used, window, strict=True):
        lone = n <= w and not (shift_lone and w == whole)
        axes.append(_Axis.of(n, w, w // 2 if shifted and not lone else 0))
    order, groups = _arranged(grid, axes)
    tokens = order >= 0
    places = torch.arange(len(order))
    back = torch.empty(int(tokens.sum()), dtype=torch.long)
    back[order[tokens]] = places[tokens]
    size = len(order) // sum(count for count, _ in groups)
    masks = tuple((count, None if mask is None else mask.to(device)) for count, mask in groups)
    return Windows(
        order.clamp(min=0).to(device), back.to(device), size, masks, window_pairs(used, window).to(device)
    )


@dataclass(frozen=True)
class _Axis:
    """Windows along one axis: token of every place (-1 = filling), its kind, and windows by their kinds."""

    tokens: Tensor
    kinds: Tensor
    alike: tuple[tuple[int, ...], ...]

    @classmethod
    def of(cls, n: int, window: int, shift: int) -> _Axis:
        full = -(-n // window) * window
        place = torch.arange(full)
        token = (place + shift) % full
        kind = (place + shift >= full).long()
        kind = torch.where(token >= n, FILLING, kind).view(-1, window)
        token = torch.where(token >= n, -1, token).view(-1, window)
        alike: dict[tuple[int, ...], list[int]] = {}
        for index, row in enumerate(kind.tolist()):
            alike.setdefault(tuple(row), []).append(index)
        return cls(token, kind, tuple(tuple(group) for group in alike.values()))


def _arranged(
    grid: Sequence[int], axes: Sequence[_Axis]
) -> tuple[Tensor, tuple[tuple[int, Tensor | None], ...]]:
    """Flat tokens of all windows, those with the same mask together, and the masks."""
    order, groups = [], []
    for kinds in itertools.product(*[axis.alike for axis in axes]):
        mask = _mask([axis.kinds[group[0]] for axis, group in zip(axes, kinds, strict=True)])
        count = 0
        for indices in itertools.product(*kinds):
            order.append(_flat(grid, [axis.tokens[i] for axis, i in zip(axes, indices, strict=True)]))
            count += 1
        groups.append((count, mask))
    return torch.cat(order), tuple(groups)


def _flat(grid: Sequence[int], tokens: Sequence[Tensor]) -> Tensor:
    """Index into the flattened grid of every place of one window, -1 in the filling."""
    flat, outside = torch.zeros(1, dtype=torch.long), torch.zeros(1, dtype=torch.bool)
    for n, token in zip(grid, tokens, strict=True):
        flat = flat[:, None] * n + token.clamp(min=0)
        outside = outside[:, None] | (token < 0)
        flat, outside = flat.flatten(), outside.flatten()
    return torch.where(outside, -1, flat)


def _mask(kinds: Sequence[Tensor]) -> Tensor | None:
    """(size, size): 0 where both places are of one kind along every axis, else BLOCKED; None = all are."""
    code = torch.zeros(1, dtype=torch.long)
    for kind in kinds:
        code = (code[:, None] * (FILLING + 1) + kind).flatten()
    apart = code[:, None] != code
    return torch.where(apart, BLOCKED, 0.0) if bool(apart.any()) else None


def window_pairs(used: Sequence[int], window: Sequence[int]) -> Tensor:
    """Row of the table (2 w - 1 per axis, flattened) for the offset from the second place to the first."""
    index = torch.zeros(1, 1, dtype=torch.long)
    for n, w in zip(used, window, strict=True):
        place = torch.arange(n)
        offset = place[:, None] - place + (w - 1)
        index = index[:, None, :, None] * (2 * w - 1) + offset[None, :, None, :]
        index = index.flatten(2).flatten(0, 1)
    return index.flatten()


def resized_table(table: Tensor, window: Sequence[int], wanted: Sequence[int]) -> Tensor:
    """A relative bias table for windows of another size, by linear interpolation; ends stay ends, 0 stays 0.

    table: (product of 2 w - 1, heads).  Raises ShapeError for a table of other windows.
    """
    rows, heads = table.shape
    lengths = [2 * w - 1 for w in window]
    if len(window) != len(wanted) or rows != math.prod(lengths):
        raise ShapeError(
            f"A table of {rows} rows is not one of windows {tuple(window)}, or not for {tuple(wanted)}."
        )
    values = table.T.reshape(1, heads, *lengths)
    matrices = []
    for w, want in zip(window, wanted, strict=True):
        step = (2 * w - 2) / (2 * want - 2) if want > 1 else 0.0
        start = 0.0 if want > 1 else w - 1.0
        matrices.append(linear_resize_matrix(2 * want - 1, 2 * w - 1, step, start, table.dtype, table.device))
    return apply_axes(values, matrices).flatten(2)[0].T.contiguous()
