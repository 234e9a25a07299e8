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
"""A file that tells a folder of ours from one a person has named alike; in it the number of our process."""
OLD_SECONDS = 24 * 3600.0


def new_folder(parent: Path | None = None) -> Path:
    """A new folder nobody else may look into; parent: the system's temporary folder by default.

    Raises OutputError when it cannot be made.
    """
    folder = None
    try:
        folder = Path(tempfile.mkdtemp(prefix=PREFIX, dir=parent))
        (folder / MARK).write_text(str(os.getpid()), encoding="ascii")
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
            marked = NAME.fullmatch(folder.name) and (folder / MARK).is_file()
            if marked and _ours_and_old(folder) and not _in_use(folder):
                remove(folder)


def _ours_and_old(folder: Path) -> bool:
    facts = folder.lstat()
    mine = not hasattr(os, "getuid") or facts.st_uid == os.getuid()
    return mine and not folder.is_symlink() and time.time() - facts.st_mtime > OLD_SECONDS


def _in_use(folder: Path) -> bool:
    """Whether the session that made a folder still runs: its clock may have been set since."""
    owner = (folder / MARK).read_text(encoding="ascii", errors="replace")
    if os.name != "posix" or not owner.isdigit():  # elsewhere a process cannot be asked without ending it
        return False
    try:
        os.kill(int(owner), 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True
    return True
