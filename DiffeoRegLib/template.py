"""A template of K images: the middle of the group, sharpened, and found again from every image.

Start reading here; `build_template` is one straight line over `register_group` and `register`.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from DiffeoRegLib import pipeline
from DiffeoRegLib.catalog import card
from DiffeoRegLib.errors import InputError, SettingsError
from DiffeoRegLib.groupwise import register_group
from DiffeoRegLib.methods.base import Progress, Report
from DiffeoRegLib.report.template import Look
from DiffeoRegLib.settings import Settings
from DiffeoRegLib.space.grid import Grid, Matrix
from DiffeoRegLib.space.sample import array_from_tensor, tensor_from_array
from DiffeoRegLib.space.transform import (
    AffineTransform,
    CompositeTransform,
    DisplacementTransform,
    InverseTransform,
    Transform,
    displacement_on,
)
from DiffeoRegLib.volumes.group import canonical_order
from DiffeoRegLib.volumes.volume import Volume

ROUNDS, SHARPENING = 3, 1.0
GROUP_ENDS = 0.3
"""Share of the whole progress."""
CITATIONS = (
    "Joshi S, Davis B, Jomier M, Gerig G. Unbiased diffeomorphic atlas construction for computational "
    "anatomy. NeuroImage 23 (2004).",
    "Avants BB et al. The optimal template effect in hippocampus studies of diseased populations. "
    "NeuroImage 49 (2010).",
)


@dataclass(frozen=True, eq=False)
class TemplateResult:
    """What the images have in common; entry k of every list is that of image `kept[k]`.

    template: sharpened mean, intensities 0..1.  mean: of the aligned images, the same.  before: of the images
    where only their first alignment puts them.  deviation: standard deviation of the aligned intensities at
    every voxel.  labels: what most label maps say of it, None without any.
    transforms, inverses: template -> image points and back, RAS mm.  report: how much the images differ at
    every stage, how far the mean of all maps is from the identity, seconds.
    """

    template: Volume
    mean: Volume
    before: Volume
    deviation: Volume
    labels: Volume | None
    transforms: tuple[Transform, ...]
    inverses: tuple[Transform, ...]
    kept: tuple[int, ...]
    report: dict[str, Any]


@dataclass(frozen=True, eq=False)
class _Ways:
    """Maps of all images from one space, and the linear part each of them starts from, RAS mm 4x4."""

    there: list[Transform]
    back: list[Transform]
    starts: list[Matrix]


def build_template(
    images: Sequence[Volume],
    settings: Settings | None = None,
    *,
    labels: Sequence[Volume] | None = None,
    rounds: int = ROUNDS,
    sharpening: float = SHARPENING,
    leave_out: bool = False,
    progress: Report | None = None,
) -> TemplateResult:
    """An unbiased template: no image is preferred, and the mean of all maps from it is the identity.

    The images are registered to their middle as a group, by `svf` or a network for groups; then, in every
    round, each of them to the sharpened mean by `svf`, whose place is set to the mean of where they all lie.
    sharpening: how much of the difference to a mean smoothed by one voxel is added; 0 = none.
    leave_out: see `register_group`.  labels: a map of each image; they judge (their overlap is reported for
    every stage) and give the template labels of its own, but they do not pull.
    How the images are ordered changes nothing but the order of the results.
    Raises InputError (and its kinds) for input that is no group, SettingsError, Cancelled.
    Source: Joshi et al. 2004 (the mean of deformations is the identity); Avants et al. 2010 (rounds of mean
    shape and sharpening).
    """
    settings = settings or Settings()
    if rounds < 0 or not 0 <= sharpening < 10:
        raise SettingsError("A template needs 0 rounds or more, and a sharpening from 0 to 10.")
    _check_labels(images, labels)
    started = time.perf_counter()
    group = register_group(
        images, settings, leave_out=leave_out, with_uncertainty=False,
        progress=_part(progress, 0, GROUP_ENDS, "all together"),
    )  # fmt: skip
    order = canonical_order([images[number] for number in group.kept])
    used = [images[group.kept[entry]] for entry in order]
    maps = None if labels is None else [labels[group.kept[entry]] for entry in order]
    linear = [_linear_part(group.transforms[entry]) for entry in order]
    ways = _centred(_Ways(
        [group.transforms[entry] for entry in order], [group.inverses[entry] for entry in order], linear
    ), group.view)  # fmt: skip
    history, before = _first_looks(used, maps, linear, group.view)
    look = Look.of(used, ways.there, group.view, maps)
    template, history = look.sharpened(sharpening), [*history, look.facts("as a group")]
    pairwise = _of_pairs(settings)
    for number in range(rounds):
        width = (1 - GROUP_ENDS) / rounds
        start = GROUP_ENDS + number * width
        within = _part(progress, start, start + width, f"round {number + 1} of {rounds}")
        found = _registered(used, template, ways, pairwise, within)
        ways = _centred(found, group.view)
        earlier, look = look, Look.of(used, ways.there, group.view, maps)
        template = look.sharpened(sharpening)
        history.append(look.facts(f"round {number + 1}", earlier, sharpening))
    inverse_order = [order.index(entry) for entry in range(len(order))]
    report = {
        "images": [images[number].name for number in group.kept],
        "stages": history,
        "off_centre_mm": _off_centre_mm(ways.there, group.view),
        "seconds": time.perf_counter() - started,
        "notes": group.report["notes"],
        "citations": [*CITATIONS, *dict.fromkeys(card(one.method).citation for one in (settings, pairwise))],
    }
    if progress is not None:
        progress(Progress("done", 1.0, "finished"))
    return TemplateResult(
        template, look.mean, before.mean, look.deviation, look.labels,
        tuple(ways.there[entry] for entry in inverse_order),
        tuple(ways.back[entry] for entry in inverse_order), group.kept, report,
    )  # fmt: skip


def _of_pairs(settings: Settings) -> Settings:
    """Settings of the rounds: a network for groups knows no pairs, which `svf` does in its place."""
    if not card(settings.method).needs_group:
        return settings.with_changes(init="auto")
    return settings.with_changes(init="auto", method="svf", weights=None, extras={})


def _check_labels(images: Sequence[Volume], labels: Sequence[Volume] | None) -> None:
    """Raises InputError unless there is a label map of its kind for every image."""
    if labels is None:
        return
    if len(labels) != len(images):
        raise InputError(f"{len(images)} images need as many label maps, not {len(labels)}.")
    for image, one in zip(images, labels, strict=True):
        if one.grid.dim != image.grid.dim:
            raise InputError(f"The labels '{one.name}' are {one.grid.dim}D, '{image.name}' is not.")


def _first_looks(
    images: Sequence[Volume], labels: Sequence[Volume] | None, linear: Sequence[Matrix], view: Grid
) -> tuple[list[dict[str, Any]], Look]:
    """The facts of the images as given and, where they were aligned first, so aligned; the last look."""
    look = Look.of(images, [AffineTransform(np.eye(4)) for _ in images], view, labels)
    facts = [look.facts("as given")]
    if any(not np.array_equal(matrix, np.eye(4)) for matrix in linear):
        look = Look.of(images, [AffineTransform(matrix) for matrix in linear], view, labels)
        facts.append(look.facts("aligned"))
    return facts, look


def _registered(
    images: Sequence[Volume], template: Volume, ways: _Ways, settings: Settings, progress: Report | None
) -> _Ways:
    """Every image to the template, from where it lies by its linear part."""
    found = _Ways([], [], [])
    for index, (image, start) in enumerate(zip(images, ways.starts, strict=True)):
        within = _part(progress, index / len(images), (index + 1) / len(images), f"'{image.name}'")
        result = pipeline.register(template, image, settings, initial=AffineTransform(start), progress=within)
        found.there.append(result.transform)
        found.back.append(result.inverse)
        found.starts.append(start)
    return found


def _centred(ways: _Ways, view: Grid) -> _Ways:
    """The same maps from the space in which their mean is the identity.

    The mean map is an affine one after a displacement that fades at the border: T(x) = A (x + u(x)), with A
    the mean of the linear parts; every map is taken after the inverse of T.  Maps fade in a ring around the
    template: cut at its border, their mean would not lead back.
    """
    view = _reached(ways.there, view)
    linear: Matrix = np.mean(np.stack(ways.starts), axis=0)
    mean_u = torch.stack([displacement_on(way, view) for way in ways.there]).mean(0)
    points = view.world_from_index(np.indices(view.shape).reshape(view.dim, -1).T.astype(np.float64))
    moved = points + _rows(mean_u)
    turned = AffineTransform(linear)
    turn = turned.inverse()
    inner = turn.map_points(moved) - points
    forward = DisplacementTransform(view, _field(inner, mean_u))
    backward = DisplacementTransform(view, displacement_on(InverseTransform(forward), view))
    return _Ways(
        [CompositeTransform((turn, backward, way)) for way in ways.there],
        [CompositeTransform((way, forward, turned)) for way in ways.back],
        [start @ turn.moving_from_fixed for start in ways.starts],
    )


def _reached(ways: Sequence[Transform], view: Grid) -> Grid:
    """A grid that covers the displacements of all maps, too."""
    parts = [part for way in ways for part in (way.parts if isinstance(way, CompositeTransform) else [way])]
    corners = [part.grid.corners_mm() for part in parts if isinstance(part, DisplacementTransform)]
    index = view.index_from_world(np.concatenate([view.corners_mm(), *corners]))
    before = np.ceil((-index).max(0)).clip(min=0)
    after = np.ceil((index - np.array(view.shape) + 1).max(0)).clip(min=0)
    return view.padded([int(n) for n in before], [int(n) for n in after])


def _off_centre_mm(ways: Sequence[Transform], view: Grid) -> float:
    """Greatest distance between a point and the mean of where it lies in the images, mm."""
    mean_u = torch.stack([displacement_on(way, view) for way in ways]).mean(0)
    return float(mean_u.square().sum(1).sqrt().max())


def _linear_part(transform: Transform) -> Matrix:
    """Of a map that ends with an affine one."""
    last = transform.parts[-1] if isinstance(transform, CompositeTransform) else transform
    if not isinstance(last, AffineTransform):
        raise TypeError(f"A map of a group ends with an affine one, not with {type(last).__name__}.")
    return last.moving_from_fixed


def _rows(u_mm: Tensor) -> Matrix:
    return np.asarray(array_from_tensor(u_mm[0].reshape(3, -1).T), dtype=np.float64)


def _field(rows: Matrix, like: Tensor) -> Tensor:
    return tensor_from_array(rows.T, torch.float32).reshape(like.shape)


def _part(progress: Report | None, start: float, stop: float, what: str) -> Report | None:
    """A progress receiver for a part of the whole; what: the part, said before every message."""
    if progress is None:
        return None

    def report(step: Progress) -> None:
        if step.phase == "done":  # of the part only
            return
        fraction = start + (stop - start) * step.fraction
        progress(replace(step, fraction=fraction, message=f"{what}: {step.message}"))

    return report
