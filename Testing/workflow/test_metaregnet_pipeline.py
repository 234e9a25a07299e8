"""A MetaRegNet's registration: known answers in patient space, who is ill, folds, refinement."""

from __future__ import annotations

import json

import numpy as np
import pytest
import SimpleITK as sitk
import torch

from DiffeoRegLib.catalog import card
from DiffeoRegLib.cli import main
from DiffeoRegLib.methods.metaregnet import BEST_CHANGE, OWN_CHANGE
from DiffeoRegLib.pipeline import register
from DiffeoRegLib.space.filters import gaussian_smooth
from DiffeoRegLib.space.transform import AffineTransform, DisplacementTransform, displacement_on
from DiffeoRegLib.velocity_files import retrace, saved_velocities
from DiffeoRegLib.volumes.files import read_volume, write_volume
from DiffeoRegLib.volumes.intensity import intensity_window
from DiffeoRegLib.volumes.pathology import UNMARKED, Pathology, healthy_tissue
from DiffeoRegLib.volumes.resample import warp_labels, warp_volume
from DiffeoRegLib.volumes.volume import Volume
from Testing.halfway_cases import TURN, TURN_IN_PLANE, hostile_pair, same_numbers
from Testing.metaregnet_networks import GRID, ball, constant, network_file, settings_for, tiny
from Testing.scenes import CENTRE_MM, Scene, distances_mm, points_of, turned_grid

SPACING = {2: (2.0, 1.5), 3: (2.0, 2.5, 1.5)}
SHIFT = {2: (1.0, -0.75), 3: (1.0, -0.5, 0.75)}
CHANGE = 0.25
FILES = {"deformed.nii.gz", "change.nii.gz", "metamorphic.nii.gz", "healthy.nii.gz"}


def shift_mm(fixed, dim):
    """The network's constant shift in patient space: 3D along S, A, R, 2D along the axes of the plane."""
    axes = np.eye(3)[::-1]
    if dim == 2:
        axes = (fixed.grid.world_from_voxel[:3, :2] / fixed.grid.spacing).T
    return (np.array(SHIFT[dim]) * SPACING[dim]) @ axes


@pytest.fixture(scope="module")
def shifting(folder):
    """Files of networks that say a known shift and change, by (dim, compose)."""
    return {
        (dim, compose): network_file(
            folder / f"shift{dim}{compose}.safetensors",
            constant(SHIFT[dim], CHANGE, compose=compose),
            SPACING[dim],
        )
        for dim in (2, 3)
        for compose in (False, True)
    }


# ---------------------------------------------------------------- known answers


@pytest.mark.parametrize("compose", [False, True])
@pytest.mark.parametrize("side", ["fixed", "moving"])
@pytest.mark.parametrize("dim", [2, 3])
def test_a_known_shift_and_change_in_patient_space(dim, side, compose, shifting):
    """On oblique grids of unequal voxels; marks of the moving image alone turn both around."""
    start = TURN if dim == 3 else TURN_IN_PLANE
    scene, fixed, moving = hostile_pair(dim, size_mm=0.0, affine=start)
    ill = {"fixed": fixed, "moving": moving}[side]
    marks = ball(
        ill, aside_mm=start.map_points(CENTRE_MM[None])[0] - CENTRE_MM if side == "moving" else (0,) * 3
    )
    found = register(
        fixed, moving, settings_for(shifting[dim, compose]), initial=start,
        pathology=Pathology(**{side: marks}, edge_mm=0.0),
    )  # fmt: skip
    points, _ = scene.landmarks()
    sign = 1 if side == "fixed" else -1
    moved = start.map_points(points + sign * shift_mm(fixed, dim))
    np.testing.assert_allclose(found.transform.map_points(points), moved, atol=3e-3)
    np.testing.assert_allclose(found.inverse.map_points(moved), points, atol=3e-3)
    tissue = None if side == "fixed" else healthy_tissue(marks, None, moving)
    low, high = intensity_window(moving, tissue)
    where = marks if side == "fixed" else warp_labels(marks, found.transform, fixed.grid)
    change = found.appearance.change.data
    assert float(change.abs().max()) == pytest.approx(CHANGE * (high - low), rel=1e-3)
    inside = where.data > 0
    core = inside if side == "fixed" else change.abs() > 0.99 * CHANGE * (high - low)
    assert int(core.sum()) > 0.4 * int(inside.sum()) > 10
    assert torch.allclose(change[core], torch.tensor(sign * CHANGE * (high - low)), rtol=1e-2)
    assert side == "moving" or float(change[~inside].abs().max()) < 1e-3
    assert OWN_CHANGE in found.report["notes"]
    assert found.report["folds"]["folded_percent"] == 0


