"""A VoxelMorph network's registration: known answers on hostile grids, refinement, what is refused."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import torch

from DiffeoRegLib.catalog import card
from DiffeoRegLib.errors import InputError, MemoryLimitError, SettingsError, UnknownNameError, WeightsError
from DiffeoRegLib.methods import METHODS, method_named
from DiffeoRegLib.methods.base import NetworkMethod
from DiffeoRegLib.methods.voxelmorph import VoxelMorphMethod, network_memory_bytes
from DiffeoRegLib.networks.build import NetworkConfig, build_network
from DiffeoRegLib.networks.unet import UNetConfig
from DiffeoRegLib.networks.voxelmorph import CLASSIC_DIFF
from DiffeoRegLib.pipeline import register
from DiffeoRegLib.space.field import downsample_image, upsample_field, upsample_image
from DiffeoRegLib.space.transform import AffineTransform, DisplacementTransform
from DiffeoRegLib.volumes.volume import Volume
from DiffeoRegLib.worker import inputs
from DiffeoRegLib.worker.jobs import run
from Testing.halfway_cases import hostile_pair, network_file, same_numbers
from Testing.scenes import Scene, distances_mm, pair_of, points_of, texture, turned_grid
from Testing.voxelmorph_cases import (
    AXES_MM,
    RIGHT,
    SIZES,
    TURN,
    UP,
    constant_file,
    oblique,
    settings_for,
    shifted,
    write,
)
from Testing.worker_jobs import image


@pytest.fixture(scope="module")
def still(folder):
    """It never moves anything."""
    return constant_file(folder / "still.safetensors", (0.0, 0.0, 0.0))


@pytest.fixture(scope="module")
def upwards(folder):
    """It moves everything by 3 mm to S: 0.75 velocity voxels of two network voxels of 2 mm."""
    return constant_file(folder / "upwards.safetensors", (0.75, 0.0, 0.0))


@pytest.fixture(scope="module")
def flat(folder):
    return constant_file(folder / "flat.safetensors", (0.5, 0.0))


# ---------------------------------------------------------------- known answers


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_the_network_s_axes_point_to_s_a_and_r(folder, axis):
    """Whatever the axes of the images; every voxel size counts along its own axis."""
    velocity_vox, spacing_mm = [0.0] * 3, (2.0, 2.5, 1.5)
    velocity_vox[axis] = 0.6
    weights = constant_file(folder / f"axis{axis}.safetensors", velocity_vox, spacing_mm=spacing_mm)
    scene, fixed, moving = oblique()
    result = register(fixed, moving, settings_for(weights))
    points, _ = scene.landmarks()
    step = 2 * 0.6 * spacing_mm[axis] * AXES_MM[axis]
    np.testing.assert_allclose(result.transform.map_points(points), points + step, atol=2e-3)
    np.testing.assert_allclose(result.inverse.map_points(points + step), points, atol=2e-3)
    grid = result.transform.parts[0].grid
    assert grid.spacing == pytest.approx(spacing_mm)
    np.testing.assert_allclose(grid.world_from_voxel[:3, :3], AXES_MM.T * spacing_mm, atol=1e-9)
    assert result.report["folds"]["folded_percent"] == 0
    assert any("over the fixed image" in note for note in result.report["notes"])


def test_the_network_sees_both_images_along_its_axes(monkeypatch, upwards):
    """The value at a voxel is that of each image at this place: the network's axes are those of the grid."""
    seen, original = [], VoxelMorphMethod.predict

    def watched(self, pair, settings, report):
        seen.append(pair)
        return original(self, pair, settings, report)

    monkeypatch.setattr(VoxelMorphMethod, "predict", watched)
    scene, fixed, moving = oblique(size_mm=2.0)
    register(fixed, moving, settings_for(upwards), initial=TURN)
    (pair,) = seen
    points = points_of(pair.grid)
    inside = np.linalg.norm(points - points.mean(axis=0), axis=1) < 9.0
    for read, expected in (
        (pair.fixed, scene.anatomy(scene.displaced(points))),
        (pair.moving, scene.anatomy(TURN.map_points(points))),
    ):
        match = np.corrcoef(read.flatten().numpy()[inside], expected[inside])[0, 1]
        assert match > 0.97


