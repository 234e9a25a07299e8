"""Folds are found without most determinants, and repaired without looking at the rest of the grid."""

from __future__ import annotations

import math

import pytest
import torch

from DiffeoRegLib.flows import boxes, logarithm
from DiffeoRegLib.flows.boxes import boxes_around, grown, whole, within
from DiffeoRegLib.flows.exponential import midpoint_exp
from DiffeoRegLib.flows.logarithm import flows_without_folds, unfold_map
from DiffeoRegLib.space import jacobian, sample
from DiffeoRegLib.space.filters import gaussian_smooth
from DiffeoRegLib.space.jacobian import folded_cells, minimum_corner_determinant
from DiffeoRegLib.space.sample import warp

SHAPE = (70, 40, 44)


def noise(shape, sigma, size, seed=0, count=1):
    generator = torch.Generator().manual_seed(seed)
    field = gaussian_smooth(torch.randn(count, len(shape), *shape, generator=generator), sigma)
    return field * (size / field.abs().amax())


def two_crumples(at=((20, 20, 20), (50, 18, 25))):
    """A smooth velocity with two rough places far from each other and from the border."""
    velocity = noise(SHAPE, 5.0, 1.0)
    for number, place in enumerate(at):
        spot = torch.zeros(1, 1, *SHAPE)
        spot[0, 0, *place] = 1.0
        spot = gaussian_smooth(spot, 2.5)
        velocity = velocity + noise(SHAPE, 1.0, 12.0, number + 1) * (spot / spot.max())
    return velocity


# ---------------------------------------------------------------- folds


@pytest.mark.parametrize("shape", [(17, 14, 19), (31, 26)])
@pytest.mark.parametrize("size", [0.5, 2.0, 8.0])
@pytest.mark.parametrize("least", [0.0, 0.01, 0.3])
@pytest.mark.parametrize("slab", [1 << 18, 700])
def test_cells_in_doubt_decide_as_all_determinants_do(monkeypatch, shape, size, least, slab):
    monkeypatch.setattr(jacobian, "SLAB_VALUES", slab)
    u = noise(shape, 1.5, size, count=2)
    lowest = minimum_corner_determinant(u)
    assert torch.equal(folded_cells(u, least), ~(lowest > least))
    monkeypatch.setattr(jacobian, "MOST_DOUBTFUL", 1.0)  # every doubtful cell by itself
    assert torch.equal(folded_cells(u, least), ~(lowest > least))


def test_a_cell_that_is_no_number_is_folded():
    u = noise((12, 13, 14), 3.0, 0.5)
    assert not bool(folded_cells(u).any())
    u[0, 1, 5, 6, 7] = math.nan
    assert int(folded_cells(u).sum()) == 8


# ---------------------------------------------------------------- boxes


def test_boxes_hold_all_voxels_and_their_margin():
    mask = torch.zeros(90, 40, 30, dtype=torch.bool)
    for place in ((5, 5, 5), (7, 20, 6), (80, 35, 29)):
        mask[place] = True
    found = boxes_around(mask, 3)
    assert len(found) == 3
    for place in mask.nonzero().tolist():
        needed = grown(tuple(slice(p, p + 1) for p in place), 3, mask.shape)
        assert any(all(b.start <= n.start and n.stop <= b.stop for b, n in zip(box, needed, strict=True))
                   for box in found)  # fmt: skip
    assert boxes_around(mask & False, 3) == []
    assert within(grown((slice(4, 6),), 2, (20,)), (slice(1, 20),)) == (slice(1, 7),)


def test_boxes_that_are_read_together_become_one(monkeypatch):
    mask = torch.zeros(90, 40, 30, dtype=torch.bool)
    mask[5, 5, 5] = mask[40, 5, 5] = True
    assert len(boxes_around(mask, 2)) == 2
    assert boxes_around(mask, 2, 30) == [(slice(3, 43), slice(3, 8), slice(3, 8))]
    monkeypatch.setattr(boxes, "MOST_BOXES", 1)
    assert boxes_around(mask, 2) == [(slice(3, 43), slice(3, 8), slice(3, 8))]


# ---------------------------------------------------------------- repairs


@pytest.mark.parametrize("places", [((20, 20, 20), (50, 18, 25)), ((1, 20, 20), (66, 38, 42))])
def test_repairs_in_boxes_are_those_of_the_whole_grid(monkeypatch, places):
    velocity, looked_at = two_crumples(places), []

    def counted(mask, margin, beyond=0):
        found = boxes_around(mask, margin, beyond)
        looked_at.append(sum(math.prod(s.stop - s.start for s in box) for box in found))
        return found

    monkeypatch.setattr(logarithm, "boxes_around", counted)
    local, flows, rounds = flows_without_folds(velocity, 0.3, (1.0, -1.0))
    u, map_rounds = unfold_map(midpoint_exp(velocity), 0.3)
    assert rounds > 1
    assert map_rounds > 0
    assert max(looked_at) < 0.7 * math.prod(SHAPE)
    monkeypatch.setattr(logarithm, "boxes_around", lambda mask, margin, beyond=0: [whole(mask.shape)])
    expected, expected_flows, expected_rounds = flows_without_folds(velocity, 0.3, (1.0, -1.0))
    assert rounds == expected_rounds
    torch.testing.assert_close(local, expected, atol=1e-5, rtol=0)
    for flow, other, sign in zip(flows, expected_flows, (1, -1), strict=True):
        torch.testing.assert_close(flow, other, atol=1e-5, rtol=0)
        torch.testing.assert_close(flow, midpoint_exp(sign * local), atol=1e-5, rtol=0)
        assert float(minimum_corner_determinant(flow).min()) > 0.3
    torch.testing.assert_close(u, unfold_map(midpoint_exp(velocity), 0.3)[0], atol=1e-5, rtol=0)


def test_repairs_leave_the_given_velocity_alone():
    velocity = two_crumples()
    before = velocity.clone()
    flows_without_folds(velocity, 0.05, (1.0,))
    unfold_map(velocity, 0.05)
    assert torch.equal(velocity, before)


@pytest.mark.parametrize("threads", [1, 3])
def test_a_field_read_in_slabs_is_the_field_read_at_once(monkeypatch, threads):
    """Here because the joining of maps reads so: the last bit is the same for any slab and any threads."""
    u = noise((31, 20, 18), 3.0, 4.0)
    whole_read, before = warp(u, u), torch.get_num_threads()
    monkeypatch.setattr(sample, "SLAB_VOXELS", 800)
    torch.set_num_threads(threads)
    try:
        assert torch.equal(warp(u, u), whole_read)
    finally:
        torch.set_num_threads(before)
