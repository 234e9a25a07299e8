"""The network that predicts where the regulariser of RDMM is how wide: pre-weights h of a pair.

Source: the pre-weight network of the program of Shen, Vialard and Niethammer, NeurIPS 2019.  Ours: the
output shifts the logarithms of the common shares, h^2 = softmax(ln c + output), so that an output of 0 gives
these shares exactly; and it is limited softly, with a gradient everywhere.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from DiffeoRegLib.errors import SettingsError, ShapeError
from DiffeoRegLib.flows.regional import preweights_from_scores
from DiffeoRegLib.networks.momentum_net import cropped, keep_the_spread, transposed
from DiffeoRegLib.networks.unet import convolution, filled

CHANNELS = (16, 32, 32, 64)
"""At strides 1, 2, 4 and 8 of its own grid."""
ENLARGED = (64, 32, 14)
"""Channels of the steps up to strides 4, 2 and 1."""
MULTIPLE = 8
FIRST_SCALE = 0.025
"""Of the normalised output: training starts near the common shares."""
LIMIT = 1.5
"""No share changes by more than the factor exp(LIMIT) before they are brought to sum 1."""


class PreweightNet(nn.Module):
    """Pre-weights of a pair at low resolution.

    shares: the common ones c_i, all above 0, in any unit.
    Raises SettingsError for another dimension, for one kernel alone or for a share of 0.
    """

    log_shares: Tensor

    def __init__(self, dim: int, shares: Sequence[float]) -> None:
        super().__init__()
        if dim not in (2, 3):
            raise SettingsError(f"A pre-weight network has 2 or 3 dimensions, not {dim}.")
        if len(shares) < 2 or not min(shares) > 0:
            raise SettingsError(
                f"Pre-weights need two kernels or more with shares above 0, not {tuple(shares)}."
            )
        self.dim = dim
        conv, up = convolution(dim), transposed(dim)
        c1, c2, c4, c8 = CHANNELS
        self.first = conv(2, c1, 3, padding=1)
        pairs = ((c1, c2), (c2, c4), (c4, c8))
        self.down = nn.ModuleList(
            nn.ModuleList([conv(a, b, 3, stride=2, padding=1), conv(b, b, 3, padding=1)]) for a, b in pairs
        )
        e4, e2, e1 = ENLARGED
        self.up = nn.ModuleList(up(a, b, 2, stride=2) for a, b in ((c8, e4), (c4, e2), (c2, e1)))
        self.joined = nn.ModuleList([conv(e4 + c4, c4, 3, padding=1), conv(e2 + c2, c2, 3, padding=1)])
        self.last = conv(e1 + c1, len(shares), 3, padding=1)
        keep_the_spread(self)
        self.norm = nn.GroupNorm(1, len(shares))
        nn.init.constant_(self.norm.weight, FIRST_SCALE)
        logs = torch.tensor([float(c) for c in shares]).log().view(1, -1, *[1] * dim)
        self.register_buffer("log_shares", logs, persistent=False)

    def forward(self, warped: Tensor, fixed: Tensor) -> Tensor:
        """(N, 1, *shape) twice, values about [-1, 1], to h (N, n, *shape) with sum_i h_i^2 = 1.

        Raises ShapeError for images of different shapes, or another number of channels or axes.
        """
        scores = self.log_shares.to(warped.dtype) + LIMIT * torch.tanh(self.shift(warped, fixed) / LIMIT)
        return preweights_from_scores(scores)

    def shift(self, warped: Tensor, fixed: Tensor) -> Tensor:
        """What is added to the logarithms of the shares, before it is limited; (N, n, *shape)."""
        if warped.shape != fixed.shape or warped.dim() != self.dim + 2 or warped.shape[1] != 1:
            raise ShapeError(
                f"Pre-weights need two {self.dim}D images (N, 1, *shape) of one shape, "
                f"not {tuple(warped.shape)} and {tuple(fixed.shape)}."
            )
        skips = [_leaky(self.first(filled(torch.cat([warped, fixed], 1), MULTIPLE)))]
        for level in self.down:
            x = skips[-1]
            for layer in cast(nn.ModuleList, level):
                x = _leaky(layer(x))
            skips.append(x)
        x = skips.pop()
        for enlarge, join in zip(self.up[:2], self.joined, strict=True):
            x = _leaky(join(torch.cat([_leaky(enlarge(x)), skips.pop()], 1)))
        x = self.last(torch.cat([_leaky(self.up[2](x)), skips.pop()], 1))
        # What padding added has no say in the mean and spread.
        normed: Tensor = self.norm(cropped(x, warped.shape[2:]).to(warped.dtype))
        return normed


def _leaky(x: Tensor) -> Tensor:
    return functional.leaky_relu(x, 0.01)
