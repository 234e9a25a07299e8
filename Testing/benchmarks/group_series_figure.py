"""A dynamic series before and after it was registered as a group: the mean, and one line of all frames.

    python Testing/benchmarks/group_series_figure.py SERIES.nii.gz -o FIGURE.png [--axis 0] [--place SHARE]

The series goes to the middle (local correlation).  Left: a slice of the mean of all frames; middle: their
standard deviation at every voxel, each frame scaled by its own window, so that contrast counts as little as
it can.  Right: one line of every frame, side by side: what moves jumps from one to the next.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import torch
from torch import Tensor

from DiffeoRegLib.groupwise import register_group
from DiffeoRegLib.settings import Settings
from DiffeoRegLib.space.sample import array_from_tensor
from DiffeoRegLib.volumes.intensity import finite, intensity_window
from DiffeoRegLib.volumes.series_files import read_series
from DiffeoRegLib.volumes.volume import Volume

STRIP = 12
"""Width of the line of one frame in the picture, columns."""
Box = tuple[slice, slice]


def scaled(frames: Sequence[Volume]) -> Tensor:
    """All frames in [0, 1], each by its own window, (K, *spatial)."""
    found = []
    for frame in map(finite, frames):
        low, high = intensity_window(frame)
        found.append(((frame.data.float() - low) / (high - low)).clamp(0, 1))
    return torch.stack(found)


def sharpness(mean: Tensor) -> float:
    """Mean length of the slope of an image, per voxel."""
    slopes = torch.gradient(mean)
    return float(torch.stack([slope.square() for slope in slopes]).sum(0).sqrt().mean())


def streak(frames: Tensor, column: int) -> Tensor:
    """Column `column` of every frame (K, rows, columns) as a strip, side by side: (rows, K STRIP)."""
    return frames[:, :, column].T.repeat_interleave(STRIP, dim=1)


def facts(before: Tensor, after: Tensor) -> dict[str, Any]:
    """Sharpness of the mean and mean standard deviation over the frames, of frames (K, *spatial)."""
    return {
        "sharpness": [sharpness(frames.mean(0)) for frames in (before, after)],
        "deviation": [float(frames.std(0).mean()) for frames in (before, after)],
    }


def draw(before: Tensor, after: Tensor, box: Box, column: int, spacing: Sequence[float], path: Path) -> None:
    """One slice of all frames, (K, rows, columns), shown within a box; spacing: of rows and columns, mm."""
    figure, axes = plt.subplots(2, 3, figsize=(10, 6.2), gridspec_kw={"width_ratios": [1, 1, 0.55]})
    spread = max(float(frames.std(0)[box].max()) for frames in (before, after))
    for row, (name, frames) in enumerate((("before", before), ("after", after))):
        shown = frames[:, *box]
        parts = (shown.mean(0), shown.std(0), streak(shown, column))
        titles = ("mean of all frames", "deviation over the frames", "one line, frame by frame")
        for axis, part, title, top in zip(axes[row], parts, titles, (1.0, spread, 1.0), strict=True):
            line = title.startswith("one")
            axis.imshow(
                array_from_tensor(part), cmap="gray", vmin=0, vmax=top, origin="lower",
                aspect="auto" if line else spacing[0] / spacing[1], interpolation="nearest",
            )  # fmt: skip
            axis.set(xticks=[], yticks=[], title=f"{name}: {title}")
            axis.title.set_fontsize(9)
        axes[row][0].axvline(column, color="tab:orange", linewidth=0.8)
        for border in range(1, len(frames)):
            axes[row][2].axvline(border * STRIP - 0.5, color="tab:orange", linewidth=0.4)
    figure.tight_layout()
    figure.savefig(path, dpi=100)
    plt.close(figure)


def main() -> None:
    """Register, measure and draw."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("series", type=Path, help="a 4D file")
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--axis", type=int, default=0, help="axis of the array that is cut")
    parser.add_argument("--place", type=float, default=0.5, help="of the slice along it, 0 to 1")
    parser.add_argument("--box", type=float, nargs=4, default=(0, 1, 0, 1), help="shown part: rows, columns")
    parser.add_argument("--line", type=float, default=0.5, help="column of the line, 0 to 1 of the box")
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    frames = read_series(arguments.series)
    settings = Settings(init="identity", device="cpu", similarity="lncc", threads=arguments.threads)
    result = register_group(frames, settings, with_uncertainty=False)
    grid = result.view
    before, after = scaled(frames), scaled(result.aligned)
    print(facts(before, after))
    place = round(arguments.place * (grid.shape[arguments.axis] - 1))
    cut = [images.select(1 + arguments.axis, place) for images in (before, after)]
    rows, columns = cut[0].shape[1:]
    first, last, left, right = np.multiply(arguments.box, (rows, rows, columns, columns)).round().astype(int)
    box = (slice(int(first), int(last)), slice(int(left), int(right)))
    spacing = [step for axis, step in enumerate(grid.spacing) if axis != arguments.axis]
    draw(cut[0], cut[1], box, round(arguments.line * (right - left - 1)), spacing, arguments.output)


if __name__ == "__main__":
    main()
