"""Small files that are always whole: whatever happens, a reader finds the old content or the new one."""

from __future__ import annotations

import os
from pathlib import Path

from DiffeoRegLib.errors import OutputError


def replace_file(path: Path, content: bytes) -> None:
    """Put this content in place of a file's, wholly or not at all; raises OutputError."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as file:
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
