"""The synthetic study of the RDMM paper, rebuilt: pictures of rectangles, triangles and ellipses that change.

One foreground object, a rectangle or an ellipse, holds two small objects; one to five lie outside.  Every
object of the moving image has a counterpart in the fixed one: near the same place, but of another size,
turned another way and, as in the authors' program, often of another kind.  No two objects touch.
Source: section 5 of Shen, Vialard and Niethammer, NeurIPS 2019, with the ranges of the authors' program; the
intensities and the soft edges are ours.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from DiffeoRegLib.space.grid import Grid
from DiffeoRegLib.training.draws import generator_for, number, whole
from DiffeoRegLib.volumes.pair import Pair

KINDS = ("rectangle", "triangle", "ellipse")
ROLES = ("foreground", "inside", "outside")
MOVES = {"all": ROLES, "inside-out": ("foreground", "inside"), "inside": ("inside",)}
"""Which roles change from one image to the other."""
EDGE_VOX = 0.5
"""Softness of the edges in the image."""
FOREGROUND_SCALE, SMALL_SCALE = (0.8, 0.9), (0.15, 0.25)
HALF = {"rectangle": (0.2, 0.4), "triangle": (0.37, 0.5), "ellipse": (0.3, 0.4)}
"""Half sides of an object of scale 1, in units of the box."""
TURN = math.pi / 3
"""Largest angle, of either image on its own."""
SHIFT = 0.1
"""Largest way to the counterpart along an axis, in half sides."""
MARGIN, DEPTH, CLEARANCE = 0.05, 0.05, 0.025
"""Of objects to the walls, of those inside to the edge of the foreground, and of all others; in box units."""
JUDGED = (128, 128)
"""The grid on which room for an object is judged, whatever the shape of the picture."""
MOST_TRIES = 400


@dataclass(frozen=True)
class Thing:
    """One object of a picture, lengths in units of the box.

    centre: along the two axes.  half: half its sides (of a triangle, how far its corners reach) before it is
    turned by `angle` (radians).
    """

    kind: str
    role: str
    value: float
    centre: tuple[float, float]
    half: tuple[float, float]
    angle: float

    def distance(self, shape: tuple[int, int]) -> Tensor:
        """About the distance to its edge at every voxel, below 0 inside, in units of the box; (*shape)."""
        axes = [torch.linspace(0, 1, n, dtype=torch.float64) for n in shape]
        first, second = torch.meshgrid(axes[0] - self.centre[0], axes[1] - self.centre[1], indexing="ij")
        c, s = math.cos(self.angle), math.sin(self.angle)
        a, b = (c * first + s * second) / self.half[0], (c * second - s * first) / self.half[1]
        if self.kind == "rectangle":
            beyond = torch.maximum(a.abs(), b.abs()) - 1
        elif self.kind == "ellipse":
            beyond = (a.square() + b.square()).sqrt() - 1
        else:
            sides = [math.cos(t) * a + math.sin(t) * b for t in (0.0, 2 * math.pi / 3, -2 * math.pi / 3)]
            beyond = torch.stack(sides).amax(0) - 0.5
        return beyond * min(self.half)


@dataclass(frozen=True, eq=False)
class Picture:
    """Two sets of objects, first the foreground; number i of one is the counterpart of that of the other."""

    moving: tuple[Thing, ...]
    fixed: tuple[Thing, ...]
    shape: tuple[int, int]

    def pair(self) -> Pair:
        """Both images as a pair, voxels of 1 mm."""
        grid = Grid(self.shape, np.eye(4))
        images = [drawn(things, self.shape) for things in (self.fixed, self.moving)]
        return Pair(images[0], images[1], grid, np.eye(4))

    def soft(self) -> Tensor:
        """The foreground object of the moving image with what it holds, 0 and 1; (1, 1, *shape)."""
        return (self.moving[0].distance(self.shape) < 0).long()[None, None]


def drawn(things: tuple[Thing, ...], shape: tuple[int, int]) -> Tensor:
    """The image, float32 (1, 1, *shape) in [0, 1]; later objects cover earlier ones."""
    edge = EDGE_VOX / (min(shape) - 1)
    image = torch.zeros(shape, dtype=torch.float64)
    for thing in things:
        share = torch.sigmoid(-thing.distance(shape) / edge)
        image = image * (1 - share) + thing.value * share
    return image.float()[None, None]


def covered(thing: Thing, shape: tuple[int, int]) -> Tensor:
    """Where an object is, with what lies inside it; float32 (1, 1, *shape) of 0 and 1."""
    return (thing.distance(shape) < 0).float()[None, None]


def picture(seed: int, shape: tuple[int, int] = (200, 200), *, moves: str = "all") -> Picture:
    """A random picture; the same for the same seed on every machine.

    moves: what changes from one image to the other: all, inside-out (the foreground and what it holds) or
    inside (what it holds, alone).  Raises KeyError for another word.
    """
    roles, draws = MOVES[moves], _Draws(generator_for("planar objects", seed))
    while True:
        things = draws.tried(roles)
        if things is not None:
            return Picture(*things, shape)


class _Draws:
    """Objects drawn until they find room."""

    def __init__(self, generator: torch.Generator) -> None:
        self.generator = generator

    def tried(self, roles: tuple[str, ...]) -> tuple[tuple[Thing, ...], tuple[Thing, ...]] | None:
        """The objects of both images, of which those of some roles change; None if one finds no room."""
        large = self.thing("foreground", 0.4)
        moving, fixed = [large], [self.counterpart(large, roles)]
        if not all(within_walls(things[0]) for things in (moving, fixed)):
            return None
        wanted = 3 + whole(self.generator, 1, 5)
        for _ in range(MOST_TRIES):
            if len(moving) == wanted:
                return tuple(moving), tuple(fixed)
            inside = len(moving) < 3
            value = (0.75, 1.0)[len(moving) - 1] if inside else self.between(0.5, 0.9)
            small = self.thing("inside" if inside else "outside", value)
            after = self.counterpart(small, roles)
            if has_room(small, moving) and has_room(after, fixed):
                moving.append(small)
                fixed.append(after)
        return None

    def between(self, low: float, high: float) -> float:
        """One uniform number."""
        return number(self.generator, low, high)

    def thing(self, role: str, value: float) -> Thing:
        """An object of any kind its role allows, anywhere."""
        kinds = ("rectangle", "ellipse") if role == "foreground" else KINDS
        kind = kinds[whole(self.generator, 0, len(kinds) - 1)]
        scale = self.between(*(FOREGROUND_SCALE if role == "foreground" else SMALL_SCALE))
        half = (scale * self.between(*HALF[kind]), scale * self.between(*HALF[kind]))
        free = 0.5 - MARGIN - min(half)
        centre = (0.5 + self.between(-free, free), 0.5 + self.between(-free, free))
        return Thing(kind, role, value, centre, half, self.between(-TURN, TURN))

    def counterpart(self, thing: Thing, roles: tuple[str, ...]) -> Thing:
        """Near the same place, all else drawn anew; the same object if its role is none of these."""
        if thing.role not in roles:
            return thing
        other = self.thing(thing.role, thing.value)
        far = SHIFT * max(thing.half)
        centre = (thing.centre[0] + self.between(-far, far), thing.centre[1] + self.between(-far, far))
        return replace(other, centre=centre)


def within_walls(thing: Thing) -> bool:
    """Whether it keeps its distance from the walls."""
    axes = [torch.linspace(0, 1, n) for n in JUDGED]
    first, second = torch.meshgrid(*axes, indexing="ij")
    near = torch.minimum(torch.minimum(first, 1 - first), torch.minimum(second, 1 - second)) < MARGIN
    return not bool((near & (thing.distance(JUDGED) < 0)).any())


def has_room(thing: Thing, others: list[Thing]) -> bool:
    """Whether it touches neither walls nor others, of which the first is the foreground that may hold it."""
    body = thing.distance(JUDGED) < 0
    gaps = [other.distance(JUDGED)[body] for other in others]
    deep = float(gaps[0].max()) <= -DEPTH if thing.role == "inside" else float(gaps[0].min()) >= CLEARANCE
    return deep and all(float(gap.min()) >= CLEARANCE for gap in gaps[1:]) and within_walls(thing)
