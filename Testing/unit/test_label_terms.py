"""Losses of label maps in training, networks named transmorph, small trainings with all their losses."""

from __future__ import annotations

import csv
from types import SimpleNamespace

import pytest
import torch

from DiffeoRegLib.errors import InputError, SettingsError, ShapeError, UnknownNameError
from DiffeoRegLib.losses.label_mse import warped_label_mse
from DiffeoRegLib.losses.overlap import labels_in, warped_label_dice
from DiffeoRegLib.networks.build import NetworkConfig, build_network
from DiffeoRegLib.networks.transmorph import TransMorph
from DiffeoRegLib.networks.tvf import TransMorphTVF
from DiffeoRegLib.networks.weights import read_network
from DiffeoRegLib.space.sample import identity_vox
from DiffeoRegLib.training.config import LABEL_TERMS, LossConfig, config_from
from DiffeoRegLib.training.label_terms import LABEL_LOSSES, some_labels
from DiffeoRegLib.training.objective import Batch, Objective
from Testing.command import run
from Testing.sitreg_cases import pictures
from Testing.train_command import same_runs, written
from Testing.training_cases import SETTINGS, Blobs, trainer

SIZES = {"embed": 4, "depths": [1, 1, 1, 1], "heads": [1, 1, 1, 1], "window": [4, 4]}
TVF = {**SIZES, "steps": 2}
TERMS = [
    {"name": "mse"}, {"name": "label-mse", "options": {"most": 1}}, {"name": "dice"},
    {"name": "lddmm", "weight": 0.01}, {"name": "end-point", "weight": 0.01}, {"name": "gradient"},
]  # fmt: skip


@pytest.fixture(autouse=True)
def no_pictures(monkeypatch):
    """Curves are slow to draw, and drawn in other tests."""
    monkeypatch.setattr("DiffeoRegLib.training.run_folder.draw_curve", lambda folder: False)


def label_pair(count=1):
    """Two random label maps with the labels 1 ... 9, and a field."""
    generator = torch.Generator().manual_seed(count)
    shape = (count, 1, 9, 8)
    moving, fixed = (torch.randint(0, 10, shape, generator=generator) for _ in range(2))
    return moving, fixed, torch.randn(count, 2, 9, 8, generator=generator, dtype=torch.float64)


# ---------------------------------------------------------------- labels


def test_every_label_counts_once_in_as_many_steps_as_there_are_parts():
    labels = [3, 4, 7, 8, 20, 31, 44]
    shown = [some_labels(step, 3)(labels) for step in range(6)]
    assert shown == [[3, 8, 44], [4, 20], [7, 31]] * 2
    assert some_labels(5, 1)(labels) == [31]
    for step, most in ((None, 3), (4, None), (4, 7), (4, 99)):
        assert some_labels(step, most)(labels) == labels
    assert some_labels(2, 3)([]) == []
    with pytest.raises(SettingsError, match="At least one label"):
        some_labels(0, 0)


@pytest.mark.parametrize(("name", "measure"), [("dice", warped_label_dice), ("label-mse", warped_label_mse)])
def test_a_label_loss_is_the_mean_over_pairs_of_the_labels_of_the_step(name, measure):
    moving, fixed, u_vox = label_pair(2)
    position = identity_vox((9, 8), torch.float64) + u_vox
    for step, most in ((None, 4), (1, 4), (7, None)):
        expected = []
        for i in range(2):
            pair = fixed[i : i + 1], moving[i : i + 1]
            chosen = some_labels(step, most)(labels_in(*pair))
            every = chosen if name == "dice" else [0, *chosen]
            expected.append(measure(*pair, position[i : i + 1], labels=every))
        found = LABEL_LOSSES[name](moving, fixed, u_vox, step, most=most)
        torch.testing.assert_close(found, torch.stack(expected).mean())


@pytest.mark.parametrize("name", LABEL_TERMS)
def test_label_losses_of_a_configuration(name):
    """The step of the training reaches the loss; missing label maps and unknown options are named."""
    moving, fixed, u_vox = label_pair()
    u_vox.requires_grad_()
    maps = SimpleNamespace(u12=u_vox, u21=-u_vox)
    batch = Batch(moving.double(), fixed.double(), moving, fixed)
    objective = Objective([LossConfig(name, 2.0, {"most": 4})], symmetric=False)
    for step in (0, 1, None):
        total, terms = objective(maps, batch, step)
        expected = LABEL_LOSSES[name](moving, fixed, u_vox, step, most=4)
        torch.testing.assert_close(total.double(), 2 * expected, rtol=1e-6, atol=0)
        assert float(terms[name]) == pytest.approx(float(expected.detach()))
    total.backward()
    assert float(u_vox.grad.abs().max()) > 0
    with pytest.raises(InputError, match=f"{name} loss needs label maps"):
        objective(maps, Batch(moving.double(), fixed.double()))
    nothing = torch.zeros_like(moving)
    empty = Batch(moving.double(), fixed.double(), nothing, nothing)
    assert float(objective(maps, empty)[0].detach()) == 0
    with pytest.raises(UnknownNameError, match="Did you mean 'most'"):
        Objective([LossConfig(name, 1.0, {"moist": 4})])
    with pytest.raises(SettingsError, match="At least one label"):
        Objective([LossConfig(name, 1.0, {"most": 0})])(maps, batch)


# ---------------------------------------------------------------- networks


