"""Lesions put into healthy images, with the motion of the tissue around them known.

A lesion is a bumpy ellipsoid of solid tumour, with or without a dead centre, a bright ring and swollen
tissue (oedema) around it.  Solid parts push the tissue aside (`growth.mass_effect`) and replace it; oedema
stains it.  Outside the lesion the image is the healthy one read through the true map and nothing else.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from DiffeoRegLib.errors import InputError, SettingsError, ShapeError, UnknownNameError
from DiffeoRegLib.flows.inversion import invert
from DiffeoRegLib.space.filters import gaussian_smooth
from DiffeoRegLib.space.sample import identity_vox, warp
from DiffeoRegLib.training.draws import normal, number, uniform, whole
from DiffeoRegLib.training.growth import mass_effect
from DiffeoRegLib.training.shapes import smooth_noise

NECROSIS, SOLID, RING, OEDEMA = 1, 2, 3, 4
"""Parts of a lesion; 0 is healthy tissue."""
LOOKS: dict[str, tuple[tuple[float, float], ...]] = {
    "t1": ((0.05, 0.25), (0.2, 0.45), (0.3, 0.5), (0.3, 0.5)),
    "t1c": ((0.05, 0.25), (0.35, 0.6), (0.8, 1.0), (0.3, 0.5)),
    "flair": ((0.1, 0.5), (0.5, 0.8), (0.6, 0.9), (0.75, 1.0)),
    "any": ((0.0, 1.0),) * 4,
}
"""Limits of the intensities of necrosis, solid tumour, ring and oedema in an image that fills 0 to 1."""

DARK = 0.02
"""Up to here an image in [0, 1] without its skull shows background."""
DEEP = 0.7
"""Share of a Gaussian as wide as the lesion that lies in the organ, where the lesion may have its centre."""
SOURCE_SIGMA_VOX = 2.0
STAIN = 0.7
"""How much of the tissue's own contrast the strongest oedema covers."""


@dataclass(frozen=True)
class LesionOptions:
    """Limits of what is drawn for every image; lengths in voxels.

    count: fewest and most lesions.  radius_vox: of their solid part, before bumps.
    growth: by which share of the largest lesion's radius tissue is pushed away.
    reaches_vox: over which lengths it gives in, see `growth`; one is drawn.
    oedema, ring, necrosis: probabilities per lesion.  spread: width of oedema in radii.
    bumps: of the outline, in radii.  texture: standard deviation of intensities within a lesion.
    looks: names in `LOOKS`; one is drawn per image.  healthy: probability of no lesion at all.
    """

    count: tuple[int, int] = (1, 2)
    radius_vox: tuple[float, float] = (8.0, 20.0)
    growth: tuple[float, float] = (0.15, 0.6)
    reaches_vox: tuple[float, ...] = (12.0, 24.0, 48.0)
    oedema: float = 0.6
    ring: float = 0.5
    necrosis: float = 0.5
    spread: tuple[float, float] = (0.2, 0.7)
    bumps: float = 0.15
    texture: float = 0.06
    looks: tuple[str, ...] = ("t1", "t1c", "flair", "any")
    healthy: float = 0.0

    def __post_init__(self) -> None:
        if not 1 <= self.count[0] <= self.count[1]:
            raise SettingsError(f"The numbers of lesions rise from 1, unlike {self.count}.")
        if not 1 <= self.radius_vox[0] <= self.radius_vox[1] < math.inf:
            raise SettingsError(f"The radii of lesions rise from 1 voxel, unlike {self.radius_vox}.")
        if not (0 <= self.growth[0] <= self.growth[1] <= 1 and 0 <= self.spread[0] <= self.spread[1] <= 2):
            raise SettingsError("growth rises within [0, 1] and spread within [0, 2].")
        if not self.reaches_vox or not min(self.reaches_vox) > 0:
            raise SettingsError(f"reaches_vox are lengths above 0, unlike {self.reaches_vox}.")
        if not all(0 <= p <= 1 for p in (self.oedema, self.ring, self.necrosis, self.healthy)):
            raise SettingsError("Probabilities lie between 0 and 1.")
        if not (0 <= self.bumps <= 0.3 and self.texture >= 0):
            raise SettingsError("bumps lie in [0, 0.3], and texture is at least 0.")
        if not self.looks:
            raise SettingsError("Lesions need at least one look.")
        for name in self.looks:
            if name not in LOOKS:
                raise UnknownNameError("look of a lesion", name, LOOKS)


