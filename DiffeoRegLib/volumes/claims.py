"""What an image file claims, checked before memory is taken or another file is opened for it.

A header is text that anybody can write: it may promise more voxels than the file can hold or the computer can
take, and it may name files elsewhere that would be read as voxels.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import BinaryIO

from DiffeoRegLib.errors import FileFormatError
from DiffeoRegLib.main_memory import main_memory_bytes

MOST_INFLATED = 1032
"""Bytes that one byte of a deflate stream (gzip, zlib) can become; source: the notes of zlib's authors."""
OURS = 4
"""Bytes of a voxel as DiffeoReg holds it, beside those of the file."""
LONGEST_HEADER = 1 << 24
WITH_HEADER = (".nrrd", ".nhdr", ".mha", ".mhd")
OUTSIDE = "put the data file beside the header, or save the image as one file."


def require_room(path: Path, voxels: int, voxel_bytes: int, most_bytes: int | None = None) -> None:
    """Refuses voxels that cannot be in a file, or cannot be read into this computer's memory.

    voxel_bytes: of one voxel in the file, all its values.  most_bytes: that the file can hold at the very
    most, unpacked; None = not known.  Raises FileFormatError.
    """
    claimed = voxels * voxel_bytes
    if most_bytes is not None and claimed > most_bytes:
        raise FileFormatError(
            f"'{path}' promises {voxels} voxels ({_size(claimed)}), more than can be in it: it is damaged or "
            "cut short. Copy or export it again."
        )
    needed, free = claimed + OURS * voxels, main_memory_bytes()
    if free is not None and needed > free:
        raise FileFormatError(
            f"'{path}' has {voxels} voxels, which take {_size(needed)} to read, and this computer has "
            f"{_size(free)} of memory left. Close other programs, or crop or coarsen the image first."
        )


def unpacked_bytes(files: list[Path], *, packed: bool) -> int:
    """The most that files can hold, bytes; packed: by deflate, as in .gz files."""
    size = sum(file.stat().st_size for file in files if file.is_file())
    return size * MOST_INFLATED if packed else size


def data_files(path: Path) -> list[Path]:
    """The files that hold the voxels of an NRRD or MetaImage header: itself, or those it names.

    Raises FileFormatError for names that lead out of its folder, and for patterns, which the reading library
    would hand to `printf`.
    """
    if path.suffix.lower() not in WITH_HEADER:
        return [path]
    with path.open("rb") as file:
        names = list(_nrrd_names(file) if file.read(4) == b"NRRD" else _meta_names(file))
    for name in names:
        _require_beside(path, name)
    return [path.parent / name for name in names] or [path]


def _lines(file: BinaryIO) -> Iterator[str]:
    """The lines of a header, from the start of the file; they end with the header, or with the file."""
    file.seek(0)
    left = LONGEST_HEADER
    while left > 0 and (line := file.readline(left)):
        left -= len(line)
        yield line.decode("latin-1").strip()


def _nrrd_names(file: BinaryIO) -> Iterator[str]:
    lines = _lines(file)
    for line in lines:
        if not line:
            return  # the voxels follow
        key, colon, value = line.partition(":")
        if colon and not value.startswith("=") and key.replace(" ", "").lower() == "datafile":
            words = value.strip()
            yield from (words,) if words.split(" ")[0] != "LIST" else (name for name in lines if name)
            return


def _meta_names(file: BinaryIO) -> Iterator[str]:
    lines = _lines(file)
    for line in lines:
        key, equals, value = line.partition("=")
        if equals and key.strip().lower() == "elementdatafile":
            words = value.strip()
            if words.upper() == "LOCAL":
                return
            yield from (words,) if words.split(" ")[0] != "LIST" else (name for name in lines if name)
            return


def _require_beside(path: Path, name: str) -> None:
    parts = PurePosixPath(name.replace("\\", "/"))
    windows = PureWindowsPath(name)
    if "%" in name:
        raise FileFormatError(
            f"'{path}' names its files by the pattern '{name}', which is not read: {OUTSIDE}"
        )
    if name == "-" or parts.is_absolute() or ".." in parts.parts or windows.drive or windows.root:
        raise FileFormatError(f"'{path}' takes its voxels from '{name}', outside its own folder: {OUTSIDE}")


def _size(count: int) -> str:
    return f"{count / 1e6:.2g} MB" if count < 1e8 else f"{count / 1e9:.{0 if count >= 1e11 else 1}f} GB"
