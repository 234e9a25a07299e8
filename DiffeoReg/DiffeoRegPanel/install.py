"""The Setup box: what the worker needs, whether it is there, and installing it when the user asks.

Torch is never imported here, only looked for: the worker runs in the same environment and imports it.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import slicer

from DiffeoRegLib.errors import Cancelled, DiffeoRegError, InputError

TORCH = ">=2.2"
WHEELS = ("nibabel>=5.2", "safetensors>=0.4")
NEVER = ("numpy", "scipy", "simpleitk", "itk", "vtk", "torch", "torchvision")
"""Not for pip: Slicer's own builds of these must stay, and torch comes through the PyTorch extension."""
KEPT = ("numpy", "scipy", "SimpleITK", "itk", "vtk", "torch", "pydicom", "requests")
"""Held at their installed versions while anything is installed."""
GET_EXTENSION = (
    "PyTorch comes through the 'PyTorch' extension, which is not installed: open View > Extensions Manager, "
    "install 'PyTorch', restart Slicer and press Install again."
)
REINSTALL = "open the module 'PyTorch Utils', uninstall it, restart Slicer and press Install."
RESTART = "Restart Slicer before the next run: a package that is already loaded was replaced."


@dataclass(frozen=True)
class State:
    """Whether runs are possible: one sentence for the user, and details line by line."""

    ok: bool
    sentence: str
    details: tuple[str, ...]


@dataclass(frozen=True)
class Torch:
    """The torch that is installed, as its files say.

    version: "" = none.  build: CPU, CUDA 12.4, ROCm 6.0, MPS (Apple), or unknown.
    problem: why it cannot work, a sentence, or "".
    """

    version: str
    build: str
    problem: str = ""


