"""SITReg: both images are moved towards each other, coarse to fine, by maps that provably cannot fold.

At each level both images' features are read where they are by now, z1 and z2; a head gives u(z1, z2) and
u(z2, z1), and the update is delta = u(z1, z2) o u(z2, z1)^-1 for image 1 and delta^-1 for image 2.
Everything is done for one image and, by the same calls, for the other: exchanged images give exchanged
results to the last bit.  (Both in one batch would not: see Head in pyramid.py.)
Source: Honkamaa and Marttinen, SITReg: Multi-resolution architecture for symmetric, inverse consistent, and
topology preserving image registration, MELBA 2024, sections 3.1-3.6.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from DiffeoRegLib.errors import InputError, SettingsError, ShapeError, UnknownNameError
from DiffeoRegLib.flows.inversion import invert
from DiffeoRegLib.networks.pyramid import Pyramid, PyramidConfig
from DiffeoRegLib.networks.sitreg_affine import HalfwayAffine, halfway_affines
from DiffeoRegLib.networks.sitreg_maps import MODES, WAYS, Atoms, Mode, Route, SITRegMaps, Way
from DiffeoRegLib.networks.sitreg_options import SITRegOptions
from DiffeoRegLib.space.controls import largest_control, upsample_controls
from DiffeoRegLib.space.field import compose, upsample_field
from DiffeoRegLib.space.sample import identity_vox, sample, warp

Pair = tuple[Tensor, Tensor]
Direction = Literal["both", "12"]
DIRECTIONS = ("12", "both")
PICARD_STEPS = 10
"""Atoms are contractions, so dense steps settle most voxels before any is solved alone."""


@dataclass(frozen=True)
class _Progress:
    """What the levels hand on: both ways so far on a grid of this stride, and the atoms kept."""

    stride: int
    routes: tuple[Route, ...] = ()
    atoms: tuple[Atoms, ...] = ()


@dataclass(frozen=True)
class _Frame:
    """What all levels share."""

    shape: tuple[int, ...]
    affines: tuple[HalfwayAffine, HalfwayAffine] | None
    ways: tuple[Way, ...]
    keep_atoms: bool


class SITReg(nn.Module):
    """The whole network, 2D or 3D, for images of any size its levels fit into."""

    def __init__(self, config: PyramidConfig, options: SITRegOptions | None = None) -> None:
        super().__init__()
        self.config = config
        self.options = options or SITRegOptions()
        self.pyramid = Pyramid(config)

    @property
    def levels(self) -> range:
        """Levels that predict motion; 0 is the finest."""
        return range(int(self.options.fast), len(self.config.heads))

    @property
    def smallest_size(self) -> int:
        """Voxels an image needs along each axis: the coarsest level that predicts motion needs two."""
        return int(2 ** (len(self.config.heads) - 1)) + 1

    def forward(
        self,
        image_1: Tensor,
        image_2: Tensor,
        *,
        mode: Mode = "standard",
        direction: Direction = "both",
        spacing: Sequence[float] | None = None,
        keep_atoms: bool = False,
    ) -> SITRegMaps:
        """Maps between two images, (N, channels, *shape) each, values about [0, 1].

        mode: `standard` resamples fields at every composition; `complete` composes the atoms where needed;
        `complete-exact` also solves every inverse where needed.  direction: `12` saves what u21 alone needs.
        spacing: voxel sizes per axis, for the affine.  keep_atoms: allows exact points in standard mode.
        Raises InputError for images too small, ShapeError or SettingsError for what does not fit.
        """
        self._check(image_1, image_2, mode, direction)
        ways = WAYS if direction == "both" else WAYS[:1]
        features = [self._features(image) for image in (image_1, image_2)]
        with torch.autocast(image_1.device.type, enabled=False):
            shape = tuple(image_1.shape[2:])
            affines = self._halfway_affines(features[0][-1], features[1][-1], shape, spacing)
            frame = _Frame(shape, affines, ways, keep_atoms)
            state = _Progress(self._stride(self.levels[-1]))
            step = self._resampled_step if mode == "standard" else self._lazy_step
            for level in reversed(self.levels):
                seen = features[0][level], features[1][level]
                for own in features:
                    del own[level:]
                state = step(level, seen, state, frame)
        return SITRegMaps(
            shape, mode, ways, state.stride, state.routes, affines, state.atoms, self.options.symmetric
        )

    def _check(self, image_1: Tensor, image_2: Tensor, mode: str, direction: str) -> None:
        """Everything that can be said of the inputs before computing."""
        config, dim = self.config, self.config.dim
        if (
            image_1.shape != image_2.shape
            or image_1.dim() != dim + 2
            or image_1.shape[1] != config.channels_in
        ):
            raise ShapeError(
                f"Two {dim}D images (N, {config.channels_in}, *shape) of one shape are needed, "
                f"not {tuple(image_1.shape)} and {tuple(image_2.shape)}."
            )
        if mode not in MODES:
            raise UnknownNameError("mode", mode, MODES)
        if direction not in DIRECTIONS:
            raise UnknownNameError("direction", direction, DIRECTIONS)
        if not self.levels:
            raise SettingsError("The fast form leaves out the finest level; this network has no other.")
        if mode == "complete-exact" and not self.options.symmetric:
            raise SettingsError("The ablation without symmetry has no inverse that could be exact.")
        if min(image_1.shape[2:]) < self.smallest_size:
            raise InputError(
                f"An image of {tuple(image_1.shape[2:])} voxels is too small for {len(config.heads)} levels, "
                f"which need {self.smallest_size} along each axis; use fewer levels or a finer grid."
            )

    def _convolving(self, device: str) -> AbstractContextManager[None]:
        """Convolutions inside run in the chosen precision, whatever the caller set."""
        return torch.autocast(device, torch.bfloat16, enabled=self.options.precision == "bfloat16")

    def _features(self, image: Tensor) -> list[Tensor]:
        """Features of one image per level, finest first."""
        with self._convolving(image.device.type):
            # A copy of its own: kernels may round differently when the numbers start at another address.
            found: list[Tensor] = self.pyramid.encoder(image.clone(), checkpointing=self._checkpointing())
        return found

    def _checkpointing(self) -> bool:
        return self.options.checkpointing and torch.is_grad_enabled()

    def _halfway_affines(
        self, z1: Tensor, z2: Tensor, shape: tuple[int, ...], spacing: Sequence[float] | None
    ) -> tuple[HalfwayAffine, HalfwayAffine] | None:
        if self.pyramid.affine is None:
            return None
        first, second = self.pyramid.affine(z1.to(self._dtype()), z2.to(self._dtype()))
        return halfway_affines(first, second, shape, spacing)

    def _dtype(self) -> torch.dtype:
        """Of weights, coordinates and fields."""
        return self.pyramid.encoder.entry.weight.dtype

    def _stride(self, level: int) -> int:
        """Voxels of the image per step of the grid on which a level's maps are sampled."""
        finest = 2 if self.options.fast else 1
        samples = self.options.samples_per_control
        return max(finest, 2**level // samples) if samples else finest

    def _run(self, step: Callable[..., tuple[Tensor, ...]], held: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """One level, remembered in full or by its inputs only."""
        if not self._checkpointing():
            return step(*held)
        out: tuple[Tensor, ...] = checkpoint(step, *held, use_reentrant=False)
        return out

    def _resampled_step(self, level: int, features: Pair, state: _Progress, frame: _Frame) -> _Progress:
        """One level of the standard mode: everything resampled on the level's grid."""
        stride = self._stride(level)
        ways = frame.ways if level == self.levels[0] else WAYS
        tolerance_vox = self.options.tolerance_vox / stride

        def step(z1: Tensor, z2: Tensor, *fields: Tensor) -> tuple[Tensor, ...]:
            fields = _on_finer_grid(fields, state.stride, stride, frame.shape)
            routes = [Route(*fields[i : i + 2]) for i in range(0, len(fields), 2)]
            read = [self._read(level, z, routes, way, stride, frame) for way, z in enumerate((z1, z2))]
            u = self._atoms(level, read[0], read[1], frame.shape)
            moved = [self._updated(u, routes, way, tolerance_vox) for way in range(len(ways))]
            return (*[field for route in moved for field in (route.onward, route.back)], *u)

        held = (*features, *[field for route in state.routes for field in (route.onward, route.back)])
        out = self._run(step, held)
        routes = tuple(Route(*out[2 * way : 2 * way + 2]) for way in range(len(ways)))
        kept = (Atoms((out[-2], out[-1]), None, stride),) if frame.keep_atoms else ()
        return _Progress(stride, routes, (*state.atoms, *kept))

    def _lazy_step(self, level: int, features: Pair, state: _Progress, frame: _Frame) -> _Progress:
        """One level of the complete modes: the atoms so far are composed at the places that are read."""
        stride = self._stride(level)

        def step(z1: Tensor, z2: Tensor) -> tuple[Tensor, ...]:
            read = [self._read_through(level, z, way, state.atoms, frame) for way, z in enumerate((z1, z2))]
            u = self._atoms(level, read[0], read[1], frame.shape)
            if not self.options.symmetric:
                return u
            tolerance_vox = self.options.tolerance_vox / stride
            return (*u, *[_inverse(field, tolerance_vox) for field in u])

        out = self._run(step, features)
        made = Atoms((out[0], out[1]), (out[2], out[3]) if self.options.symmetric else None, stride)
        return _Progress(stride, (), (*state.atoms, made))

    def _read(
        self, level: int, z: Tensor, routes: Sequence[Route], way: int, stride: int, frame: _Frame
    ) -> Tensor:
        """An image's features of a level at a o d1, or a^-1 o d2 (equation 4)."""
        z = z.to(self._dtype())
        if not routes and frame.affines is None:
            return z
        grid = z.shape[2:]
        if routes:
            u_vox = at_level(routes[way].onward, 2**level, stride, grid)
        else:
            u_vox = z.new_zeros(len(z), len(grid), *grid)
        return warp(z, u_vox if frame.affines is None else frame.affines[way].after(u_vox, 2**level))

    def _read_through(self, level: int, z: Tensor, way: int, atoms: Sequence[Atoms], frame: _Frame) -> Tensor:
        """`_read` through atoms that nobody has composed yet; the finest so far acts first."""
        z = z.to(self._dtype())
        if not atoms and frame.affines is None:
            return z
        size = 2**level
        at = identity_vox(z.shape[2:], z.dtype, z.device) * size + (size - 1) / 2
        at = at.expand(len(z), *at.shape[1:])
        for made in atoms[::-1]:
            at = made.update(at, way)
        at = at if frame.affines is None else frame.affines[way].at(at)
        return sample(z, (at + 0.5) / size - 0.5)

    def _atoms(self, level: int, z1: Tensor, z2: Tensor, shape: tuple[int, ...]) -> Pair:
        """u(z1, z2) and u(z2, z1), (N, d, *grid), in voxels of the grid of this level's maps."""
        with self._convolving(z1.device.type):
            raw = self.pyramid.heads[level](z1, z2)
        stride = self._stride(level)
        apart = (2**level // stride,) * len(shape)
        # From here on nothing may be rounded to half precision: positions need all their digits.
        controls = [values.to(z1.dtype).tanh() * (largest_control(apart)[0] * apart[0]) for values in raw]
        one, other = (upsample_controls(values, apart, _coarse(shape, stride)) for values in controls)
        return one, other

    def _updated(self, u: Pair, routes: Sequence[Route], way: int, tolerance_vox: float) -> Route:
        """One way after one level: d1 o delta and delta o d2^-1 (equations 5 to 7)."""
        delta = u[way]
        if self.options.symmetric:
            delta = compose(delta, _inverse(u[1 - way], tolerance_vox))
        if not routes:
            return Route(delta, delta)
        return Route(compose(routes[way].onward, delta), compose(delta, routes[way].back))


def _on_finer_grid(
    fields: tuple[Tensor, ...], stride: int, finer: int, shape: Sequence[int]
) -> tuple[Tensor, ...]:
    """Fields of the grid of one stride on that of another, in its voxels."""
    if stride == finer:
        return fields
    return tuple(upsample_field(u, [stride // finer] * len(shape), _coarse(shape, finer)) for u in fields)


def _inverse(u_vox: Tensor, tolerance_vox: float) -> Tensor:
    """Inverse fields one by one: no field's iterations may depend on what shares its batch."""
    parts = torch.split(u_vox, 1)
    return torch.cat([invert(u, tolerance_vox=tolerance_vox, picard_steps=PICARD_STEPS) for u in parts])


def _coarse(shape: Sequence[int], stride: int) -> tuple[int, ...]:
    """The grid of this stride that covers an image."""
    return tuple(-(-n // stride) for n in shape)


def at_level(u_vox: Tensor, size: int, stride: int, grid: Sequence[int]) -> Tensor:
    """A field at the voxels of a level of `size`, in steps of that level.

    A voxel of the level lies in the middle of two of the field's along every axis.
    """
    ratio = size // stride
    if ratio == 1:
        return u_vox
    for axis, count in enumerate(grid, start=2):
        last = u_vox.shape[axis] - 1
        low = torch.arange(count, device=u_vox.device) * ratio + ratio // 2 - 1
        both = [u_vox.index_select(axis, index.clamp(max=last)) for index in (low, low + 1)]
        u_vox = (both[0] + both[1]) * 0.5
    return u_vox / ratio
