"""`diffeoreg evaluate`: the numbers of a transform or of label maps, each from its own inputs."""

from __future__ import annotations

import argparse
from typing import Any

import numpy as np

from DiffeoRegLib.cli.console import Console, table
from DiffeoRegLib.cli.inputs import read_labels, read_landmarks
from DiffeoRegLib.errors import InputError, SettingsError
from DiffeoRegLib.report.measure import json_safe
from DiffeoRegLib.report.scores import (
    compare_labels,
    displacement_scores,
    fold_scores,
    inverse_scores,
    label_scores,
    landmark_scores,
    similarity_scores,
)
from DiffeoRegLib.report.text import deformation_rows, number, stage_rows
from DiffeoRegLib.space.transform import AffineTransform, Transform
from DiffeoRegLib.volumes.checks import label_values
from DiffeoRegLib.volumes.files import read_volume
from DiffeoRegLib.volumes.pair import Correspondence
from DiffeoRegLib.volumes.resample import warp_labels
from DiffeoRegLib.volumes.transform_files import read_transform
from DiffeoRegLib.volumes.volume import Volume

IDENTITY = AffineTransform(np.eye(4))


def evaluate(arguments: argparse.Namespace, console: Console) -> None:
    """Measure what the given files allow; raises SettingsError when that is nothing."""
    if arguments.output is not None or arguments.weights is not None or arguments.cycles:
        raise SettingsError("--output, --weights and --cycles go with --pairs TABLE, which is missing.")
    scores = json_safe(_measure(arguments))
    if not any(scores.values()):
        raise SettingsError(
            "There is nothing to measure: give a transform, two label maps or two landmark files."
        )
    console.result(_text(scores), {"command": "evaluate", **scores})


def _measure(arguments: argparse.Namespace) -> dict[str, Any]:
    transform = read_transform(arguments.transform) if arguments.transform else None
    inverse = read_transform(arguments.inverse) if arguments.inverse else None
    fixed = read_volume(arguments.fixed) if arguments.fixed else None
    moving = read_volume(arguments.moving) if arguments.moving else None
    fixed_seg, moving_seg = read_labels(arguments.fixed_seg), read_labels(arguments.moving_seg)
    moved_seg = read_labels(arguments.moved_seg)
    if (moving_seg or moved_seg) and fixed_seg is None:
        raise SettingsError("Label maps are compared with --fixed-seg, which is missing.")
    stages: dict[str, Transform] = {"given": IDENTITY}
    if transform is not None:
        stages["final"] = transform
    like = fixed or fixed_seg
    points = read_landmarks(arguments, fixed.grid if fixed else None, moving.grid if moving else None)
    scores: dict[str, Any] = {"landmarks": landmark_scores(Correspondence(None, None, *points), stages)}
    scores["labels"] = _labels(fixed_seg, moving_seg, moved_seg, stages)
    if fixed is not None and moving is not None:
        scores["similarity"] = similarity_scores(fixed, moving, stages, read_labels(arguments.fixed_mask))
    if transform is not None:
        scores |= _transform(
            transform, inverse, like, moving or moving_seg, read_labels(arguments.fixed_mask)
        )
    return scores


def _transform(
    transform: Transform,
    inverse: Transform | None,
    fixed: Volume | None,
    moving: Volume | None,
    mask: Volume | None,
) -> dict[str, Any]:
    """Folds and displacement need the fixed grid; the inverse error also both transforms."""
    if fixed is None:
        if inverse is not None:
            raise SettingsError("The inverse error needs --fixed, whose points are carried there and back.")
        return {}
    scores: dict[str, Any] = {
        "folds": fold_scores(transform, fixed.grid, mask),
        "displacement_mm": displacement_scores(transform, fixed.grid),
    }
    if inverse is not None:
        other = moving.grid if moving is not None else fixed.grid
        scores["inverse_consistency_mm"] = inverse_scores(transform, inverse, fixed.grid, other)
    return scores


def _labels(
    fixed: Volume | None, moving: Volume | None, moved: Volume | None, stages: dict[str, Transform]
) -> dict[str, Any] | None:
    if fixed is None or (moved is None and moving is None):
        return None
    other = moved or moving
    if other is not None and not label_values(fixed) & label_values(other):
        raise InputError(f"'{fixed.name}' and '{other.name}' have no label number in common.")
    if moved is not None:
        on_grid = (
            moved
            if moved.grid.same_as(fixed.grid, tolerance=1e-2)
            else warp_labels(moved, IDENTITY, fixed.grid)
        )
        given = {} if moving is None else {"given": warp_labels(moving, IDENTITY, fixed.grid)}
        return compare_labels(fixed, {**given, "final": on_grid})
    return label_scores(Correspondence(fixed, moving), stages, fixed.grid)


def _text(scores: dict[str, Any]) -> str:
    """The tables a person reads."""
    parts = []
    rows = [[row.name, row.given, row.final] for row in stage_rows(scores)]
    if rows:
        parts.append(table(["", "as given", "transformed"], rows))
    if scores.get("labels"):
        lines = []
        for name, stages in scores["labels"]["per_label"].items():
            final = stages.get("final") or stages["given"]
            lines.append(
                [f"label {name}", number(final["dice"], "{:.4f}"), number(final["hd95_mm"], "{:.2f}")]
            )
        parts.append(table(["", "Dice", "HD95 (mm)"], lines))
    facts = deformation_rows(scores)
    if facts:
        parts.append(table(["transform", ""], [list(pair) for pair in facts]))
    return "\n\n".join(parts)
