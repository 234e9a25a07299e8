"""Training on groups: where they come from, what is made small, what is measured, and whole runs."""

from __future__ import annotations

import csv
import random
from dataclasses import replace

import numpy as np
import pytest
import torch

from DiffeoRegLib.errors import InputError, NoOverlapError, SettingsError, UnknownNameError
from DiffeoRegLib.flows.exponential import exp
from DiffeoRegLib.losses.group_similarity import group_nmi, inside_all
from DiffeoRegLib.losses.velocity_prior import graph_laplacian_kl
from DiffeoRegLib.networks.build import build_network
from DiffeoRegLib.networks.groupmorph import GroupMaps
from DiffeoRegLib.networks.weights import read_network
from DiffeoRegLib.space.filters import gaussian_smooth
from DiffeoRegLib.space.sample import warp
from DiffeoRegLib.training.config import LossConfig, config_from
from DiffeoRegLib.training.datasets import training_data
from DiffeoRegLib.training.group_terms import GroupBatch, GroupObjective, common_mask, group_dice, group_of
from DiffeoRegLib.training.group_validation import group_errors_mm, measure_group
from DiffeoRegLib.training.groups import GroupDataset, GroupOptions
from DiffeoRegLib.training.objective import objective_of
from Testing.group_cases import SHAPE, Spots
from Testing.training_cases import blob, trainer

CONFIG = {
    "method": "groupmorph",
    "network": {
        "name": "groupmorph",
        "sizes": {"encoder": [4, 8], "decoder": [8, 8, 8], "final": [4], "dim": 2},
    },
    "data": {"source": "somewhere", "options": {"shape": [16, 16], "groups": {}}},
    "losses": [
        {"name": "group-nmi", "options": {"bins": 16, "share": 0.5}},
        {"name": "kl", "weight": 0.01, "options": {"smoothness": 1.0, "magnitude": 0.01}},
    ],
    "optimiser": {"learning_rate": 3e-3},
    "best": "nmi",
    "steps": 4,
    "validate_every": 2,
    "checkpoint_every": 2,
    "log_every": 1,
}


@pytest.fixture(autouse=True)
def no_pictures(monkeypatch):
    """Curves are slow to draw, and drawn in other tests."""
    monkeypatch.setattr("DiffeoRegLib.training.run_folder.draw_curve", lambda folder: False)


def maps_of(velocity_vox, fixed=None, log_variance=-4.0):
    moving = [k for k in range(len(velocity_vox)) if k != fixed]
    mean = velocity_vox[moving]
    return GroupMaps(
        velocity_vox, mean, torch.full_like(mean, log_variance), tuple(mean.shape[2:]), fixed=fixed
    )


def smooth_velocities(count, shape, largest, seed=0):
    noise = torch.randn(count, len(shape), *shape, generator=torch.Generator().manual_seed(seed)).double()
    smooth = gaussian_smooth(noise, 3.0)
    return smooth * (largest / smooth.abs().max())


def loss(name, weight=1.0, **options):
    return LossConfig(name, weight, options)


# ---------------------------------------------------------------- what is made small


def test_the_loss_is_that_of_the_paper():
    batch = group_of(Spots().group(0, 4, random.Random(1)))
    maps = maps_of(smooth_velocities(4, SHAPE, 2.0).float())
    terms = [loss("group-nmi", 1.0, bins=16), loss("kl", 0.5, smoothness=2.0)]
    total, found = GroupObjective(terms)(maps, batch)
    mask = inside_all(maps.u_vox)
    assert 0 < float(mask.mean()) < 1
    similarity = group_nmi(warp(batch.images, maps.u_vox), bins=16, mask=mask)
    divergence = graph_laplacian_kl(maps.mean, maps.log_variance, smoothness=2.0)
    assert float(found["group-nmi"]) == pytest.approx(float(similarity), abs=1e-6)
    assert float(found["kl"]) == pytest.approx(float(divergence), abs=1e-6)
    assert float(total) == pytest.approx(float(similarity + 0.5 * divergence), abs=1e-6)


