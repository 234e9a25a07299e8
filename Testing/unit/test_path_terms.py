"""The loss of the learned vSVF, LDDMM and RDMM: its terms by hand, looks, directions, and small trainings."""

from __future__ import annotations

import csv
import math
from types import SimpleNamespace

import pytest
import torch

from DiffeoRegLib.errors import SettingsError, UnknownNameError
from DiffeoRegLib.networks.weights import read_checkpoint
from DiffeoRegLib.training.config import LossConfig, config_from
from DiffeoRegLib.training.objective import Batch, Objective
from DiffeoRegLib.training.path_terms import common, consistency, kinetic, share_of, transport
from Testing.command import run
from Testing.momentum_cases import NAMES, lively, pictures, sizes_of, small, with_looks, write_network
from Testing.train_command import same_runs, written
from Testing.training_cases import SETTINGS, Blobs, blob, trainer

SMALL = {"box": [16, 16], "sigmas": [0.2, 0.4], "width": 0.1}
LOSSES = [{"name": "mse"}, {"name": "kinetic", "weight": 0.01}]


@pytest.fixture(autouse=True)
def no_pictures(monkeypatch):
    """Curves are slow to draw, and drawn in other tests."""
    monkeypatch.setattr("DiffeoRegLib.training.run_folder.draw_curve", lambda folder: False)


class Shots:
    """Maps with chosen energies and weights per direction."""

    def __init__(self, kinetic=(1.0, 3.0), weights=None):
        self.sizes = SimpleNamespace(sigmas=(0.1, 0.2, 0.4), shares=(0.25, 0.25, 0.5))
        self._looks = {
            way: SimpleNamespace(kinetic=torch.tensor([value, value]), weights=weights)
            for way, value in zip(("12", "21"), kinetic, strict=True)
        }

    def look(self, way):
        return self._looks[way]


def rows(*squares):
    """Weights (1, n, 4, 4) with these squares everywhere."""
    return torch.tensor(squares).sqrt().view(1, -1, 1, 1).expand(1, -1, 4, 4)


# ---------------------------------------------------------------- terms by hand


def test_the_kinetic_term_is_the_mean_over_the_directions_that_count():
    assert float(kinetic(Shots(), ["12"], None)) == 1
    assert float(kinetic(Shots(), ["12", "21"], None)) == 2


def test_the_wish_for_wide_kernels_grows_with_the_epochs():
    """All weight on the narrowest costs 1 - rho; half on the middle one, half-way in log, 0.75 of it."""
    for step, rho in ((0, 1.0), (99, 1.0), (None, 0.1)):
        maps = Shots(weights=rows(1.0, 0.0, 0.0))
        value = transport(maps, ["12"], step, steps_per_epoch=10)
        assert float(value) == pytest.approx(1 - rho)
    assert float(transport(Shots(weights=rows(0.5, 0.5, 0.0)), ["12"], None)) == pytest.approx(0.9 * 0.75)
    assert float(transport(Shots(weights=rows(0.0, 0.0, 1.0)), ["12"], None)) == 0


def test_the_pull_to_the_common_shares_fades():
    """(w_i - sqrt(c_i))^2, with all weight on the widest: 1/4 + 1/4 + (1 - sqrt(1/2))^2."""
    whole = 0.5 + (1 - math.sqrt(0.5)) ** 2
    maps = Shots(weights=rows(0.0, 0.0, 1.0))
    assert float(common(maps, ["12", "21"], 0)) == pytest.approx(whole)
    assert float(common(maps, ["12"], None)) == pytest.approx(0.1 * whole)
    assert float(common(Shots(weights=rows(0.25, 0.25, 0.5)), ["12"], 0)) == pytest.approx(0, abs=1e-12)


def test_rho_is_that_of_the_program_of_the_authors_with_k_of_5():
    assert share_of(9 * 400, 400) == 1.0
    assert share_of(12 * 400, 400) == pytest.approx(5 / (5 + math.exp(2 / 5)))
    assert share_of(None, 400) == share_of(10**9, 1) == 0.1
    with pytest.raises(SettingsError, match="at least one step"):
        share_of(0, 0)


def test_consistency_counts_in_sides_of_the_image():
    shape = (9, 5)
    shift = torch.tensor([2.0, -1.0]).view(1, 2, 1, 1).expand(1, 2, *shape)
    nothing = torch.zeros(1, 2, *shape)
    assert float(consistency(SimpleNamespace(u12=shift, u21=-shift), [], None)) == 0
    value = consistency(SimpleNamespace(u12=shift, u21=nothing), [], None)
    assert float(value) == pytest.approx(((2 / 8) ** 2 + (1 / 4) ** 2) / 2)
    # The outer map is read where the inner one leads.
    ramp = torch.arange(9.0).view(1, 1, 9, 1).expand(1, 1, *shape) / 10
    ramp = torch.cat([ramp, torch.zeros_like(ramp)], 1)
    one = torch.tensor([1.0, 0.0]).view(1, 2, 1, 1).expand(1, 2, *shape)
    gap = (torch.arange(9.0) + 1).clamp(max=8) / 10 + 1
    value = consistency(SimpleNamespace(u12=ramp, u21=one), [], None)
    assert float(value) == pytest.approx(float((gap / 8).square().mean() / 2))


