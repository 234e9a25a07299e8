"""Whether a transform file is all there: ITK reads a shortened linear one and puts its centre at 0."""

from __future__ import annotations

import struct
from pathlib import Path

HDF5_MARK = b"\x89HDF\r\n\x1a\n"
MATLAB_HEADER = struct.Struct("<5i")  # number type, rows, columns, imaginary, length of the name


def require_whole_text(path: Path) -> None:
    """Raises EOFError unless every transform of an ITK text file has all its centre coordinates."""
    blocks = path.read_text(encoding="utf-8").split("Transform:")[1:]
    for block in blocks:
        name = block.split(maxsplit=1)[0]
        if name.startswith("CompositeTransform"):
            continue
        fields = dict(line.split(":", 1) for line in block.splitlines()[1:] if ":" in line)
        if "Parameters" not in fields or "FixedParameters" not in fields:
            raise EOFError(f"{name} lacks parameters")
        dim = name.rsplit("_", 1)[-1]
        count = len(fields["FixedParameters"].split())
        if (dim.isdigit() and 0 < count < int(dim)) or not block.endswith("\n"):
            raise EOFError(f"{name} ends early")


def require_whole_matlab(path: Path) -> None:
    """Raises EOFError unless a MATLAB 4 file, as ITK writes it, holds whole pairs of vectors."""
    content = path.read_bytes()
    at = vectors = 0
    while at < len(content):
        if len(content) - at < MATLAB_HEADER.size:
            raise EOFError("the header of a vector ends early")
        kind, rows, columns, _, name = MATLAB_HEADER.unpack_from(content, at)
        if min(rows, columns, name) < 0:
            raise EOFError("the header of a vector is no header")
        at += MATLAB_HEADER.size + name + rows * columns * (4 if kind == 10 else 8)
        vectors += 1
    if at != len(content) or vectors % 2:
        raise EOFError("a vector ends early")


def require_whole_hdf5(path: Path) -> None:
    """Raises EOFError unless an HDF5 file is as long as it says: else its library may crash.

    Source: HDF5 file format specification, II.A (superblock).
    """
    with path.open("rb") as file:
        head = file.read(64)
    if not head.startswith(HDF5_MARK):
        return  # the library says so
    version = head[8]
    size_at, end_at = (13, 40 if version == 0 else 44) if version < 2 else (9, 28)
    if head[size_at] != 8:
        raise EOFError("the addresses in the file are not of 64 bits")
    if int.from_bytes(head[end_at : end_at + 8], "little") != path.stat().st_size:
        raise EOFError("the file is not as long as it says")
