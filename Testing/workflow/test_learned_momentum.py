"""Registration by a network that predicts a momentum: the network's own maps, refinement, what is refused."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from DiffeoRegLib.catalog import card
from DiffeoRegLib.errors import InputError, SettingsError, UnknownNameError, WeightsError
from DiffeoRegLib.methods import METHODS, method_named
from DiffeoRegLib.methods.base import NetworkMethod
from DiffeoRegLib.methods.geodesic import chain
from DiffeoRegLib.methods.learned_momentum import MomentumMotion, memory_bytes, seen_through
from DiffeoRegLib.networks.shooting_sizes import ShootingSizes
from DiffeoRegLib.pipeline import register
from DiffeoRegLib.settings import Settings
from DiffeoRegLib.space.sample import identity_vox, sample
from Testing.halfway_cases import hostile_pair
from Testing.momentum_cases import NAMES, lively, small, with_looks, write_network
from Testing.scenes import distances_mm, pair_of, texture

SHAPE = (30, 34)


def quiet(progress):
    """Nobody listens."""


def weights_of(folder, name, dim=2, looks=2, largest=0.4, **changes):
    """A network and its file; largest: 0 = as drawn, next to no motion."""
    network = small(name, dim, looks=looks, **changes)
    network = lively(network, largest) if largest else network.eval()
    return network, write_network(folder / f"{name}-{dim}-{looks}-{largest}.safetensors", network, name)


def settings_for(name, weights, **changes):
    """The network of a file alone, on the CPU, without alignment."""
    usual = {
        "method": name, "weights": str(weights), "device": "cpu", "init": "identity", "effort": "fast",
        "extras": {"precision": "float32"},
    }  # fmt: skip
    return Settings(**(usual | changes))


def flat_pair():
    """Two smooth planes."""
    return pair_of(*(texture(SHAPE, seed) for seed in (1, 2)), [1.0, 1.0])


def inside(u_vox, margin=4):
    return u_vox[(slice(None), slice(None), *[slice(margin, -margin)] * (u_vox.dim() - 2))]


@pytest.mark.parametrize("looks", [1, 2])
@pytest.mark.parametrize("name", NAMES)
def test_the_motion_is_the_networks(tmp_path, name, looks):
    """One geodesic a look, the last look's carried fixed points first; vSVF gives intervals of a velocity."""
    network, path = weights_of(tmp_path, name, looks=looks)
    pair = flat_pair()
    motion = METHODS[name]().predict(pair, settings_for(name, path), quiet)
    with torch.no_grad():
        found = network.look_at(pair.moving, pair.fixed)
    if name == "vsvf-network":
        assert isinstance(motion, MomentumMotion)
        assert motion.geodesics == ()
        expected = torch.cat([look.velocity_vox for look in reversed(found)]) * -looks
        torch.testing.assert_close(motion.velocity_vox, expected)
        return
    assert len(motion.geodesics) == looks
    inverse, _ = chain(motion.geodesics, pair.grid)
    assert float(found[-1].u_vox.abs().max()) > 1
    torch.testing.assert_close(inverse, found[-1].u_vox, rtol=0, atol=1e-4)
    torch.testing.assert_close(motion.velocity_vox, found[-1].velocity_vox, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_a_registration_gives_the_networks_map(tmp_path, name):
    """Through alignment, finished map and transform, on grids of any geometry, both ways."""
    network, path = weights_of(tmp_path, name, largest=0.1)
    scene, fixed, moving = hostile_pair(2, size_mm=1.0)
    seen = []
    original = type(method_named(name)).predict

    def watched(self, pair, settings, report):
        seen.append(pair)
        return original(self, pair, settings, report)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(method_named(name)), "predict", watched)
        result = register(fixed, moving, settings_for(name, path))
    (pair,) = seen
    with torch.no_grad():
        u_vox = network(pair.moving, pair.fixed).u12
    points, _ = scene.landmarks()
    index = torch.tensor(pair.grid.index_from_world(points).T[None], dtype=torch.float32)
    ends = (index + sample(u_vox, index))[0].T.double().numpy()
    expected = pair.grid.world_from_index(ends)
    assert np.linalg.norm(expected - points, axis=1).max() > 0.3
    np.testing.assert_allclose(result.transform.map_points(points), expected, atol=0.05)
    np.testing.assert_allclose(result.inverse.map_points(expected), points, atol=0.05)
    assert result.report["folds"]["folded_percent"] == 0
    notes = " ".join(result.report["notes"])
    assert "2 looks" in notes
    assert path.name in notes
    assert (result.sigma is None) == (name == "vsvf-network")


