"""A report in words: the verdict a reader wants first, and the table the console prints."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

STAGES = {"given": "as given", "initial": "first alignment", "final": "registered"}
MANY_FOLDS_PERCENT = 0.1
LARGE_INVERSE_ERROR_MM = 0.5
Level = Literal["good", "check", "bad"]


@dataclass(frozen=True)
class Verdict:
    """level, a headline, and sentences that explain it."""

    level: Level
    headline: str
    sentences: tuple[str, ...]


@dataclass(frozen=True)
class Row:
    """One line of the table of numbers: a name with its unit, and a text per stage."""

    name: str
    given: str
    initial: str
    final: str
    better: str = ""


def verdict(report: Mapping[str, Any]) -> Verdict:
    """What a reader should know first; `bad` when the result should not be used as it is."""
    parts = [_agreement(report), _folds(report), _inverse(report)]
    levels = [level for level, _ in parts]
    level: Level = "bad" if "bad" in levels else "check" if "check" in levels else "good"
    headline = {
        "good": "The transform is one-to-one and the images agree better than before.",
        "check": "Usable, but read the remarks below.",
        "bad": "Do not use this result without a close look.",
    }[level]
    return Verdict(level, headline, tuple(sentence for _, sentence in parts if sentence))


def _agreement(report: Mapping[str, Any]) -> tuple[Level, str]:
    similarity = report["similarity"]
    before, after = similarity.get("initial") or similarity.get("given"), similarity.get("final")
    if after is None:
        return "bad", "After registration the images hardly overlap."
    if before is None:
        return (
            "good",
            f"The images did not overlap before; now their local correlation is {after['lncc']:.2f}.",
        )
    gain = after["lncc"] - before["lncc"], after["nmi"] - before["nmi"]
    words = f"Local correlation went from {before['lncc']:.2f} to {after['lncc']:.2f}"
    if max(gain) < -1e-3:
        return "bad", f"{words}: the images agree less after registration than before."
    if max(gain) < 1e-3:
        return "check", f"{words}: registration changed next to nothing."
    return "good", f"{words}, shared information (NMI) from {before['nmi']:.3f} to {after['nmi']:.3f}."


def _folds(report: Mapping[str, Any]) -> tuple[Level, str]:
    folds = report["folds"]
    percent, within = folds["folded_percent"], folds.get("folded_percent_in_mask")
    if percent == 0:
        return "good", "No point folds: the transform can be inverted everywhere."
    inside = "" if within is None else f" ({within:.3g} % inside the mask)"
    level: Level = "bad" if (percent if within is None else within) > MANY_FOLDS_PERCENT else "check"
    return level, (
        f"{percent:.3g} % of the volume folds over itself{inside}: "
        "there the transform has no inverse; more time steps or a smoother setting helps."
    )


def _inverse(report: Mapping[str, Any]) -> tuple[Level, str]:
    error = report["inverse_consistency_mm"]
    if error is None or error["mean"] is None:
        return (
            "check",
            "The inverse could not be checked: no point of the fixed image lands in the moving one.",
        )
    words = (
        f"Going there and back misses by {millimetres(error['mean'])} on average "
        f"and {millimetres(error['max'])} at worst"
    )
    if error["mean"] > LARGE_INVERSE_ERROR_MM:
        return "check", f"{words}: do not rely on the inverse."
    return "good", f"{words}."


def stage_rows(report: Mapping[str, Any]) -> list[Row]:
    """The numbers that exist before and after."""
    rows = []
    similarity = report.get("similarity")
    if similarity:
        for key, name in (("lncc", "Local correlation (LNCC)"), ("ncc", "Correlation (NCC)"), ("nmi", "NMI")):
            rows.append(_row(name, similarity, lambda s, key=key: s[key], "{:.4f}", "higher"))
    if report.get("labels"):
        means = report["labels"]["mean"]
        rows.append(_row("Dice, mean over labels", means, lambda s: s["dice"], "{:.4f}", "higher"))
        rows.append(_row("HD95, mean over labels (mm)", means, lambda s: s["hd95_mm"], "{:.2f}", "lower"))
    if report.get("landmarks"):
        marks = report["landmarks"]
        rows.append(_row("Landmark error TRE, mean (mm)", marks, lambda s: s["mean"], "{:.2f}", "lower"))
        rows.append(_row("Landmark error TRE, maximum (mm)", marks, lambda s: s["max"], "{:.2f}", "lower"))
    return rows


def deformation_rows(report: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The numbers of the transform itself."""
    rows: list[tuple[str, str]] = []
    if report.get("steps"):
        rows.append(("Time steps of the flow", str(report["steps"])))
    folds, inverse = report.get("folds"), report.get("inverse_consistency_mm")
    if folds:
        rows.append(("Folded cells (%)", number(folds["folded_percent"], "{:.4g}")))
        if folds.get("folded_percent_in_mask") is not None:
            rows.append(("Folded cells in the mask (%)", number(folds["folded_percent_in_mask"], "{:.4g}")))
        volume_change = (
            f"{number(folds['minimum_determinant'], '{:.3f}')} to {folds['maximum_determinant']:.3f}"
        )
        rows.append(("Jacobian determinant, range", volume_change))
        rows.append(("SD of log-Jacobian", number(folds["sd_log_jacobian"], "{:.4f}")))
    if inverse:
        rows.append(("Inverse consistency, mean / 95 % / max (mm)", three(inverse, "{:.4f}")))
        back = inverse["moving_to_fixed"]
        rows.append(("The other way round, mean / 95 % / max (mm)", three(back, "{:.4f}")))
    if report.get("displacement_mm"):
        moved = report["displacement_mm"]
        rows.append(("Deformation, mean / 95 % / max (mm)", three(moved["deformation"], "{:.2f}")))
        rows.append(("Whole displacement, mean / 95 % / max (mm)", three(moved["whole"], "{:.2f}")))
    return rows + _pathology_rows(report)


