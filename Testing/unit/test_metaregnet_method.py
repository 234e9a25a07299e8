"""The method MetaRegNet on prepared pairs: what the network sees and what becomes of its answer."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from DiffeoRegLib.catalog import Model, TrainingData, WeightFile, card
from DiffeoRegLib.errors import InputError
from DiffeoRegLib.flows.halfway import join
from DiffeoRegLib.methods import METHODS, method_named
from DiffeoRegLib.methods.base import Motion, NetworkMethod
from DiffeoRegLib.methods.finish import finish, source_on
from DiffeoRegLib.methods.metaregnet import MetaRegNetMethod, network_memory_bytes
from DiffeoRegLib.methods.sitreg import carried_half_way
from DiffeoRegLib.networks.metaregnet import RELEASED, MetaRegNetConfig
from DiffeoRegLib.settings import Settings
from DiffeoRegLib.space.field import compose
from DiffeoRegLib.space.sample import array_from_tensor, sample, warp
from DiffeoRegLib.volumes.halfway import fixed_space, halfway_memory_bytes, prepare_halfway
from DiffeoRegLib.volumes.pathology import Pathology, PlacedPathology
from DiffeoRegLib.volumes.volume import Volume
from DiffeoRegLib.worker.jobs import run
from Testing.metaregnet_networks import constant, network_file, settings_for, tiny
from Testing.scenes import pair_of, smooth_velocity, texture, turned_grid
from Testing.worker_jobs import image, pair, registration

SHAPE = (30, 34)
SPACING = [1.5, 1.5]
METHOD = MetaRegNetMethod()
MARKS = torch.zeros(1, 1, *SHAPE)
MARKS[..., 10:20, 12:24] = 1
BOTH = {
    "none": None,
    "fixed": PlacedPathology(MARKS, None),
    "moving": PlacedPathology(None, MARKS),
    "both": PlacedPathology(MARKS, MARKS),
}


def quiet(progress):
    """Nobody listens."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("weights")


@pytest.fixture(scope="module")
def lively(folder):
    network = tiny()
    return network, network_file(folder / "lively.safetensors", network, SPACING)


@pytest.fixture(scope="module")
def flowing(folder):
    network = tiny(compose=True)
    return network, network_file(folder / "flowing.safetensors", network, SPACING)


@pytest.fixture(scope="module")
def images():
    return tuple(texture(SHAPE, seed) for seed in (1, 2))


@pytest.mark.parametrize("who", BOTH)
def test_the_network_sees_the_healthy_image_first(who, lively, images):
    """Marks choose which image that is, and nothing else."""
    network, weights = lively
    fixed, moving = images
    motion = METHOD.predict(
        pair_of(fixed, moving, SPACING, pathology=BOTH[who]), settings_for(weights), quiet
    )
    maps = network(fixed, moving) if who == "moving" else network(moving, fixed)
    answer, rest = motion.halves[::-1] if who == "moving" else motion.halves
    torch.testing.assert_close(answer, maps.u12)
    assert float(answer.abs().max()) > 0.5
    assert not rest.any()
    assert not motion.velocity_vox.any()
    if who == "none":
        assert motion.source is None
        return
    added = maps.appearance[0, 0]
    if who == "moving":
        added = -warp(maps.appearance, maps.u21)[0, 0]
    torch.testing.assert_close(motion.source.data, added)


def test_velocities_are_followed_step_by_step(flowing, images):
    """Or, with marks of the moving image alone, backwards by the inverse of the map they end in."""
    network, weights = flowing
    fixed, moving = images
    motion = METHOD.predict(pair_of(fixed, moving, SPACING), settings_for(weights), quiet)
    maps = network(moving, fixed)
    assert motion.stepping == "paper"
    torch.testing.assert_close(motion.velocity_vox, 2 * torch.cat(maps.velocities_vox))
    settings = settings_for(weights, steps=2)
    back = METHOD.predict(pair_of(moving, fixed, SPACING, pathology=BOTH["moving"]), settings, quiet)
    assert back.stepping is None
    torch.testing.assert_close(back.halves[1], maps.u12)
    assert not back.halves[0].any()


@pytest.mark.parametrize("who", ["fixed", "moving"])
def test_a_refinement_of_velocities_starts_from_their_mean(who, flowing, images):
    network, weights = flowing
    first, second = images
    pair = pair_of(first, second, SPACING, pathology=BOTH[who])
    settings = settings_for(weights, effort="balanced", iterations=(1,))
    motion = METHOD.predict(pair, settings, quiet)
    maps = network(second, first) if who == "fixed" else network(first, second)
    mean = torch.stack(maps.velocities_vox).mean(0) * len(maps.velocities_vox)
    assert motion.halves is None
    assert motion.stepping is None
    torch.testing.assert_close(motion.velocity_vox, mean if who == "fixed" else -mean)
    found = METHOD.refine(motion, pair, settings, quiet)
    assert found.halves is None
    assert found.notes == motion.notes
    assert not torch.equal(found.velocity_vox, motion.velocity_vox)


