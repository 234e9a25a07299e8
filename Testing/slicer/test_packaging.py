"""What CMake installs is the whole extension: built with a stand-in for Slicer, run from the installed files.

A file that is forgotten works from source and is missing at the user's; so the interpreters here see the
installed tree and the third-party packages, and nothing of the repository.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path

import cmake
import numpy as np
import pytest
import SimpleITK as sitk

HERE = Path(__file__).resolve().parent
STAND_IN = HERE / "cmake_standin"
SOURCES = ("CMakeLists.txt", "README.md", "LICENSE.txt", "DiffeoReg", "DiffeoRegLib")
MODULES = Path("lib", "Slicer-5.13", "qt-scripted-modules")
NOT_SHIPPED = ("CMakeLists.txt",)


# --- building -----------------------------------------------------------------------------------------------


def run_cmake(*arguments: str | Path) -> str:
    """Output of CMake; the test fails with it when CMake does."""
    command = [str(Path(cmake.CMAKE_BIN_DIR) / "cmake"), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, encoding="utf-8", check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def configure(source: Path, build: Path, prefix: Path) -> str:
    return run_cmake(
        *("-S", source, "-B", build),
        f"-DSlicer_DIR={STAND_IN}",
        f"-DCMAKE_TOOLCHAIN_FILE={STAND_IN / 'no_compiler.cmake'}",
        f"-DCMAKE_INSTALL_PREFIX={prefix}",
    )


def build_and_install(build: Path) -> None:
    run_cmake("--build", build)
    run_cmake("--install", build)


def files_below(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def expected_files(source: Path) -> set[str]:
    """Everything the repository has for the user, by the path it must have when installed."""
    panel = files_below(source / "DiffeoReg")
    engine = {f"DiffeoRegLib/{name}" for name in files_below(source / "DiffeoRegLib")}
    return {name for name in panel | engine if Path(name).name not in NOT_SHIPPED}


@pytest.fixture(scope="module")
def source(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A clean copy of what CMake reads."""
    folder = tmp_path_factory.mktemp("source")
    clean = shutil.ignore_patterns("__pycache__", "*.py[cod]", "*.egg-info", ".*")
    for name in SOURCES:
        if (repository / name).is_dir():
            shutil.copytree(repository / name, folder / name, ignore=clean)
        else:
            shutil.copy(repository / name, folder / name)
    return folder


