"""Make sure that this computer has the system libraries that Qt and VTK load, and a font.

Python packages cannot bring them. On macOS and Windows nothing is missing; on Debian and Ubuntu, as root,
they are installed; everywhere else one sentence says what to do, and the exit status is 1.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

# Library -> the package of Debian and Ubuntu that holds it.
LIBRARIES = {
    "libEGL.so.1": "libegl1",
    "libGL.so.1": "libgl1",
    "libxkbcommon.so.0": "libxkbcommon0",
    "libdbus-1.so.3": "libdbus-1-3",
    "libfontconfig.so.1": "libfontconfig1",
}
FONTS = ("/usr/share/fonts", "/usr/local/share/fonts", "~/.local/share/fonts", "~/.fonts")
FONT_PACKAGE = "fonts-dejavu-core"


def can_load(library: str) -> bool:
    """Whether the system's loader finds the library and all it depends on."""
    try:
        ctypes.CDLL(library)
    except OSError:
        return False
    return True


def has_font(folders: Sequence[str] = FONTS) -> bool:
    """Whether there is any TrueType or OpenType font: without one Qt draws no text."""
    return any(
        path.suffix.lower() in (".ttf", ".otf", ".ttc")
        for folder in folders
        for path in Path(folder).expanduser().rglob("*")
    )


def missing_packages() -> dict[str, str]:
    """What is missing -> the Debian package that brings it; empty where nothing is needed."""
    if sys.platform != "linux":
        return {}
    missing = {library: package for library, package in LIBRARIES.items() if not can_load(library)}
    return missing if has_font() else {**missing, "a font": FONT_PACKAGE}


def installing(packages: Sequence[str]) -> list[list[str]]:
    """Commands that install the packages on Debian and Ubuntu."""
    return [
        ["apt-get", "update", "--quiet"],
        ["apt-get", "install", "--quiet", "--yes", "--no-install-recommends", *packages],
    ]


def explanation(missing: dict[str, str]) -> str:
    """One sentence for a person who has to install them."""
    packages = " ".join(missing.values())
    return (
        f"error: The tests and pictures of the Slicer module need what this computer lacks "
        f"({', '.join(missing)}); on Debian and Ubuntu run: sudo apt-get install --yes {packages}"
    )


def run(command: Sequence[str]) -> bool:
    """Whether the command succeeded."""
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    return subprocess.run(command, check=False, env=environment).returncode == 0


def may_install() -> bool:
    """Whether this user can install Debian packages without being asked for a password."""
    return shutil.which("apt-get") is not None and os.geteuid() == 0


def main(
    find: Callable[[], dict[str, str]] = missing_packages,
    allowed: Callable[[], bool] = may_install,
    do: Callable[[Sequence[str]], bool] = run,
) -> int:
    """Exit status 0 when nothing is missing any more, 1 with one sentence when something is."""
    missing = find()
    if missing and allowed():
        print(f"Installing system packages: {' '.join(missing.values())}", flush=True)
        if all(do(command) for command in installing(list(missing.values()))):
            missing = find()
    if missing:
        print(explanation(missing), file=sys.stderr)
    return 1 if missing else 0


if __name__ == "__main__":
    sys.exit(main())
