"""What belongs to this computer and not to a scene: device, threads, folders, accepted licences."""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any, Protocol

import slicer

from DiffeoRegLib.catalog import default_models_folder
from DiffeoRegLib.errors import DiffeoRegError, SettingsError, UnknownNameError
from DiffeoRegLib.settings import DEVICES

GROUP = "DiffeoReg"
KEEP_WARM_SECONDS = 600.0
LONGEST_WARM_SECONDS = 24 * 3600.0
WORKER = ("-m", "DiffeoRegLib.worker")


class Store(Protocol):
    """The part of QSettings that is used."""

    def value(self, key: str, default: Any = None) -> Any:
        """What is kept under a key."""

    def setValue(self, key: str, value: Any) -> None:
        """Keep a value under a key."""


class Machine:
    """The choices of this computer, kept between sessions; each is checked when it is set.

    A kept value that makes no sense any more (an older version's, a folder that is gone) reads as the
    default.
    """

    def __init__(self, store: Store | None = None) -> None:
        self._store = application_settings() if store is None else store

    @property
    def device(self) -> str:
        """auto, cpu, cuda, cuda:1, mps.  Setting raises UnknownNameError for anything else."""
        kept = self._text("device", "auto")
        return kept if _is_device(kept) else "auto"

    @device.setter
    def device(self, name: str) -> None:
        if not _is_device(name):
            raise UnknownNameError("device", name, DEVICES)
        self._store.setValue(f"{GROUP}/device", name)

    @property
    def threads(self) -> int | None:
        """CPU threads of the worker; None = as many as it finds.  Setting raises SettingsError below 1."""
        kept = self._text("threads", "")
        return int(kept) if kept.isdecimal() and int(kept) > 0 else None

    @threads.setter
    def threads(self, count: int | None) -> None:
        if count is not None and (not isinstance(count, int) or isinstance(count, bool) or count < 1):
            raise SettingsError(f"The number of threads must be a whole number from 1 up, not {count!r}.")
        self._store.setValue(f"{GROUP}/threads", "" if count is None else str(count))

    @property
    def models_folder(self) -> Path:
        """Where weights lie: a folder of the user that survives updates; not necessarily there yet.

        Setting raises SettingsError for a path that is not absolute or names a file.
        """
        kept = self._text("models_folder", "")
        return Path(kept) if kept and Path(kept).is_absolute() else default_models_folder()

    @models_folder.setter
    def models_folder(self, folder: Path | str | None) -> None:
        self._set_folder("models_folder", folder)

    @property
    def temporary_folder(self) -> Path:
        """Where images are handed to the worker.  Setting raises SettingsError where there is no folder."""
        kept = self._text("temporary_folder", "")
        return Path(kept) if kept and Path(kept).is_dir() else Path(tempfile.gettempdir())

    @temporary_folder.setter
    def temporary_folder(self, folder: Path | str | None) -> None:
        if folder is not None and Path(folder).is_absolute() and not Path(folder).exists():
            raise SettingsError(f"There is no folder '{folder}': make it first, or choose another.")
        self._set_folder("temporary_folder", folder)

    @property
    def keep_warm_seconds(self) -> float:
        """How long an idle worker waits for the next run; 0 = it ends with the run.

        Setting raises SettingsError outside 0 to a day.
        """
        try:
            kept = float(self._text("keep_warm_seconds", str(KEEP_WARM_SECONDS)))
        except ValueError:
            return KEEP_WARM_SECONDS
        return kept if 0 <= kept <= LONGEST_WARM_SECONDS else KEEP_WARM_SECONDS

    @keep_warm_seconds.setter
    def keep_warm_seconds(self, seconds: float) -> None:
        if not 0 <= float(seconds) <= LONGEST_WARM_SECONDS:
            raise SettingsError(f"The worker can wait 0 to {LONGEST_WARM_SECONDS:.0f} s, not {seconds!r}.")
        self._store.setValue(f"{GROUP}/keep_warm_seconds", repr(float(seconds)))

    @property
    def accepted_licences(self) -> frozenset[str]:
        """Names of the licences the user has accepted on this computer."""
        try:
            kept = json.loads(self._text("accepted_licences", "[]"))
        except ValueError:
            return frozenset()
        return frozenset(map(str, kept)) if isinstance(kept, list) else frozenset()

    def accept_licence(self, licence: str) -> None:
        """Remember that a licence was accepted."""
        names = sorted(self.accepted_licences | {licence})
        self._store.setValue(f"{GROUP}/accepted_licences", json.dumps(names))

    def worker_command(self) -> list[str]:
        """What starts the worker process, without its options.

        Raises DiffeoRegError when Slicer's Python cannot be found.
        """
        return [worker_python(getattr(slicer, "app", None)), *WORKER]

    def _text(self, name: str, default: str) -> str:
        kept = self._store.value(f"{GROUP}/{name}", default)
        return default if kept is None else str(kept)

    def _set_folder(self, name: str, folder: Path | str | None) -> None:
        if folder is not None and not Path(folder).is_absolute():
            raise SettingsError(f"A folder must be given with its whole path, not as '{folder}'.")
        if folder is not None and Path(folder).exists() and not Path(folder).is_dir():
            raise SettingsError(f"'{folder}' is a file; choose a folder.")
        self._store.setValue(f"{GROUP}/{name}", "" if folder is None else str(folder))


def application_settings() -> Store:
    """Slicer's own settings file."""
    import qt

    return qt.QSettings()


def worker_python(app: Any) -> str:
    """The interpreter the worker runs in: PythonSlicer inside Slicer, this one elsewhere.

    app: slicer.app, or None.  Raises DiffeoRegError when Slicer has no PythonSlicer.
    """
    home = str(getattr(app, "slicerHome", "") or "")
    if not home:
        return sys.executable
    name = "PythonSlicer.exe" if sys.platform == "win32" else "PythonSlicer"
    beside = Path(home) / "bin" / name
    found = str(beside) if beside.is_file() else shutil.which("PythonSlicer")
    if not found:
        raise DiffeoRegError(
            f"Slicer's Python interpreter was not found at '{beside}': reinstall 3D Slicer, or start the "
            "Slicer launcher instead of the program file behind it."
        )
    return found


def _is_device(name: str) -> bool:
    kind, _, index = name.partition(":")
    return kind in DEVICES and (not index or (kind == "cuda" and index.isdecimal())) and name[-1:] != ":"
