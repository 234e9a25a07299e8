"""A TransMorph-TVF network's registration: known answers, steps, path, orders, refinement, refusals."""

from __future__ import annotations

import dataclasses
import itertools

import numpy as np
import pytest
import torch

from DiffeoRegLib.catalog import card, check_steps
from DiffeoRegLib.errors import InputError, SettingsError, UnknownNameError, WeightsError
from DiffeoRegLib.flows.time_varying import full_resolution, integrate_steps
from DiffeoRegLib.methods import METHODS, method_named
from DiffeoRegLib.methods.base import NetworkMethod
from DiffeoRegLib.methods.stepping import chosen_steps, followed
from DiffeoRegLib.methods.transmorph_tvf import TransMorphTVFMethod, cut_windows, memory_bytes
from DiffeoRegLib.networks.build import NetworkConfig
from DiffeoRegLib.networks.tvf import TVFConfig
from DiffeoRegLib.networks.weights import read_network
from DiffeoRegLib.pipeline import register
from DiffeoRegLib.settings import Settings
from DiffeoRegLib.space.grid import Grid
from DiffeoRegLib.space.transform import AffineTransform
from DiffeoRegLib.velocity_files import read_velocities, retrace, saved_velocities, write_velocities
from DiffeoRegLib.volumes.volume import Volume
from Testing.halfway_cases import hostile_pair, same_numbers
from Testing.scenes import Scene, distances_mm, pair_of, points_of, texture, turned_grid
from Testing.tvf_networks import constant, network_file, settings_for, tiny

TURN = AffineTransform(
    np.array([[0.98, -0.17, 0.02, 3.0], [0.17, 0.97, 0.05, -2.0], [-0.03, -0.05, 1.04, 1.5], [0, 0, 0, 1.0]])
)
AXES_MM = np.eye(3)[::-1]
"""Directions of the network's axes: S, A, R."""
SPACING = [1.5, 1.5]


def quiet(progress):
    """Nobody listens."""


@pytest.fixture(scope="module")
def lively(folder):
    """Eight velocities in 2D that depend on the images, and their network."""
    network = tiny(largest=0.3)
    return network, network_file(folder / "lively.safetensors", network, SPACING)


@pytest.fixture(scope="module")
def plane():
    """Two smooth pictures."""
    matrix = np.diag([1.5, 1.5, 1.0, 1.0])[[1, 0, 2, 3]]
    images = [Volume(texture((46, 52), seed)[0, 0], Grid((46, 52), matrix), f"{seed}") for seed in (1, 2)]
    return images[0], images[1]


@pytest.fixture(scope="module")
def flat(lively, plane):
    """What the lively network makes of the pictures."""
    return register(*plane, settings_for(lively[1]))


# ---------------------------------------------------------------- known answers


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_velocities_count_along_s_a_and_r_in_their_own_voxels(folder, axis):
    """Four steps of other lengths; every second voxel of the network, whose voxel sizes differ."""
    steps, spacing_mm = [[0.0] * 3 for _ in range(4)], (2.0, 2.5, 1.5)
    for number, step in enumerate(steps):
        step[axis] = 0.1 * (number + 1)
    weights = network_file(folder / f"axis{axis}.safetensors", constant(steps), spacing_mm)
    scene = Scene(size_mm=0.0)
    fixed = scene.fixed(turned_grid((23, 26, 24), (1.7, 1.4, 1.5), 25, (0, 1, 2)))
    moving = scene.moving(turned_grid((26, 22, 24), (1.4, 1.7, 1.5), -20, (1,)))
    result = register(fixed, moving, settings_for(weights), initial=TURN)
    points, _ = scene.landmarks()
    moved = TURN.map_points(points + 2 * 1.0 * spacing_mm[axis] * AXES_MM[axis])
    np.testing.assert_allclose(result.transform.map_points(points), moved, atol=3e-3)
    np.testing.assert_allclose(result.inverse.map_points(moved), points, atol=3e-3)
    assert (result.report["steps"], result.motion.stepping) == (4, "paper")
    assert result.report["folds"]["folded_percent"] == 0


def test_a_network_at_rest_leaves_the_alignment(folder):
    still = network_file(folder / "still.safetensors", constant([[0.0] * 3] * 2), [2.0] * 3)
    scene, fixed, moving = hostile_pair(size_mm=0.0, affine=TURN)
    result = register(fixed, moving, settings_for(still), initial=TURN)
    assert distances_mm(result.transform, *scene.landmarks()).max() < 1e-3


