"""The Setup box without a network: stand-ins for the PyTorch extension and for Slicer's pip."""

from __future__ import annotations

import importlib.machinery
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from DiffeoRegLib.errors import Cancelled, DiffeoRegError, InputError
from DiffeoRegPanel import install as room
from DiffeoRegPanel.install import KEPT, NEVER, WHEELS, Setup, build_of, install_wheels, refuse_bundled

VERSION_PY = """from typing import Optional
__version__ = '2.6.0{tag}'
cuda: Optional[str] = {cuda}
hip: Optional[str] = None
"""


class Computer:
    """What is installed, and who was asked to install what."""

    def __init__(self, folder: Path, **versions: str) -> None:
        self.versions = dict(versions)
        self.folder = folder / "torch"
        self.calls: list[str] = []
        self.asked: list[str] = []
        self.answer = True
        self.constraints = ""
        if "torch" in versions:
            self.put_torch()

    def put_torch(self, version: str = "2.6.0+cpu", cuda: str = "None") -> None:
        self.versions["torch"] = self.versions.get("torch", version)
        self.folder.mkdir(exist_ok=True)
        text = VERSION_PY.format(tag="+cpu", cuda=cuda)
        (self.folder / "version.py").write_text(text, encoding="utf-8")

    def put(self, requirements: list[str]) -> None:
        for requirement in requirements:
            name, _, version = requirement.partition(">=")
            self.versions[name] = version

    def setup(self) -> Setup:
        return Setup(self.versions.get, lambda: self.folder if self.folder.is_dir() else None)

    def confirm(self, question: str) -> bool:
        self.asked.append(question)
        return self.answer


@pytest.fixture
def empty(tmp_path: Path) -> Computer:
    return Computer(tmp_path)


@pytest.fixture
def complete(tmp_path: Path) -> Computer:
    return Computer(tmp_path, torch="2.6.0+cpu", nibabel="5.3.2", safetensors="0.5")


def fake_module(monkeypatch: pytest.MonkeyPatch, name: str, **content: Any) -> None:
    module = ModuleType(name)
    module.__spec__ = importlib.machinery.ModuleSpec(name, None)
    vars(module).update(content)
    monkeypatch.setitem(sys.modules, name, module)


def offer_pytorch(monkeypatch: pytest.MonkeyPatch, computer: Computer, does: Callable[[], Any]) -> None:
    """The PyTorch extension, whose installer does something."""

    class PyTorchUtilsLogic:
        def installTorch(self, askConfirmation: bool = False, torchVersionRequirement: str = "") -> Any:
            computer.calls.append(f"torch {askConfirmation} {torchVersionRequirement}")
            return does()

    fake_module(monkeypatch, "PyTorchUtils", PyTorchUtilsLogic=PyTorchUtilsLogic)


def offer_packaging(monkeypatch: pytest.MonkeyPatch, computer: Computer, *, works: bool = True) -> None:
    """slicer.packaging of Slicer 5.11 and later."""

    def pip_ensure(requirements: list[str], constraints: Path, prompt_install: bool, requester: str) -> None:
        computer.calls.append(f"ensure {requirements}")
        computer.constraints = Path(constraints).read_text(encoding="utf-8")
        assert prompt_install is False  # it was asked already
        assert requester == "DiffeoReg"
        if not works:
            raise subprocess.CalledProcessError(1, "pip install")
        computer.put(requirements)

    fake_module(monkeypatch, "slicer.packaging", pip_ensure=pip_ensure)


@pytest.fixture
def old_slicer(monkeypatch: pytest.MonkeyPatch, empty: Computer) -> Computer:
    """Slicer 5.10: no slicer.packaging."""
    monkeypatch.delitem(sys.modules, "slicer.packaging", raising=False)

    def pip_install(arguments: list[str]) -> None:
        empty.calls.append(f"pip {[a for a in arguments if '>=' in a]}")
        assert arguments[0] == "--constraint"
        empty.constraints = Path(arguments[1]).read_text(encoding="utf-8")
        empty.put([a for a in arguments if ">=" in a])

    monkeypatch.setattr(room.slicer.util, "pip_install", pip_install)
    return empty


# --- looking -----------------------------------------------------------------------------------------------


def test_nothing_installed_is_said_with_what_to_do(empty: Computer) -> None:
    state = empty.setup().state()
    assert not state.ok
    assert state.sentence == "Not installed yet: PyTorch, nibabel, safetensors. Press Install."
    assert state.details == ("torch: missing", "nibabel: missing", "safetensors: missing")


def test_everything_there_is_ready(complete: Computer) -> None:
    state = complete.setup().state()
    assert state.ok
    assert state.sentence.startswith("Ready: PyTorch 2.6.0+cpu, build CPU.")
    assert "device: not tested yet, press Test" in state.details


