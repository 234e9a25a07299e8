"""Exchanged images give exchanged transforms to the last bit, through all of a network's registration."""

from __future__ import annotations

import numpy as np
import pytest

from DiffeoRegLib.pipeline import register
from DiffeoRegLib.space.transform import AffineTransform
from DiffeoRegLib.volumes.pair import Correspondence, Masks
from DiffeoRegLib.volumes.volume import Volume
from Testing.halfway_cases import TURN, TURN_IN_PLANE, hostile_pair, same_numbers, settings_for

# ---------------------------------------------------------------- exchange


def exchanged(guidance):
    return Correspondence(
        guidance.moving_labels, guidance.fixed_labels, guidance.moving_points_mm, guidance.fixed_points_mm
    )


def check_exchange(fixed, moving, settings, masks=None, guidance=None, initial=None):
    """Both orders give the same numbers, and something moved."""
    turned_masks, turned_guidance, turned_initial = None, None, None
    if masks is not None:
        turned_masks = Masks(masks.moving, masks.fixed, masks.exclude_moving, masks.exclude_fixed)
    if guidance is not None:
        turned_guidance = exchanged(guidance)
    if initial is not None:
        turned_initial = initial.inverse()
    one = register(fixed, moving, settings, masks=masks, guidance=guidance, initial=initial)
    other = register(
        moving, fixed, settings, masks=turned_masks, guidance=turned_guidance, initial=turned_initial
    )
    assert same_numbers(one.transform, other.inverse)
    assert same_numbers(one.inverse, other.transform)
    points = fixed.grid.center_mm + np.random.default_rng(0).uniform(-30, 30, (500, 3))
    assert np.array_equal(one.transform.map_points(points), other.inverse.map_points(points))
    assert np.array_equal(one.inverse.map_points(points), other.transform.map_points(points))
    assert float(one.transform.parts[1].u_mm.abs().max()) > 0.5
    return one


def test_exchanged_images_with_an_affine_search(strong):
    """The whole line, with rotation, strain and a network near its bound."""
    _, fixed, moving = hostile_pair(affine=TURN)
    settings = settings_for(strong, init="affine", iterations=(2, 2), extras={"precision": "float32"})
    result = check_exchange(fixed, moving, settings)
    alignment = result.transform.parts[2].moving_from_fixed @ result.transform.parts[0].moving_from_fixed
    assert np.abs(alignment - np.eye(4)).max() > 0.1
    np.testing.assert_allclose(alignment, result.initial.moving_from_fixed)


REFINED = {
    "alone": {"extras": {"precision": "float32"}},
    "rough": {"extras": {"precision": "bfloat16"}},
    "coarse": {"iterations": (4, 0)},
    "both": {"iterations": (3, 4), "working_spacing_mm": 1.0},
    "dense": {"iterations": (3,), "dense_iterations": 2},
    "levels": {"levels_mm": (4.0, 2.0), "iterations": (4, 4)},
    "unsquared": {"iterations": (3, 3), "similarity": "lncc"},
    "kernels": {"iterations": (3, 3), "similarity": "mk-lncc"},
    "information": {"iterations": (3, 3), "similarity": "nmi"},
    "features": {"iterations": (3, 3), "preset": "multimodal"},
    "squares": {"iterations": (3, 3), "similarity": "mse"},
    "steps": {"iterations": (3, 3), "steps": 5, "taper_mm": 6.0},
    "exact": {"extras": {"mode": "complete-exact", "precision": "float32"}},
    "complete": {"extras": {"mode": "complete"}, "iterations": (2, 2)},
    "half": {"extras": {"fast": True}, "iterations": (2, 2)},
    "twice": {"extras": {"passes": 2}, "iterations": (2, 2)},
}


@pytest.mark.parametrize("changes", REFINED.values(), ids=REFINED)
def test_exchanged_images_with_refinement(strong, changes):
    _, fixed, moving = hostile_pair()
    check_exchange(fixed, moving, settings_for(strong, **changes))


@pytest.mark.parametrize("iterations", [(0, 0), (3, 3)])
def test_exchanged_slices(flat, iterations):
    _, fixed, moving = hostile_pair(2, affine=TURN_IN_PLANE)
    init = "rigid" if iterations == (0, 0) else "mass"
    check_exchange(fixed, moving, settings_for(flat, init=init, iterations=iterations))


def test_exchanged_masks_labels_landmarks_and_starts(strong):
    scene, fixed, moving = hostile_pair()
    points = scene.landmarks(12)
    guidance = Correspondence(scene.labels(fixed), scene.labels(moving), *points)
    tumour = Volume((moving.data > 150).int(), moving.grid, "tumour", is_labels=True)
    masks = Masks(scene.labels(fixed), tumour, exclude_moving=True)
    settings = settings_for(strong, iterations=(3, 3))
    check_exchange(fixed, moving, settings, masks, guidance)
    shift = np.eye(4)
    shift[:3, 3] = 1.0, -2.0, 0.5  # its inverse is exact
    result = check_exchange(
        fixed, moving, settings.with_changes(init="auto"), masks, guidance, AffineTransform(shift)
    )
    assert np.array_equal(result.initial.moving_from_fixed, shift)


def test_an_image_and_itself(strong):
    """Nothing tells the two apart, so the map and its inverse are one."""
    _, fixed, _ = hostile_pair()
    twin = Volume(fixed.data.clone(), fixed.grid, "twin")
    result = register(fixed, twin, settings_for(strong, init="affine", iterations=(3, 3)))
    assert same_numbers(result.transform, result.inverse)
    assert result.report["displacement_mm"]["whole"]["max"] < 1e-3
