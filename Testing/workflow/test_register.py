"""Two scans of a patient whose motion is known: register() finds it, in mm, whatever the geometry."""

from __future__ import annotations

import numpy as np
import pytest
import SimpleITK as sitk

from DiffeoRegLib import pipeline
from DiffeoRegLib.errors import Cancelled
from DiffeoRegLib.outputs import write_results
from DiffeoRegLib.pipeline import register
from DiffeoRegLib.settings import EFFORTS, PRESETS, SIMILARITIES, Settings
from DiffeoRegLib.space.sample import array_from_tensor
from DiffeoRegLib.space.transform import AffineTransform, CompositeTransform
from DiffeoRegLib.volumes.files import read_volume, write_volume
from DiffeoRegLib.volumes.pair import Correspondence, Masks
from DiffeoRegLib.volumes.resample import warp_labels
from DiffeoRegLib.volumes.volume import Volume
from Testing.fake_run import known_motion
from Testing.scenes import CENTRE_MM, Scene, distances_mm, turned_grid

LESION_MM = CENTRE_MM + np.array([4.0, 3.0, 0.0])
IDENTITY = AffineTransform(np.eye(4))
HERE = Settings(device="cpu", init="identity")


def about_centre(degrees, shift_mm, scale=1.0):
    """A turn about S and a scale about the patient's centre, then a shift."""
    c, s = np.cos(np.deg2rad(degrees)), np.sin(np.deg2rad(degrees))
    matrix = np.eye(4)
    matrix[:2, :2] = np.array([[c, -s], [s, c]]) * scale
    matrix[:3, 3] = CENTRE_MM + shift_mm - matrix[:3, :3] @ CENTRE_MM
    return AffineTransform(matrix)


FAR = about_centre(12.0, np.array([9.0, -6.0, 5.0]), 1.06)
SLICES = {
    "fixed": turned_grid((40, 36), (1.0, 1.1), 15, (1,)),
    "moving": turned_grid((36, 44), (1.1, 1.0), -10, (0,)),
}
CASES = {
    "oblique and flipped": (
        Scene(), turned_grid((24, 32, 30), (1.6, 1.2, 1.2), 15, (1,)),
        turned_grid((36, 28, 34), (1.1, 1.4, 1.2), -20, (0, 2)), HERE, 0.7,
    ),
    "thick slices": (
        Scene(), turned_grid((14, 36, 36), (3.0, 1.1, 1.1)), turned_grid((36, 30, 30), (1.1, 1.3, 1.3), 5),
        HERE, 0.7,
    ),
    "thick slices against others": (
        Scene(), turned_grid((32, 14, 32), (1.2, 2.8, 1.2), 4, (2,)),
        turned_grid((14, 34, 34), (2.8, 1.2, 1.2)), HERE, 0.6,
    ),
    "another field of view": (
        Scene(), turned_grid((30, 30, 30), (1.3, 1.3, 1.3)),
        turned_grid((32, 40, 36), (1.3, 1.2, 1.2), 8, (1,), CENTRE_MM + np.array([3.0, -4.0, 2.0])),
        HERE, 0.7,
    ),
    "turned, grown and shifted": (
        Scene(affine=FAR), turned_grid((30, 32, 30), (1.4, 1.2, 1.3), 10, (1,)),
        turned_grid((36, 36, 34), (1.3, 1.3, 1.4), -15, (0,), CENTRE_MM + np.array([9.0, -6.0, 5.0])),
        Settings(device="cpu"), 0.85,
    ),
    "2D": (Scene(flat=True), SLICES["fixed"], SLICES["moving"], HERE, 0.7),
}  # fmt: skip


@pytest.fixture(scope="module", params=CASES)
def done(request):
    """Scene, images, result and the share of the landmark error that has to go."""
    scene, fixed_grid, moving_grid, settings, gain = CASES[request.param]
    fixed, moving = scene.fixed(fixed_grid), scene.moving(moving_grid)
    points = scene.landmarks()
    labels = scene.labels(fixed), scene.labels(moving)
    result = register(fixed, moving, settings, evaluation=Correspondence(*labels, *points))
    return scene, fixed, moving, result, gain


