"""Metamorphosis from volumes and files to transforms: what is found, shown, said and refused."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
import torch

from DiffeoRegLib.cli import main
from DiffeoRegLib.errors import InputError, SettingsError
from DiffeoRegLib.flows.exponential import exp
from DiffeoRegLib.pipeline import register
from DiffeoRegLib.settings import Settings
from DiffeoRegLib.space.field import compose
from DiffeoRegLib.space.sample import array_from_tensor, warp
from DiffeoRegLib.space.transform import AffineTransform, DisplacementTransform, displacement_on
from DiffeoRegLib.training.draws import generator_for
from DiffeoRegLib.training.lesions import LesionOptions, implant
from DiffeoRegLib.volumes.files import read_volume, write_volume
from DiffeoRegLib.volumes.pair import Masks
from DiffeoRegLib.volumes.pathology import UNMARKED, Pathology
from DiffeoRegLib.volumes.resample import warp_labels, warp_volume
from DiffeoRegLib.volumes.volume import Volume
from Testing.lesion_cases import brain
from Testing.scenes import points_of, smooth_velocity, turned_grid

SHAPE = (72, 64)
GRID = turned_grid(SHAPE, (2.0, 2.0), 20.0)
QUICK = Settings(
    method="metamorphosis", init="identity", levels_mm=(4.0, 2.0), iterations=(20, 20), device="cpu",
    large_displacement=False,
)  # fmt: skip
LESION = LesionOptions(
    count=(1, 1), radius_vox=(7.0, 8.0), growth=(0.5, 0.5), reaches_vox=(12.0,), oedema=0.0, looks=("t1c",)
)
FILES = {"deformed.nii.gz", "change.nii.gz", "metamorphic.nii.gz", "healthy.nii.gz"}


@dataclasses.dataclass
class Case:
    """A patient, the healthy image it came from, marks, what was there before, and the true map in voxels."""

    fixed: Volume
    moving: Volume
    marks: Volume
    before: torch.Tensor
    truth_vox: torch.Tensor

    def errors_mm(self, transform):
        """Mean error under the marks and up to 10 mm beside them."""
        marks = array_from_tensor(self.marks.data) > 0
        index = np.stack(
            np.meshgrid(*[np.arange(float(n)) for n in self.fixed.grid.shape], indexing="ij"), -1
        )
        there = index + np.moveaxis(array_from_tensor(self.truth_vox[0]), 0, -1)
        found = transform.map_points(points_of(self.fixed.grid))
        error = np.linalg.norm(
            found - self.fixed.grid.world_from_index(there.reshape(-1, marks.ndim)), axis=1
        )
        error = error.reshape(marks.shape)
        gap = np.linalg.norm((index[..., None, :] - index[marks]) * self.fixed.grid.spacing, axis=-1).min(-1)
        return error[marks].mean(), error[(gap > 0) & (gap < 10)].mean()


def case(shape=SHAPE, grid=GRID, seed=0):
    """A bent brain with a lesion that pushes, in other units than the healthy one."""
    moving = brain(shape, seed)
    bend = exp(smooth_velocity(shape, 2.0), 6)
    options = LESION if len(shape) == 2 else dataclasses.replace(LESION, radius_vox=(4.0, 5.0))
    healthy = warp(moving, bend)
    ill = implant(healthy, generator_for("lesion", seed), options)
    return Case(
        Volume(500 * ill.image[0, 0], grid, "patient"),
        Volume(900 * moving[0, 0] + 20, grid, "atlas"),
        Volume(ill.parts[0, 0].to(torch.int32), grid, "tumour", is_labels=True),
        500 * warp(healthy, ill.u_vox)[0, 0],
        compose(bend, ill.u_vox),
    )


@pytest.fixture(scope="module")
def scene():
    return case()


@pytest.fixture(scope="module")
def done(scene):
    return register(scene.fixed, scene.moving, QUICK, pathology=Pathology(scene.marks))


def same(first, second):
    """Whether two runs gave the same transform and image, bit for bit."""
    points = points_of(GRID)
    return np.array_equal(first.transform.map_points(points), second.transform.map_points(points)) and (
        torch.equal(first.moved.data, second.moved.data)
    )


def marks_with(marks, change):
    return Volume(change(marks.data), marks.grid, marks.name, is_labels=True)


def test_the_map_is_better_than_with_or_without_a_mask(scene, done):
    plain = QUICK.with_changes(method="svf")
    none = register(scene.fixed, scene.moving, plain)
    masks = Masks(fixed=scene.marks, exclude_fixed=True)
    masked = register(scene.fixed, scene.moving, plain, masks=masks)
    found, alone, left_out = (scene.errors_mm(r.transform) for r in (done, none, masked))
    assert sum(found) < 0.9 * sum(alone)
    assert sum(found) < 0.9 * sum(left_out)
    assert done.report["folds"]["folded_percent"] == 0
    assert done.report["inverse_consistency_mm"]["p95"] < 0.2


def test_what_it_shows(scene, done):
    """The sum looks like the patient, the healthy look like what was there before the lesion."""
    inside = scene.marks.data > 0
    look = done.appearance
    assert torch.equal(look.deformed.data, done.moved.data)
    fixed = scene.fixed.data
    as_fixed = fixed / 500 * 900 + 20
    bare, summed = (
        (volume.data - as_fixed)[inside].abs().mean() for volume in (look.deformed, look.metamorphic)
    )
    assert float(summed) < 0.35 * float(bare)
    ill, well = ((image - scene.before)[inside].abs().mean() for image in (fixed, look.healthy.data))
    assert float(well) < 0.5 * float(ill)
    far = torch.nn.functional.max_pool2d(inside.float()[None, None], 13, 1, 6)[0, 0] == 0
    assert not look.change.data[far].any()
    assert torch.equal(look.healthy.data[far], fixed[far])


def test_the_report_says_it(scene, done):
    scores = done.report["pathology"]
    assert scores["fixed_mm3"] == pytest.approx(4.0 * float((scene.marks.data > 0).sum()), rel=1e-3)
    assert scores["moving_mm3"] is None
    inside = done.appearance.change.data[scene.marks.data > 0]
    assert scores["change"]["mean"] == pytest.approx(float(inside.mean()), rel=1e-4)
    assert done.report["inputs"]["fixed_pathology"]["name"] == "tumour"
    assert done.report["inputs"]["fixed_pathology"]["edge_mm"] == 4.0
    assert any("MetaRegNet" in source for source in done.report["citations"])


def test_a_patient_that_moves_is_the_same_the_other_way_round(scene, done):
    back = register(scene.moving, scene.fixed, QUICK, pathology=Pathology(moving=scene.marks))
    points = points_of(GRID)[::7]
    gap = np.linalg.norm(back.inverse.map_points(points) - done.transform.map_points(points), axis=1)
    moved = np.linalg.norm(done.transform.map_points(points) - points, axis=1)
    assert gap.mean() < 0.1 * moved.mean()
    scores = back.report["pathology"]
    assert scores["fixed_mm3"] is None
    assert scores["moving_mm3"] > 0
    assert float(back.appearance.change.data.abs().max()) > 50


def test_empty_marks_are_svf_bit_for_bit_and_said(scene):
    plain = register(scene.fixed, scene.moving, QUICK.with_changes(method="svf"))
    empty = marks_with(scene.marks, torch.zeros_like)
    for pathology, said in (
        (Pathology(empty, empty), "The pathology 'tumour' marks nothing: 'patient' was taken for healthy."),
        (Pathology(), UNMARKED),
    ):
        found = register(scene.fixed, scene.moving, QUICK, pathology=pathology)
        assert same(found, plain)
        assert said in found.report["notes"]
        assert not found.appearance.change.data.any()
        assert found.report["pathology"]["change"] is None
    found = register(scene.fixed, scene.moving, QUICK)
    assert same(found, plain)
    assert UNMARKED in found.report["notes"]
    assert found.appearance is None


def test_without_marks_any_similarity_will_do(scene):
    """Nothing is taken off then, so intensities need not mean the same."""
    few = QUICK.with_changes(similarity="mind", iterations=(4, 2))
    plain = register(scene.fixed, scene.moving, few.with_changes(method="svf"))
    empty = Pathology(marks_with(scene.marks, torch.zeros_like))
    for pathology in (None, empty):
        assert same(register(scene.fixed, scene.moving, few, pathology=pathology), plain)


def test_classes_choose_what_counts(scene):
    """The lesion and a piece of sound tissue, of which only the lesion's class is chosen."""
    lesion = marks_with(scene.marks, lambda data: (data > 0).int() * 4)
    both = marks_with(lesion, lambda data: data.clone())
    both.data[5:15, 30:40] = 2
    few = QUICK.with_changes(iterations=(4, 2))
    chosen = register(scene.fixed, scene.moving, few, pathology=Pathology(both, classes=(4, 1)))
    assert same(chosen, register(scene.fixed, scene.moving, few, pathology=Pathology(lesion)))
    assert "Classes without a voxel in 'tumour': 1." in chosen.report["notes"]
    assert chosen.report["inputs"]["fixed_pathology"]["classes"] == [4, 1]


