"""Private temporary folders for the exchange with the worker: made, removed, and swept after a crash."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import tempfile
import time
from pathlib import Path

from DiffeoRegLib.errors import OutputError

PREFIX = "diffeoreg-"
NAME = re.compile(PREFIX + r"[a-z0-9_]{8}")
MARK = ".exchange"
"""A file that tells a folder of ours from one a person has named alike."""
OLD_SECONDS = 24 * 3600.0


def new_folder(parent: Path | None = None) -> Path:
    """A new folder nobody else may look into; parent: the system's temporary folder by default.

    Raises OutputError when it cannot be made.
    """
    folder = None
    try:
        folder = Path(tempfile.mkdtemp(prefix=PREFIX, dir=parent))
        (folder / MARK).touch()
    except OSError as error:
        if folder is not None:
            remove(folder)
        where = parent or tempfile.gettempdir()
        raise OutputError(
            f"No temporary folder can be made in '{where}': {error.strerror or error}. "
            "Free some space there, or choose another temporary folder."
        ) from error
    return folder


def remove(folder: Path) -> None:
    """A folder gone, though another thread or process may be removing or writing it."""
    for _ in range(20):
        shutil.rmtree(folder, ignore_errors=True)
        if not folder.exists():
            return
        time.sleep(0.02)


def sweep(parent: Path | None = None) -> None:
    """Remove what crashed sessions of this user have left behind more than a day ago."""
    for folder in Path(parent or tempfile.gettempdir()).glob(PREFIX + "*"):
        with contextlib.suppress(OSError):  # another session may be sweeping at the same time
            if NAME.fullmatch(folder.name) and (folder / MARK).is_file() and _ours_and_old(folder):
                remove(folder)


def _ours_and_old(folder: Path) -> bool:
    facts = folder.lstat()
    mine = not hasattr(os, "getuid") or facts.st_uid == os.getuid()
    return mine and not folder.is_symlink() and time.time() - facts.st_mtime > OLD_SECONDS
