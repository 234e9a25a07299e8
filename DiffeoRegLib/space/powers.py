"""The logarithm of a linear map, by which a part of its way can be gone."""

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
