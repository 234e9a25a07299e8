"""Velocities: what flows. How it is stepped is in `solvers.py`."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from DiffeoRegLib.errors import SettingsError, ShapeError
from DiffeoRegLib.space.jacobian import require_field
from DiffeoRegLib.space.sample import sample


class Velocity(Protocol):
    """v(t, x): anything that can be asked for velocities, and for the times at which it jumps."""

    def __call__(self, time: float, position_vox: Tensor) -> Tensor:
        """Velocity (N, d, *out), voxels per unit time, at positions (N, d, *out), voxels."""
        ...

    def pieces(self, start: float, stop: float) -> list[tuple[float, float, Velocity]]:
        """The way from `start` to `stop` (either may be the later), cut where v jumps in time."""
        ...


@dataclass(frozen=True, eq=False)
class StationaryVelocity:
    """A velocity field that does not change: (N, d, *spatial), voxels per unit time, border repeated."""

    velocity_vox: Tensor

    def __post_init__(self) -> None:
        require_field(self.velocity_vox)

    def __call__(self, time: float, position_vox: Tensor) -> Tensor:
        """Velocity at positions (N or 1, d, *out); `time` does not matter."""
        return sample(self.velocity_vox, position_vox)

    def pieces(self, start: float, stop: float) -> list[tuple[float, float, Velocity]]:
        """One piece."""
        return [(start, stop, self)]


@dataclass(frozen=True, eq=False)
class TimeVaryingVelocity:
    """A velocity constant on T equal intervals of [0, 1]: (T, d, *spatial), voxels per unit time.

    The value at a jump is the later interval's.  Raises ShapeError for anything but fields, SettingsError
    for none.
    """

    velocities_vox: Tensor

    def __post_init__(self) -> None:
        require_field(self.velocities_vox)
        if len(self.velocities_vox) == 0:
            raise SettingsError("A time-varying velocity needs at least one interval.")

    @property
    def intervals(self) -> int:
        """Number of intervals T."""
        return len(self.velocities_vox)

    def __call__(self, time: float, position_vox: Tensor) -> Tensor:
        """Velocity at one time and positions (1, d, *out); before 0 and after 1 the outer intervals go on."""
        if len(position_vox) != 1:
            raise ShapeError("A time-varying velocity moves one set of positions at a time.")
        return sample(self._at(int(time * self.intervals // 1)), position_vox)

    def pieces(self, start: float, stop: float) -> list[tuple[float, float, Velocity]]:
        """One piece for each interval passed, in the order of the way."""
        low, high = min(start, stop), max(start, stop)
        jumps = [k / self.intervals for k in range(1, self.intervals)]
        ends = [low, *[t for t in jumps if low < t < high], high]
        parts: list[tuple[float, float, Velocity]] = [
            (a, b, StationaryVelocity(self._at(int((a + b) / 2 * self.intervals))))
            for a, b in itertools.pairwise(ends)
        ]
        return parts if start <= stop else [(b, a, v) for a, b, v in reversed(parts)]

    def _at(self, interval: int) -> Tensor:
        """Field (1, d, *spatial) of an interval."""
        index = min(max(interval, 0), self.intervals - 1)
        return self.velocities_vox[index : index + 1]
