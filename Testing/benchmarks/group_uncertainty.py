"""Whether the predicted errors of a group are the real ones: synthetic groups whose motion is known.

    python Testing/benchmarks/group_uncertainty.py -o OUT [--threads 1] [--seeds N]

Every group is one template seen through K known flows, with noise and, in some, another contrast per image.
The standardised error is (found - true displacement) / predicted standard deviation, of every component, in
the object; its root mean square should be near 1.  Writes groups.json and calibration.png: predicted error
against the real one, in ten classes of equal size per group.  SEARCH_WIDTHS was chosen on the groups of N = 0
(the default): those of another N are new to it.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import torch
from torch import Tensor

from DiffeoRegLib.flows.exponential import midpoint_exp
from DiffeoRegLib.methods.base import Progress
from DiffeoRegLib.methods.group_search import centred, search
from DiffeoRegLib.methods.group_uncertainty import Uncertainty, uncertainty
from DiffeoRegLib.settings import Settings
from DiffeoRegLib.space.field import change_grid
from DiffeoRegLib.space.filters import gaussian_smooth
from DiffeoRegLib.space.grid import Grid
from DiffeoRegLib.space.sample import array_from_tensor, warp
from DiffeoRegLib.volumes.group import Group

CLASSES = 10


@dataclass(frozen=True)
class Case:
    """One synthetic group: voxels of 1 mm; motion_mm: SD of the velocities, width_mm: of their Gaussian."""

    name: str
    shape: tuple[int, ...]
    count: int
    noise: float
    motion_mm: float
    width_mm: float
    similarity: str = "nmi"
    contrasts: bool = False
    fixed: int | None = None
    detail_mm: float = 2.0
    seed: int = 0


CASES = (
    Case("2D", (112, 112), 5, 0.03, 2.0, 12.0),
    Case("2D, more noise", (112, 112), 5, 0.08, 2.0, 12.0, seed=1),
    Case("2D, contrasts", (112, 112), 5, 0.03, 2.0, 12.0, contrasts=True, seed=2),
    Case("2D, all to one", (112, 112), 5, 0.03, 2.0, 12.0, fixed=2, seed=3),
    Case("2D, lncc", (112, 112), 5, 0.03, 2.0, 12.0, "lncc", seed=4),
    Case("2D, variance", (112, 112), 5, 0.03, 2.0, 12.0, "mse", seed=5),
    Case("2D, two images", (112, 112), 2, 0.03, 2.0, 12.0, seed=6),
    Case("2D, twelve images", (96, 96), 12, 0.05, 2.0, 12.0, seed=7),
    Case("2D, larger motion", (112, 112), 5, 0.03, 4.0, 16.0, seed=8),
    Case("2D, little detail", (112, 112), 5, 0.03, 2.0, 12.0, detail_mm=4.0, seed=9),
    Case("3D", (44, 48, 44), 3, 0.03, 1.5, 9.0, seed=10),
    Case("3D, lncc, all to one", (44, 48, 44), 3, 0.05, 1.5, 9.0, "lncc", fixed=0, seed=11),
)


def made(case: Case) -> tuple[Group, Tensor, Tensor]:
    """The group, its velocities (K, d, *shape) in voxels of 1 mm, and where the object is, (*shape)."""
    generator = torch.Generator().manual_seed(case.seed)
    dim = len(case.shape)
    grid = Grid(case.shape, np.eye(4))
    axes = [torch.linspace(-1, 1, n) for n in case.shape]
    radius = torch.stack(torch.meshgrid(*axes, indexing="ij")).square().sum(0).sqrt()
    inside = gaussian_smooth((radius < 0.75).float()[None, None], 1.5)
    texture = gaussian_smooth(torch.randn((1, 1, *case.shape), generator=generator), case.detail_mm)
    broad = gaussian_smooth(torch.randn((1, 1, *case.shape), generator=generator), 3 * case.detail_mm)
    template = inside * (0.55 + 0.12 * texture / texture.std() + 0.12 * broad / broad.std()).clamp(0.1, 1.0)
    white = torch.randn((case.count, dim, *case.shape), generator=generator)
    velocities = gaussian_smooth(white, case.width_mm)
    object_ = inside[0, 0] > 0.9
    velocities = centred(velocities * (case.motion_mm / velocities[:, :, object_].std()), case.fixed)
    images = []
    for index in range(case.count):
        seen = warp(template, midpoint_exp(-velocities[index : index + 1]))
        if case.contrasts:
            seen = seen ** (0.5 + 1.5 * index / case.count)
            seen = 0.9 - 0.8 * seen if index % 2 else seen
        noise = torch.randn(seen.shape, generator=generator) * case.noise
        images.append((0.05 + 0.9 * seen + noise).clamp(0, 1))
    count = case.count
    group = Group(images, grid, [np.eye(4)] * count, [None] * count, [False] * count)
    return group, velocities, object_


def judged(case: Case) -> dict[str, Any]:
    """Errors of one group, predicted and real."""
    group, truth, inside = made(case)
    settings = Settings(
        device="cpu", similarity=case.similarity, levels_mm=(4.0, 2.0, 1.0), iterations=(40, 40, 30)
    )
    began = time.process_time()
    motion = search(group, settings, case.fixed, quiet)
    searched = time.process_time()
    predicted = uncertainty(group, motion, settings, quiet)
    done = time.process_time()
    error, deviation = errors(
        truth, motion.velocities_vox, motion.grid, predicted, group.grid, inside, case.fixed
    )
    standardised = error / deviation
    order = np.argsort(deviation)
    classes = [
        (float(np.sqrt((deviation[part] ** 2).mean())), float(np.sqrt((error[part] ** 2).mean())))
        for part in np.array_split(order, CLASSES)
    ]
    before = float(midpoint_exp(truth)[:, :, inside].square().sum(1).mean().sqrt())
    return {
        "name": case.name,
        "spread": float(np.sqrt((standardised**2).mean())),
        "within_two_percent": float(100 * (np.abs(standardised) < 2).mean()),
        "error_mm": float(np.sqrt((error**2).mean())),
        "predicted_mm": float(np.sqrt((deviation**2).mean())),
        "motion_mm": before,
        "correlation": float(
            np.corrcoef(np.log([c[0] for c in classes]), np.log([c[1] for c in classes]))[0, 1]
        ),
        "classes": classes,
        "prior_mm": [predicted.size_mm, predicted.width_mm],
        "noise": list(predicted.noise),
        "search_seconds": searched - began,
        "uncertainty_seconds": done - searched,
    }


def errors(
    truth: Tensor,
    velocities: Tensor,
    grid: Grid,
    predicted: Uncertainty,
    whole: Grid,
    inside: Tensor,
    fixed: int | None,
) -> tuple[Any, Any]:
    """Real errors and predicted deviations, mm, of all components of all moving images, flat."""
    real, expected = [], []
    spread = change_grid(predicted.components_mm, predicted.grid, whole)
    steps = spread.new_tensor(predicted.grid.spacing).view(1, -1, *[1] * whole.dim)
    spread = spread * spread.new_tensor(whole.spacing).view(steps.shape) / steps  # mm already
    for index in range(len(truth)):
        if index == fixed:
            continue
        found = midpoint_exp(change_grid(velocities[index : index + 1], grid, whole))
        apart = found - midpoint_exp(truth[index : index + 1])
        real.append(array_from_tensor(apart[0][:, inside]).ravel())
        expected.append(array_from_tensor(spread[index][:, inside]).ravel())
    return np.concatenate(real).astype(float), np.concatenate(expected).astype(float)


def quiet(step: Progress) -> None:
    """Nobody listens."""


def draw(found: list[dict[str, Any]], path: Path) -> None:
    """Predicted against real error, one line per group."""
    figure, axis = plt.subplots(figsize=(7.5, 6))
    colours = plt.get_cmap("tab20").colors  # type: ignore[attr-defined]
    for number, one in enumerate(found):
        x, y = np.array(one["classes"]).T
        axis.plot(
            x, y, "o-", markersize=3, linewidth=1, color=colours[number % len(colours)],
            label=f"{one['name']}: {one['spread']:.2f}",
        )  # fmt: skip
    every = [value for one in found for pair in one["classes"] for value in pair]
    line = np.array([0.8 * min(every), 1.25 * max(every)])
    axis.plot(line, line, "k-", linewidth=1)
    axis.fill_between(line, 0.7 * line, 1.5 * line, color="0.9", zorder=0, label="0.7 to 1.5")
    axis.set(
        xscale="log", yscale="log", xlabel="predicted standard deviation, mm", ylabel="real error (RMS), mm"
    )
    axis.legend(fontsize=8, title="standardised error (RMS)", loc="center left", bbox_to_anchor=(1, 0.5))
    figure.tight_layout()
    figure.savefig(path, dpi=130)
    plt.close(figure)


def main() -> None:
    """Measure all groups."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seeds", type=int, default=0, help="other groups: added to the seed of each")
    parser.add_argument("--only", default="", help="groups whose name holds this")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    arguments.output.mkdir(parents=True, exist_ok=True)
    found = []
    for case in CASES:
        if arguments.only in case.name:
            one = judged(replace(case, seed=case.seed + arguments.seeds))
            found.append(one)
            print(
                f"{one['name']:24} spread {one['spread']:.2f}  error {one['error_mm']:.3f} of "
                f"{one['motion_mm']:.2f} mm, predicted {one['predicted_mm']:.3f} mm, "
                f"{one['search_seconds']:.1f} + {one['uncertainty_seconds']:.1f} s", flush=True,
            )  # fmt: skip
    (arguments.output / "groups.json").write_text(json.dumps(found, indent=1), encoding="utf-8")
    draw(found, arguments.output / "calibration.png")


if __name__ == "__main__":
    main()