def test_the_probe_s_reason_is_shown(complete: Computer) -> None:
    setup = complete.setup()
    setup.record_probe(
        {
            "torch": "2.6.0+cpu",
            "cuda": False,
            "device": {
                "device": "cpu",
                "name": "EPYC",
                "why": "No graphics processor passed.",
                "notes": ["cuda is not used: this PyTorch is built without CUDA."],
            },
        }
    )
    state = setup.state()
    assert "Computes on cpu: No graphics processor passed." in state.sentence
    assert "cuda is not used: this PyTorch is built without CUDA." in state.details


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"torch": "1.13.1+cpu"}, "too old"),
        ({"nibabel": "4.0"}, "too old"),
        ({"safetensors": "0.3.9"}, "too old"),
    ],
)
def test_old_versions_are_seen(complete: Computer, changes: dict[str, str], word: str) -> None:
    complete.versions.update(changes)
    state = complete.setup().state()
    assert not state.ok
    assert word in state.sentence


@pytest.mark.parametrize("version", ["2.2", "2.2.0", "2.10.1", "3.0.0.dev1"])
def test_new_enough_versions_are_taken(complete: Computer, version: str) -> None:
    complete.versions["torch"] = version
    assert complete.setup().state().ok


def test_half_a_torch_is_seen(complete: Computer) -> None:
    (complete.folder / "version.py").unlink()
    state = complete.setup().state()
    assert not state.ok
    assert "only in part" in state.sentence
    with pytest.raises(DiffeoRegError, match="uninstall"):
        complete.setup().install(complete.confirm)
    assert complete.calls == []


@pytest.mark.parametrize(
    ("version", "cuda", "platform", "build"),
    [
        ("2.6.0+cpu", "None", "linux", "CPU"),
        ("2.6.0+cu124", "'12.4'", "win32", "CUDA 12.4"),
        ("2.6.0", "'12.4'", "linux", "CUDA 12.4"),
        ("2.2.2", "None", "darwin", "MPS (Apple) and CPU"),
        ("2.6.0", "None", "win32", "CPU"),
    ],
)
def test_the_build_is_read_from_the_files(version: str, cuda: str, platform: str, build: str) -> None:
    assert build_of(version, VERSION_PY.format(tag="", cuda=cuda), platform) == build


def test_rocm_is_named() -> None:
    assert (
        build_of("2.6.0+rocm6.2", "cuda: Optional[str] = None\nhip = '6.2.41133'\n", "linux")
        == "ROCm 6.2.41133"
    )


def test_the_real_torch_is_found_without_importing_it(repository: Path) -> None:
    code = (
        "import sys; from DiffeoRegPanel.install import Setup; state = Setup().state(); "
        "assert state.ok, state; assert 'torch' not in sys.modules; print(state.sentence)"
    )
    environment = {"PYTHONPATH": f"{repository}:{repository / 'DiffeoReg'}", "PATH": "/usr/bin"}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, encoding="utf-8", check=True, env=environment
    )
    assert "Ready: PyTorch" in done.stdout


# --- installing --------------------------------------------------------------------------------------------


def test_importing_and_looking_installs_nothing(empty: Computer, monkeypatch: pytest.MonkeyPatch) -> None:
    offer_pytorch(monkeypatch, empty, lambda: None)
    offer_packaging(monkeypatch, empty)
    empty.setup().state()
    assert empty.calls == []
    assert empty.asked == []


def test_install_on_a_new_slicer(empty: Computer, monkeypatch: pytest.MonkeyPatch) -> None:
    offer_pytorch(monkeypatch, empty, lambda: empty.put_torch() or "torch")
    offer_packaging(monkeypatch, empty)
    setup, told = empty.setup(), []
    setup.install(empty.confirm, told.append)
    assert empty.calls == [f"ensure {list(WHEELS)}", "torch True >=2.2"]
    assert len(empty.asked) == 1
    assert "nibabel" in empty.asked[0]
    assert setup.state().ok
    assert told[-1] == "Done: torch 2.6.0+cpu (CPU)"
    assert setup.log.splitlines()[-1] == told[-1]
    setup.install(empty.confirm, told.append)  # complete: nothing is asked or done
    assert len(empty.calls) == 2
    assert len(empty.asked) == 1


def test_install_on_slicer_5_10(old_slicer: Computer, monkeypatch: pytest.MonkeyPatch) -> None:
    offer_pytorch(monkeypatch, old_slicer, lambda: old_slicer.put_torch() or "torch")
    old_slicer.setup().install(old_slicer.confirm)
    assert old_slicer.calls == [f"pip {list(WHEELS)}", "torch True >=2.2"]
    assert old_slicer.setup().state().ok


