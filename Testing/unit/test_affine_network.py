"""Linear alignment by a network: known answers, the search after it, answers not believed."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from DiffeoRegLib import catalog
from DiffeoRegLib.catalog import METHOD_CARDS, Model, TrainingData, WeightFile, card
from DiffeoRegLib.errors import InputError, NoOverlapError, SettingsError, UnknownNameError, WeightsError
from DiffeoRegLib.methods import affine as alignment
from DiffeoRegLib.methods.affine import initial_alignment
from DiffeoRegLib.methods.affine_network import network_alignment, unusable
from DiffeoRegLib.networks.affine_net import AffineNet
from DiffeoRegLib.networks.build import NetworkConfig, build_network
from DiffeoRegLib.networks.weights import file_sha256
from DiffeoRegLib.pipeline import register
from DiffeoRegLib.settings import Settings
from DiffeoRegLib.space.grid import Grid
from DiffeoRegLib.space.transform import AffineTransform, DisplacementTransform
from DiffeoRegLib.training.checkpoint import write_checkpoint
from DiffeoRegLib.volumes.common_grid import common_grid
from DiffeoRegLib.volumes.intensity import foreground_points_mm
from DiffeoRegLib.volumes.pair import Masks
from DiffeoRegLib.volumes.volume import Volume
from Testing.affine_cases import FIXED_GRID, centred, corner_error_mm, error_mm, phantom, rigid

SIZES = {"shared": 1, "channels": [2], "strides": [2], "pooled": [1], "parts": 1, "hidden": 2}
SHAPE, SPACING = (20, 24, 16), (5.0, 4.0, 6.0)
"""Of the box along S, A, R; its longest edge is 100 mm."""
HALF_MM = 50.0
SAR = np.eye(3)[::-1]
A = np.array([[1.04, 0.17, 0.0], [-0.16, 0.96, 0.05], [0.02, -0.04, 1.08]])
B = np.array([0.06, -0.1, 0.08])
"""What the network of most tests says: matrix and shift along S, A, R."""


@pytest.fixture(autouse=True)
def quick_search(monkeypatch):
    """The phantoms are small: fewer points and starts are enough for them."""
    monkeypatch.setattr(alignment, "POINTS", (800, 1500, 4000))
    monkeypatch.setattr(alignment, "REFINED", (3, 1, 1))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("weights")


def constant_file(path, linear=A, shift=B, shape=SHAPE, spacing=SPACING, **data):
    """Weights of a network that says the same of all images, in one step."""
    dim = len(shift)
    config = {
        "name": "affine-network",
        "sizes": {**SIZES, "dim": dim, "spacing": list(spacing)},
        "options": {"test_steps": 1},
    }
    network = build_network(NetworkConfig(**config))
    assert isinstance(network, AffineNet)
    numbers = np.concatenate([(np.asarray(linear) - np.eye(dim)).ravel(), shift])
    with torch.no_grad():
        network.numbers.bias.copy_(torch.tensor(numbers, dtype=torch.float32))
    data = {"spacing_mm": list(spacing), "options": {"shape": list(shape)}, **data}
    content = {"kind": "weights", "network": config, "config": {"data": data}}
    write_checkpoint(path, network.state_dict(), content)
    return path


@pytest.fixture(scope="module")
def known(folder):
    return constant_file(folder / "known.safetensors")


def settings_for(weights, **changes):
    usual = {"method": "affine-network", "weights": str(weights), "device": "cpu", "effort": "fast"}
    return Settings(**(usual | {"init": "identity"} | changes))


def world_of(linear, shift_mm, center):
    """RAS mm 4x4 of a map along S, A, R about a point."""
    matrix = np.eye(4)
    matrix[:3, :3] = SAR.T @ linear @ SAR
    matrix[:3, 3] = center + SAR.T @ np.asarray(shift_mm) - matrix[:3, :3] @ center
    return matrix


@pytest.fixture(scope="module")
def fixed():
    return phantom(FIXED_GRID, name="fixed")


def truth_of(fixed, linear=A, shift=B):
    return world_of(linear, HALF_MM * shift, common_grid(fixed, SHAPE, SPACING).center_mm)


# ---------------------------------------------------------------- test 13: the optimisation


def test_the_optimisation_recovers_a_known_map(fixed):
    """10 degrees, 8 voxels of 2 mm, 5 %: at the corners of the field of view half a voxel is not left."""
    truth = rigid((1, 2, 3), 10) @ np.diag([1.05, 0.95, 1.05, 1.0])
    truth[:3, 3] = 16.0 * np.array([0.57, -0.57, 0.6])
    moving = phantom(FIXED_GRID, np.linalg.inv(truth))
    found = initial_alignment(fixed, moving, Settings(init="affine"))
    before = corner_error_mm(np.eye(4), truth, FIXED_GRID)
    assert corner_error_mm(found, truth, FIXED_GRID) < 0.5 * 2.0 < 10.0 < before


# ---------------------------------------------------------------- the network's answer


@pytest.mark.parametrize("name", ["plain", "flipped and turned, no cubes"])
def test_its_answer_is_right_in_mm_on_any_grid(known, name):
    """A and b were said in the network's own box; what counts is where points in mm are led."""
    grids = [FIXED_GRID, centred((56, 52, 40), (2.0, 2.0, 2.4), center=(4, -3, 2))]
    if name != "plain":
        turn = rigid((1, 2, 3), 25)
        oblong = centred((60, 40, 60), (1.9, 3.1, 1.7), 1), centred((70, 50, 36), (1.8, 2.0, 3.3), 2)
        grids = [Grid(grid.shape, turn @ grid.world_from_voxel) for grid in oblong]
    fixed = phantom(grids[0], name="fixed")
    truth = truth_of(fixed)
    moving = phantom(grids[1], np.linalg.inv(truth))
    result = register(fixed, moving, settings_for(known))
    assert isinstance(result.transform, AffineTransform)
    np.testing.assert_allclose(result.transform.moving_from_fixed, truth, atol=1e-4)
    notes = " ".join(result.report["notes"])
    assert "Affine network: rotation" in notes
    assert "Weights: given by the user, known.safetensors" in notes
    assert result.motion is None
    points = foreground_points_mm(fixed)
    back = result.inverse.map_points(result.transform.map_points(points))
    np.testing.assert_allclose(back, points, atol=1e-3)
    assert card("affine-network").citation in result.report["citations"]
    assert card("affine").citation not in result.report["citations"]


