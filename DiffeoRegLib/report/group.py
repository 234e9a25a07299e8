"""The numbers of a registered group, as one dictionary that JSON can hold.

What every entry means is written in Resources/docs/report.md.
"""

from __future__ import annotations

import dataclasses
import datetime
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from DiffeoRegLib.device import DeviceChoice
from DiffeoRegLib.losses.group_similarity import pair_nmi, pair_rmse
from DiffeoRegLib.report.measure import SCHEMA, describe, device_facts, json_safe, versions
from DiffeoRegLib.report.memory import peak_device_memory_mb, peak_memory_mb
from DiffeoRegLib.report.scores import fold_scores, grid_points, statistics
from DiffeoRegLib.settings import Settings
from DiffeoRegLib.space.grid import Grid
from DiffeoRegLib.space.transform import AffineTransform, CompositeTransform, Transform
from DiffeoRegLib.volumes.intensity import finite, intensity_window
from DiffeoRegLib.volumes.resample import warp_volume
from DiffeoRegLib.volumes.volume import Volume

MOST_VOXELS = 4_000_000
"""Voxels of all images together that RMSE and NMI are measured on."""
HISTOGRAM_BINS = 32
POINTS = 5_000
IDENTITY = AffineTransform(np.eye(4))


def measure_group(
    *,
    images: Sequence[Volume],
    transforms: Sequence[Transform],
    inverses: Sequence[Transform],
    deviations: Sequence[Volume],
    view: Grid,
    fixed: int | None,
    mean_velocity: Tensor,
    settings: Settings,
    order: Sequence[int] | None = None,
    landmarks: Sequence[NDArray[np.float64]] | None = None,
    device: DeviceChoice | None = None,
    seconds: Mapping[str, float] | None = None,
    notes: Sequence[str] = (),
    citations: Sequence[str] = (),
) -> dict[str, Any]:
    """Everything a report says about a group; only numbers, strings, lists and None.

    fixed: entry whose space is the common one.  mean_velocity: of all images, voxels.
    order: which entry comes first, second, ... in the lists of the report.
    """
    order = list(range(len(images))) if order is None else list(order)
    report = {
        "schema": SCHEMA,
        "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "versions": versions(),
        "settings": dataclasses.asdict(settings),
        "images": [describe(images[k]) for k in order],
        "fixed": None if fixed is None else order.index(fixed),
        "common_grid": {"shape": list(view.shape[::-1]), "spacing_mm": list(view.spacing[::-1])},
        "device": device_facts(device),
        "threads": torch.get_num_threads(),
        "similarity": similarity_of_group(images, transforms, view),
        "landmarks": None if landmarks is None else group_landmark_scores(landmarks, transforms, inverses),
        "folds": [fold_scores(transforms[k], view) for k in order],
        "drift_mm": drift_scores(transforms, view),
        "largest_mean_velocity_vox": float(mean_velocity.abs().max()),
        "inverse_consistency_mm": inverse_errors(transforms, inverses, view),
        "deviation_mm": [_deviation(deviations[k]) for k in order] if deviations else None,
        "seconds": dict(seconds or {}),
        "peak_memory_mb": peak_memory_mb(),
        "peak_device_memory_mb": peak_device_memory_mb(device.device if device else None),
        "notes": list(dict.fromkeys(notes)),
        "citations": list(dict.fromkeys(citations)),
    }
    return dict(json_safe(report))


