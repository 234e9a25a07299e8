"""The registration of a group inside Slicer, from request to nodes, for panel and console alike."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import slicer

from DiffeoRegLib.errors import InputError
from DiffeoRegLib.settings import Settings
from DiffeoRegPanel.nodes.frames import Frames, frames_of
from DiffeoRegPanel.nodes.group_table import group_table
from DiffeoRegPanel.nodes.hierarchy import place_beside
from DiffeoRegPanel.nodes.places import parent_matrix
from DiffeoRegPanel.nodes.series import SeriesNodes, Ways, carried_sequence, carrier_of, series_nodes
from DiffeoRegPanel.registration import Underway, all_or_nothing
from DiffeoRegPanel.request import STORAGES
from DiffeoRegPanel.runner import Runner

SIMILARITIES = ("nmi", "mse", "lncc", "lncc-squared")
"""What the engine can compare a group by."""
ALIGNMENTS = ("auto", "identity", "rigid", "affine")
"""Where the engine can start a group from."""


@dataclass(frozen=True, eq=False)
class GroupRequest:
    """One registration of several images to one of them or to the middle of all.

    images: a sequence node, its browser, or several volume nodes in their order.
    fixed: number of the image that stays, from 0; None = the middle.
    carried: segmentations, label maps and markups that lie on image `marked`, from 0, to carry to all.
    storage: grid of the transforms, `half` the resolution of the common space or `full`.
    """

    images: Any
    settings: Settings = field(default_factory=Settings)
    fixed: int | None = None
    carried: tuple[Any, ...] = ()
    marked: int = 0
    want_mean: bool = True
    want_uncertainty: bool = True
    storage: str = "half"


@dataclass
class GroupResult:
    """The nodes that the registration of a group made, and its numbers; None for what was not asked for.

    transforms: a sequence; each belongs over its image and brings it to the common space.
    aligned, uncertainty: sequences.  mean: a volume.  browser: plays all sequences together.
    carried: a sequence for each node of the request, in its order.  report: see Resources/docs/report.md.
    """

    transforms: Any = None
    aligned: Any = None
    mean: Any = None
    uncertainty: Any = None
    browser: Any = None
    carried: list[Any] = field(default_factory=list)
    reportTable: Any = None
    report: dict[str, Any] = field(default_factory=dict)


class GroupRegistration(Underway):
    """The registration of a group under way; its result is a GroupResult.

    Raises InputError at once for a request that cannot be carried out.
    """

    def __init__(self, request: GroupRequest, runner: Runner, scene: Any = None) -> None:
        self.request, self.scene = request, scene or slicer.mrmlScene
        self.frames = check_group(request)
        super().__init__(runner.start(job_of(request, self.frames)), self._nodes)

    def _nodes(self, answer: dict[str, Any]) -> GroupResult:
        check_unchanged(self.request, self.frames)
        with all_or_nothing(self.scene, []):
            return group_nodes(self.scene, self.request, self.frames, answer)


def check_group(request: GroupRequest) -> Frames:
    """The images of a request; raises InputError, one sentence that says what to do, for a bad one."""
    if request.images is None or (not hasattr(request.images, "IsA") and None in request.images):
        raise InputError("Choose a sequence, or two volumes or more.")
    frames = frames_of(request.images)
    for what, number in (("frame to register to", request.fixed), ("marked frame", request.marked)):
        if number is not None and not 0 <= number < len(frames):
            raise InputError(
                f"The {what} is number {number}, and '{frames.name}' has {len(frames)} frames, counted "
                "from 0: choose one of them."
            )
    settings = request.settings
    if settings.similarity is not None and settings.similarity not in SIMILARITIES:
        raise InputError(
            f"A group is not compared by '{settings.similarity}': choose one of {', '.join(SIMILARITIES)}."
        )
    if settings.init not in ALIGNMENTS:
        raise InputError(
            f"A group does not start from '{settings.init}': choose one of {', '.join(ALIGNMENTS)}."
        )
    if request.storage not in STORAGES:
        raise InputError(f"A transform is stored at 'half' or 'full' resolution, not {request.storage!r}.")
    for node in request.carried:
        carrier_of(node)
        parent_matrix(node)
    return frames


def check_unchanged(request: GroupRequest, before: Frames) -> None:
    """Raise InputError where the images are not what and where they were when the run began."""
    given = [request.images] if hasattr(request.images, "IsA") else list(request.images)
    for node in (*given, *request.carried):
        if node.GetScene() is None:
            raise InputError(
                f"'{node.GetName()}' was removed from the scene during the run, so there is no result and "
                "nothing was changed: choose another and apply again."
            )
    now = frames_of(request.images)
    same = len(now) == len(before) and all(
        new.value == old.value
        and new.image.array.shape == old.image.array.shape
        and np.allclose(new.image.world_from_voxel, old.image.world_from_voxel, atol=1e-6)
        for new, old in zip(now.frames, before.frames, strict=True)
    )
    if not same:
        raise InputError(
            f"'{before.name}' was changed during the run (frames, voxels or place), so nothing was made: "
            "apply again."
        )


def job_of(request: GroupRequest, frames: Frames) -> dict[str, Any]:
    """What the worker is told."""
    return {
        "kind": "group",
        "settings": dataclasses.asdict(request.settings),
        "images": frames.images,
        "fixed": request.fixed,
        "uncertainty": request.want_uncertainty,
        "storage": request.storage,
    }


def group_nodes(scene: Any, request: GroupRequest, frames: Frames, answer: Mapping[str, Any]) -> GroupResult:
    """All nodes of a finished run."""
    ways = [Ways(*pair) for pair in zip(answer["transforms"], answer["inverses"], strict=True)]
    made: SeriesNodes = series_nodes(
        scene, frames, ways, answer["aligned"], mean=answer["mean"] if request.want_mean else None,
        uncertainty=answer["uncertainty"],
    )  # fmt: skip
    result = GroupResult(
        made.transforms,
        made.aligned,
        made.mean,
        made.uncertainty,
        made.browser,
        report=dict(answer["report"]),
    )
    for node in request.carried:
        result.carried.append(
            carried_sequence(scene, node, frames, ways, request.marked, browser=made.browser)
        )
    title = scene.GetUniqueNameByString(f"Report, group {frames.name}")
    result.reportTable = group_table(scene, result.report, [frame.name for frame in frames.frames], title)
    beside = request.images if hasattr(request.images, "IsA") else request.images[0]
    for node in (
        result.transforms, result.aligned, result.mean, result.uncertainty, result.browser,
        *result.carried, result.reportTable,
    ):  # fmt: skip
        if node is not None:
            place_beside(node, beside)
    return result