def test_the_motion_is_found(done):
    scene, _, _, result, gain = done
    fixed_points, moving_points = scene.landmarks()
    before = distances_mm(IDENTITY, fixed_points, moving_points).mean()
    after = distances_mm(result.transform, fixed_points, moving_points).mean()
    assert before > 1.2
    assert after < (1 - gain) * before
    assert after < distances_mm(result.initial, fixed_points, moving_points).mean()


def test_it_is_invertible(done):
    scene, _, _, result, _ = done
    points, others = scene.landmarks(200)
    there, back = result.transform.map_points(points), result.inverse.map_points(others)
    assert np.linalg.norm(result.inverse.map_points(there) - points, axis=1).mean() < 0.07
    assert np.linalg.norm(result.inverse.map_points(there) - points, axis=1).max() < 0.25
    assert np.linalg.norm(result.transform.map_points(back) - others, axis=1).mean() < 0.07
    assert np.linalg.norm(there - points, axis=1).mean() > 1.0
    report = result.report
    assert report["folds"]["folded_percent"] == 0
    assert report["inverse_consistency_mm"]["mean"] < 0.05


def test_far_away_nothing_moves_but_the_alignment(done):
    result = done[3]
    far = CENTRE_MM + np.array([[200.0, 0, 0], [0, -180, 0], [90, 90, 0]])
    if done[1].grid.dim == 3:
        far = np.vstack([far, CENTRE_MM + np.array([[0.0, 0, 150]])])
    np.testing.assert_allclose(result.transform.map_points(far), result.initial.map_points(far), atol=1e-9)


def test_the_report_judges_as_we_do(done):
    scene, fixed, moving, result, _ = done
    error = distances_mm(result.transform, *scene.landmarks())
    assert result.report["landmarks"]["final"]["mean"] == pytest.approx(float(error.mean()), rel=1e-3)
    expected = warp_labels(scene.labels(moving), result.transform, fixed.grid)
    assert np.array_equal(array_from_tensor(result.moved_labels.data), array_from_tensor(expected.data))
    before = warp_labels(scene.labels(moving), result.initial, fixed.grid)
    truth = scene.labels(fixed)
    scores = [
        2
        * float(((v.data == 5) & (truth.data == 5)).sum())
        / float((v.data == 5).sum() + (truth.data == 5).sum())
        for v in (before, expected)
    ]
    assert scores[1] > scores[0]
    assert scores[1] > 0.8


def test_simpleitk_moves_the_image_alike_through_the_written_file(done, tmp_path):
    """The moved image is what ITK makes of moving.nii.gz and transform.h5, and not of inverse.h5."""
    _, fixed, moving, result, _ = done
    write_results(tmp_path / "out", result, fixed=fixed, moving=moving, html=False)
    write_volume(fixed, tmp_path / "fixed.nii.gz")
    write_volume(moving, tmp_path / "moving.nii.gz")
    images = [sitk.ReadImage(str(tmp_path / f"{n}.nii.gz"), sitk.sitkFloat32) for n in ("fixed", "moving")]
    fill = pipeline.background_of(moving)

    def through(name):
        transform = sitk.ReadTransform(str(tmp_path / "out" / name))
        return sitk.GetArrayFromImage(sitk.Resample(images[1], images[0], transform, sitk.sitkLinear, fill))

    ours = array_from_tensor(result.moved.data)
    span = float(ours.max() - ours.min())
    inner = (slice(2, -2),) * ours.ndim
    difference = np.abs(through("transform.h5").reshape(ours.shape) - ours)
    assert difference[inner].mean() < 1e-4 * span
    assert np.percentile(difference[inner], 99) < 2e-3 * span
    wrong = np.abs(through("inverse.h5").reshape(ours.shape) - ours)
    assert wrong[inner].mean() > 30 * difference[inner].mean()
    again = read_volume(tmp_path / "out" / "moved.nii.gz")
    np.testing.assert_allclose(array_from_tensor(again.data), ours, atol=1e-3 * span)


# ---------------------------------------------------------------- where to start


SCENE = Scene()
GRIDS = (
    turned_grid((24, 30, 28), (1.6, 1.3, 1.3), 12, (1,)),
    turned_grid((28, 26, 30), (1.4, 1.5, 1.3), -8, (0,)),
)