def test_marks_in_another_geometry_are_resampled_and_said(scene, done):
    grid = turned_grid((130, 130), (1.3, 1.1), -10.0, flip=(1,))
    marks = warp_labels(scene.marks, AffineTransform(np.eye(4)), grid)
    found = register(scene.fixed, scene.moving, QUICK, pathology=Pathology(marks))
    assert any("has another geometry than 'patient'; it was resampled" in n for n in found.report["notes"])
    points = points_of(GRID)[::5]
    gap = np.linalg.norm(found.transform.map_points(points) - done.transform.map_points(points), axis=1)
    assert gap.mean() < 0.3


def test_marks_follow_a_nonlinear_start(scene):
    """The patient lies 6 mm aside; a field that says so carries its marks along with it."""
    shift = np.eye(4)
    shift[:3, 3] = (6.0, 0.0, 0.0)
    aside = AffineTransform(np.linalg.inv(shift))
    patient, marks = warp_volume(scene.fixed, aside, GRID), warp_labels(scene.marks, aside, GRID)
    initial = DisplacementTransform(GRID, displacement_on(AffineTransform(shift), GRID))
    few = QUICK.with_changes(iterations=(6, 4))
    there = register(scene.moving, patient, few, initial=initial, pathology=Pathology(moving=marks))
    here = register(scene.moving, scene.fixed, few, pathology=Pathology(moving=scene.marks))
    inner = points_of(GRID)[array_from_tensor(scene.moving.data).ravel() > 100]
    gap = there.transform.map_points(inner) - shift[:3, 3] - here.transform.map_points(inner)
    assert np.linalg.norm(gap, axis=1).mean() < 0.5


