"""The commands, the installer, the metadata and the shipped images are what they claim to be."""

from __future__ import annotations

import ast
import hashlib
import importlib
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Sequence
from pathlib import Path

import pytest
import SimpleITK as sitk
import yaml

import DiffeoRegLib
from tools import install_torch, lint_architecture

# Import name -> name in the package registry, where they differ.
DISTRIBUTIONS = {"yaml": "pyyaml", "dask_jobqueue": "dask-jobqueue"}


# What an outer `make test JOBS=4` hands down must not reach the makes under test.
HANDED_DOWN = (
    "MAKEFLAGS",
    "MAKEOVERRIDES",
    "MFLAGS",
    "MAKELEVEL",
    "JOBS",
    "FIXED",
    "MOVING",
    "OUT",
    "PICTURES",
    "PRESET",
)


def run(*command: str | Path, cwd: Path) -> subprocess.CompletedProcess[str]:
    clean = {name: value for name, value in os.environ.items() if name not in HANDED_DOWN}
    return subprocess.run(
        [str(word) for word in command],
        cwd=cwd,
        env=clean,
        capture_output=True,
        encoding="utf-8",
        check=False,
    )


def project(repository: Path) -> dict[str, object]:
    return tomllib.loads((repository / "pyproject.toml").read_text(encoding="utf-8"))["project"]


# --- make ---------------------------------------------------------------------------------------------------


def dry_demo(repository: Path, *variables: str) -> subprocess.CompletedProcess[str]:
    return run("make", "-n", "demo", *variables, cwd=repository)


def test_demo_registers_the_shipped_pair_with_its_labels(repository: Path) -> None:
    said = dry_demo(repository).stdout
    assert "-m DiffeoRegLib register" in said
    named = re.findall(r'"(Resources/[^"]+)"', said)
    assert len(named) == 4
    assert all((repository / name).is_file() for name in named)
    assert all(word in said for word in ("--fixed-seg", "--moving-seg", '--preset "brain-mr"'))
    assert '-o "build/demo" --overwrite' in said


def test_demo_registers_the_users_own_pair_and_nothing_else(repository: Path) -> None:
    said = dry_demo(repository, "FIXED=my fixed.nii.gz", "MOVING=m.nrrd", "OUT=here").stdout
    assert 'register "my fixed.nii.gz" "m.nrrd" -o "here" --overwrite' in said
    assert not any(word in said for word in ("Resources", "--fixed-seg", "--moving-seg", "--preset"))
    with_labels = dry_demo(repository, "FIXED=f", "MOVING=m", "MOVING_SEG=s", "PRESET=abdomen").stdout
    assert '--moving-seg "s"' in with_labels
    assert '--preset "abdomen"' in with_labels
    assert "--fixed-seg" not in with_labels


@pytest.mark.parametrize(("given", "missing"), [("FIXED=a", "MOVING"), ("MOVING=a", "FIXED")])
def test_demo_with_half_a_pair_says_what_is_missing(repository: Path, given: str, missing: str) -> None:
    done = dry_demo(repository, given)
    assert done.returncode != 0
    assert f"but not {missing}" in done.stderr


def test_make_test_runs_every_check(repository: Path) -> None:
    said = run("make", "-n", "test", cwd=repository).stdout
    for tool in (
        "ruff check .",
        "ruff format --check .",
        "lint_architecture.py",
        "bin/mypy",
        "-m pytest -n 2",
    ):
        assert tool in said


@pytest.mark.parametrize("target", ["check", "pictures"])
def test_system_libraries_are_looked_for_before_they_are_needed(repository: Path, target: str) -> None:
    said = run("make", "-n", "-W", "tools/system_packages.py", target, cwd=repository).stdout
    python = [line for line in said.splitlines() if "bin/python" in line]
    assert "tools/system_packages.py" in python[-2]


def test_pictures_are_drawn_without_a_screen(repository: Path) -> None:
    said = run("make", "-n", "pictures", "PICTURES=here", cwd=repository).stdout
    assert "QT_QPA_PLATFORM=offscreen" in said
    assert "VTK_DEFAULT_OPENGL_WINDOW=vtkEGLRenderWindow" in said
    (module,) = re.findall(r"-m ([\w.]+) \"here\"", said)
    assert repository.joinpath(*module.split(".")).with_suffix(".py").is_file()


@pytest.mark.parametrize(("recipe", "passes"), [("@true", True), ("@exit 3", False)])
def test_ci_passes_the_status_of_make_test_on(
    repository: Path, tmp_path: Path, recipe: str, passes: bool
) -> None:
    (tmp_path / ".ci").mkdir()
    (tmp_path / ".ci" / "run").write_bytes((repository / ".ci" / "run").read_bytes())
    (tmp_path / "Makefile").write_text(f"test:\n\t{recipe}\n", encoding="utf-8")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    assert (run("bash", "../.ci/run", cwd=elsewhere).returncode == 0) is passes