def test_the_velocities_are_those_of_moving_then_fixed(lively):
    """And their steps make the map that training saw."""
    network, weights = lively
    fixed, moving = (texture((30, 34), seed) for seed in (1, 2))
    motion = TransMorphTVFMethod().predict(pair_of(fixed, moving, SPACING), settings_for(weights), quiet)
    expected, other = network(moving, fixed), network(fixed, moving)
    assert (expected.u12 - other.u12).abs().max() > 0.1
    torch.testing.assert_close(motion.velocity_vox, torch.cat(expected.velocities_vox) * 8)
    assert motion.grid.shape == (15, 17)
    assert motion.grid.spacing == pytest.approx([3.0, 3.0])
    u_vox = full_resolution(integrate_steps(list((motion.velocity_vox / 8).split(1))), (30, 34))
    torch.testing.assert_close(u_vox, expected.u12, rtol=0, atol=1e-5)


def test_bfloat16_gives_nearly_the_same_map(lively, plane, flat):
    half = register(*plane, settings_for(lively[1], extras={"precision": "bfloat16"}))
    points = points_of(plane[0].grid)
    moved = flat.transform.map_points(points)
    gap = np.linalg.norm(half.transform.map_points(points) - moved, axis=1)
    assert 0 < gap.max() < 0.1 * np.linalg.norm(moved - points, axis=1).max()


# ---------------------------------------------------------------- steps


def test_every_number_of_steps_gives_a_diffeomorphism(lively, plane, flat):
    """Fewer and more than the network was trained with; the map changes less and less."""
    points = points_of(plane[0].grid)
    maps = {}
    for steps in (1, 2, 4, 8, 12, 16, 128):
        result = flat if steps == 8 else register(*plane, settings_for(lively[1], steps=steps))
        assert result.report["steps"] == steps
        assert result.report["folds"]["folded_percent"] == 0
        maps[steps] = result.transform.map_points(points)
        back = result.inverse.map_points(maps[steps])
        assert np.percentile(np.abs(back - points), 95) < 0.15  # a tenth of a voxel
        (said,) = [note for note in result.report["notes"] if "time steps of" in note]
        assert ("trained with 8" in said) == (steps != 8)
    gaps = [np.abs(maps[steps] - maps[128]).max() for steps in (1, 2, 4, 8, 16)]
    assert all(more < less for less, more in itertools.pairwise(gaps))
    assert gaps[3] < 0.5 * gaps[0]


def test_auto_takes_as_many_steps_as_make_each_one_to_one(folder, plane, flat):
    assert flat.report["steps"] == 8
    assert any("every step is one to one" in note for note in flat.report["notes"])
    wild = network_file(folder / "wild.safetensors", tiny(largest=2.5), SPACING)
    result = register(*plane, settings_for(wild))
    assert result.report["steps"] in range(16, 129, 8)
    assert any("one to one" in note for note in result.report["notes"])
    few = register(*plane, settings_for(wild, steps=8))
    assert any("only below 1 a step is surely one to one" in note for note in few.report["notes"])
    assert few.report["folds"]["folded_percent"] == 0


@pytest.mark.parametrize("steps", [129, 1000])
def test_more_steps_than_are_offered(steps, lively, plane):
    with pytest.raises(
        SettingsError, match=f"'transmorph-tvf' takes 1 to 128 time steps, or 'auto', not {steps}"
    ):
        register(*plane, settings_for(lively[1], steps=steps))
    check_steps(card("affine"), steps)  # no flow: nothing to step
    check_steps(dataclasses.replace(card("svf"), steps_range=(1, steps)), steps)


# ---------------------------------------------------------------- path


def test_the_path_leads_from_the_identity_to_the_transform(plane, flat, tmp_path):
    """Bit for bit at its end, also from a file; every step invertible."""
    write_velocities(tmp_path / "v.safetensors", saved_velocities(flat, plane[0].grid))
    saved = read_velocities(tmp_path / "v.safetensors")
    for mine, theirs in zip(retrace(saved), (flat.transform, flat.inverse), strict=True):
        assert same_numbers(mine, theirs)
    points = points_of(plane[0].grid)
    way = [retrace(saved, number / 8) for number in range(9)]
    assert np.abs(way[0][0].map_points(points) - points).max() < 1e-6
    places = [forward.map_points(points) for forward, _ in way]
    lengths = [np.abs(after - before).max() for before, after in itertools.pairwise(places)]
    assert min(lengths) > 0.05
    for (_, backward), moved in zip(way, places, strict=True):
        assert np.percentile(np.abs(backward.map_points(moved) - points), 95) < 0.15


# ---------------------------------------------------------------- orders


def test_the_order_is_that_of_the_weights_or_of_the_settings(lively, plane, flat):
    other = register(*plane, settings_for(lively[1], extras={"order": "residual", "precision": "float32"}))
    assert (flat.motion.stepping, other.motion.stepping) == ("paper", "residual")
    assert torch.equal(flat.motion.velocity_vox, other.motion.velocity_vox)
    points = points_of(plane[0].grid)
    assert np.abs(flat.transform.map_points(points) - other.transform.map_points(points)).max() > 0.02


