"""Files of geodesics: exact, compact, at any time, and nothing but what they should be."""

from __future__ import annotations

import copy
import json
import sys

import numpy as np
import pytest
import torch
from safetensors.numpy import save

from DiffeoRegLib import geodesic_files
from DiffeoRegLib.catalog import SHIPPED_WEIGHTS
from DiffeoRegLib.errors import FileFormatError, OutputError, OutputExistsError, SettingsError
from DiffeoRegLib.flows.shooting import ShootingDiverged
from DiffeoRegLib.geodesic_files import (
    KEY,
    MOST_STEPS,
    SavedGeodesics,
    matrix_at,
    pack,
    read_geodesics,
    reshoot,
    saved_geodesics,
    sealed,
    unpack,
    write_geodesics,
)
from DiffeoRegLib.methods.base import Motion
from DiffeoRegLib.methods.finish import finish, to_patient
from DiffeoRegLib.methods.geodesic import Geodesic
from DiffeoRegLib.settings import Settings
from DiffeoRegLib.space.transform import AffineTransform, CompositeTransform, DisplacementTransform
from Testing.fake_run import known_motion
from Testing.geodesic_cases import chained, flat, regional_kernel, whole_kernel
from Testing.scenes import points_of


@pytest.fixture(scope="module")
def chain():
    return chained()


@pytest.fixture(scope="module")
def packed(chain):
    return pack(chain)


@pytest.fixture(scope="module")
def content(chain, tmp_path_factory):
    """The bytes of a file."""
    path = tmp_path_factory.mktemp("geodesic") / "geodesic.safetensors"
    write_geodesics(path, chain)
    return path.read_bytes()


def same(first, second):
    """Whether two transforms are the same, bit for bit."""
    pairs = list(zip(first.parts, second.parts, strict=True))
    for one, other in pairs:
        assert type(one) is type(other)
        if isinstance(one, DisplacementTransform):
            assert torch.equal(one.u_mm, other.u_mm)
            np.testing.assert_array_equal(one.grid.world_from_voxel, other.grid.world_from_voxel)
        else:
            np.testing.assert_array_equal(one.moving_from_fixed, other.moving_from_fixed)
    return len(pairs) == 2


def of_run(saved):
    """Transform and inverse as the pipeline makes them, from the geodesics as they were found."""
    flow, _ = finish(
        Motion.of(*saved.geodesics), saved.working, saved.cover, Settings(taper_mm=saved.taper_mm)
    )
    return to_patient(flow, AffineTransform(saved.moving_from_fixed))


# ---------------------------------------------------------------- exact


@pytest.mark.parametrize("make", [chained, flat, lambda: chained(walls=True)], ids=["chain", "flat", "walls"])
def test_the_transform_of_the_run_comes_back_bit_for_bit(make, tmp_path):
    saved = make()
    write_geodesics(tmp_path / "g.safetensors", saved)
    again = reshoot(read_geodesics(tmp_path / "g.safetensors"))
    for mine, theirs in zip(again, of_run(saved), strict=True):
        assert same(mine, theirs)
    assert float(again[0].parts[0].u_mm.abs().max()) > 1


@pytest.mark.parametrize(("integrator", "form"), [("dopri5", "separable"), ("rk4", "fourier")])
def test_every_way_of_shooting_is_kept(integrator, form):
    whole = whole_kernel(flat().working, integrator=integrator)
    metric = type(whole.metric)(
        whole.place.grid.shape,
        whole.place.spacing,
        whole.place.sigmas,
        whole.metric.weights,
        order=4,
        form=form,
    )
    link = Geodesic(metric, whole.place, whole.tensors, 9, integrator)
    grid = whole.place.grid
    again = unpack(*pack(SavedGeodesics((link,), grid, grid, np.eye(4)))).geodesics[0]
    assert (again.metric.kernels.form, again.integrator, again.steps) == (form, integrator, 9)
    assert (again.metric.stencil.order, again.metric.weights) == (4, link.metric.weights)
    assert all(torch.equal(a, b) for a, b in zip(again.maps(grid, 0.7), link.maps(grid, 0.7), strict=True))