@pytest.mark.parametrize("who", ["fixed", "moving"])
def test_the_map_is_finished_as_it_was_predicted(who, lively, images):
    """Where it does not fold the finished map is the network's, or its inverse, bit for bit at the nodes."""
    _, weights = lively
    images_pair = pair_of(*images, SPACING, pathology=BOTH[who])
    motion = METHOD.predict(images_pair, settings_for(weights), quiet)
    gentle = dataclasses.replace(motion, halves=tuple(0.1 * u for u in motion.halves))
    flow, found = finish(gentle, images_pair.grid, images_pair.grid, settings_for(weights))
    start = [round(v) for v in flow.grid.index_from_world(images_pair.grid.world_from_index([0.0, 0.0]))]
    inner = (slice(None), slice(None), *(slice(s, s + n) for s, n in zip(start, SHAPE, strict=True)))
    ways = (flow.forward_vox, flow.inverse_vox) if who == "fixed" else (flow.inverse_vox, flow.forward_vox)
    answer = gentle.halves[0] if who == "fixed" else gentle.halves[1]
    assert torch.equal(ways[0][inner], answer)
    assert float(compose(*ways).abs().max()) < 0.1
    assert found.source is motion.source


def test_a_half_at_rest_leaves_the_other_as_it_is():
    """`join` takes a shorter way then: nearly the maps of the long one, the same whichever half it is."""
    shape = (40, 44)
    grid = turned_grid(shape, (1.0, 1.0))
    u_vox, rest = smooth_velocity(shape, 1.5), torch.zeros(1, 2, *shape)
    nearly = rest.clone()
    nearly[..., 20, 22] = 1e-6
    for halves, close in (((u_vox, rest), (u_vox, nearly)), ((rest, u_vox), (nearly, u_vox))):
        short, long = join(rest, halves, grid), join(rest, close, grid)
        assert short.grid.same_as(long.grid)
        for name in ("forward_vox", "inverse_vox"):
            gap = (getattr(short, name) - getattr(long, name)).abs()
            assert float(gap.mean()) < 0.01
            assert float(gap.max()) < 0.3  # the long way changes both maps until they are consistent
    forward, backward = join(rest, (u_vox, rest), grid), join(rest, (rest, u_vox), grid)
    assert torch.equal(forward.forward_vox, backward.inverse_vox)
    assert torch.equal(forward.inverse_vox, backward.forward_vox)
    places = torch.rand(1, 2, 20_000) * (torch.tensor(forward.grid.shape).view(1, 2, 1) - 1)
    there = places + sample(forward.forward_vox, places)
    error = (there + sample(forward.inverse_vox, there) - places).norm(dim=1)
    assert float(error.quantile(0.95)) < 0.03
    moving = join(1e-3 * u_vox, (u_vox, rest), grid)
    assert float((moving.forward_vox - forward.forward_vox).abs().mean()) < 0.01


def test_marks_travel_with_their_image(images):
    shift = torch.zeros(1, 2, *SHAPE)
    shift[:, 1] = 3.0
    given = pair_of(*images, SPACING, pathology=BOTH["both"])
    carried = carried_half_way(given, (shift, torch.zeros_like(shift))).pathology
    torch.testing.assert_close(carried.fixed, MARKS)
    torch.testing.assert_close(carried.moving[..., 5:-5], MARKS.roll(-3, -1)[..., 5:-5])
    assert carried_half_way(pair_of(*images, SPACING), (shift, shift)).pathology is None


def test_the_change_is_turned_into_the_units_of_the_moving_image(images):
    grid = turned_grid((20, 24), (2.0, 2.0))
    known = pair_of(*images, SPACING, moving_window=(-100.0, 300.0))
    none = Motion(torch.zeros(1, 2, 20, 24), grid)
    motion = dataclasses.replace(none, source=Volume(torch.full((20, 24), 0.25), grid, "q"))
    fine = turned_grid((37, 41), (1.0, 1.0))
    assert torch.allclose(source_on(fine, motion, known), torch.tensor(100.0))
    assert source_on(fine, none, known) is None


