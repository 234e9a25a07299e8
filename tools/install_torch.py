"""Install PyTorch into the running environment, preferring the small CPU build.

On Linux a plain `pip install torch` brings a CUDA build of several gigabytes. This script asks, in this
order: the user's own package sources for a CPU build, PyTorch's CPU index, and only then the plain package.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import platform
import subprocess
import sys
from collections.abc import Callable, Sequence

VERSION = "2.13.0"
CPU_INDEX = "https://download.pytorch.org/whl/cpu"

Attempt = tuple[str, list[str]]


def attempts(system: str, machine: str, build: str) -> list[Attempt]:
    """Pip arguments to try in order, each with the words that describe it.

    system, machine: as `platform.system()` and `platform.machine()` name them; build: "cpu" or "any".
    """
    plain = f"torch=={VERSION}"
    if (system, machine) == ("Darwin", "x86_64"):
        # PyTorch stopped building for Intel Macs at 2.2.
        return [("the last build for Intel Macs", ["torch>=2.2"])]
    if system != "Linux" or build == "any":
        return [("the plain package", [plain])]
    # The local label matches CPU builds only: where none is offered pip says so without downloading anything.
    return [
        ("a CPU build from pip's configured sources", [f"{plain}+cpu"]),
        ("PyTorch's CPU index", [plain, "--index-url", CPU_INDEX, "--timeout", "15", "--retries", "1"]),
        ("the plain package (on Linux PCs a CUDA build, a large download)", [plain]),
    ]


def installed_version() -> str | None:
    """Version of PyTorch in this environment, None when there is none."""
    try:
        return importlib.metadata.version("torch")
    except importlib.metadata.PackageNotFoundError:
        return None


def pip_install(arguments: Sequence[str]) -> bool:
    """Whether `pip install` with these arguments succeeded."""
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *arguments]
    return subprocess.run(command, check=False).returncode == 0


def install(
    todo: Sequence[Attempt],
    run: Callable[[Sequence[str]], bool] = pip_install,
    say: Callable[[str], None] = print,
) -> bool:
    """Try the attempts until one succeeds, saying each; False when all failed."""
    for words, arguments in todo:
        say(f"Installing PyTorch {VERSION}: {words}")
        if run(arguments):
            return True
        say("  not available there, going on")
    return False


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; exit status 0 when PyTorch is installed, 1 with one sentence when it could not be."""
    parser = argparse.ArgumentParser(description="Install PyTorch, preferring the small CPU build.")
    parser.add_argument(
        "--build", choices=("cpu", "any"), default="cpu", help="any: what plain pip offers (CUDA)"
    )
    build = parser.parse_args(arguments).build
    present = installed_version()
    if present is not None and (build == "any" or present.split("+")[0] == VERSION):
        print(f"PyTorch {present} is already installed")
        return 0
    if install(attempts(platform.system(), platform.machine(), build)):
        return 0
    print(
        f"error: PyTorch {VERSION} could not be installed: no package source offers it for Python "
        f"{platform.python_version()} on {platform.system()} {platform.machine()}, or the network is down.",
        file=sys.stderr,
    )
    return 1


if __name__ == "__main__":
    sys.exit(main())