@pytest.fixture(scope="module")
def still(folder):
    """It turns and stretches about the middle of the box, without a shift: centres of mass stay there."""
    return constant_file(folder / "still.safetensors", A, np.zeros(3))


def test_it_goes_on_from_where_the_images_were_brought(fixed, still):
    """Headers far apart: by default centres of mass meet first, a given transform does in their place."""
    away = rigid((0, 0, 1), 0, (40, -70, 25))
    own = truth_of(fixed, A, np.zeros(3))
    grid = centred((60, 60, 60), (2, 2, 2), center=(40, -70, 25))
    moving = phantom(grid, np.linalg.inv(away @ own))
    start = initial_alignment(fixed, moving, Settings(init="mass"))
    found = network_alignment(fixed, moving, settings_for(still, init="auto"))
    np.testing.assert_allclose(found, start @ own, atol=1e-4)
    given = register(fixed, moving, settings_for(still, init="auto"), initial=AffineTransform(away))
    np.testing.assert_allclose(given.transform.moving_from_fixed, away @ own, atol=1e-4)


def test_two_dimensions(folder):
    weights = constant_file(folder / "flat.safetensors", A[1:, 1:], B[1:], (24, 20), (4.0, 5.0))
    plane = rigid((1, 0, 0), 40, (5, 6, 7))
    index = np.stack(np.meshgrid(np.arange(80), np.arange(70), indexing="ij"), -1).astype(float)

    def picture(points):
        body = 1 / (1 + np.exp((((points - (41, 33)) / (24, 18)) ** 2).sum(-1) * 8 - 8))
        return body + np.exp(-((points - (50, 30)) ** 2).sum(-1) / 40) * 0.6

    grid = Grid((80, 70), plane @ np.diag([1.0, 1.0, 4.0, 1.0]))
    fixed = Volume(torch.tensor(picture(index), dtype=torch.float32), grid, "fixed")
    middle = grid.index_from_world(common_grid(fixed, (24, 20), (4.0, 5.0)).center_mm)
    back = (index - middle - HALF_MM * B[1:]) @ np.linalg.inv(A[1:, 1:]).T + middle
    moving = Volume(torch.tensor(picture(back), dtype=torch.float32), grid, "moving")
    found = network_alignment(fixed, moving, settings_for(weights))
    led = grid.index_from_world(grid.world_from_index(index) @ found[:3, :3].T + found[:3, 3])
    np.testing.assert_allclose(led, (index - middle) @ A[1:, 1:].T + middle + HALF_MM * B[1:], atol=1e-3)
    with pytest.raises(InputError, match="2D images and these are 3D"):
        network_alignment(phantom(FIXED_GRID), phantom(FIXED_GRID), settings_for(weights))