def test_three_axes():
    shape = (26, 28, 24)
    scene = case(shape, turned_grid(shape, (2.0, 2.0, 2.0), 15.0, (0,)))
    settings = QUICK.with_changes(iterations=(8, 4))
    found = register(scene.fixed, scene.moving, settings, pathology=Pathology(scene.marks))
    alone = register(scene.fixed, scene.moving, settings.with_changes(method="svf"))
    assert sum(scene.errors_mm(found.transform)) < sum(scene.errors_mm(alone.transform))
    assert found.report["folds"]["folded_percent"] == 0
    assert all(volume.grid.same_as(scene.fixed.grid) for volume in found.appearance.volumes)


def far_away(marks):
    matrix = marks.grid.world_from_voxel.copy()
    matrix[:3, 3] += 500
    return Volume(marks.data, dataclasses.replace(marks.grid, world_from_voxel=matrix), marks.name, True)


REFUSED = {
    "everything": (lambda m: Pathology(marks_with(m, torch.ones_like)), {}, "covers all of 'patient'"),
    "outside": (lambda m: Pathology(far_away(m)), {}, "does not touch the image 'patient'"),
    "class": (lambda m: Pathology(m, classes=(77,)), {}, r"none of the chosen classes \(77\)"),
    "not used": (lambda m: Pathology(m), {"method": "svf"}, "'svf' has no use for a pathology"),
    "contrast": (lambda m: Pathology(m), {"similarity": "mind"}, "which 'mind' does not compare"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused_before_any_work(scene, name):
    pathology, changes, words = REFUSED[name]
    began = []
    with pytest.raises(InputError, match=words) as refused:
        register(
            scene.fixed, scene.moving, QUICK.with_changes(**changes), pathology=pathology(scene.marks),
            progress=began.append,
        )  # fmt: skip
    assert "\n" not in str(refused.value)
    assert began == []


def test_the_soft_edge_is_a_length():
    with pytest.raises(SettingsError, match="0 mm or wider"):
        Pathology(edge_mm=-1.0)


def test_the_command_writes_all_four_volumes(scene, tmp_path):
    names = {"patient": scene.fixed, "atlas": scene.moving, "tumour": scene.marks}
    files = {name: str(tmp_path / f"{name}.nii.gz") for name in names}
    for name, volume in names.items():
        write_volume(volume, files[name])
    out = tmp_path / "out"
    words = ["--method", "metamorphosis", "--pathology", files["tumour"], "--pathology-edge-mm", "2"]
    words += ["--init", "identity", "--levels", "4,2", "--iterations", "4,2", "--device", "cpu", "--quiet"]
    assert main(["register", files["patient"], files["atlas"], "-o", str(out), *words]) == 0
    assert {path.name for path in out.iterdir()} == {
        "transform.h5", "inverse.h5", "moved.nii.gz", "report.json", "report.html", *FILES,
    }  # fmt: skip
    look = {name: read_volume(out / name) for name in FILES}
    summed = look["deformed.nii.gz"].data + look["change.nii.gz"].data
    torch.testing.assert_close(summed, look["metamorphic.nii.gz"].data, atol=1e-2, rtol=1e-5)
    assert all(volume.grid.same_as(read_volume(files["patient"]).grid) for volume in look.values())
    report = json.loads((out / "report.json").read_text(encoding="utf-8"))
    assert report["pathology"]["change"]["max"] > 0
    assert report["inputs"]["fixed_pathology"]["edge_mm"] == 2
    assert "Change of appearance" in (out / "report.html").read_text(encoding="utf-8")
    again = ["register", files["patient"], files["atlas"], "-o", str(out), "--overwrite", "--quiet"]
    again += ["--init", "identity", "--levels", "4", "--iterations", "1", "--device", "cpu", "--no-html"]
    assert main(again) == 0
    assert not {path.name for path in out.iterdir()} & FILES
