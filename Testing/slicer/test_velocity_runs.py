"""Velocities that change in time, from request to nodes: kept, saved, loaded, followed and played again.

With the real worker process on the real MRML scene; the shipped pair, and a tiny network that shifts it.
"""

from __future__ import annotations

import numpy as np
import pytest
import slicer

from DiffeoRegLib.errors import InputError, SettingsError
from DiffeoRegLib.exchange import Image
from DiffeoRegLib.settings import Settings
from DiffeoRegPanel.nodes import kept, velocities
from DiffeoRegPanel.nodes.places import parent_of
from DiffeoRegPanel.nodes.sequences import show_item
from DiffeoRegPanel.nodes.volumes import velocity_volumes
from DiffeoRegPanel.path import Path as Way
from DiffeoRegPanel.path import positions_of, sequence_along, shot_again
from DiffeoRegPanel.registration import Registration
from DiffeoRegPanel.request import Outputs, Request
from Testing.slicer import mrml_cases as cases
from Testing.slicer import test_registration as runs
from Testing.slicer.test_geodesic_runs import folder_of, named, put_in_folder
from Testing.slicer.test_nodes_volumes import reloaded
from Testing.velocity_cases import FIELDS, network_weights

FULL = {"storage": "full"}


@pytest.fixture(scope="module")
def settings(tmp_path_factory):
    weights = network_weights(tmp_path_factory.mktemp("weights") / "tiny.safetensors", spacing_mm=2.0)
    return Settings(
        method="transmorph-tvf", effort="fast", init="mass", device="cpu", threads=1, weights=str(weights)
    )


@pytest.fixture
def pair(scene):
    fixed, moving = runs._volume("006"), runs._volume("138")
    fixed.SetName("CT")
    moving.SetName("MR")
    for volume in (fixed, moving):
        put_in_folder(volume)
    return fixed, moving


def test_a_run_saved_loaded_followed_and_played(pair, runner, settings, scene, tmp_path):
    fixed = pair[0]
    result = runs.run(Request(*pair, settings, outputs=Outputs(**FULL)), runner)
    assert result.selfCheck.ok, result.selfCheck.sentence
    assert result.velocity is result.momentum is None
    assert result.way is result.velocities
    assert result.report["steps"] == FIELDS
    others = kept.other_nodes(result.velocities)
    names = [f"Velocity {n} of {FIELDS}, MR -> CT" for n in range(1, FIELDS + 1)]
    assert [node.GetName() for node in (result.velocities, *others)] == names
    assert {folder_of(node) for node in (result.velocities, *others)} == {"study of CT"}
    points = runs.some_points(fixed)
    whole, back = (runs.mapped(node, points) for node in (result.outputTransform, result.inverseTransform))
    assert np.abs(whole - points).max() > 1.0

    reloaded(scene, tmp_path, "mrb")
    moving, node = named("MR"), named(names[0])
    again, inverse = shot_again(node, runner)
    assert np.abs(runs.mapped(again, points) - whole).max() < 0.02  # kept at half the resolution of the run's
    assert np.abs(runs.mapped(inverse, points) - back).max() < 0.05
    way = Way(node, runner)
    half = runs.mapped(runs._position(way, 1 / FIELDS), points)
    assert np.abs(half - whole).max() > 0.3
    way.close()
    assert moving.GetTransformNodeID() is None
    sequence, browser = sequence_along(node, runner)
    assert [float(sequence.GetNthIndexValue(n)) for n in range(sequence.GetNumberOfDataNodes())] == (
        pytest.approx([100 * n / FIELDS for n in range(FIELDS + 1)], abs=1e-3)
    )
    proxy = browser.GetProxyNode(sequence)
    assert np.abs(runs.mapped(proxy, points) - whole).max() < 0.02
    show_item(browser, 1)
    assert np.abs(runs.mapped(proxy, points) - half).max() < 1e-3
    show_item(browser, 0)
    assert np.abs(runs.mapped(proxy, points) - points).max() < 1e-3
    slicer.mrmlScene.RemoveNode(kept.other_nodes(node)[0])
    with pytest.raises(InputError, match="a part of it was removed"):
        Way(node, runner)