@dataclass(frozen=True, eq=False)
class Implanted:
    """An image with lesions and how it came about; tensors (1, C, *shape).

    image: the patient, in [0, 1].  parts: int64, `NECROSIS` ... `OEDEMA` or 0.  organ: 1 inside, of the
    patient.
    u_vox: the true map: healthy(x + u(x)) is what the patient shows at x.
    """

    image: Tensor
    parts: Tensor
    organ: Tensor
    u_vox: Tensor

    @property
    def pathology(self) -> Tensor:
        """1 inside lesions, oedema with them, else 0, float32 (1, 1, *shape)."""
        return (self.parts > 0).float()

    @property
    def solid(self) -> Tensor:
        """1 where tissue was replaced: `pathology` without oedema."""
        return ((self.parts > 0) & (self.parts != OEDEMA)).float()

    @cached_property
    def inverse_vox(self) -> Tensor:
        """Where the tissue went: what is at y in the healthy image is at y + inverse(y) in the patient."""
        return invert(self.u_vox)

    def labels(self, healthy: Tensor) -> Tensor:
        """A label map (1, 1, *shape) of the healthy image in the patient, 0 where tissue was replaced."""
        moved = warp(healthy.float(), self.u_vox, mode="nearest", outside="zeros").round()
        return (moved * (1 - self.solid)).to(healthy.dtype)


@torch.no_grad()
def implant(
    image: Tensor, generator: torch.Generator, options: LesionOptions, organ: Tensor | None = None
) -> Implanted:
    """Lesions drawn at random in a healthy image (1, 1, *shape) in [0, 1].

    organ: 1 inside (1, 1, *shape); None = what is not dark, with holes closed (`organ_of`).
    Raises ShapeError for anything but one image of two or three axes, InputError for an organ without voxels.
    """
    if image.shape[:2] != (1, 1) or image.dim() not in (4, 5):
        raise ShapeError(f"Lesions go into one image of two or three axes, not into {tuple(image.shape)}.")
    inside = organ_of(image) if organ is None else (organ > 0.5).to(image.dtype)
    if inside.shape != image.shape:
        raise ShapeError(f"The organ is {tuple(inside.shape)}, its image {tuple(image.shape)}.")
    if not bool(inside.any()):
        raise InputError("There is no organ in this image to put a lesion into.")
    if number(generator, 0, 1) < options.healthy:
        still = torch.zeros(1, image.dim() - 2, *image.shape[2:], dtype=image.dtype, device=image.device)
        return Implanted(image.clone(), torch.zeros_like(image, dtype=torch.int64), inside, still)
    lesions = [_drawn(generator, inside, options) for _ in range(whole(generator, *options.count))]
    solid = torch.stack([lesion.level < 0 for lesion in lesions]).any(0).to(image.dtype) * inside
    largest = max(lesion.radius_vox for lesion in lesions) * number(generator, *options.growth)
    reach = options.reaches_vox[whole(generator, 0, len(options.reaches_vox) - 1)]
    u_vox = mass_effect(gaussian_smooth(solid, SOURCE_SIGMA_VOX, "zero"), inside, largest, reach)
    picture = warp(image, u_vox)
    organ_now = (warp(inside, u_vox, outside="zeros") > 0.5).to(image.dtype)
    look = LOOKS[options.looks[whole(generator, 0, len(options.looks) - 1)]]
    parts = torch.zeros_like(image, dtype=torch.int64)
    for lesion in lesions:
        _stain(picture, parts, lesion, organ_now, look, generator)
    for lesion in lesions:
        _fill(picture, parts, lesion, organ_now, look, generator, options.texture)
    return Implanted(picture, parts, organ_now, u_vox)


def organ_of(image: Tensor) -> Tensor:
    """1 where an image (1, 1, *shape) in [0, 1] shows an organ on dark ground, small dark holes closed."""
    bright = (image > DARK).to(image.dtype)
    return (gaussian_smooth(bright, 2.0, "zero") > 0.5).to(image.dtype)


# ---------------------------------------------------------------- one lesion