def test_the_alignment_comes_after_the_network(upwards):
    scene, fixed, moving = oblique()
    result = register(fixed, moving, settings_for(upwards), initial=TURN)
    points, _ = scene.landmarks()
    expected = TURN.map_points(points + UP)
    np.testing.assert_allclose(result.transform.map_points(points), expected, atol=3e-3)
    np.testing.assert_allclose(result.inverse.map_points(expected), points, atol=3e-3)
    assert isinstance(result.transform.parts[0], DisplacementTransform)
    assert np.array_equal(result.transform.parts[1].moving_from_fixed, TURN.moving_from_fixed)


def test_a_network_at_rest_leaves_the_alignment(still):
    scene, fixed, moving = hostile_pair(size_mm=0.0, affine=TURN)
    points = points_of(fixed.grid)[::31]
    result = register(fixed, moving, settings_for(still), initial=TURN)
    np.testing.assert_allclose(result.transform.map_points(points), TURN.map_points(points), atol=1e-9)
    np.testing.assert_allclose(result.inverse.map_points(TURN.map_points(points)), points, atol=1e-9)
    assert (result.motion.velocity_vox == 0).all()
    assert distances_mm(result.transform, *scene.landmarks()).max() < 1e-6


def test_slices_move_along_the_axes_of_the_fixed_one(flat):
    """Named either way round: content does not decide here, as it does half-way."""
    scene, one, other = hostile_pair(2, size_mm=0.0)
    for fixed, moving in ((one, other), (other, one)):
        result = register(fixed, moving, settings_for(flat))
        direction = fixed.grid.world_from_voxel[:3, 0] / fixed.grid.spacing[0]
        points, _ = scene.landmarks()
        moved = result.transform.map_points(points)
        np.testing.assert_allclose(moved, points + 2.0 * direction, atol=2e-3)


def test_the_velocity_and_its_steps_are_kept(upwards):
    _, fixed, moving = oblique()
    result = register(fixed, moving, settings_for(upwards, steps=16))
    assert result.report["steps"] == 16
    assert result.motion.halves is None
    assert result.motion.velocity_vox.shape == (1, 3, *result.motion.grid.shape)
    job = {
        "kind": "register", "fixed": image(fixed), "moving": image(moving), "storage": "full",
        "settings": {"method": "voxelmorph", "weights": str(upwards), "device": "cpu", "init": "identity",
                     "effort": "fast"},
        "outputs": {"moved": True, "velocity": True, "jacobian": True},
    }  # fmt: skip
    answer = run(job, lambda step: None)
    assert answer["velocity"] is not None
    points = points_of(fixed.grid)[::13]
    kept = inputs.transform_of(answer["transform"]).map_points(points)
    np.testing.assert_allclose(kept, result.transform.map_points(points), atol=0.05)


def test_the_velocity_is_that_of_moving_then_fixed(folder):
    """As in training; on a working grid twice as fine the same velocity, in its voxels."""
    sizes = {**SIZES, "dim": 3}
    torch.manual_seed(3)
    network = build_network(NetworkConfig("voxelmorph-diff", sizes)).eval()
    with torch.no_grad():
        network.mean.weight.normal_(std=20.0)
    config = {"name": "voxelmorph-diff", "sizes": sizes, "options": {}}
    weights = write(folder / "lively.safetensors", network, config, [2.0] * 3)
    settings = settings_for(weights, extras={"precision": "float32"})
    fixed, moving = (texture((16, 20, 18), seed) for seed in (1, 2))
    with torch.no_grad():
        mean = network(moving, fixed).mean
        other = network(fixed, moving).mean
    assert (mean - other).abs().max() > 0.1
    motion = VoxelMorphMethod().predict(pair_of(fixed, moving, [2.0] * 3), settings, lambda step: None)
    torch.testing.assert_close(motion.velocity_vox, upsample_field(mean, [2] * 3, (16, 20, 18)))
    finer = [upsample_image(image, [2] * 3, (32, 40, 36)) for image in (fixed, moving)]
    seen = [downsample_image(image, [2] * 3) for image in finer]
    with torch.no_grad():
        mean = network(seen[1], seen[0]).mean
    motion = VoxelMorphMethod().predict(pair_of(*finer, [1.0] * 3), settings, lambda step: None)
    torch.testing.assert_close(motion.velocity_vox, upsample_field(mean, [4] * 3, (32, 40, 36)))


# ---------------------------------------------------------------- refinement


