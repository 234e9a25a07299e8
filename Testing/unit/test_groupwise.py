"""Groups of images: what is refused, both tasks, the order, the middle, composites, what is handed over."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from DiffeoRegLib.errors import Cancelled, InputError, SettingsError, UnknownNameError
from DiffeoRegLib.flows.exponential import midpoint_exp
from DiffeoRegLib.groupwise import register_group
from DiffeoRegLib.pipeline import register
from DiffeoRegLib.settings import Settings
from DiffeoRegLib.space.filters import gaussian_smooth
from DiffeoRegLib.space.grid import Grid
from DiffeoRegLib.space.sample import warp
from DiffeoRegLib.volumes.volume import Volume

QUICK = Settings(
    device="cpu", similarity="mse", levels_mm=(4.0, 2.0), iterations=(25, 20), working_spacing_mm=2.0
)
SHAPE = (30, 34)


def plane(shape=SHAPE, spacing=2.0, shift=0.0):
    matrix = np.diag([spacing, spacing, 1.0, 1.0])
    matrix[0, 3] = shift
    return Grid(shape, matrix)


def moved_group(count=4, seed=3, motion_vox=1.2, shape=SHAPE, centre=True, fixed=None):
    """Images of one blurred object, their velocities and the object: image k o exp(z_k) is the template."""
    generator = torch.Generator().manual_seed(seed)
    axes = [torch.linspace(-1, 1, n) for n in shape]
    radius = torch.stack(torch.meshgrid(*axes, indexing="ij")).square().sum(0).sqrt()
    inside = gaussian_smooth((radius < 0.7).float()[None, None], 1.0)
    texture = gaussian_smooth(torch.randn((1, 1, *shape), generator=generator), 1.5)
    template = inside * (0.6 + 0.2 * texture / texture.std()).clamp(0.1, 1)
    velocities = gaussian_smooth(torch.randn((count, len(shape), *shape), generator=generator), 5.0)
    velocities = velocities * (motion_vox / velocities[:, :, radius < 0.7].std())
    if fixed is not None:
        velocities[fixed] = 0
    elif centre:
        velocities = velocities - velocities.mean(0)
    grid = plane(shape)
    images = [
        Volume(100 * warp(template, midpoint_exp(-one[None]))[0, 0], grid, f"frame {index}")
        for index, one in enumerate(velocities)
    ]
    return images, velocities, radius < 0.65


@pytest.fixture(scope="module")
def known():
    return moved_group()


@pytest.fixture(scope="module")
def moving(known):
    return register_group(known[0], QUICK)


def gaps_mm(result, velocities, inside, grid, fixed=None):
    """RMS distance of the found from the true place in every image, mm, and without registration."""
    points = grid.world_from_index(torch.nonzero(inside).numpy().astype(float))
    found, without = [], []
    for index, one in enumerate(velocities):
        if index == fixed:
            continue
        u_vox = midpoint_exp(one[None])[0][:, inside].T.numpy()
        true = points + u_vox @ grid.world_from_voxel[:3, :2].T
        found.append(result.transforms[index].map_points(points) - true)
        without.append(points - true)
    return (float(np.sqrt(np.square(np.concatenate(part)).sum(1).mean())) for part in (found, without))


def test_all_moving_recovers_known_motion(known, moving):
    found, without = gaps_mm(moving, known[1], known[2], known[0][0].grid)
    assert without > 2.5
    assert found < 0.3 * without
    assert moving.report["similarity"]["after"]["rmse"] < 0.35 * moving.report["similarity"]["before"]["rmse"]
    assert max(one["folded_percent"] for one in moving.report["folds"]) == 0


@pytest.mark.parametrize("name", ["nmi", "lncc"])
def test_other_measures_recover_it_too(known, name):
    result = register_group(known[0], QUICK.with_changes(similarity=name), with_uncertainty=False)
    found, without = gaps_mm(result, known[1], known[2], known[0][0].grid)
    assert found < 0.45 * without
    assert result.deviations == ()


def test_the_middle_of_the_velocities_is_zero(moving):
    assert moving.fixed is None
    assert float(moving.motion.velocities_vox.mean(0).abs().max()) < 1e-6
    assert float(moving.motion.velocities_vox.abs().max()) > 0.3
    assert moving.report["largest_mean_velocity_vox"] < 1e-6
    assert moving.report["drift_mm"]["mean"] < 0.15


def test_the_order_of_the_images_changes_only_the_order_of_the_results(known, moving):
    order = [2, 0, 3, 1]
    turned = register_group([known[0][k] for k in order], QUICK)
    points = known[0][0].grid.world_from_index(np.array([[12.0, 14], [20, 9], [15, 25]]))
    for place, number in enumerate(order):
        same = turned.transforms[place].map_points(points) - moving.transforms[number].map_points(points)
        assert np.abs(same).max() < 1e-5
        assert torch.allclose(turned.aligned[place].data, moving.aligned[number].data, atol=1e-4)
        assert torch.allclose(turned.deviations[place].data, moving.deviations[number].data, atol=1e-5)
        assert turned.report["images"][place]["name"] == moving.report["images"][number]["name"]
        assert turned.report["folds"][place] == moving.report["folds"][number]
    assert torch.allclose(turned.mean.data, moving.mean.data, atol=1e-4)


def test_the_fixed_image_stays_bit_for_bit():
    images, velocities, inside = moved_group(fixed=2)
    result = register_group(images, QUICK, fixed_index=2)
    assert result.fixed == 2 == result.report["fixed"]
    assert torch.equal(result.aligned[2].data, images[2].data)
    points = images[0].grid.world_from_index(np.array([[12.0, 14], [20, 9]]))
    assert np.array_equal(result.transforms[2].map_points(points), points)
    assert float(result.motion.velocities_vox[2].abs().max()) == 0
    assert float(result.deviations[2].data.max()) == 0
    assert float(result.deviations[0].data.min()) > 0
    found, without = gaps_mm(result, velocities, inside, images[0].grid, fixed=2)
    assert found < 0.35 * without


def test_two_images_all_to_one_agree_with_the_pair():
    images, _, inside = moved_group(count=2, fixed=0, seed=5)
    settings = QUICK.with_changes(init="identity", iterations=(50, 40))
    alone = register(images[0], images[1], settings)
    group = register_group(images, settings, fixed_index=0)
    grid = images[0].grid
    points = grid.world_from_index(torch.nonzero(inside).numpy().astype(float))
    pair, both = (t.map_points(points) for t in (alone.transform, group.transforms[1]))
    moved = np.linalg.norm(pair - points, axis=1).mean()
    assert moved > 1.5
    assert np.linalg.norm(pair - both, axis=1).mean() < 0.3 * moved


def test_composites_go_through_the_common_space(known, moving):
    points = known[0][0].grid.world_from_index(np.array([[12.0, 14], [20, 9], [15, 20]]))
    way = moving.between(1, 3).map_points(points)
    assert np.allclose(way, moving.transforms[3].map_points(moving.inverses[1].map_points(points)))
    back = moving.between(3, 1).map_points(way)
    assert np.abs(back - points).max() < 0.05
    same = moving.between(2, 2).map_points(points)
    assert np.abs(same - points).max() < 0.05


def test_landmarks_are_judged_over_all_pairs(known, moving):
    grid = known[0][0].grid
    points = grid.world_from_index(np.array([[12.0, 14], [18, 12], [15, 20]]))
    marks = [way.map_points(points) for way in moving.transforms]
    result = register_group(known[0], QUICK, landmarks=marks, with_uncertainty=False)
    scores = result.report["landmarks"]
    assert (scores["count"], scores["pairs"]) == (3, 12)
    assert scores["after"]["mean"] < 0.05 < 1.0 < scores["before"]["mean"]


def test_velocities_that_pass_the_border_do_not_break_it():
    images = [
        Volume(
            torch.roll(torch.rand(24, 26, generator=torch.Generator().manual_seed(1)), k, 0),
            plane((24, 26)),
            f"{k}",
        )
        for k in range(3)
    ]
    result = register_group(images, QUICK, with_uncertainty=False)
    assert all(bool(torch.isfinite(one.data).all()) for one in result.aligned)


def test_other_sizes_and_places_are_brought_to_a_common_grid(known):
    small = known[0][1]
    cut = Volume(small.data[2:-1, 3:], small.grid.cropped((2, 3), (29, 34)), "cut")
    result = register_group([known[0][0], cut, *known[0][2:]], QUICK, with_uncertainty=False)
    assert any("1 of 4 images have another size or geometry" in note for note in result.report["notes"])
    assert {one.grid.shape for one in result.aligned} == {SHAPE}
    found, without = gaps_mm(result, known[1], known[2], known[0][0].grid)
    assert found < 0.5 * without


def test_affine_alignment_goes_to_the_mean():
    images, _, _ = moved_group(count=3, motion_vox=0.01)
    apart = [
        Volume(one.data, plane(shift=mm), one.name) for one, mm in zip(images, (-6.0, 0.0, 9.0), strict=True)
    ]
    result = register_group(apart, QUICK.with_changes(init="rigid"), with_uncertainty=False)
    middle = apart[1].grid.world_from_index([15.0, 17.0])[None]
    places = [way.map_points(middle)[0] for way in result.transforms]
    steps = np.diff([place[0] for place in places])
    assert np.allclose(steps, [6.0, 9.0], atol=1.0)
    assert abs(np.mean([place[0] for place in places]) - middle[0, 0]) < 1.0


# ---------------------------------------------------------------- what is refused


def blank(name="blank"):
    return Volume(torch.zeros(SHAPE), plane(), name)


@pytest.mark.parametrize(
    ("images", "others", "words"),
    [
        (1, {}, "two images or more, not 1"),
        (3, {"fixed_index": 3}, "fixed index 3 is out of range"),
        (3, {"fixed_index": -1}, "fixed index -1 is out of range"),
        (3, {"masks": [None]}, "as many masks"),
        (3, {"landmarks": [np.zeros((2, 3))]}, "as many lists of landmarks"),
        (2, {"landmarks": [np.zeros((2, 3)), np.zeros((3, 3))]}, "same n points"),
    ],
)
def test_no_group_is_refused_in_a_sentence(known, images, others, words):
    with pytest.raises(InputError, match=words):
        register_group(known[0][:images], QUICK, **others)


def test_bad_frames_are_named_or_left_out(known):
    nan = Volume(torch.full(SHAPE, float("nan")), plane(), "gone")
    for bad, words in ((blank(), "same value"), (nan, "no finite value")):
        given = [known[0][0], bad, *known[0][1:]]
        with pytest.raises(InputError, match=f"Image 1 of the group: .*{words}"):
            register_group(given, QUICK)
    result = register_group([known[0][0], nan, *known[0][1:]], QUICK, leave_out=True, with_uncertainty=False)
    assert result.kept == (0, 2, 3, 4) == tuple(result.report["kept"])
    assert any("Image 1 of the group was left out" in note for note in result.report["notes"])
    with pytest.raises(InputError, match="Image 1 was to stay fixed"):
        register_group([known[0][0], nan, *known[0][1:]], QUICK, leave_out=True, fixed_index=1)
    with pytest.raises(InputError, match="only 1 can be used"):
        register_group([known[0][0], nan], QUICK, leave_out=True)


def test_flat_and_solid_images_do_not_mix(known):
    solid = Volume(torch.rand(8, 8, 8), Grid((8, 8, 8), np.eye(4)), "solid")
    with pytest.raises(InputError, match="one kind"):
        register_group([known[0][0], solid], QUICK)


def test_settings_of_pairs_are_refused(known):
    with pytest.raises(SettingsError, match="for pairs"):
        register_group(known[0], QUICK.with_changes(method="lddmm"))
    with pytest.raises(UnknownNameError):
        register_group(known[0], QUICK.with_changes(similarity="mind"))
    with pytest.raises(SettingsError, match="starts from"):
        register_group(known[0], QUICK.with_changes(init="mass"))


def test_progress_rises_and_can_stop_it(known):
    seen = []
    register_group(known[0], QUICK, progress=seen.append, with_uncertainty=False)
    fractions = [step.fraction for step in seen]
    assert fractions == sorted(fractions)
    assert fractions[-1] == 1.0
    assert any("GB of memory" in step.message for step in seen)

    def stop(step):
        if step.phase == "optimise" and step.fraction > 0.3:
            raise Cancelled("stopped")

    with pytest.raises(Cancelled):
        register_group(known[0], QUICK, progress=stop)
