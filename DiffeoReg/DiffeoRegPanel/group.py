"""The registration of a group inside Slicer, from request to nodes, for panel and console alike."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import slicer

from DiffeoRegLib.catalog import card
from DiffeoRegLib.errors import InputError
from DiffeoRegLib.settings import Settings
from DiffeoRegPanel.nodes.frame_masks import Masks, check_masks, masks_of
from DiffeoRegPanel.nodes.frames import Frames, frames_of
from DiffeoRegPanel.nodes.group_table import group_table
from DiffeoRegPanel.nodes.hierarchy import place_beside
from DiffeoRegPanel.nodes.places import parent_matrix
from DiffeoRegPanel.nodes.series import SeriesNodes, Ways, carried_sequence, carrier_of, series_nodes
from DiffeoRegPanel.nodes.series_check import check_series, series_inverse_error_mm
from DiffeoRegPanel.registration import Underway, all_or_nothing
from DiffeoRegPanel.request import STORAGES, Region
from DiffeoRegPanel.runner import Runner

SIMILARITIES = ("nmi", "mse", "lncc", "lncc-squared")
"""What the engine can compare a group by."""
ALIGNMENTS = ("auto", "identity", "rigid", "affine")
"""Where the engine can start a group from."""
BESIDES = {
    "transforms": "DiffeoReg.Transforms",
    "uncertainty": "DiffeoReg.Uncertainty",
    "mean": "DiffeoReg.Mean",
    "reportTable": "DiffeoReg.Report",
}
"""Results that the browser of a group knows, by their names; its first sequence holds the aligned images."""


@dataclass(frozen=True, eq=False)
class GroupRequest:
    """One registration of several images to one of them or to the middle of all.

    images: a sequence node, its browser, or several volume nodes in their order.
    fixed: number of the image that stays, from 0; None = the middle.
    masks: a Region for all images, or one for each (a list with None, or of a sequence): where they count.
    carried: segmentations, label maps and markups that lie on image `marked`, from 0, to carry to all.
    leave_out: go on without an image that has no use (constant, or without a finite value).
    storage: grid of the transforms, `half` the resolution of the common space or `full`.
    """

    images: Any
    settings: Settings = field(default_factory=Settings)
    fixed: int | None = None
    masks: Masks = None
    carried: tuple[Any, ...] = ()
    marked: int = 0
    want_mean: bool = True
    want_uncertainty: bool = True
    leave_out: bool = False
    storage: str = "half"


@dataclass
class GroupResult:
    """The nodes that the registration of a group made, and its numbers; None for what was not asked for.

    transforms: a sequence; each belongs over its image and brings it to the common space.
    aligned, uncertainty: sequences.  mean: a volume.  browser: plays all sequences together.
    carried: a sequence for each node of the request, in its order.  report: see Resources/docs/report.md.
    selfCheck: whether Slicer shows what the engine computed.
    """

    transforms: Any = None
    aligned: Any = None
    mean: Any = None
    uncertainty: Any = None
    browser: Any = None
    carried: list[Any] = field(default_factory=list)
    reportTable: Any = None
    report: dict[str, Any] = field(default_factory=dict)
    selfCheck: Any = None


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
    if settings.method != "svf" and not card(settings.method).needs_group:
        raise InputError(
            f"'{card(settings.method).title}' registers a pair, not a group: choose 'svf', or a method of "
            "groups."
        )
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
    check_masks(request.masks, frames)
    if request.carried and request.leave_out:
        _check_marked(request, frames)
    for node in request.carried:
        carrier_of(node)
        parent_matrix(node)
    return frames


def _check_marked(request: GroupRequest, frames: Frames) -> None:
    """What is carried lies on an image that is not left out; else raise InputError, before the run."""
    frame, node = frames.frames[request.marked], request.carried[0]
    finite = frame.image.array[np.isfinite(frame.image.array)]
    if finite.size == 0 or finite.min() == finite.max():
        raise InputError(
            f"'{frame.name}', on which '{node.GetName()}' lies, has no use and would be left out: carry what "
            "lies on another frame, or nothing."
        )


def check_unchanged(request: GroupRequest, before: Frames) -> None:
    """Raise InputError where the images are not what and where they were when the run began."""
    given = [request.images] if hasattr(request.images, "IsA") else list(request.images)
    marked = [request.masks] if isinstance(request.masks, Region) else request.masks or []
    masks = [region.node for region in marked if region is not None]
    for node in (*given, *masks, *request.carried):
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
        "masks": masks_of(request.masks, frames),
        "leave_out": request.leave_out,
        "uncertainty": request.want_uncertainty,
        "storage": request.storage,
    }


def group_nodes(scene: Any, request: GroupRequest, frames: Frames, answer: Mapping[str, Any]) -> GroupResult:
    """All nodes of a finished run; images that the engine left out have none."""
    kept = list(answer["kept"])
    frames = frames.taken(kept)
    ways = [Ways(*pair) for pair in zip(answer["transforms"], answer["inverses"], strict=True)]
    made: SeriesNodes = series_nodes(
        scene, frames, ways, answer["aligned"], mean=answer["mean"] if request.want_mean else None,
        uncertainty=answer["uncertainty"],
    )  # fmt: skip
    result = GroupResult(
        made.transforms, made.aligned, made.mean, made.uncertainty, made.browser,
        report=dict(answer["report"]),
        selfCheck=check_series(
            frames, made.transforms, made.aligned, answer["aligned"], request.settings.interpolation
        ),
    )  # fmt: skip
    result.report["notes"] = [*result.report.get("notes", []), result.selfCheck.sentence]
    result.report["inverse_in_slicer_mm"] = series_inverse_error_mm(made.transforms, made.aligned, ways)
    for node in request.carried:
        number = kept.index(request.marked)
        result.carried.append(carried_sequence(scene, node, frames, ways, number, browser=made.browser))
    title = scene.GetUniqueNameByString(f"Report, group {frames.name}")
    result.reportTable = group_table(scene, result.report, [frame.name for frame in frames.frames], title)
    for name, role in BESIDES.items():
        if getattr(result, name) is not None:
            made.browser.SetNodeReferenceID(role, getattr(result, name).GetID())
    beside = request.images if hasattr(request.images, "IsA") else request.images[0]
    for node in (
        result.transforms, result.aligned, result.mean, result.uncertainty, result.browser,
        *result.carried, result.reportTable,
    ):  # fmt: skip
        if node is not None:
            place_beside(node, beside)
    return result


def group_nodes_of(browser: Any) -> dict[str, Any]:
    """What a browser of a result plays or knows, by the names of GroupResult; None for what is not there.

    Of sequences, the node that shows one item at a time.
    """
    if browser is None or browser.GetMasterSequenceNode() is None:
        return {}
    found = {name: browser.GetNodeReference(role) for name, role in BESIDES.items()}
    found["aligned"] = browser.GetMasterSequenceNode()
    shown = {
        name: browser.GetProxyNode(node) if node is not None and node.IsA("vtkMRMLSequenceNode") else node
        for name, node in found.items()
    }
    return shown if shown["aligned"] is not None else {}
