"""The pictures of the synthetic study: what the paper says of them, and that objects have counterparts."""

from __future__ import annotations

import itertools
import math
import statistics

import pytest
import torch

from DiffeoRegLib.metrics import mean_dice
from Testing.planar_objects import (
    KINDS,
    MARGIN,
    ROLES,
    SHIFT,
    Picture,
    Thing,
    covered,
    drawn,
    has_room,
    picture,
    within_walls,
)

SHAPE = (80, 80)
PICTURES = [picture(seed, SHAPE) for seed in range(24)]


def test_the_same_seed_gives_the_same_picture():
    assert picture(3, SHAPE).moving == PICTURES[3].moving
    assert picture(3).moving == PICTURES[3].moving
    assert picture(4, SHAPE).moving != PICTURES[3].moving
    assert picture(3).pair().fixed.shape == (1, 1, 200, 200)


@pytest.mark.parametrize("case", PICTURES[:12])
def test_one_foreground_two_inside_one_to_five_outside(case):
    for things in (case.moving, case.fixed):
        roles = [thing.role for thing in things]
        assert roles[:3] == ["foreground", "inside", "inside"]
        assert set(roles[3:]) == {"outside"}
        assert 1 <= len(roles) - 3 <= 5
        assert things[0].kind in ("rectangle", "ellipse")
    assert [(t.role, t.value) for t in case.fixed] == [(t.role, t.value) for t in case.moving]


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
        edge = int(MARGIN * 79)
        for mask in masks:
            assert int(mask[..., edge:-edge, edge:-edge].sum()) == int(mask.sum())


def test_counterparts_are_near_and_all_else_is_drawn_anew():
    pairs = [(m, f) for case in PICTURES for m, f in zip(case.moving, case.fixed, strict=True)]
    for moving, fixed in pairs:
        far = SHIFT * max(moving.half) + 1e-6
        assert max(abs(a - b) for a, b in zip(moving.centre, fixed.centre, strict=True)) <= far
    share = statistics.fmean(moving.kind != fixed.kind for moving, fixed in pairs)
    assert 0.4 < share < 0.8
    turned = [abs(moving.angle - fixed.angle) for moving, fixed in pairs]
    assert max(turned) > 1
    seen = {(thing.kind, thing.role) for pair in pairs for thing in pair}
    assert seen == set(itertools.product(KINDS, ROLES)) - {("triangle", "foreground")}
    overlaps = [mean_dice(covered(f, SHAPE).int(), covered(m, SHAPE).int(), [1]) for m, f in pairs]
    assert 0.6 < statistics.fmean(overlaps) < 0.85
    assert max(overlaps) < 1


@pytest.mark.parametrize(("moves", "first"), [("all", 0), ("inside-out", 3), ("inside", 1)])
def test_only_what_moves_changes(moves, first):
    case = picture(5, SHAPE, moves=moves)
    still = {index for index, thing in enumerate(case.moving) if case.fixed[index] == thing}
    everything = set(range(len(case.moving)))
    expected = {"all": set(), "inside-out": everything - {0, 1, 2}, "inside": everything - {1, 2}}
    assert still == expected[moves]
    assert len(everything) > 3


def test_an_unknown_motion_is_refused():
    with pytest.raises(KeyError, match="sideways"):
        picture(0, SHAPE, moves="sideways")


def test_room_is_judged_by_the_distance_to_walls_and_others():
    large = Thing("rectangle", "foreground", 0.4, (0.5, 0.5), (0.25, 0.25), 0.0)

    def small(role: str, along: float) -> Thing:
        return Thing("rectangle", role, 1.0, (along, 0.5), (0.05, 0.05), 0.0)

    assert has_room(small("inside", 0.5), [large])
    assert not has_room(small("inside", 0.68), [large])
    assert has_room(small("outside", 0.15), [large])
    assert not has_room(small("outside", 0.19), [large])
    assert not has_room(small("inside", 0.5), [large, small("inside", 0.58)])
    assert has_room(small("inside", 0.4), [large, small("inside", 0.56)])
    assert not within_walls(small("outside", 0.09))
    assert not has_room(small("outside", 0.09), [large])


def test_images_are_between_zero_and_one_and_later_objects_cover_earlier_ones():
    case = PICTURES[0]
    pair = case.pair()
    for image, things in ((pair.fixed, case.fixed), (pair.moving, case.moving)):
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


def test_the_soft_region_is_the_foreground_of_the_moving_image():
    for case in PICTURES[:5]:
        assert torch.equal(case.soft().float(), covered(case.moving[0], SHAPE))
    assert not torch.equal(PICTURES[0].soft().float(), covered(PICTURES[0].fixed[0], SHAPE))


def test_a_picture_may_have_any_shape():
    case = Picture(PICTURES[0].moving, PICTURES[0].fixed, (40, 60))
    assert case.pair().moving.shape == (1, 1, 40, 60)