def test_official_weights_give_the_map_their_code_would(folder):
    """Which forgot to double the half-resolution field; another order takes the same true lengths."""
    network = tiny(largest=0.5, order="official")
    weights = network_file(folder / "official.safetensors", network, SPACING)
    fixed, moving = (texture((32, 36), seed) for seed in (1, 2))
    pair = pair_of(fixed, moving, SPACING)
    motion = TransMorphTVFMethod().predict(pair, settings_for(weights), quiet)
    assert motion.stepping == "official"
    flow = followed(motion.velocity_vox, motion.grid, "official", 8, pair.grid, pair.grid, 0.0)
    torch.testing.assert_close(flow.forward_vox, network(moving, fixed).u12, rtol=0, atol=1e-5)
    paper = settings_for(weights, extras={"order": "paper", "precision": "float32"})
    again = TransMorphTVFMethod().predict(pair, paper, quiet)
    assert again.stepping == "paper"
    assert torch.equal(again.velocity_vox, motion.velocity_vox)
    for steps in ("auto", 8):
        assert chosen_steps(motion.velocity_vox, "official", steps, 128) == 8
    with pytest.raises(SettingsError, match="follows its 8 fields in 8 steps, not in 16"):
        chosen_steps(motion.velocity_vox, "official", 16, 128)
    with pytest.raises(SettingsError, match="8 velocities of this network in as many steps, not in 16"):
        TransMorphTVFMethod().needs(settings_for(weights, steps=16), 2)
    assert TransMorphTVFMethod().needs(paper.with_changes(steps=16), 2).least_voxels == 4


# ---------------------------------------------------------------- refinement


def test_no_iterations_change_nothing(lively, plane, flat):
    none = register(*plane, settings_for(lively[1], effort="balanced", iterations=(0, 0)))
    assert same_numbers(none.transform, flat.transform)
    assert torch.equal(none.motion.velocity_vox, flat.motion.velocity_vox)


@pytest.mark.parametrize(
    "losses", [[], [{"name": "lncc"}, {"name": "lddmm", "weight": 1.0, "options": {"gamma": 0.01}}]]
)
def test_refinement_brings_the_images_together(folder, losses):
    """From a network that knows half of a shift."""
    shift = np.eye(4)
    shift[2, 3] = 8.0
    scene = Scene(size_mm=1.5, affine=AffineTransform(shift))
    _, fixed, _ = hostile_pair(size_mm=1.5)
    moving = scene.moving(turned_grid((36, 24, 26), (1.4, 1.7, 1.5), -20, (0, 2)))
    half = constant([[0.5, 0.0, 0.0]] * 2)
    weights = network_file(folder / f"half{len(losses)}.safetensors", half, [2.0] * 3, losses)
    alone = register(fixed, moving, settings_for(weights))
    told = []
    settings = settings_for(weights, iterations=(12, 6), steps=4)
    refined = register(fixed, moving, settings, progress=told.append)
    before, after = (distances_mm(r.transform, *scene.landmarks()).mean() for r in (alone, refined))
    assert after < 0.6 * before
    assert refined.motion.velocity_vox.shape == alone.motion.velocity_vox.shape
    assert refined.report["steps"] == 4
    assert refined.report["folds"]["folded_percent"] == 0
    assert 2 < sum(step.phase == "optimise" for step in told) <= 18
    (said,) = [note for note in refined.report["notes"] if "Refinement of the velocities" in note]
    assert ("operator of LDDMM" in said) == bool(losses)
    assert refined.report["citations"][-1] == card("transmorph-tvf").citation


def test_the_finest_level_moves_velocities_on_a_finer_grid(folder):
    """On the network's own voxels, twice as fine as those it predicts on, and never finer."""
    weights = network_file(folder / "fine.safetensors", tiny(steps=3, largest=0.2), [3.0, 3.0])
    _, fixed, moving = hostile_pair(2, size_mm=1.0)
    settings = settings_for(weights, iterations=(1, 1, 2), working_spacing_mm=1.0)
    result = register(fixed, moving, settings)
    assert result.motion.grid.spacing == pytest.approx([3.0, 3.0])
    assert len(result.motion.velocity_vox) == 3


# ---------------------------------------------------------------- what is refused


def test_the_card_and_its_method():
    known = card("transmorph-tvf")
    assert (known.own_weights, known.trained, known.time_varying, known.symmetric) == (
        True,
        True,
        True,
        False,
    )
    assert (known.steps_range, known.steps_default, known.trained_steps) == ((1, 128), "auto", 0)
    assert METHODS["transmorph-tvf"] is TransMorphTVFMethod
    assert isinstance(method_named("transmorph-tvf"), NetworkMethod)


