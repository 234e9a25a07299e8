"""The check sums that image formats carry, looked at: the libraries stop at the last voxel, before them.

Without this a turned bit in a packed file comes back as another image, and nobody is told.
Sources: RFC 1950 (zlib) and 1952 (gzip), the PNG specification (section 5.3), the NRRD and MetaImage formats.
"""

from __future__ import annotations

import struct
import zlib
from pathlib import Path
from typing import BinaryIO

BLOCK = 1 << 20
LONGEST_HEADER = 1 << 24
SLACK = 1 << 24
"""Bytes before and after the voxels that a packed file may hold: headers, extensions."""
ZLIB_OR_GZIP = 32 + zlib.MAX_WBITS
GZIPPED = (".gz", ".mgz")
TIFF_BYTES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8}
"""Of one value of each type of tag."""
PNG_MARK = b"\x89PNG\r\n\x1a\n"


def require_sums(path: Path, data_files: list[Path], claimed_bytes: int) -> None:
    """Raises EOFError, ValueError or zlib.error for a file that its own check sums call damaged.

    data_files: where its voxels are, itself or others.  claimed_bytes: of the voxels its header promises; a
    packed file that holds far more is not unpacked to its end, but refused.
    """
    suffix = path.suffix.lower()
    if suffix == ".png":
        with path.open("rb") as file:
            _require_chunks(file)
        return
    if suffix in (".tif", ".tiff"):
        with path.open("rb") as file:
            _require_tags(file, path.stat().st_size)
        return
    if suffix in (".nrrd", ".nhdr"):
        packed, start = _nrrd(path)
    elif suffix in (".mha", ".mhd"):
        packed, start = _meta(path)
    else:
        packed, start = True, 0
        data_files = [file for file in data_files if file.suffix.lower() in GZIPPED]
    if not packed:
        return
    for part in data_files:
        with part.open("rb") as stream:
            stream.seek(start if part == path else 0)
            _require_stream(stream, claimed_bytes)


def _require_stream(stream: BinaryIO, claimed_bytes: int) -> None:
    """Unpacks all members of a deflate stream, and forgets what they hold."""
    total, rest = 0, b""
    while total < claimed_bytes:
        unpack, rest = zlib.decompressobj(ZLIB_OR_GZIP), rest or stream.read(BLOCK)
        while not unpack.eof:
            if not rest and not (rest := stream.read(BLOCK)):
                raise EOFError("a packed stream ends early")
            total += len(unpack.decompress(rest, BLOCK))
            rest = unpack.unconsumed_tail
            if total > claimed_bytes + SLACK:
                raise ValueError("a packed stream holds far more than its header promises")
        rest = unpack.unused_data


def _nrrd(path: Path) -> tuple[bool, int]:
    """Whether the voxels are packed by deflate, and where they begin in the file itself."""
    packed = skips = False
    with path.open("rb") as file:
        while line := file.readline(LONGEST_HEADER).strip():
            key, _, value = line.lower().partition(b":")
            packed |= key == b"encoding" and value.strip() in (b"gzip", b"gz")
            skips |= key.replace(b" ", b"") in (b"byteskip", b"lineskip") and value.strip() != b"0"
        return packed and not skips, file.tell()


def _meta(path: Path) -> tuple[bool, int]:
    packed = skips = False
    with path.open("rb") as file:
        while line := file.readline(LONGEST_HEADER):
            key, _, value = line.strip().lower().partition(b"=")
            key, value = key.strip(), value.strip()
            packed |= key == b"compresseddata" and value in (b"true", b"1", b"t")
            skips |= key == b"headersize" and value != b"0"
            if key == b"elementdatafile":
                break
        return packed and not skips, file.tell()


def _require_chunks(file: BinaryIO) -> None:
    """Reads a PNG file piece by piece to its end mark."""
    if file.read(len(PNG_MARK)) != PNG_MARK:
        raise ValueError("this is no PNG file")
    kind = b""
    while kind != b"IEND":
        length, kind = struct.unpack(">I4s", file.read(8))
        content = file.read(length)
        if struct.pack(">I", zlib.crc32(kind + content)) != file.read(4):
            raise ValueError("the check sum of a PNG chunk is wrong")


def _require_tags(file: BinaryIO, size: int) -> None:
    """Raises ValueError for a TIFF file whose first picture has tags beyond its end: they would be left out.

    Source: TIFF revision 6.0, section 2.
    """
    order = {b"II": "<", b"MM": ">"}.get(file.read(2))
    if order is None:
        raise ValueError("this is no TIFF file")
    kind, at = struct.unpack(f"{order}HI", file.read(6))
    if kind != 42:
        return  # the large kind: the library says what it cannot read
    file.seek(at)
    (count,) = struct.unpack(f"{order}H", file.read(2))
    for _ in range(count):
        _, value, number, place = struct.unpack(f"{order}HHII", file.read(12))
        length = TIFF_BYTES.get(value, 0) * number
        if length > 4 and place + length > size:
            raise ValueError("a TIFF file ends before its tags do")
