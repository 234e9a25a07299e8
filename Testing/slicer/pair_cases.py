"""A hostile pair of volumes in a scene, what leads from one to the other, and what SimpleITK makes of it."""

from __future__ import annotations

import numpy as np
import SimpleITK as sitk

from DiffeoRegLib.exchange import Image
from DiffeoRegPanel.nodes.transforms import apply_to
from Testing.slicer import mrml_cases as cases

FLIP = np.array([-1, -1, 1], dtype=np.float32)


class Pair:
    """Fixed and moving volume in the scene; T = displacement, then affine, also in SimpleITK."""

    def __init__(self, scene, fixed_size=(24, 20, 15), moving_size=(26, 30, 20)):
        self.scene = scene
        self.fixed_image, self.moving_image = cases.fixed_image(fixed_size), cases.moving_image(moving_size)
        self.fixed = cases.volume(scene, self.fixed_image, "CT")
        self.moving = cases.volume(scene, self.moving_image, "MR")
        self.field, self.affine = cases.field_image(self.fixed_image), cases.affine_matrix()
        self.displacement = {"displacement": as_image(self.field)}
        self.matrix = {"matrix": cases.LPS @ self.affine @ cases.LPS}

    def expected(self, *parts) -> np.ndarray:
        transform = cases.itk_transform(*(parts or (self.field, self.affine)))
        return cases.resampled(self.moving_image, self.fixed_image, transform)

    def parts(self) -> list[dict]:
        return [self.displacement, self.matrix]

    def inverse_parts(self) -> list[dict]:
        """T^-1 = the affine's inverse, then the field's (by SimpleITK)."""
        settings = {
            "maximumNumberOfIterations": 100,
            "maxErrorToleranceThreshold": 1e-3,
            "enforceBoundaryCondition": True,
        }
        field = sitk.InvertDisplacementField(sitk.Cast(self.field, sitk.sitkVectorFloat64), **settings)
        return [{"matrix": np.linalg.inv(self.matrix["matrix"])}, {"displacement": as_image(field)}]

    def seen(self, node) -> np.ndarray:
        """What Slicer's own resampling shows of the moving volume under the node."""
        parent = self.moving.GetTransformNodeID()
        apply_to(node, self.moving)
        array = cases.slicer_resampled(self.moving, self.fixed)
        self.moving.SetAndObserveTransformNodeID(parent)
        return array

    def difference(self, seen: np.ndarray, expected: np.ndarray) -> float:
        return float(np.abs(seen - expected).max() / np.ptp(sitk.GetArrayFromImage(self.moving_image)))


def as_image(field: sitk.Image) -> Image:
    array = sitk.GetArrayFromImage(field).astype(np.float32) * FLIP
    return Image(array, cases.ras_matrix(field)[:, [2, 1, 0, 3]])


def points_mm(pair, count=200) -> np.ndarray:
    """RAS points all over the fixed volume, also between its voxels."""
    index = np.random.default_rng(0).uniform(0.5, np.array(pair.fixed_image.GetSize()) - 1.5, (count, 3))
    return (cases.ras_matrix(pair.fixed_image) @ np.c_[index, np.ones(count)].T).T[:, :3]


def itk_mapped(transform: sitk.Transform, points: np.ndarray) -> np.ndarray:
    return np.array([transform.TransformPoint((p * FLIP).tolist()) for p in points]) * FLIP