def test_networks_by_the_name_of_a_size():
    named = build_network(NetworkConfig("transmorph-tvf", {"size": "tiny", "dim": 2, "steps": 3}), "bf16")
    assert isinstance(named, TransMorphTVF)
    config = named.config
    assert (config.embed, config.heads, config.window, config.steps) == (24, (1, 2, 4, 8), (8, 8), 3)
    assert (config.order, named.options.precision) == ("paper", "bfloat16")
    changed = {"size": "tiny", "window": [3, 3, 3], "drop_path": 0.0}
    single = build_network(NetworkConfig("transmorph", changed, {"checkpointing": True}))
    assert isinstance(single, TransMorph)
    assert (single.config.window, single.config.drop_path, single.config.embed) == ((3, 3, 3), 0.0, 24)
    assert single.options.checkpointing
    whole = build_network(NetworkConfig("transmorph-tvf", {**TVF, "order": "residual"}, {"substeps": 2}))
    assert (whole.config.order, whole.options.substeps) == ("residual", 2)


@pytest.mark.parametrize(
    ("name", "sizes", "options", "words"),
    [
        ("transmorph", {"size": "tyny"}, {}, "Did you mean 'tiny'"),
        ("transmorph-tvf", {"size": "tiny", "dim": 4}, {}, "2 or 3 dimensions"),
        ("transmorph-tvf", {"dim": 2}, {}, "dim goes with size"),
        ("transmorph", {"size": "tiny", "steps": 8}, {}, "'steps'"),
        ("transmorph-tvf", {"size": "tiny", "steps": 99}, {}, "1 to 32"),
        ("transmorph-tvf", {"size": "tiny", "order": "papers"}, {}, "Did you mean 'paper'"),
        ("transmorph-tvf", {"size": "tiny"}, {"precision": "bf16"}, "setting of the run"),
        ("transmorph", {"size": "tiny"}, {"substeps": 2}, "'substeps'"),
        ("transmorf", {}, {}, "Did you mean 'transmorph'"),
    ],
)
def test_networks_that_cannot_be(name, sizes, options, words):
    with pytest.raises(SettingsError, match=words):
        build_network(NetworkConfig(name, sizes, options))


# ---------------------------------------------------------------- training


class Labelled(Blobs):
    """Blobs and what is bright in them."""

    def __getitem__(self, index):
        item = super().__getitem__(index)
        labels = {f"{side}_labels": (item[side] > 0.5).long() for side in ("moving", "fixed")}
        return {**item, **labels}


def settings(name, losses, **changes):
    """A small run of one of the networks."""
    network = {"name": name, "sizes": TVF if name == "transmorph-tvf" else SIZES}
    usual = {"method": name, "network": network, "losses": losses, "best": "loss", "symmetric": False}
    return config_from({**SETTINGS, **usual} | changes)


@pytest.mark.parametrize(
    ("name", "losses"),
    [
        ("transmorph-tvf", TERMS),
        ("transmorph", [t for t in TERMS if t["name"] not in ("lddmm", "end-point")]),
    ],
)
def test_a_network_trains_with_all_its_losses(tmp_path, name, losses):
    config = settings(
        name, losses, steps=12, log_every=3, optimiser={"learning_rate": 3e-3, "clip_norm": 1.0}
    )
    outcome = trainer(tmp_path, config, training=Labelled(1)).run()
    assert (outcome.finished, outcome.skipped) == (True, 0)
    with (tmp_path / "training.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert all(float(rows[-1][term["name"]]) > 0 for term in losses)
    assert float(rows[-1]["mse"]) < 0.9 * float(rows[0]["mse"])
    network, description = read_network(tmp_path / "last.safetensors")
    assert description["network"]["name"] == name
    assert network.config.window == (4, 4)


def test_a_loss_of_velocities_needs_a_network_that_has_them(tmp_path):
    config = settings("transmorph", [{"name": "mse"}, {"name": "lddmm"}], steps=2)
    with pytest.raises(SettingsError, match="lddmm needs a network that predicts velocities"):
        trainer(tmp_path, config).run()


def test_a_single_step_has_one_direction(tmp_path):
    config = settings("transmorph", [{"name": "mse"}], steps=2, symmetric=True)
    with pytest.raises(SettingsError, match="symmetric: false"):
        trainer(tmp_path, config).run()


def test_labels_that_do_not_fit_are_refused():
    moving, fixed, u_vox = label_pair()
    with pytest.raises(ShapeError, match="whole numbers"):
        LABEL_LOSSES["label-mse"](moving + 0.5, fixed, u_vox, None)


def test_the_command_trains_and_goes_on(tmp_path):
    usual = {
        "network": {"name": "transmorph-tvf", "sizes": TVF}, "steps": 2, "validate_every": 2,
        "checkpoint_every": 1, "method": "transmorph-tvf", "losses": [{"name": "mse"}, {"name": "lddmm"}],
    }  # fmt: skip
    config = written(tmp_path / "c.yaml", **usual)
    assert run("train", config, "-o", tmp_path / "whole") == 0
    assert run("train", config, "-o", tmp_path / "parts", "--stop-after", 0) == 0
    assert run("train", config, "-o", tmp_path / "parts", "--resume") == 0
    assert same_runs(tmp_path / "whole", tmp_path / "parts")


def test_pictures_of_any_size_are_registered():
    network = build_network(NetworkConfig("transmorph-tvf", TVF)).eval()
    maps = network(*pictures((18, 23)))
    assert maps.u12.shape == (1, 2, 18, 23)