def _pathology_rows(report: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What was marked and how it changes the look of the moving image; none without a pathology."""
    found = report.get("pathology")
    if found is None:
        return []
    rows = []
    for side in ("fixed", "moving"):
        if found[f"{side}_mm3"] is not None:
            rows.append(
                (f"Pathology of the {side} image (ml)", number(found[f"{side}_mm3"] / 1000, "{:.3g}"))
            )
    if found["change"] is not None:
        change = " / ".join(number(found["change"][key], "{:.4g}") for key in ("mean", "min", "max"))
        rows.append(("Change of appearance, mean / min / max", change))
    return rows


REGION_COLUMNS = ("Region", "stiffness", "moved, mean (mm)", "max", "volume change", "its SD", "folded (%)")


def region_rows(report: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """One line per region, under REGION_COLUMNS; none without regions."""
    rows = []
    for name, scores in (report.get("regions") or {}).items():
        stiffness, moved, determinant = (scores[k] for k in ("stiffness", "displacement_mm", "determinant"))
        words = stiffness if isinstance(stiffness, str) else " ".join(f"{share:g}" for share in stiffness)
        numbers = [number(moved[key], "{:.2f}") for key in ("mean", "max")]
        numbers += [number(determinant[key], "{:.3f}") for key in ("mean", "std")]
        rows.append((name, words, *numbers, number(scores["folded_percent"], "{:.3g}")))
    return rows


def summary(report: Mapping[str, Any]) -> str:
    """What the console prints after a run."""
    found = verdict(report) if report.get("similarity") else None
    lines = [] if found is None else [found.headline, *(f"  {sentence}" for sentence in found.sentences), ""]
    rows = stage_rows(report)
    if rows:
        width = max(len(row.name) for row in rows)
        lines.append(f"{'':{width}}  {STAGES['given']:>9}  {STAGES['initial']:>15}  {STAGES['final']:>10}")
        lines += [f"{row.name:{width}}  {row.given:>9}  {row.initial:>15}  {row.final:>10}" for row in rows]
        lines.append("")
    pairs = deformation_rows(report)
    width = max((len(name) for name, _ in pairs), default=0)
    lines += [f"{name:{width}}  {value}" for name, value in pairs]
    if regions := region_rows(report):
        table = (REGION_COLUMNS, *regions)
        widths = [max(map(len, column)) for column in zip(*table, strict=True)]
        rest = ("  ".join(f"{cell:>{w}}" for cell, w in zip(row, widths, strict=True)) for row in table)
        lines += ["", *rest]
    return "\n".join(lines).rstrip()


def number(value: float | None, form: str) -> str:
    """The formatted number, or a dash for what could not be measured."""
    return "–" if value is None else form.format(value)


def millimetres(value: float | None) -> str:
    """A length as it is said: no more digits than matter."""
    if value is None:
        return "–"
    if value < 0.001:
        return "less than 0.001 mm" if value > 0 else "0 mm"
    return f"{value:.3f} mm" if value < 0.1 else f"{value:.2f} mm"


def three(values: Mapping[str, Any], form: str) -> str:
    """mean / p95 / max."""
    return " / ".join(number(values[key], form) for key in ("mean", "p95", "max"))


def _row(name: str, stages: Mapping[str, Any], pick: Any, form: str, better: str) -> Row:
    texts = {
        stage: "–" if stages.get(stage) is None else number(pick(stages[stage]), form) for stage in STAGES
    }
    return Row(name, texts["given"], texts["initial"], texts["final"], better)
