"""Linear alignment by a trained network, and the search that may go on from its answer.

The images are brought together by their centres of mass (or as Settings.init or a given transform says) and
read on the box the network was trained in: its size and voxels, over the object of the fixed image, 3D axes
to S, A, R.  Its answer is checked before it counts: it may not mirror, collapse or lead out of view, and has
to be at least as similar as the start.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from DiffeoRegLib.catalog import AFFINE_NETWORK, Card, card, linear_model
from DiffeoRegLib.errors import InputError, NoOverlapError, SettingsError, WeightsError
from DiffeoRegLib.methods.affine import LEAST_SHARED_PERCENT, information, initial_alignment, shared_percent
from DiffeoRegLib.methods.affine_frames import angle_degrees
from DiffeoRegLib.methods.trained import require_dimension, spacing_of, used_weights
from DiffeoRegLib.networks.affine_net import AffineNet
from DiffeoRegLib.networks.weights import network_for
from DiffeoRegLib.settings import Settings
from DiffeoRegLib.space.grid import Grid, Matrix
from DiffeoRegLib.space.sample import array_from_tensor
from DiffeoRegLib.volumes.common_grid import common_grid
from DiffeoRegLib.volumes.intensity import (
    finite,
    foreground_points_mm,
    intensity_window,
    normalise,
    resample_affine,
)
from DiffeoRegLib.volumes.pair import Masks
from DiffeoRegLib.volumes.volume import Volume

PLACEMENTS = ("auto", "identity", "geometry", "mass")
"""What Settings.init may say beside the method `affine-network`; auto = mass, or the given transform."""
VOLUME_RATIOS = (0.1, 10.0)
"""A map that makes the image smaller or larger than this is no alignment of it."""
MOST_OUTSIDE_PERCENT = 5.0
"""More of the object beyond the network's box than this is said."""


@dataclass(frozen=True, eq=False)
class Network:
    """A trained network with the box it works in: voxels and their size, mm, per tensor axis."""

    card: Card
    module: AffineNet
    shape: tuple[int, ...]
    spacing_mm: tuple[float, ...]


def asked_for(settings: Settings) -> bool:
    """True if the linear alignment of these settings is a network's: the method's own, or the start's."""
    return settings.init_network is not None or card(settings.method).method == AFFINE_NETWORK


def network_settings(settings: Settings) -> Settings:
    """The settings of the network that aligns: those of the method, or, for a start, of the model named.

    Raises SettingsError for a model that does not align, or a placement that does not go with a network.
    """
    name = settings.init_network
    if card(settings.method).method != AFFINE_NETWORK:
        return settings.with_changes(
            method=linear_model(name or "").name, init="auto", weights=None, extras={}
        )
    if settings.init not in PLACEMENTS:
        raise SettingsError(
            f"'{settings.method}' starts from {', '.join(PLACEMENTS)} or a given transform, not from "
            f"'{settings.init}': it aligns the images itself."
        )
    if settings.extras:
        raise SettingsError(
            f"'{settings.method}' has no extra settings, such as {next(iter(settings.extras))}."
        )
    return settings


def network_alignment(
    fixed: Volume,
    moving: Volume,
    settings: Settings,
    masks: Masks | None = None,
    initial: Matrix | None = None,
    *,
    notes: list[str] | None = None,
) -> Matrix:
    """RAS mm 4x4 (fixed point -> moving point): the network's answer, improved by a search if effort allows.

    initial: a linear transform the images are brought together by first.  notes: sentences for the report.
    effort: `fast` = the network alone; `balanced` = an affine search that starts from its answer and nothing
    else; `accurate` = a search from everywhere, its answer included.
    Raises InputError (and its kinds) for images, weights or an answer that cannot be used.
    """
    said: list[str] = [] if notes is None else notes
    own = network_settings(settings)
    network = _network(own, fixed.grid.dim)
    placed = own.with_changes(init="mass" if own.init == "auto" and initial is None else own.init)
    start = initial_alignment(fixed, moving, placed, masks, initial, notes=said)
    answer = _answer(network, finite(fixed), finite(moving), start, said)
    said.append(used_weights(own))
    if masks is not None and (masks.fixed is not None or masks.moving is not None):
        said.append("Affine network: it sees the whole images; the masks count in all else of the alignment.")
    problem = unusable(fixed.grid, moving.grid, answer)
    if settings.effort == "fast":
        if problem is not None:
            kind = NoOverlapError if "view" in problem else InputError
            raise kind(
                f"The answer of '{network.card.title}' cannot be used, it {problem}: choose the effort "
                "balanced, which then searches, or the method affine."
            )
        return _better(fixed, moving, masks, start, answer, said)
    search = settings.with_changes(init="affine")
    if problem is not None:
        said.append(f"Affine network: its answer {problem}; it is left out and everything is searched.")
        return initial_alignment(fixed, moving, search, masks, notes=said)
    best = _better(fixed, moving, masks, start, answer, said)
    return initial_alignment(
        fixed, moving, search, masks, best, notes=said, alone=settings.effort != "accurate"
    )


