"""The whole job: two images in, an invertible transform in patient space and the proof of its quality out.

Start reading here; `register` is one straight line.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch

from DiffeoRegLib.catalog import card, check_pair_method, check_steps
from DiffeoRegLib.device import DeviceChoice, choose_device, memory_bytes, set_threads
from DiffeoRegLib.methods import method_named
from DiffeoRegLib.methods.appearance import Appearance, appearance
from DiffeoRegLib.methods.base import PLAN_PHASE, Motion, Needs, NetworkMethod, Progress, Report
from DiffeoRegLib.methods.finish import finish, source_on, to_patient
from DiffeoRegLib.methods.memory import IMAGE_BYTES, RunPlan, run_plan, whole_run
from DiffeoRegLib.methods.metamorphosis import checked_pathology
from DiffeoRegLib.methods.rdmm import checked_regions
from DiffeoRegLib.methods.regulariser import sigma_volumes
from DiffeoRegLib.methods.start import (
    Beside,
    Start,
    background_of,
    carried_along,
    find_start,
    linear_matrix,
)
from DiffeoRegLib.methods.trained import require_extent
from DiffeoRegLib.methods.unused import unused_settings
from DiffeoRegLib.networks.weights import check_weights
from DiffeoRegLib.report.measure import measure
from DiffeoRegLib.settings import Settings
from DiffeoRegLib.space.grid import Grid
from DiffeoRegLib.space.sample import Mode
from DiffeoRegLib.space.transform import Transform
from DiffeoRegLib.volumes.checks import check_pair
from DiffeoRegLib.volumes.halfway import fixed_space, prepare_halfway
from DiffeoRegLib.volumes.pair import Correspondence, Masks, Pair
from DiffeoRegLib.volumes.pathology import Pathology
from DiffeoRegLib.volumes.prepare import prepare
from DiffeoRegLib.volumes.regions import Regions
from DiffeoRegLib.volumes.resample import warp_labels, warp_volume
from DiffeoRegLib.volumes.volume import Volume
from DiffeoRegLib.volumes.working_grid import COARSENED

__all__ = [
    "MODES",
    "PHASES",
    "PLAN_PHASE",
    "Result",
    "background_of",
    "carried_along",
    "linear_matrix",
    "moving_labels_of",
    "register",
    "to_patient",
]

MEMORY_SHARE = 0.8
"""Of the memory that is free, this much may be planned with."""
Work = TypeVar("Work")
MODES: dict[str, Mode] = {"linear": "linear", "cubic": "cubic"}


@dataclass(frozen=True, eq=False)
class Result:
    """What a registration gives.

    transform, inverse: fixed -> moving points and back, RAS mm. moved: the moving image on the fixed grid.
    moved_labels: guidance or evaluation labels of the moving image on the fixed grid, or None.
    initial: the alignment the deformation started from. motion: the velocities, None for a linear method;
    geodesics are kept in it, on the CPU.  working: the grid on which a deformation was sought.
    sigma: width of the regulariser, mm, of a method with geodesics: where the moving image is, and, at the
    end, where the fixed one is.  appearance: what a pathology changes besides the motion, of a method that
    finds it.  report: the numbers, see report.measure.
    """

    transform: Transform
    inverse: Transform
    moved: Volume
    moved_labels: Volume | None
    initial: Transform
    motion: Motion | None
    report: dict[str, Any]
    sigma: tuple[Volume, Volume] | None = None
    working: Grid | None = None
    appearance: Appearance | None = None


def register(
    fixed: Volume,
    moving: Volume,
    settings: Settings | None = None,
    *,
    initial: Transform | None = None,
    masks: Masks | None = None,
    guidance: Correspondence | None = None,
    evaluation: Correspondence | None = None,
    regions: Regions | None = None,
    pathology: Pathology | None = None,
    progress: Report | None = None,
) -> Result:
    """Register `moving` to `fixed`.

    initial: where to start (any transform, fixed -> moving points); settings.init says what is done with it.
    masks: where each image counts.  guidance: correspondences that pull; evaluation: those that judge.
    regions: how stiff which part of the moving image is, for the methods that need it.
    pathology: what one image shows and the other has nothing for, for the methods that need it.
    progress: called with Progress; raise Cancelled in it to stop.
    Raises InputError (and its kinds) for input that cannot be registered, MemoryLimitError, DeviceError,
    Cancelled.
    """
    settings = settings or Settings()
    method = card(settings.method)
    check_pair_method(method)
    check_steps(method, settings.steps)
    check_weights(method, settings)
    run = _Run(settings, progress)
    run.notes += check_pair(fixed, moving, masks, guidance, evaluation)
    run.notes += checked_regions(method, regions, moving, settings)
    run.notes += checked_pathology(method, pathology, fixed, moving, settings)
    run.notes += unused_settings(method, settings)
    needs = run.needs(fixed, moving)
    start = run.align(fixed, moving, masks, initial)
    flow, motion, working, sigma, source, plan = None, None, None, None, None, None
    if method.deformable:
        others = given_beside(masks, guidance, evaluation, regions, pathology)
        held = voxels_of(fixed, moving, start.moving, *others)
        pair = run.prepare(fixed, Beside(masks, guidance, regions, pathology), start, needs, held)
        plan = run.plan(fixed.grid, pair, held)
        motion, working = run.deform(pair), pair.grid
        with run.phase("integrate", 0.85):
            flow, motion = finish(motion, working, fixed.grid, settings)
            run.notes += flow.notes
            if motion.geodesics:
                sigma = sigma_volumes(motion.geodesics, start.transform, fixed.grid, moving.grid)
            source = source_on(fixed.grid, motion, pair)
    transform, inverse = to_patient(flow, start.transform, None if start.carried else start.halves)
    with run.phase("resample", 0.9):
        mode, fill = MODES[settings.interpolation], background_of(moving)
        moved = warp_volume(moving, transform, fixed.grid, mode=mode, fill=fill)
        labels = moving_labels_of(evaluation, guidance)
        moved_labels = None if labels is None else warp_labels(labels, transform, fixed.grid)
        look = None
        if pathology is not None:
            look = appearance(fixed, moved, transform, pathology, source=source)
    with run.phase("measure", 0.93):
        report = measure(
            fixed=fixed, moving=moving, transform=transform, inverse=inverse, settings=settings,
            initial=start.transform, masks=masks, guidance=guidance, evaluation=evaluation, regions=regions,
            sigma=sigma, pathology=pathology, change=None if look is None else look.change,
            device=run.device, seconds=run.seconds, notes=run.notes, citations=run.citations(),
        )  # fmt: skip
    report["seconds"] = dict(run.seconds)
    report["planned"] = None if plan is None else plan.as_dict()
    report["steps"] = None if flow is None else flow.steps or None
    run.tell("done", 1.0, "finished")
    return Result(
        transform, inverse, moved, moved_labels, start.transform, motion, report, sigma, working, look
    )


@dataclass
class _Run:
    """One run's device, clock, notes and progress."""

    settings: Settings
    progress: Report | None
    seconds: dict[str, float] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    sources: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.device: DeviceChoice = choose_device(self.settings.device)
        if self.settings.threads is not None:
            set_threads(self.settings.threads)

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

    def needs(self, fixed: Volume, moving: Volume) -> Needs | None:
        """What a method with a trained network needs, if these images have it; None for other methods."""
        known = card(self.settings.method)
        if not (known.trained and known.deformable):
            return None
        method = method_named(self.settings.method)
        assert isinstance(method, NetworkMethod)
        needs = method.needs(self.settings, fixed.grid.dim)
        require_extent(needs, fixed, moving)
        return needs

    def align(self, fixed: Volume, moving: Volume, masks: Masks | None, initial: Transform | None) -> Start:
        """The initial alignment asked for."""
        halfway = card(self.settings.method).halfway
        with self.phase("align", 0.0):
            start = find_start(fixed, moving, masks, initial, self.settings, self.notes, halfway=halfway)
            self.sources += start.sources
        return start

    def prepare(
        self, fixed: Volume, beside: Beside, start: Start, needs: Needs | None, held_voxels: int
    ) -> Pair:
        """Both images on one working grid that fits into the memory; held_voxels: of all that was given."""
        beside = beside.carried(start, fixed.grid)
        with self.phase("prepare", 0.1):
            pair = self._or_on_cpu(lambda: self._prepare(fixed, beside, start, needs, held_voxels))
            self.notes += pair.notes
        return pair

    def _prepare(
        self, fixed: Volume, beside: Beside, start: Start, needs: Needs | None, held_voxels: int
    ) -> Pair:
        device, asked = self.device.device, self.settings.memory_limit_gb
        free = memory_bytes(device)
        limit = None if free is None else int(MEMORY_SHARE * free)  # the images lie in memory already
        if asked is not None:
            limit = max(int(asked * 1e9) - IMAGE_BYTES * held_voxels, 0)
        if needs is None:
            return prepare(
                fixed, start.moving, beside.masks, beside.guidance, self.settings, start.moving_from_fixed,
                regions=beside.regions, pathology=beside.pathology, device=device, memory_limit_bytes=limit,
                memory_of=whole_run(self.settings, fixed.grid), check=start.carried,
            )  # fmt: skip
        if start.carried:
            self.notes += check_pair(fixed, start.moving, beside.masks, beside.guidance)
        halves = start.halves or fixed_space(start.moving_from_fixed)
        return prepare_halfway(
            fixed, start.moving, beside.masks, beside.guidance, self.settings, halves,
            network_mm=needs.spacing_mm, refined=needs.refined, network_bytes=needs.memory_bytes,
            pathology=beside.pathology, device=device, memory_limit_bytes=limit,
        )  # fmt: skip

    def plan(self, fixed: Grid, pair: Pair, held_voxels: int) -> RunPlan:
        """Says what the run will take, before it is taken."""
        plan = run_plan(self.settings, fixed, held_voxels, pair.grid, pair.memory_bytes)
        coarser = [note for note in pair.notes if note.startswith(COARSENED)]
        self.tell(PLAN_PHASE, 0.12, " ".join([*coarser, plan.sentence]))
        return plan

    def deform(self, pair: Pair) -> Motion:
        """A first guess and its refinement."""
        return self._or_on_cpu(lambda: self._deform(pair.to(self.device.device)))

    def _or_on_cpu(self, work: Callable[[], Work]) -> Work:
        """The result of some work; out of GPU memory it is done again on the CPU, and the report says so."""
        try:
            return work()
        except torch.OutOfMemoryError:
            name = self.device.name
            torch.cuda.empty_cache()
            self.device = choose_device("cpu")
            self.notes.append(f"The memory of {name} was not enough; the run was done on the CPU.")
            return work()

    def _deform(self, pair: Pair) -> Motion:
        method = method_named(self.settings.method)
        with self.phase("predict", 0.12):
            motion = method.predict(pair, self.settings, self._within(0.12, 0.25))
            self.notes += motion.notes
        with self.phase("refine", 0.25):
            found = method.refine(motion, pair, self.settings, self._within(0.25, 0.85))
        self.notes += [note for note in found.notes if note not in motion.notes]
        return found

    def _within(self, start: float, stop: float) -> Report:
        """A progress receiver for a part of the run."""

        def report(step: Progress) -> None:
            self.tell(step.phase, start + (stop - start) * step.fraction, step.message)

        return report

    def citations(self) -> list[str]:
        """Of what really ran."""
        chosen = card(self.settings.method)
        extra = method_named(chosen.name).sources(self.settings) if chosen.deformable else []
        return [*self.sources, chosen.citation, *extra]


