"""Part of the way of a linear map: its logarithm, and A^t between the identity and A."""

from __future__ import annotations

import warnings

import numpy as np
import scipy.linalg

from DiffeoRegLib.space.grid import Matrix

PRECISION = 1e-8


def matrix_logarithm(matrix: Matrix) -> Matrix | None:
    """The real logarithm of an affine 4x4, or None where there is none: a mirror, a turn by half a circle."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # scipy warns of an inexact logarithm; the check below decides
        logarithm = np.asarray(scipy.linalg.logm(matrix))
    real = np.asarray(logarithm.real, dtype=np.float64)
    scale = max(1.0, float(np.abs(matrix).max()))
    if not np.isfinite(real).all() or np.abs(scipy.linalg.expm(real) - matrix).max() > PRECISION * scale:
        return None
    return real


def affine_exponential(logarithm: Matrix) -> Matrix:
    """The affine 4x4 with this logarithm."""
    matrix = np.asarray(scipy.linalg.expm(logarithm), dtype=np.float64)
    matrix[3] = (0.0, 0.0, 0.0, 1.0)
    return matrix


def affine_power(matrix: Matrix, fraction: float) -> Matrix | None:
    """A^t = exp(t log A) of an affine 4x4; None where A has no real logarithm and only part is asked for.

    The translation is taken about the fixed point of the map where there is one, as the logarithm does.
    """
    if fraction == 1 or np.array_equal(matrix, np.eye(4)):
        return matrix
    logarithm = matrix_logarithm(matrix)
    return None if logarithm is None else affine_exponential(fraction * logarithm)
