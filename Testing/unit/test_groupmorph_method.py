"""The method GroupMorph: known answers on oblique grids, both tasks and forms, what is refused."""

from __future__ import annotations

import dataclasses
import itertools
import json

import numpy as np
import pytest
import torch

from DiffeoRegLib.catalog import Model, TrainingData, WeightFile, card
from DiffeoRegLib.errors import InputError, MemoryLimitError, SettingsError, WeightsError
from DiffeoRegLib.groupwise import register_group
from DiffeoRegLib.methods.group_memory import memory_of_group
from DiffeoRegLib.methods.groupmorph import group_needs, network_memory_bytes
from DiffeoRegLib.networks.groupmorph import GroupMorphConfig
from DiffeoRegLib.pipeline import register
from DiffeoRegLib.settings import Settings
from DiffeoRegLib.space.grid import Grid
from DiffeoRegLib.template import build_template
from DiffeoRegLib.volumes.files import write_volume
from DiffeoRegLib.volumes.volume import Volume
from Testing.command import one_sentence, run
from Testing.groupmorph_networks import constant, network_file, random, settings_for
from Testing.scenes import CENTRE_MM, Scene, points_of, texture, turned_grid

QUICK = {"levels_mm": (4.0, 2.0), "iterations": (6, 4), "similarity": "mse"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("weights")


def spots(shape=(40, 44), spacing=(2.0, 2.0), count=3, turned=0.0):
    """Blurred random discs, one each, on one turned grid with a plain background."""
    grid = turned_grid(shape, spacing, turned)
    reach = np.linalg.norm(points_of(grid) - CENTRE_MM, axis=1).reshape(shape)
    inside = torch.tensor(1 / (1 + np.exp((reach - 0.32 * shape[0] * spacing[0]) / 2)), dtype=torch.float32)
    return [
        Volume(100 * inside * (0.4 + texture(shape, seed)[0, 0]), grid, f"frame {seed}")
        for seed in range(count)
    ]


def body(shapes, spacings, degrees):
    """One scene as different scanners see it."""
    scene = Scene()
    return [
        dataclasses.replace(scene.fixed(turned_grid(*one)), name=f"scanner {number}")
        for number, one in enumerate(zip(shapes, spacings, degrees, strict=True))
    ]


MIDDLE = CENTRE_MM + np.array([[0.0, 0, 0], [4, -3, 2], [-5, 2, -4]])


def test_a_known_shift_on_oblique_anisotropic_grids(folder):
    """The network's voxels are 4 x 3 x 2.5 mm along S, A, R, whatever the axes of the images; stride 2."""
    images = body([(26, 30, 34), (30, 28, 32)], [(3.0, 2.5, 2.0), (2.5, 3.0, 2.2)], [25.0, -15.0])
    shift = (0.5, -1.0, 0.75)
    file = network_file(folder / "3d.safetensors", constant(shift, stride=2), (4.0, 3.0, 2.5))
    result = register_group(images, settings_for(file), fixed_index=1)
    sar = np.array(shift) * 2 * np.array([4.0, 3.0, 2.5])
    wanted = MIDDLE + sar[::-1]  # RAS
    assert np.allclose(result.transforms[0].map_points(MIDDLE), wanted, atol=0.02)
    assert np.allclose(result.inverses[0].map_points(wanted), MIDDLE, atol=0.02)
    assert np.array_equal(result.transforms[1].map_points(MIDDLE), MIDDLE)
    assert torch.equal(result.aligned[1].data, images[1].data)
    assert result.motion.grid.spacing == pytest.approx((8.0, 6.0, 5.0))


def test_what_all_images_share_is_no_motion_to_the_middle(folder):
    file = network_file(folder / "shared.safetensors", constant((1.0, -2.0)), (2.0, 2.0))
    result = register_group(spots(), settings_for(file))
    assert result.fixed is None
    assert float(result.motion.velocities_vox.abs().max()) < 1e-6


@pytest.mark.parametrize("fixed", [None, 2])
def test_the_order_of_the_images_changes_only_the_order_of_the_results(folder, fixed):
    file = network_file(folder / "random.safetensors", random(), (2.0, 2.5))
    images, order = spots(count=4, turned=20.0), [2, 0, 3, 1]
    first = register_group(images, settings_for(file), fixed_index=fixed)
    moved = None if fixed is None else order.index(fixed)
    second = register_group([images[k] for k in order], settings_for(file), fixed_index=moved)
    assert float(first.motion.velocities_vox.abs().max()) > 0.3
    assert torch.equal(second.motion.velocities_vox, first.motion.velocities_vox[order])
    assert torch.equal(second.motion.variances_vox, first.motion.variances_vox[order])
    for place, number in enumerate(order):
        assert torch.equal(second.aligned[place].data, first.aligned[number].data)
        assert torch.equal(second.deviations[place].data, first.deviations[number].data)


def test_a_stack_takes_the_images_as_they_are_given(folder):
    """One shift for each place of the stack: not that of the order the engine works in."""
    shifts = [(1.0, 0.0), (0.0, 1.0), (-1.0, -1.0)]
    file = network_file(folder / "stack.safetensors", constant(shifts, form="stack", images=3), (2.0, 2.0))
    images = spots()
    for order in ([0, 1, 2], [2, 0, 1]):
        result = register_group([images[k] for k in order], settings_for(file))
        for number, (a, r) in enumerate(shifts):
            wanted = MIDDLE[:1] + 2.0 * np.array([r, a, 0])
            assert np.allclose(result.transforms[number].map_points(MIDDLE[:1]), wanted, atol=0.02)


def test_a_stack_keeps_its_number_and_its_fixed_image(folder):
    all_move = network_file(folder / "s3.safetensors", random(form="stack", images=3), (2.0, 2.0))
    to_one = network_file(folder / "s3f.safetensors", random(form="stack", images=3, fixed=1), (2.0, 2.0))
    with pytest.raises(SettingsError, match="for 3 images, not 4"):
        register_group(spots(count=4), settings_for(all_move))
    with pytest.raises(SettingsError, match="to the middle of all images, not to image 1"):
        register_group(spots(), settings_for(all_move), fixed_index=1)
    with pytest.raises(SettingsError, match="to image 1, not to the middle"):
        register_group(spots(), settings_for(to_one))
    result = register_group(spots(), settings_for(to_one), fixed_index=1)
    assert torch.equal(result.aligned[1].data, spots()[1].data)
    assert float(result.motion.velocities_vox[1].abs().max()) == 0
    assert float(result.motion.velocities_vox[0].abs().max()) > 0.1


def test_a_stack_with_flags_takes_fewer_images(folder):
    network = random(form="stack", images=4, presence=True)
    file = network_file(folder / "flags.safetensors", network, (2.0, 2.0))
    assert len(register_group(spots(), settings_for(file)).transforms) == 3
    with pytest.raises(SettingsError, match="for 2 to 4 images, not 5"):
        register_group(spots(count=5), settings_for(file))


def test_the_uncertainty_of_a_network_alone_is_that_of_its_variance(folder):
    """At rest with .1 voxel of 2 mm in two directions: .28 mm; the flow averages larger white noise."""
    found = {}
    for deviation in (0.1, 0.5):
        file = network_file(folder / f"{deviation}.safetensors", constant((0.0, 0.0), deviation), (2.0, 2.0))
        result = register_group(spots(), settings_for(file), fixed_index=0)
        assert float(result.deviations[0].data.abs().max()) == 0
        share = 2 * deviation * 2**0.5
        found[deviation] = float(result.deviations[1].data.square().mean().sqrt()) / share
        assert float(result.motion.variances_vox[1].mean()) == pytest.approx(deviation**2, rel=0.01)
    assert found[0.1] == pytest.approx(0.95, abs=0.06)
    assert 0.4 < found[0.5] < 0.8
    assert any("what the network says of its velocities" in note for note in result.report["notes"])


def test_effort_above_fast_searches_from_the_networks_answer(folder):
    images = spots(count=2, turned=15.0)
    file = network_file(folder / "start.safetensors", constant((0.4, -0.3)), (2.0, 2.0))
    rest = network_file(folder / "rest.safetensors", constant((0.0, 0.0)), (2.0, 2.0))
    found, plain = (register_group(images, settings_for(one, **QUICK), fixed_index=0) for one in (file, rest))
    assert any("start the search" in note for note in found.report["notes"])
    assert found.motion.variances_vox is None
    assert float((found.motion.velocities_vox - plain.motion.velocities_vox).abs().max()) > 0.05
    before = found.report["similarity"]["before"]["rmse"]
    assert found.report["similarity"]["after"]["rmse"] < before
    assert plain.report["similarity"]["after"]["rmse"] < before
    assert torch.equal(found.aligned[0].data, images[0].data)
    assert float(found.deviations[1].data.mean()) > 0
    assert (
        len(found.report["citations"])
        == len(register_group(images, settings_for(file)).report["citations"]) + 1
    )


@pytest.mark.parametrize("effort", ["fast", "balanced"])
def test_masks_do_not_reach_the_network_and_the_report_says_so(folder, effort):
    file = network_file(folder / f"masked {effort}.safetensors", random(), (2.0, 2.0))
    images = spots(count=2)
    half = torch.ones(images[0].grid.shape, dtype=torch.uint8)
    half[:20] = 0
    settings = settings_for(file, effort=effort, **(QUICK if effort == "balanced" else {}))
    plain, masked = (
        register_group(images, settings, masks=masks, with_uncertainty=False)
        for masks in (None, [None, Volume(half, images[1].grid, "half")])
    )
    said = [[note for note in one.report["notes"] if "no masks" in note] for one in (plain, masked)]
    assert [len(notes) for notes in said] == [0, 1]
    assert ("keeps to them" in said[1][0]) == (effort == "balanced")
    assert torch.equal(plain.motion.velocities_vox, masked.motion.velocities_vox) == (effort == "fast")


@pytest.mark.parametrize("effort", ["fast", "balanced"])
def test_a_template_begins_with_the_network_and_goes_on_with_pairs(folder, effort):
    file = network_file(folder / f"template {effort}.safetensors", random(), (2.0, 2.0))
    images = spots(turned=10.0)
    settings = settings_for(file, effort=effort, **QUICK)
    alone = build_template(images, settings, rounds=0)
    middle = register_group(images, settings, with_uncertainty=False)
    apart = [a.map_points(MIDDLE) - b.map_points(MIDDLE) for a, b in itertools.pairwise(alone.transforms)]
    same = [a.map_points(MIDDLE) - b.map_points(MIDDLE) for a, b in itertools.pairwise(middle.transforms)]
    assert np.abs(np.array(same)).max() > 0.2
    assert np.allclose(apart, same, atol=0.3)  # up to what puts the mean at rest
    result = build_template(images, settings, rounds=1)
    assert [stage["stage"] for stage in result.report["stages"]] == ["as given", "as a group", "round 1"]
    assert result.report["off_centre_mm"] < 0.2
    for method in ("groupmorph", "svf"):
        assert card(method).citation in result.report["citations"]
    assert any("template" in note for note in result.report["notes"])


def test_the_command_makes_a_template_with_a_network(folder, tmp_path, capsys):
    file = network_file(folder / "command.safetensors", random(), (2.0, 2.0))
    names = []
    for image in spots():
        names.append(tmp_path / f"{image.name}.nii.gz")
        write_volume(image, names[-1])
    flags = ("--method", "groupmorph", "--weights", file, "--effort", "fast", "--rounds", "0")
    assert run("template", *names, "-o", tmp_path / "out", *flags) == 0
    notes = json.loads((tmp_path / "out" / "report.json").read_text(encoding="utf-8"))["notes"]
    assert any("command.safetensors" in note for note in notes)
    capsys.readouterr()
    assert run("template", *names, "-o", tmp_path / "none", "--method", "groupmorph") != 0
    assert "weights that you trained" in one_sentence(capsys)


def test_the_report_names_weights_and_network(folder):
    file = network_file(folder / "named.safetensors", random(), (2.0, 2.0))
    result = register_group(spots(), settings_for(file))
    assert any("named.safetensors" in note for note in result.report["notes"])
    assert any("GroupMorph" in one or "group-wise variational" in one for one in result.report["citations"])
    assert result.report["settings"]["method"] == "groupmorph"


def test_what_cannot_be_is_said_in_one_sentence(folder):
    file = network_file(folder / "flat.safetensors", random(), (2.0, 2.0))
    with pytest.raises(InputError, match="works on 2D images and these are 3D"):
        register_group(body([(20, 22, 24)] * 2, [(3.0, 3.0, 3.0)] * 2, [0.0, 9.0]), settings_for(file))
    with pytest.raises(SettingsError, match="weights that you trained"):
        register_group(spots(), Settings(method="groupmorph"))
    with pytest.raises(SettingsError, match="no use for weights"):
        register_group(spots(), Settings(weights=str(file)))
    with pytest.raises(WeightsError, match="cannot be read"):
        register_group(spots(), settings_for(folder / "none.safetensors"))
    with pytest.raises(SettingsError, match="for pairs"):
        register_group(spots(), Settings(method="metamorphosis"))
    with pytest.raises(SettingsError, match="registers a group of images"):
        register(*spots(count=2), settings_for(file))
    with pytest.raises(MemoryLimitError, match="needs about"):
        register_group(spots(), settings_for(file, memory_limit_gb=0.3))


def test_displacements_have_no_inverse(folder):
    file = network_file(folder / "u.safetensors", random(diffeomorphic=False), (2.0, 2.0))
    with pytest.raises(SettingsError, match="no inverse"):
        register_group(spots(), settings_for(file))


def test_needs_and_memory_grow_with_images_and_voxels(folder):
    file = network_file(folder / "size.safetensors", random(), (2.0, 2.5))
    needs = group_needs(settings_for(file), 2, 4, None)
    assert needs.spacing_mm == (2.0, 2.5)
    assert not needs.refined
    assert group_needs(settings_for(file, effort="balanced"), 2, 4, None).refined
    config = GroupMorphConfig(dim=3)
    one, more = (network_memory_bytes(config, count, 10**6) for count in (2, 30))
    assert one < more < one + 30 * 100 * 10**6
    view = Grid((40, 40), np.diag([2.0, 2.5, 1, 1]))
    plain, with_network = (memory_of_group(Settings(), 4, view, n)(view) for n in (None, needs))
    assert with_network > plain


def test_a_shipped_model_is_a_method_of_groups():
    weights = WeightFile("g.safetensors", None, "ab" * 32, 5, "Apache-2.0", True)
    model = Model(
        "groups", "groupmorph", "1", "T", "U.", "P.", weights, TrainingData("D", "CC0"), "MR", "brain",
        (1.0, 1.0, 1.0), None,
    )  # fmt: skip
    found = model.card(card("groupmorph"))
    assert found.needs_group
    assert found.uncertainty
    assert not found.own_weights