class Setup:
    """What is installed, and installing it.

    version_of: distribution -> its version, None when it is not installed.
    torch_folder: where the torch package lies, None = nowhere.
    """

    def __init__(
        self, version_of: Callable[[str], str | None] | None = None,
        torch_folder: Callable[[], Path | None] | None = None,
    ) -> None:  # fmt: skip
        self._version_of = version_of or installed_version
        self._torch_folder = torch_folder or find_torch
        self._probe: Mapping[str, Any] | None = None
        self._lines: list[str] = []
        self.restart_needed = False

    @property
    def log(self) -> str:
        """What was installed and how it went, to be copied."""
        return "\n".join(self._lines)

    @property
    def manual_command(self) -> str:
        """What a user can type to install the same by hand, in a terminal of the system."""
        wheels = " ".join(f'"{wheel}"' for wheel in WHEELS)
        return (
            "# torch: in the Python console of Slicer, with the PyTorch extension\n"
            f'import PyTorchUtils; PyTorchUtils.PyTorchUtilsLogic().installTorch(True, None, "{TORCH}")\n'
            f"# the rest: in a terminal\nPythonSlicer -m pip install --only-binary=:all: {wheels}"
        )

    def state(self) -> State:
        """What is there and what is missing; nothing is imported."""
        importlib.invalidate_caches()
        torch, wheels = self.torch(), self.missing_wheels()
        details = tuple([_torch_line(torch), *map(self._wheel_line, WHEELS), *self._probe_lines(torch)])
        if not torch.version:
            names = ", ".join(["PyTorch", *map(_name, wheels)])
            return State(False, f"Not installed yet: {names}. Press Install.", details)
        if torch.problem:
            return State(False, torch.problem, details)
        if wheels:
            names = ", ".join(map(_name, wheels))
            return State(False, f"Missing or too old: {names}. Press Install.", details)
        if self.restart_needed:
            return State(False, RESTART, details)
        return State(True, self._ready_sentence(torch), details)

    def torch(self) -> Torch:
        """Version and build of the installed torch, read from its files."""
        version, folder = self._version_of("torch"), self._torch_folder()
        if version is None and folder is None:
            return Torch("", "")
        if version is None or folder is None or not (folder / "version.py").is_file():
            return Torch(version or "unknown", "unknown", f"PyTorch is installed only in part: {REINSTALL}")
        build = build_of(version, (folder / "version.py").read_text(encoding="utf-8"))
        if not _at_least(version, TORCH[2:]):
            problem = f"PyTorch {version} is too old, {TORCH[2:]} or newer is needed: {REINSTALL}"
            return Torch(version, build, problem)
        return Torch(version, build)

    def missing_wheels(self) -> list[str]:
        """Requirements that are not met."""
        return [
            requirement for requirement in WHEELS
            if not _at_least(self._version_of(_name(requirement)) or "", requirement.partition(">=")[2])
        ]  # fmt: skip

    def record_probe(self, result: Mapping[str, Any]) -> None:
        """Keep what the worker's "probe" job, or the device entry of a report, says about the device."""
        self._probe = result

    def install(
        self, confirm: Callable[[str], bool], progress: Callable[[str], None] = lambda message: None
    ) -> None:
        """Install what is missing.  Call it from a button, on the main thread; it takes minutes.

        confirm: asked with a sentence before pip changes anything; for torch the PyTorch extension asks.
        progress: told what happens.
        Raises Cancelled when the user declines, InputError without the PyTorch extension, DiffeoRegError when
        installing fails or torch is there but broken.
        """
        torch, wheels = self.torch(), self.missing_wheels()
        if torch.problem:
            raise DiffeoRegError(torch.problem)

        def tell(message: str) -> None:
            self._lines.append(message)
            progress(message)

        tell(f"The same by hand:\n{self.manual_command}")
        logic = None if torch.version else pytorch_logic()  # before anything is changed
        if wheels:
            if not confirm(f"{', '.join(wheels)} will be downloaded into Slicer's Python. Continue?"):
                raise Cancelled("Nothing was installed.")
            tell(f"Installing {', '.join(wheels)}")
            self._guarded(lambda: install_wheels(wheels), "The small packages")
        if logic is not None:
            tell(f"Installing torch{TORCH} through the PyTorch extension")
            self._guarded(lambda: _install_torch(logic), "PyTorch")
        self._check_result(tell)

    def _check_result(self, tell: Callable[[str], None]) -> None:
        importlib.invalidate_caches()
        torch, wheels = self.torch(), self.missing_wheels()
        if not torch.version or wheels:
            missing = ", ".join(([] if torch.version else ["torch"]) + wheels)
            tell(f"Still missing afterwards: {missing}")
            raise DiffeoRegError(
                f"Installing ended without an error, but {missing} is still missing: restart Slicer and look "
                "again, or install by hand:\n" + self.manual_command
            )
        tell(RESTART if self.restart_needed else f"Done: torch {torch.version} ({torch.build})")

    def _guarded(self, work: Callable[[], None], what: str) -> None:
        """Run an installer; its failure becomes a sentence, and the details go to the log."""
        before = {name: self._version_of(name) for name in KEPT if name in sys.modules}
        try:
            work()
        except (subprocess.CalledProcessError, OSError, ImportError, RuntimeError, ValueError) as error:
            self._lines.append(f"{type(error).__name__}: {error}")
            raise DiffeoRegError(
                f"{what} could not be installed ({str(error).strip() or type(error).__name__}). Check the "
                "network connection and the proxy, or install by hand:\n" + self.manual_command
            ) from error
        importlib.invalidate_caches()
        changed = [name for name, version in before.items() if version and self._version_of(name) != version]
        if changed:
            self.restart_needed = True
            self._lines.append(f"Replaced although loaded: {', '.join(changed)}")

    def _wheel_line(self, requirement: str) -> str:
        version = self._version_of(_name(requirement))
        old = " (too old)" if version and requirement in self.missing_wheels() else ""
        return f"{_name(requirement)}: {version or 'missing'}{old}"

    def _probe_lines(self, torch: Torch) -> list[str]:
        if self._probe is None:
            return ["device: not tested yet, press Test"] if torch.version else []
        device = self._probe.get("device") or {}
        name = f"{device.get('device', 'unknown')} ({device.get('name', 'unknown')})"
        return [f"device: {name}. {device.get('why', '')}".rstrip(), *map(str, device.get("notes", ()))]

    def _ready_sentence(self, torch: Torch) -> str:
        ready = f"Ready: PyTorch {torch.version}, build {torch.build}."
        device = (self._probe or {}).get("device") or {}
        if not device:
            return f"{ready} Press Test to see which processor is used."
        return f"{ready} Computes on {device.get('device', 'unknown')}: {device.get('why', '')}".rstrip()