# --- choosing a Python --------------------------------------------------------------------------------------


def fake_python(folder: Path, name: str, version: str, *, enough: bool, venv: bool) -> Path:
    """A stand-in that answers the three questions find_python.sh asks."""
    path = folder / name
    path.write_text(
        "#!/bin/sh\n"
        'case "$2" in\n'
        f"  *'%d.%d'*) echo {version};;\n"
        f"  *'(3, 11)'*) exit {0 if enough else 1};;\n"
        f"  *ensurepip*) exit {0 if venv else 1};;\n"
        "esac\n",
        encoding="utf-8",
    )
    path.chmod(0o755)
    return path


def find_python(repository: Path, *candidates: Path) -> subprocess.CompletedProcess[str]:
    return run("sh", "tools/find_python.sh", *candidates, cwd=repository)


def test_find_python_takes_the_first_that_can_do_the_work(repository: Path, tmp_path: Path) -> None:
    launcher_of_nothing = tmp_path / "broken"
    launcher_of_nothing.write_text("#!/bin/sh\nexit 127\n", encoding="utf-8")
    launcher_of_nothing.chmod(0o755)
    old = fake_python(tmp_path, "old", "3.9", enough=False, venv=True)
    bare = fake_python(tmp_path, "bare", "3.12", enough=True, venv=False)
    good = fake_python(tmp_path, "good", "3.12", enough=True, venv=True)
    done = find_python(repository, tmp_path / "absent", launcher_of_nothing, old, bare, good)
    assert (done.returncode, done.stdout.strip(), done.stderr) == (0, str(good), "")


def test_find_python_takes_this_very_python(repository: Path) -> None:
    assert find_python(repository, Path(sys.executable)).stdout.strip() == sys.executable


def test_find_python_says_which_are_too_old(repository: Path, tmp_path: Path) -> None:
    done = find_python(repository, fake_python(tmp_path, "old", "3.9", enough=False, venv=True))
    assert (done.returncode, done.stdout) == (1, "")
    assert "3.11 or newer" in done.stderr
    assert "(3.9)" in done.stderr
    assert done.stderr.count("\n") == 1


def test_find_python_says_when_venv_is_missing(repository: Path, tmp_path: Path) -> None:
    done = find_python(repository, fake_python(tmp_path, "bare", "3.12", enough=True, venv=False))
    assert (done.returncode, done.stdout) == (1, "")
    assert "python3-venv" in done.stderr
    assert done.stderr.count("\n") == 1


def test_find_python_says_when_there_is_none(repository: Path, tmp_path: Path) -> None:
    done = find_python(repository, tmp_path / "absent")
    assert done.returncode == 1
    assert "found: none" in done.stderr


# --- installing PyTorch -------------------------------------------------------------------------------------


def test_linux_asks_for_small_builds_first() -> None:
    first, second, last = (arguments for _, arguments in install_torch.attempts("Linux", "x86_64", "cpu"))
    assert first == [f"torch=={install_torch.VERSION}+cpu"]
    assert second[:3] == [f"torch=={install_torch.VERSION}", "--index-url", install_torch.CPU_INDEX]
    assert last == [f"torch=={install_torch.VERSION}"]


@pytest.mark.parametrize(
    ("system", "machine", "build"),
    [("Linux", "x86_64", "any"), ("Darwin", "arm64", "cpu"), ("Windows", "AMD64", "cpu")],
)
def test_elsewhere_the_plain_package_is_the_right_one(system: str, machine: str, build: str) -> None:
    todo = install_torch.attempts(system, machine, build)
    assert [arguments for _, arguments in todo] == [[f"torch=={install_torch.VERSION}"]]


def test_intel_macs_get_the_last_build_there_is() -> None:
    ((_, arguments),) = install_torch.attempts("Darwin", "x86_64", "cpu")
    assert arguments == ["torch>=2.2"]


@pytest.mark.parametrize(
    ("works_at", "tried", "success"), [(0, 1, True), (1, 2, True), (2, 3, True), (9, 3, False)]
)
def test_attempts_stop_at_the_first_success(works_at: int, tried: int, success: bool) -> None:
    calls: list[Sequence[str]] = []

    def pip(arguments: Sequence[str]) -> bool:
        calls.append(arguments)
        return len(calls) == works_at + 1

    todo = install_torch.attempts("Linux", "x86_64", "cpu")
    assert install_torch.install(todo, run=pip, say=lambda words: None) is success
    assert calls == [arguments for _, arguments in todo[:tried]]


