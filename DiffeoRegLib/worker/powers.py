"""Part of the way of a linear map: A^t between the identity and A."""

from __future__ import annotations

import numpy as np

from DiffeoRegLib.space.grid import Matrix
from DiffeoRegLib.space.powers import affine_exponential, matrix_logarithm

WHOLE = (
    "The linear part of this transform has no gradual form (it mirrors or turns by half a circle), "
    "so it is applied whole at every position of the slider."
)


def matrix_power(matrix: Matrix, fraction: float) -> tuple[Matrix, str | None]:
    """A^t = exp(t log A) of an affine 4x4, RAS mm, and a sentence where A has no real logarithm.

    The translation is taken about the fixed point of the map where there is one, as the logarithm does.
    """
    if fraction == 1 or np.array_equal(matrix, np.eye(4)):
        return matrix, None
    logarithm = matrix_logarithm(matrix)
    if logarithm is None:
        return matrix, WHOLE
    return affine_exponential(fraction * logarithm), None