PHASES = {
    "align": "initial alignment",
    "prepare": "bringing both images to one grid",
    "predict": "first guess of the motion",
    "refine": "refining the motion",
    "integrate": "integrating the flow and its inverse",
    "resample": "resampling the moving image",
    "measure": "measuring the result",
}


def given_beside(
    masks: Masks | None,
    guidance: Correspondence | None,
    evaluation: Correspondence | None,
    regions: Regions | None,
    pathology: Pathology | None,
) -> list[Volume | None]:
    """Everything that lies in memory beside the two images."""
    found: list[Volume | None] = [] if masks is None else [masks.fixed, masks.moving]
    for known in (guidance, evaluation):
        found += [] if known is None else [known.fixed_labels, known.moving_labels]
    found += [] if pathology is None else [pathology.fixed, pathology.moving]
    return [*found, None if regions is None else regions.labels]


def voxels_of(*volumes: Volume | None) -> int:
    """Of all volumes together; one that is given twice counts once."""
    known = {id(volume): volume.grid.voxel_count for volume in volumes if volume is not None}
    return sum(known.values())


def moving_labels_of(*known: Correspondence | None) -> Volume | None:
    """The first moving label map among some correspondences."""
    for correspondence in known:
        if correspondence is not None and correspondence.moving_labels is not None:
            return correspondence.moving_labels
    return None
