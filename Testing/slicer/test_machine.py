"""The choices of this computer: kept, checked, and readable whatever the settings file holds."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from DiffeoRegLib.catalog import default_models_folder
from DiffeoRegLib.errors import DiffeoRegError, SettingsError, UnknownNameError
from DiffeoRegPanel import machine as room
from DiffeoRegPanel.machine import Machine, worker_python


class Store:
    """QSettings as a dictionary; values come back as text, as from a settings file."""

    def __init__(self, **kept: Any) -> None:
        self.kept: dict[str, Any] = {f"DiffeoReg/{name}": value for name, value in kept.items()}

    def value(self, key: str, default: Any = None) -> Any:
        return self.kept.get(key, default)

    def setValue(self, key: str, value: Any) -> None:
        self.kept[key] = str(value)


def test_what_is_set_is_there_in_the_next_session(tmp_path: Path) -> None:
    store = Store()
    first = Machine(store)
    first.device, first.threads, first.keep_warm_seconds = "cuda:1", 3, 30
    first.models_folder = first.temporary_folder = tmp_path
    first.accept_licence("CC BY-NC 4.0")
    again = Machine(store)
    assert (again.device, again.threads, again.keep_warm_seconds) == ("cuda:1", 3, 30.0)
    assert again.models_folder == again.temporary_folder == tmp_path
    assert again.accepted_licences == {"CC BY-NC 4.0"}


def test_a_new_computer_has_sensible_defaults() -> None:
    fresh = Machine(Store())
    assert (fresh.device, fresh.threads, fresh.keep_warm_seconds) == ("auto", None, 600.0)
    assert fresh.temporary_folder.is_dir()
    assert fresh.models_folder.is_absolute()
    assert fresh.accepted_licences == frozenset()


def test_reading_writes_nothing() -> None:
    store = Store()
    fresh = Machine(store)
    _ = fresh.device, fresh.threads, fresh.models_folder, fresh.temporary_folder, fresh.keep_warm_seconds
    assert store.kept == {}


@pytest.mark.parametrize(
    "kept",
    [
        {"device": "tpu", "threads": "-2", "keep_warm_seconds": "soon", "accepted_licences": "{"},
        {"device": "cuda:x", "threads": "many", "keep_warm_seconds": "-1", "accepted_licences": "3"},
        {"device": None, "threads": None, "keep_warm_seconds": "nan", "accepted_licences": None},
        {"models_folder": "relative", "temporary_folder": "/no/such/folder"},
    ],
)
def test_nonsense_in_the_settings_file_reads_as_the_default(kept: dict[str, Any]) -> None:
    read, fresh = Machine(Store(**kept)), Machine(Store())
    for name in ("device", "threads", "keep_warm_seconds", "models_folder", "temporary_folder"):
        assert getattr(read, name) == getattr(fresh, name)
    assert read.accepted_licences == frozenset()


@pytest.mark.parametrize("name", ["gpu", "cuda:", "cuda:one", "cpu:0", ""])
def test_an_unknown_device_is_refused(name: str) -> None:
    with pytest.raises(UnknownNameError, match="device"):
        Machine(Store()).device = name


@pytest.mark.parametrize("count", [0, -1, 1.5, True, "2"])
def test_a_thread_count_that_is_none_is_refused(count: Any) -> None:
    with pytest.raises(SettingsError, match="threads"):
        Machine(Store()).threads = count


def test_folders_must_be_folders_with_their_whole_path(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("", encoding="utf-8")
    for bad in ("models", file):
        with pytest.raises(SettingsError, match="folder"):
            Machine(Store()).models_folder = bad
    with pytest.raises(SettingsError, match="0 to 86400"):
        Machine(Store()).keep_warm_seconds = -1


def test_the_default_folder_is_the_user_s_and_not_the_extension_s(tmp_path: Path) -> None:
    expected = {
        "linux": tmp_path / ".local" / "share",
        "darwin": tmp_path / "Library" / "Application Support",
        "win32": tmp_path / "AppData" / "Local",
    }
    for platform, base in expected.items():
        assert default_models_folder(platform, {}, tmp_path) == base / "DiffeoReg" / "models"
    given = {"XDG_DATA_HOME": str(tmp_path / "data"), "LOCALAPPDATA": str(tmp_path / "local")}
    assert default_models_folder("linux", given, tmp_path) == tmp_path / "data" / "DiffeoReg" / "models"
    assert default_models_folder("win32", given, tmp_path) == tmp_path / "local" / "DiffeoReg" / "models"


def test_outside_slicer_the_worker_runs_in_this_interpreter(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room.slicer, "app", None, raising=False)
    assert Machine(Store()).worker_command() == [sys.executable, "-m", "DiffeoRegLib.worker"]


def test_inside_slicer_the_worker_runs_in_python_slicer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    app = SimpleNamespace(slicerHome=str(tmp_path))
    name = "PythonSlicer.exe" if sys.platform == "win32" else "PythonSlicer"
    monkeypatch.setattr(room.shutil, "which", lambda name: None)
    with pytest.raises(DiffeoRegError, match="reinstall 3D Slicer"):
        worker_python(app)
    monkeypatch.setattr(room.shutil, "which", lambda name: "/elsewhere/PythonSlicer")
    assert worker_python(app) == "/elsewhere/PythonSlicer"
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / name).write_text("", encoding="utf-8")
    assert worker_python(app) == str(tmp_path / "bin" / name)


def test_the_settings_file_is_opened_only_when_no_store_is_given(monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store(threads="5")
    monkeypatch.setitem(sys.modules, "qt", SimpleNamespace(QSettings=lambda: store))
    assert Machine().threads == 5
