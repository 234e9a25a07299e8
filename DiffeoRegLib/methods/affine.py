"""Linear initial alignment: from nothing, centres, or a multi-start rigid and affine optimisation.

Coarse search over rotations and translations, the best candidates refined rigidly, the best of them
affinely down a resolution pyramid. A transform is a rotation times the exponential of a symmetric
strain, about the centres of both images: scales and shears stay small by a prior and mirroring is
impossible (the determinant is positive by construction).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import minimize
from torch import Tensor

from DiffeoRegLib.errors import NoOverlapError
from DiffeoRegLib.methods.affine_frames import Frames, angle_degrees, centers_mm, make_frames
from DiffeoRegLib.methods.affine_problem import Level, loss, make_level, make_side, rotation_set
from DiffeoRegLib.settings import Settings
from DiffeoRegLib.space.grid import Grid, Matrix
from DiffeoRegLib.space.sample import array_from_tensor, tensor_from_array
from DiffeoRegLib.volumes.intensity import block_strides, finite
from DiffeoRegLib.volumes.pair import Masks
from DiffeoRegLib.volumes.volume import Volume

COARSE_BLOCKS = 28
"""Blocks along the longest extent at the level of the search; brains: about 7 mm."""
POINTS = (8_000, 20_000, 40_000)
"""Fixed points per level, coarse to fine."""
REFINED = (16, 4, 3)
"""Rotated candidates tried with a few steps, then optimised at the coarse level, then at the middle one."""
STRAIN_PRIOR = 0.02
"""Weight of the squared log-scales and shears."""
CONFIRMED = 0.97
"""Share of the best mutual information that the best correlation must reach to be believed."""
LEAST_SHARED_PERCENT = 5.0
"""Below this overlap an alignment is refused."""


@torch.inference_mode(False)
@torch.enable_grad()
def initial_alignment(
    fixed: Volume,
    moving: Volume,
    settings: Settings,
    masks: Masks | None = None,
    initial: Matrix | None = None,
    *,
    notes: list[str] | None = None,
    alone: bool = True,
) -> Matrix:
    """RAS mm 4x4 (fixed point -> moving point) that settings.init asks for; `auto` = affine.

    initial: a given transform (its linear part). With `auto` or `identity` it is taken as it is, with
    `rigid` and `affine` it is the only start, or, not `alone`, one of all.
    notes: sentences for the report are appended here.
    It searches along gradients, also where the caller has switched them off.
    Raises NoOverlapError when the two images hardly share space afterwards.
    """
    said: list[str] = [] if notes is None else notes
    masks = masks or Masks()
    init = settings.init
    if initial is not None and init not in ("rigid", "affine"):
        matrix = np.array(initial, dtype=np.float64)
        said.append("Initial alignment: the given transform.")
    elif init == "identity":
        matrix = np.eye(4)
        said.append("Initial alignment: none, the images are taken where their headers put them.")
    else:
        matrix = _search(finite(fixed), finite(moving), settings, masks, initial, said, alone)
    shared = shared_percent(fixed.grid, moving.grid, matrix)
    if shared < LEAST_SHARED_PERCENT:
        raise NoOverlapError(
            f"'{fixed.name}' and '{moving.name}' share only {shared:.1f} % of their space after the initial "
            f"alignment ('{init}'): choose another one (geometry, mass, affine) or give an initial transform."
        )
    return matrix


def information(
    fixed: Volume, moving: Volume, masks: Masks | None, matrices: Sequence[Matrix], seed: int = 0
) -> list[float]:
    """Normalised mutual information of both images under maps (RAS mm 4x4), 1 = independent; coarse."""
    masks = masks or Masks()
    fixed_side = make_side(finite(fixed), masks.fixed, masks.exclude_fixed)
    moving_side = make_side(finite(moving), masks.moving, masks.exclude_moving)
    frames = make_frames(fixed_side, moving_side)
    coarse_mm = max(*fixed.grid.extent_mm, *moving.grid.extent_mm) / COARSE_BLOCKS
    level = make_level(fixed_side, moving_side, frames.world_from_fixed, frames.world_from_moving,
                       coarse_mm, POINTS[0], seed)  # fmt: skip
    parts = [frames.parts(matrix) for matrix in matrices]
    found = _judged(level, np.stack([p[0] for p in parts]), np.stack([p[1] for p in parts]), "nmi")
    return [1.0 - candidate.loss for candidate in found]


def shared_percent(fixed: Grid, moving: Grid, moving_from_fixed: Matrix) -> float:
    """Share of the smaller field of view that lies in the other one, percent."""
    shares = []
    for source, target, matrix in (
        (fixed, moving, moving_from_fixed),
        (moving, fixed, np.linalg.inv(moving_from_fixed)),
    ):
        coarse = source.coarsened(block_strides(source, max(source.extent_mm) / 24))
        axes = [np.arange(n, dtype=np.float64) for n in coarse.shape]
        index = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, source.dim)
        world = coarse.world_from_index(index) @ matrix[:3, :3].T + matrix[:3, 3]
        position = target.index_from_world(world)
        shares.append(
            float(((position > -0.5) & (position < np.array(target.shape) - 0.5)).all(axis=1).mean())
        )
    return 100.0 * max(shares)


# ---------------------------------------------------------------- parameters


def _linear(parameters: Tensor, start: Tensor, dim: int) -> Tensor:
    """Linear maps (k, d, d) near `start`: exp(skew) @ start @ exp(symmetric strain)."""
    turns = dim * (dim - 1) // 2
    skew = parameters.new_zeros(parameters.shape[0], dim, dim)
    upper = torch.triu_indices(dim, dim, 1)
    skew[:, upper[0], upper[1]] = parameters[:, :turns]
    result = torch.linalg.matrix_exp(skew - skew.transpose(1, 2)) @ start
    if parameters.shape[1] > turns + dim:
        strain = parameters.new_zeros(parameters.shape[0], dim, dim)
        full = torch.triu_indices(dim, dim, 0)
        strain[:, full[0], full[1]] = parameters[:, turns + dim :]
        result = result @ torch.linalg.matrix_exp((strain + strain.transpose(1, 2)) / 2)
    return torch.as_tensor(result)


@dataclass(frozen=True, eq=False)
class Candidate:
    """A linear map between the frames with its dissimilarity at the level it was last judged on."""

    linear: NDArray[np.float64]
    shift_mm: NDArray[np.float64]
    loss: float


def _refined(
    level: Level, start: Candidate, frames: Frames, affine: bool, metric: str, most_evaluations: int
) -> Candidate:
    """The nearest optimum of rotation and shift, and of strain if `affine` (L-BFGS, exact gradients)."""
    dim, radius = frames.dim, frames.radius_mm
    turns = dim * (dim - 1) // 2
    count = turns + dim + (dim * (dim + 1) // 2 if affine else 0)
    base = tensor_from_array(start.linear, torch.float32)[None]
    shift = tensor_from_array(start.shift_mm, torch.float32)[None]

    def unpack(flat: Tensor) -> tuple[Tensor, Tensor]:
        return _linear(flat[None], base, dim), shift + radius * flat[None, turns : turns + dim]

    def judge(flat: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        variable = tensor_from_array(flat, torch.float32).requires_grad_(True)
        linear, moved = unpack(variable)
        value = loss(level, linear, moved, metric)[0]
        if affine:
            gram = linear[0].T @ linear[0]
            strain = 0.5 * (gram - torch.eye(dim))
            value = value + STRAIN_PRIOR * (strain * strain).sum()
        value.backward()  # type: ignore[no-untyped-call]
        assert variable.grad is not None
        return float(value.detach()), array_from_tensor(variable.grad).astype(np.float64)

    found = minimize(
        judge,
        np.zeros(count),
        jac=True,
        method="L-BFGS-B",
        options={"maxfun": most_evaluations, "maxcor": 10, "ftol": 1e-7, "gtol": 1e-6},
    )
    with torch.no_grad():
        linear, moved = unpack(tensor_from_array(found.x, torch.float32))
    return Candidate(
        array_from_tensor(linear[0]).astype(np.float64),
        array_from_tensor(moved[0]).astype(np.float64),
        float(found.fun),
    )


def _judged(
    level: Level, linear: NDArray[np.float64], shift_mm: NDArray[np.float64], metric: str
) -> list[Candidate]:
    """Candidates (k, d, d), (k, d) with their dissimilarity, a few at a time."""
    chunk = max(1, 200_000 // len(level.points_mm))
    values: list[float] = []
    with torch.no_grad():
        for first in range(0, len(linear), chunk):
            part = slice(first, first + chunk)
            values += loss(
                level,
                tensor_from_array(linear[part], torch.float32),
                tensor_from_array(shift_mm[part], torch.float32),
                metric,
            ).tolist()
    return [Candidate(a, t, v) for a, t, v in zip(linear, shift_mm, values, strict=True)]


# ---------------------------------------------------------------- the search


def _search(
    fixed: Volume,
    moving: Volume,
    settings: Settings,
    masks: Masks,
    initial: Matrix | None,
    said: list[str],
    alone: bool,
) -> Matrix:
    fixed_side = make_side(fixed, masks.fixed, masks.exclude_fixed)
    moving_side = make_side(moving, masks.moving, masks.exclude_moving)
    frames = make_frames(fixed_side, moving_side)
    centers = centers_mm(fixed_side, moving_side, frames)
    plain = {"mass": "centres of mass", "geometry": "centres of the fields of view"}
    if initial is None and settings.init in plain:
        said.append(f"Initial alignment: {plain[settings.init]}.")
        return frames.matrix(np.eye(frames.dim), centers[settings.init])
    coarse_mm = max(*fixed.grid.extent_mm, *moving.grid.extent_mm) / COARSE_BLOCKS
    levels = [
        make_level(fixed_side, moving_side, frames.world_from_fixed, frames.world_from_moving,
                   coarse_mm / 2**k, points, settings.seed)
        for k, points in enumerate(POINTS)
    ]  # fmt: skip
    starts = _plain_starts(levels[0], frames, centers, initial)
    rotated = []
    if initial is None or not alone:
        rotated = _rotated_starts(levels[0], frames, centers)
    if initial is not None and not alone:
        starts += _plain_starts(levels[0], frames, centers, None)
    best = _best_rigid(levels, [*starts, *rotated[: REFINED[0]]], frames)
    found = _followed_down(levels, best, frames, settings, "nmi")
    if settings.preset != "multimodal" and settings.similarity not in ("nmi", "mind"):
        other = _followed_down(levels, best, frames, settings, "ncc")
        found = _single_contrast(levels[2], found, other)
    return _better_of(levels[2], starts, found, frames, settings, said)


def _plain_starts(
    level: Level, frames: Frames, centers: dict[str, NDArray[np.float64]], initial: Matrix | None
) -> list[Candidate]:
    """Starts that are always followed up: the given one, or headers, centres of mass and of view."""
    if initial is not None:
        linear, shift = frames.parts(np.asarray(initial, dtype=np.float64))
        return _judged(level, linear[None], shift[None], "nmi")
    header = frames.parts(np.eye(4))
    linear = np.stack([header[0], np.eye(frames.dim), np.eye(frames.dim)])
    return _judged(level, linear, np.stack([header[1], centers["mass"], centers["geometry"]]), "nmi")


def _rotated_starts(level: Level, frames: Frames, centers: dict[str, NDArray[np.float64]]) -> list[Candidate]:
    """Rotations about the object, each with the better of both kinds of shift, the most similar first."""
    rotations = rotation_set(frames.dim)[1:]
    shifts = [centers["mass"]]
    if np.linalg.norm(centers["mass"] - centers["geometry"]) > level.spacing:
        shifts.append(centers["geometry"])
    judged = [_judged(level, rotations, np.tile(s, (len(rotations), 1)), "nmi") for s in shifts]
    return sorted((min(both, key=_loss) for both in zip(*judged, strict=True)), key=_loss)


def _loss(candidate: Candidate) -> float:
    return candidate.loss


def _best_rigid(levels: list[Level], starts: list[Candidate], frames: Frames) -> Candidate:
    """The best rigid optimum the starts lead to: all at the coarse level, a few at the middle one."""
    tried = [_refined(levels[0], c, frames, False, "nmi", 12) for c in starts]
    chosen = _distinct(sorted(tried, key=_loss), levels[0].spacing)[: REFINED[1]]
    coarse = [_refined(levels[0], c, frames, False, "nmi", 40) for c in chosen]
    chosen = _distinct(sorted(coarse, key=_loss), levels[0].spacing)[: REFINED[2]]
    return min((_refined(levels[1], c, frames, False, "nmi", 30) for c in chosen), key=_loss)


def _judged_again(level: Level, candidates: list[Candidate]) -> list[Candidate]:
    """The same candidates with their mutual information at another level."""
    linear = np.stack([c.linear for c in candidates])
    return _judged(level, linear, np.stack([c.shift_mm for c in candidates]), "nmi")


def _followed_down(
    levels: list[Level], start: Candidate, frames: Frames, settings: Settings, metric: str
) -> Candidate:
    """The optimum at the finest level: affine through all levels, rigid at the last one only."""
    affine = settings.init != "rigid"
    found = start
    for level in levels if affine else levels[2:]:
        found = _refined(level, found, frames, affine, metric, 60)
    return found


def _single_contrast(level: Level, by_information: Candidate, by_correlation: Candidate) -> Candidate:
    """The map found by correlation if mutual information confirms it, else the one by mutual information.

    Correlation places more label overlap on brains of one contrast (see the benchmark) but can be far off
    across contrasts, which costs mutual information.
    """
    judged = _judged_again(level, [by_information, by_correlation])
    return judged[1] if judged[1].loss <= CONFIRMED * judged[0].loss else judged[0]


def _better_of(
    level: Level,
    starts: list[Candidate],
    found: Candidate,
    frames: Frames,
    settings: Settings,
    said: list[str],
) -> Matrix:
    """The found map, unless a plain start (headers, centres, given) is more similar at the finest level."""
    judged = _judged_again(level, [found, *starts])
    best = min(judged, key=_loss)
    kind = "rigid" if settings.init == "rigid" else "affine"
    if best is not judged[0]:
        said.append(
            f"Initial alignment: the {kind} search found nothing better than its start "
            f"(normalised mutual information {_information(judged[0])} against {_information(best)}); "
            "the start is kept."
        )
        return frames.matrix(best.linear, best.shift_mm)
    said.append(
        f"Initial alignment: {kind}, rotation {angle_degrees(found.linear):.1f} degrees, volume ratio "
        f"{abs(np.linalg.det(found.linear)):.3f}, normalised mutual information "
        f"{_information(judged[1])} -> {_information(judged[0])}."
    )
    return frames.matrix(found.linear, found.shift_mm)


def _information(candidate: Candidate) -> str:
    """Normalised mutual information as the report counts it: 1 = independent."""
    return f"{1.0 - candidate.loss:.3f}" if candidate.loss <= 0.0 else "none (too little overlap)"


def _distinct(candidates: list[Candidate], distance_mm: float) -> list[Candidate]:
    """Candidates without those that ended where a better one did."""
    kept: list[Candidate] = []
    for c in candidates:
        if all(
            np.linalg.norm(c.linear - k.linear) > 0.1
            or np.linalg.norm(c.shift_mm - k.shift_mm) > 0.5 * distance_mm
            for k in kept
        ):
            kept.append(c)
    return kept
