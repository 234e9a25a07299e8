"""Seconds to carry a segmentation of 35 segments onto a 160 x 192 x 160 volume: run by hand.

    python Testing/benchmarks/segmentation_transfer.py [--repeats 5] [--threads 2]

Median of the repeats, through a field of half resolution with cubic interpolation and an affine, as a run
gives it; once with all segments in one layer, once with every segment in a layer of its own.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

REPOSITORY = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(REPOSITORY), str(REPOSITORY / "DiffeoReg")]

SHAPE = (160, 192, 160)
SEGMENTS = 35


def label_array() -> Any:
    """35 boxes of different sizes, together about a third of the volume."""
    labels = np.zeros(SHAPE, dtype=np.uint8)
    random = np.random.default_rng(0)
    for value in range(1, SEGMENTS + 1):
        low = (random.random(3) * np.array(SHAPE) * 0.7).astype(int)
        high = low + 20 + (random.random(3) * 40).astype(int)
        labels[tuple(slice(a, b) for a, b in zip(low, high, strict=True))] = value
    return labels


def registration() -> Any:
    """A cubic grid transform of half resolution, 5 mm large, and an affine after it."""
    import slicer
    import vtk
    from vtk.util import numpy_support

    shape = tuple(n // 2 + 4 for n in SHAPE)
    field = np.random.default_rng(1).normal(0, 2, (*shape, 3)).astype(np.float32)
    image = vtk.vtkImageData()
    image.SetDimensions(shape[::-1])
    image.SetSpacing(2, 2, 2)
    image.SetOrigin(-4, -4, -4)
    image.GetPointData().SetScalars(numpy_support.numpy_to_vtk(field.reshape(-1, 3), deep=True))
    grid = slicer.vtkOrientedGridTransform()
    grid.SetDisplacementGridData(image)
    grid.SetInterpolationModeToCubic()
    affine = vtk.vtkTransform()
    affine.RotateZ(5)
    affine.Scale(1.02, 0.97, 1.01)
    both = vtk.vtkGeneralTransform()
    both.PostMultiply()
    both.Concatenate(grid)
    both.Concatenate(affine)
    return both


def main() -> None:
    """Print one line per kind of segmentation."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    given = parser.parse_args()

    import slicer
    import slicer.util
    import vtk

    from DiffeoRegPanel.nodes import segmentations
    from Testing.slicer import region_cases as cases
    from Testing.slicer.bench import core

    vtk.vtkMultiThreader.SetGlobalMaximumNumberOfThreads(given.threads)
    scene = core.boot().scene
    fixed = slicer.util.addVolumeFromArray(np.zeros(SHAPE, np.float32), name="fixed")
    labels, through = label_array(), registration()
    names = [f"segment {n}" for n in range(1, SEGMENTS + 1)]
    apart = [np.where(labels == n, 1, 0).astype(np.uint8) for n in range(1, SEGMENTS + 1)]
    kinds = {
        "one shared layer": cases.add_segmentation(scene, [labels], np.eye(4), [names]),
        f"{SEGMENTS} layers": cases.add_segmentation(scene, apart, np.eye(4), [[name] for name in names]),
    }
    for kind, node in kinds.items():
        seconds, busy = [], []
        for _ in range(given.repeats):
            start, start_busy = time.perf_counter(), time.process_time()
            out = segmentations.transfer(node, through, fixed)
            seconds.append(time.perf_counter() - start)
            busy.append(time.process_time() - start_busy)
            scene.RemoveNode(out)
        print(
            f"{SEGMENTS} segments in {kind}: median {statistics.median(seconds):.2f} s "
            f"of {given.repeats} ({min(seconds):.2f} to {max(seconds):.2f} s), "
            f"processor time {statistics.median(busy):.2f} s"
        )


if __name__ == "__main__":
    main()