@pytest.fixture(scope="module")
def pair():
    return SCENE.fixed(GRIDS[0]), SCENE.moving(GRIDS[1])


def error_of(result, scene=SCENE):
    return distances_mm(result.transform, *scene.landmarks()).mean()


BEFORE = distances_mm(IDENTITY, *SCENE.landmarks()).mean()


@pytest.mark.parametrize("kind", ["affine", "linear composite"])
def test_a_given_alignment_is_where_it_starts(kind):
    scene = Scene(affine=FAR)
    fixed = scene.fixed(GRIDS[0])
    moving = scene.moving(
        turned_grid((36, 36, 36), (1.4, 1.4, 1.4), -8, (0,), FAR.map_points(CENTRE_MM[None])[0])
    )
    given = FAR if kind == "affine" else CompositeTransform((about_centre(0, np.zeros(3)), FAR))
    result = register(fixed, moving, Settings(device="cpu"), initial=given)
    np.testing.assert_allclose(result.initial.moving_from_fixed, FAR.moving_from_fixed, atol=1e-9)
    assert error_of(result, scene) < 0.3 * BEFORE
    assert any("the given transform" in note for note in result.report["notes"])


def test_a_given_nonlinear_transform_is_where_it_starts(pair):
    """The first map is wrong by a millimetre and a half; what is found afterwards undoes that as well."""
    fixed, moving = pair
    field, _ = known_motion(fixed.grid, 1.5)
    given = CompositeTransform((field, about_centre(3.0, np.array([0.5, 0, -0.5]))))
    labels, points = (SCENE.labels(fixed), SCENE.labels(moving)), SCENE.landmarks()
    masks = Masks(moving=Volume((moving.data > 1).int(), moving.grid, "body", is_labels=True))
    start = distances_mm(given, *points).mean()
    for others in ({}, {"guidance": Correspondence(*labels, *points), "masks": masks}):
        result = register(fixed, moving, HERE, initial=given, **others)
        assert result.initial is given
        assert error_of(result) < 0.4 * start
        there = result.transform.map_points(points[0])
        np.testing.assert_allclose(result.inverse.map_points(there), points[0], atol=0.3)
        assert any("non-linear" in note for note in result.report["notes"])


def test_no_iterations_give_the_alignment(pair):
    result = register(*pair, HERE.with_changes(levels_mm=(4.0, 2.0), iterations=(0, 0)))
    points = SCENE.landmarks()[0]
    np.testing.assert_allclose(result.transform.map_points(points), points, atol=1e-9)


@pytest.mark.parametrize("init", ["rigid", "affine"])
def test_the_affine_method_only_aligns(init):
    scene = Scene(size_mm=0.0, affine=FAR)
    fixed = scene.fixed(GRIDS[0])
    moving = scene.moving(
        turned_grid((36, 36, 36), (1.4, 1.4, 1.4), -8, (0,), FAR.map_points(CENTRE_MM[None])[0])
    )
    result = register(fixed, moving, Settings(device="cpu", method="affine", init=init))
    assert isinstance(result.transform, AffineTransform)
    assert result.motion is None
    assert result.report["steps"] is None
    error = distances_mm(result.transform, *scene.landmarks()).mean()
    assert error < (0.5 if init == "affine" else 1.5)
    assert np.linalg.det(result.transform.moving_from_fixed[:3, :3]) == pytest.approx(
        1.0 if init == "rigid" else 1.06**2, abs=0.03
    )


# ---------------------------------------------------------------- presets, similarities, contrasts


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("effort", EFFORTS)
def test_every_preset_and_effort(pair, preset, effort):
    settings = HERE.with_changes(preset=preset, effort=effort, extras={"search_radius_mm": 8.0})
    result = register(*pair, settings)
    assert error_of(result) < 0.5 * BEFORE
    assert result.report["folds"]["folded_percent"] == 0


@pytest.mark.parametrize("similarity", SIMILARITIES)
def test_every_similarity(pair, similarity):
    result = register(*pair, HERE.with_changes(similarity=similarity))
    assert error_of(result) < 0.5 * BEFORE
    assert result.report["folds"]["folded_percent"] == 0


