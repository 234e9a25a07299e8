"""Pictures as PNG bytes, with nothing but zlib: Slicer's Python has no plotting library."""

from __future__ import annotations

import struct
import zlib
from typing import Any

import numpy as np
from numpy.typing import NDArray

from DiffeoRegLib.errors import ShapeError


def png_bytes(picture: NDArray[np.uint8]) -> bytes:
    """A PNG file of a grey (h, w) or colour (h, w, 3) picture of 8-bit values.

    Raises ShapeError for any other array.  Source: PNG specification, W3C 2003, sections 5 and 11.
    """
    if picture.dtype != np.uint8 or picture.ndim not in (2, 3) or picture.shape[2:] not in ((), (3,)):
        raise ShapeError(f"A picture is (h, w) or (h, w, 3) bytes, not {picture.shape} {picture.dtype}.")
    height, width = picture.shape[:2]
    colour = 0 if picture.ndim == 2 else 2
    rows = picture.reshape(height, -1)
    above = np.vstack([np.zeros_like(rows[:1]), rows[:-1]])
    lines = np.empty((height, rows.shape[1] + 1), np.uint8)
    lines[:, 0] = 2  # filter "up": each byte minus the one above it, which compresses smooth pictures better
    lines[:, 1:] = rows - above
    head = struct.pack(">IIBBBBB", width, height, 8, colour, 0, 0, 0)
    packed = zlib.compress(lines.tobytes(), 6)  # level 9 takes six times as long for 3 % fewer bytes
    chunks = [(b"IHDR", head), (b"IDAT", packed), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(_chunk(kind, data) for kind, data in chunks)


def grey(values: NDArray[Any]) -> NDArray[np.uint8]:
    """Values in 0..1 as bytes; what is outside is cut, NaN is black."""
    return np.asarray(np.round(255 * np.clip(np.nan_to_num(values), 0, 1)), dtype=np.uint8)


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
