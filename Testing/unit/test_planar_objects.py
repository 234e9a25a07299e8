"""The pictures of the synthetic study: what the paper says of them, and that both images hold the same."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

from DiffeoRegLib.metrics import mean_dice
from Testing.planar_objects import KINDS, ROLES, Thing, covered, drawn, picture

SHAPE = (80, 80)
PICTURES = [picture(seed, SHAPE) for seed in range(30)]


def test_the_same_seed_gives_the_same_picture():
    assert picture(3, SHAPE).moving == PICTURES[3].moving
    assert picture(4, SHAPE).moving != PICTURES[3].moving
    assert picture(3).pair().fixed.shape == (1, 1, 200, 200)


@pytest.mark.parametrize("seed", range(30))
def test_one_foreground_two_inside_one_to_five_outside(seed):
    case = PICTURES[seed]
    roles = [thing.role for thing in case.moving]
    assert roles[:3] == ["foreground", "inside", "inside"]
    assert set(roles[3:]) == {"outside"}
    assert 1 <= len(roles) - 3 <= 5
    assert [(t.kind, t.role, t.value) for t in case.fixed] == [(t.kind, t.role, t.value) for t in case.moving]


@pytest.mark.parametrize("side", ["moving", "fixed"])
def test_what_is_inside_is_inside_and_nothing_else_touches(side):
    for case in PICTURES:
        masks = [covered(thing, SHAPE) > 0 for thing in getattr(case, side)]
        assert min(int(mask.sum()) for mask in masks) >= 6
        for small in masks[1:3]:
            assert bool((masks[0] | ~small).all())
        apart = [masks[1], masks[2], *masks[3:]]
        for first, second in itertools.combinations(apart, 2):
            assert not bool((first & second).any())
        for other in masks[3:]:
            assert not bool((other & masks[0]).any())
            assert not bool(other[..., 0].any() | other[..., -1].any() | other[..., 0, :].any())


def test_all_kinds_occur_in_all_roles_and_everything_moves():
    seen = {(thing.kind, thing.role) for case in PICTURES for thing in case.moving}
    assert seen == set(itertools.product(KINDS, ROLES))
    overlaps = [
        mean_dice(covered(a, SHAPE).int(), covered(b, SHAPE).int(), [1])
        for case in PICTURES
        for a, b in zip(case.fixed, case.moving, strict=True)
    ]
    assert 0.4 < sum(overlaps) / len(overlaps) < 0.85
    assert max(overlaps) < 1


def test_still_surroundings_do_not_move():
    case = picture(5, SHAPE, still=True)
    assert case.fixed[3:] == case.moving[3:]
    assert case.fixed[0] != case.moving[0]


def test_images_are_between_zero_and_one_and_later_objects_cover_earlier_ones():
    pair = PICTURES[0].pair()
    for image, things in ((pair.fixed, PICTURES[0].fixed), (pair.moving, PICTURES[0].moving)):
        assert image.dtype == torch.float32
        assert float(image.min()) >= 0
        assert float(image.max()) <= 1
        inner = things[1].distance(SHAPE) < -1.5 / 79
        assert bool(inner.any())
        assert torch.allclose(image[0, 0][inner], torch.tensor(things[1].value), atol=0.06)


@pytest.mark.parametrize(
    ("kind", "area"), [("rectangle", 4.0), ("ellipse", math.pi), ("triangle", 3 * math.sqrt(3) / 4)]
)
def test_areas_are_those_of_the_shapes(kind, area):
    thing = Thing(kind, "foreground", 1.0, (0.5, 0.5), (0.3, 0.2), 0.7)
    shape = (201, 201)
    found = float((thing.distance(shape) < 0).double().mean())
    assert found == pytest.approx(area * 0.3 * 0.2, rel=0.03)
    half_covered = float(drawn((thing,), shape).double().mean())
    assert half_covered == pytest.approx(found, rel=0.02)


def test_the_soft_region_holds_the_foreground_of_the_moving_image():
    for case in PICTURES:
        soft, body = case.soft(), covered(case.moving[0], SHAPE)
        assert bool((soft[body > 0] == 1).all())
        assert 1.2 < float(soft.sum() / body.sum()) < 1.7
