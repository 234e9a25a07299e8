"""What the maps of an affine network should be beside similar: small, and each other's inverse."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, Protocol, runtime_checkable

import torch
from torch import Tensor

from DiffeoRegLib.errors import SettingsError


class Linear(Protocol):
    """x -> A x + b: linear (N, d, d), shift (N, d), in coordinates about the middle of the box."""

    @property
    def linear(self) -> Tensor: ...

    @property
    def shift(self) -> Tensor: ...


@runtime_checkable
class AffinePair(Protocol):
    """Maps that are affine both ways."""

    def affine(self, way: Literal["12", "21"]) -> Linear:
        """The map behind u12 or u21."""
        ...


def affine_size(maps: object, *, both: bool = True) -> Tensor:
    """The mean over the batch of |(A, b) - (I, 0)|^2, a scalar; both: the mean over both ways.

    Raises SettingsError for maps that are not affine.
    """
    chosen = _affine(maps, "affine-size")
    ways: tuple[Literal["12", "21"], ...] = ("12", "21") if both else ("12",)
    return torch.stack([_from_identity(chosen.affine(way)) for way in ways]).mean()


def affine_inverse(maps: object) -> Tensor:
    """The mean over the batch of |A12 A21 - I|^2 + |A12 b21 + b12|^2, a scalar.

    Raises SettingsError for maps that are not affine.
    """
    chosen = _affine(maps, "affine-inverse")
    one, other = chosen.affine("12"), chosen.affine("21")
    linear = one.linear @ other.linear - torch.eye(one.linear.shape[-1]).to(one.linear)
    shift = torch.einsum("nab,nb->na", one.linear, other.shift) + one.shift
    return linear.square().sum((1, 2)).mean() + shift.square().sum(1).mean()


def _from_identity(one: Linear) -> Tensor:
    away = one.linear - torch.eye(one.linear.shape[-1]).to(one.linear)
    return away.square().sum((1, 2)).mean() + one.shift.square().sum(1).mean()


def _affine(maps: object, name: str) -> AffinePair:
    if not isinstance(maps, AffinePair):
        raise SettingsError(f"The loss {name} needs a network that predicts affine maps: affine-network.")
    return maps


AFFINE_LOSSES: dict[str, Callable[..., Tensor]] = {
    "affine-size": affine_size,
    "affine-inverse": affine_inverse,
}