def test_only_what_is_missing_is_installed(complete: Computer, monkeypatch: pytest.MonkeyPatch) -> None:
    offer_packaging(monkeypatch, complete)
    del complete.versions["safetensors"]
    complete.setup().install(complete.confirm)
    assert complete.calls == [f"ensure {[WHEELS[1]]}"]


def test_without_the_extension_it_is_named_before_anything_changes(
    empty: Computer, monkeypatch: pytest.MonkeyPatch
) -> None:
    offer_packaging(monkeypatch, empty)
    monkeypatch.setitem(sys.modules, "PyTorchUtils", None)
    monkeypatch.delitem(sys.modules, "PyTorchUtils")
    with pytest.raises(InputError, match="Extensions Manager"):
        empty.setup().install(empty.confirm)
    assert empty.calls == []
    assert empty.asked == []


def test_declining_is_respected(empty: Computer, monkeypatch: pytest.MonkeyPatch) -> None:
    offer_pytorch(monkeypatch, empty, lambda: None)  # what the extension returns when the user says no
    offer_packaging(monkeypatch, empty)
    empty.answer = False
    with pytest.raises(Cancelled, match="Nothing was installed"):
        empty.setup().install(empty.confirm)
    assert empty.calls == []
    empty.answer = True
    with pytest.raises(Cancelled, match="PyTorch was not installed"):
        empty.setup().install(empty.confirm)


def test_a_failure_says_why_and_how_by_hand(empty: Computer, monkeypatch: pytest.MonkeyPatch) -> None:
    offer_pytorch(monkeypatch, empty, lambda: None)
    offer_packaging(monkeypatch, empty, works=False)
    setup = empty.setup()
    with pytest.raises(DiffeoRegError, match="proxy") as raised:
        setup.install(empty.confirm)
    assert "PythonSlicer -m pip install --only-binary=:all:" in str(raised.value)
    assert "CalledProcessError" in setup.log
    assert empty.calls == [f"ensure {list(WHEELS)}"]


def test_an_installer_that_does_nothing_is_noticed(empty: Computer, monkeypatch: pytest.MonkeyPatch) -> None:
    offer_pytorch(monkeypatch, empty, lambda: "torch")
    offer_packaging(monkeypatch, empty)
    with pytest.raises(DiffeoRegError, match="torch is still missing"):
        empty.setup().install(empty.confirm)


def test_a_replaced_package_asks_for_a_restart(complete: Computer, monkeypatch: pytest.MonkeyPatch) -> None:
    offer_packaging(monkeypatch, complete)
    del complete.versions["safetensors"]
    complete.versions["numpy"] = "2.0.0"
    put = complete.put

    def put_and_replace(requirements: list[str]) -> None:
        put(requirements)
        complete.versions["numpy"] = "2.1.0"

    complete.put = put_and_replace  # type: ignore[method-assign]
    setup = complete.setup()
    setup.install(complete.confirm)
    state = setup.state()
    assert not state.ok
    assert "Restart Slicer" in state.sentence


# --- what pip may do ---------------------------------------------------------------------------------------


def test_pip_is_kept_to_wheels_and_from_what_slicer_bundles(
    empty: Computer, monkeypatch: pytest.MonkeyPatch
) -> None:
    offer_packaging(monkeypatch, empty)
    install_wheels(WHEELS)
    lines = empty.constraints.splitlines()
    assert lines[0] == "--only-binary :all:"
    assert f"numpy=={room.installed_version('numpy')}" in lines
    assert f"SimpleITK=={room.installed_version('SimpleITK')}" in lines


@pytest.mark.parametrize("name", [*NEVER, "NumPy", "Sim_ple.ITK".replace("_", "").replace(".", "")])
def test_bundled_packages_are_never_installed(
    empty: Computer, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    offer_packaging(monkeypatch, empty)
    with pytest.raises(InputError, match="must stay"):
        install_wheels([f"{name}>=1.0"])
    assert empty.calls == []


@pytest.mark.parametrize(
    "requirement", ["nibabel", "nibabel==5.2", "nibabel<6", "git+https://x/y", "-r x", ""]
)
def test_only_plain_lower_bounds_are_installed(requirement: str) -> None:
    with pytest.raises(InputError, match="not installed"):
        refuse_bundled(requirement)


def test_the_requirements_are_those_of_the_engine(repository: Path) -> None:
    project = tomllib.loads((repository / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert set(WHEELS) <= set(project["dependencies"])
    assert f"torch{room.TORCH}" in project["dependencies"]
    bundled = {"numpy", "scipy", "SimpleITK"}
    rest = {d.partition(">=")[0] for d in project["dependencies"]} - {w.partition(">=")[0] for w in WHEELS}
    assert rest == bundled | {"torch"}
    assert bundled <= set(KEPT)
