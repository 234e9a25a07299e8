"""What SITReg returns: the maps between two images, half-way maps, and their exact values at any point.

Way `12` is the map that makes image 1 look like image 2: image_1(x + u12(x)) ~ image_2(x), on the grid of
image 2; `21` is its inverse.  Both are made by the same calls with the images' roles exchanged.
Positions are voxels of the images; a field or atom may have a coarser, cell-centred grid of its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import torch
from torch import Tensor

from DiffeoRegLib.errors import SettingsError, ShapeError, UnknownNameError
from DiffeoRegLib.flows.cells import value_and_slopes
from DiffeoRegLib.flows.inversion import invert_at
from DiffeoRegLib.networks.sitreg_affine import HalfwayAffine
from DiffeoRegLib.space.field import compose, upsample_field
from DiffeoRegLib.space.sample import identity_vox, sample

Way = Literal["12", "21"]
WAYS: tuple[Way, ...] = ("12", "21")
Mode = Literal["standard", "complete", "complete-exact"]
MODES: tuple[Mode, ...] = ("complete", "complete-exact", "standard")

POINTS_PER_CHUNK = 1 << 18
EXACT_VOX = 1e-12
"""Residual asked of every pointwise inverse, atom voxels; the last Newton step ends near rounding."""


def moved_by(position_vox: Tensor, field_vox: Tensor, stride: int) -> Tensor:
    """x + u(x) at positions (N, d, *out) of the image; field_vox: (N, d, *grid of that stride)."""
    if stride == 1:
        return position_vox + sample(field_vox, position_vox)
    own = (position_vox + 0.5) / stride - 0.5
    return position_vox + stride * sample(field_vox, own)


@dataclass(frozen=True, eq=False)
class Atoms:
    """The bounded maps of one level, u(z1, z2) and u(z2, z1).

    u_vox: two of (N, d, *grid) in their own voxels, cell-centred at `stride`.  v_vox: their inverses on that
    grid; None in the ablation (equations 11 and 12) and where only exact inverses will be asked for.
    """

    u_vox: tuple[Tensor, Tensor]
    v_vox: tuple[Tensor, Tensor] | None
    stride: int

    def update(self, position_vox: Tensor, way: int) -> Tensor:
        """delta(x) at positions of the image for way 0 or 1, the inverse interpolated from its grid."""
        if self.v_vox is not None:
            position_vox = moved_by(position_vox, self.v_vox[1 - way], self.stride)
        return moved_by(position_vox, self.u_vox[way], self.stride)

    def update_exactly(self, points: Tensor, way: int, item: int) -> tuple[Tensor, Tensor]:
        """delta(x) and its Jacobian determinant at points (n, d), float64; the inverse solved per point."""
        own, other = (self.u_vox[i][item].detach() for i in (way, 1 - way))
        at = invert_at(other[None], (points + 0.5) / self.stride - 0.5, EXACT_VOX)
        back = _moved_with_determinant(other, at)[1]
        at, forward = _moved_with_determinant(own, at)
        return (at + 0.5) * self.stride - 0.5, forward / back


@dataclass(frozen=True, eq=False)
class Route:
    """One way in two halves on a grid: `12` goes back along d2^-1, then on along d1 (N, d, *grid)."""

    onward: Tensor
    back: Tensor


@dataclass(eq=False)
class SITRegMaps:
    """The maps between two images (N, C, *shape); fields are (N, d, *shape), voxels, made when first asked.

    routes: ways 12 and 21 of the standard mode on the grid of `stride`; only the first in a one-way run, none
    in the complete modes.  atoms: coarse to fine.  exact: the atoms are those of a symmetric network.
    """

    shape: tuple[int, ...]
    mode: Mode
    ways: tuple[Way, ...]
    stride: int
    routes: tuple[Route, ...]
    affines: tuple[HalfwayAffine, HalfwayAffine] | None
    atoms: tuple[Atoms, ...]
    exact: bool

    @cached_property
    def u12(self) -> Tensor:
        """image_1(x + u12(x)) looks like image_2(x)."""
        return self._whole(0)

    @cached_property
    def u21(self) -> Tensor:
        """image_2(x + u21(x)) looks like image_1(x).  Raises SettingsError after a one-way run."""
        return self._whole(1)

    def deformable(self, way: Way) -> Tensor:
        """The map without the affine, d1 o d2^-1 or d2 o d1^-1: what a regularity penalty is for."""
        if self.affines is None:
            return self.u12 if way == "12" else self.u21
        return self._between(_index(way))

    def halfway(self) -> tuple[Tensor, Tensor]:
        """a o d1 and a^-1 o d2: both images read there look alike (complete-exact: as in complete).

        Raises SettingsError after a one-way run.
        """
        return self._half_onward(0), self._half_onward(1)

    def halfway_inverse(self) -> tuple[Tensor, Tensor]:
        """d1^-1 o a^-1 and d2^-1 o a, inverses of `halfway`.  Raises SettingsError after a one-way run."""
        return self._half_back(1), self._half_back(0)

    def map_points(self, points_vox: Tensor, way: Way = "12", item: int = 0) -> Tensor:
        """Exact values of a map at any points of one item of the batch, in float64.

        points_vox, returned: (n, d).  Inverses are solved at every point, so the two ways undo each other to
        rounding.  Raises SettingsError where the atoms were not kept or there is no inverse (ablation).
        """
        return self.points_and_determinants(points_vox, way, item)[0]

    @torch.no_grad()
    def points_and_determinants(
        self, points_vox: Tensor, way: Way = "12", item: int = 0
    ) -> tuple[Tensor, Tensor]:
        """`map_points` and the Jacobian determinants there, (n,), positive by construction.

        A determinant is the product of those of the atoms on the way; I + Du of an atom is strictly
        diagonally dominant, so none of them can vanish or change its sign.
        """
        self._require_exact(points_vox, item)
        found = [
            self._walk(part.double(), _index(way), item) for part in torch.split(points_vox, POINTS_PER_CHUNK)
        ]
        return torch.cat([points for points, _ in found]), torch.cat([factor for _, factor in found])

    def _walk(self, points: Tensor, way: int, item: int) -> tuple[Tensor, Tensor]:
        """Coarse to fine, then fine to coarse: the map and its inverse are palindromes of updates."""
        affine = None if self.affines is None else self.affines[way].item(item)
        determinant = torch.ones_like(points[:, 0])
        if affine is not None:
            points = affine.at(points.T[None])[0].T
            determinant *= torch.linalg.det(affine.linear).square().to(points.device)
        for atoms in (*self.atoms, *self.atoms[::-1]):
            points, factor = atoms.update_exactly(points, way, item)
            determinant *= factor
        return points if affine is None else affine.at(points.T[None])[0].T, determinant

    def _whole(self, way: int) -> Tensor:
        """Displacement of one full map on the grid of the images."""
        self._require(way)
        if self.mode == "complete-exact":
            return self._exactly(way)
        if self.affines is None:
            return self._between(way)
        affine, at = self.affines[way], self._voxels()
        return affine.at(self._onward(self._back(affine.at(at), way), way)) - at

    def _between(self, way: int) -> Tensor:
        """Displacement of the deformable part on the grid of the images."""
        self._require(way)
        if self.routes:
            return self._enlarged(compose(self.routes[way].onward, self.routes[way].back))
        at = self._voxels()
        return self._onward(self._back(at, way), way) - at

    def _onward(self, at: Tensor, way: int) -> Tensor:
        """d1(x) for way 0, d2(x) for way 1: the finest update acts first."""
        if self.routes:
            return moved_by(at, self.routes[way].onward, self.stride)
        for atoms in self.atoms[::-1]:
            at = atoms.update(at, way)
        return at

    def _back(self, at: Tensor, way: int) -> Tensor:
        """d2^-1(x) for way 0, d1^-1(x) for way 1: the coarsest update acts first."""
        if self.routes:
            return moved_by(at, self.routes[way].back, self.stride)
        for atoms in self.atoms:
            at = atoms.update(at, way)
        return at

    def _half_onward(self, way: int) -> Tensor:
        self._require(1)
        if self.routes:
            u_vox = self._enlarged(self.routes[way].onward)
        else:
            u_vox = self._onward(self._voxels(), way) - self._voxels()
        return u_vox if self.affines is None else self.affines[way].after(u_vox)

    def _half_back(self, way: int) -> Tensor:
        self._require(1)
        if self.routes and self.affines is None:
            return self._enlarged(self.routes[way].back)
        at = self._voxels()
        start = at if self.affines is None else self.affines[way].at(at)
        return self._back(start, way) - at

    def _exactly(self, way: int) -> Tensor:
        """A map on the grid of the images with every inverse solved at the points it is needed."""
        like = self._like()
        points = identity_vox(self.shape, torch.float64, like.device).flatten(2)[0].T
        moved = [self.map_points(points, WAYS[way], item) - points for item in range(len(like))]
        return torch.stack([u.T for u in moved]).reshape(len(like), -1, *self.shape).to(like.dtype)

    def _enlarged(self, u_vox: Tensor) -> Tensor:
        """A field of this grid on the grid of the images."""
        return (
            u_vox if self.stride == 1 else upsample_field(u_vox, [self.stride] * len(self.shape), self.shape)
        )

    def _like(self) -> Tensor:
        """A field of this batch, type and device."""
        return self.routes[0].onward if self.routes else self.atoms[0].u_vox[0]

    def _voxels(self) -> Tensor:
        """Positions of the voxels of the images, (N, d, *shape)."""
        like = self._like()
        at = identity_vox(self.shape, like.dtype, like.device)
        return at.expand(len(like), *at.shape[1:])

    def _require(self, way: int) -> None:
        if WAYS[way] not in self.ways:
            raise SettingsError("Only the way `12` was asked for; run the network with direction `both`.")

    def _require_exact(self, points_vox: Tensor, item: int) -> None:
        if not self.atoms or not self.exact:
            raise SettingsError(
                "Exact values need the atoms of a symmetric network: run it with keep_atoms=True."
            )
        count = len(self._like())
        if points_vox.dim() != 2 or points_vox.shape[1] != len(self.shape) or not 0 <= item < count:
            raise ShapeError(
                f"Points (n, {len(self.shape)}) of one of {count} items are needed, "
                f"not {tuple(points_vox.shape)} of item {item}."
            )


def _index(way: Way) -> int:
    if way not in WAYS:
        raise UnknownNameError("way", way, WAYS)
    return WAYS.index(way)


def _moved_with_determinant(u_vox: Tensor, at: Tensor) -> tuple[Tensor, Tensor]:
    """x + u(x) and det(I + Du(x)) of a multilinear field (d, *grid) at points (n, d), float64."""
    value, slopes = value_and_slopes(u_vox.double(), at.T.contiguous())
    return at + value.T, _determinant(slopes)


def _determinant(slopes: Sequence[Tensor]) -> Tensor:
    """det(I + Du) per point; slopes[a][c] = d u_c / d x_a."""
    rows = [[slope[c] + float(a == c) for c in range(len(slopes))] for a, slope in enumerate(slopes)]
    if len(rows) == 2:
        (a, b), (c, e) = rows
        return a * e - b * c
    (a, b, c), (e, f, g), (h, i, j) = rows
    return a * (f * j - g * i) - b * (e * j - g * h) + c * (e * i - f * h)