def test_terms_need_maps_that_have_what_they_are_of():
    maps = small("lddmm-network")(*pictures((16, 18)))
    for name in ("transport", "common"):
        with pytest.raises(SettingsError, match="rdmm-network"):
            Objective([LossConfig("mse"), LossConfig(name)])(maps, Batch(*pictures((16, 18))))
    flat = SimpleNamespace(u12=torch.zeros(1, 2, 16, 18), u21=torch.zeros(1, 2, 16, 18))
    with pytest.raises(SettingsError, match="predicts a momentum"):
        Objective([LossConfig("mse"), LossConfig("kinetic")])(flat, Batch(*pictures((16, 18))))
    with pytest.raises(UnknownNameError, match="steps_per_epoch"):
        Objective([LossConfig("transport", 1.0, {"steps_per_epok": 3})])
    with pytest.raises(SettingsError, match="no options"):
        Objective([LossConfig("kinetic", 1.0, {"steps": 3})])


# ---------------------------------------------------------------- the whole loss


@pytest.mark.parametrize("name", NAMES)
def test_losses_of_all_looks_are_added(name):
    network = lively(small(name))
    pair = pictures((24, 26))
    terms = [LossConfig("mse", 2.0), LossConfig("kinetic", 0.5), LossConfig("consistency", 3.0)]
    if name == "rdmm-network":
        terms += [LossConfig("transport", 0.2), LossConfig("common", 0.3)]
    objective = Objective(terms)
    maps = network(*pair)
    total, parts = objective(maps, Batch(*pair))
    (first,) = maps.earlier
    alone = objective(with_looks(network, 1)(*pair), Batch(*pair))
    rest = SimpleNamespace(u12=maps.u12, u21=maps.u21, look=maps.look, sizes=maps.sizes)
    last = objective(rest, Batch(*pair))
    assert float(total.detach()) == pytest.approx(float((alone[0] + last[0]).detach()), rel=1e-5)
    assert {k: float(v) for k, v in parts.items()} == pytest.approx(
        {k: float(alone[1][k] + last[1][k]) for k in parts}, rel=1e-5
    )
    together = sum(loss.weight * float(parts[loss.name]) for loss in terms)
    assert float(total.detach()) == pytest.approx(together, rel=1e-5)
    assert float(first.look("21").kinetic.detach()) > 0


def test_the_other_direction_counts_from_its_step_on():
    pair = pictures((24, 26))
    maps = lively(small("lddmm-network"))(*pair)
    terms = [LossConfig("mse"), LossConfig("kinetic")]
    late = Objective(terms, symmetric_from=4)
    one_way, both = Objective(terms, symmetric=False), Objective(terms)
    for step, other in ((3, one_way), (4, both), (None, both)):
        assert torch.equal(late(maps, Batch(*pair), step)[0], other(maps, Batch(*pair))[0])
    assert not torch.equal(one_way(maps, Batch(*pair))[0], both(maps, Batch(*pair))[0])


def test_a_direction_nobody_asks_for_is_not_computed():
    maps = small("lddmm-network")(*pictures((16, 18)))
    Objective([LossConfig("mse")], symmetric_from=1)(maps, Batch(*pictures((16, 18))), 0)
    assert "second" not in vars(maps.both)


# ---------------------------------------------------------------- training


def settings(name, **changes):
    """A small run of one of the networks."""
    network = {"name": name, "sizes": sizes_of(**SMALL), "options": {"looks": 2}}
    return config_from(
        {**SETTINGS, "method": name, "network": network, "losses": LOSSES, "best": "loss"} | changes
    )


class OnePair(Blobs):
    """The same spot beside itself, every time."""

    def __len__(self):
        return 1

    def __getitem__(self, index):
        shape = (16, 16)
        return {
            "names": ("moving", "fixed"),
            "moving": blob((7.0, 7.0), shape),
            "fixed": blob((9.0, 8.0), shape),
        }


def logged(folder, column):
    with (folder / "training.csv").open(encoding="utf-8", newline="") as file:
        return [float(row[column]) for row in csv.DictReader(file)]


@pytest.mark.parametrize("name", NAMES)
def test_a_few_steps_of_training_lower_the_loss(tmp_path, name):
    config = settings(name, steps=12, log_every=1, optimiser={"learning_rate": 1e-3, "clip_norm": 1.0})
    outcome = trainer(tmp_path, config, training=OnePair()).run()
    losses = logged(tmp_path, "mse")
    assert outcome.finished
    assert outcome.skipped == 0
    assert losses[-1] < 0.8 * losses[0]