def test_the_divergence_is_a_mean_over_the_moving_images():
    velocity = smooth_velocities(4, SHAPE, 2.0).float()
    velocity[1] = 0
    batch = GroupBatch(torch.rand(4, 1, *SHAPE), tuple("abcd"), fixed=1)
    found = GroupObjective([loss("group-variance"), loss("kl")])(maps_of(velocity, fixed=1), batch)[1]["kl"]
    each = [graph_laplacian_kl(velocity[k : k + 1], torch.full((1, 2, *SHAPE), -4.0)) for k in (0, 2, 3)]
    assert float(found) == pytest.approx(float(torch.stack(each).mean()), rel=1e-5)


def test_a_part_of_the_voxels_in_training_and_all_afterwards():
    batch = group_of(Spots().group(0, 3, random.Random(1)))
    maps = maps_of(torch.zeros(3, 2, *SHAPE))
    part, whole = (GroupObjective([loss("group-nmi", bins=16, **o)]) for o in ({"share": 0.3}, {}))
    torch.manual_seed(0)
    drawn = [float(part(maps, batch, step=0)[0]) for _ in range(2)]
    assert drawn[0] != drawn[1]
    assert float(part(maps, batch)[0]) == float(whole(maps, batch)[0])


def test_masks_say_where_it_counts():
    images = torch.rand(3, 1, *SHAPE, generator=torch.Generator().manual_seed(0))
    masks = torch.ones(3, 1, *SHAPE)
    masks[1, :, :, 8:] = 0
    velocity = torch.zeros(3, 2, *SHAPE)
    velocity[1, 1] = 2.0
    batch = GroupBatch(images, tuple("abc"), masks=masks)
    held = common_mask(maps_of(velocity), batch)[0, 0]
    assert float(held[:, :6].min()) > 1 - 1e-5
    assert float(held[:, 6:].max()) < 1e-5
    with pytest.raises(NoOverlapError, match="do not meet"):
        common_mask(maps_of(velocity), GroupBatch(images, tuple("abc"), masks=torch.zeros_like(masks)))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"losses": [{"name": "group-nmi"}, {"name": "lncc"}]}, "or groups, not both"),
        ({"losses": [{"name": "mse"}]}, "go together"),
        ({"data": {"source": "x", "options": {"shape": [16, 16]}}}, "go together"),
        ({"network": {"name": "sitreg"}}, "go together"),
        ({"batch": 2}, "one at a time"),
        ({"leave_out_pathology": True}, "one at a time"),
        ({"losses": [{"name": "group-nmi", "options": {"bounds": [0, 2]}}]}, "option of group-nmi"),
        ({"losses": [{"name": "group-variance", "options": {"bins": 3}}]}, "option of group-variance"),
        ({"data": {"source": "x", "options": {"shape": [16], "groups": {"most": 1}}}}, "two images"),
    ],
)
def test_settings_that_make_no_sense(change, words):
    def prepare():
        config = config_from({**CONFIG, **change})
        objective_of(config)
        training_data(config.data)

    with pytest.raises((SettingsError, UnknownNameError), match=words):
        prepare()


# ---------------------------------------------------------------- what is measured


def test_landmarks_go_from_image_to_image():
    """With the true maps they arrive; without motion their distance is left; in mm per axis."""
    velocity = torch.zeros(3, 2, *SHAPE)
    velocity[0, 0], velocity[2, 1] = 2.0, -1.0  # image 0 shows everything 2 rows lower than the common space
    common = torch.tensor([[7.0, 8.0], [5.0, 6.0]])
    points = [common + torch.tensor(step) for step in ([2.0, 0.0], [0.0, 0.0], [0.0, -1.0])]
    assert group_errors_mm(maps_of(velocity), points, (3.0, 1.0)).max() < 1e-5
    still = group_errors_mm(maps_of(torch.zeros_like(velocity)), points, (3.0, 1.0))
    assert still.shape == (6, 2)
    assert sorted(still[:, 0]) == pytest.approx([1, 1, 6, 6, np.sqrt(37), np.sqrt(37)], abs=1e-5)


