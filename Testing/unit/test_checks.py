"""Pre-flight: every kind of bad input is refused with the reason, every odd one is mentioned."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from DiffeoRegLib.errors import InputError
from DiffeoRegLib.space.grid import Grid
from DiffeoRegLib.volumes.checks import check_pair, is_sheared
from DiffeoRegLib.volumes.pair import Correspondence, Masks
from DiffeoRegLib.volumes.volume import Volume


def image(shape=(8, 9, 10), spacing=(1.0, 1.0, 1.0), name="head", matrix=None, seed=0):
    values = torch.rand(shape, generator=torch.Generator().manual_seed(seed))
    world = np.diag([*spacing, *[1.0] * (4 - len(spacing))]) if matrix is None else matrix
    return Volume(values, Grid(shape, world), name)


def mask(shape=(8, 9, 10), shift=0.0, filled=True):
    data = torch.zeros(shape, dtype=torch.int32)
    if filled:
        data[2:5, 2:5, 2:5] = 1
    world = np.eye(4)
    world[0, 3] = shift
    return Volume(data, Grid(shape, world), "mask", is_labels=True)


def test_two_plain_images_need_no_remark():
    assert check_pair(image(), image(seed=1)) == []


def test_two_dimensions_and_three_do_not_mix():
    with pytest.raises(InputError, match="3D and 'slice' is 2D"):
        check_pair(image(), image((8, 9), (1.0, 1.0), "slice"))


def test_constant_image_is_refused():
    flat = Volume(torch.full((8, 9, 10), 7.0), image().grid, "flat")
    with pytest.raises(InputError, match=r"'flat' has the same value \(7\) everywhere"):
        check_pair(image(), flat)


def test_image_without_any_number_is_refused():
    empty = Volume(torch.full((8, 9, 10), torch.nan), image().grid, "lost")
    with pytest.raises(InputError, match="'lost' holds no finite value"):
        check_pair(empty, image())


def test_image_that_is_constant_but_for_nan_is_refused():
    data = torch.ones(8, 9, 10)
    data[0, 0, 0] = torch.nan
    with pytest.raises(InputError, match="same value"):
        check_pair(Volume(data, image().grid, "flat"), image())


def test_nan_and_infinity_are_counted():
    data = image().data.clone()
    data[0, 0, :2] = torch.nan
    data[1, 1, 1] = torch.inf
    (note,) = check_pair(Volume(data, image().grid, "holes"), image(seed=1))
    assert note.startswith("3 voxels of the fixed image 'holes' are NaN or infinite")


@pytest.mark.parametrize(
    ("shape", "words"), [((1, 9, 10), "single slice"), ((8, 3, 10), "at least 4 voxels")]
)
def test_thin_volumes_are_refused(shape, words):
    with pytest.raises(InputError, match=words):
        check_pair(image(), image(shape, name="thin"))


def test_complex_values_are_refused():
    with pytest.raises(InputError, match="complex"):
        check_pair(Volume(image().data.to(torch.complex64), image().grid, "k-space"), image())


def test_sheared_axes_are_mentioned():
    sheared = np.eye(4)
    sheared[0, 1] = 0.3
    assert is_sheared(Grid((8, 9, 10), sheared))
    assert not is_sheared(image(spacing=(1.0, 2.0, 5.0)).grid)
    (note,) = check_pair(image(matrix=sheared, name="gantry"), image(seed=1))
    assert "'gantry' are not at right angles" in note


@pytest.mark.parametrize(
    ("spacing", "words"),
    [
        ((0.002, 0.002, 0.002), "check that its header"),
        ((10.0, 1.0, 1.0), "very anisotropic"),
        ((25.0, 25.0, 25.0), "check that its header"),
    ],
)
def test_odd_voxel_sizes_are_mentioned(spacing, words):
    notes = check_pair(image(), image(spacing=spacing, seed=1))
    assert len(notes) == 1
    assert words in notes[0]


def test_the_same_image_twice_is_mentioned():
    one = image()
    assert check_pair(one, one) == ["Fixed and moving are the same image: the result will be the identity."]


def test_empty_mask_is_refused():
    with pytest.raises(InputError, match="'mask' is empty"):
        check_pair(image(), image(seed=1), Masks(moving=mask(filled=False)))


def test_mask_elsewhere_is_refused_unless_it_excludes():
    away = mask(shift=500.0)
    with pytest.raises(InputError, match="does not touch the image 'head'"):
        check_pair(image(), image(seed=1), Masks(fixed=away))
    notes = check_pair(image(), image(seed=1), Masks(fixed=away, exclude_fixed=True))
    assert any("another geometry" in note for note in notes)


def test_mask_in_another_geometry_is_mentioned():
    (note,) = check_pair(image(), image(seed=1), Masks(fixed=mask(shape=(6, 6, 6))))
    assert "another geometry than 'head'" in note
    assert check_pair(image(), image(seed=1), Masks(fixed=mask())) == []


def test_mask_that_excludes_everything_is_refused():
    everything = Volume(torch.ones((8, 9, 10), dtype=torch.int32), image().grid, "mask")
    with pytest.raises(InputError, match="excludes all"):
        check_pair(image(), image(seed=1), Masks(fixed=everything, exclude_fixed=True))


def test_labels_and_landmarks_come_in_pairs():
    with pytest.raises(InputError, match="only in pairs"):
        check_pair(image(), image(seed=1), guidance=Correspondence(fixed_labels=mask()))
    with pytest.raises(InputError, match="only in pairs"):
        check_pair(image(), image(seed=1), guidance=Correspondence(moving_points_mm=np.zeros((2, 3))))


def test_labels_must_share_a_number():
    other = Volume(mask().data * 5, mask().grid, "five")
    with pytest.raises(InputError, match="no label number in common"):
        check_pair(image(), image(seed=1), guidance=Correspondence(mask(), other))
    both = mask().data.clone()
    both[6, 6, 6] = 9
    (note,) = check_pair(
        image(), image(seed=1), guidance=Correspondence(mask(), Volume(both, mask().grid, "m"))
    )
    assert note == "1 labels exist on one side only and are not used: 9."


def test_empty_labels_are_refused():
    with pytest.raises(InputError, match="no label other than 0"):
        check_pair(image(), image(seed=1), guidance=Correspondence(mask(), mask(filled=False)))


def test_landmarks_must_correspond_and_lie_in_the_image():
    inside = np.full((3, 3), 4.0)
    for fixed, moving, words in (
        (inside, inside[:2], "3 fixed but 2 moving"),
        (inside[:, :2], inside, "list of"),
        (inside * np.nan, inside, "NaN"),
        (inside - 100, inside, "All fixed landmarks lie outside"),
    ):
        with pytest.raises(InputError, match=words):
            check_pair(image(), image(seed=1), guidance=Correspondence(None, None, fixed, moving))
    partly = inside.copy()
    partly[0] = 99.0
    (note,) = check_pair(image(), image(seed=1), guidance=Correspondence(None, None, inside, partly))
    assert note == "1 of 3 moving landmarks lie outside 'head'."
