"""A picture of what `lesion_data.py` made; run by hand.

    PYTHONPATH=. python Testing/benchmarks/lesion_figure.py CASES OUT.png [--most 4]

One row per set, up to `--most` cases of each: the healthy image to move, the patient with the outline of the
lesion and, where the truth is known, where it moves tissue; of a 3D case the slice with most of the lesion.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import matplotlib
import numpy as np
from numpy.typing import NDArray

from DiffeoRegLib.space.sample import array_from_tensor
from Testing.benchmarks.lesion_data import Case, cases

matplotlib.use("Agg")
import matplotlib.pyplot as plt

SETS = ("real-2d", "known-2d", "other-2d", "real-3d", "known-3d", "other-3d")
ARROWS = 9
"""Voxels between arrows, of a picture 160 wide."""


def planes(case: Case) -> dict[str, NDArray[np.float64]]:
    """2D arrays by name, `truth` (2, *shape); rows along A, columns along R."""
    arrays = {name: array_from_tensor(getattr(case, name)[0]) for name in ("moving", "fixed", "pathology")}
    if case.truth_vox is not None:
        arrays["truth"] = array_from_tensor(case.truth_vox[0])
    if case.fixed.dim() == 5:
        level = int(arrays["pathology"][0].sum((1, 2)).argmax())
        arrays = {name: values[:, level] for name, values in arrays.items()}
    return {name: values[-2:] if name == "truth" else values[0] for name, values in arrays.items()}


def draw(folder: Path, path: Path, most: int = 4) -> None:
    """The picture of a folder of sets."""
    figure, axes = plt.subplots(len(SETS), 2 * most, figsize=(2.2 * 2 * most, 2.7 * len(SETS)), squeeze=False)
    for row, name in zip(axes, SETS, strict=True):
        for axis in row:
            axis.axis("off")
        found = list(cases(folder / name))
        chosen = found[:: max(1, len(found) // most)][:most]
        for number, case in enumerate(chosen):
            shown = planes(case)
            left, right = row[2 * number], row[2 * number + 1]
            for axis, key in ((left, "moving"), (right, "fixed")):
                axis.imshow(shown[key], cmap="gray", vmin=0, vmax=1, origin="lower")
            left.set_title(f"{name}: {case.name}", fontsize=7, loc="left")
            right.contour(shown["pathology"], [0.5], colors="tab:red", linewidths=0.7)
            if "truth" in shown:
                step = max(2, ARROWS * shown["fixed"].shape[1] // 160)
                rows, columns = np.mgrid[: shown["fixed"].shape[0] : step, : shown["fixed"].shape[1] : step]
                along, across = shown["truth"][:, ::step, ::step]
                right.quiver(columns, rows, across, along, angles="xy", scale_units="xy", scale=1,
                             color="gold", width=0.006)  # fmt: skip
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=90)
    plt.close(figure)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("cases", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--most", type=int, default=4)
    options = parser.parse_args()
    draw(options.cases, options.out, options.most)


if __name__ == "__main__":
    main()
