"""The losses of affine networks, and weights of the loss that change from step to step."""

from __future__ import annotations

import itertools

import pytest
import torch

from DiffeoRegLib.errors import SettingsError, UnknownNameError
from DiffeoRegLib.networks.affine_net import Affine, AffineMaps
from DiffeoRegLib.training.affine_terms import affine_inverse, affine_size
from DiffeoRegLib.training.changing import WeightSchedule
from DiffeoRegLib.training.config import LossConfig, config_from
from DiffeoRegLib.training.objective import Batch, Objective
from DiffeoRegLib.training.reading import read_yaml
from DiffeoRegLib.training.start import shipped_configs

SHAPE = (6, 8)


def affine(linear, shift):
    return Affine(torch.tensor(linear)[None], torch.tensor(shift)[None])


THERE = affine([[1.1, 0.2], [-0.1, 0.9]], [0.1, -0.3])


def maps(there=THERE, back=None):
    """Affine maps with this way back; a way that is not given must not be asked for."""

    def exchanged():
        assert back is not None, "nobody needs the way back"
        return back

    return AffineMaps(there, exchanged, SHAPE, None)


def inverse_of(one):
    linear = torch.linalg.inv(one.linear)
    return Affine(linear, -torch.einsum("nab,nb->na", linear, one.shift))


def batch():
    draws = torch.Generator().manual_seed(0)
    return Batch(*(torch.rand(1, 1, *SHAPE, generator=draws) for _ in range(2)))


# ---------------------------------------------------------------- terms


def test_the_size_of_an_affine_is_its_distance_from_the_identity():
    """0.01 + 0.04 + 0.01 + 0.01 of the matrix and 0.01 + 0.09 of the shift; the identity has none."""
    assert float(affine_size(maps(), both=False)) == pytest.approx(0.17)
    still = affine([[1.0, 0.0], [0.0, 1.0]], [0.0, 0.0])
    assert float(affine_size(maps(back=still))) == pytest.approx(0.085)
    assert float(affine_size(maps(still, still))) == 0.0


def test_maps_that_undo_each_other_cost_nothing():
    assert float(affine_inverse(maps(back=inverse_of(THERE)))) == pytest.approx(0.0, abs=1e-12)


def test_the_composition_is_held_to_the_identity():
    """A12 A21 - I and A12 b21 + b12, written out: of two shifts their sum, of two scales their product."""
    shifts = maps(affine([[1.0, 0.0], [0.0, 1.0]], [0.3, 0.0]), affine([[1.0, 0.0], [0.0, 1.0]], [-0.1, 0.2]))
    assert float(affine_inverse(shifts)) == pytest.approx(0.04 + 0.04)
    scales = maps(affine([[2.0, 0.0], [0.0, 1.0]], [0.0, 0.0]), affine([[0.6, 0.0], [0.0, 1.0]], [0.5, 0.0]))
    assert float(affine_inverse(scales)) == pytest.approx(0.04 + 1.0)


def test_the_terms_belong_to_affine_maps():
    for term in (affine_size, affine_inverse):
        with pytest.raises(SettingsError, match="affine-network"):
            term(object())


def test_the_objective_knows_the_terms_and_their_options():
    size = LossConfig("affine-size", 0.5, {"both": False})
    losses = [LossConfig("mse"), size, LossConfig("affine-inverse", 2.0)]
    total, terms = Objective(losses, mask_outside=False)(maps(back=inverse_of(THERE)), batch())
    assert float(terms["affine-size"]) == pytest.approx(0.17)
    assert float(total) == pytest.approx(float(terms["mse"]) + 0.085, abs=1e-6)
    with pytest.raises(UnknownNameError):
        Objective([LossConfig("affine-size", options={"one": True})])
    with pytest.raises(SettingsError, match="no options"):
        Objective([LossConfig("affine-inverse", options={"both": True})])


# ---------------------------------------------------------------- weights that change


def test_a_weight_without_a_schedule_is_always_the_same():
    assert [WeightSchedule().weight(0.3, step) for step in (0, 5, 10**6, None)] == [0.3] * 4


def test_a_weight_begins_at_its_step():
    schedule = WeightSchedule(from_step=10)
    assert [schedule.weight(0.3, step) for step in (0, 9, 10, 11, None)] == [0.0, 0.0, 0.3, 0.3, 0.3]


def test_a_weight_is_annealed():
    """Ten, held, then down a sigmoid without a jump or a step back, to 1e-3 in the end."""
    schedule = WeightSchedule(from_step=5, first=10.0, hold=20, fall=10)
    values = [schedule.weight(1e-3, step) for step in range(2000)]
    assert values[:5] == [0.0] * 5
    assert values[5:26] == pytest.approx([10.0] * 21)
    assert all(0 <= a - b < 0.2 for a, b in itertools.pairwise(values[25:]))
    assert values[115] == pytest.approx(10 * 4 / (3 + 2.718281828**3), rel=1e-3)
    assert values[-1] == pytest.approx(1e-3, rel=1e-6)
    assert schedule.weight(1e-3, 10**9) == pytest.approx(1e-3)
    assert schedule.weight(1e-3, None) == 1e-3
    rising = WeightSchedule(first=0.0, fall=1)
    assert rising.weight(2.0, 0) == 0.0 < rising.weight(2.0, 5) < rising.weight(2.0, 30) <= 2.0


@pytest.mark.parametrize("values", [{"from_step": -1}, {"hold": -1}, {"fall": 0}, {"first": -1.0}])
def test_a_schedule_that_makes_no_sense_is_refused(values):
    with pytest.raises(SettingsError):
        WeightSchedule(**values)


def test_the_objective_weighs_by_the_step():
    late = LossConfig("affine-inverse", 2.0, schedule=WeightSchedule(from_step=3))
    fading = LossConfig("affine-size", 0.0, {"both": False}, WeightSchedule(first=1.0, fall=1))
    objective = Objective([LossConfig("mse"), late, fading], mask_outside=False)
    back = affine([[1.0, 0.0], [0.0, 1.0]], [0.0, 0.0])
    found = {step: objective(maps(back=back), batch(), step) for step in (0, 3, None)}
    mse = float(found[None][1]["mse"])
    assert float(found[0][0]) == pytest.approx(mse + 0.17, rel=1e-5)
    weight = fading.schedule.weight(0.0, 3)
    assert 0 < weight < 1
    assert float(found[3][0]) == pytest.approx(mse + 2 * 0.17 + weight * 0.17, rel=1e-5)
    assert float(found[None][0]) == pytest.approx(mse + 2 * 0.17, rel=1e-5)


def test_something_has_to_be_compared_from_the_first_step():
    content = dict(read_yaml(shipped_configs()["affine-network-brain-t1"]))
    config_from(content)
    content["losses"] = [{"name": "mse", "schedule": {"from_step": 10}}, {"name": "affine-size"}]
    with pytest.raises(SettingsError, match="compares images"):
        config_from(content)
