"""The numbers of a run as a table that is saved with the scene.

What the entries of a report mean is written in Resources/docs/report.md.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import astuple, dataclass
from typing import Any

import vtk

COLUMNS = ("quantity", "before", "initial", "after", "unit")
MISSING = "-"
STAGES = ("given", "initial", "final")


@dataclass(frozen=True)
class Row:
    """One line: the texts of COLUMNS.  before: the images as given.  initial: after the first alignment."""

    quantity: str
    before: str = ""
    initial: str = ""
    after: str = ""
    unit: str = ""


def report_table(
    scene: Any,
    report: Mapping[str, Any],
    *,
    node: Any = None,
    name: str = "Registration report",
    label_names: Mapping[int, str] | None = None,
    region_names: Mapping[int, str] | None = None,
) -> Any:
    """A vtkMRMLTableNode with the numbers of a report.

    node: filled instead of a new one.  label_names: label value -> name of the structure; region_names: the
    same for regions of different stiffness.
    All cells are text: there are sentences among them, and dashes for what could not be measured.
    """
    return table_of(scene, rows_of(report, label_names, region_names), name, node)


def table_of(scene: Any, lines: Sequence[Row], name: str, node: Any = None) -> Any:
    """A vtkMRMLTableNode of these lines; node: filled instead of a new one."""
    table = node if node is not None else scene.AddNewNodeByClass("vtkMRMLTableNode", name)
    rows = [astuple(row) for row in lines]
    content = vtk.vtkTable()
    for place, title in enumerate(COLUMNS):
        column = vtk.vtkStringArray()
        column.SetName(title)
        for row in rows:
            column.InsertNextValue(row[place])
        content.AddColumn(column)
    modified = table.StartModify()
    table.SetLocked(False)
    table.SetAndObserveTable(content)
    table.SetUseColumnTitleAsColumnHeader(True)
    table.SetLocked(True)  # numbers that were measured are not typed over
    table.EndModify(modified)
    return table


def rows_of(
    report: Mapping[str, Any],
    label_names: Mapping[int, str] | None = None,
    region_names: Mapping[int, str] | None = None,
) -> list[Row]:
    """The lines of a report; what the run did not measure has no line."""
    return [
        *_similarity_rows(report.get("similarity")),
        *_label_rows(report.get("labels"), label_names or {}),
        *_landmark_rows(report.get("landmarks")),
        *_fold_rows(report.get("folds")),
        *_inverse_rows(report),
        *_displacement_rows(report.get("displacement_mm")),
        *_region_rows(report.get("regions"), region_names or {}),
        *_pathology_rows(report.get("pathology")),
        *closing_rows(report),
    ]


def closing_rows(report: Mapping[str, Any]) -> Iterator[Row]:
    """What every report ends with: what was spent, notes and what to cite."""
    yield from _cost_rows(report)
    yield from (Row("Note", after=one_line(note)) for note in report.get("notes") or ())
    yield from (Row("Please cite", after=one_line(source)) for source in report.get("citations") or ())


def summary(report: Mapping[str, Any]) -> dict[str, str]:
    """Short texts for the panel's Result box.

    Keys: folds, inverse_error, similarity, dice, landmark_error; "not measured" where there is no number.
    similarity, dice and landmark_error read `before -> after`, before being the images as given.
    """
    folds, inverse = report.get("folds") or {}, report.get("inverse_consistency_mm") or {}
    labels, marks = report.get("labels") or {}, report.get("landmarks")
    percent, mean = folds.get("folded_percent"), inverse.get("mean")
    return {
        "folds": "not measured" if percent is None else f"{percent:.3g} % folded",
        "inverse_error": _inverse_text(mean, inverse.get("max")),
        "similarity": _change(report.get("similarity"), "lncc", "LNCC {}", "{:.3f}"),
        "dice": _change(labels.get("mean"), "dice", "{}", "{:.3f}"),
        "landmark_error": _change(marks, "mean", "{} mm", "{:.2f}"),
    }


def _inverse_text(mean: float | None, largest: float | None) -> str:
    if mean is None or largest is None:
        return "not measured"
    return f"{mean:.3f} mm mean, {largest:.2f} mm largest"


def _change(stages: Mapping[str, Any] | None, key: str, frame: str, form: str) -> str:
    """`before -> after` of one number."""
    if not stages or not stages.get("final") or stages["final"].get(key) is None:
        return "not measured"
    before, after = number_text(stages.get("given"), key, form), number_text(stages["final"], key, form)
    return frame.format(f"{before} -> {after}")


def _similarity_rows(stages: Mapping[str, Any] | None) -> Iterator[Row]:
    if not stages:
        return
    yield _stage_row("Local correlation (LNCC)", stages, "lncc", "{:.4f}")
    yield _stage_row("Correlation (NCC)", stages, "ncc", "{:.4f}")
    yield _stage_row("Mutual information (NMI)", stages, "nmi", "{:.4f}")
    yield _stage_row("Overlap of the images", stages, "overlap_percent", "{:.1f}", "%")


def _label_rows(labels: Mapping[str, Any] | None, names: Mapping[int, str]) -> Iterator[Row]:
    if not labels:
        return
    yield _stage_row("Dice, mean", labels["mean"], "dice", "{:.4f}")
    yield _stage_row("HD95, mean", labels["mean"], "hd95_mm", "{:.2f}", "mm")
    for key, title, form, unit in (("dice", "Dice", "{:.4f}", ""), ("hd95_mm", "HD95", "{:.2f}", "mm")):
        for label, stages in labels["per_label"].items():
            name = one_line(names.get(int(label), f"label {label}"))
            yield _stage_row(f"{title}, {name}", stages, key, form, unit)


def _landmark_rows(marks: Mapping[str, Any] | None) -> Iterator[Row]:
    if not marks:
        return
    yield Row("Landmarks", after=str(marks["count"]))
    for key, title in (
        ("mean", "mean"),
        ("sd", "standard deviation"),
        ("median", "median"),
        ("max", "largest"),
    ):
        yield _stage_row(f"Landmark error, {title}", marks, key, "{:.2f}", "mm")


def _fold_rows(folds: Mapping[str, Any] | None) -> Iterator[Row]:
    if not folds:
        return
    yield Row("Folded cells", after=number_text(folds, "folded_percent", "{:.4g}"), unit="%")
    if folds.get("folded_percent_in_mask") is not None:
        yield Row(
            "Folded cells in the mask", after=number_text(folds, "folded_percent_in_mask", "{:.4g}"), unit="%"
        )
    yield Row("Jacobian determinant, smallest", after=number_text(folds, "minimum_determinant", "{:.3f}"))
    yield Row("Jacobian determinant, largest", after=number_text(folds, "maximum_determinant", "{:.3f}"))
    yield Row("Standard deviation of the log-Jacobian", after=number_text(folds, "sd_log_jacobian", "{:.4f}"))


def _inverse_rows(report: Mapping[str, Any]) -> Iterator[Row]:
    errors = report.get("inverse_consistency_mm")
    if errors:
        yield from length_rows("Inverse error", errors, "{:.4f}")
        yield from length_rows("Inverse error, moving to fixed", errors.get("moving_to_fixed"), "{:.4f}")
    in_slicer = report.get("inverse_in_slicer_mm")
    if isinstance(in_slicer, Mapping):
        yield from length_rows("Inverse error of the transform nodes", in_slicer, "{:.4f}")
    elif in_slicer is not None:
        yield Row("Inverse error of the transform nodes", after=f"{in_slicer:.4f}", unit="mm")


def _displacement_rows(moved: Mapping[str, Any] | None) -> Iterator[Row]:
    if moved:
        yield from length_rows("Displacement", moved["whole"], "{:.2f}")
        yield from length_rows("Displacement without the affine part", moved["deformation"], "{:.2f}")


def _pathology_rows(scores: Mapping[str, Any] | None) -> Iterator[Row]:
    if not scores:
        return
    for side in ("fixed", "moving"):
        if scores[f"{side}_mm3"] is not None:
            volume = number_text(scores, f"{side}_mm3", "{:.0f}")
            yield Row(f"Pathology of the {side} volume", after=volume, unit="mm3")
    for key in ("mean", "min", "max") if scores["change"] else ():
        yield Row(f"Change of appearance, {key}", after=number_text(scores["change"], key, "{:.4g}"))


def _region_rows(regions: Mapping[str, Any] | None, names: Mapping[int, str]) -> Iterator[Row]:
    """What happened in each region, and in the rest."""
    for label, found in (regions or {}).items():
        name = "everything else" if label == "rest" else names.get(int(label), label)
        title, stiffness = f"Region {one_line(name)}", found.get("stiffness")
        text = stiffness if isinstance(stiffness, str) else ", ".join(f"{share:g}" for share in stiffness)
        yield Row(f"{title}, stiffness", after=text)
        volume = found.get("volume_mm3")
        yield Row(f"{title}, volume", after=MISSING if volume is None else f"{volume / 1000:.4g}", unit="ml")
        moved, determinant = found.get("displacement_mm"), found.get("determinant")
        for key, word in (("mean", "mean"), ("max", "largest")):
            yield Row(f"{title}, displacement, {word}", after=number_text(moved, key, "{:.2f}"), unit="mm")
        for key, word in (
            ("mean", "mean"), ("std", "standard deviation"), ("min", "smallest"), ("max", "largest"),
        ):  # fmt: skip
            yield Row(f"{title}, Jacobian determinant, {word}", after=number_text(determinant, key, "{:.3f}"))
        yield Row(f"{title}, folded cells", after=number_text(found, "folded_percent", "{:.4g}"), unit="%")


def _cost_rows(report: Mapping[str, Any]) -> Iterator[Row]:
    settings, device = report.get("settings") or {}, report.get("device") or {}
    for key in ("method", "preset", "effort"):
        if settings.get(key):
            yield Row(key.capitalize(), after=one_line(settings[key]))
    if report.get("steps"):
        yield Row("Time steps", after=str(report["steps"]))
    seconds = report.get("seconds") or {}
    if seconds:
        yield Row("Time, all phases", after=f"{sum(seconds.values()):.1f}", unit="s")
    for phase, taken in seconds.items():
        yield Row(f"Time, {phase}", after=f"{taken:.2f}", unit="s")
    if report.get("peak_memory_mb") is not None:
        yield Row("Peak memory", after=f"{report['peak_memory_mb']:.0f}", unit="MB")
    if report.get("peak_device_memory_mb") is not None:
        yield Row(
            "Peak memory of the graphics processor", after=f"{report['peak_device_memory_mb']:.0f}", unit="MB"
        )
    if device:
        yield Row("Device", after=one_line(f"{device.get('device')}: {device.get('name')}"))


def length_rows(title: str, values: Mapping[str, Any] | None, form: str) -> Iterator[Row]:
    """Mean, 95th percentile and maximum of a length."""
    for key, word in (("mean", "mean"), ("p95", "95th percentile"), ("max", "largest")):
        if values is not None:
            yield Row(f"{title}, {word}", after=number_text(values, key, form), unit="mm")


def _stage_row(title: str, stages: Mapping[str, Any], key: str, form: str, unit: str = "") -> Row:
    before, initial, after = (number_text(stages.get(stage), key, form) for stage in STAGES)
    return Row(title, before, initial, after, unit)


def number_text(values: Mapping[str, Any] | None, key: str, form: str) -> str:
    """The formatted number, a dash for what could not be measured."""
    found = None if values is None else values.get(key)
    return MISSING if found is None else form.format(found)


def one_line(text: Any) -> str:
    """Without line breaks and tabs, which would end a cell of the saved file."""
    return " ".join(str(text).split())
