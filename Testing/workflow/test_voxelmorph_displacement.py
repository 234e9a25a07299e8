"""Registration by a plain VoxelMorph network: known shifts, folds that are mended, refinement on top."""

from __future__ import annotations

import numpy as np
import torch

from DiffeoRegLib.methods.voxelmorph import VoxelMorphMethod
from DiffeoRegLib.networks.build import NetworkConfig, build_network
from DiffeoRegLib.pipeline import register
from DiffeoRegLib.space.field import downsample_image, upsample_field, upsample_image
from DiffeoRegLib.space.transform import AffineTransform
from Testing.halfway_cases import hostile_pair
from Testing.scenes import Scene, distances_mm, pair_of, texture, turned_grid
from Testing.voxelmorph_cases import SIZES, TURN, UP, oblique, settings_for, shifted, write


def test_a_displacement_moves_along_s_a_and_r_and_back(folder):
    scene, fixed, moving = oblique()
    result = register(fixed, moving, settings_for(shifted(folder)), initial=TURN)
    points, _ = scene.landmarks()
    expected = TURN.map_points(points + UP)
    np.testing.assert_allclose(result.transform.map_points(points), expected, atol=3e-3)
    np.testing.assert_allclose(result.inverse.map_points(expected), points, atol=3e-3)
    assert result.report["folds"]["folded_percent"] == 0
    assert not any("own map folds" in note for note in result.report["notes"])


def test_the_displacement_is_that_of_moving_then_fixed(folder):
    """On a working grid twice as fine the same one, in its voxels; the fixed image stays where it is."""
    sizes = {**SIZES, "decoder": [8] * 3, "dim": 3, "stride": 1}
    torch.manual_seed(3)
    network = build_network(NetworkConfig("voxelmorph", sizes)).eval()
    with torch.no_grad():
        network.head.weight.normal_(std=0.5)
    weights = write(
        folder / "bent.safetensors", network, {"name": "voxelmorph", "sizes": sizes, "options": {}}, [2.0] * 3
    )
    settings = settings_for(weights, extras={"precision": "float32"})
    finer = [upsample_image(texture((16, 20, 18), seed), [2] * 3, (32, 40, 36)) for seed in (1, 2)]
    seen = [downsample_image(image, [2] * 3) for image in finer]
    with torch.no_grad():
        u_vox, other = network(seen[1], seen[0]).u12, network(*seen).u12
    assert (u_vox - other).abs().max() > 0.1
    motion = VoxelMorphMethod().predict(pair_of(*finer, [1.0] * 3), settings, lambda step: None)
    torch.testing.assert_close(motion.halves[0], upsample_field(u_vox, [2] * 3, (32, 40, 36)))
    assert not motion.halves[1].any()
    assert not motion.velocity_vox.any()


def test_a_displacement_that_folds_is_mended_and_counted(folder):
    """Random convolutions of some voxels fold; what comes out does not."""
    sizes = {**SIZES, "decoder": [8] * 3, "dim": 3, "stride": 1}
    torch.manual_seed(3)
    network = build_network(NetworkConfig("voxelmorph", sizes)).eval()
    with torch.no_grad():
        network.head.weight.normal_(std=2.0)
    weights = write(
        folder / "wild.safetensors", network, {"name": "voxelmorph", "sizes": sizes, "options": {}}, [2.0] * 3
    )
    _, fixed, moving = hostile_pair()
    report = register(fixed, moving, settings_for(weights)).report
    assert report["folds"]["folded_percent"] == 0
    (note,) = [note for note in report["notes"] if "own map folds in" in note]
    assert int(note.split("folds in ")[1].split()[0]) > 30
    assert any("smoothed where they would fold" in note for note in report["notes"])


def test_refinement_goes_on_from_a_displacement(folder):
    """Over what a few fine iterations cannot find alone; images, marks and landmarks are carried with it."""
    shift = np.eye(4)
    shift[2, 3] = 9.0
    scene = Scene(size_mm=1.5, affine=AffineTransform(shift))
    _, fixed, _ = hostile_pair(size_mm=1.5)
    moving = scene.moving(turned_grid((36, 24, 26), (1.4, 1.7, 1.5), -20, (0, 2)))
    knows = shifted(folder, (4.5, 0.0, 0.0))
    usual = {"levels_mm": (2.0, 1.0), "iterations": (12, 8), "working_spacing_mm": 1.0}
    errors = {}
    for name, settings in {"alone": settings_for(knows), "refined": settings_for(knows, **usual)}.items():
        result = register(fixed, moving, settings)
        errors[name] = distances_mm(result.transform, *scene.landmarks()).mean()
        assert result.report["folds"]["folded_percent"] == 0
        assert (result.motion.velocity_vox != 0).any() == (name == "refined")
    assert errors["refined"] < 0.6 * errors["alone"]