def test_looks_and_directions_come_at_their_steps(tmp_path):
    """The sum over looks doubles where the second begins; only the step decides, so a run can be resumed."""
    name = "lddmm-network"
    network = {
        "name": name, "sizes": sizes_of(**SMALL),
        "options": {"looks": 2, "second_look_from": 2},
    }  # fmt: skip
    losses = [*LOSSES, {"name": "consistency", "weight": 1.0, "schedule": {"from_step": 3}}]
    config = settings(
        name, network=network, losses=losses, steps=4, log_every=1, validate_every=4, symmetric_from=3,
        optimiser={"learning_rate": 1e-12},
    )  # fmt: skip
    whole = trainer(tmp_path / "whole", config, training=OnePair(), validation=OnePair())
    whole.run()
    mse = logged(tmp_path / "whole", "mse")
    assert mse[1] == pytest.approx(mse[0], rel=1e-3)
    assert mse[2] == pytest.approx(2 * mse[0], rel=1e-3)
    both = logged(tmp_path / "whole", "consistency")
    assert both[:3] == [0.0] * 3
    assert both[3] > 0
    parts = trainer(tmp_path / "parts", config, training=OnePair(), validation=OnePair())
    assert parts.run(stop_after_seconds=0).step == 1
    again = trainer(tmp_path / "parts", config, training=OnePair(), validation=OnePair())
    assert again.run(resume=True).finished
    assert same_runs(tmp_path / "whole", tmp_path / "parts")


def test_a_motion_no_step_can_follow_is_a_skipped_step(tmp_path):
    config = settings("lddmm-network", steps=2, nan_limit=5)
    run_of = trainer(tmp_path, config, training=OnePair())
    with torch.no_grad():
        run_of.network.momentum.last[1].bias.fill_(1e7)
    assert run_of.run().skipped == 2
    assert "needs" in (tmp_path / "problems.csv").read_text(encoding="utf-8")


def last_sentence(capsys):
    """What the command said last, the reason why it ended."""
    return capsys.readouterr().err.strip().splitlines()[-1]


def of_command(path, name, **changes):
    """A configuration of synthetic pairs for one of the networks."""
    network = {"name": name, "sizes": sizes_of(**SMALL), "options": {"looks": 2}}
    usual = {"losses": LOSSES, "steps": 2, "validate_every": 2, "checkpoint_every": 1, "method": name}
    return written(path, **({"network": network} | usual | changes))


def test_the_command_trains_and_goes_on(tmp_path):
    config = of_command(tmp_path / "c.yaml", "rdmm-network")
    assert run("train", config, "-o", tmp_path / "whole") == 0
    assert run("train", config, "-o", tmp_path / "parts", "--stop-after", 0) == 0
    assert read_checkpoint(tmp_path / "parts" / "last.safetensors").description["step"] == 1
    assert run("train", config, "-o", tmp_path / "parts", "--resume") == 0
    assert same_runs(tmp_path / "whole", tmp_path / "parts")


def test_a_part_of_other_weights_is_a_start(tmp_path, capsys):
    """RDMM takes over the momentum network of LDDMM, and nothing that does not fit."""
    first, second = tmp_path / "lddmm" / "last.safetensors", tmp_path / "rdmm"
    short = {"steps": 1, "validate_every": 9}
    assert run("train", of_command(tmp_path / "a.yaml", "lddmm-network", **short), "-o", first.parent) == 0
    config = of_command(tmp_path / "b.yaml", "rdmm-network", **short)
    words = ("train", config, "-o", second, "--start-from", first)
    capsys.readouterr()
    assert run(*words) == 2
    assert "another network" in last_sentence(capsys)
    assert run(*words, "--set", "start_from.part=momentun") == 2
    assert "Did you mean 'momentum'" in last_sentence(capsys)
    still = ("--set", "start_from.part=momentum", "--set", "optimiser.learning_rate=1e-30")
    assert run(*words, *still) == 0
    one, other = (read_checkpoint(path).tensors for path in (first, second / "last.safetensors"))
    shared = sorted(key for key in other if key.startswith("momentum."))
    assert shared == sorted(one)
    assert all(torch.equal(one[key], other[key]) for key in shared)
    begun = read_checkpoint(second / "state.safetensors").description["config"]["start_from"]
    assert begun["part"] == "momentum"


def test_a_part_of_another_size_is_no_start(tmp_path, capsys):
    torch.manual_seed(0)
    first = write_network(tmp_path / "w.safetensors", small("lddmm-network"), "lddmm-network")
    config = of_command(tmp_path / "b.yaml", "rdmm-network")
    words = ("train", config, "-o", tmp_path / "b", "--start-from", first)
    assert run(*words, "--set", "start_from.part=momentum") == 2
    assert "another size" in last_sentence(capsys)