def test_inverted_contrast_needs_the_multimodal_preset():
    scene = Scene(endless=True)
    fixed, moving = scene.fixed(GRIDS[0]), scene.moving(GRIDS[1], inverted=True)
    found = register(fixed, moving, HERE.with_changes(preset="multimodal"))
    assert error_of(found) < 0.4 * BEFORE
    misled = register(fixed, moving, HERE.with_changes(similarity="lncc"))
    assert error_of(misled) > 2 * error_of(found)


def test_fixed_number_of_steps(pair):
    result = register(*pair, HERE.with_changes(steps=16))
    assert result.report["steps"] == 16
    assert error_of(result) < 0.3 * BEFORE


# ---------------------------------------------------------------- guidance and masks


def test_guidance_carries_what_the_images_do_not_show(pair):
    """Images reduced to their outline: landmarks and labels from inside take over."""
    outlines = [Volume((v.data > 25).float() * 100.0, v.grid, v.name) for v in pair]
    points = SCENE.landmarks(60)
    alone = error_of(register(*outlines, HERE))
    halves = Correspondence(fixed_points_mm=points[0][::2], moving_points_mm=points[1][::2])
    guided = register(*outlines, HERE, guidance=halves)
    unseen = distances_mm(guided.transform, points[0][1::2], points[1][1::2]).mean()
    assert unseen < 0.7 * alone
    labels = Correspondence(SCENE.labels(pair[0]), SCENE.labels(pair[1]))
    assert error_of(register(*outlines, HERE, guidance=labels)) < 0.8 * alone
    ignored = register(*outlines, HERE.with_changes(guidance_weight=0.0), guidance=halves)
    assert error_of(ignored) == pytest.approx(alone, rel=1e-6)


@pytest.mark.parametrize("exclude", [False, True])
def test_a_lesion_outside_the_mask_does_not_pull(pair, exclude):
    fixed, moving = pair
    distance = np.linalg.norm(
        fixed.grid.world_from_index(np.stack(np.indices(fixed.grid.shape), -1).astype(float))
        - LESION_MM, axis=-1,
    )  # fmt: skip
    lesion = distance < 5.0
    data = fixed.data.clone()
    data[lesion] = 400.0
    sick = Volume(data, fixed.grid, "sick")
    marked = (distance < 6.0) == exclude
    mask = Masks(
        fixed=Volume(fixed.data.new_tensor(marked.tolist()), fixed.grid, "lesion"), exclude_fixed=exclude
    )
    away = np.linalg.norm(SCENE.landmarks()[0] - LESION_MM, axis=1) > 7.0
    points = [p[away] for p in SCENE.landmarks()]
    masked, plain, healthy = (
        distances_mm(register(image, moving, HERE, masks=m).transform, *points).mean()
        for image, m in ((sick, mask), (sick, None), (fixed, None))
    )
    assert masked < plain
    assert masked < 1.4 * healthy


# ---------------------------------------------------------------- nothing half done


def test_a_cancelled_command_leaves_nothing(pair, tmp_path, monkeypatch):
    from DiffeoRegLib.cli import commands, main

    for volume, name in zip(pair, ("fixed", "moving"), strict=True):
        write_volume(volume, tmp_path / f"{name}.nii.gz")

    def cancelled_half_way(*arguments, progress, **others):
        def report(step):
            progress(step)
            if step.phase == "optimise":
                raise Cancelled("enough")

        return register(*arguments, progress=report, **others)

    monkeypatch.setattr(commands.pipeline, "register", cancelled_half_way)
    files = sorted(p.name for p in tmp_path.iterdir())
    command = [
        "register",
        *(str(tmp_path / f) for f in files),
        "-o",
        str(tmp_path / "out"),
        "--device",
        "cpu",
    ]
    assert main([*command, "--init", "identity"]) != 0
    assert sorted(p.name for p in tmp_path.rglob("*") if p.is_file()) == files


def test_inputs_are_left_as_they_were(pair):
    before = [v.data.clone() for v in pair]
    matrices = [v.grid.world_from_voxel.copy() for v in pair]
    register(*pair, HERE)
    for volume, data, matrix in zip(pair, before, matrices, strict=True):
        assert bool((volume.data == data).all())
        assert np.array_equal(volume.grid.world_from_voxel, matrix)