@pytest.mark.parametrize("dim", [2, 3])
def test_another_program_reads_the_written_transform_as_we_do(dim, shifting, tmp_path):
    """SimpleITK carries the moving image by transform.h5 to what was written; all volumes are there."""
    _, fixed, moving = hostile_pair(dim, size_mm=1.0)
    files = {}
    for name, volume in (("fixed", fixed), ("moving", moving), ("marks", ball(fixed))):
        files[name] = str(tmp_path / f"{name}.nii.gz")
        write_volume(volume, files[name])
    out = tmp_path / "out"
    words = ["register", files["fixed"], files["moving"], "-o", str(out), "--method", "metaregnet"]
    words += ["--weights", str(shifting[dim, False]), "--pathology", files["marks"], "--effort", "fast"]
    words += ["--init", "identity", "--device", "cpu", "--quiet", "--no-html"]
    assert main(words) == 0
    assert {path.name for path in out.iterdir()} >= {"transform.h5", "inverse.h5", "moved.nii.gz", *FILES}
    images = [sitk.ReadImage(str(path)) for path in (files["fixed"], files["moving"], out / "moved.nii.gz")]
    transform = sitk.ReadTransform(str(out / "transform.h5"))
    resampled = sitk.Resample(images[1], images[0], transform, sitk.sitkLinear, 0.0)
    theirs, ours = (sitk.GetArrayFromImage(image) for image in (resampled, images[2]))
    assert np.abs(theirs - ours).max() < 0.02 * ours.max()
    look = {name: read_volume(out / name) for name in FILES}
    torch.testing.assert_close(
        look["deformed.nii.gz"].data + look["change.nii.gz"].data,
        look["metamorphic.nii.gz"].data, atol=1e-2, rtol=1e-5,
    )  # fmt: skip
    report = json.loads((out / "report.json").read_text(encoding="utf-8"))
    assert report["pathology"]["change"]["max"] > 0
    assert report["inputs"]["fixed_pathology"]["edge_mm"] == 4
    assert any("MetaRegNet" in source for source in report["citations"])


def test_a_start_that_bends_carries_the_patient_and_its_marks(shifting):
    """The patient lies 6 mm aside; a field that says so brings image and marks back."""
    _, fixed, moving = hostile_pair(2, size_mm=0.0)
    aside = np.eye(4)
    aside[:3, 3] = (6.0, 0.0, 0.0)
    away = AffineTransform(np.linalg.inv(aside))
    there, marks = (
        warp(v, away, moving.grid) for v, warp in ((moving, warp_volume), (ball(moving), warp_labels))
    )
    initial = DisplacementTransform(fixed.grid, displacement_on(AffineTransform(aside), fixed.grid))
    settings = settings_for(shifting[2, False])
    direct = register(fixed, moving, settings, pathology=Pathology(moving=ball(moving), edge_mm=0))
    found = register(fixed, there, settings, initial=initial, pathology=Pathology(moving=marks, edge_mm=0))
    change = found.appearance.change.data
    assert float(change.min()) < -0.8 * float(direct.appearance.change.data.abs().max()) < 0
    both = (change < -5) & (direct.appearance.change.data < -5)
    assert int(both.sum()) > 0.8 * int((change < -5).sum()) > 20


# ---------------------------------------------------------------- who is ill


def test_exchanged_images_give_exchanged_maps(changing, pictures):
    """The network sees the patient as its second image either way."""
    fixed, moving, marks = pictures
    here = register(fixed, moving, settings_for(changing), pathology=Pathology(marks))
    there = register(moving, fixed, settings_for(changing), pathology=Pathology(moving=marks))
    points = points_of(GRID)
    assert np.array_equal(here.transform.map_points(points), there.inverse.map_points(points))
    assert np.array_equal(here.inverse.map_points(points), there.transform.map_points(points))
    assert np.abs(here.transform.map_points(points) - points).max() > 0.5
    # What is added to the atlas to look like the patient is taken off the patient to look like the atlas.
    windows = intensity_window(moving), intensity_window(fixed, healthy_tissue(marks, None, fixed))
    of_atlas, of_patient = (
        run.appearance.change.data / (high - low)
        for run, (low, high) in zip((here, there), windows, strict=True)
    )
    back = warp_volume(Volume(of_patient, GRID, "taken off"), here.transform, GRID).data
    core = ball(fixed, 6.0).data > 0
    smooth = [gaussian_smooth(change[None, None], 1.0)[0, 0][core] for change in (of_atlas, back)]
    assert float(torch.corrcoef(torch.stack(smooth))[0, 1]) < -0.95
    assert 0.8 < float(smooth[1].std() / smooth[0].std()) < 1.25