def test_refinement_starts_from_the_networks_velocity(folder, still):
    """A shift that a few fine iterations cannot find is found when the network knows it."""
    shift = np.eye(4)
    shift[2, 3] = 9.0
    scene = Scene(size_mm=1.5, affine=AffineTransform(shift))
    _, fixed, _ = hostile_pair(size_mm=1.5)
    moving = scene.moving(turned_grid((36, 24, 26), (1.4, 1.7, 1.5), -20, (0, 2)))
    knows = constant_file(folder / "knows.safetensors", (9.0 / 4, 0.0, 0.0))
    usual = {"levels_mm": (2.0, 1.0), "iterations": (12, 8), "working_spacing_mm": 1.0}
    errors = {}
    for name, settings in {
        "alone": settings_for(knows),
        "refined": settings_for(knows, **usual),
        "from rest": settings_for(still, **usual),
    }.items():
        result = register(fixed, moving, settings)
        errors[name] = distances_mm(result.transform, *scene.landmarks()).mean()
        assert result.report["folds"]["folded_percent"] == 0
    assert errors["refined"] < 0.6 * errors["alone"]
    assert errors["from rest"] > 3 * errors["refined"]


def test_progress_notes_and_citations(upwards):
    _, fixed, moving = hostile_pair()
    told = []
    settings = settings_for(upwards, iterations=(2, 3), extras={"precision": "float32"})
    report = register(fixed, moving, settings, progress=told.append).report
    assert sum(step.phase == "optimise" for step in told) == 5
    assert any("network looks at" in step.message for step in told)
    assert report["citations"] == [card("voxelmorph").citation, card("svf").citation]
    assert "Dalca" in card("voxelmorph").citation
    assert any("float32" in note for note in report["notes"])
    alone = register(fixed, moving, settings_for(upwards)).report
    assert alone["citations"] == [card("voxelmorph").citation]


def test_after_a_nonlinear_start(upwards):
    scene, fixed, moving = hostile_pair()
    u_mm = torch.zeros(1, 3, *fixed.grid.shape)
    u_mm[0, 0, 2:-2, 2:-2, 2:-2] = 1.0
    field = DisplacementTransform(fixed.grid, u_mm)
    result = register(fixed, moving, settings_for(upwards), initial=field)
    assert result.transform.parts[-1] is field
    points = np.array([scene.landmarks()[0].mean(axis=0)])
    np.testing.assert_allclose(result.transform.map_points(points), points + UP + RIGHT, atol=5e-3)


def test_the_same_run_gives_the_same_numbers(upwards):
    _, fixed, moving = hostile_pair()
    settings = settings_for(upwards, iterations=(1, 1))
    first, second = (register(fixed, moving, settings) for _ in "12")
    assert same_numbers(first.transform, second.transform)


# ---------------------------------------------------------------- what is refused


def test_the_card_and_its_method():
    known = card("voxelmorph")
    assert (known.symmetric, known.halfway, known.own_weights, known.trained) == (False, False, True, True)
    assert METHODS["voxelmorph"] is VoxelMorphMethod
    assert isinstance(method_named("voxelmorph"), NetworkMethod)


def test_weights_of_other_networks(folder, still):
    _, fixed, moving = hostile_pair()
    wide = constant_file(folder / "wide.safetensors", (0.0,) * 3, channels_in=4)
    sitreg = network_file(folder / "sitreg.safetensors")
    cases = [
        (
            settings_for(sitreg),
            WeightsError,
            "'sitreg', but 'voxelmorph' needs weights of 'voxelmorph-diff' or 'voxelmorph'",
        ),
        (settings_for(still, method="sitreg"), WeightsError, "'voxelmorph-diff', but 'sitreg' needs"),
        (settings_for(shifted(folder), method="sitreg"), WeightsError, "'voxelmorph', but 'sitreg' needs"),
        (settings_for(wide), WeightsError, "not those of a VoxelMorph network for two images"),
        (settings_for(folder / "nothing.safetensors"), WeightsError, "cannot be read"),
        (settings_for(still).with_changes(weights=None), SettingsError, "weights that you trained"),
    ]
    for settings, error, sentence in cases:
        told = []
        with pytest.raises(error, match=sentence) as caught:
            register(fixed, moving, settings, progress=told.append)
        assert told == []
        assert "\n" not in str(caught.value)