@pytest.fixture(scope="module")
def build(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("build")
    configure(source, folder, folder / "prefix")
    build_and_install(folder)
    return folder


@pytest.fixture(scope="module")
def installed(build: Path) -> Path:
    """The folder of scripted modules as it lies on a user's disk."""
    return build / "prefix" / MODULES


def test_every_file_ships_and_nothing_else(source: Path, installed: Path) -> None:
    assert files_below(installed) == expected_files(source)


def test_only_the_module_file_lies_where_slicer_looks_for_modules(installed: Path) -> None:
    assert [path.name for path in installed.glob("*.py")] == ["DiffeoReg.py"]


def test_slicer_is_told_what_to_run_and_what_to_install_first(build: Path) -> None:
    tests = "".join(path.read_text(encoding="utf-8") for path in build.rglob("CTestTestfile.cmake"))
    assert "py_nomainwindow_qSlicerDiffeoRegModuleGenericTest" in tests
    assert "py_DiffeoReg" in tests
    assert "depends PyTorch\n" in (build / "description.txt").read_text(encoding="utf-8")


def test_a_new_file_is_found_by_the_next_build(source: Path, tmp_path: Path) -> None:
    copy = tmp_path / "source"
    shutil.copytree(source, copy)
    configure(copy, tmp_path / "build", tmp_path / "prefix")
    for new in (
        "DiffeoReg/DiffeoRegPanel/later.py",
        "DiffeoReg/Resources/UI/later.ui",
        "DiffeoRegLib/later.py",
    ):
        (copy / new).parent.mkdir(parents=True, exist_ok=True)
        (copy / new).write_text("", encoding="utf-8")
        build_and_install(tmp_path / "build")  # one by one: a change in one folder has all of them looked at
        assert files_below(tmp_path / "prefix" / MODULES) == expected_files(copy)


def test_the_copy_for_pip_holds_the_same_kinds_of_files(repository: Path) -> None:
    """pip packs what pyproject.toml names, Slicer what CMake names."""
    settings = tomllib.loads((repository / "pyproject.toml").read_text(encoding="utf-8"))["tool"][
        "setuptools"
    ]
    kinds = {Path(pattern).name for pattern in settings["package-data"]["DiffeoRegLib"]}
    cmake_list = (repository / "DiffeoRegLib" / "CMakeLists.txt").read_text(encoding="utf-8")
    assert all(f"/{kind}\n" in cmake_list for kind in kinds)
    suffixes = {
        Path(name).suffix for name in files_below(repository / "DiffeoRegLib") if "__pycache__" not in name
    }
    assert suffixes <= {Path(kind.replace("*", "x")).suffix for kind in kinds} | {".py", ".txt"}


# --- running what was installed -----------------------------------------------------------------------------


def only_installed(installed: Path, *more: Path) -> dict[str, str]:
    """Environment of an interpreter that sees the installed tree and third-party packages.

    To be used with `python -S`: then no .pth file of an editable installation leads back to the repository.
    """
    third_party = (sysconfig.get_path("purelib"), sysconfig.get_path("platlib"))
    path = os.pathsep.join(dict.fromkeys(map(str, (installed, *more, *third_party))))
    return {**os.environ, "PYTHONPATH": path, "PYTHONDONTWRITEBYTECODE": "1"}


def run_installed(
    installed: Path, *arguments: str | Path, cwd: Path, more: Sequence[Path] = ()
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-S", *map(str, arguments)],
        cwd=cwd,
        env=only_installed(installed, *more),
        capture_output=True,
        encoding="utf-8",
        check=False,
        timeout=300,
    )


def blob(shift_mm: float) -> sitk.Image:
    """A bright ball in 16 x 16 x 16 voxels, moved along x."""
    k, j, i = np.mgrid[:16, :16, :16].astype(np.float32)
    radius = np.sqrt((k - 7.5) ** 2 + (j - 7.5) ** 2 + (i - 7.5 - shift_mm) ** 2)
    return sitk.GetImageFromArray((100 / (1 + np.exp(radius - 4))).astype(np.float32))


@pytest.fixture
def pair(tmp_path: Path) -> Path:
    """A folder with fixed.nii.gz and moving.nii.gz."""
    sitk.WriteImage(blob(0.0), str(tmp_path / "fixed.nii.gz"))
    sitk.WriteImage(blob(1.5), str(tmp_path / "moving.nii.gz"))
    return tmp_path


def test_the_installed_engine_registers(installed: Path, pair: Path) -> None:
    done = run_installed(
        installed,
        *("-m", "DiffeoRegLib", "register", "fixed.nii.gz", "moving.nii.gz"),
        *("-o", "out", "--effort", "fast", "--no-check"),
        cwd=pair,
    )
    assert done.returncode == 0, done.stderr
    assert (pair / "out" / "report.html").is_file()
    fixed, moving, moved = (
        sitk.GetArrayFromImage(sitk.ReadImage(str(pair / name)))
        for name in ("fixed.nii.gz", "moving.nii.gz", "out/moved.nii.gz")
    )
    assert np.abs(moved - fixed).mean() < 0.3 * np.abs(moving - fixed).mean()


IMPORT_ALL = """
import importlib, json, pkgutil, sys
found = {}
for package in sys.argv[1:]:
    top = importlib.import_module(package)
    for module in [package, *(m.name for m in pkgutil.walk_packages(top.__path__, package + "."))]:
        if not module.endswith("__main__"):
            found[module] = importlib.import_module(module).__file__
print(json.dumps(found))
"""


def import_all(installed: Path, cwd: Path, *packages: str, more: Sequence[Path] = ()) -> Mapping[str, str]:
    """File of every module of the packages, imported one by one."""
    done = run_installed(installed, "-c", IMPORT_ALL, *packages, cwd=cwd, more=more)
    assert done.returncode == 0, done.stderr
    found: Mapping[str, str] = json.loads(done.stdout.splitlines()[-1])
    return found


def modules_of(source: Path, package: str) -> set[str]:
    """Dotted names of a package's files in the repository."""
    names = (path.relative_to(source).with_suffix("").parts for path in (source / package).rglob("*.py"))
    return {".".join(parts).removesuffix(".__init__") for parts in names if parts[-1] != "__main__"}


def test_every_module_of_the_installed_engine_can_be_imported(
    source: Path, installed: Path, tmp_path: Path
) -> None:
    found = import_all(installed, tmp_path, "DiffeoRegLib")
    assert set(found) == modules_of(source, "DiffeoRegLib")
    assert all(Path(file).is_relative_to(installed) for file in found.values())


def bench_copy(folder: Path) -> tuple[Path, Path]:
    """The test bench without the repository around it: its parent folder, and the one with qt and ctk."""
    copy = folder / "Testing" / "slicer" / "bench"
    shutil.copytree(HERE / "bench", copy, ignore=shutil.ignore_patterns("__pycache__"))
    return folder, copy / "imports"


WITH_BENCH = """
import slicer
from Testing.slicer.bench import __path__ as bench
slicer.__path__.append(list(bench)[0] + "/mini")
"""


def test_every_module_of_the_installed_panel_can_be_imported(
    source: Path, installed: Path, tmp_path: Path
) -> None:
    more = bench_copy(tmp_path / "bench")
    done = run_installed(installed, "-c", WITH_BENCH + IMPORT_ALL, "DiffeoRegPanel", cwd=tmp_path, more=more)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert set(found) == modules_of(source / "DiffeoReg", "DiffeoRegPanel")
    assert all(Path(file).is_relative_to(installed) for file in found.values())


OPEN_PANEL = """
import sys, tempfile
from pathlib import Path
from Testing.slicer.bench import core
from Testing.slicer.bench.slicerbench import Bench
with tempfile.TemporaryDirectory() as folder:
    bench = Bench(core.boot(), Path(folder))
    try:
        widget = bench.load(sys.argv[1]).enter()
        print(widget.panel.ui.statusLabel.text)
    finally:
        bench.close()
"""


def test_the_installed_module_opens(installed: Path, tmp_path: Path) -> None:
    more = bench_copy(tmp_path / "bench")
    module = installed / "DiffeoReg.py"
    done = run_installed(installed, "-c", WITH_BENCH + OPEN_PANEL, module, cwd=tmp_path, more=more)
    assert done.returncode == 0, done.stderr
    assert "Choose a fixed and a moving volume" in done.stdout


RUN_ONE_JOB = """
import sys
import numpy as np
from DiffeoRegLib.exchange import Image
from DiffeoRegPanel.runner import Runner

k, j, i = np.mgrid[:16, :16, :16].astype(np.float32)
place = np.array([[0, 0, 1, 0], [0, 1, 0, 0], [1, 0, 0, 0], [0, 0, 0, 1.0]])
def ball(x):
    radius = np.sqrt((k - 7.5) ** 2 + (j - 7.5) ** 2 + (i - x) ** 2)
    return Image((100 / (1 + np.exp(radius - 4))).astype(np.float32), place)

fixed, moving = ball(7.5), ball(9.0)
job = {
    "kind": "register", "settings": {"effort": "fast"}, "fixed": fixed, "moving": moving, "initial": None,
    "masks": None, "guidance": None, "evaluation": None, "pathology": None, "regions": None, "stiffness": {},
    "storage": "half", "outputs": {"moved": True, "velocity": True, "jacobian": False},
}
runner = Runner([sys.executable, "-S", "-m", "DiffeoRegLib.worker"])
end = runner.start(job).wait()
runner.close()
if end.kind != "result":
    sys.exit(f"{end.kind}: {end.message}")
left = np.abs(end.result["moved"].array - fixed.array).mean()
print(float(left / np.abs(moving.array - fixed.array).mean()))
"""


def test_the_installed_panel_gets_a_job_done_by_the_installed_worker(installed: Path, tmp_path: Path) -> None:
    done = run_installed(installed, "-c", RUN_ONE_JOB, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) < 0.5
