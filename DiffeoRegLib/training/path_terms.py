"""What the learned forms of vSVF, LDDMM and RDMM make small beside the difference of the images.

The energies of a flow are means over the directions that count; consistency is of both.
Source: Shen, Vialard and Niethammer, NeurIPS 2019, with the settings of the authors' program.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Literal, Protocol, runtime_checkable

import torch
from torch import Tensor

from DiffeoRegLib.errors import SettingsError
from DiffeoRegLib.losses.preweights import range_energy, range_share, transport_energy
from DiffeoRegLib.space.field import compose

Direction = Literal["12", "21"]
ANNEALING_SCALE = 5.0
"""k of `range_share` for networks."""
STEPS_PER_EPOCH = 400
"""Pairs the authors call an epoch."""


class Kernels(Protocol):
    """Widths and shares (of sum 1) of the Gaussians."""

    @property
    def sigmas(self) -> Sequence[float]: ...

    @property
    def shares(self) -> Sequence[float]: ...


class Start(Protocol):
    """The start of a flow: its mean of m . v per pair (N,), and w = G h (N, n, *grid) or None."""

    @property
    def kinetic(self) -> Tensor: ...

    @property
    def weights(self) -> Tensor | None: ...


@runtime_checkable
class Shot(Protocol):
    """Maps that are ends of flows from a momentum."""

    @property
    def sizes(self) -> Kernels:
        """The kernels."""
        ...

    def look(self, way: Direction) -> Start:
        """The flow of a direction."""
        ...


class Both(Protocol):
    """Maps both ways, (N, d, *shape), voxels."""

    @property
    def u12(self) -> Tensor: ...

    @property
    def u21(self) -> Tensor: ...


def kinetic(maps: object, ways: Sequence[Direction], step: int | None) -> Tensor:
    """Mean of m . v over grid, pairs and directions (twice the energy), in squared sides of the box.

    Raises SettingsError for maps that no momentum makes.
    """
    shot = _shot(maps, "kinetic")
    return torch.stack([shot.look(way).kinetic.mean() for way in ways]).mean()


def transport(
    maps: object, ways: Sequence[Direction], step: int | None, *, steps_per_epoch: int = STEPS_PER_EPOCH
) -> Tensor:
    """`transport_energy` of the predicted weights times 1 - rho, which grows with the epochs.

    Raises SettingsError for maps without pre-weights.
    """
    sigmas = _shot(maps, "transport").sizes.sigmas
    energies = [transport_energy(weights, sigmas) for weights in _weights(maps, ways, "transport")]
    return (1 - share_of(step, steps_per_epoch)) * torch.stack(energies).mean()


def common(
    maps: object, ways: Sequence[Direction], step: int | None, *, steps_per_epoch: int = STEPS_PER_EPOCH
) -> Tensor:
    """`range_energy` of the predicted weights times rho, which fades with the epochs.

    Raises SettingsError for maps without pre-weights.
    """
    shares = _shot(maps, "common").sizes.shares
    energies = [range_energy(weights, shares) for weights in _weights(maps, ways, "common")]
    return share_of(step, steps_per_epoch) * torch.stack(energies).mean()


def consistency(maps: Both, ways: Sequence[Direction], step: int | None) -> Tensor:
    """Mean over voxels and components of |phi12 o phi21 - id|^2, the sides of the images being 1."""
    gap = compose(maps.u12, maps.u21)
    sides = gap.new_tensor([max(n - 1, 1) for n in gap.shape[2:]])
    return (gap / sides.view(1, -1, *[1] * (gap.dim() - 2))).square().mean()


def share_of(step: int | None, steps_per_epoch: int) -> float:
    """rho of a step counted from 0; None = after all of them.  Raises SettingsError for an empty epoch."""
    if steps_per_epoch < 1:
        raise SettingsError(f"An epoch has at least one step, not {steps_per_epoch}.")
    return range_share(math.inf if step is None else step / steps_per_epoch, ANNEALING_SCALE)


def _shot(maps: object, name: str) -> Shot:
    if not isinstance(maps, Shot):
        raise SettingsError(
            f"The loss {name} needs a network that predicts a momentum, such as lddmm-network."
        )
    return maps


def _weights(maps: object, ways: Sequence[Direction], name: str) -> list[Tensor]:
    """Smoothed pre-weights per direction."""
    found = [_shot(maps, name).look(way).weights for way in ways]
    known = [weights for weights in found if weights is not None]
    if len(known) < len(found):
        raise SettingsError(f"The loss {name} needs a network that predicts a regulariser: rdmm-network.")
    return known


PATH_LOSSES: dict[str, Callable[..., Tensor]] = {
    "kinetic": kinetic,
    "transport": transport,
    "common": common,
    "consistency": consistency,
}
"""Called with the maps, the directions that count, the step of training, and the options of the term."""