def test_slices_for_a_network_of_volumes_and_the_other_way_round(still, flat):
    for dim, weights, sentence in (
        (2, still, "3D images and these are 2D"),
        (3, flat, "2D images and these"),
    ):
        _, fixed, moving = hostile_pair(dim)
        with pytest.raises(InputError, match=sentence):
            register(fixed, moving, settings_for(weights))


@pytest.mark.parametrize(
    ("changes", "error", "sentence"),
    [
        ({"extras": {"mode": "standard"}}, UnknownNameError, "Known: precision"),
        ({"extras": {"precision": "fp16"}}, UnknownNameError, "bfloat16, float32"),
        ({"iterations": (1, 2, 3, 4)}, SettingsError, "up to 3 numbers"),
        ({"levels_mm": (2.0,), "iterations": (1, 2)}, SettingsError, "do not match"),
    ],
)
def test_settings_that_make_no_sense(still, changes, error, sentence):
    told = []
    _, fixed, moving = hostile_pair()
    with pytest.raises(error, match=sentence):
        register(fixed, moving, settings_for(still, **changes), progress=told.append)
    assert told == []


def test_images_far_smaller_than_the_network_reaches(folder):
    """Borders are repeated: a network of 16-fold strides runs on a body of some voxels."""
    sizes = {"encoder": [4] * 4, "decoder": [4] * 4}
    deep = constant_file(folder / "deep.safetensors", (0.25, 0.0, 0.0), **sizes)
    scene = Scene(radius_mm=3.0, size_mm=0.0)
    grid = turned_grid((8, 9, 7), (1.0, 1.0, 1.0))
    result = register(scene.fixed(grid), scene.moving(grid), settings_for(deep))
    points = points_of(grid)[[np.ravel_multi_index((4, 4, 3), grid.shape)]]
    np.testing.assert_allclose(result.transform.map_points(points), points + UP / 3, atol=0.05)


def test_too_little_memory(still):
    _, fixed, moving = hostile_pair()
    with pytest.raises(MemoryLimitError, match=r"only 0\.1 GB may be used"):
        register(fixed, moving, settings_for(still, memory_limit_gb=0.1))


def test_images_without_anything(still):
    """A blank moving image is refused as by every method."""
    _, fixed, moving = hostile_pair()
    blank = Volume(torch.zeros_like(moving.data), moving.grid, "blank")
    with pytest.raises(InputError, match="blank"):
        register(fixed, blank, settings_for(still))


# ---------------------------------------------------------------- memory

MEASURE = """
import sys, torch
torch.set_num_threads(1)
from DiffeoRegLib.catalog import card
from DiffeoRegLib.methods.voxelmorph import VoxelMorphMethod, network_memory_bytes
from DiffeoRegLib.networks.weights import network_for
from DiffeoRegLib.report.memory import peak_memory_mb
from DiffeoRegLib.settings import Settings
from Testing.scenes import pair_of, texture
settings = Settings(method="voxelmorph", weights=sys.argv[1], extras={"precision": "float32"})
shape = (72, 80, 76)
pair = pair_of(texture(shape, 1), texture(shape, 2), [2.0] * 3)
config = network_for(card("voxelmorph"), settings)[0].config
before = peak_memory_mb()
VoxelMorphMethod().predict(pair, settings, lambda step: None)
print(peak_memory_mb() - before, network_memory_bytes(config, 72 * 80 * 76) / 2**20)
"""


def test_the_estimate_of_the_networks_memory_is_true(folder):
    """The published sizes, in a process of its own, since the peak of this one is long past."""
    sizes = {name: list(v) if isinstance(v, tuple) else v for name, v in CLASSIC_DIFF.items()}
    classic = constant_file(folder / "classic.safetensors", (0.1, 0.0, 0.0), **sizes)
    run = subprocess.run(
        [sys.executable, "-c", MEASURE, str(classic)],
        capture_output=True,
        encoding="utf-8",
        check=True,
        timeout=120,
    )
    measured, estimate = (float(value) for value in run.stdout.split())
    assert 0.5 * estimate < measured < 1.15 * estimate


def test_memory_grows_with_the_network():
    small, large = UNetConfig(**CLASSIC_DIFF), UNetConfig(**{**CLASSIC_DIFF, "encoder": (64, 64, 64, 64)})
    assert network_memory_bytes(small, 1000) < network_memory_bytes(large, 1000)
    assert network_memory_bytes(small, 2000) == 2 * network_memory_bytes(small, 1000)