def test_the_description_survives_json(chain, packed):
    arrays, description = packed
    again = unpack(arrays, json.loads(json.dumps(description, allow_nan=False)))
    assert pack(again)[1] == description
    assert again.taper_mm == 5.0
    assert again.cover.shape == chain.cover.shape


def test_a_file_holds_little_more_than_its_numbers(chain, content):
    numbers = sum(tensor.numel() for link in chain.geodesics for tensor in link.tensors)
    assert len(content) < 4 * numbers + 6000


# ---------------------------------------------------------------- times and steps


def test_the_way_begins_at_the_identity_and_is_invertible(chain):
    points = points_of(chain.cover)[::97]
    start, back = reshoot(chain, 0.0)
    np.testing.assert_allclose(start.map_points(points), points, atol=1e-5)
    np.testing.assert_allclose(back.map_points(points), points, atol=1e-5)
    half, back = reshoot(chain, 0.5)
    assert np.linalg.norm(half.map_points(points) - points, axis=1).max() > 1
    missed = np.linalg.norm(back.map_points(half.map_points(points)) - points, axis=1)
    assert np.percentile(missed, 95) < 0.05


def test_half_way_the_first_of_two_geodesics_is_whole(chain):
    first = SavedGeodesics(chain.geodesics[:1], chain.working, chain.cover, chain.moving_from_fixed, 5.0)
    alone, both = reshoot(first)[0].parts[0], reshoot(chain, 0.5)[0].parts[0]
    assert torch.equal(alone.u_mm, both.u_mm)


def test_the_linear_part_goes_along(chain):
    matrix, note = matrix_at(chain, 0.5)
    assert note is None
    np.testing.assert_allclose(matrix @ matrix, chain.moving_from_fixed, atol=1e-10)
    np.testing.assert_array_equal(reshoot(chain, 0.5)[0].parts[1].moving_from_fixed, matrix)


def test_a_mirror_is_applied_whole_and_said_so():
    plain, notes = flat(), []
    mirrored = SavedGeodesics(plain.geodesics, plain.working, plain.cover, np.diag([-1.0, 1, 1, 1]))
    half, _ = reshoot(mirrored, 0.5, notes=notes)
    np.testing.assert_array_equal(half.parts[1].moving_from_fixed, mirrored.moving_from_fixed)
    assert "whole" in notes[0]


def test_more_steps_give_nearly_the_same_map_and_too_few_are_refused():
    saved = flat()
    points = points_of(saved.cover)[::7]
    usual, fine = reshoot(saved)[0], reshoot(saved, steps=30)[0]
    apart = np.linalg.norm(usual.map_points(points) - fine.map_points(points), axis=1)
    assert 0 < apart.max() < 0.02
    assert saved.geodesics[0].steps == 7
    fast = SavedGeodesics((regional_kernel(saved.working, 20.0),), saved.working, saved.cover, np.eye(4))
    with pytest.raises(ShootingDiverged, match="crosses"):
        reshoot(fast, steps=1)


@pytest.mark.parametrize("time", [-0.01, 1.01, float("nan"), float("inf")])
def test_times_outside_the_way(time):
    with pytest.raises(SettingsError, match="from time 0 to time 1"):
        reshoot(flat(), time)


@pytest.mark.parametrize("steps", [0, -1, 2.5, MOST_STEPS + 1])
def test_impossible_steps(steps):
    with pytest.raises(SettingsError, match="whole number"):
        reshoot(flat(), steps=steps)


# ---------------------------------------------------------------- what a run gives


class Run:
    """What of a pipeline.Result counts here."""

    def __init__(self, saved, initial=None):
        self.motion, self.working = Motion.of(*saved.geodesics), saved.working
        self.initial = AffineTransform(saved.moving_from_fixed) if initial is None else initial


