"""Velocities kept as numbers: the same after packing and in files, the transform made from them again."""

from __future__ import annotations

import copy
import json

import numpy as np
import pytest
import torch
from safetensors.numpy import save

from DiffeoRegLib.errors import FileFormatError, OutputError, OutputExistsError, SettingsError
from DiffeoRegLib.geodesic_files import read_geodesics, write_geodesics
from DiffeoRegLib.methods.base import Motion
from DiffeoRegLib.methods.finish import finish, to_patient
from DiffeoRegLib.pipeline import Result
from DiffeoRegLib.settings import Settings
from DiffeoRegLib.space.transform import AffineTransform, CompositeTransform, DisplacementTransform
from DiffeoRegLib.velocity_files import (
    pack,
    read_velocities,
    retrace,
    saved_velocities,
    unpack,
    write_velocities,
)
from Testing.geodesic_cases import chained
from Testing.scenes import points_of
from Testing.velocity_cases import FIELDS, saved


def assert_same(found, given):
    assert torch.equal(found.velocity_vox, given.velocity_vox)
    assert found.velocity_vox.dtype == torch.float32
    for name in ("grid", "working", "cover"):
        assert getattr(found, name).shape == getattr(given, name).shape
        np.testing.assert_array_equal(
            getattr(found, name).world_from_voxel, getattr(given, name).world_from_voxel
        )
    np.testing.assert_array_equal(found.moving_from_fixed, given.moving_from_fixed)
    assert (found.order, found.steps, found.taper_mm) == (given.order, given.steps, given.taper_mm)


def fields_of(transform):
    return [part.u_mm for part in transform.parts if isinstance(part, DisplacementTransform)]


@pytest.mark.parametrize("dim", [2, 3])
def test_nothing_changes_by_packing_nor_in_a_file(dim, tmp_path):
    given = saved(dim, steps=5, order="residual")
    arrays, description = pack(given)
    assert list(arrays) == [f"velocity.{n}" for n in range(1, FIELDS + 1)]
    assert_same(unpack(arrays, json.loads(json.dumps(description))), given)
    write_velocities(tmp_path / "way.safetensors", given)
    assert_same(read_velocities(tmp_path / "way.safetensors"), given)


@pytest.mark.parametrize("steps", [FIELDS, 5, 2 * FIELDS])
def test_time_one_is_the_transform_of_the_run_bit_for_bit(steps):
    given = saved()
    motion = Motion(given.velocity_vox, given.grid, stepping="paper")
    settings = Settings(method="transmorph-tvf", steps=steps, taper_mm=given.taper_mm)
    flow, motion = finish(motion, given.working, given.cover, settings)
    start = AffineTransform(given.moving_from_fixed)
    whole = to_patient(flow, start)
    result = Result(*whole, None, None, start, motion, {"steps": flow.steps}, working=given.working)
    kept = saved_velocities(result, given.cover, given.taper_mm)
    assert kept.steps == steps
    assert_same(kept, given.with_steps(steps))
    for again, once in zip(retrace(kept), whole, strict=True):
        for field, before in zip(fields_of(again), fields_of(once), strict=True):
            assert torch.equal(field, before)


@pytest.mark.parametrize("dim", [2, 3])
def test_the_way_begins_at_the_identity_and_is_invertible(dim):
    given = saved(dim)
    points = points_of(given.cover)[::7]
    start, back = retrace(given, 0.0)
    np.testing.assert_allclose(start.map_points(points), points, atol=1e-6)
    np.testing.assert_allclose(back.map_points(points), points, atol=1e-6)
    lengths = []
    for time in (0.25, 0.5, 1.0):
        forward, inverse = retrace(given, time)
        moved = forward.map_points(points)
        assert np.abs(inverse.map_points(moved) - points).max() < 0.1
        lengths.append(np.linalg.norm(moved - points, axis=1).mean())
    assert lengths == sorted(lengths)
    assert lengths[2] > 0.2


def test_half_way_is_what_has_acted_until_then():
    """Two fields: after the first half of the time only the first one counts, and the second comes on top."""
    given = saved(2)
    both = given.velocity_vox[:2]
    alone = torch.cat([both[:1], torch.zeros_like(both[:1])])
    whole = {"velocity_vox": both, "steps": 2}
    half = retrace(copied(given, **whole), 0.5)[0]
    first = retrace(copied(given, velocity_vox=alone, steps=2), 1.0)[0]
    points = points_of(given.cover)
    np.testing.assert_allclose(half.map_points(points), first.map_points(points), atol=1e-5)
    assert np.abs(retrace(copied(given, **whole))[0].map_points(points) - half.map_points(points)).max() > 0.1


def copied(given, **changes):
    import dataclasses

    return dataclasses.replace(given, **changes)