# ---------------------------------------------------------------- the search after it


@pytest.fixture(scope="module")
def beside(fixed):
    """A moving image that the network's answer fits nearly."""
    truth = rigid((0, 1, 2), 6, (3, -4, 2)) @ truth_of(fixed)
    return phantom(centred((60, 56, 50), (2, 2, 2)), np.linalg.inv(truth)), truth


@pytest.mark.parametrize("effort", ["balanced", "accurate"])
def test_the_search_goes_on_from_the_answer(fixed, beside, known, effort, monkeypatch):
    """And from nowhere else, but at the highest effort."""
    elsewhere = []
    real = alignment._rotated_starts
    monkeypatch.setattr(alignment, "_rotated_starts", lambda *given: elsewhere.append(1) or real(*given))
    moving, truth = beside
    points = foreground_points_mm(fixed)
    alone = network_alignment(fixed, moving, settings_for(known))
    result = register(fixed, moving, settings_for(known, effort=effort))
    found = result.transform.moving_from_fixed
    assert error_mm(found, truth, points) < 0.8 < error_mm(alone, truth, points)
    assert card("affine").citation in result.report["citations"]
    assert [n for n in result.report["notes"] if n.startswith("Initial alignment: affine")]
    assert bool(elsewhere) == (effort == "accurate")


def test_masks_count_in_the_search_and_it_is_said(fixed, known):
    moving = phantom(FIXED_GRID, np.linalg.inv(truth_of(fixed)))
    marked = Volume((fixed.data > 20).to(torch.int32), FIXED_GRID)
    notes: list[str] = []
    network_alignment(fixed, moving, settings_for(known), Masks(fixed=marked), notes=notes)
    assert any("it sees the whole images" in note for note in notes)


# ---------------------------------------------------------------- answers that are not believed


@pytest.mark.parametrize(
    ("linear", "shift", "kind", "said"),
    [
        (np.diag([1.0, -1.0, 1.0]), np.zeros(3), InputError, "mirrors"),
        (np.diag([0.2, 0.5, 0.5]), np.zeros(3), InputError, "changes the volume 0.05 times"),
        (np.eye(3), np.array([9.0, 0.0, 0.0]), NoOverlapError, "out of view"),
    ],
)
def test_an_answer_that_cannot_be_is_refused(folder, fixed, linear, shift, kind, said):
    weights = constant_file(folder / f"{said.split()[0]}.safetensors", linear, shift)
    with pytest.raises(kind, match=said):
        network_alignment(fixed, fixed, settings_for(weights))


def test_where_a_search_may_follow_it_is_left_out_and_said(folder, fixed):
    weights = constant_file(folder / "mirror.safetensors", np.diag([1.0, -1.0, 1.0]), np.zeros(3))
    truth = rigid((0, 0, 1), 12, (6, 4, 0))
    moving = phantom(FIXED_GRID, np.linalg.inv(truth))
    notes: list[str] = []
    found = network_alignment(fixed, moving, settings_for(weights, effort="balanced"), notes=notes)
    assert error_mm(found, truth, foreground_points_mm(fixed)) < 0.8
    assert any("mirrors" in note and "left out" in note for note in notes)


def test_numbers_that_are_not_finite_are_no_answer():
    matrix = np.eye(4)
    matrix[0, 1] = np.nan
    assert unusable(FIXED_GRID, FIXED_GRID, matrix) == "holds values that are not finite"
    assert unusable(FIXED_GRID, FIXED_GRID, np.eye(4)) is None


