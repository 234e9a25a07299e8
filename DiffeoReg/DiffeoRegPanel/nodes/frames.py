"""A series of images: the frames of a sequence, or several volumes, each where it lies in the world."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from DiffeoRegLib.errors import InputError
from DiffeoRegLib.exchange import Image
from DiffeoRegPanel.nodes.places import Matrix, local_from_voxel, parent_matrix
from DiffeoRegPanel.nodes.volumes import array_of

SEQUENCE, BROWSER = "vtkMRMLSequenceNode", "vtkMRMLSequenceBrowserNode"
VOLUME, LABEL_MAP = "vtkMRMLScalarVolumeNode", "vtkMRMLLabelMapVolumeNode"
FEWEST = 2


@dataclass(frozen=True, eq=False)
class Frame:
    """One image: name, its value in the series (a time, or a number from 0), its voxels in the world.

    parent: world from the space in which its node is defined, which `image` takes in.
    node: that node; a sequence's lies in no scene.
    """

    name: str
    value: str
    image: Image
    parent: Matrix
    node: Any = None


@dataclass(frozen=True, eq=False)
class Frames:
    """Images in their order, and what their values are: `time` in `s`, or `frame` without a unit.

    display: a display node whose window and colours suit all of them; None where there is none.
    """

    name: str
    frames: tuple[Frame, ...]
    index_name: str = "frame"
    index_unit: str = ""
    numeric: bool = True
    display: Any = None

    @property
    def images(self) -> list[Image]:
        """The images alone."""
        return [frame.image for frame in self.frames]

    def taken(self, numbers: Sequence[int]) -> Frames:
        """Some of the frames alone."""
        return replace(self, frames=tuple(self.frames[number] for number in numbers))

    def __len__(self) -> int:
        return len(self.frames)


def frames_of(nodes: Any) -> Frames:
    """The frames of a sequence node, or the images of several volume nodes; views, no copies of voxels.

    Raises InputError for anything else, for fewer than two images, and for an image that cannot be used.
    """
    if hasattr(nodes, "IsA") and nodes.IsA(SEQUENCE):
        found = _of_sequence(nodes)
    elif hasattr(nodes, "IsA") and nodes.IsA(BROWSER):
        found = _of_sequence(_master_of(nodes))
    else:
        found = _of_volumes([nodes] if hasattr(nodes, "IsA") else list(nodes))
    if len(found) < FEWEST:
        raise InputError(
            f"'{found.name}' holds {len(found)} image{'' if len(found) == 1 else 's'}, and a group needs at "
            f"least {FEWEST}: choose a sequence with more frames, or more volumes."
        )
    return found


def proxy_of(sequence: Any) -> Any:
    """The node that shows the frames of a sequence in its scene; None where no browser shows it."""
    for browser in _browsers(sequence.GetScene()):
        proxy = browser.GetProxyNode(sequence)
        if proxy is not None:
            return proxy
    return None


def sequence_shown_by(node: Any) -> Any:
    """The sequence whose frames a node shows one at a time; None for a node that stands for itself."""
    for browser in _browsers(node.GetScene()):
        if browser.IsProxyNodeID(node.GetID()):
            return browser.GetSequenceNode(node)
    return None


def _of_sequence(sequence: Any) -> Frames:
    """Frames lie where the node that shows them lies: they have no parent transform of their own."""
    proxy = proxy_of(sequence)
    parent = np.eye(4) if proxy is None else parent_matrix(proxy)
    unit, frames = sequence.GetIndexUnit() or "", []
    for number in range(sequence.GetNumberOfDataNodes()):
        value = sequence.GetNthIndexValue(number)
        name = f"{sequence.GetName()}, {sequence.GetIndexName() or 'frame'} {value} {unit}".strip()
        frames.append(_frame(sequence.GetNthDataNode(number), name, value, parent))
    return Frames(
        sequence.GetName(), tuple(frames), sequence.GetIndexName() or "frame", unit,
        sequence.GetIndexType() == sequence.NumericIndex, None if proxy is None else proxy.GetDisplayNode(),
    )  # fmt: skip


def _of_volumes(nodes: Sequence[Any]) -> Frames:
    for number, node in enumerate(nodes):
        if any(node is other for other in nodes[:number]):
            raise InputError(f"'{node.GetName()}' is chosen twice: choose every volume once.")
        for browser in _browsers(node.GetScene()):
            if browser.IsProxyNodeID(node.GetID()):
                raise InputError(
                    f"'{node.GetName()}' shows one frame of a sequence at a time: choose the sequence, "
                    f"which the browser '{browser.GetName()}' plays."
                )
    frames = tuple(
        _frame(node, node.GetName(), str(number), parent_matrix(node)) for number, node in enumerate(nodes)
    )
    name = frames[0].name if frames else "The group"
    return Frames(name, frames, display=nodes[0].GetDisplayNode() if nodes else None)


def _frame(node: Any, name: str, value: str, parent: Matrix) -> Frame:
    if node is None or not node.IsA(VOLUME) or node.IsA(LABEL_MAP):
        raise InputError(f"'{name}' is not an image: choose images, or a sequence of images.")
    array = array_of(node)
    if array.ndim != 3:
        raise InputError(
            f"'{name}' has {array.shape[3]} values per voxel (a colour or vector volume): convert it with "
            "the Vector to Scalar Volume module and choose the result."
        )
    return Frame(name, value, Image(array, parent @ local_from_voxel(node), name), parent, node)


def _master_of(browser: Any) -> Any:
    sequence = browser.GetMasterSequenceNode()
    if sequence is None:
        raise InputError(f"The browser '{browser.GetName()}' plays no sequence: choose a sequence.")
    return sequence


def _browsers(scene: Any) -> Iterator[Any]:
    count = 0 if scene is None else scene.GetNumberOfNodesByClass(BROWSER)
    yield from (scene.GetNthNodeByClass(number, BROWSER) for number in range(count))