def similarity_of_group(
    images: Sequence[Volume], transforms: Sequence[Transform], view: Grid
) -> dict[str, Any]:
    """RMSE, in intensities of the images, and NMI, of hard histograms, mean over all pairs, before and after.

    Only voxels of the common grid that lie inside every image count, the same before and after.
    """
    step = 1
    while len(images) * np.prod([-(-n // min(step, n)) for n in view.shape]) > MOST_VOXELS:
        step += 1
    grid = view.coarsened([min(step, n) for n in view.shape])
    stages, inside = {}, torch.ones(grid.shape, dtype=torch.bool)
    for stage, maps in (("before", [IDENTITY] * len(images)), ("after", transforms)):
        read = [
            warp_volume(finite(image), way, grid, fill=float("nan")).data
            for image, way in zip(images, maps, strict=True)
        ]
        stages[stage] = torch.stack(read)[:, None]
        inside &= torch.isfinite(stages[stage]).all(0)[0]
    if int(inside.sum()) < 100:
        return {"before": None, "after": None, "voxels": int(inside.sum())}
    windows = [intensity_window(finite(image)) for image in images]
    scores: dict[str, Any] = {"voxels": int(inside.sum())}
    for stage, values in stages.items():
        held = values[:, :, inside][..., None]
        scaled = torch.stack(
            [(one - low) / (high - low) for one, (low, high) in zip(held, windows, strict=True)]
        ).clamp(0, 1)
        pairs = torch.triu_indices(len(images), len(images), 1)
        nmi = pair_nmi(scaled, bins=HISTOGRAM_BINS)[pairs[0], pairs[1]]
        rmse = pair_rmse(held)[pairs[0], pairs[1]]
        scores[stage] = {"nmi": float(nmi.mean()), "rmse": float(rmse.mean())}
    return scores


def group_landmark_scores(
    landmarks: Sequence[NDArray[np.float64]], transforms: Sequence[Transform], inverses: Sequence[Transform]
) -> dict[str, Any]:
    """Landmark error over all ordered pairs of images, mm: as given, and by image i -> common -> image j."""
    before, after = list[NDArray[np.float64]](), list[NDArray[np.float64]]()
    for i, inverse in enumerate(inverses):
        common = inverse.map_points(landmarks[i])
        for j, transform in enumerate(transforms):
            if i != j:
                before.append(np.linalg.norm(landmarks[i] - landmarks[j], axis=1))
                after.append(np.linalg.norm(transform.map_points(common) - landmarks[j], axis=1))
    found: dict[str, Any] = {"count": len(landmarks[0]), "pairs": len(before)}
    for stage, errors in (("before", before), ("after", after)):
        every = np.concatenate(errors)
        found[stage] = statistics(every) | {"sd": float(every.std()), "median": float(np.median(every))}
    return found


def drift_scores(transforms: Sequence[Transform], view: Grid) -> dict[str, float | None]:
    """Length of the mean over the images of the displacement common -> image, mm: 0 where nothing drifts."""
    points = grid_points(view, POINTS)
    total = np.zeros_like(points)
    for transform in transforms:
        total += (transform.map_points(points) - points) / len(transforms)
    return statistics(np.linalg.norm(total, axis=1))


def inverse_errors(
    transforms: Sequence[Transform], inverses: Sequence[Transform], view: Grid
) -> dict[str, float | None]:
    """|inverse(transform(x)) - x| over points of the common grid and all images, mm."""
    points = grid_points(view, POINTS)
    errors = [
        np.linalg.norm(CompositeTransform((there, back)).map_points(points) - points, axis=1)
        for there, back in zip(transforms, inverses, strict=True)
    ]
    return statistics(np.concatenate(errors))


def _deviation(volume: Volume) -> dict[str, float]:
    flat = volume.data.flatten()
    return {
        "mean": float(flat.mean()),
        "p95": float(np.percentile(flat.tolist(), 95)),
        "max": float(flat.max()),
    }


def group_summary(report: Mapping[str, Any]) -> str:
    """What the console prints after a run."""
    count, fixed = len(report["images"]), report["fixed"]
    where = "their middle" if fixed is None else f"image {fixed}, '{report['images'][fixed]['name']}'"
    lines = [f"{count} images brought to {where}.", ""]
    lines += [f"{name:46}  {before:>9}  {after:>9}" for name, before, after in group_rows(report)]
    lines.append("")
    lines += [f"{name:46}  {value}" for name, value in group_facts(report)]
    return "\n".join(lines)


def group_rows(report: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """The numbers that exist before and after, under their names."""
    rows = [("", "before", "after")]
    similarity = report["similarity"]
    for key, name in (("rmse", "RMSE, mean over all pairs"), ("nmi", "NMI, mean over all pairs")):
        pair = [similarity.get(stage) for stage in ("before", "after")]
        before, after = ("–" if one is None else f"{one[key]:.4g}" for one in pair)
        rows.append((name, before, after))
    if report["landmarks"]:
        marks = report["landmarks"]
        for key, name in (("mean", "mean"), ("max", "largest")):
            values = [f"{marks[stage][key]:.2f}" for stage in ("before", "after")]
            rows.append((f"Landmark error over all pairs, {name} (mm)", values[0], values[1]))
    return rows


def group_facts(report: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The numbers of the result alone."""
    folds = max(one["folded_percent"] for one in report["folds"])
    least = min(one["minimum_determinant"] for one in report["folds"])
    facts = [
        ("Folded cells, most of any image (%)", f"{folds:.4g}"),
        ("Smallest Jacobian determinant", f"{least:.3f}"),
        ("Drift of the mean, mean / largest (mm)", _two(report["drift_mm"])),
        ("There and back, mean / largest (mm)", _two(report["inverse_consistency_mm"], "{:.4f}")),
    ]
    if report["deviation_mm"]:
        means = [one["mean"] for one in report["deviation_mm"]]
        facts.append(("Standard deviation, mean of the images (mm)", f"{np.mean(means):.2f}"))
    facts.append(("Seconds", f"{sum(report['seconds'].values()):.1f}"))
    if report["peak_memory_mb"]:
        facts.append(("Largest memory (MB)", f"{report['peak_memory_mb']:.0f}"))
    return facts


def _two(values: Mapping[str, float | None], form: str = "{:.3f}") -> str:
    return " / ".join("–" if values[key] is None else form.format(values[key]) for key in ("mean", "max"))