def test_another_run_fills_the_same_nodes(pair, runner, settings):
    outputs = {"want_inverse": False, **FULL}
    first = runs.run(Request(*pair, settings, outputs=Outputs(**outputs)), runner)
    before = set(runs.ids())
    filled = Outputs(transform=first.outputTransform, volume=first.movedVolume, **outputs)
    second = runs.run(Request(*pair, settings.with_changes(steps=2), outputs=filled), runner)
    assert second.velocities is first.velocities
    assert set(runs.ids()) == before
    assert velocities.velocities_of(second.velocities)["description"]["steps"] == 2
    assert positions_of(second.velocities) == 3


def test_steps_out_of_range_are_refused_before_anything_runs(pair, runner, settings):
    before = runs.ids()
    with pytest.raises(SettingsError, match="'transmorph-tvf' takes 1 to 128 time steps, or 'auto', not 200"):
        Registration(Request(*pair, settings.with_changes(steps=200)), runner)
    assert runs.ids() == before


# ---------------------------------------------------------------- nodes without a run


@pytest.fixture
def volumes(scene):
    fixed = cases.volume(scene, cases.fixed_image(), "CT")
    moving = cases.volume(scene, cases.moving_image(), "MR")
    cases.under(scene, moving, cases.some_parent(3))
    return fixed, moving


def invented(fields=10, components=3, **changes):
    """Velocities on an oblique, left-handed grid."""
    place = cases.some_parent(2) @ np.diag([1.5, 2.0, -2.5, 1.0])
    world, draw = place[:, [2, 1, 0, 3]], np.random.default_rng(5)
    shape = (7, 8, 9, 3) if components == 3 else (1, 8, 9, 2)
    images = {
        f"velocity.{n}": Image(draw.normal(size=shape).astype(np.float32), world, f"velocity.{n}")
        for n in range(1, fields + 1)
    }
    return {"description": {"fields": fields, "steps": 2 * fields, **changes}, "arrays": images}


@pytest.mark.parametrize("kind", ["mrml", "mrb"])
@pytest.mark.parametrize("components", [2, 3])
def test_the_numbers_survive_saving_and_loading(scene, volumes, tmp_path, kind, components):
    given = invented(components=components)
    velocities.velocities_node(scene, given, "MR -> CT", *volumes)
    reloaded(scene, tmp_path, kind)
    node = named("Velocity 1 of 10, MR -> CT")
    found = velocities.velocities_of(node)
    assert found["description"] == given["description"]
    assert list(found["arrays"]) == list(given["arrays"])
    for name, image in given["arrays"].items():
        np.testing.assert_array_equal(found["arrays"][name].array, image.array)
        np.testing.assert_array_equal(found["arrays"][name].world_from_voxel, image.world_from_voxel)
    assert [volume.GetName() for volume in velocity_volumes(node)] == ["CT", "MR"]
    assert np.array_equal(parent_of(node), cases.some_parent(3))


@pytest.mark.parametrize(("steps", "expected"), [(3, 4), (10, 11), (80, 11), (1, 2)])
def test_a_sequence_has_one_transform_for_every_step_but_not_for_parts_of_a_velocity(
    scene, volumes, steps, expected
):
    node = velocities.velocities_node(scene, invented(steps=steps), "a", *volumes)
    assert positions_of(node) == expected


def changed_value(scene, node):
    slicer.util.arrayFromVolume(kept.other_nodes(node)[4])[3, 3, 3, 0] += np.float32(1e-6)


def description_lost(scene, node):
    node.SetAttribute("DiffeoReg.Velocities", "[]")


@pytest.mark.parametrize(
    ("change", "act", "words"),
    [
        (changed_value, velocities.velocities_of, r"velocities in .* were changed \(its numbers"),
        (description_lost, velocities.steps_on_the_way, "velocities in .* were changed"),
    ],
)
def test_what_was_changed_is_refused(scene, volumes, change, act, words):
    node = velocities.velocities_node(scene, invented(), "a", *volumes)
    assert velocities.holds_velocities(node)
    change(scene, node)
    with pytest.raises(InputError, match=words):
        act(node)


def test_only_a_vector_volume_takes_them(scene, volumes):
    with pytest.raises(InputError, match="another node for the velocities"):
        velocities.velocities_node(scene, invented(), "a", *volumes, node=volumes[0])
    assert not velocities.holds_velocities(volumes[0])
    assert not velocities.holds_velocities(None)
