"""The numbers of a result as the panel says them, and what of them is kept in the scene."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from slicer.i18n import tr as _


def sentences(report: Mapping[str, Any]) -> tuple[str, ...]:
    """What the ROWS say of a report; empty: not in it."""
    if report.get("group"):
        return group_sentences(report)
    return (
        _folds(report.get("folds") or {}),
        _inverse(report.get("inverse_consistency_mm") or {}),
        _before_after(report.get("similarity") or {}, "ncc", "{:.3f}"),
        _before_after((report.get("labels") or {}).get("mean") or {}, "dice", "{:.3f}"),
        _before_after(report.get("landmarks") or {}, "mean", "{:.2f} mm"),
        str(report.get("self_check") or ""),
        _pathology(report.get("pathology") or {}),
        "",
    )


def group_sentences(report: Mapping[str, Any]) -> tuple[str, ...]:
    """The same of a group; see `kept_group_numbers`."""
    similarity = report.get("similarity") or {}
    stages = {"given": similarity.get("before"), "final": similarity.get("after")}
    words = (("nmi", _("mutual information"), "{:.3f}"), ("rmse", _("difference"), "{:.4g}"))
    agree = [f"{what} {text}" for key, what, form in words if (text := _before_after(stages, key, form))]
    spread = report.get("deviation_mm") or {}
    return (
        _folds(report.get("folds") or {}), _inverse(report.get("inverse_consistency_mm") or {}),
        "; ".join(agree), "", "", str(report.get("self_check") or ""), "", _inverse(spread),
    )  # fmt: skip


def _folds(folds: Mapping[str, Any]) -> str:
    percent = folds.get("folded_percent")
    if percent is None:
        return ""
    text = _("{percent:.3g} %").format(percent=percent)
    lowest, highest = folds.get("minimum_determinant"), folds.get("maximum_determinant")
    if lowest is None or highest is None:
        return text
    return text + _(", volume change {low:.2f} to {high:.2f}").format(low=lowest, high=highest)


def _inverse(error: Mapping[str, Any]) -> str:
    if error.get("mean") is None:
        return ""
    return _("{mean:.3g} mm on average, at most {most:.3g} mm").format(
        mean=error["mean"], most=error.get("max") or error["mean"]
    )


def _pathology(found: Mapping[str, Any]) -> str:
    """`2.3 ml marked, change +41 on average (-3 to 120)`."""
    marked = [found.get(f"{side}_mm3") for side in ("fixed", "moving")]
    words = [_("{ml:.3g} ml marked").format(ml=volume / 1000) for volume in marked if volume is not None]
    change = found.get("change") or {}
    if not words or change.get("mean") is None:
        return _(" and ").join(words)
    return _("{marked}, change {mean:+.3g} on average ({low:.3g} to {high:.3g})").format(
        marked=_(" and ").join(words), mean=change["mean"], low=change["min"], high=change["max"]
    )


def _before_after(stages: Mapping[str, Any], name: str, form: str) -> str:
    """`0.412 before, 0.803 aligned, 0.957 registered`, as far as there are numbers."""
    words = (("given", _("before")), ("initial", _("aligned")), ("final", _("registered")))
    values = [((stages.get(stage) or {}).get(name), word) for stage, word in words]
    return ", ".join(f"{form.format(value)} {word}" for value, word in values if value is not None)


def kept_numbers(report: Mapping[str, Any], self_check: str) -> str:
    """The part of a report that this section shows, as JSON for the scene."""
    names = ("folds", "inverse_consistency_mm", "similarity", "labels", "landmarks", "pathology")
    kept: dict[str, Any] = {name: report.get(name) for name in names}
    if kept["labels"]:
        kept["labels"] = {"mean": kept["labels"].get("mean")}
    return json.dumps(kept | {"self_check": self_check})


def kept_group_numbers(report: Mapping[str, Any], self_check: str) -> str:
    """The part of a group's report that this section shows, as JSON: of all images that moved together."""
    folds = report.get("folds") or []
    kept: dict[str, Any] = {name: report.get(name) for name in ("inverse_consistency_mm", "similarity")}
    kept["folds"] = {
        name: worst((one[name] for one in folds if one.get(name) is not None), default=None)
        for name, worst in (
            ("folded_percent", max),
            ("minimum_determinant", min),
            ("maximum_determinant", max),
        )
    }
    spreads = [one for k, one in enumerate(report.get("deviation_mm") or []) if k != report.get("fixed")]
    if spreads:
        mean = sum(one["mean"] for one in spreads) / len(spreads)
        kept["deviation_mm"] = {"mean": mean, "max": max(one["max"] for one in spreads)}
    return json.dumps({"group": True, **kept, "self_check": self_check})
