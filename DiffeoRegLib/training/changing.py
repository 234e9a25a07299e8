"""Weights of the loss that change while a network is trained: functions of the step alone."""

from __future__ import annotations

import math
from dataclasses import dataclass

from DiffeoRegLib.errors import SettingsError

SLOWNESS = 3.0
"""Of the sigmoid in units of `fall`, as published."""


@dataclass(frozen=True)
class WeightSchedule:
    """How the weight of a term comes about; without any, it is the same in every step.

    from_step: before it the term does not count.
    first: its weight then, for `hold` steps, after which it follows a sigmoid to the weight of the term;
    None = that weight from the beginning.  fall: steps, a third of the length scale of the sigmoid.
    Source of the form: easyreg, sigmoid with k = 3, made continuous where it begins to fall.
    Raises SettingsError for values that make no sense.
    """

    from_step: int = 0
    first: float | None = None
    hold: int = 0
    fall: int = 100

    def __post_init__(self) -> None:
        if self.from_step < 0 or self.hold < 0 or self.fall < 1:
            raise SettingsError("The schedule of a weight counts steps from 0 up, and its fall takes some.")
        if self.first is not None and not 0 <= self.first < math.inf:
            raise SettingsError(f"The first weight of a term must be at least 0, not {self.first}.")

    def weight(self, last: float, step: int | None) -> float:
        """The weight in a step counted from 0; None = after all of them, `last`."""
        if step is None:
            return last
        if step < self.from_step:
            return 0.0
        if self.first is None:
            return last
        fallen = max(step - self.from_step - self.hold, 0) / self.fall
        # The exponential would overflow where nothing is left anyway.
        rest = (SLOWNESS + 1) / (SLOWNESS + math.exp(min(fallen / SLOWNESS, 700.0)))
        return last + (self.first - last) * rest
