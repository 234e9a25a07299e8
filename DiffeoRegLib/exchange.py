"""How a program hands volumes to the worker process and gets them back: raw arrays beside one JSON file.

No torch here: the panel writes and reads these inside Slicer. Bytes, not NRRD: the two sides run on the same
computer, and a plain copy of a volume takes a tenth of the time of any image format.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from DiffeoRegLib.errors import FileFormatError, OutputError

NUMBERS = "biuf"
"""Kinds of numpy types that voxels are of; objects, for one, are pointers into memory."""
RAW = "raw array"  # the key that marks an image among the other entries of the JSON file


@dataclass(frozen=True, eq=False)
class Image:
    """Voxels and where they lie.

    array: (k, j, i) values, or (k, j, i, 3) vectors with x, y, z components in RAS mm.
    world_from_voxel: float64 4x4, RAS mm of the voxel (k, j, i, 1).
    """

    array: NDArray[Any]
    world_from_voxel: NDArray[np.float64]
    name: str = ""


def pack(tree: Mapping[str, Any], folder: Path, name: str) -> None:
    """Write a tree of plain values and Images: `name`.json and one file for the voxels of every Image.

    Raises OutputError when the folder cannot be written to.
    """
    try:
        plain = _without_arrays(tree, folder, name)
        text = json.dumps(plain, allow_nan=False)
        part = folder / f"{name}.part"
        part.write_text(text, encoding="utf-8")
        part.replace(folder / f"{name}.json")  # the reader never sees half a file
    except OSError as error:
        raise OutputError(
            f"Temporary files could not be written to '{folder}': {error.strerror or error}. "
            "Free some space there, or choose another temporary folder."
        ) from error


def unpack(folder: Path, name: str) -> Any:
    """What `pack` wrote. Raises FileFormatError when it is not there or damaged."""
    path = folder / f"{name}.json"
    try:
        return _with_arrays(json.loads(path.read_text(encoding="utf-8")), folder)
    except (OSError, ValueError, KeyError, TypeError, SyntaxError, RecursionError) as error:
        # SyntaxError: numpy parses the name of a number type.
        raise FileFormatError(f"The exchange file '{path.name}' cannot be read: {error}.") from error


def _without_arrays(value: Any, folder: Path, name: str) -> Any:
    """The tree with every Image replaced by an entry that names its file."""
    if isinstance(value, Image):
        file = f"{name}.{len(list(folder.glob(f'{name}.*.raw')))}.raw"
        array = np.ascontiguousarray(value.array)
        array.tofile(folder / file)
        return {
            RAW: file, "dtype": array.dtype.str, "shape": list(array.shape),
            "world_from_voxel": np.asarray(value.world_from_voxel, dtype=float).tolist(), "name": value.name,
        }  # fmt: skip
    if isinstance(value, Mapping):
        return {str(key): _without_arrays(item, folder, name) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_without_arrays(item, folder, name) for item in value]
    if isinstance(value, np.ndarray):
        return value.tolist()
    if isinstance(value, np.generic):
        return value.item()
    return value


def _with_arrays(value: Any, folder: Path) -> Any:
    """The tree with every entry that names a file replaced by its Image."""
    if isinstance(value, list):
        return [_with_arrays(item, folder) for item in value]
    if not isinstance(value, dict):
        return value
    if RAW not in value:
        return {key: _with_arrays(item, folder) for key, item in value.items()}
    path = folder / Path(value[RAW]).name  # a name only: nothing outside the folder is ever read
    kind = np.dtype(value["dtype"])
    if kind.kind not in NUMBERS or kind.subdtype is not None:
        raise ValueError(f"'{path.name}' does not hold numbers but {kind}")
    array = np.fromfile(path, dtype=kind)
    if array.size != math.prod(value["shape"]):
        raise ValueError(f"'{path.name}' holds {array.size} values, not {value['shape']}")
    return Image(
        array.reshape(value["shape"]), np.array(value["world_from_voxel"], dtype=float), value["name"]
    )
