"""The worker's job for a group, called directly: what comes out is what the engine computed, as parts."""

from __future__ import annotations

import numpy as np
import pytest

from DiffeoRegLib.errors import Cancelled, InputError, SettingsError
from DiffeoRegLib.exchange import Image
from DiffeoRegLib.groupwise import register_group
from DiffeoRegLib.worker import inputs, jobs

QUICK = {
    "device": "cpu", "similarity": "mse", "levels_mm": [4.0], "iterations": [15], "working_spacing_mm": 2.0,
}  # fmt: skip
PLACE = np.array([[0, 0, 1.8, -20], [0, 2.0, 0, 5], [2.2, 0, 0, 7], [0, 0, 0, 1.0]])
"""World from (k, j, i)."""
STEP_VOX = 1.5
"""Every blob lies this many voxels from the one before, along i."""


def blobs(count=3, shape=(14, 16, 20)):
    """Images of one blob that wanders."""
    places = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), -1)
    found = []
    for number in range(count):
        centre = np.array(shape) / 2 + [0, 0, STEP_VOX * (number - (count - 1) / 2)]
        away = ((places - centre) ** 2).sum(-1)
        found.append(Image((100 * np.exp(-away / 12)).astype(np.float32), PLACE, f"frame {number}"))
    return found


def job(images=None, **changes):
    return {"kind": "group", "settings": QUICK, "images": images or blobs(), "fixed": None, **changes}


def silent(step):
    """Nobody looks at the progress."""


def mapped(parts, points):
    return inputs.transform_of(parts).map_points(points)


@pytest.fixture(scope="module")
def answer():
    return jobs.run(job(storage="full"), silent)


@pytest.fixture(scope="module")
def direct():
    images = [inputs.volume_of(image, "image") for image in blobs()]
    return register_group(images, inputs.settings_of(QUICK))


def test_the_transforms_are_the_engines(answer, direct):
    middle = (PLACE @ [7, 8, 10, 1])[:3] + np.random.default_rng(0).uniform(-6, 6, (40, 3))
    for number in range(3):
        moved = direct.transforms[number].map_points(middle)
        np.testing.assert_allclose(mapped(answer["transforms"][number], middle), moved, atol=0.02)
        np.testing.assert_allclose(mapped(answer["inverses"][number], moved), middle, atol=0.15)
    first = mapped(answer["transforms"][0], middle)[:, 0].mean() - middle[:, 0].mean()
    assert first < -0.6 * STEP_VOX * PLACE[0, 2]  # the first blob lies to the left of the middle


def test_the_images_lie_upon_each_other(answer, direct):
    given, aligned = (np.stack([i.array for i in images]) for images in (blobs(), answer["aligned"]))
    assert aligned.std(0).max() < 0.35 * given.std(0).max()
    np.testing.assert_allclose(answer["mean"].array, aligned.mean(0), atol=1e-3)
    for image in (*answer["aligned"], answer["mean"]):
        np.testing.assert_allclose(image.world_from_voxel, PLACE)
    for image, exact in zip(answer["aligned"], direct.aligned, strict=True):
        assert np.abs(image.array - exact.data.numpy()).max() < 2.0


def test_how_sure_every_place_is(answer):
    assert len(answer["uncertainty"]) == 3
    for image in answer["uncertainty"]:
        assert (image.array >= 0).all()
        assert image.array.max() > 0.01
    assert jobs.run(job(uncertainty=False), silent)["uncertainty"] is None


def test_the_report_has_the_size_and_error_of_every_transform(answer):
    report = answer["report"]
    assert [one["stored_error_mm"]["max"] < 0.1 for one in report["transforms"]] == [True] * 3
    assert report["fixed"] is None
    assert report["similarity"]["after"]["rmse"] < report["similarity"]["before"]["rmse"]


def test_the_fixed_image_stays_as_it_is():
    found = jobs.run(job(fixed=1, uncertainty=False), silent)
    np.testing.assert_array_equal(found["aligned"][1].array, blobs()[1].array)
    np.testing.assert_allclose(found["transforms"][1][0]["matrix"], np.eye(4))
    assert len(found["transforms"][1]) == 1
    assert found["fixed"] == 1


@pytest.mark.parametrize("axis", [0, 2])
def test_slices_come_back_as_slices(axis):
    images = [
        Image(np.take(image.array, [image.array.shape[axis] // 2], axis), PLACE, image.name)
        for image in blobs()
    ]
    found = jobs.run(job(images), silent)
    for image in (*found["aligned"], found["mean"]):
        assert image.array.shape == images[0].array.shape
        np.testing.assert_allclose(image.world_from_voxel[:, [0, 1, 2]], PLACE[:, [0, 1, 2]])
    assert all(image.array.shape[axis] == 1 for image in found["uncertainty"])


def test_progress_only_grows_and_a_stop_is_heeded():
    seen = []
    jobs.run(job(uncertainty=False), lambda step: seen.append(step.fraction))
    assert seen == sorted(seen)
    assert seen[0] == 0
    assert seen[-1] > 0.9

    def stop(step):
        if step.phase == "store":
            raise Cancelled("stopped")

    with pytest.raises(Cancelled):
        jobs.run(job(uncertainty=False), stop)


@pytest.mark.parametrize(
    ("changes", "error", "words"),
    [
        ({"fixed": 3}, InputError, "counted from 0"),
        ({"images": blobs(1)}, InputError, "two images or more"),
        ({"settings": {**QUICK, "method": "affine"}}, SettingsError, "for pairs"),
        ({"storage": "tiny"}, InputError, "'half' or 'full'"),
    ],
)
def test_what_cannot_be_done_is_said(changes, error, words):
    with pytest.raises(error, match=words):
        jobs.run(job(**changes), silent)
