"""Residual blocks of bounded slope that act on a field: the steps of R2Net and MetaRegNet.

One block: x + 1/2 tanh(W2 * lrelu(W1 * x)), W1 a convolution of 3^d and W2 one of 1^d, both between as many
channels as x has, without bias and spectrally normalised.  It adds at most 1/2 to every component.  Nothing
is sampled or composed in it.

A kernel is normalised in one of two ways:
* `flattened`, as published: divided by the spectral norm of its (channels out, 3^d channels in) matrix.  This
  is not the norm of the convolution, which is up to 5.2 times as large in 3D, so nothing follows about the
  slope of a block.  The published code follows the norm by one power iteration per pass of training, which
  lags behind where singular values cross; a matrix of so few rows lets it be found anew every time.
* `exact`: divided by a bound of the norm of the convolution where that exceeds 1; the slope of what a block
  adds is then at most 1/2.
A block that can be inverted as a map between fields may still give a field that folds space.

Convolutions of two or three channels leave most of a processor idle.  Several branches are therefore run at
once, and groups of neighbouring columns count as channels: the same numbers, several times as fast.
Sources: Joshi and Hong, R2Net, MIDL 2022; Wang, Joshi and Hong, MetaRegNet, 2023; Miyato et al., Spectral
normalization, ICLR 2018; Sedghi et al., The singular values of convolutional layers, ICLR 2019 (exact norms).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from DiffeoRegLib.errors import SettingsError, UnknownNameError

Lipschitz = Literal["flattened", "exact"]
LIPSCHITZ: tuple[Lipschitz, ...] = ("exact", "flattened")
MOST_BLOCKS = 32
TAPS = 3
"""Of W1, per axis."""
COLUMNS = 4
"""Neighbours along the last axis that become channels."""
SQUARINGS = 9
FREQUENCIES = {2: 32, 3: 16}
"""At so many per axis the exact norm is looked for, by dimension."""
STEP = 0.5
"""What a block adds at most."""


class SpectralKernel(nn.Module):
    """The kernel of a convolution, normalised when called.

    dim: 2 or 3.  channels: in and out.  taps: per axis.  kind: see the head of this file.
    """

    def __init__(self, dim: int, channels: int, taps: int, kind: Lipschitz = "flattened") -> None:
        super().__init__()
        self.kind = kind
        self.weight = nn.Parameter(torch.empty(channels, channels, *[taps] * dim))
        nn.init.kaiming_normal_(self.weight)

    def forward(self) -> Tensor:
        """(channels, channels, *taps)."""
        if self.kind == "exact":
            return self.weight / norm_bound(self.weight).clamp(min=1.0)
        norm = flattened_norm(self.weight)
        return self.weight / norm.clamp(min=torch.finfo(norm.dtype).tiny)


class LipschitzBlock(nn.Module):
    """One block for fields of so many channels; see the head of this file."""

    def __init__(self, dim: int, channels: int, kind: Lipschitz = "flattened", slope: float = 0.2) -> None:
        super().__init__()
        self.slope = slope
        self.first = SpectralKernel(dim, channels, TAPS, kind)
        self.second = SpectralKernel(dim, channels, 1, kind)

    def forward(self, x: Tensor) -> Tensor:
        """(N, channels, *shape) to the same."""
        convolve = functional.conv2d if x.dim() == 4 else functional.conv3d
        inner = functional.leaky_relu(convolve(x, self.first(), padding=TAPS // 2), self.slope)
        return x + STEP * convolve(inner, self.second()).tanh()


class Branch(nn.ModuleList):
    """Blocks with weights of their own, one after the other.

    Raises SettingsError for sizes that cannot be, UnknownNameError for an unknown kind.
    """

    def __init__(
        self, dim: int, channels: int, count: int, kind: Lipschitz = "flattened", slope: float = 0.2
    ) -> None:
        if dim not in (2, 3) or channels < 1 or not 1 <= count <= MOST_BLOCKS or not 0 <= slope < 1:
            raise SettingsError(
                f"A branch has 1 to {MOST_BLOCKS} blocks in 2 or 3 dimensions, at least one channel, and a "
                "slope below zero in [0, 1)."
            )
        if kind not in LIPSCHITZ:
            raise UnknownNameError("spectral norm", kind, LIPSCHITZ)
        super().__init__(LipschitzBlock(dim, channels, kind, slope) for _ in range(count))
        self.channels, self.slope = channels, slope

    def blocks(self) -> list[LipschitzBlock]:
        """In order."""
        return [block for block in self if isinstance(block, LipschitzBlock)]

    def forward(self, x: Tensor) -> Tensor:
        """(N, channels, *shape) to the same, block by block: the plain form of `side_by_side`."""
        for block in self:
            x = block(x)
        return x


def side_by_side(
    branches: Sequence[Branch],
    fields: Sequence[Tensor],
    *,
    every: bool = False,
    checkpointing: bool = False,
) -> list[tuple[Tensor, ...]]:
    """What branches of equally many blocks make of their fields: after the last block, or after every one.

    fields: (N, channels of the branch, *shape) each; so is what is returned, per block.
    checkpointing: forget what is inside a block, compute it again for the gradient.
    Raises SettingsError for branches of different length or slope.
    """
    lengths = {(len(branch), branch.slope) for branch in branches}
    if len(lengths) != 1 or len(branches) != len(fields):
        raise SettingsError(
            "Branches run side by side have equally many blocks, one slope, and a field each."
        )
    channels = [branch.channels for branch in branches]
    width = fields[0].shape[-1]
    x = folded(torch.cat(tuple(fields), 1))
    filling = _filling(x, width, sum(channels))
    tracked = torch.is_grad_enabled()
    states: list[Tensor] = []
    for blocks in zip(*(branch.blocks() for branch in branches), strict=True):
        first = folded_kernel(_joined([block.first() for block in blocks]))
        second = folded_point_kernel(_joined([block.second() for block in blocks]))
        held = (x, first, second, filling, branches[0].slope)
        if tracked and checkpointing:
            x = checkpoint(_advanced, *held, use_reentrant=False)
        else:
            x = _advanced(*held) if tracked else _advanced_in_place(*held)
        states = [*states, x] if every else [x]
    return [torch.split(unfolded(state, sum(channels), width), channels, 1) for state in states]


def _advanced(x: Tensor, first: Tensor, second: Tensor, filling: Tensor | None, slope: float) -> Tensor:
    """One block on folded fields; what fills up the last columns stays 0, as beyond the border."""
    convolve = functional.conv2d if x.dim() == 4 else functional.conv3d
    inner = functional.leaky_relu(convolve(x, first, padding=TAPS // 2), slope)
    added = convolve(inner, second).tanh()
    return x + STEP * (added if filling is None else added * filling)


def _advanced_in_place(
    x: Tensor, first: Tensor, second: Tensor, filling: Tensor | None, slope: float
) -> Tensor:
    """The same without a graph: new memory costs more than the arithmetic."""
    convolve = functional.conv2d if x.dim() == 4 else functional.conv3d
    inner = functional.leaky_relu_(convolve(x, first, padding=TAPS // 2), slope)
    added = convolve(inner, second).tanh_()
    if filling is not None:
        added *= filling
    return added.mul_(STEP).add_(x)


def flattened_norm(kernel: Tensor) -> Tensor:
    """Spectral norm of a kernel (channels out, channels in, *taps) as a matrix of channels out; a scalar.

    By 2^SQUARINGS power iterations at once: they take no decomposition, which graphics cards are slow at.
    Differentiable.
    """
    matrix = kernel.flatten(1)
    with torch.no_grad():
        power = matrix @ matrix.T
        for _ in range(SQUARINGS):
            power = power / power.norm().clamp(min=torch.finfo(power.dtype).tiny)
            power = power @ power
        left = functional.normalize(power[:, power.diagonal().argmax()], dim=0)
        right = functional.normalize(left @ matrix, dim=0)
    norm: Tensor = left @ matrix @ right
    return norm


def norm_bound(kernel: Tensor) -> Tensor:
    """Upper bound of the norm of a convolution between images of any size, zeros around them; a scalar.

    kernel: (channels out, channels in, *taps), up to 3 per axis.  The norm is the largest singular value of
    the kernel's Fourier transform over all frequencies; on n of them per axis it is underestimated by at most
    cos(pi / n) per axis, for it is a trigonometric polynomial of degree 1.  Differentiable.
    """
    dim = kernel.dim() - 2
    if kernel.shape[2:].numel() == 1:
        norm: Tensor = torch.linalg.matrix_norm(kernel.flatten(1), 2)
        return norm
    count = FREQUENCIES[dim]
    with torch.no_grad():
        axes = tuple(range(2, kernel.dim()))
        spectrum = torch.fft.rfftn(kernel.to(torch.float64), s=[count] * dim, dim=axes)
        matrices = spectrum.flatten(2).movedim(2, 0)
        energies = torch.linalg.eigvalsh(matrices.mH @ matrices)[:, -1]
        worst = int(energies.argmax())
        left, _, right = torch.linalg.svd(matrices[worst])
        phases = _phases(kernel.shape[2:], count, worst).to(kernel.device)
    at_worst = torch.einsum("oi...,...->oi", kernel.to(torch.complex128), phases)
    norm = (left[:, 0].conj() @ at_worst @ right[0].conj()).real
    return (norm / math.cos(math.pi / count) ** dim).to(kernel.dtype)


def _phases(taps: Sequence[int], count: int, index: int) -> Tensor:
    """exp(-i omega k) over the taps k, at a frequency of `rfftn` counted as it lies in memory."""
    sizes = [count] * (len(taps) - 1) + [count // 2 + 1]
    phases = torch.ones((), dtype=torch.complex128)
    numbers = []
    for size in reversed(sizes):
        numbers.append(index % size)
        index //= size
    for number, n in zip(reversed(numbers), taps, strict=True):
        angle = -2 * math.pi * number / count * torch.arange(n, dtype=torch.float64)
        phases = phases[..., None] * torch.polar(torch.ones_like(angle), angle)
    return phases


def _joined(kernels: Sequence[Tensor]) -> Tensor:
    """One kernel for the channels of all, none of which see each other."""
    total, before, rows = sum(kernel.shape[1] for kernel in kernels), 0, []
    for kernel in kernels:
        after = total - before - kernel.shape[1]
        rows.append(functional.pad(kernel, (*[0, 0] * (kernel.dim() - 2), before, after)))
        before += kernel.shape[1]
    return torch.cat(rows)


# ---------------------------------------------------------------- columns as channels


def folded(x: Tensor) -> Tensor:
    """(N, C, ..., W) to (N, 4 C, ..., ceil(W / 4)): columns in groups of four; zeros fill the last group."""
    x = functional.pad(x, (0, -x.shape[-1] % COLUMNS))
    groups = x.reshape(*x.shape[:-1], x.shape[-1] // COLUMNS, COLUMNS)
    return groups.movedim(-1, 2).flatten(1, 2)


def unfolded(x: Tensor, channels: int, width: int) -> Tensor:
    """The way back of `folded`."""
    groups = x.reshape(x.shape[0], channels, COLUMNS, *x.shape[2:])
    return groups.movedim(2, -1).flatten(-2)[..., :width]


def folded_kernel(kernel: Tensor) -> Tensor:
    """The kernel of 3 columns that does on folded images what this one of 3 does on plain ones."""
    taps = _taps(kernel.device)
    spread = functional.pad(kernel, (0, 1))[..., taps]  # (out, in, ..., column out, column in, group)
    spread = spread.movedim((-3, -2), (1, 3))
    return spread.flatten(2, 3).flatten(0, 1)


def folded_point_kernel(kernel: Tensor) -> Tensor:
    """The same for a kernel of one voxel."""
    unit = torch.eye(COLUMNS, dtype=kernel.dtype, device=kernel.device)
    return torch.kron(kernel.flatten(1), unit).view(
        *(n * COLUMNS for n in kernel.shape[:2]), *kernel.shape[2:]
    )


@lru_cache(maxsize=8)
def _taps(device: torch.device) -> Tensor:
    """Which tap leads from a column of a group (-1, 0, 1) to a column out, (out, in, group); 3 = none."""
    out, entering, group = (torch.arange(n) for n in (COLUMNS, COLUMNS, 3))
    tap = COLUMNS * (group - 1) + entering[:, None] - out[:, None, None] + 1
    return torch.where((tap >= 0) & (tap < TAPS), tap, TAPS).to(device)


def _filling(x: Tensor, width: int, channels: int) -> Tensor | None:
    """1 for real columns of folded images, 0 for those that fill up; None = all are real."""
    if width % COLUMNS == 0:
        return None
    return folded(x.new_ones(1, channels, *[1] * (x.dim() - 3), width))
