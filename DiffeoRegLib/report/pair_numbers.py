"""The numbers that make a row of a table of registrations, and their spread over the rows."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

NUMBERS = {
    "dice_initial": "Dice before", "dice": "Dice", "hd95_mm": "HD95 (mm)",
    "tre_initial_mm": "TRE before (mm)", "tre_mm": "TRE (mm)", "folded_percent": "folded (%)",
    "sd_log_jacobian": "SDlogJ", "inverse_mean_mm": "inverse error (mm)", "inverse_max_mm": "largest",
    "seconds": "seconds", "memory_mb": "memory (MB)",
}  # fmt: skip

AFTERWARDS = ("measure", "writing")
"""Phases of a run that come when the moved image is there."""
Numbers = dict[str, float | None]


def numbers_of(report: Mapping[str, Any]) -> tuple[Numbers, Numbers]:
    """The numbers of a registration's report that make a row, and Dice per label; None where not measured.

    seconds: until the moved image is there, without what measuring and writing take.
    """
    labels, landmarks = report["labels"], report["landmarks"]
    means = {stage: {} if labels is None else labels["mean"][stage] for stage in ("initial", "final")}
    errors = {stage: {} if landmarks is None else landmarks[stage] for stage in ("initial", "final")}
    numbers: Numbers = {
        "dice_initial": means["initial"].get("dice"),
        "dice": means["final"].get("dice"),
        "hd95_mm": means["final"].get("hd95_mm"),
        "tre_initial_mm": errors["initial"].get("mean"),
        "tre_mm": errors["final"].get("mean"),
        "folded_percent": report["folds"]["folded_percent"],
        "sd_log_jacobian": report["folds"]["sd_log_jacobian"],
        "inverse_mean_mm": report["inverse_consistency_mm"]["mean"],
        "inverse_max_mm": report["inverse_consistency_mm"]["max"],
        "seconds": sum(value for name, value in report["seconds"].items() if name not in AFTERWARDS),
        "memory_mb": report["peak_device_memory_mb"] or report["peak_memory_mb"],
    }
    per_label = {} if labels is None else labels["per_label"]
    return numbers, {name: stages["final"]["dice"] for name, stages in per_label.items()}


def spread(values: Iterable[float | None]) -> dict[str, float | int | None]:
    """Count, mean, standard deviation (of the sample), least and greatest of the values there are."""
    known = np.array([value for value in values if value is not None], dtype=np.float64)
    if not len(known):
        return {"count": 0, "mean": None, "sd": None, "min": None, "max": None}
    return {
        "count": len(known),
        "mean": float(known.mean()),
        "sd": float(known.std(ddof=1)) if len(known) > 1 else None,
        "min": float(known.min()),
        "max": float(known.max()),
    }
