"""The whole job for a group: K images in, transforms between each of them and a common space out.

Start reading here; `register_group` is one straight line, as `pipeline.register` is for two.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from DiffeoRegLib.catalog import card, check_steps
from DiffeoRegLib.device import DeviceChoice, choose_device, memory_bytes, set_threads
from DiffeoRegLib.errors import InputError, SettingsError
from DiffeoRegLib.flows.integrate import Flow, integrate, needed_taper_mm
from DiffeoRegLib.methods.base import PLAN_PHASE, Needs, Progress, Report
from DiffeoRegLib.methods.discrete import CITATION as SEARCH_CITATION
from DiffeoRegLib.methods.finish import to_patient
from DiffeoRegLib.methods.group_memory import memory_of_group
from DiffeoRegLib.methods.group_search import GroupMotion, search, similarity_of
from DiffeoRegLib.methods.group_start import aligned_to_the_mean
from DiffeoRegLib.methods.group_uncertainty import SAMPLES, uncertainty
from DiffeoRegLib.methods.groupmorph import (
    ALONE,
    group_needs,
    network_deviations,
    register_by_network,
    unseen_masks,
)
from DiffeoRegLib.methods.start import background_of
from DiffeoRegLib.methods.svf import searches
from DiffeoRegLib.methods.trained import refined, refinement
from DiffeoRegLib.networks.weights import check_weights
from DiffeoRegLib.report.group import measure_group
from DiffeoRegLib.report.memory import reset_peak_memory
from DiffeoRegLib.settings import Settings
from DiffeoRegLib.space.grid import Grid, Matrix
from DiffeoRegLib.space.sample import Mode
from DiffeoRegLib.space.transform import AffineTransform, CompositeTransform, Transform
from DiffeoRegLib.volumes.group import (
    Group,
    canonical_order,
    check_group,
    common_field_of_view,
    prepare_group,
    usable_images,
)
from DiffeoRegLib.volumes.resample import warp_volume
from DiffeoRegLib.volumes.volume import Volume

MEMORY_SHARE = 0.8
"""Of the memory that is free, this much may be planned with."""
MODES: dict[str, Mode] = {"linear": "linear", "cubic": "cubic"}
ALIGNMENTS = ("identity", "rigid", "affine")


@dataclass(frozen=True, eq=False)
class GroupResult:
    """What the registration of a group gives; entry k of every list is that of image `kept[k]`.

    transforms, inverses: common -> image points and back, RAS mm.  aligned: every image on the common
    grid `view`.  mean: of the aligned images.  deviations: standard deviation of where a point of the common
    space lies in each image, mm, on a coarser grid; empty where none was asked for.
    fixed: the entry whose space is the common one, None = the middle of the group.  kept: numbers of the
    images used.  motion: the velocities, in the order of the lists.  report: the numbers.
    """

    transforms: tuple[Transform, ...]
    inverses: tuple[Transform, ...]
    aligned: tuple[Volume, ...]
    mean: Volume
    deviations: tuple[Volume, ...]
    view: Grid
    fixed: int | None
    kept: tuple[int, ...]
    motion: GroupMotion
    report: dict[str, Any]

    def between(self, source: int, target: int) -> Transform:
        """Points of one entry's image to those of another, RAS mm: what resamples `target` on `source`."""
        return CompositeTransform((self.inverses[source], self.transforms[target]))


