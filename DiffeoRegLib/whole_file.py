"""Files that others cannot spoil: whole ones, the old content or the new, and private folders."""

from __future__ import annotations

import os
import secrets
from pathlib import Path

from DiffeoRegLib.errors import OutputError


def make_private(folder: Path) -> None:
    """A new folder that only its owner may enter; raises OSError where it cannot be made, or is there.

    On Windows it has the rights of the folder around it: they would stay with what is moved out of it.
    """
    folder.mkdir(mode=0o700 if os.name == "posix" else 0o777)


def replace_file(path: Path, content: bytes) -> None:
    """Put this content in place of a file's, wholly or not at all; raises OutputError."""
    # A name nobody can guess, and new: in a folder that others write to, a link may wait under a known one.
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        kept = "; the one written before is intact" if path.exists() else ""
        raise OutputError(
            f"'{path}' could not be written ({error.strerror or error}){kept}. Free some space and resume."
        ) from error
