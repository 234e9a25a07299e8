"""What the intensities of one brain say by themselves, by one simple rule: for images without labels.

Images are without their skull, T1-weighted, with or without contrast agent.
"""

from __future__ import annotations

from itertools import combinations
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from DiffeoRegLib.space.sample import array_from_tensor, tensor_from_array
from DiffeoRegLib.volumes.volume import Volume

FLUID, GREY, WHITE = 1, 2, 3
DEEP_MM = 15.0
"""Fluid farther than this below the surface of the brain is mostly that of the ventricles."""
BINS = 64
SIGMA_MM = 0.7


def thresholds(values: NDArray[np.floating]) -> tuple[float, float]:
    """Two that leave the least variance within the three classes (Otsu 1979), of a histogram."""
    low, high = np.percentile(values, (0.5, 99.5))
    counts, edges = np.histogram(np.clip(values, low, high), BINS, (low, high))
    share = np.concatenate([[0.0], np.cumsum(counts / counts.sum())])
    first = np.concatenate([[0.0], np.cumsum(counts / counts.sum() * (edges[:-1] + edges[1:]) / 2)])

    def between(a: int, b: int) -> float:
        weight = share[b] - share[a]
        return float((first[b] - first[a]) ** 2 / weight) if weight > 0 else 0.0

    cuts = combinations(range(1, BINS), 2)
    a, b = max(cuts, key=lambda cut: between(0, cut[0]) + between(*cut) + between(cut[1], BINS))
    return float(edges[a]), float(edges[b])


def tissues_of(image: Volume, lesion: NDArray[np.bool_] | None = None) -> tuple[Volume, Volume]:
    """Tissues (1 dark, 2 middle, 3 bright; 0 = no brain) and deep fluid (1) of a brain without its skull.

    lesion: its voxels do not count when thresholds are chosen.
    """
    values = array_from_tensor(image.data).astype(np.float32)
    brain = ndimage.binary_fill_holes(values > 0)
    healthy = brain if lesion is None else brain & ~lesion
    smooth = ndimage.gaussian_filter(values, [SIGMA_MM / step for step in image.grid.spacing])
    tissues = (np.digitize(smooth, thresholds(smooth[healthy])) + 1) * brain
    depth = ndimage.distance_transform_edt(np.pad(brain, 1), sampling=image.grid.spacing)
    deep = (tissues == FLUID) & (depth[1:-1, 1:-1, 1:-1] > DEEP_MM)
    return _labels(tissues, image, "tissues"), _labels(deep, image, "deep fluid")


def _labels(values: NDArray[Any], like: Volume, name: str) -> Volume:
    return Volume(tensor_from_array(values.astype(np.int32)), like.grid, name, is_labels=True)


def nmi(one: NDArray[np.floating], other: NDArray[np.floating]) -> float:
    """(H(A) + H(B)) / H(A, B), 64 bins."""
    joint = np.histogram2d(one, other, BINS)[0]
    joint /= joint.sum()

    def entropy(p: NDArray[np.floating]) -> float:
        return float(-(p[p > 0] * np.log(p[p > 0])).sum())

    return (entropy(joint.sum(0)) + entropy(joint.sum(1))) / entropy(joint.ravel())


def dice(one: NDArray[np.bool_], other: NDArray[np.bool_]) -> float:
    """Overlap of two masks."""
    return float(2 * (one & other).sum() / max(int(one.sum() + other.sum()), 1))
