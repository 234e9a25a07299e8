"""Single slices in Slicer: volumes with one voxel along an axis, and networks that take only one kind."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from DiffeoRegLib import catalog
from DiffeoRegLib.settings import Settings
from DiffeoRegPanel.checks import check_request
from DiffeoRegPanel.request import Request
from Testing.slicer import region_cases as cases
from Testing.slicer.test_checks import refused


def slice_of(name, axis=0, away=0.0, count=1):
    """A volume of a single slice, or of a few, `away` millimetres along its normal."""
    shape = [16, 18, 20]
    shape[axis] = count
    place = np.eye(4)
    place[2 - axis, 3] = away
    return cases.add_volume(tuple(shape), place, name)


def test_single_slices_register_with_each_other_wherever_they_lie(scene):
    fixed = slice_of("fixed")
    for moving in (slice_of("moving"), slice_of("apart", away=40.0), slice_of("turned", axis=2)):
        check_request(Request(fixed, moving))
    identity = Request(fixed, slice_of("moving", away=0.3), Settings(init="identity"))
    check_request(identity)
    refused(
        identity,
        "'apart' lie in different planes, up to 40 mm",
        "Automatic",
        moving=slice_of("apart", 0, 40.0),
    )
    refused(identity, "different planes", moving=slice_of("turned", axis=2))
    check_request(dataclasses.replace(identity, moving=slice_of("apart", away=40.0), settings=Settings()))
    refused(
        identity, "'two' (20 x 18 x 2 voxels) is too thin", "'Single File'", moving=slice_of("two", 0, 0, 2)
    )
    full = cases.add_volume((16, 18, 20), np.eye(4), "full")
    refused(identity, "'fixed' is a single slice and 'full' is a volume", moving=full)


@pytest.mark.parametrize(("spacing", "takes"), [((1.0, 1.0), "single slices"), ((2.0, 2.0, 2.0), "volumes")])
def test_a_network_gets_images_of_its_dimension(monkeypatch, scene, spacing, takes):
    card = dataclasses.replace(catalog.CARDS["svf"], title="Trained", spacing_mm=spacing)
    monkeypatch.setitem(catalog.CARDS, "trained", card)
    flat = Request(slice_of("fixed"), slice_of("moving"))
    shapes = ((cases.FIXED_SHAPE, cases.FIXED_PLACE), (cases.MOVING_SHAPE, cases.MOVING_PLACE))
    whole = Request(*(cases.add_volume(*shape, "volume") for shape in shapes))
    requests = [dataclasses.replace(r, settings=Settings(method="trained")) for r in (flat, whole)]
    fits, other = requests if len(spacing) == 2 else reversed(requests)
    check_request(fits)
    refused(other, f"'Trained' takes {takes}", "choose another method")
