"""What the worker can be asked: register two images or more, go part of the way, look at itself."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from DiffeoRegLib.device import choose_device, set_threads
from DiffeoRegLib.errors import InputError
from DiffeoRegLib.exchange import Image
from DiffeoRegLib.flows.exponential import exp, midpoint_squarings
from DiffeoRegLib.geodesic_files import SavedGeodesics, reshoot, saved_geodesics
from DiffeoRegLib.methods.appearance import APPEARANCE
from DiffeoRegLib.methods.base import Motion, Progress, Report
from DiffeoRegLib.pipeline import MODES, Result, background_of, register
from DiffeoRegLib.report.measure import json_safe
from DiffeoRegLib.settings import Settings
from DiffeoRegLib.space.field import jacobian_determinant, u_mm_from_vox, u_vox_from_mm
from DiffeoRegLib.space.grid import Grid, Matrix
from DiffeoRegLib.space.transform import (
    AffineTransform,
    CompositeTransform,
    DisplacementTransform,
    Transform,
    displacement_on,
)
from DiffeoRegLib.velocity_files import SavedVelocities, retrace, saved_velocities
from DiffeoRegLib.volumes.resample import warp_volume
from DiffeoRegLib.volumes.volume import Volume
from DiffeoRegLib.worker import inputs, velocities
from DiffeoRegLib.worker.cubic import thick_grid
from DiffeoRegLib.worker.geodesics import Followed, packed
from DiffeoRegLib.worker.groups import group_registration
from DiffeoRegLib.worker.powers import matrix_power
from DiffeoRegLib.worker.stored import (
    Parts,
    facts,
    field_image,
    folded,
    parts_of,
    stored_form,
    volume_image,
)

COMPUTED = 0.95
"""Share of the progress that the registration itself takes; the rest is bringing the result into its form."""
STORAGES = ("half", "full")
FOLLOWED = Followed()
USUAL_THREADS = torch.get_num_threads()


def run(job: Mapping[str, Any], report: Report) -> dict[str, Any]:
    """The result of a job. Raises InputError for one it does not know, and what the engine raises."""
    kinds: dict[str, Callable[[Mapping[str, Any], Report], dict[str, Any]]] = {
        "register": registration,
        "group": group,
        "flow": flow,
        "shoot": shoot,
        "follow": follow,
        "probe": probe,
    }
    if job.get("kind") not in kinds:
        raise InputError(f"There is no job '{job.get('kind')}'; known are {', '.join(sorted(kinds))}.")
    if job.get("storage", "half") not in STORAGES:
        raise InputError(f"A transform is stored at 'half' or 'full' resolution, not {job['storage']!r}.")
    set_threads(USUAL_THREADS)
    return kinds[job["kind"]](job, report)


def registration(job: Mapping[str, Any], report: Report) -> dict[str, Any]:
    """Transform, inverse, moved image and report of two images, as the scene keeps them."""
    settings = inputs.settings_of(job.get("settings") or {})
    FOLLOWED.forget()  # the memory is for the run
    fixed, moving = inputs.volume_of(job["fixed"], "fixed"), inputs.volume_of(job["moving"], "moving")
    result = register(
        fixed, moving, settings,
        initial=inputs.transform_of(job.get("initial")),
        masks=inputs.masks_of(job.get("masks")),
        guidance=inputs.correspondence_of(job.get("guidance"), "guidance"),
        evaluation=inputs.correspondence_of(job.get("evaluation"), "evaluation"),
        regions=inputs.regions_of(job),
        pathology=inputs.pathology_of(job.get("pathology")),
        progress=lambda p: report(Progress(p.phase, COMPUTED * p.fraction, p.message)),
    )  # fmt: skip
    report(Progress("store", COMPUTED, "bringing the transform into the form that Slicer keeps"))
    axis, storage = inputs.single_axis(job["fixed"]), job.get("storage", "half")
    with torch.inference_mode():
        kept = _Kept(result, fixed, moving, storage, axis, inputs.single_axis(job["moving"]))
        return _kept(kept, job.get("outputs") or {}, settings)


def group(job: Mapping[str, Any], report: Report) -> dict[str, Any]:
    """What the registration of several images leaves, as the scene keeps it."""
    FOLLOWED.forget()  # the memory is for the run
    return group_registration(job, report)


def probe(job: Mapping[str, Any], report: Report) -> dict[str, Any]:
    """Versions and the device that would be used."""
    started = time.perf_counter()
    choice = choose_device("auto")
    return {
        "torch": str(torch.__version__),
        "device": {
            "device": str(choice.device),
            "name": choice.name,
            "why": choice.why,
            "notes": list(choice.notes),
        },
        "cuda": choice.device.type == "cuda",
        "mps": choice.device.type == "mps",
        "seconds": time.perf_counter() - started,
    }


@torch.inference_mode()
def flow(job: Mapping[str, Any], report: Report) -> dict[str, Any]:
    """The transform at a fraction of the way: the flow of the velocity so far, then as much of the matrix.

    T_t = A^t after exp(t v): the identity at 0, the whole transform at 1, invertible in between.
    """
    fraction = _fraction(job)
    report(Progress("flow", 0.0, "following the motion"))
    grid, velocity_mm = inputs.field_of(job["velocity"])
    fixed, axis = inputs.grid_of(job["fixed"]["shape"], job["fixed"]["world_from_voxel"])
    if axis is not None:
        grid, _ = inputs.grid_of(grid.shape, grid.world_from_voxel)
        velocity_mm = velocity_mm.squeeze(2 + axis)
    velocity = u_vox_from_mm(velocity_mm, grid).mul_(fraction)
    squarings = max(int(job["steps"]) - 1, 0).bit_length()
    if fraction < 1:
        squarings = min(squarings, midpoint_squarings(velocity))
    field = DisplacementTransform(grid, u_mm_from_vox(exp(velocity, squarings, first_step=2), grid))
    matrix, note = matrix_power(_matrix(job.get("initial")), fraction)
    whole = CompositeTransform([field, AffineTransform(matrix)])
    return {"transform": parts_of(_unfolded(whole, fixed, job.get("storage", "half"), axis)), "note": note}


@torch.inference_mode()
def shoot(job: Mapping[str, Any], report: Report) -> dict[str, Any]:
    """The transform at a fraction of the way of a geodesic, shot again from its momentum.

    inverse: True asks for the inverse, too.
    """
    fraction = _fraction(job)
    report(Progress("shoot", 0.0, "following the geodesic"))
    _, axis = inputs.grid_of(job["fixed"]["shape"], job["fixed"]["world_from_voxel"])
    saved, notes = FOLLOWED.get(job["geodesic"], axis), list[str]()
    return _found(job, reshoot(saved, fraction, notes=notes), saved.cover, axis, notes)


@torch.inference_mode()
def follow(job: Mapping[str, Any], report: Report) -> dict[str, Any]:
    """The transform at a fraction of the way of velocities that change in time, followed again.

    inverse: True asks for the inverse, too.
    """
    fraction = _fraction(job)
    report(Progress("follow", 0.0, "following the velocities"))
    _, axis = inputs.grid_of(job["fixed"]["shape"], job["fixed"]["world_from_voxel"])
    saved, notes = velocities.unpacked(job["velocities"], axis), list[str]()
    return _found(job, retrace(saved, fraction, notes=notes), saved.cover, axis, notes)


def _found(
    job: Mapping[str, Any],
    ways: tuple[Transform, Transform],
    cover: Grid,
    axis: int | None,
    notes: Sequence[str],
) -> dict[str, Any]:
    """The answer of a position: the transform, and its inverse if asked for, as the scene keeps them."""
    names = ("transform", "inverse") if job.get("inverse") else ("transform",)
    stored = [_unfolded(way, cover, job.get("storage", "half"), axis) for way in ways[: len(names)]]
    found = dict(zip(names, map(parts_of, stored), strict=True))
    return {**found, "note": " ".join(notes) or None}


def _fraction(job: Mapping[str, Any]) -> float:
    fraction = float(job["fraction"])
    if not 0 <= fraction <= 1:
        raise InputError(f"The fraction of the way must lie between 0 and 1, not {fraction}.")
    return fraction


def _unfolded(whole: Transform, fixed: Grid, storage: str, axis: int | None) -> list[Transform]:
    """The stored form, at full resolution where half of it would fold."""
    stored = stored_form(whole, fixed, storage, axis)
    if storage == "half" and folded(stored) > 0:
        return stored_form(whole, fixed, "full", axis)
    return stored


class _Kept:
    """A result together with the parts in which the scene keeps it."""

    def __init__(
        self, result: Result, fixed: Volume, moving: Volume, storage: str, axis: int | None,
        moving_axis: int | None = None,
    ) -> None:  # fmt: skip
        """axis, moving_axis: of a single voxel in the images, None in 3D."""
        self.result, self.fixed, self.moving = result, fixed, moving
        self.axis, self.moving_axis = axis, moving_axis
        self.notes: list[str] = []
        self._store(storage)
        if storage == "half" and max(folded(self.forward), folded(self.backward)) > 0:
            self._store("full")
            self.notes.append(
                "The transforms are stored at full resolution: at half resolution they would fold somewhere."
            )

    def _store(self, storage: str) -> None:
        self.forward = stored_form(self.result.transform, self.fixed.grid, storage, self.axis)
        self.backward = stored_form(self.result.inverse, self.fixed.grid, storage, self.axis)

    def image(self, volume: Volume) -> Image:
        """A volume on the fixed grid as an Image of three axes."""
        return volume_image(volume, self.axis)

    def moved(self, interpolation: str) -> Image:
        """The moving image read through the kept transform, which is what Slicer will show."""
        kept, fill = CompositeTransform(self.forward), background_of(self.moving)
        return self.image(
            warp_volume(self.moving, kept, self.fixed.grid, mode=MODES[interpolation], fill=fill)
        )

    def jacobian(self) -> Image:
        """The determinant of the deformation at the fixed voxels; of all of it after a non-linear start."""
        bending: list[Transform] = list(self.forward)
        if isinstance(self.result.initial, AffineTransform):
            bending = [part for part in bending if not isinstance(part, AffineTransform)]
            if bending and isinstance(
                self.forward[0], AffineTransform
            ):  # seen from the fixed image, and back
                bending = [self.forward[0], *bending, self.forward[0].inverse()]
        u_mm = displacement_on(CompositeTransform(bending), self.fixed.grid)
        determinant = jacobian_determinant(u_vox_from_mm(u_mm, self.fixed.grid))[0]
        return self.image(Volume(determinant, self.fixed.grid, "Jacobian determinant"))

    def velocity(self, motion: Motion, steps: int) -> dict[str, Any]:
        """The velocity as world vectors on its own grid."""
        u_mm, grid = u_mm_from_vox(motion.velocity_vox, motion.grid), motion.grid
        if self.axis is not None:
            u_mm, grid = u_mm.unsqueeze(2 + self.axis), thick_grid(grid, self.axis)
        return {"field": field_image(u_mm, grid, "velocity"), "steps": steps}


def _kept(kept: _Kept, wanted: Mapping[str, Any], settings: Settings) -> dict[str, Any]:
    """The result of a registration job."""
    result, report = kept.result, dict(kept.result.report)
    report["transform"] = facts(
        kept.forward, result.transform, kept.fixed.grid, kept.backward, kept.moving.grid
    )
    report["notes"] = [*report["notes"], *kept.notes]
    way: dict[str, Any] = {"velocity": None, "geodesic": None, "velocities": None}
    if wanted.get("velocity") and result.motion is not None:
        geodesics = saved_geodesics(result, kept.fixed.grid, settings.taper_mm)
        followed = saved_velocities(result, kept.fixed.grid, settings.taper_mm)
        missing = _no_way(result.motion, geodesics or followed)
        if missing is not None:
            report["notes"] = [*report["notes"], missing]
        elif geodesics is not None:
            way["geodesic"] = packed(geodesics, kept.axis)
        elif followed is not None:
            way["velocities"] = velocities.packed(followed, kept.axis)
        else:
            way["velocity"] = kept.velocity(result.motion, int(report["steps"]))
    return {
        "transform": parts_of(kept.forward),
        "inverse": parts_of(kept.backward),
        "initial": _initial(result.initial),
        "moved": kept.moved(settings.interpolation) if wanted.get("moved", True) else None,
        **way,
        "appearance": _appearance(kept),
        "sigma": _sigma(kept) if wanted.get("regulariser") else None,
        "jacobian": kept.jacobian() if wanted.get("jacobian") and result.motion is not None else None,
        "report": json_safe(report),
    }


def _appearance(kept: _Kept) -> dict[str, Image] | None:
    """Deformed image, change, their sum and the healthy look, on the fixed voxels."""
    found = kept.result.appearance
    if found is None:
        return None
    return {name: kept.image(volume) for name, volume in zip(APPEARANCE, found.volumes, strict=True)}


def _sigma(kept: _Kept) -> dict[str, Image] | None:
    """Width of the regulariser, mm, on the moving and on the fixed voxels."""
    if kept.result.sigma is None:
        return None
    start, end = kept.result.sigma
    return {"moving": volume_image(start, kept.moving_axis), "fixed": kept.image(end)}


def _no_way(motion: Motion, saved: SavedGeodesics | SavedVelocities | None) -> str | None:
    """Why the way to a transform cannot be kept; None where it can. saved: of a momentum or of velocities."""
    if motion.geodesics or motion.stepping is not None:
        what = "The momentum is" if motion.geodesics else "The velocities are"
        whole = f"{what} not kept: the run started from a deformation, of which there is no half way."
        return whole if saved is None else None
    if motion.halves is not None:
        return "A network's map is not the flow of one velocity, so there is none to keep."
    return None if len(motion.velocity_vox) == 1 else "The velocity changes with time and is not kept."


def _initial(transform: Transform) -> Parts:
    """The start as parts; the fields in it are those that were given."""
    stored = transform.parts if isinstance(transform, CompositeTransform) else (transform,)
    return parts_of(stored)


def _matrix(parts: Parts | None) -> Matrix:
    """The product of linear parts; raises InputError for others."""
    matrix = np.eye(4)
    for part in parts or []:
        if "matrix" not in part:
            raise InputError("Only part of the way can be gone when the run started from a linear alignment.")
        matrix = np.array(part["matrix"], dtype=np.float64) @ matrix
    return matrix