def register_group(
    images: Sequence[Volume],
    settings: Settings | None = None,
    *,
    fixed_index: int | None = None,
    masks: Sequence[Volume | None] | None = None,
    landmarks: Sequence[NDArray[np.float64]] | None = None,
    leave_out: bool = False,
    with_uncertainty: bool = True,
    progress: Report | None = None,
) -> GroupResult:
    """Register K images to one of them (`fixed_index`) or to the middle of all of them (None).

    settings: method `svf`, or one that needs a group; init `auto` takes the images where their headers put
    them; `rigid` and `affine` align them to their mean first.  masks: where each image counts, as labels.
    landmarks: (n, 3) RAS mm of each image, the same points in the same order, to judge by.
    leave_out: an image without use is left out and named.
    progress: called with Progress; raise Cancelled in it to stop.
    The images are worked on in an order of their own: how they are given changes nothing but the order of the
    results.
    Raises InputError (and its kinds) for input that is no group, MemoryLimitError, DeviceError, Cancelled.
    """
    settings = settings or Settings()
    run = _GroupRun(settings, progress)
    check_group(images, fixed_index, masks)
    kept, notes = usable_images(images, leave_out=leave_out)
    run.notes += notes
    chosen = _chosen(images, kept, fixed_index, masks, landmarks)
    order = canonical_order(chosen.images)
    sorted_group = chosen.taken(order)
    view, view_notes = common_field_of_view(sorted_group.images, sorted_group.fixed)
    run.notes += view_notes
    needs = run.needs(view.dim, len(kept), chosen.fixed)
    if needs is not None and any(mask is not None for mask in chosen.masks):
        run.notes.append(unseen_masks(needs.refined))
    matrices = run.align(sorted_group, view)
    group = run.prepare(sorted_group, view, matrices, needs)
    back = [order.index(entry) for entry in range(len(order))]
    motion = run.deform(group, sorted_group.fixed, back, kept)
    with run.phase("integrate", 0.7):
        transforms, inverses = run.integrate(motion, view, matrices)
    with run.phase("uncertainty", 0.78):
        deviations = run.uncertainty(group, motion, sorted_group) if with_uncertainty else []
    del group
    with run.phase("resample", 0.88):
        aligned, mean = run.resample(sorted_group, view, transforms)
    with run.phase("measure", 0.93):
        report = measure_group(
            images=sorted_group.images, transforms=transforms, inverses=inverses,
            deviations=deviations, view=view, fixed=sorted_group.fixed, landmarks=sorted_group.landmarks,
            order=back, mean_velocity=motion.velocities_vox.mean(0),
            settings=settings.with_changes(similarity=similarity_of(settings)),
            device=run.device, seconds=run.seconds, notes=run.notes, citations=run.citations(),
        )  # fmt: skip
    report["kept"] = kept
    report["seconds"] = dict(run.seconds)
    motion = motion.taken(back, chosen.fixed)
    run.tell("done", 1.0, "finished")
    return GroupResult(
        tuple(transforms[k] for k in back), tuple(inverses[k] for k in back),
        tuple(aligned[k] for k in back), mean, tuple(deviations[k] for k in back if deviations),
        view, chosen.fixed, tuple(kept), motion, report,
    )  # fmt: skip


@dataclass(frozen=True, eq=False)
class _Given:
    """What is registered, one entry per image."""

    images: list[Volume]
    fixed: int | None
    masks: list[Volume | None]
    landmarks: list[NDArray[np.float64]] | None

    def taken(self, order: Sequence[int]) -> _Given:
        """The same in another order."""
        return _Given(
            [self.images[k] for k in order],
            None if self.fixed is None else list(order).index(self.fixed),
            [self.masks[k] for k in order],
            None if self.landmarks is None else [self.landmarks[k] for k in order],
        )