def test_what_is_kept_of_a_run(chain):
    kept = saved_geodesics(Run(chain), chain.cover, 5.0)
    assert same(reshoot(kept)[0], of_run(chain)[0])
    bent = CompositeTransform(known_motion(chain.cover))
    assert saved_geodesics(Run(chain, bent), chain.cover, 5.0) is None
    without = Run(chain)
    without.motion = None
    assert saved_geodesics(without, chain.cover) is None
    without.motion = Motion(torch.zeros(1, 3, 4, 4, 4), chain.working)
    assert saved_geodesics(without, chain.cover) is None


# ---------------------------------------------------------------- bad content


def changed(packed, change):
    """A copy of a packed geodesic after `change(arrays, description)`."""
    arrays, description = dict(packed[0]), copy.deepcopy(packed[1])
    change(arrays, description)
    return arrays, description


def put(place, value):
    """A change of one value of the description."""

    def change(_, description):
        inner = description
        for key in place[:-1]:
            inner = inner[key]
        inner[place[-1]] = value

    return change


def array(name, make):
    """A change of one array."""

    def change(arrays, _):
        arrays[name] = make(arrays[name])

    return change


def with_nan(values):
    values = values.copy()
    values.flat[5] = np.nan
    return values


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (put(["format"], "diffeoreg-geodesic-2"), "reads 'diffeoreg-geodesic-1'"),
        (lambda _, d: d.pop("format"), "'None'"),
        (lambda _, d: d.pop("links"), "links"),
        (put(["more"], 1), "more"),
        (put(["links"], []), "no geodesic"),
        (put(["links", 0, "steps"], 0), "0 steps"),
        (put(["links", 0, "steps"], 2.5), "whole number"),
        (put(["links", 0, "steps"], MOST_STEPS + 1), "steps"),
        (put(["links", 0, "integrator"], "euler"), "euler"),
        (put(["links", 0, "form"], "auto"), "auto"),
        (put(["links", 0, "order"], 3), "order"),
        (put(["links", 0, "walls"], 1), "true or false"),
        (put(["links", 0, "sigmas"], [0.01, 0.2, 0.3]), "widths"),
        (put(["links", 0, "sigmas"], [0.14, float("nan"), 0.3]), "lengths"),
        (put(["links", 0, "sigmas"], [0.14, 10**400, 0.3]), "too large"),
        (put(["links", 0, "sigmas"], []), "not"),
        (put(["links", 0, "unit_mm"], [1.0, 1.0]), "lengths"),
        (put(["links", 0, "preweight_sigma"], -1.0), "lengths"),
        (put(["links", 0, "weights"], [1.0, -1.0, 1.0]), "weights"),
        (put(["links", 0, "weights"], [0.0, 0.0, 0.0]), "weights"),
        (put(["links", 0, "weights"], [1.0]), "weights"),
        (put(["links", 0, "grid", "shape"], [5, 5, 5]), "momentum"),
        (put(["links", 0, "grid", "shape"], [9, 9]), "number of axes"),
        (put(["cover", "shape"], [9, 9]), "number of axes"),
        (put(["cover", "shape"], [0, 9, 9]), "at least one voxel"),
        (put(["cover", "shape"], [10**5, 10**5, 10**5]), "more than"),
        (put(["working", "world_from_voxel"], [[1.0, 0.0], [0.0, 1.0]]), "4 x 4"),
        (put(["working", "world_from_voxel"], np.zeros((4, 4)).tolist()), "singular"),
        (put(["moving_from_fixed"], np.zeros((4, 4)).tolist()), "affine"),
        (put(["moving_from_fixed", 0, 0], float("inf")), "finite"),
        (put(["taper_mm"], -1.0), "taper"),
        (put(["taper_mm"], "wide"), "taper_mm"),
        (lambda a, _: a.pop("0.momentum"), "arrays"),
        (lambda a, _: a.update(extra=np.zeros(3, np.float32)), "extra"),
        (array("0.momentum", with_nan), "not finite"),
        (array("1.preweights", with_nan), "not finite"),
        (array("0.momentum", lambda v: v.astype(np.float64)), "float64"),
        (array("0.momentum", lambda v: v.astype(np.int32)), "int32"),
        (array("0.momentum", lambda v: v[:, :2]), "not (1, 3"),
        (array("1.preweights", lambda v: v[:, :2]), "not (1, 3"),
    ],
)  # fmt: skip
def test_wrong_content_is_refused_in_one_sentence(change, said, packed):
    with pytest.raises(FileFormatError) as caught:
        unpack(*changed(packed, change), "mine")
    words = str(caught.value)
    assert said in words
    assert words.startswith("'mine' ")
    assert "\n" not in words


