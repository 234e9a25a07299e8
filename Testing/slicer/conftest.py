"""The module's tests: a real MRML scene from slicer-core, and a Qt bench over PySide6 as the application.

`scene`: slicer.mrmlScene, empty.  `bench`: bench/slicerbench.py, with qt, ctk, slicer.app, slicer.modules.
"""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

# Before Qt and VTK are loaded: no display, and no complaint about the missing one.
os.environ.setdefault("QT_QPA_PLATFORM", "offscreen")
os.environ.setdefault("VTK_DEFAULT_OPENGL_WINDOW", "vtkEGLRenderWindow")

HERE = Path(__file__).resolve().parent
REPOSITORY = HERE.parents[1]
NEEDED = {"slicer_core": "slicer-core", "PySide6": "PySide6-Essentials"}

# In Slicer the folder of DiffeoReg.py is on the path, and so are qt and ctk.
for folder in (HERE / "bench" / "imports", REPOSITORY / "DiffeoReg"):
    sys.path.insert(0, str(folder))


MISSING = [package for module, package in NEEDED.items() if importlib.util.find_spec(module) is None]


class Unavailable(pytest.Module):
    """A test file that cannot be run: an error, since a skipped test would pass for a tested module."""

    def collect(self) -> Any:
        """Say what is missing, and how to get it."""
        raise self.CollectError(
            f"The tests of the Slicer module need {' and '.join(MISSING)}: "
            "install the test requirements with `pip install -e '.[tests]'`."
        )


def pytest_pycollect_makemodule(module_path: Path, parent: Any) -> pytest.Module | None:
    """Every test file of this folder needs slicer-core and PySide6."""
    return Unavailable.from_parent(parent, path=module_path) if MISSING else None


if not MISSING:
    import slicer

    # slicer.ScriptedLoadableModule, slicer.i18n and slicer.parameterNodeWrapper come from here.
    slicer.__path__.append(str(HERE / "bench" / "mini"))


@pytest.fixture
def scene(tmp_path: Path) -> Iterator[Any]:
    """The MRML scene (slicer.mrmlScene), empty before and after the test."""
    from Testing.slicer.bench import core

    booted = core.boot()
    booted.reset()
    booted.use_cache(tmp_path / "mrb-cache")
    yield booted.scene
    booted.reset()


@pytest.fixture
def bench(scene: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A Bench: scene, qt, ctk, slicer.app and slicer.modules; fails on slot errors that the test left."""
    from Testing.slicer.bench import core, slicerbench

    for place in ("XDG_DATA_HOME", "XDG_CONFIG_HOME", "XDG_CACHE_HOME"):
        monkeypatch.setenv(place, str(tmp_path / place.lower()))
    opened = slicerbench.Bench(core.boot(), tmp_path / "slicer")
    yield opened
    opened.close()


@pytest.fixture(scope="module")
def runner(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A Runner that stays warm for all runs of a file, and leaves nothing behind."""
    from DiffeoRegPanel.runner import Runner

    folder = tmp_path_factory.mktemp("worker")
    made = Runner(temporary=folder, keep_warm_seconds=120)
    yield made
    made.close()
    assert list(folder.iterdir()) == []