def _chosen(
    images: Sequence[Volume],
    kept: Sequence[int],
    fixed_index: int | None,
    masks: Sequence[Volume | None] | None,
    landmarks: Sequence[NDArray[np.float64]] | None,
) -> _Given:
    """Of the usable images; raises InputError where too few are left or the landmarks do not match."""
    if len(kept) < 2:
        raise InputError(f"Of {len(images)} images only {len(kept)} can be used: a group needs two or more.")
    if fixed_index is not None and fixed_index not in kept:
        raise InputError(f"Image {fixed_index} was to stay fixed and cannot be used: choose another one.")
    if landmarks is not None:
        if len(landmarks) != len(images):
            raise InputError(f"{len(images)} images need as many lists of landmarks, not {len(landmarks)}.")
        sizes = [np.shape(points) for points in landmarks]
        if (
            any(size != sizes[0] for size in sizes)
            or len(sizes[0]) != 2
            or sizes[0][1] != 3
            or not sizes[0][0]
        ):
            raise InputError(
                f"The landmarks of a group are the same n points (n, 3) in every image, not {sizes}."
            )
    return _Given(
        [images[k] for k in kept],
        None if fixed_index is None else list(kept).index(fixed_index),
        [None if masks is None else masks[k] for k in kept],
        None if landmarks is None else [np.asarray(landmarks[k], dtype=np.float64) for k in kept],
    )