class Shift(torch.nn.Module):
    """A network for groups that knows where the spots of a group are."""

    def __init__(self, centres, share):
        super().__init__()
        self.centres, self.share = centres, share

    def forward(self, images, fixed=None, times=None):
        steps = torch.tensor(self.centres) - torch.tensor(self.centres).mean(0)
        return maps_of((self.share * steps)[:, :, None, None].expand(-1, -1, *images.shape[2:]).float())


def test_a_network_that_knows_scores_better():
    centres = [(6.0, 6.0), (8.0, 7.0), (7.0, 9.0)]
    images = torch.stack([blob(c, SHAPE, 3.0) for c in centres])
    points = tuple(torch.tensor([c]) for c in centres)
    batch = GroupBatch(images, tuple("abc"), labels=(images > 0.5).long(), points=points)
    objective = GroupObjective([loss("group-nmi")])
    still, found = (measure_group(Shift(centres, share), batch, objective) for share in (0.0, 1.0))
    for name, higher in (("nmi", True), ("rmse", False), ("tre_mm", False), ("dice", True), ("loss", False)):
        assert (found[name] > still[name]) is higher, name
    assert found["tre_mm"] < 1e-5
    assert found["rmse"] < 0.01
    assert found["folded_percent"] == 0
    assert {"dice", "tre_mm"}.isdisjoint(
        measure_group(Shift(centres, 0.0), GroupBatch(images, tuple("abc")), objective)
    )


# ---------------------------------------------------------------- a run