@dataclass(frozen=True, eq=False)
class _Lesion:
    """level: below 0 in the solid part, in radii; stain: below 0 in its oedema, None = it has none."""

    level: Tensor
    stain: Tensor | None
    radius_vox: float
    ring: bool
    core: float
    """Level below which it is dead; -inf = nowhere."""


def _drawn(generator: torch.Generator, organ: Tensor, options: LesionOptions) -> _Lesion:
    shape, device = tuple(organ.shape[2:]), organ.device
    radius = number(generator, *options.radius_vox)
    center = _center(generator, organ, radius)
    level = _ellipsoid(generator, shape, center, radius, device)
    scale = max(4, 2 * round(radius / 4))  # even whole numbers: the filters of few scales are made once
    rough = smooth_noise(generator, 1, shape, scale, device).clamp(-3, 3)
    level = level + options.bumps * rough
    stain = None
    if number(generator, 0, 1) < options.oedema:
        fingers = smooth_noise(generator, 1, shape, scale, device).clamp(-3, 3)
        stain = level - number(generator, *options.spread) + 1.5 * options.bumps * fingers
    ring = number(generator, 0, 1) < options.ring
    dead = number(generator, 0, 1) < options.necrosis
    depth = -number(generator, 0.3, 0.6)
    return _Lesion(level, stain, radius, ring, depth if dead else -math.inf)


def _center(generator: torch.Generator, organ: Tensor, radius_vox: float) -> Tensor:
    """A voxel position (d,) that lies deep in the organ for this radius, or as deep as there is."""
    depth = gaussian_smooth(organ, float(max(1, round(radius_vox))), "zero") * organ
    places = (depth[0, 0] >= min(DEEP, float(depth.max()))).nonzero()
    return places[whole(generator, 0, len(places) - 1)].to(organ.dtype)


def _ellipsoid(
    generator: torch.Generator, shape: Sequence[int], center: Tensor, radius_vox: float, device: torch.device
) -> Tensor:
    """Distance from the centre in radii minus 1, (1, 1, *shape), of a randomly turned ellipsoid."""
    dim = len(shape)
    axes, _ = torch.linalg.qr(normal(generator, (dim, dim)))
    inverse = axes.T / (radius_vox * uniform(generator, 0.75, 1.3, (dim, 1)))
    offset = identity_vox(shape, torch.float32, device)[0] - center.view(-1, *[1] * dim)
    turned = torch.einsum("ab,b...->a...", inverse.to(device), offset)
    return (turned.square().sum(0).sqrt() - 1)[None, None]


def _stain(
    picture: Tensor, parts: Tensor, lesion: _Lesion, organ: Tensor, look: Sequence[tuple[float, float]],
    generator: torch.Generator,
) -> None:  # fmt: skip
    """Oedema: the tissue's intensities drawn towards one, in place."""
    value, strength = number(generator, *look[OEDEMA - 1]), number(generator, 0.4, STAIN)
    if lesion.stain is None:
        return
    cover = (-lesion.stain / 0.3).clamp(0, 1) * organ
    picture += strength * cover * (value - picture)
    parts[(cover > 0) & (parts == 0)] = OEDEMA


def _fill(
    picture: Tensor, parts: Tensor, lesion: _Lesion, organ: Tensor, look: Sequence[tuple[float, float]],
    generator: torch.Generator, texture: float,
) -> None:  # fmt: skip
    """Solid tumour with what it has inside, in place of the tissue."""
    dead, core, rim = (number(generator, *limits) for limits in look[:3])
    level = lesion.level
    content = torch.full_like(picture, core)
    if lesion.core > -math.inf:
        content += (dead - core) * ((lesion.core - level) / 0.1).clamp(0, 1)
    middle = max(lesion.core, -0.5) + 0.2 if lesion.core > -math.inf else -0.2
    band = torch.exp(-(((level - middle) / 0.12) ** 2))
    if lesion.ring:
        content += (rim - core) * band
    shape = tuple(picture.shape[2:])
    content += texture * smooth_noise(generator, 1, shape, 4, picture.device)
    cover = (-level / 0.12).clamp(0, 1) * organ
    picture += cover * (content.clamp(0, 1) - picture)
    inside = cover > 0
    parts[inside] = SOLID
    if lesion.core > -math.inf:
        parts[inside & (level < lesion.core)] = NECROSIS
    if lesion.ring:
        parts[inside & (band > 0.5)] = RING