@pytest.mark.parametrize("name", NAMES)
def test_refinement_goes_on_from_the_network(tmp_path, name):
    _, path = weights_of(tmp_path, name, largest=0.05)
    scene, fixed, moving = hostile_pair(2, size_mm=2.0)
    # Refined images are compared at full detail, so the working grid may be finer: the same one for both.
    fine = settings_for(name, path, working_spacing_mm=1.0)
    before, after = (register(fixed, moving, fine.with_changes(iterations=n)) for n in ((0, 0), (10, 8)))
    errors = [distances_mm(r.transform, *scene.landmarks()).mean() for r in (before, after)]
    assert errors[1] < 0.6 * errors[0]
    assert after.report["folds"]["folded_percent"] == 0
    assert any("L-BFGS" in note for note in after.report["notes"])


@pytest.mark.parametrize("name", NAMES)
def test_refinement_changes_the_last_momentum_alone(tmp_path, name):
    _, path = weights_of(tmp_path, name)
    method, settings = METHODS[name](), settings_for(name, path, iterations=(2, 1))
    before = method.predict(flat_pair(), settings, quiet)
    after = method.refine(before, flat_pair(), settings, quiet)
    assert method.refine(before, flat_pair(), settings_for(name, path), quiet) is before
    assert set(before.notes) < set(after.notes)
    if name == "vsvf-network":
        assert torch.equal(before.velocity_vox[1], after.velocity_vox[1])
        assert not torch.equal(before.velocity_vox[0], after.velocity_vox[0])
        assert torch.equal(before.momenta[0], after.momenta[0])
        return
    (first, last), (kept, better) = before.geodesics, after.geodesics
    assert first is kept
    assert not torch.equal(last.tensors[0], better.tensors[0])
    assert all(torch.equal(a, b) for a, b in zip(last.tensors[1:], better.tensors[1:], strict=True))


def test_what_belongs_to_the_moving_image_is_read_through_the_first_look(tmp_path):
    """Image, mask and labels by phi^-1, points by phi: a point stays on the same anatomy."""
    _, path = weights_of(tmp_path, "lddmm-network", looks=1)
    pair = flat_pair()
    index = identity_vox(SHAPE, torch.float32, torch.device("cpu"))
    points = torch.tensor([[[12.0, 15.0, 18.0], [14.0, 20.0, 17.0]]])
    full = dataclasses.replace(
        pair,
        moving_mask=(index[:, :1] > 15).float(),
        moving_labels=(index[:, 1:] > 17).long() * 7,
        moving_points_vox=points,
    )
    motion = METHODS["lddmm-network"]().predict(full, settings_for("lddmm-network", path), quiet)
    maps = chain(motion.geodesics, pair.grid)
    seen = seen_through(full, *maps)
    assert float((seen.moving_points_vox - points).abs().max()) > 0.3
    for image in ("moving", "moving_mask"):
        there = sample(getattr(full, image), points)
        here = sample(getattr(seen, image), seen.moving_points_vox)
        torch.testing.assert_close(here, there, rtol=0, atol=0.1)
    assert seen.moving_labels.dtype == torch.int64
    assert set(seen.moving_labels.unique().tolist()) == {0, 7}
    assert seen.fixed is full.fixed
    assert seen_through(pair, *maps).moving_points_vox is None


def test_volumes_and_a_path_that_can_be_followed(tmp_path):
    _, path = weights_of(tmp_path, "rdmm-network", 3, largest=0.2)
    _, fixed, moving = hostile_pair(3, size_mm=1.0)
    result = register(fixed, moving, settings_for("rdmm-network", path, steps=9))
    assert [geodesic.steps for geodesic in result.motion.geodesics] == [9, 9]
    half, _ = chain(result.motion.geodesics, result.working, 0.5)
    first, _ = result.motion.geodesics[0].maps(result.working)
    torch.testing.assert_close(half, first)
    assert all(volume.data.min() > 0 for volume in result.sigma)
    assert result.sigma[0].data.std() > 0