@dataclass
class _GroupRun:
    """One run's device, clock, notes and progress."""

    settings: Settings
    progress: Report | None
    seconds: dict[str, float] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.method = card(self.settings.method)
        if self.method.name != "svf" and not self.method.needs_group:
            raise SettingsError(
                f"Groups are registered by 'svf', one velocity each, or by 'groupmorph'; "
                f"'{self.settings.method}' is for pairs."
            )
        check_steps(self.method, self.settings.steps)
        check_weights(self.method, self.settings)
        self.network_mm: tuple[float, ...] = ()
        if self.settings.init not in ("auto", *ALIGNMENTS):
            raise SettingsError(
                f"A group starts from auto, {', '.join(ALIGNMENTS)}; not from '{self.settings.init}'."
            )
        similarity_of(self.settings)
        self.device: DeviceChoice = choose_device(self.settings.device)
        if self.settings.threads is not None:
            set_threads(self.settings.threads)
        reset_peak_memory()

    def tell(self, phase: str, fraction: float, message: str) -> None:
        if self.progress is not None:
            self.progress(Progress(phase, fraction, message))

    @contextmanager
    def phase(self, name: str, fraction: float) -> Iterator[None]:
        """Announce a phase and add its seconds to the report."""
        self.tell(name, fraction, PHASES[name])
        started = time.perf_counter()
        yield
        self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - started

    def needs(self, dim: int, count: int, fixed: int | None) -> Needs | None:
        """What a trained network needs, if it is one for this group; None for the search alone."""
        if not self.method.trained:
            return None
        needs = group_needs(self.settings, dim, count, fixed)
        self.network_mm = needs.spacing_mm
        return needs

    def align(self, given: _Given, view: Grid) -> list[Matrix]:
        """Where a point of the common space is read in each image before anything is deformed, RAS mm 4x4."""
        with self.phase("align", 0.0):
            if self.settings.init in ("auto", "identity"):
                self.notes.append(
                    "Initial alignment: none, the images are taken where their headers put them."
                )
                return [np.eye(4) for _ in given.images]
            return aligned_to_the_mean(
                given.images, view, given.fixed, self.settings, self.notes, self._within(0.0, 0.1)
            )

    def prepare(self, given: _Given, view: Grid, matrices: Sequence[Matrix], needs: Needs | None) -> Group:
        """All images on one grid that fits into the memory."""
        with self.phase("prepare", 0.1):
            limit = self.settings.memory_limit_gb
            free = memory_bytes(self.device.device)
            most = int(limit * 1e9) if limit else None if free is None else int(MEMORY_SHARE * free)
            memory_of = memory_of_group(self.settings, len(given.images), view, needs)
            group = prepare_group(
                given.images, view, self.settings, matrices, given.masks, device=self.device.device,
                memory_limit_bytes=most, memory_of=memory_of,
                network_mm=None if needs is None else needs.spacing_mm,
                refined=needs is None or needs.refined,
            )  # fmt: skip
            self.notes += group.notes
            self.tell(PLAN_PHASE, 0.12, group.notes[-1])
        return group

    def deform(
        self, group: Group, fixed: int | None, order: Sequence[int], numbers: Sequence[int]
    ) -> GroupMotion:
        """The velocities; order, numbers: see `register_by_network`."""
        report = self._within(0.12, 0.7)
        with self.phase("optimise", 0.12):
            if self.method.trained:
                motion = register_by_network(group, self.settings, fixed, order, numbers, report)
            else:
                motion = search(group, self.settings, fixed, report)
        self.notes += motion.notes
        return motion.to("cpu")

    def integrate(
        self, motion: GroupMotion, view: Grid, matrices: Sequence[Matrix]
    ) -> tuple[list[Transform], list[Transform]]:
        """The maps of all images and their inverses; all velocities fade over the same distance."""
        velocities, taper_mm = motion.velocities_vox, self.settings.taper_mm
        if taper_mm is None:
            taper_mm = max(needed_taper_mm(one[None], motion.grid, view) for one in velocities)
        ways: list[tuple[Transform, Transform]] = []
        for index, matrix in enumerate(matrices):
            start = AffineTransform(matrix)
            if index == motion.fixed:
                ways.append((start, start.inverse()))
                continue
            flow: Flow = integrate(
                velocities[index : index + 1], motion.grid, view, self.settings.steps, taper_mm
            )
            self.notes += [f"Of one image: {note}" for note in flow.notes]
            ways.append(to_patient(flow, start))
        return [way[0] for way in ways], [way[1] for way in ways]

    def uncertainty(self, group: Group, motion: GroupMotion, given: _Given) -> list[Volume]:
        """Standard deviations per image, mm."""
        report, group = self._within(0.78, 0.88), group.to("cpu")
        if motion.variances_vox is None:
            plan = self.settings
            if self.method.trained:
                plan = refinement(plan, self.network_mm, group.grid)
            found = uncertainty(group, motion, plan, report)
            deviations, grid = found.deviation_mm, found.grid
        else:
            deviations, grid = network_deviations(group, motion, self.settings, report), motion.grid
            self.notes.append(ALONE.format(SAMPLES))
        return [
            Volume(deviation, grid, f"{image.name} standard deviation mm")
            for deviation, image in zip(deviations, given.images, strict=True)
        ]

    def resample(
        self, given: _Given, view: Grid, transforms: Sequence[Transform]
    ) -> tuple[list[Volume], Volume]:
        """All images on the common grid, and their mean; the fixed one is what it was."""
        aligned = list[Volume]()
        total = torch.zeros(view.shape)
        for index, (image, transform) in enumerate(zip(given.images, transforms, strict=True)):
            if index == given.fixed:
                aligned.append(image)
            else:
                fill, mode = background_of(image), MODES[self.settings.interpolation]
                aligned.append(warp_volume(image, transform, view, mode=mode, fill=fill))
            total += torch.nan_to_num(aligned[-1].data.float(), nan=background_of(image))
        return aligned, Volume(total / len(aligned), view, "mean")

    def _within(self, start: float, stop: float) -> Report:
        """A progress receiver for a part of the run."""

        def report(step: Progress) -> None:
            self.tell(step.phase, start + (stop - start) * step.fraction, step.message)

        return report

    def citations(self) -> list[str]:
        """Of what really ran."""
        found = [card("affine").citation] if self.settings.init in ("rigid", "affine") else []
        if self.method.trained:
            found.append(self.method.citation)
            return [*found, card("svf").citation] if refined(self.settings) else found
        found += [card("svf").citation, card("groupmorph").citation]
        return [*found, SEARCH_CITATION] if searches(self.settings) else found


PHASES = {
    "align": "initial alignment",
    "prepare": "bringing all images to one grid",
    "optimise": "optimising the motion of all images",
    "integrate": "integrating the flows and their inverses",
    "uncertainty": "sampling how sure the motion is",
    "resample": "resampling all images",
    "measure": "measuring the result",
}
