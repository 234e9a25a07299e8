"""Images and fields between our axes (S, A, R) and those that the images of a network were stored along."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

from torch import Tensor

from DiffeoRegLib.networks.published import places_of
from DiffeoRegLib.networks.unet import filled

Value = TypeVar("Value")


@dataclass(frozen=True)
class Axes:
    """Our axis a lies along axis order[a] of the network, against it where signs[a] < 0."""

    order: tuple[int, ...]
    signs: tuple[int, ...]

    @classmethod
    def named(cls, axes: str) -> Axes:
        """axes: where those of the network point, such as LIA; raises SettingsError for no such name."""
        return cls(*places_of(axes))

    def to_network(self, image: Tensor) -> Tensor:
        """(N, C, *shape) along the network's axes, the border repeated once where a length is odd.

        Blocks of two voxels then stay the same blocks when an axis is turned round.
        """
        turned = filled(image, 2).flip([2 + a for a, sign in enumerate(self.signs) if sign < 0])
        return turned.permute(0, 1, *[2 + self.order.index(own) for own in range(len(self.order))])

    def from_network(self, field_vox: Tensor) -> Tensor:
        """A field (N, d, *shape), voxels, back along our axes."""
        turned = field_vox.permute(0, 1, *[2 + axis for axis in self.order])
        turned = turned.flip([2 + a for a, sign in enumerate(self.signs) if sign < 0])
        signs = field_vox.new_tensor(self.signs).view(1, -1, *[1] * len(self.order))
        return turned[:, list(self.order)] * signs

    def ours(self, values: Sequence[Value]) -> tuple[Value, ...]:
        """Values per axis of the network in our order."""
        return tuple(values[axis] for axis in self.order)
