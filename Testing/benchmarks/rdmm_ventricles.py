"""A region-specific regulariser on a real pair: ventricles soft, the rest of the head stiff.

    PYTHONPATH=. python Testing/benchmarks/rdmm_ventricles.py --data DATA_FOLDER --figure build/ventricles.png

The pair has ventricles of clearly different size (by default two persons of the training part of the data
set: 13 ml fixed, 59 ml moving). Regions are those of the moving image's label map: 1 the lateral ventricles
with their inferior horns, 2 the rest of the brain; the third line of each method is what lies outside both.
Printed per method and region, on the fixed grid: displacement without the affine, determinant of its
derivative, folded corners; besides that Dice of the ventricles and of all labels. The figure shows, per
method, the moved image beside fixed and moving, the width of the regulariser at the start (in the moving
image) and at the end (in the fixed one), and the determinant.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import torch

from DiffeoRegLib.methods.start import find_start
from DiffeoRegLib.pipeline import Result, register
from DiffeoRegLib.report.regions import region_scores
from DiffeoRegLib.report.scores import deformation_of
from DiffeoRegLib.settings import Settings
from DiffeoRegLib.space.field import jacobian_determinant
from DiffeoRegLib.space.transform import AffineTransform
from DiffeoRegLib.stiffness import stiffness_of
from DiffeoRegLib.volumes.files import read_volume
from DiffeoRegLib.volumes.regions import Regions
from DiffeoRegLib.volumes.resample import warp_labels, warp_volume
from DiffeoRegLib.volumes.volume import Volume

VENTRICLES = (49, 50, 51, 52)
METHODS = ("lddmm", "rdmm", "rdmm-regions")
NAMES = {"1": "ventricles", "2": "rest of the brain", "rest": "outside"}


def parts_of(labels: Volume) -> Volume:
    """1 in the ventricles, 2 in the rest of the brain, 0 outside."""
    inside = torch.isin(labels.data, torch.tensor(VENTRICLES, dtype=labels.data.dtype))
    parts = torch.where(inside, 1, torch.where(labels.data > 0, 2, 0)).to(torch.int32)
    return Volume(parts, labels.grid, "parts", is_labels=True)


def dice(one: torch.Tensor, other: torch.Tensor, labels: list[int]) -> float:
    """Mean over labels."""
    scores = []
    for label in labels:
        a, b = one == label, other == label
        scores.append(2 * float((a & b).sum()) / max(float(a.sum() + b.sum()), 1.0))
    return float(np.mean(scores))


def show(rows: list[tuple[str, Result]], fixed: Volume, moving: Volume, parts: Volume, path: Path) -> None:
    """The figure; every grid is cut where the ventricles are largest."""
    figure, axes = plt.subplots(len(rows), 6, figsize=(12, 2.5 * len(rows)), squeeze=False)
    there = int((parts.data == 1).sum((1, 2)).argmax())
    centre = moving.grid.world_from_index([[there, *(n / 2 for n in moving.grid.shape[1:])]])
    for line, (name, result) in zip(axes, rows, strict=True):
        back = fixed.grid.index_from_world(result.initial.inverse().map_points(centre))
        here = round(float(back[0, 0]))
        deformation = deformation_of(result.transform, fixed.grid)
        assert deformation is not None
        determinant = Volume(jacobian_determinant(deformation.u_vox)[0], deformation.grid, "")
        read = warp_volume(determinant, AffineTransform(np.eye(4)), fixed.grid, fill=1.0)
        assert result.sigma is not None
        panels: list[tuple[str, Any, dict[str, Any]]] = [
            ("fixed", fixed.data[here], {"cmap": "gray"}),
            ("moving, affine", warp_volume(moving, result.initial, fixed.grid).data[here], {"cmap": "gray"}),
            ("moved", result.moved.data[here], {"cmap": "gray"}),
            ("sigma, mm, start (moving)", result.sigma[0].data[there], {"cmap": "viridis", "vmin": 0.0}),
            ("sigma, mm, end (fixed)", result.sigma[1].data[here], {"cmap": "viridis", "vmin": 0.0}),
            ("determinant", read.data[here], {"cmap": "coolwarm", "vmin": 0.0, "vmax": 2.0}),
        ]
        for axis, (title, values, how) in zip(line, panels, strict=True):
            shown = axis.imshow(np.flipud(values.float().numpy()), **how)
            axis.set_title(title, fontsize=8)
            axis.set_xticks([])
            axis.set_yticks([])
            if how["cmap"] != "gray":
                figure.colorbar(shown, ax=axis, fraction=0.05, pad=0.02).ax.tick_params(labelsize=6)
        line[0].set_ylabel(name, fontsize=10)
    figure.tight_layout(pad=1.0)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=60)


def main() -> None:
    """Register, print, draw."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True, help="folder with the public data sets")
    parser.add_argument("--fixed", default="1001")
    parser.add_argument("--moving", default="1005")
    parser.add_argument("--soft", default="soft", help="stiffness of the ventricles")
    parser.add_argument("--stiff", default="stiff", help="stiffness of all else")
    parser.add_argument("--methods", default=",".join(METHODS))
    parser.add_argument("--effort", default="balanced")
    parser.add_argument("--spacing", type=float, help="working voxel size, mm; the preset's is 1")
    parser.add_argument("--kinetic", type=float, help="of the method with regions")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--figure", type=Path)
    given = parser.parse_args()
    folder = given.data / "malf_miccai2012"
    fixed, moving = (read_volume(folder / f"{who}_SS.nii.gz") for who in (given.fixed, given.moving))
    truth = [read_volume(folder / f"{w}_glm.nii.gz", labels=True) for w in (given.fixed, given.moving)]
    common = sorted(set(truth[0].data.unique().tolist()) & set(truth[1].data.unique().tolist()) - {0})
    soft, stiff = stiffness_of(given.soft), stiffness_of(given.stiff)
    regions = Regions(parts_of(truth[1]), {1: soft, 2: stiff}, stiff)
    base = Settings(preset="brain-mr", effort=given.effort, threads=given.threads,
                    working_spacing_mm=given.spacing)  # fmt: skip
    start = find_start(fixed, moving, None, None, base, []).transform
    print("| method | region | ml | mean mm | most | det mean | std | least | most | folded % |")
    print("|---" * 10 + "|")
    rows, summary = [], []
    for method in given.methods.split(","):
        own = regions if method == "rdmm-regions" else None
        settings = base.with_changes(method=method, kinetic=given.kinetic if own else None)
        began = time.process_time()
        result = register(fixed, moving, settings, initial=start, regions=own)
        seconds = time.process_time() - began
        scores = region_scores(regions, result.transform, fixed.grid) or {}
        for label, row in scores.items():
            det, size = row["determinant"], row["displacement_mm"]
            numbers = [row["volume_mm3"] / 1000, size["mean"], size["max"]]
            numbers += [det[k] for k in ("mean", "std", "min", "max")] + [row["folded_percent"]]
            print(
                f"| {method} | {NAMES[label]} | " + " | ".join(f"{v:.3g}" for v in numbers) + " |", flush=True
            )
        moved = warp_labels(truth[1], result.transform, fixed.grid).data
        here = truth[0].data
        summary.append(
            f"{method}: Dice of the ventricles {dice(here, moved, list(VENTRICLES[2:])):.3f}, of all "
            f"{len(common)} labels {dice(here, moved, common):.4f}; {seconds:.0f} CPU s; "
            + " ".join(note for note in result.report["notes"] if "L-BFGS" in note or "fold" in note)
        )
        rows.append((method, result))
    print("\n".join(summary))
    if given.figure:
        show(rows, fixed, moving, regions.labels, given.figure)


if __name__ == "__main__":
    main()
