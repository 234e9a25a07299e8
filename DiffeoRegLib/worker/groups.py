"""The worker's job for a group: several images in, what the scene keeps of each of them out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from DiffeoRegLib.errors import InputError
from DiffeoRegLib.exchange import Image
from DiffeoRegLib.groupwise import MODES, GroupResult, register_group
from DiffeoRegLib.methods.base import Progress, Report
from DiffeoRegLib.methods.start import background_of
from DiffeoRegLib.report.measure import json_safe
from DiffeoRegLib.settings import Settings
from DiffeoRegLib.space.transform import CompositeTransform, Transform
from DiffeoRegLib.volumes.resample import warp_volume
from DiffeoRegLib.volumes.volume import Volume
from DiffeoRegLib.worker import inputs
from DiffeoRegLib.worker.stored import facts, folded, parts_of, stored_form, volume_image

COMPUTED = 0.9
"""Share of the progress that the registration itself takes; the rest brings the results into their form."""


def group_registration(job: Mapping[str, Any], report: Report) -> dict[str, Any]:
    """Transforms, inverses, aligned images, mean, uncertainty and report of several images.

    job: `images`, a list of Images; `settings`; `fixed`, number of the image that stays, or None for the
    middle of all; `masks`, where each image counts, None or a list of Images or None; `leave_out`, to go on
    without an image that has no use; `uncertainty`, False to leave it out; `storage`.
    The answer says which images were used in `kept`; its lists, and `fixed`, count these alone.
    Raises InputError for images that are no group, MemoryLimitError, Cancelled from the report.
    """
    settings, fixed = inputs.settings_of(job.get("settings") or {}), _fixed(job)
    images = [inputs.volume_of(image, f"image {n + 1}") for n, image in enumerate(job["images"])]
    result = register_group(
        images, settings, fixed_index=fixed, masks=_masks(job),
        leave_out=bool(job.get("leave_out", False)), with_uncertainty=bool(job.get("uncertainty", True)),
        progress=lambda p: report(Progress(p.phase, COMPUTED * p.fraction, p.message)),
    )  # fmt: skip
    axis = _axis(job["images"], images, result)
    with torch.inference_mode():
        used = [images[k] for k in result.kept]
        return _kept(result, used, settings, job.get("storage", "half"), axis, report)


def _fixed(job: Mapping[str, Any]) -> int | None:
    """The number of the image that stays; raises InputError for one that is not there."""
    fixed, count = job.get("fixed"), len(job["images"])
    if fixed is None:
        return None
    if not 0 <= int(fixed) < count:
        raise InputError(f"There is no image {fixed} to stay fixed: the {count} images are counted from 0.")
    return int(fixed)


def _masks(job: Mapping[str, Any]) -> list[Volume | None] | None:
    """The masks of a job, None without any."""
    given = job.get("masks")
    if given is None or all(mask is None for mask in given):
        return None
    return [
        None if mask is None else inputs.volume_of(mask, f"mask {n + 1}", labels=True)
        for n, mask in enumerate(given)
    ]


def _axis(given: Sequence[Image], images: Sequence[Volume], result: GroupResult) -> int | None:
    """The axis of a single voxel in the image whose grid is the common one, None in 3D."""
    axes = [inputs.single_axis(image) for image in given]
    return next(axis for axis, image in zip(axes, images, strict=True) if image.grid.same_as(result.view))


def _kept(
    result: GroupResult, images: Sequence[Volume], settings: Settings, storage: str, axis: int | None,
    report: Report,
) -> dict[str, Any]:  # fmt: skip
    """The answer; the aligned images are read through the kept transforms, as Slicer will show them."""
    numbers, finer = dict(result.report), False
    answer: dict[str, list[Any]] = {"transforms": [], "inverses": [], "aligned": []}
    numbers["transforms"], total = [], torch.zeros(result.view.shape)
    for number, image in enumerate(images):
        done = COMPUTED + (1 - COMPUTED) * number / len(images)
        report(Progress("store", done, f"bringing image {number + 1} of {len(images)} into Slicer's form"))
        exact = result.transforms[number], result.inverses[number]
        out, back, refined = _ways(exact, result, storage, axis)
        finer = finer or refined
        aligned = image if number == result.fixed else _read(image, out, result, settings)
        total += torch.nan_to_num(aligned.data.float(), nan=background_of(image))
        answer["transforms"].append(parts_of(out))
        answer["inverses"].append(parts_of(back))
        answer["aligned"].append(volume_image(aligned, axis))
        numbers["transforms"].append(facts(out, exact[0], result.view, back, image.grid))
    if finer:
        numbers["notes"] = [
            *numbers["notes"],
            "Some transforms are stored at full resolution: at half resolution they would fold somewhere.",
        ]
    return {
        **answer,
        "mean": volume_image(Volume(total / len(images), result.view, "mean"), axis),
        "uncertainty": [volume_image(one, axis) for one in result.deviations] or None,
        "fixed": result.fixed,
        "kept": list(result.kept),
        "report": json_safe(numbers),
    }


def _ways(
    exact: tuple[Transform, Transform], result: GroupResult, storage: str, axis: int | None
) -> tuple[list[Transform], list[Transform], bool]:
    """Both ways of one image as they are kept, and whether they had to be kept at full resolution."""
    out, back = (stored_form(one, result.view, storage, axis) for one in exact)
    if storage == "half" and max(folded(out), folded(back)) > 0:
        out, back = (stored_form(one, result.view, "full", axis) for one in exact)
        return out, back, True
    return out, back, False


def _read(image: Volume, out: Sequence[Transform], result: GroupResult, settings: Settings) -> Volume:
    """An image on the common voxels."""
    mode, fill = MODES[settings.interpolation], background_of(image)
    return warp_volume(image, CompositeTransform(out), result.view, mode=mode, fill=fill)