# ---------------------------------------------------------------- cards and refusals


def test_the_cards_and_their_methods():
    for name in NAMES:
        known = card(name)
        assert (known.own_weights, known.trained, known.networks) == (True, True, (name,))
        assert known.geodesic == (name != "vsvf-network")
        assert isinstance(method_named(name), NetworkMethod)
        assert method_named(name).sources(Settings(method=name)) == []


@pytest.mark.parametrize("name", NAMES)
def test_needs_are_known_before_anything_runs(tmp_path, name):
    _, path = weights_of(tmp_path, name)
    needs = METHODS[name]().needs(settings_for(name, path), 2)
    assert needs.spacing_mm == (1.0, 1.0)
    assert not needs.refined
    assert METHODS[name]().needs(settings_for(name, path, effort="balanced"), 2).refined
    assert needs.memory_bytes(2000) == pytest.approx(2 * needs.memory_bytes(1000), rel=1e-3)


def test_memory_grows_with_the_width_and_with_the_kernels():
    sizes = ShootingSizes((32, 32, 32), (0.13, 0.2), (1.0, 1.0), width=0.5)
    wide = dataclasses.replace(sizes, width=1.0)
    assert memory_bytes(sizes, False, False, 10**6) < memory_bytes(sizes, True, False, 10**6)
    assert memory_bytes(sizes, False, False, 10**6) < memory_bytes(sizes, False, True, 10**6)
    assert 1.2 < memory_bytes(wide, False, False, 10**6) / memory_bytes(sizes, False, False, 10**6) < 2


def test_weights_of_other_networks(tmp_path):
    _, fixed, moving = hostile_pair(2)
    _, path = weights_of(tmp_path, "lddmm-network")
    nan, broken = weights_of(tmp_path, "vsvf-network", looks=1)
    cases = [
        ("rdmm-network", path, WeightsError, "'lddmm-network', but 'rdmm-network' needs"),
        ("sitreg", path, WeightsError, "'lddmm-network', but 'sitreg' needs"),
        ("vsvf-network", tmp_path / "no.safetensors", WeightsError, "cannot be read"),
    ]
    for name, weights, error, sentence in cases:
        told = []
        with pytest.raises(error, match=sentence):
            register(fixed, moving, settings_for(name, weights), progress=told.append)
        assert told == []
    with pytest.raises(SettingsError, match="weights that you trained"):
        register(fixed, moving, settings_for("lddmm-network", path).with_changes(weights=None))
    with torch.no_grad():
        nan.momentum.last[1].bias.fill_(1e7)
    write_network(broken, with_looks(nan, 1), "vsvf-network")
    with pytest.raises(InputError, match=r"needs .* squarings"):
        register(fixed, moving, settings_for("vsvf-network", broken))


def test_slices_for_a_network_of_volumes_and_the_other_way_round(tmp_path):
    for dim, of_network, sentence in ((2, 3, "3D images and these are 2D"), (3, 2, "2D images and these")):
        _, fixed, moving = hostile_pair(dim)
        _, path = weights_of(tmp_path, "lddmm-network", of_network)
        with pytest.raises(InputError, match=sentence):
            register(fixed, moving, settings_for("lddmm-network", path))


@pytest.mark.parametrize(
    ("changes", "error", "sentence"),
    [
        ({"extras": {"mode": "standard"}}, UnknownNameError, "Known: precision"),
        ({"iterations": (1, 2, 3, 4)}, SettingsError, "up to 3 numbers"),
        ({"levels_mm": (2.0,), "iterations": (1, 2)}, SettingsError, "do not match"),
        ({"steps": 1}, InputError, "1 steps allow"),
    ],
)
def test_settings_that_make_no_sense(tmp_path, changes, error, sentence):
    _, path = weights_of(tmp_path, "lddmm-network", largest=2.0)
    _, fixed, moving = hostile_pair(2)
    with pytest.raises(error, match=sentence):
        register(fixed, moving, settings_for("lddmm-network", path, **changes))