def test_no_marks_and_empty_marks_are_plain_registration(changing, pictures):
    """Bit for bit, and the report says that both images were taken for healthy."""
    fixed, moving, marks = pictures
    said = "The pathology 'empty' marks nothing: '{}' was taken for healthy."
    empty = Volume(torch.zeros_like(marks.data), GRID, "empty", is_labels=True)
    plain = register(fixed, moving, settings_for(changing))
    assert UNMARKED in plain.report["notes"]
    assert plain.appearance is None
    for pathology, words in (
        (Pathology(), UNMARKED),
        (Pathology(empty), said.format("patient")),
        (Pathology(moving=empty), said.format("atlas")),
    ):
        found = register(fixed, moving, settings_for(changing), pathology=pathology)
        assert same_numbers(found.transform, plain.transform)
        assert torch.equal(found.moved.data, plain.moved.data)
        assert not found.appearance.change.data.any()
        assert words in found.report["notes"]
        assert OWN_CHANGE not in found.report["notes"]


def test_what_is_marked_does_not_set_the_intensities(changing, pictures):
    """A lesion far brighter than all tissue leaves the motion as it is elsewhere."""
    fixed, moving, marks = pictures
    bright = Volume(torch.where(marks.data > 0, 250.0, fixed.data), GRID, "patient")
    pathology = Pathology(marks, edge_mm=0.0)
    found, same = (register(f, moving, settings_for(changing), pathology=pathology) for f in (bright, fixed))
    plain = register(bright, moving, settings_for(changing))
    away = points_of(GRID)[np.linalg.norm(points_of(GRID) - CENTRE_MM, axis=1) > 25]
    ours, theirs, none = (r.transform.map_points(away) for r in (found, same, plain))
    assert np.abs(ours - theirs).mean() < 0.1 * np.abs(none - theirs).mean()


def test_marks_of_both_images_are_joined_through_the_transform(changing, pictures):
    fixed, moving, _ = pictures
    own, other = ball(fixed, 6.0, (-12.0, 0, 0)), ball(moving, 6.0, (12.0, 0, 0))
    found = register(fixed, moving, settings_for(changing), pathology=Pathology(own, other, edge_mm=0.0))
    alone = register(fixed, moving, settings_for(changing), pathology=Pathology(own, edge_mm=0.0))
    carried = warp_labels(other, found.transform, GRID).data > 0
    change = found.appearance.change.data
    assert bool((change[carried] != 0).all())
    assert bool((change[own.data > 0] != 0).all())
    assert not alone.appearance.change.data[carried].any()
    near = torch.nn.functional.max_pool2d(((own.data > 0) | carried).float()[None], 3, 1, 1)[0] > 0
    assert not change[~near].any()
    assert found.report["pathology"]["moving_mm3"] > 0


def test_several_lesions_classes_and_a_soft_edge(changing, pictures):
    fixed, moving, _ = pictures
    both = ball(fixed, 5.0, (-12.0, 6.0, 0))
    both.data[ball(fixed, 5.0, (12.0, -6.0, 0)).data > 0] = 4
    settings = settings_for(changing)
    every, one, soft = (
        register(fixed, moving, settings, pathology=Pathology(both, classes=classes, edge_mm=edge))
        for classes, edge in ((None, 0.0), ((4, 9), 0.0), (None, 6.0))
    )
    hard, chosen, wide = (run.appearance.change.data.abs() > 1e-3 for run in (every, one, soft))
    assert torch.equal(hard, both.data != 0)
    assert torch.equal(chosen, both.data == 4)
    assert int(wide.sum()) > 1.5 * int(hard.sum())
    assert "Classes without a voxel in 'lesion of patient': 9." in one.report["notes"]
    assert any("All classes of 'lesion of patient' count" in note for note in every.report["notes"])


def test_marks_of_another_geometry_are_resampled_and_said(changing, pictures):
    fixed, moving, marks = pictures
    grid = turned_grid((120, 110), (1.1, 0.9), 30.0, flip=(0,))
    other = warp_labels(marks, AffineTransform(np.eye(4)), grid)
    found, same = (
        register(fixed, moving, settings_for(changing), pathology=Pathology(m, edge_mm=0.0))
        for m in (other, marks)
    )
    assert any("has another geometry than 'patient'" in note for note in found.report["notes"])
    first, second = (run.appearance.change.data.abs() > 1 for run in (found, same))
    assert int((first & second).sum()) > 0.9 * int(second.sum())


# ---------------------------------------------------------------- folds and flows


def test_folds_are_counted_mended_and_said(folder, pictures):
    fixed, moving, marks = pictures
    wild = network_file(folder / "wild.safetensors", tiny(largest=12.0), [1.5, 1.5])
    for images, pathology in (
        ((fixed, moving), Pathology(marks)),
        ((moving, fixed), Pathology(moving=marks)),
    ):
        found = register(*images, settings_for(wild), pathology=pathology)
        (said,) = [note for note in found.report["notes"] if "map folds in" in note]
        assert int(said.split("folds in ")[1].split()[0]) > 0
        assert found.report["folds"]["folded_percent"] == 0
        assert found.report["inverse_consistency_mm"]["p95"] < 0.5