def test_a_mirror_has_no_half_way_and_that_is_said():
    given = copied(saved(), moving_from_fixed=np.diag([-1.0, 1, 1, 1]))
    notes = []
    retrace(given, 0.5, notes=notes)
    assert any("no gradual form" in note for note in notes)
    for time in (-0.1, 1.1, float("nan")):
        with pytest.raises(SettingsError, match="A path runs from time 0 to time 1"):
            retrace(given, time)


def test_other_steps_are_other_steps_of_the_same_velocities():
    given = saved(2)
    points = points_of(given.cover)
    three, many, more = (retrace(given.with_steps(n))[0].map_points(points) for n in (3, 48, 96))
    assert np.abs(many - more).max() < 0.5 * np.abs(three - more).max()
    assert 0.005 < np.abs(three - more).max() < 1.0
    with pytest.raises(SettingsError, match="whole number from 1"):
        given.with_steps(0)


def result_of(**changes):
    given = saved()
    motion = Motion(given.velocity_vox, given.grid, **changes.pop("motion", {"stepping": "paper"}))
    known = {
        "transform": None, "inverse": None, "moved": None, "moved_labels": None,
        "initial": AffineTransform(np.eye(4)), "motion": motion, "report": {"steps": 3},
        "working": given.working,
    }  # fmt: skip
    return Result(**(known | changes)), given.cover


def test_what_has_no_such_way_is_not_kept():
    assert saved_velocities(*result_of()) is not None
    assert saved_velocities(*result_of(motion={})) is None
    assert saved_velocities(*result_of(working=None)) is None
    result, cover = result_of()
    u_mm = torch.ones(1, 3, *cover.shape)
    bent = CompositeTransform([DisplacementTransform(cover, u_mm), result.initial])
    assert saved_velocities(*result_of(initial=bent)) is None


def described(name, value):
    return lambda arrays, description: description.update({name: value})


def array(change):
    return lambda arrays, _: arrays.update({"velocity.2": change(arrays["velocity.2"])})


def with_nan(values):
    values = values.copy()
    values.flat[7] = np.nan
    return values


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (described("format", "later"), "format 'later'"),
        (described("fields", 0), "0 velocity fields"),
        (described("fields", 4), "holds the arrays"),
        (described("steps", 0), "whole number"),
        (described("steps", 2.5), "steps"),
        (described("order", "backwards"), "backwards"),
        (described("taper_mm", -1.0), "taper"),
        (described("grid", {"shape": [4, 4, 4], "world_from_voxel": [[1.0]]}), "4 x 4"),
        (described("moving_from_fixed", [[0.0] * 4] * 4), "matrix"),
        (lambda a, d: d.pop("cover"), "cover"),
        (lambda a, d: d["cover"].update(shape=[4, 4]), "number of axes"),
        (lambda a, d: a.pop("velocity.1"), "holds the arrays"),
        (array(with_nan), "not finite"),
        (array(lambda v: v.astype(np.float64)), "float64"),
        (array(lambda v: v[:, :2]), "not (1, 3"),
    ],
)
def test_wrong_content_is_refused_in_one_sentence(change, said):
    arrays, description = (copy.deepcopy(part) for part in pack(saved()))
    change(arrays, description)
    with pytest.raises(FileFormatError) as caught:
        unpack(arrays, description, "mine")
    words = str(caught.value)
    assert said in words
    assert words.startswith("'mine' ")
    assert "\n" not in words


def test_only_float32_is_kept():
    with pytest.raises(SettingsError, match="float32"):
        pack(copied(saved(2), velocity_vox=saved(2).velocity_vox.double()))


def test_files_that_are_damaged_or_of_another_kind(tmp_path):
    path, other = tmp_path / "way.safetensors", tmp_path / "geodesic.safetensors"
    write_velocities(path, saved(2))
    with pytest.raises(OutputExistsError):
        write_velocities(path, saved(2))
    with pytest.raises(OutputError, match="velocities are written as"):
        write_velocities(tmp_path / "way.h5", saved(2))
    with pytest.raises(FileFormatError, match="no geodesic"):
        read_geodesics(path)
    write_geodesics(other, chained())
    with pytest.raises(FileFormatError, match="no path of velocities"):
        read_velocities(other)
    content = path.read_bytes()
    for bad, said in (
        (content[:-1], "damaged"),
        (content.replace(b'\\"steps\\": 3', b'\\"steps\\": 4'), "altered"),
        (save(pack(saved(2))[0]), "no path of velocities"),
        (b"", "empty"),
    ):
        path.write_bytes(bad)
        with pytest.raises(FileFormatError, match=said):
            read_velocities(path)
    with pytest.raises(FileFormatError, match="no file"):
        read_velocities(tmp_path / "missing.safetensors")
