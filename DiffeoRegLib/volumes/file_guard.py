"""What every file reader and writer shares: foreign errors become sentences, no half-written file stays."""

from __future__ import annotations

import csv
import os
import secrets
import shutil
import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import SimpleITK as sitk
from nibabel.filebasedimages import ImageFileError
from nibabel.spatialimages import HeaderDataError

from DiffeoRegLib.errors import DiffeoRegError, FileFormatError, OutputError, OutputExistsError

# What nibabel, ITK (RuntimeError), gzip and plain parsing raise on files that are not what they claim to be.
FOREIGN = (OSError, EOFError, RuntimeError, ValueError, KeyError, IndexError, TypeError, ArithmeticError)
READ_ERRORS = (*FOREIGN, AttributeError, zlib.error, struct.error, csv.Error, ImageFileError, HeaderDataError)
LONG_SUFFIXES = (".nii.gz", ".img.gz", ".hdr.gz", ".gipl.gz", ".mrk.json", ".seg.nrrd")


def suffix_of(path: Path) -> str:
    """Lower-case suffix, with both halves of the double ones: `.nii.gz`."""
    name = path.name.lower()
    for suffix in LONG_SUFFIXES:
        if name.endswith(suffix):
            return suffix
    return path.suffix.lower()


def stem_of(path: Path) -> str:
    """File name without its (double) suffix."""
    return path.name[: len(path.name) - len(suffix_of(path))] or path.name


@contextmanager
def quiet_itk() -> Iterator[None]:
    """Keeps ITK's warnings to itself: they go to the terminal and name its source files."""
    before = sitk.ProcessObject.GetGlobalWarningDisplay()
    sitk.ProcessObject.SetGlobalWarningDisplay(False)
    try:
        yield
    finally:
        sitk.ProcessObject.SetGlobalWarningDisplay(before)


@contextmanager
def reading(path: Path, what: str = "file") -> Iterator[None]:
    """Turns what goes wrong inside into a FileFormatError with one sentence; raises it for a missing file."""
    if not path.exists():
        raise FileFormatError(f"There is no file '{path}'. Check the name and the folder.")
    if path.is_file() and path.stat().st_size == 0:
        raise FileFormatError(f"'{path}' is empty. Copy or export it again.")
    try:
        yield
    except DiffeoRegError:
        raise
    except PermissionError as error:
        raise FileFormatError(f"'{path}' may not be read: permission is denied.") from error
    except MemoryError as error:
        raise FileFormatError(f"'{path}' does not fit into the memory of this computer.") from error
    except READ_ERRORS as error:
        raise FileFormatError(
            f"'{path}' could not be read as {what}: it is damaged, cut short or of another format. "
            "Copy or export it again."
        ) from error


def _try_room(path: Path, size: int) -> None:
    """Raises OSError unless the disk, its quota and the limits of this process take a file of this size."""
    with path.open("wb") as file:
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(file.fileno(), 0, size)
        else:
            file.truncate(size)
    path.unlink()


@contextmanager
def writing(path: Path, *, overwrite: bool, needed_bytes: int = 0) -> Iterator[Path]:
    """Gives a temporary name beside `path`; moves it there when all went well, removes it otherwise.

    needed_bytes: at most; refused beforehand where a file may not be so large (HDF5 ends the whole
    process when it cannot write).
    Raises OutputExistsError for an existing file unless `overwrite`, OutputError when writing fails.
    """
    if path.is_dir():
        raise OutputError(f"'{path}' is a folder; give the name of a file in it.")
    if path.exists() and not overwrite:
        raise OutputExistsError(f"'{path}' exists already. Choose another name, or allow overwriting.")
    if not path.parent.is_dir():
        raise OutputError(f"There is no folder '{path.parent}' to write '{path.name}' into. Create it first.")
    free = shutil.disk_usage(path.parent).free
    if free < needed_bytes:
        raise OutputError(
            f"'{path}' needs {needed_bytes / 1e6:.0f} MB and the disk has {free / 1e6:.0f} MB left. "
            "Free some space or choose another folder."
        )
    partial = path.with_name(f".{stem_of(path)}.{secrets.token_hex(4)}{suffix_of(path)}")
    try:
        if needed_bytes:
            _try_room(partial, needed_bytes)
        yield partial
        if not partial.is_file() or partial.stat().st_size == 0:
            raise OutputError(f"'{path}' could not be written: nothing arrived on the disk. Is it full?")
        partial.replace(path)
    except DiffeoRegError:
        raise
    except FOREIGN as error:
        reason = getattr(error, "strerror", None) or "the disk may be full or the folder read-only"
        raise OutputError(
            f"'{path}' could not be written: {reason}. Free some space or choose another folder."
        ) from error
    finally:
        partial.unlink(missing_ok=True)
