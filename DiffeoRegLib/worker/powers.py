"""Part of the way of a linear map: A^t between the identity and A."""

from __future__ import annotations

from DiffeoRegLib.space.grid import Matrix
from DiffeoRegLib.space.powers import affine_power

WHOLE = (
    "The linear part of this transform has no gradual form (it mirrors or turns by half a circle), "
    "so it is applied whole at every position of the slider."
)


def matrix_power(matrix: Matrix, fraction: float) -> tuple[Matrix, str | None]:
    """`affine_power`, RAS mm; the whole matrix and a sentence where A has no real logarithm."""
    part = affine_power(matrix, fraction)
    return (matrix, WHOLE) if part is None else (part, None)
