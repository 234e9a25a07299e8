"""How good a network is on pairs it was not trained on."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from DiffeoRegLib.errors import Cancelled, InputError, SettingsError
from DiffeoRegLib.metrics import deformation_summary, mean_dice, tre_mm
from DiffeoRegLib.space.sample import array_from_tensor, sample, tensor_from_array, warp
from DiffeoRegLib.training.batches import Pairs, SeededPairs, collate
from DiffeoRegLib.training.config import HIGHER_IS_BETTER, TrainingConfig
from DiffeoRegLib.training.group_terms import GroupBatch, GroupObjective
from DiffeoRegLib.training.group_validation import GROUP_METRICS, measure_group
from DiffeoRegLib.training.objective import Batch, Judge
from DiffeoRegLib.training.processes import Processes

METRICS = ("loss", "dice", "tre_mm", "folded_percent", "sd_log_jacobian")


@dataclass(frozen=True, eq=False)
class FieldMap:
    """A displacement as a map of points in mm of its own grid: voxel index times spacing."""

    u_vox: Tensor
    spacing: tuple[float, ...]

    def map_points(self, points_mm: NDArray[np.float64]) -> NDArray[np.float64]:
        """Images (n, d) of points (n, d)."""
        spacing = np.asarray(self.spacing)
        index = tensor_from_array((points_mm / spacing).T[None].copy(), self.u_vox.dtype, self.u_vox.device)
        step: NDArray[np.float64] = array_from_tensor(sample(self.u_vox, index))[0].T.astype(np.float64)
        moved: NDArray[np.float64] = points_mm + step * spacing
        return moved


def validate(
    network: nn.Module,
    pairs: Pairs,
    objective: Judge,
    *,
    processes: Processes | None = None,
    seed: int = 0,
    stop_wanted: Callable[[], bool] = lambda: False,
) -> dict[str, float]:
    """Means over all pairs of loss, folds, spread of the log-Jacobian, Dice and landmark error (mm).

    Of groups see `measure_group`.
    Dice: labels read by nearest neighbour, pairs that have labels.  tre_mm: pairs that have landmarks.
    A metric no pair can tell is left out.  Every process measures its share of the pairs.
    Raises InputError for a pair that cannot be read, Cancelled where `stop_wanted` says so between pairs (in
    a process alone: of several, the others would wait for it for ever).
    """
    processes = processes or Processes()
    drawn = SeededPairs(pairs, seed, 0)
    metrics = GROUP_METRICS if isinstance(objective, GroupObjective) else METRICS
    table = torch.zeros(len(drawn), len(metrics), dtype=torch.float64)
    trained = network.training
    network.eval()
    try:
        for index in range(processes.rank, len(drawn), processes.count):
            if processes.count == 1 and stop_wanted():
                raise Cancelled("Stopped while validating.")
            found = drawn[index]
            if found.item is None:
                raise InputError(f"Validation stopped. {found.problem}")
            row = measure(network, collate([found.item]).to(processes.device), objective)
            table[index] = torch.tensor([row.get(name, math.nan) for name in metrics], dtype=torch.float64)
    finally:
        network.train(trained)
    table = processes.sum(table.to(_summable(processes))).cpu()
    means = {
        name: float(column[~column.isnan()].mean())
        for name, column in zip(metrics, table.unbind(1), strict=True)
    }
    return {name: value for name, value in means.items() if not math.isnan(value)}


@torch.no_grad()
def measure(network: nn.Module, batch: Batch | GroupBatch, objective: Judge) -> dict[str, float]:
    """The metrics of one pair or group, without those its data do not allow."""
    if isinstance(batch, GroupBatch):
        assert isinstance(objective, GroupObjective)
        return measure_group(network, batch, objective)
    maps = network(batch.moving, batch.fixed)
    u_vox: Tensor = maps.u12.float()
    summary = deformation_summary(u_vox)
    row = {name: summary[name] for name in ("folded_percent", "sd_log_jacobian")}
    row["loss"] = float(objective(maps, batch)[0])
    if batch.moving_labels is not None and batch.fixed_labels is not None:
        moved = warp(batch.moving_labels.float(), u_vox, mode="nearest", outside="zeros").round()
        row["dice"] = mean_dice(
            array_from_tensor(batch.fixed_labels), array_from_tensor(moved).astype(np.int64)
        )
    if {"moving_points_vox", "fixed_points_vox"} <= set(batch.points):
        row["tre_mm"] = _landmark_error_mm(u_vox, batch.points, objective.spacing)
    return row


def metrics_of(config: TrainingConfig) -> tuple[str, ...]:
    """What is measured of a run's validation data, at most."""
    return GROUP_METRICS if config.groups else METRICS


def is_better(metric: str, value: float, best: float | None) -> bool:
    """True where a value of a metric beats the best so far; a value that is no number never does."""
    if not math.isfinite(value):
        return False
    return best is None or (value > best if HIGHER_IS_BETTER[metric] else value < best)


def require_metric(metric: str, found: Collection[str]) -> None:
    """Raises SettingsError where the validation data do not give what chooses the best weights."""
    if metric not in found:
        known = ", ".join(name for name in HIGHER_IS_BETTER if name in found)
        raise SettingsError(
            f"The best weights are to be chosen by '{metric}', which the validation images do not allow; "
            f"choose one of {known} (--set best=loss), or add labels (dice) or landmarks (tre_mm)."
        )


def _landmark_error_mm(u_vox: Tensor, points: Mapping[str, Tensor], spacing: Sequence[float] | None) -> float:
    steps = tuple(spacing or (1.0,) * u_vox.shape[1])
    fixed, moving = (
        array_from_tensor(points[f"{role}_points_vox"]).astype(np.float64) * np.asarray(steps)
        for role in ("fixed", "moving")
    )
    return float(tre_mm(fixed, moving, FieldMap(u_vox, steps)).mean())


def _summable(processes: Processes) -> torch.device:
    """Where messages between processes live: cards talk about what is on them."""
    return processes.device if processes.count > 1 else torch.device("cpu")