def _torch_line(torch: Torch) -> str:
    return f"torch: {torch.version} ({torch.build})" if torch.version else "torch: missing"


def installed_version(name: str) -> str | None:
    """Version of an installed distribution, None when there is none."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def find_torch() -> Path | None:
    """Folder of the torch package; found without importing it."""
    spec = importlib.util.find_spec("torch")
    return None if spec is None or spec.origin is None else Path(spec.origin).parent


def build_of(version: str, source: str, platform: str = sys.platform) -> str:
    """What a torch was built for, from its version and the text of its version.py."""
    cuda = re.search(r"^cuda\b[^=\n]*=\s*['\"]([\d.]+)['\"]", source, re.MULTILINE)
    hip = re.search(r"^hip\b[^=\n]*=\s*['\"]([\d.]+)", source, re.MULTILINE)
    if cuda:
        return f"CUDA {cuda[1]}"
    if hip:
        return f"ROCm {hip[1]}"
    return "MPS (Apple) and CPU" if platform == "darwin" and "+" not in version else "CPU"


def pytorch_logic() -> Any:
    """The logic of the PyTorch extension; raises InputError when it is not installed."""
    try:
        module = importlib.import_module("PyTorchUtils")
    except ModuleNotFoundError as error:
        if error.name != "PyTorchUtils":
            raise
        raise InputError(GET_EXTENSION) from error
    return module.PyTorchUtilsLogic()


def _install_torch(logic: Any) -> None:
    if logic.installTorch(askConfirmation=True, torchVersionRequirement=TORCH) is None:
        raise Cancelled("PyTorch was not installed: without it no registration can run.")


def install_wheels(requirements: Sequence[str]) -> None:
    """Install small packages with pip: wheels only, nothing that Slicer bundles is touched.

    Raises InputError for a requirement that is not `name>=version` or names a bundled package, and what pip
    raises when it fails.
    """
    for requirement in requirements:
        refuse_bundled(requirement)
    with tempfile.TemporaryDirectory(prefix="diffeoreg-") as folder:
        constraints = Path(folder) / "constraints.txt"
        constraints.write_text(constraints_text(), encoding="utf-8")
        if importlib.util.find_spec("slicer.packaging") is not None:  # Slicer 5.11 and later
            packaging = importlib.import_module("slicer.packaging")
            packaging.pip_ensure(
                list(requirements), constraints=constraints, prompt_install=False, requester="DiffeoReg"
            )
        else:
            slicer.util.pip_install(["--constraint", str(constraints), *requirements])


def constraints_text() -> str:
    """Constraints for pip: wheels only, and the packages that must stay at the version they have."""
    versions = ((name, installed_version(name)) for name in KEPT)
    lines = [f"{name}=={version}" for name, version in versions if version and "+" not in version]
    return "\n".join(["--only-binary :all:", *lines]) + "\n"


def refuse_bundled(requirement: str) -> None:
    """Raises InputError unless the requirement is `name>=version` of a package pip may install here."""
    match = re.fullmatch(r"([A-Za-z0-9][A-Za-z0-9._-]*)>=[0-9][0-9.]*", requirement)
    if match is None:
        raise InputError(f"'{requirement}' is not installed: only requirements like name>=1.0 are.")
    if re.sub(r"[-_.]+", "-", match[1]).lower() in NEVER:
        raise InputError(f"'{match[1]}' is not installed with pip: Slicer's own build of it must stay.")


def _name(requirement: str) -> str:
    return requirement.partition(">=")[0]


def _at_least(version: str, least: str) -> bool:
    """Whether the numbers of a version reach those of another; an empty version never does."""
    numbers = [tuple(map(int, re.findall(r"\d+", text.partition("+")[0])[:3])) for text in (version, least)]
    return bool(numbers[0]) and numbers[0] >= numbers[1]