def test_an_answer_worse_than_the_start_is_not_taken(fixed, known):
    """The images are one already."""
    notes: list[str] = []
    found = network_alignment(fixed, fixed, settings_for(known), notes=notes)
    np.testing.assert_array_equal(found, np.eye(4))
    assert any("less similar than its start" in note for note in notes)


def test_an_object_larger_than_the_box_is_said(folder, fixed):
    box = (12, 12, 12), (3.0, 3.0, 3.0)
    weights = constant_file(folder / "narrow.safetensors", np.eye(3), np.zeros(3), *box)
    notes: list[str] = []
    network_alignment(fixed, fixed, settings_for(weights), notes=notes)
    assert sum("lies outside the box of 36 x 36 x 36 mm" in note for note in notes) == 2


# ---------------------------------------------------------------- settings


def test_choices_that_do_not_go_with_a_network_are_refused(fixed, known):
    for init in ("rigid", "affine"):
        with pytest.raises(SettingsError, match="it aligns the images itself"):
            network_alignment(fixed, fixed, settings_for(known, init=init))
    with pytest.raises(SettingsError, match="no extra settings, such as passes"):
        network_alignment(fixed, fixed, settings_for(known, extras={"passes": 2}))
    warped = DisplacementTransform(FIXED_GRID, torch.ones(1, 3, *FIXED_GRID.shape))
    with pytest.raises(InputError, match="starts from a linear transform"):
        register(fixed, fixed, settings_for(known), initial=warped)


def test_weights_that_do_not_fit_are_refused(folder, fixed):
    bare = constant_file(folder / "bare.safetensors", options={})
    with pytest.raises(WeightsError, match="in which box"):
        network_alignment(fixed, fixed, settings_for(bare))
    with pytest.raises(SettingsError, match="weights that you trained"):
        register(fixed, fixed, Settings(method="affine-network"))


# ---------------------------------------------------------------- a model of the catalogue


@pytest.fixture
def model(monkeypatch, folder, still):
    """The network as a model that is shipped."""
    monkeypatch.setattr(catalog, "SHIPPED_WEIGHTS", folder)
    weight = WeightFile(still.name, None, file_sha256(still), still.stat().st_size, "Apache-2.0", True)
    method = next(c for c in METHOD_CARDS if c.name == "affine-network")
    made = Model(
        "affine-invented", "affine-network", "1", "Invented", "For tests.", "Nobody, 2026.", weight,
        TrainingData("A phantom", "CC0-1.0"), "none", "phantom", SPACING, None,
    ).card(method)  # fmt: skip
    monkeypatch.setitem(catalog.CARDS, made.name, made)
    return made


def test_a_model_runs_by_its_name_and_starts_other_methods(fixed, model):
    """Here the other method takes no step; for both, centres of mass meet first."""
    assert not model.deformable
    own = truth_of(fixed, A, np.zeros(3))
    moving = phantom(FIXED_GRID, np.linalg.inv(own))
    wanted = initial_alignment(fixed, moving, Settings(init="mass")) @ own
    usual = {"effort": "fast", "device": "cpu"}
    alone = register(fixed, moving, Settings(method=model.name, **usual))
    np.testing.assert_allclose(alone.transform.moving_from_fixed, wanted, atol=1e-4)
    assert any("Weights: 'Invented', version 1" in note for note in alone.report["notes"])
    started = Settings(init="network:affine-invented", levels_mm=(8.0,), iterations=(0,), **usual)
    result = register(fixed, moving, started)
    np.testing.assert_allclose(result.initial.moving_from_fixed, wanted, atol=1e-4)
    assert {card("svf").citation, model.citation} <= set(result.report["citations"])
    assert card("affine").citation not in result.report["citations"]
    assert result.motion is not None


def test_only_models_that_align_can_start(fixed, known, model):
    for name in ("sitreg-brain-t1", "affine-network", "nobody"):
        with pytest.raises(UnknownNameError, match="affine-invented"):
            register(fixed, fixed, Settings(init=f"network:{name}"))
    with pytest.raises(UnknownNameError):
        Settings(init="network:")
    with pytest.raises(SettingsError, match="it aligns the images itself"):
        register(fixed, fixed, settings_for(known, init="network:affine-invented"))