def test_installer_gives_up_with_one_sentence(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(install_torch, "installed_version", lambda: None)
    monkeypatch.setattr(install_torch, "install", lambda todo: False)
    assert install_torch.main([]) == 1
    assert capsys.readouterr().err.startswith(
        f"error: PyTorch {install_torch.VERSION} could not be installed"
    )


@pytest.mark.parametrize(
    ("present", "build", "installs"),
    [("2.13.0+cpu", "cpu", False), ("2.13.0", "cpu", False), ("2.5.1", "cpu", True), ("2.5.1", "any", False)],
)
def test_installer_leaves_a_fitting_torch_alone(
    monkeypatch: pytest.MonkeyPatch, present: str, build: str, installs: bool
) -> None:
    asked: list[object] = []
    monkeypatch.setattr(install_torch, "installed_version", lambda: present)
    monkeypatch.setattr(install_torch, "install", lambda todo: asked.append(todo) or True)
    assert install_torch.main(["--build", build]) == 0
    assert bool(asked) is installs


# --- metadata -----------------------------------------------------------------------------------------------


def test_version_is_written_once(repository: Path) -> None:
    assert re.fullmatch(r"\d+\.\d+\.\d+", DiffeoRegLib.__version__)
    assert "version" not in project(repository)
    assert project(repository)["dynamic"] == ["version"]


def test_every_import_of_the_engine_is_declared(repository: Path) -> None:
    metadata = project(repository)
    extras = metadata["optional-dependencies"]
    shipped = [
        *metadata["dependencies"],
        *(need for name in extras if "tests" not in name for need in extras[name]),
    ]
    declared = {re.split(r"[\[<>=~! ]", need)[0].lower() for need in shipped}
    used = set()
    for path in (repository / "DiffeoRegLib").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                used |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
                used.add(node.module.split(".")[0])
    third_party = used - set(sys.stdlib_module_names) - {"DiffeoRegLib"}
    assert {DISTRIBUTIONS.get(name, name).lower() for name in third_party} <= declared


def test_command_exists(repository: Path) -> None:
    module, function = project(repository)["scripts"]["diffeoreg"].split(":")
    assert callable(getattr(importlib.import_module(module), function))


def test_licence_is_apache_2(repository: Path) -> None:
    text = (repository / "LICENSE.txt").read_text(encoding="utf-8")
    assert "Apache License" in text
    assert "Version 2.0, January 2004" in text
    assert "END OF TERMS AND CONDITIONS" in text


def test_pre_commit_runs_what_make_test_runs(repository: Path) -> None:
    config = yaml.safe_load((repository / ".pre-commit-config.yaml").read_text(encoding="utf-8"))
    entries = " ".join(hook["entry"] for repo in config["repos"] for hook in repo["hooks"])
    for tool in ("ruff check", "ruff format", "tools/lint_architecture.py", "mypy"):
        assert tool in entries
    assert Path(lint_architecture.__file__) == repository / "tools" / "lint_architecture.py"


def sample_files(samples: Path) -> list[Path]:
    return sorted(path for path in samples.rglob("*") if path.name.endswith((".nii.gz", ".nrrd")))


def test_shipped_images_are_the_ones_described(samples: Path) -> None:
    page = (samples / "README.md").read_text(encoding="utf-8")
    listed = dict(re.findall(r"^\| `([^`]+)` \| `([0-9a-f]{64})` \|", page, re.MULTILINE))
    on_disk = {
        path.relative_to(samples).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sample_files(samples)
    }
    assert on_disk == listed
    for word in ("CC BY-SA 4.0", "Apache-2.0", "Medical Segmentation Decathlon", "OASIS"):
        assert word in page


def test_shipped_images_are_small(samples: Path) -> None:
    assert sum(path.stat().st_size for path in samples.rglob("*") if path.is_file()) < 1_000_000
    assert sum(path.stat().st_size for path in (samples / "brain_slices").iterdir()) < 200_000


def test_shipped_labels_lie_on_their_images(samples: Path) -> None:
    images = sorted((samples / "hippocampus" / "images").iterdir())
    assert len(images) == 2
    for path in images:
        image = sitk.ReadImage(str(path))
        labels = sitk.ReadImage(str(samples / "hippocampus" / "labels" / path.name))
        assert image.GetSize() == labels.GetSize()
        assert image.TransformIndexToPhysicalPoint((3, 2, 1)) == labels.TransformIndexToPhysicalPoint(
            (3, 2, 1)
        )
        found = sitk.LabelShapeStatisticsImageFilter()
        found.Execute(labels)
        assert found.GetLabels() == (1, 2)


def test_shipped_slices_are_two_dimensional(samples: Path) -> None:
    slices = [sitk.ReadImage(str(path)) for path in sorted((samples / "brain_slices").glob("*.nrrd"))]
    assert [image.GetSize() for image in slices] == [(128, 128), (128, 128)]
