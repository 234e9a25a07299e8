"""The numbers of a registered group as a table that is saved with the scene."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from DiffeoRegPanel.nodes.tables import Row, closing_rows, length_rows, number_text, one_line, table_of


def group_table(scene: Any, report: Mapping[str, Any], names: Sequence[str], title: str) -> Any:
    """A vtkMRMLTableNode with the report of a group; names: of its images, in their order."""
    return table_of(scene, rows_of_group(report, names), title)


def rows_of_group(report: Mapping[str, Any], names: Sequence[str]) -> list[Row]:
    """The lines of a group's report: of all images together, then of each of them."""
    fixed = report.get("fixed")
    where = "the middle of all" if fixed is None else names[fixed]
    return [
        Row("Images", after=str(len(names))),
        Row("Common space", after=one_line(where)),
        *_similarity_rows(report.get("similarity") or {}),
        *length_rows("Inverse error", report.get("inverse_consistency_mm"), "{:.4f}"),
        *length_rows("Inverse error of the transform nodes", report.get("inverse_in_slicer_mm"), "{:.4f}"),
        *length_rows("Drift of the middle", report.get("drift_mm"), "{:.3f}"),
        *(row for number, name in enumerate(names) for row in _image_rows(report, number, one_line(name))),
        *closing_rows(report),
    ]


def _similarity_rows(stages: Mapping[str, Any]) -> Iterator[Row]:
    for key, title, form in (
        ("rmse", "Difference (RMSE)", "{:.4g}"),
        ("nmi", "Mutual information", "{:.4f}"),
    ):
        before, after = (number_text(stages.get(stage), key, form) for stage in ("before", "after"))
        yield Row(f"{title}, mean over all pairs", before=before, after=after)


def _image_rows(report: Mapping[str, Any], number: int, name: str) -> Iterator[Row]:
    """What is known of one image."""
    folds, spread, kept = (_entry(report, key, number) for key in ("folds", "deviation_mm", "transforms"))
    yield Row(f"{name}, folded cells", after=number_text(folds, "folded_percent", "{:.4g}"), unit="%")
    for key, word in (("mean", "mean"), ("p95", "95th percentile"), ("max", "largest")):
        if spread is not None and key in spread:
            text = number_text(spread, key, "{:.2f}")
            yield Row(f"{name}, standard deviation of the motion, {word}", after=text, unit="mm")
    stored = (kept or {}).get("stored_error_mm")
    yield Row(f"{name}, error of the stored transform, largest", after=number_text(stored, "max", "{:.4f}"),
              unit="mm")  # fmt: skip


def _entry(report: Mapping[str, Any], key: str, number: int) -> Mapping[str, Any] | None:
    found = report.get(key)
    return found[number] if found else None
