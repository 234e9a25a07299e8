"""What a motion is made again from, as nodes of the scene: exact numbers, spread over vector volumes.

Slicer's files of volumes hold three values a voxel everywhere, five nowhere: what has more is spread over
several vector volumes, of which the first knows the others.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from DiffeoRegLib.errors import InputError
from DiffeoRegLib.exchange import Image
from DiffeoRegPanel.nodes.places import (
    KJI,
    Matrix,
    local_from_voxel,
    numbers_of,
    parent_matrix,
    remember_parent,
    text_of,
    vtk_from_matrix,
)
from DiffeoRegPanel.nodes.volumes import FIXED, MOVING, array_of, vtk_image

VECTOR = "vtkMRMLVectorVolumeNode"
OTHERS = "DiffeoReg.KeptOthers"
"""Role of the nodes that hold the rest of the arrays."""
PARTS = "DiffeoReg.KeptParts"
"""Attribute of the first node: how many nodes there are with it."""
ARRAY, PLACE, CHECK = "DiffeoReg.KeptArray", "DiffeoReg.KeptPlace", "DiffeoReg.KeptCheck"
"""Attributes of every node: JSON of name, first channel, number; world from voxel; check sum."""
CHANNELS = 3
TURNED = np.array([-1, -1, 1], dtype=np.float32)
"""What a reader does to vectors that it takes for LPS."""


class Kind(NamedTuple):
    """A kind of content: attribute of the first node that holds its description, as JSON, and its name.

    were: the verb that goes with the name.
    """

    attribute: str
    word: str
    were: str = "was"


class Piece(NamedTuple):
    """Up to three channels of an array: its name, the first channel, how many, (k, j, i, 3) values, place."""

    name: str
    first: int
    count: int
    values: NDArray[np.float32]
    world_from_voxel: Matrix


def fill(
    scene: Any,
    kind: Kind,
    content: Mapping[str, Any],
    title: Callable[[Piece], str],
    fixed: Any,
    moving: Any,
    *,
    parent: Matrix | None = None,
    node: Any = None,
) -> Any:
    """The vector volume of the first array, with which the other nodes come and go.

    content: the worker's `description` and `arrays`, Images (k, j, i, channels).  title: name of a node.
    node, parent: as for a velocity node; of its other nodes it keeps what it needs, see `spare_nodes`.
    Raises InputError when `node` is no vector volume.
    """
    if node is not None and not node.IsA(VECTOR):
        raise InputError(f"'{node.GetName()}' is no vector volume: choose another node for the {kind.word}.")
    pieces = [piece for key, image in content["arrays"].items() for piece in _pieces(key, image)]
    former = [] if node is None else [node, *other_nodes(node)]
    nodes = []
    for number, piece in enumerate(pieces):
        here = former[number] if number < len(former) else None
        nodes.append(_filled(scene, piece, title(piece), here))
    first = nodes[0]
    first.SetAttribute(kind.attribute, json.dumps(content["description"], sort_keys=True))
    first.SetAttribute(PARTS, str(len(nodes)))
    first.RemoveNodeReferenceIDs(OTHERS)
    for other in nodes[1:]:
        first.AddNodeReferenceID(OTHERS, other.GetID())
    first.SetNodeReferenceID(FIXED, fixed.GetID())
    first.SetNodeReferenceID(MOVING, moving.GetID())
    remember_parent(first, parent_matrix(moving) if parent is None else parent)
    return first


def holds(node: Any, kind: Kind) -> bool:
    """Whether `fill` has filled it with this kind of content."""
    return node is not None and node.GetAttribute(kind.attribute) is not None


def other_nodes(node: Any) -> list[Any]:
    """The nodes that hold what the first one has no room for."""
    count = node.GetNumberOfNodeReferences(OTHERS)
    found = (node.GetNthNodeReference(OTHERS, number) for number in range(count))
    return [other for other in found if other is not None]


def spare_nodes(node: Any, before: Sequence[Any]) -> list[Any]:
    """Those of its former other nodes that a node has no use for any more."""
    kept = {other.GetID() for other in other_nodes(node)}
    return [other for other in before if other.GetID() not in kept]


def content_of(node: Any, kind: Kind) -> dict[str, Any]:
    """What `fill` was given, exactly.

    Raises InputError when one of the nodes was changed, moved or removed since.
    """
    try:
        description = json.loads(node.GetAttribute(kind.attribute))
        if int(node.GetAttribute(PARTS)) != 1 + len(other_nodes(node)):
            raise ValueError("a part of it was removed")
        pieces = [_piece(part) for part in (node, *other_nodes(node))]
    except (TypeError, ValueError, AttributeError, KeyError) as error:
        raise InputError(
            f"The {kind.word} in '{node.GetName()}' {kind.were} changed ({error}): register again."
        ) from error
    names = dict.fromkeys(piece.name for piece in pieces)
    return {"description": description, "arrays": {name: _joined(name, pieces) for name in names}}


def _pieces(name: str, image: Image) -> Iterator[Piece]:
    """An array in pieces of three channels; the last one is filled up with zeros."""
    channels = image.array.shape[3]
    for first in range(0, channels, CHANNELS):
        count = min(CHANNELS, channels - first)
        values = np.zeros((*image.array.shape[:3], CHANNELS), dtype=np.float32)
        values[..., :count] = image.array[..., first : first + count]
        yield Piece(name, first, count, values, image.world_from_voxel)


def _joined(name: str, pieces: list[Piece]) -> Image:
    """The array of the pieces of this name."""
    own = sorted((piece for piece in pieces if piece.name == name), key=lambda piece: piece.first)
    array = np.concatenate([piece.values[..., : piece.count] for piece in own], axis=3)
    return Image(array, own[0].world_from_voxel, name)


def _filled(scene: Any, piece: Piece, name: str, node: Any) -> Any:
    node = node or scene.AddNewNodeByClass(VECTOR, scene.GetUniqueNameByString(name))
    node.SetAndObserveImageData(vtk_image(piece.values))
    node.SetIJKToRASMatrix(vtk_from_matrix(piece.world_from_voxel[:, KJI]))
    node.SetAndObserveTransformNodeID(None)
    node.SetAttribute(ARRAY, json.dumps([piece.name, piece.first, piece.count]))
    node.SetAttribute(PLACE, text_of(piece.world_from_voxel))
    node.SetAttribute(CHECK, _check_sum(piece.values))
    return node


def _piece(node: Any) -> Piece:
    """What a node holds; raises ValueError when it is not what was written."""
    name, first, count = json.loads(node.GetAttribute(ARRAY))
    world = numbers_of(node.GetAttribute(PLACE)).reshape(4, 4)
    values = _in_order(array_of(node), local_from_voxel(node), world)
    if values.dtype == np.float32 and values.shape[3] == CHANNELS:
        for candidate in (values, values * TURNED):
            if _check_sum(candidate) == node.GetAttribute(CHECK):
                return Piece(name, int(first), int(count), candidate, world)
    raise ValueError("its numbers are not the ones that were kept")


def _in_order(array: NDArray[Any], world_now: Matrix, world: Matrix) -> NDArray[Any]:
    """The voxels in the order they had: readers reverse the slices of a left-handed volume."""
    shape = np.array(array.shape[:3])
    now_from_then = np.linalg.inv(world_now) @ world
    signs = np.sign(np.diag(now_from_then)[:3])
    expected = np.diag([*signs, 1.0])
    expected[:3, 3] = np.where(signs < 0, shape - 1, 0)
    if np.abs(now_from_then - expected).max() > 1e-3:
        raise ValueError("it was moved")
    return np.flip(array, [axis for axis in range(3) if signs[axis] < 0])


def _check_sum(values: NDArray[Any]) -> str:
    """Of the numbers; zeros without their sign, which turning to and fro may change."""
    return f"{zlib.crc32(np.ascontiguousarray(values + np.float32(0)).tobytes()):08x}"
