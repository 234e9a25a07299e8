"""What stands in Annotated[...] beside a type: limits, choices, how a number is shown."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Default:
    """The value before anybody chose one."""

    value: Any


@dataclass(frozen=True)
class Decimals:
    """Digits after the point in a widget."""

    value: int


@dataclass(frozen=True)
class SingleStep:
    """Step of a widget."""

    value: float


@dataclass(frozen=True)
class Minimum:
    """The smallest value allowed."""

    minimum: float

    def check(self, value: Any) -> None:
        if value < self.minimum:
            raise ValueError(f"{value} is below {self.minimum}")


@dataclass(frozen=True)
class Maximum:
    """The largest value allowed."""

    maximum: float

    def check(self, value: Any) -> None:
        if value > self.maximum:
            raise ValueError(f"{value} is above {self.maximum}")


@dataclass(frozen=True)
class WithinRange:
    """The values allowed, both ends included."""

    minimum: float
    maximum: float

    def check(self, value: Any) -> None:
        if not self.minimum <= value <= self.maximum:
            raise ValueError(f"{value} is not within {self.minimum} and {self.maximum}")


@dataclass(frozen=True)
class RangeBounds:
    """The limits of a range, both ends included."""

    minimum: float
    maximum: float

    def check(self, value: Any) -> None:
        if not self.minimum <= value.minimum <= value.maximum <= self.maximum:
            raise ValueError(f"{value} is not within {self.minimum} and {self.maximum}")


class FloatRange:
    """Two numbers, the lower and the upper one."""

    def __init__(self, minimum: float, maximum: float) -> None:
        if minimum > maximum:
            raise ValueError(f"{minimum} is above {maximum}")
        self.minimum, self.maximum = float(minimum), float(maximum)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, FloatRange) and (self.minimum, self.maximum) == (
            other.minimum,
            other.maximum,
        )

    def __hash__(self) -> int:
        return hash((self.minimum, self.maximum))

    def __repr__(self) -> str:
        return f"FloatRange({self.minimum}, {self.maximum})"


class Choice:
    """A list of the values allowed."""

    def __init__(self, choices: Any) -> None:
        self.choices = list(choices)
        if not self.choices:
            raise ValueError("a Choice needs something to choose from")

    def check(self, value: Any) -> None:
        if value not in self.choices:
            raise ValueError(f"{value!r} is not one of {self.choices}")


KNOWN = (Default, Decimals, SingleStep, Minimum, Maximum, WithinRange, RangeBounds, Choice)


def find(annotations: tuple[Any, ...], kind: Any) -> Any:
    """The annotation of this kind, or None."""
    return next((entry for entry in annotations if isinstance(entry, kind)), None)