def test_preparation_places_the_marks_and_leaves_them_out_of_the_window():
    """In the space of the fixed image, each read as its image is."""
    first, _ = pair()
    bright = first.data.clone()
    bright[6:10, 6:12, 8:14] = 500.0
    marks = Volume((bright == 500.0).int(), first.grid, "marks", is_labels=True)
    shift = np.eye(4)
    shift[2, 3] = 4.0

    def prepared(moving, pathology):
        return prepare_halfway(
            first, moving, None, None, Settings(), fixed_space(shift), network_mm=(2.0,) * 3, refined=False,
            network_bytes=lambda voxels: 0, pathology=pathology,
        )  # fmt: skip

    ill = Volume(bright, first.grid, "ill")
    found = prepared(ill, Pathology(moving=marks, edge_mm=0.0))
    plain, healthy = prepared(ill, None), prepared(first, None)
    assert found.moving_window[1] < 1.2 * healthy.moving_window[1] < 0.6 * plain.moving_window[1]
    assert found.pathology.fixed is None
    assert plain.pathology is None
    index = array_from_tensor((found.pathology.moving[0, 0] > 0.99).nonzero()).astype(float)
    points = found.grid.world_from_index(index) + shift[:3, 3]
    there = np.rint(first.grid.index_from_world(points)).astype(int)
    assert (array_from_tensor(marks.data)[tuple(there.T)] == 1).mean() > 0.95
    empty = Volume(torch.zeros_like(marks.data), first.grid, "empty", is_labels=True)
    assert prepared(ill, Pathology(moving=empty)).pathology is None


# ---------------------------------------------------------------- planning


def test_memory_grows_with_what_is_planned():
    small, large = MetaRegNetConfig(), MetaRegNetConfig(**RELEASED)
    measured = {
        (2, "paper"): 233, (2, "released"): 460, (2, "compose"): 371,
        (3, "paper"): 248, (3, "released"): 396, (3, "compose"): 350,
    }  # fmt: skip
    for (dim, kind), most in measured.items():
        config = {
            "paper": dataclasses.replace(small, dim=dim),
            "released": dataclasses.replace(large, dim=dim),
            "compose": dataclasses.replace(small, dim=dim, compose=True),
        }[kind]
        assert most < network_memory_bytes(config, 1000) / 1000 < 1.6 * most
    grid = turned_grid((80, 96, 80), (2.0, 2.0, 2.0))
    plain, marked = (
        halfway_memory_bytes(grid, 2, Settings(), lambda voxels: 0, marks) for marks in (False, True)
    )
    assert plain <= marked < 1.1 * plain


def test_needs_of_a_network(lively, folder):
    _, weights = lively
    fast, slow = (METHOD.needs(settings_for(weights, effort=effort), 2) for effort in ("fast", "balanced"))
    assert (fast.spacing_mm, fast.refined, slow.refined) == ((1.5, 1.5), False, True)
    assert fast.memory_bytes(1000) > 0
    with pytest.raises(InputError, match="works on 2D images and these are 3D"):
        METHOD.needs(settings_for(weights), 3)


def test_the_card_and_models_of_it():
    known = card("metaregnet")
    assert (known.own_weights, known.refinable, known.symmetric, known.halfway) == (True, True, False, False)
    assert (known.needs_pathology_mask, known.appearance_change) == (True, True)
    assert METHODS["metaregnet"] is MetaRegNetMethod
    assert isinstance(method_named("metaregnet"), NetworkMethod)
    weights = WeightFile("w.safetensors", None, "0" * 64, 1, "CC0-1.0", True)
    model = Model(
        "invented", "metaregnet", "1", "Invented", "For tests.", "Nobody, 2026.", weights,
        TrainingData("Ten spheres", "CC0-1.0"), "T1 MR", "brain", (1.0, 1.0), None,
    ).card(known)  # fmt: skip
    assert (model.needs_pathology_mask, model.appearance_change) == (True, True)


# ---------------------------------------------------------------- worker


def test_the_worker_hands_all_volumes_to_the_panel(folder):
    weights = network_file(folder / "volume.safetensors", constant((0.5, 0.25, -0.5), 0.2), [2.0] * 3)
    fixed, _ = pair()
    marks = Volume(torch.zeros(fixed.grid.shape, dtype=torch.int32), fixed.grid, "marks", is_labels=True)
    marks.data[6:10, 6:12, 8:14] = 3
    settings = {
        "method": "metaregnet", "weights": str(weights), "effort": "fast", "init": "identity",
        "device": "cpu",
    }  # fmt: skip
    pathology = {"fixed": image(marks), "moving": None, "classes": [3], "edge_mm": 0.0}
    done = run(registration(settings, pathology=pathology), quiet)
    assert set(done["appearance"]) == {"deformed", "change", "metamorphic", "healthy"}
    change = done["appearance"]["change"].array
    inside = array_from_tensor(marks.data) == 3
    assert np.ptp(change[inside]) < 1e-2 * change[inside].max()
    assert change[inside].min() > 5
    assert np.abs(change[~inside]).max() < 1e-3
    assert done["report"]["pathology"]["change"]["mean"] == pytest.approx(change[inside].mean(), rel=1e-3)
    assert (done["velocity"], done["velocities"]) == (None, None)
    again = run(registration(settings), quiet)
    assert again["appearance"] is None
    assert any("No pathology was marked" in note for note in again["report"]["notes"])