def test_only_float32_is_kept():
    plain = flat()
    link = plain.geodesics[0]
    double = Geodesic(link.metric, link.place, tuple(t.double() for t in link.tensors), 5)
    with pytest.raises(SettingsError, match="float32"):
        pack(SavedGeodesics((double,), plain.working, plain.cover, np.eye(4)))


# ---------------------------------------------------------------- files


def refused(tmp_path, content, said):
    path = tmp_path / "bad.safetensors"
    path.write_bytes(content)
    with pytest.raises(FileFormatError) as caught:
        read_geodesics(path)
    words = str(caught.value)
    assert said in words
    assert "bad.safetensors" in words
    assert "\n" not in words


def test_damaged_files(content, tmp_path):
    refused(tmp_path, b"", "empty")
    refused(tmp_path, content[:-1], "damaged")
    refused(tmp_path, content[: len(content) // 2], "damaged")
    refused(tmp_path, content + b"x", "damaged")
    refused(tmp_path, b"PK\x03\x04" + content, "damaged")
    refused(tmp_path, b"\xff" * 64, "damaged")
    bent = bytearray(content)
    bent[-7] ^= 1
    refused(tmp_path, bytes(bent), "altered")
    refused(tmp_path, content.replace(b'\\"steps\\": 6', b'\\"steps\\": 7'), "altered")


def test_other_files(packed, tmp_path):
    arrays = packed[0]
    refused(tmp_path, save(arrays), "no geodesic")
    weights = sorted(SHIPPED_WEIGHTS.glob("*.safetensors"))[0]
    refused(tmp_path, weights.read_bytes(), "no geodesic")
    unknown = sealed(arrays, {"format": "other"})
    for text, said in (
        ("[]", "no geodesic"),
        ("{}", "no geodesic"),
        ("{", "damaged"),
        (unknown, "format 'other'"),
    ):
        refused(tmp_path, save(arrays, metadata={KEY: text}), said)
    with pytest.raises(FileFormatError, match="no file"):
        read_geodesics(tmp_path / "missing.safetensors")
    with pytest.raises(FileFormatError):
        read_geodesics(tmp_path)


def test_a_file_is_whole_or_absent_and_kept_unless_asked(chain, content, tmp_path, monkeypatch):
    path = tmp_path / "geodesic.safetensors"
    path.write_bytes(b"precious")
    with pytest.raises(OutputExistsError):
        write_geodesics(path, chain)
    assert path.read_bytes() == b"precious"

    def full(*_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(geodesic_files.Path, "write_bytes", full)
        with pytest.raises(OutputError, match="No space left"):
            write_geodesics(path, chain, overwrite=True)
    assert path.read_bytes() == b"precious"
    assert [file.name for file in tmp_path.iterdir()] == [path.name]
    write_geodesics(path, chain, overwrite=True)
    assert path.read_bytes() == content
    for bad in (tmp_path / "geodesic.h5", tmp_path / "nowhere" / "geodesic.safetensors"):
        with pytest.raises(OutputError):
            write_geodesics(bad, chain)


def test_without_its_package_files_say_what_to_install(chain, content, tmp_path, monkeypatch):
    (tmp_path / "geodesic.safetensors").write_bytes(content)
    monkeypatch.setitem(sys.modules, "safetensors", None)
    with pytest.raises(OutputError, match="pip install safetensors"):
        write_geodesics(tmp_path / "new.safetensors", chain)
    with pytest.raises(FileFormatError, match="pip install safetensors"):
        read_geodesics(tmp_path / "geodesic.safetensors")
    assert unpack(*pack(chain)).taper_mm == 5.0