def test_weights_of_other_networks(folder, plane, lively):
    single = network_file(folder / "single.safetensors", tiny(name="transmorph"), SPACING)
    more = network_file(folder / "more.safetensors", tiny(channels_in=4, largest=0), SPACING)
    lying = tiny(steps=4)
    lying.sizes = {**lying.sizes, "steps": 8}
    wider = tiny(largest=0)
    wider.sizes = {**wider.sizes, "head_channels": 6}
    cases = [
        (single, "'transmorph' in .* no inverse: train 'transmorph-tvf' instead"),
        (more, "not those of a TransMorph-TVF network for two images"),
        (network_file(folder / "lying.safetensors", lying, SPACING), "lacks 'steps[.]4.*another network"),
        (network_file(folder / "wider.safetensors", wider, SPACING), "weights of another size"),
        (folder / "nothing.safetensors", "cannot be read"),
    ]
    for weights, sentence in cases:
        with pytest.raises(WeightsError, match=sentence) as caught:
            register(*plane, settings_for(weights))
        assert "\n" not in str(caught.value)
    with pytest.raises(WeightsError, match="'transmorph-tvf', but 'voxelmorph' needs"):
        register(*plane, settings_for(lively[1], method="voxelmorph"))
    written = {"name": "transmorph-tvf", "sizes": {**lively[0].sizes, "steps": 4}, "options": {}}
    with pytest.raises(WeightsError, match=r"its sizes is .*'steps': 8.*, not .*'steps': 4"):
        read_network(lively[1], wanted=NetworkConfig(**written))


@pytest.mark.parametrize(
    ("changes", "error", "sentence"),
    [
        ({"extras": {"passes": 1}}, UnknownNameError, "Known: order, precision"),
        ({"extras": {"precision": "fp16"}}, UnknownNameError, "bfloat16, float32"),
        ({"extras": {"order": "newest"}}, UnknownNameError, "official, paper, residual"),
        ({"extras": {"order": "official"}}, SettingsError, "trained with the order 'paper'"),
        ({"iterations": (1, 2, 3, 4)}, SettingsError, "up to 3 numbers"),
        ({"levels_mm": (2.0,), "iterations": (1, 2)}, SettingsError, "do not match"),
    ],
)
def test_settings_that_make_no_sense(lively, plane, changes, error, sentence):
    told = []
    with pytest.raises(error, match=sentence) as caught:
        register(*plane, settings_for(lively[1], **changes), progress=told.append)
    assert told == []
    assert "\n" not in str(caught.value)


def test_volumes_for_a_network_of_slices(lively):
    _, fixed, moving = hostile_pair()
    with pytest.raises(InputError, match="works on 2D images and these are 3D"):
        register(fixed, moving, settings_for(lively[1]))


def test_an_image_shorter_than_a_patch(folder, plane):
    """At the network's voxel size; the image file may have enough voxels."""
    weights = network_file(folder / "coarse.safetensors", tiny(), [20.0, 20.0])
    with pytest.raises(InputError, match=r"'1' is 69 mm long along one axis.* patches of 4 voxels, 80 mm"):
        register(*plane, settings_for(weights))


def test_an_image_shorter_than_a_window(folder, plane, flat):
    """Is registered, and the report says what was cut; others hear nothing of it."""
    assert not any("windows" in note for note in flat.report["notes"])
    weights = network_file(folder / "wide.safetensors", tiny(window=[14, 40], largest=0.2), SPACING)
    report = register(*plane, settings_for(weights)).report
    (said,) = [note for note in report["notes"] if "windows" in note]
    assert "of 160 voxels (along a row)" in said
    assert "(along a column)" not in said
    assert report["folds"]["folded_percent"] == 0
    assert cut_windows((5, 6, 7), 4, (20, 24, 28)) == []
    (said,) = cut_windows((5, 6, 7), 4, (19, 24, 12))
    assert "19 of 20 voxels (inferior to superior), 12 of 28 voxels (left to right)" in said


def test_memory_grows_with_the_network():
    small, large = (TVFConfig(embed=e, heads=(1, 2, 4, 8)) for e in (24, 48))
    assert memory_bytes(large, 0, 10**6) > memory_bytes(small, 0, 10**6) > memory_bytes(small, 0, 10**5)
    assert memory_bytes(small, 10**6, 10**6) - memory_bytes(small, 0, 10**6) == 2 * 10**6
    assert memory_bytes(small, 0, 80 * 96 * 80) == pytest.approx(0.18e9, rel=0.15)


def test_the_default_settings_name_no_network():
    with pytest.raises(SettingsError, match="weights that you trained"):
        register(*hostile_pair(2)[1:], Settings(method="transmorph-tvf"))
