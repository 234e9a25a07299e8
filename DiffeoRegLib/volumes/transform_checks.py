"""Whether a linear transform file is all there: ITK reads a shortened one and puts its centre at 0."""

from __future__ import annotations

import struct
from pathlib import Path

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
