"""The synthetic study of the RDMM paper, rebuilt: pictures of rectangles, triangles and ellipses that move.

One foreground object holds two others; one to five lie outside.  Every object of the moving image has a
counterpart in the fixed one, shifted, scaled and turned at random; what is inside follows the foreground.
No two objects touch, in either image.
Source: section 5 of Shen, Vialard and Niethammer, NeurIPS 2019; sizes and ranges are ours.
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
EDGE_VOX = 0.5
"""Softness of the edges in the image."""
CLEARANCE = 0.03
"""Least distance between the circles around two objects, in box units."""
REACH = {"rectangle": math.sqrt(2), "triangle": 1.0, "ellipse": 1.0}
"""Radius of the circle around an object whose half sides are 1."""
ROOM = {"rectangle": (0.48, 0.3), "triangle": (0.24, 0.16), "ellipse": (0.42, 0.25)}
"""Where in an object of half sides 1 two others find room, and how large they may be."""
LARGER = {"rectangle": 1.15, "triangle": 1.4, "ellipse": 1.0}
"""How much farther a foreground object reaches, so that all kinds have about the same room."""
MOST_TRIES = 2000


@dataclass(frozen=True)
class Thing:
    """One object of a picture, lengths in units of the box.

    centre: along the two axes.  half: half its sides before it is turned by `angle` (radians).
    """

    kind: str
    role: str
    value: float
    centre: tuple[float, float]
    half: tuple[float, float]
    angle: float

    @property
    def reach(self) -> float:
        """Radius of a circle around it."""
        return REACH[self.kind] * max(self.half)

    def place(self, offset: tuple[float, float]) -> tuple[float, float]:
        """A point given in half sides, as a point of the box."""
        a, b = offset[0] * self.half[0], offset[1] * self.half[1]
        c, s = math.cos(self.angle), math.sin(self.angle)
        return self.centre[0] + c * a - s * b, self.centre[1] + s * a + c * b

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
    """Two sets of objects; number i of the one is the counterpart of number i of the other."""

    moving: tuple[Thing, ...]
    fixed: tuple[Thing, ...]
    shape: tuple[int, int]

    def pair(self) -> Pair:
        """Both images as a pair, voxels of 1 mm."""
        grid = Grid(self.shape, np.eye(4))
        images = [drawn(things, self.shape) for things in (self.fixed, self.moving)]
        return Pair(images[0], images[1], grid, np.eye(4))

    def soft(self, wider: float = 1.2) -> Tensor:
        """The foreground object of the moving image, a little wider, as a map of 0 and 1; (1, 1, *shape)."""
        thing = self.moving[0]
        large = replace(thing, half=(wider * thing.half[0], wider * thing.half[1]))
        return (large.distance(self.shape) < 0).long()[None, None]


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


def picture(seed: int, shape: tuple[int, int] = (200, 200), *, still: bool = False) -> Picture:
    """A random picture; the same for the same seed on every machine.

    still: what lies outside the foreground does not move.
    """
    generator = generator_for("planar objects", seed)

    def between(low: float, high: float) -> float:
        return number(generator, low, high)

    def thing(role: str, centre: tuple[float, float], size: float, value: float) -> Thing:
        kind = KINDS[whole(generator, 0, 2)]
        size = size * (LARGER[kind] if role == "foreground" else 1.0) / REACH[kind]
        return Thing(kind, role, value, centre, (size, size * between(0.65, 1.0)), between(0, 2 * math.pi))

    def carried(moving: Thing, shift: float) -> Thing:
        scale = [math.exp(between(-0.2, 0.2)) for _ in range(2)]
        centre = (moving.centre[0] + between(-shift, shift), moving.centre[1] + between(-shift, shift))
        half = (moving.half[0] * scale[0], moving.half[1] * scale[1])
        return replace(moving, centre=centre, half=half, angle=moving.angle + between(-0.3, 0.3))

    large = thing("foreground", (between(0.44, 0.56), between(0.44, 0.56)), between(0.26, 0.32), 0.4)
    moving, fixed = [large], [carried(large, 0.03)]
    where, room = ROOM[large.kind]
    along = between(0, 2 * math.pi)
    for side, value in ((1.0, 0.75), (-1.0, 1.0)):
        offset = (side * where * math.cos(along), side * where * math.sin(along))
        small = thing("inside", large.place(offset), room * min(large.half), value)
        after = carried(small, 0.0)
        shifted = fixed[0].place((offset[0] + between(-0.04, 0.04), offset[1] + between(-0.04, 0.04)))
        moving.append(small)
        fixed.append(replace(after, centre=shifted, angle=after.angle + fixed[0].angle - large.angle))
    wanted = whole(generator, 1, 5)
    for _ in range(MOST_TRIES):
        if len(moving) == 3 + wanted:
            break
        size = between(0.05, 0.08)
        margin = 0.04 + size
        centre = (between(margin, 1 - margin), between(margin, 1 - margin))
        other = thing("outside", centre, size, between(0.5, 0.9))
        after = other if still else carried(other, 0.02)
        if _free(other, [moving[0], *moving[3:]]) and _free(after, [fixed[0], *fixed[3:]]):
            moving.append(other)
            fixed.append(after)
    return Picture(tuple(moving), tuple(fixed), shape)


def _free(thing: Thing, others: list[Thing]) -> bool:
    """Whether it lies inside the box, and its circle away from those of others."""
    inside = all(thing.reach + 0.02 <= c <= 0.98 - thing.reach for c in thing.centre)
    gaps = [math.dist(thing.centre, o.centre) - thing.reach - o.reach for o in others]
    return inside and min(gaps) >= CLEARANCE
