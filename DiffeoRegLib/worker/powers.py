"""Part of the way of a linear map: A^t between the identity and A."""

from __future__ import annotations

import warnings

import numpy as np
import scipy.linalg

from DiffeoRegLib.space.grid import Matrix

PRECISION = 1e-8
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
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # scipy warns of an inexact logarithm; the check below decides
        logarithm = np.asarray(scipy.linalg.logm(matrix))
    real = logarithm.real
    scale = max(1.0, float(np.abs(matrix).max()))
    if not np.isfinite(real).all() or np.abs(scipy.linalg.expm(real) - matrix).max() > PRECISION * scale:
        return matrix, WHOLE
    part = np.asarray(scipy.linalg.expm(fraction * real), dtype=np.float64)
    part[3] = (0.0, 0.0, 0.0, 1.0)
    return part, None
