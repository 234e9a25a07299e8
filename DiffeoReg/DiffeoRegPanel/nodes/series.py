"""What the registration of a group leaves: sequences of transforms and of aligned images, played together."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import slicer

from DiffeoRegLib.errors import InputError
from DiffeoRegLib.exchange import Image
from DiffeoRegPanel.nodes.colours import colour_table, ramp, show_between
from DiffeoRegPanel.nodes.frames import Frames
from DiffeoRegPanel.nodes.layers import chain
from DiffeoRegPanel.nodes.places import KJI, remember_parent, vtk_from_matrix
from DiffeoRegPanel.nodes.points import transfer_markups
from DiffeoRegPanel.nodes.segmentations import transfer, transfer_label_map
from DiffeoRegPanel.nodes.transforms import Parts, transform_from_parts
from DiffeoRegPanel.nodes.volumes import vtk_image

FRAMES_PER_SECOND = 5.0
SHOWN_PERCENT = 99.5
STOPS = ((0.0, 0.0, 0.1), (0.35, 0.05, 0.45), (0.8, 0.2, 0.3), (0.98, 0.6, 0.1), (1.0, 1.0, 0.75))
"""Of the uncertainty: from sure, dark, to unsure, light."""


class Ways(NamedTuple):
    """Parts of the transforms of one frame: common point -> point of the frame, and back."""

    out: Parts
    back: Parts


@dataclass
class SeriesNodes:
    """What was made for a series: sequences of one item for each frame, and the browser that plays them.

    uncertainty: standard deviation of the motion, mm; mean: of the aligned images.  None: not asked for.
    """

    aligned: Any = None
    transforms: Any = None
    uncertainty: Any = None
    mean: Any = None
    browser: Any = None


def series_nodes(
    scene: Any,
    frames: Frames,
    ways: Sequence[Ways],
    aligned: Sequence[Image],
    *,
    mean: Image | None = None,
    uncertainty: Sequence[Image] | None = None,
    name: str | None = None,
) -> SeriesNodes:
    """Sequences of aligned images and of transforms with the values of the frames, in one browser.

    aligned: the frames on the common voxels.  The transform of a frame belongs over its image, as the output
    transform of a pair does.  mean, uncertainty: of the common space, the latter on voxels of its own.
    Raises InputError when the numbers differ; then, and whenever something fails, no node is left.
    """
    name = name or frames.name
    for what, given in (("transforms", ways), ("aligned images", aligned), ("uncertainties", uncertainty)):
        if given is not None and len(given) != len(frames):
            raise InputError(
                f"'{frames.name}' has {len(frames)} frames, and there are {len(given)} {what}: "
                "register again."
            )
    with nothing_left(scene) as made:
        found = SeriesNodes()
        found.aligned = _sequence(scene, made, frames, f"{name} aligned", [_volume(i) for i in aligned])
        items = [_transform(way.out, frames, number) for number, way in enumerate(ways)]
        found.transforms = _sequence(scene, made, frames, f"{name} transforms", items)
        if uncertainty is not None:
            volumes = [_volume(image) for image in uncertainty]
            found.uncertainty = _sequence(scene, made, frames, f"{name} uncertainty (mm)", volumes)
        if mean is not None:
            found.mean = _added(scene, made, slicer.vtkMRMLScalarVolumeNode(), f"{name} mean")
            _fill(found.mean, mean)
            found.mean.CreateDefaultDisplayNodes()
            _show_like(found.mean, frames.display, [mean])
        sequences = [s for s in (found.aligned, found.transforms, found.uncertainty) if s is not None]
        found.browser = browser_of(scene, sequences, f"{name} browser", made)
        _show_like(found.browser.GetProxyNode(found.aligned), frames.display, aligned)
        if uncertainty is not None:
            most = max(float(np.nanpercentile(image.array, SHOWN_PERCENT)) for image in uncertainty)
            proxy = found.browser.GetProxyNode(found.uncertainty)
            table = colour_table(scene, "uncertainty", "Uncertainty", ramp(STOPS))
            show_between(proxy, 0.0, max(most, 1e-6), table)
    return found


def browser_of(scene: Any, sequences: Sequence[Any], name: str, made: list[Any] | None = None) -> Any:
    """A browser that plays sequences of equal values together, led by the first; it shows item 0."""
    browser = _added(scene, [] if made is None else made, slicer.vtkMRMLSequenceBrowserNode(), name)
    browser.SetAndObserveMasterSequenceNodeID(sequences[0].GetID())
    browser.SetPlaybackRateFps(FRAMES_PER_SECOND)
    for sequence in sequences[1:]:
        join(browser, sequence)
    show_frame(browser, 0)
    return browser


def join(browser: Any, sequence: Any) -> None:
    """Let a browser play one more sequence along with the others."""
    browser.AddSynchronizedSequenceNode(sequence.GetID())
    show_frame(browser, browser.GetSelectedItemNumber())


def show_frame(browser: Any, number: int) -> None:
    """Let all nodes of a browser show one frame, counted from 0."""
    browser.SetSelectedItemNumber(number)
    # A logic without a scene: with one, it would register its node classes a second time.
    slicer.vtkSlicerSequencesLogic().UpdateProxyNodesFromSequences(browser)


def carried_sequence(
    scene: Any,
    node: Any,
    frames: Frames,
    ways: Sequence[Ways],
    number: int,
    *,
    browser: Any = None,
    name: str | None = None,
) -> Any:
    """What is marked on one frame, on every frame: a sequence, which a browser may play with the others.

    node: segmentation, label map or markups that lie on frame `number`, counted from 0.  On that frame they
    stay where they are.  Everything lies at the root of the scene, on the voxels of each frame.
    Raises InputError for other nodes, a number out of range, and what carrying one of them raises.
    """
    if not 0 <= number < len(frames):
        raise InputError(
            f"'{frames.name}' has no frame {number}: its {len(frames)} frames are counted from 0."
        )
    if len(ways) != len(frames):
        raise InputError(
            f"'{frames.name}' has {len(frames)} frames and {len(ways)} transforms: register again."
        )
    carry = carrier_of(node)
    with nothing_left(scene) as made:
        items = []
        for other in range(len(frames)):
            volume = _volume(frames.images[other])
            volume.SetName(frames.frames[other].name)
            target = node.CreateNodeInstance()
            # To be carried, and to be drawn, a node needs its scene; the sequence keeps a copy of it.
            for helper in (volume, target):
                _added(scene, made, helper, helper.GetName() or node.GetName())
            items.append(carry(node, ways, number, other, volume, target))
        wanted = name or f"{node.GetName()} on all frames of {frames.name}"
        sequence = _sequence(scene, [], frames, wanted, items)
        for helper in reversed(made):
            _remove(scene, helper)
        made[:] = [sequence]
        if browser is not None:
            join(browser, sequence)
            _look_like(browser.GetProxyNode(sequence), node)
    return sequence


@contextmanager
def nothing_left(scene: Any) -> Iterator[list[Any]]:
    """A list of nodes that are taken out of the scene again when something fails."""
    made: list[Any] = []
    before = {scene.GetNthNode(n).GetID() for n in range(scene.GetNumberOfNodes())}
    scene.StartState(slicer.vtkMRMLScene.BatchProcessState)
    try:
        yield made
    except BaseException:
        nodes = [scene.GetNthNode(n) for n in range(scene.GetNumberOfNodes())]
        for node in reversed([node for node in nodes if node.GetID() not in before]):
            scene.RemoveNode(node)
        raise
    finally:
        scene.EndState(slicer.vtkMRMLScene.BatchProcessState)


def carrier_of(node: Any) -> Callable[..., Any]:
    """How a node of this kind goes from one frame to another; raises InputError for other kinds."""
    if node.IsA("vtkMRMLMarkupsNode"):
        return _carry_points
    if node.IsA("vtkMRMLSegmentationNode") or node.IsA("vtkMRMLLabelMapVolumeNode"):
        return _carry_labels
    raise InputError(
        f"'{node.GetName()}' cannot be carried to the frames: choose a segmentation, a label map or markups."
    )


def _carry_points(node: Any, ways: Sequence[Ways], number: int, other: int, volume: Any, target: Any) -> Any:
    """From the frame the points lie on to the common space, and from there to the other frame."""
    return transfer_markups(node, _between(ways, number, other), volume, node=target)


def _carry_labels(node: Any, ways: Sequence[Ways], number: int, other: int, volume: Any, target: Any) -> Any:
    """Every voxel of the other frame looks where it lies in the frame with the labels."""
    carry = transfer if node.IsA("vtkMRMLSegmentationNode") else transfer_label_map
    return carry(node, _between(ways, other, number), volume, node=target)


def _between(ways: Sequence[Ways], start: int, end: int) -> Any:
    """From the points of one frame to those of another; nothing at all for the same frame."""
    if start == end:
        return chain(np.eye(4))
    return chain(transform_from_parts(ways[start].back), transform_from_parts(ways[end].out))


def _sequence(scene: Any, made: list[Any], frames: Frames, name: str, items: Sequence[Any]) -> Any:
    """A sequence with the values of the frames; it copies the items."""
    sequence = _added(scene, made, slicer.vtkMRMLSequenceNode(), name)
    sequence.SetIndexName(frames.index_name)
    sequence.SetIndexUnit(frames.index_unit)
    kind = slicer.vtkMRMLSequenceNode
    sequence.SetIndexType(kind.NumericIndex if frames.numeric else kind.TextIndex)
    for frame, item in zip(frames.frames, items, strict=True):
        item.SetName(name)
        sequence.SetDataNodeAtValue(item, frame.value)
    return sequence


def _added(scene: Any, made: list[Any], node: Any, name: str) -> Any:
    node.SetName(scene.GetUniqueNameByString(name))
    node = scene.AddNode(node)
    made.append(node)
    return node


def _remove(scene: Any, node: Any) -> None:
    """A node with what was made to draw it."""
    displays = [node.GetNthDisplayNode(n) for n in range(node.GetNumberOfDisplayNodes())]
    for extra in [*displays, node]:
        if extra is not None:
            scene.RemoveNode(extra)


def _volume(image: Image) -> Any:
    node = slicer.vtkMRMLScalarVolumeNode()
    _fill(node, image)
    return node


def _fill(node: Any, image: Image) -> None:
    node.SetAndObserveImageData(vtk_image(image.array))
    node.SetIJKToRASMatrix(vtk_from_matrix(image.world_from_voxel[:, KJI]))


def _transform(parts: Parts, frames: Frames, number: int) -> Any:
    """The transform to put over the image of a frame, in whose parent space it ends."""
    parent = frames.frames[number].parent
    node = slicer.vtkMRMLTransformNode()
    node.SetAndObserveTransformFromParent(transform_from_parts(parts, np.linalg.inv(parent)))
    remember_parent(node, parent)
    return node


def _show_like(node: Any, display: Any, images: Sequence[Image]) -> None:
    """The window and colours of another display; without one a window that suits all images."""
    mine = node.GetDisplayNode()
    mine.AutoWindowLevelOff()
    if display is not None and display.GetWindow() > 0:
        mine.SetWindowLevel(display.GetWindow(), display.GetLevel())
        if display.GetColorNodeID():
            mine.SetAndObserveColorNodeID(display.GetColorNodeID())
        return
    ends = [np.nanpercentile(image.array, (100 - SHOWN_PERCENT, SHOWN_PERCENT)) for image in images]
    low, high = min(end[0] for end in ends), max(end[1] for end in ends)
    mine.SetWindowLevelMinMax(float(low), float(max(high, low + 1e-6)))


def _look_like(proxy: Any, node: Any) -> None:
    """The look of the node that was carried."""
    mine, other = proxy.GetDisplayNode(), node.GetDisplayNode()
    if mine is not None and other is not None:
        mine.CopyContent(other)
        if other.GetColorNodeID():
            mine.SetAndObserveColorNodeID(other.GetColorNodeID())