def test_a_run_learns_validates_and_keeps_its_weights(tmp_path):
    config = config_from({**CONFIG, "steps": 16, "validate_every": 8, "log_every": 5})
    groups = GroupOptions(fewest=2, most=4)
    run = trainer(
        tmp_path, config, training=GroupDataset(Spots(), groups),
        validation=GroupDataset(Spots(), groups, seed=1, validation=True),
    )  # fmt: skip
    assert run.run().finished
    with (tmp_path / "validation.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["step"] for row in rows] == ["0", "8", "16"]
    assert all(row["tre_mm"] and row["dice"] and row["rmse"] for row in rows)
    assert float(rows[-1]["loss"]) < float(rows[0]["loss"])
    network, description = read_network(tmp_path / "best.safetensors")
    assert description["network"]["name"] == "groupmorph"
    images = Spots().group(0, 5, random.Random(3))["images"]
    with torch.no_grad():
        assert len(network(images).velocity_vox) == 5


def test_identical_images_stay_after_a_short_training(tmp_path):
    """Test 26: what is alike does not move; without `center` all may drift, but only together."""
    config = config_from({**CONFIG, "steps": 12, "validate_every": 12})
    run = trainer(tmp_path, config, training=GroupDataset(Spots(), GroupOptions()))
    run.run()
    network = run.network.eval()
    same = blob((7.0, 8.0), SHAPE, 3.0)[None].repeat(4, 1, 1, 1)
    with torch.no_grad():
        assert float(network(Spots().group(0, 4, random.Random(1))["images"]).u_vox.abs().max()) > 1e-3
        assert float(network(same).u_vox.abs().max()) < 1e-5
        network.options = replace(network.options, center=False)
        drifting = network(same).velocity_vox
    assert float(drifting.abs().max()) > 1e-3
    assert float((drifting - drifting[:1]).abs().max()) < 1e-5


@pytest.mark.parametrize(
    "sizes", [{"form": "stack", "images": 3}, {"form": "stack", "images": 3, "fixed": 1}]
)
def test_a_stack_is_trained_like_a_set(tmp_path, sizes):
    network = {"name": "groupmorph", "sizes": {**CONFIG["network"]["sizes"], **sizes}}
    config = config_from({**CONFIG, "network": network})
    groups = GroupOptions(fewest=3, most=3, fixed_share=0, validation_images=3)
    torch.manual_seed(0)
    before = build_network(config.network).state_dict()
    run = trainer(
        tmp_path, config, training=GroupDataset(Spots(), groups),
        validation=GroupDataset(Spots(), groups, validation=True),
    )  # fmt: skip
    assert run.run().finished
    after = run.network.state_dict()
    assert not torch.equal(before["unet.down.0.0.weight"], after["unet.down.0.0.weight"])


def test_the_truth_beats_no_motion():
    """A group made by known flows from one texture: reading it through them makes it alike."""
    texture = gaussian_smooth(
        torch.randn(1, 1, 40, 40, generator=torch.Generator().manual_seed(0)).double(), 1.5
    )
    ranks = texture.flatten().argsort().argsort().double().view(texture.shape) / texture.numel()
    velocity = smooth_velocities(4, (40, 40), 2.0)
    velocity = velocity - velocity.mean(0)
    images = torch.cat([warp(ranks, exp(-v[None], 7)) for v in velocity])
    batch = GroupBatch(images, tuple("abcd"))
    objective = GroupObjective([loss("group-nmi")])
    still, true = (float(objective(maps_of(v), batch)[0]) for v in (0 * velocity, velocity))
    assert true < still - 0.1


def squares(*first_columns, shape=(20, 24), label=1):
    """Label maps with a square of 8 x 8, (K, 1, *shape)."""
    found = torch.zeros(len(first_columns), 1, *shape)
    for one, first in zip(found, first_columns, strict=True):
        one[0, 6:14, first : first + 8] = label
    return found


def test_the_dice_of_a_group_is_the_mean_over_all_pairs():
    rest = maps_of(torch.zeros(3, 2, 20, 24))
    labels = squares(4, 4, 8)
    assert float(group_dice(rest, labels)) == pytest.approx(1 - (1 + 0.5 + 0.5) / 3, abs=1e-5)
    assert float(group_dice(rest, labels[[2, 0, 1]])) == pytest.approx(
        float(group_dice(rest, labels)), abs=1e-6
    )
    labels[:2] += squares(14, 14, label=2)  # the third has none: it shares nothing with the others
    assert float(group_dice(rest, labels)) == pytest.approx(1 - (2 + 1) / 6, abs=1e-5)


def test_the_dice_of_a_group_pulls_labels_together():
    """A shift of the velocity by two voxels brings the squares together; the slope points there."""
    labels = squares(6, 10)
    velocity = torch.zeros(2, 2, 20, 24)
    velocity[0, 1], velocity[1, 1] = -2.0, 2.0
    assert float(group_dice(maps_of(velocity), labels)) < 0.02
    start = torch.zeros(2, 2, 20, 24, requires_grad=True)
    group_dice(maps_of(start), labels).backward()
    assert float(start.grad[0, 1].sum()) > 0 > float(start.grad[1, 1].sum())


def test_groups_without_labels_have_no_dice():
    rest = maps_of(torch.zeros(2, 2, 20, 24))
    with pytest.raises(InputError, match="needs label maps"):
        group_dice(rest, None)
    assert float(group_dice(rest, torch.zeros(2, 1, 20, 24))) == 0


def test_the_objective_adds_the_dice_of_labels():
    batch = GroupBatch(torch.rand(2, 1, 20, 24), ("a", "b"), labels=squares(4, 8))
    objective = GroupObjective([LossConfig("group-variance"), LossConfig("group-dice", weight=0.5)])
    total, terms = objective(maps_of(torch.zeros(2, 2, 20, 24)), batch)
    assert float(terms["group-dice"]) == pytest.approx(0.5, abs=1e-5)
    assert float(total) == pytest.approx(float(terms["group-variance"]) + 0.25, abs=1e-5)