def test_weights_with_compose_give_a_flow_that_can_be_kept(folder, pictures):
    fixed, moving, marks = pictures
    flow = network_file(folder / "flow.safetensors", tiny(largest=4.0, compose=True, blocks=5), [1.5, 1.5])
    found = register(fixed, moving, settings_for(flow), pathology=Pathology(marks))
    assert (found.motion.stepping, len(found.motion.velocity_vox)) == ("paper", 5)
    assert any("time steps of the order 'paper'" in note for note in found.report["notes"])
    assert found.report["folds"]["folded_percent"] == 0
    assert same_numbers(retrace(saved_velocities(found, GRID))[0], found.transform)
    back = register(moving, fixed, settings_for(flow), pathology=Pathology(moving=marks))
    points = points_of(GRID)
    there = found.transform.map_points(points)
    assert np.abs(there - points).max() > 3
    assert np.percentile(np.linalg.norm(back.inverse.map_points(points) - there, axis=1), 95) < 0.3


# ---------------------------------------------------------------- refinement


def lesion_in(image, marks, value):
    return Volume(torch.where(marks.data > 0, value, image.data), image.grid, image.name)


@pytest.mark.parametrize("compose", [False, True])
def test_metamorphosis_goes_on_from_where_the_network_stopped(folder, compose):
    """A network that knows half of a shift, and a lesion that one of the images has."""
    shift = np.eye(4)
    shift[1, 3] = 6.0
    scene = Scene(size_mm=1.0, affine=AffineTransform(shift), flat=True)
    fixed = scene.fixed(turned_grid((40, 37), (1.4, 1.4)))
    moving = scene.moving(turned_grid((44, 38), (1.4, 1.4), centre_mm=CENTRE_MM + shift[:3, 3]))
    marks = ball(fixed, 4.0)
    patient = lesion_in(fixed, marks, 230.0)
    network = constant((1.5, 0.0), 0.3, compose=compose)
    weights = network_file(folder / f"half{compose}.safetensors", network, (2.0, 2.0))
    told = []
    settings = settings_for(weights, effort="balanced", iterations=(20, 10))
    alone = register(
        patient, moving, settings.with_changes(effort="fast", iterations=None), pathology=Pathology(marks)
    )
    found = register(patient, moving, settings, pathology=Pathology(marks), progress=told.append)
    before, after = (distances_mm(run.transform, *scene.landmarks()).mean() for run in (alone, found))
    assert after < 0.5 * before
    ncc = [run.report["similarity"]["final"]["ncc"] for run in (alone, found)]
    assert ncc[1] > ncc[0] + 0.05
    assert found.report["folds"]["folded_percent"] == 0
    assert any(step.phase == "optimise" for step in told)
    assert (OWN_CHANGE in alone.report["notes"], BEST_CHANGE in found.report["notes"]) == (True, True)
    assert card("metamorphosis").citation in found.report["citations"]
    assert card("metamorphosis").citation not in alone.report["citations"]
    inside = marks.data > 0
    bare, summed = (
        (volume.data - patient.data)[inside].abs().mean()
        for volume in (found.appearance.deformed, found.appearance.metamorphic)
    )
    assert float(summed) < 0.5 * float(bare)
    back = register(moving, patient, settings, pathology=Pathology(moving=marks))
    points = scene.landmarks()[0]
    gap = np.linalg.norm(back.inverse.map_points(points) - found.transform.map_points(points), axis=1)
    assert gap.mean() < 0.3


@pytest.mark.parametrize("side", ["fixed", "moving"])
def test_no_iterations_change_nothing(changing, pictures, side):
    fixed, moving, marks = pictures
    pathology = Pathology(**{side: marks})
    alone, none = (
        register(fixed, moving, settings_for(changing, **changes), pathology=pathology)
        for changes in ({}, {"effort": "balanced", "iterations": (0, 0)})
    )
    assert same_numbers(none.transform, alone.transform)
    assert torch.equal(none.appearance.change.data, alone.appearance.change.data)
    assert none.report["notes"] == alone.report["notes"]


def test_healthy_images_are_refined_as_svf_would(changing, pictures):
    """Without marks there is no change to look for, and no other words about it."""
    fixed, moving, _ = pictures
    settings = settings_for(changing, effort="balanced", iterations=(4, 2))
    found = register(fixed, moving, settings)
    alone = register(fixed, moving, settings_for(changing))
    assert found.report["similarity"]["final"]["lncc"] > alone.report["similarity"]["final"]["lncc"]
    assert UNMARKED in found.report["notes"]
    assert BEST_CHANGE not in found.report["notes"]
