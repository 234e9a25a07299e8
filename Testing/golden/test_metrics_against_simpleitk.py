"""Label and intensity metrics against SimpleITK's filters on anisotropic volumes and slices."""

from __future__ import annotations

import numpy as np
import pytest
import SimpleITK as sitk
import torch

from DiffeoRegLib.losses.similarity import mse, ncc
from DiffeoRegLib.metrics import dice_per_label, hd95_mm, tre_mm

CASES = [((18, 21, 16), (2.5, 0.8, 1.3)), ((30, 26), (0.6, 1.9))]
every_case = pytest.mark.parametrize(("shape", "spacing"), CASES)


def ball_labels(shape, spacing, shift_mm):
    """Two ellipsoids, labels 3 and 8, moved along every axis."""
    axes = np.meshgrid(
        *[(np.arange(n) + 0.5) * s for n, s in zip(shape, spacing, strict=True)], indexing="ij"
    )
    extent = np.array(shape) * spacing
    labels = np.zeros(shape, dtype=np.int32)
    for label, at, radius in ((3, 0.35, 0.2), (8, 0.65, 0.14)):
        inside = (
            sum(((x - e * at - shift_mm) / (e * radius)) ** 2 for x, e in zip(axes, extent, strict=True)) < 1
        )
        labels[inside] = label
    return labels


def itk_image(array, spacing):
    image = sitk.GetImageFromArray(array)
    image.SetSpacing(tuple(float(s) for s in spacing[::-1]))
    return image


@every_case
def test_dice_equals_label_overlap_measures(shape, spacing):
    first, second = ball_labels(shape, spacing, 0.0), ball_labels(shape, spacing, 1.7)
    measures = sitk.LabelOverlapMeasuresImageFilter()
    measures.Execute(itk_image(first, spacing), itk_image(second, spacing))
    ours = dice_per_label(first, second)
    assert sorted(ours) == [3, 8]
    for label, value in ours.items():
        assert 0.3 < value < 0.95
        assert value == pytest.approx(measures.GetDiceCoefficient(label))


@every_case
def test_hd95_lies_on_the_surface_distances_of_simpleitk(shape, spacing):
    """Contours and Maurer distance maps of SimpleITK, percentile by numpy; bounded by its own filter."""
    first, second = ball_labels(shape, spacing, 0.0), ball_labels(shape, spacing, 1.7)
    ours = hd95_mm(first, second, spacing)
    for label in (3, 8):
        masks = [itk_image((a == label).astype(np.uint8), spacing) for a in (first, second)]
        contours = [sitk.BinaryContour(m, fullyConnected=False) for m in masks]
        maps = [
            np.abs(sitk.GetArrayFromImage(sitk.SignedMaurerDistanceMap(c, False, False, True)))
            for c in contours
        ]
        on = [sitk.GetArrayFromImage(c) > 0 for c in contours]
        expected = max(np.percentile(maps[1][on[0]], 95), np.percentile(maps[0][on[1]], 95))
        assert ours[label] == pytest.approx(expected, abs=1e-4)
        hausdorff = sitk.HausdorffDistanceImageFilter()
        hausdorff.Execute(*masks)
        assert 0.3 < ours[label] <= hausdorff.GetHausdorffDistance() + max(spacing)


@every_case
def test_mse_and_correlation_equal_the_registration_metrics(shape, spacing):
    rng = np.random.default_rng(0)
    first = rng.random(shape)
    second = 2 * first + rng.random(shape)
    method = sitk.ImageRegistrationMethod()
    method.SetInitialTransform(sitk.Transform(len(shape), sitk.sitkIdentity))
    images = [itk_image(a, spacing) for a in (first, second)]
    tensors = [torch.tensor(a)[None, None] for a in (first, second)]
    method.SetMetricAsMeanSquares()
    assert float(mse(*tensors)) == pytest.approx(method.MetricEvaluate(*images), rel=1e-9)
    method.SetMetricAsCorrelation()  # minus the squared coefficient
    assert (1 - float(ncc(*tensors))) ** 2 == pytest.approx(-method.MetricEvaluate(*images), rel=1e-6)


def test_tre_is_the_distance_of_mapped_points():
    rotation = sitk.Euler3DTransform((1.0, 2.0, 3.0), 0.2, -0.1, 0.3, (4.0, -5.0, 6.0))

    class Mapped:
        def map_points(self, points_mm):
            return np.array([rotation.TransformPoint(p.tolist()) for p in points_mm])

    points = np.random.default_rng(1).normal(size=(20, 3)) * 30
    moved = np.array([rotation.TransformPoint(p.tolist()) for p in points])
    np.testing.assert_allclose(tre_mm(points, moved + np.array([0.0, 3.0, -4.0]), Mapped()), 5.0)
