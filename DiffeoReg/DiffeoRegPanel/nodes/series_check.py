"""Do the transforms of a series show what the engine computed, and do they lead back?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from DiffeoRegLib.exchange import Image
from DiffeoRegPanel.nodes.frames import Frames
from DiffeoRegPanel.nodes.selfcheck import MOST_VOXELS, SelfCheck, check_transform, measured
from DiffeoRegPanel.nodes.series import Ways
from DiffeoRegPanel.nodes.transforms import ways_error_mm
from DiffeoRegPanel.nodes.volumes import grid_points

FEWEST_VOXELS = 50_000
"""Compared of every image, however many there are."""
POINTS, FEWEST_POINTS = 20_000, 1_000
"""Of all images together, and of each, that go there and back."""


def check_series(
    frames: Frames, transforms: Any, aligned: Any, images: Sequence[Image], interpolation: str = "linear"
) -> SelfCheck:
    """Compare every frame, resampled once by VTK through its transform, with the engine's aligned image.

    transforms, aligned: sequences.  images: what the engine made of each frame.
    The worst of all is given, with a sentence that names it.  Nothing is added to the scene.
    """
    most = max(FEWEST_VOXELS, MOST_VOXELS // len(frames))
    checks = [
        check_transform(
            transforms.GetNthDataNode(number), frame.node, aligned.GetNthDataNode(number), images[number],
            interpolation=interpolation, most_voxels=most,
        )
        for number, frame in enumerate(frames.frames)
    ]  # fmt: skip
    number, worst = max(enumerate(checks), key=lambda item: (not item[1].ok, item[1].share_of_range))
    if worst.ok:
        sentence = (
            f"The {len(checks)} transforms move the images exactly as the registration did "
            f"({measured(worst)})."
        )
        return replace(worst, sentence=sentence)
    return replace(worst, sentence=f"Of '{frames.frames[number].name}': {worst.sentence}")


def series_inverse_error_mm(transforms: Any, aligned: Any, ways: Sequence[Ways]) -> dict[str, float]:
    """mean, p95 and max of |T^-1(T(x)) - x|, mm, each of the frame where it is largest.

    T^-1 is once the stored inverse, once VTK's numeric inverse of the transform: markups are carried by the
    former, and Slicer itself takes the latter.
    """
    about, worst = max(FEWEST_POINTS, POINTS // len(ways)), dict[str, float]()
    for number, way in enumerate(ways):
        points = grid_points(aligned.GetNthDataNode(number), about)
        found = ways_error_mm(transforms.GetNthDataNode(number), way.back, points)
        worst = {name: max(worst.get(name, 0.0), value) for name, value in found.items()}
    return worst