def alignment_sources(settings: Settings) -> list[str]:
    """Citations of a linear alignment by a network, beyond those of the method's own card."""
    own = network_settings(settings)
    sources = [card(own.method).citation] if own.method != settings.method else []
    return sources if settings.effort == "fast" else [card("affine").citation, *sources]


def unusable(fixed: Grid, moving: Grid, matrix: Matrix) -> str | None:
    """What is wrong with an answer (RAS mm 4x4), as the end of a sentence; None = nothing."""
    if not np.isfinite(matrix).all():
        return "holds values that are not finite"
    ratio = float(np.linalg.det(matrix[:3, :3]))
    if ratio <= 0:
        return f"mirrors the image (determinant {ratio:.3g})"
    if not VOLUME_RATIOS[0] <= ratio <= VOLUME_RATIOS[1]:
        return f"changes the volume {ratio:.3g} times"
    shared = shared_percent(fixed, moving, matrix)
    if shared < LEAST_SHARED_PERCENT:
        return f"leads out of view (the images share {shared:.1f} % of their space)"
    return None


def _better(
    fixed: Volume, moving: Volume, masks: Masks | None, start: Matrix, answer: Matrix, said: list[str]
) -> Matrix:
    """The answer, unless the start is more similar; said either way."""
    before, after = information(fixed, moving, masks, [start, answer])
    if after < before:
        said.append(
            f"Affine network: its answer is less similar than its start (normalised mutual information "
            f"{after:.3f} against {before:.3f}); the start is kept."
        )
        return start
    said.append(
        f"Affine network: rotation {angle_degrees((np.linalg.inv(start) @ answer)[:3, :3]):.1f} degrees, "
        f"volume ratio {np.linalg.det(answer[:3, :3]):.3f}, normalised mutual information "
        f"{before:.3f} -> {after:.3f}."
    )
    return answer


def _answer(network: Network, fixed: Volume, moving: Volume, start: Matrix, said: list[str]) -> Matrix:
    """What the network says of two images brought together by `start`, RAS mm 4x4; maybe not usable."""
    grid = common_grid(fixed, network.shape, network.spacing_mm)
    _say_outside(fixed, np.eye(4), grid, said)
    _say_outside(moving, np.asarray(np.linalg.inv(start), dtype=np.float64), grid, said)
    read = [
        normalise(resample_affine(image, grid, matrix), intensity_window(image))
        for image, matrix in ((moving, start), (fixed, np.eye(4)))
    ]
    with torch.no_grad():
        found = network.module(*read).there.in_voxels(grid.shape, network.module.config.spacing)
    linear = array_from_tensor(found.linear[0]).astype(np.float64)
    shift = array_from_tensor(found.shift[0]).astype(np.float64)
    return start @ world_from_voxels(grid, linear, shift)


def world_from_voxels(grid: Grid, linear: NDArray[np.float64], shift_vox: NDArray[np.float64]) -> Matrix:
    """RAS mm 4x4 of a map of voxels about the middle of a grid: linear (d, d), shift (d,)."""
    dim = grid.dim
    middle = (np.asarray(grid.shape) - 1) / 2
    matrix = np.eye(4)
    matrix[:dim, :dim] = linear
    matrix[:dim, 3] = middle + shift_vox - linear @ middle
    return np.asarray(grid.world_from_voxel @ matrix @ grid.voxel_from_world, dtype=np.float64)


def _say_outside(image: Volume, box_from_image: Matrix, grid: Grid, said: list[str]) -> None:
    """A sentence where much of the object lies beyond the network's box."""
    points = foreground_points_mm(image)
    if points is None:
        return
    index = grid.index_from_world(points @ box_from_image[:3, :3].T + box_from_image[:3, 3])
    inside = ((index > -0.5) & (index < np.asarray(grid.shape) - 0.5)).all(axis=1)
    outside = 100.0 * float(1 - inside.mean())
    if outside > MOST_OUTSIDE_PERCENT:
        box = " x ".join(f"{e:.0f}" for e in reversed(grid.extent_mm))
        said.append(
            f"Affine network: {outside:.0f} % of the object of '{image.name}' lies outside the box of {box} "
            "mm that the network sees."
        )


def _network(settings: Settings, dim: int) -> Network:
    """The network of these settings; raises WeightsError for another one, InputError for other images."""
    known = card(settings.method)
    module, description = network_for(known, settings)
    if not isinstance(module, AffineNet):
        raise WeightsError(f"The weights of '{known.title}' are not those of an affine network.")
    require_dimension(settings, module.config.dim, dim)
    return Network(known, module.cpu(), _shape_of(description, dim), spacing_of(description, dim))


def _shape_of(description: Mapping[str, Any], dim: int) -> tuple[int, ...]:
    """The box in the description of a network's weights, voxels; raises WeightsError where there is none."""
    shape = description["config"]["data"].get("options", {}).get("shape")
    if not (
        isinstance(shape, Sequence)
        and len(shape) == dim
        and all(isinstance(n, int) and not isinstance(n, bool) and n >= 4 for n in shape)
    ):
        raise WeightsError(
            "The weights do not say in which box their network was trained: train it with "
            "data.options.shape set."
        )
    return tuple(shape)
