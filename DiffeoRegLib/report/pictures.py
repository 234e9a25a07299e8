"""The pictures of a report: what agrees, what does not, and how space was bent."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray

from DiffeoRegLib.report.planes import Plane, planes
from DiffeoRegLib.report.png import grey, png_bytes
from DiffeoRegLib.report.scores import Deformation, deformation_of, grid_points
from DiffeoRegLib.space.grid import Grid, Matrix
from DiffeoRegLib.space.jacobian import jacobian_determinant, minimum_corner_determinant
from DiffeoRegLib.space.sample import Mode, array_from_tensor, sample, tensor_from_array
from DiffeoRegLib.space.transform import AffineTransform, DisplacementTransform, Transform
from DiffeoRegLib.volumes.volume import Volume

Picture = NDArray[np.uint8]
Values = NDArray[np.float64]

FIXED_COLOUR, MOVING_COLOUR = (255, 196, 0), (0, 200, 255)
FOLD_COLOUR = (255, 0, 255)
GRID_COLOUR = (255, 205, 120)
SHRINK, NEUTRAL, GROW = np.array([33, 102, 214]), np.array([242, 242, 242]), np.array([205, 43, 43])
DARKER, BRIGHTER = np.array([90, 160, 255]), np.array([255, 112, 56])
OUTSIDE = 45  # grey where there is nothing to show
DIFFERENCE_REACH = 0.4  # of the window between black and white
SCALES = (1.1, 1.25, 1.5, 2.0, 3.0, 5.0)  # ends of the volume-change colour scale
CHECKS = 9
GRID_LINES = 22


@dataclass(frozen=True, eq=False)
class Scene:
    """What there is to show."""

    fixed: Volume
    moving: Volume
    transform: Transform
    initial: Transform | None = None
    fixed_labels: Volume | None = None
    moving_labels: Volume | None = None


@dataclass(frozen=True, eq=False)
class Gallery:
    """PNG files per kind of picture and plane.

    kinds: fixed, before, after, checkerboard, difference_before, difference_after; grid, volume_change
    where there is a deformation; labels_before, labels_after where there are labels.
    volume_scale: the colour scale ends at 1/scale and scale.
    """

    planes: list[Plane]
    files: dict[str, list[bytes]] = field(default_factory=dict)
    volume_scale: float = 2.0


def draw(scene: Scene) -> Gallery:
    """All pictures of a registration, drawn on planes through the middle of what is shown."""
    cuts = planes(scene.fixed.grid, _centre_mm(scene))
    gallery = Gallery(cuts, volume_scale=2.0)
    start = scene.initial if scene.initial is not None else AffineTransform(np.eye(4))
    stages = {"before": start, "after": scene.transform}
    fixed_window, moving_window = _window(scene.fixed), _window(scene.moving)
    for plane in cuts:
        fixed = _scaled(read(scene.fixed, plane.points_mm), fixed_window)
        moved = {
            name: _scaled(read(scene.moving, _mapped(stage, plane)), moving_window)
            for name, stage in stages.items()
        }
        _add(gallery, "fixed", grey(fixed))
        for name, values in moved.items():
            _add(gallery, name, grey(values))
        _add(gallery, "checkerboard", _checkerboard(fixed, moved["after"], plane))
        match = _match(fixed, moved["after"])
        for name, values in moved.items():
            _add(gallery, f"difference_{name}", _difference(fixed, match(values)))
        if scene.fixed_labels is not None and scene.moving_labels is not None:
            for name, stage in stages.items():
                picture = _contours(fixed, scene.fixed_labels, scene.moving_labels, plane, stage)
                _add(gallery, f"labels_{name}", picture)
    return _with_deformation(gallery, scene, moving_window)


def read(volume: Volume, points_mm: Matrix, mode: Mode = "linear") -> Values:
    """Values (rows, columns) of a volume at RAS mm points (rows, columns, 3); NaN outside the volume."""
    position = volume.grid.index_from_world(points_mm)
    inside = ((position >= -0.5) & (position <= np.array(volume.grid.shape) - 0.5)).all(axis=-1)
    flat = tensor_from_array(position.reshape(-1, volume.grid.dim).T, torch.float32)[None]
    values = array_from_tensor(sample(volume.batch.float().cpu(), flat, mode=mode))[0, 0]
    return np.where(inside, values.reshape(inside.shape).astype(np.float64), np.nan)


def _add(gallery: Gallery, kind: str, picture: Picture) -> None:
    gallery.files.setdefault(kind, []).append(png_bytes(picture))


def _mapped(transform: Transform, plane: Plane) -> Matrix:
    return transform.map_points(plane.points_mm.reshape(-1, 3)).reshape(plane.points_mm.shape)


def _centre_mm(scene: Scene) -> Matrix:
    """Centre of the labels, or of the bright part of the fixed image; a voxel centre: no slice is mixed."""
    grid = scene.fixed.grid
    points = grid_points(grid)
    if scene.fixed_labels is not None:
        weight = np.nan_to_num(read(scene.fixed_labels, points[None], "nearest")[0]) != 0
    else:
        low, high = _window(scene.fixed)
        weight = np.clip((np.nan_to_num(read(scene.fixed, points[None])[0]) - low) / (high - low), 0, 1)
    if weight.sum() == 0:
        return grid.center_mm
    centre = np.average(points, axis=0, weights=weight)
    return grid.world_from_index(np.round(grid.index_from_world(centre)))


def _window(volume: Volume) -> tuple[float, float]:
    """Black and white: the outer half percent of the values on both sides is cut."""
    values = volume.data.flatten()
    values = values[:: max(1, len(values) // 200_000)].float()
    values = values[torch.isfinite(values)]
    if len(values) == 0:
        return 0.0, 1.0
    low, high = torch.quantile(values, torch.tensor([0.005, 0.995])).tolist()
    if not high > low:  # a small bright thing on an empty background
        low, high = float(values.min()), float(values.max())
    return low, high if high > low else low + 1.0


def _scaled(values: Values, window: tuple[float, float]) -> Values:
    """0..1 within the window, NaN kept."""
    return np.asarray(np.clip((values - window[0]) / (window[1] - window[0]), 0, 1))


def _match(fixed: Values, moved: Values) -> Callable[[Values], Values]:
    """Straight line that brings moved intensities nearest to the fixed ones: differences then mean motion."""
    both = np.isfinite(fixed) & np.isfinite(moved)
    x, y = moved[both], fixed[both]
    if len(x) < 10 or x.std() < 1e-6:
        return lambda values: values
    slope = float(((x - x.mean()) * (y - y.mean())).mean() / x.var())
    shift = float(y.mean() - slope * x.mean())
    return lambda values: slope * values + shift


def _diverging(values: Values) -> Picture:
    """-1 blue, 0 light grey, 1 red."""
    amount = np.clip(np.nan_to_num(values), -1, 1)[..., None]
    side = np.where(amount < 0, SHRINK, GROW)
    colour = np.round(NEUTRAL + np.abs(amount) * (side - NEUTRAL))
    return np.asarray(colour, dtype=np.uint8)


def _difference(fixed: Values, moved: Values) -> Picture:
    """Black where equal; NaN, outside one of the images, is dark grey."""
    amount = np.clip((moved - fixed) / DIFFERENCE_REACH, -1, 1)[..., None]
    picture = np.round(np.abs(np.nan_to_num(amount)) * np.where(amount < 0, DARKER, BRIGHTER)).astype(
        np.uint8
    )
    picture[np.isnan(amount[..., 0])] = OUTSIDE
    return np.asarray(picture)


def _checkerboard(fixed: Values, moved: Values, plane: Plane) -> Picture:
    """Squares of the fixed image and, a little bluer, of the registered one."""
    rows, columns = np.indices(fixed.shape)
    size = max(fixed.shape) / CHECKS
    first = (rows // size + columns // size) % 2 == 0
    picture = np.repeat(grey(np.where(first, fixed, moved))[..., None], 3, axis=2)
    tint = np.where(first[..., None], 1.0, np.array([0.86, 0.95, 1.0]))
    return np.asarray(np.round(picture * tint), dtype=np.uint8)


def _contours(
    fixed: Values, fixed_labels: Volume, moving_labels: Volume, plane: Plane, stage: Transform
) -> Picture:
    """Outlines of both label maps on the fixed image."""
    picture = np.repeat(grey(0.85 * fixed)[..., None], 3, axis=2)
    for labels, points, colour in (
        (fixed_labels, plane.points_mm, FIXED_COLOUR),
        (moving_labels, _mapped(stage, plane), MOVING_COLOUR),
    ):
        picture[outline(np.nan_to_num(read(labels, points, "nearest")))] = colour
    return picture


def outline(labels: Values) -> NDArray[np.bool_]:
    """Labelled pixels with a neighbour of another value."""
    edge = np.zeros(labels.shape, dtype=bool)
    down, right = labels[1:] != labels[:-1], labels[:, 1:] != labels[:, :-1]
    edge[1:] |= down
    edge[:-1] |= down
    edge[:, 1:] |= right
    edge[:, :-1] |= right
    return np.asarray(edge & (labels != 0))


def _with_deformation(gallery: Gallery, scene: Scene, moving_window: tuple[float, float]) -> Gallery:
    """The deformed grid and the change of volume, when there is a deformation."""
    deformation = deformation_of(scene.transform, scene.fixed.grid)
    if deformation is None:
        return gallery
    grid = deformation.grid
    determinant = jacobian_determinant(deformation.u_vox)[0]
    change = Volume(determinant.clamp(min=1e-6).log(), grid, "log-Jacobian")
    folded = Volume(
        (~(minimum_corner_determinant(deformation.u_vox)[0, 0] > 0)).float(), _cell_grid(grid), "folds"
    )
    maps = [read(change, plane.points_mm) for plane in gallery.planes]
    scale = _scale(maps)
    for plane, log_change in zip(gallery.planes, maps, strict=True):
        background = _scaled(read(scene.moving, _mapped(scene.transform, plane)), moving_window)
        _add(gallery, "grid", _grid_picture(background, deformation, plane))
        picture = _diverging(log_change / np.log(scale))
        picture[np.isnan(log_change)] = OUTSIDE
        picture[np.nan_to_num(read(folded, plane.points_mm, "nearest")) > 0] = FOLD_COLOUR
        _add(gallery, "volume_change", picture)
    return Gallery(gallery.planes, gallery.files, scale)


def _cell_grid(grid: Grid) -> Grid:
    """The grid of cell centres, half a voxel in."""
    half = np.eye(4)
    half[: grid.dim, 3] = 0.5
    return Grid(tuple(n - 1 for n in grid.shape), grid.world_from_voxel @ half)


def _scale(maps: list[Values]) -> float:
    """The smallest scale that shows 99 % of the values without cutting them."""
    values = np.concatenate([np.abs(m[np.isfinite(m)]) for m in maps])
    reach = float(np.exp(np.percentile(values, 99))) if len(values) else 1.0
    return next((scale for scale in SCALES if scale >= reach), SCALES[-1])


def _grid_picture(background: Values, deformation: Deformation, plane: Plane) -> Picture:
    """A straight grid laid over the moving image, bent as the image is."""
    field = DisplacementTransform(deformation.grid, deformation.u_mm)
    moved = _mapped(field, plane)
    base = np.repeat(grey(0.55 * background)[..., None], 3, axis=2).astype(np.float64)
    step = max(background.shape) * plane.pixel_mm / GRID_LINES
    strength = np.zeros(background.shape)
    for direction in (plane.down, plane.right):
        strength = np.maximum(strength, _lines((moved - plane.points_mm[0, 0]) @ direction / step))
    mixed = base + strength[..., None] * (np.array(GRID_COLOUR) - base)
    return np.asarray(np.round(mixed), dtype=np.uint8)


def _lines(position: Values) -> Values:
    """Lines one pixel wide, smooth at their edges, where a position is a whole number."""
    if min(position.shape) < 2:
        return np.zeros(position.shape)
    slope = np.hypot(*np.gradient(position))
    distance_pixels = np.abs(position - np.round(position)) / np.maximum(slope, 1e-6)
    return np.asarray(np.clip(1.2 - distance_pixels, 0, 1))
