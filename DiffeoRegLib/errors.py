"""The exceptions DiffeoReg raises on purpose: one sentence a user understands, plus what to do."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class DiffeoRegError(Exception):
    """Base of everything raised on purpose; the message is written for the user."""


class InputError(DiffeoRegError):
    """Something the user gave (file, volume, mask, flag) cannot be used."""


class FileFormatError(InputError):
    """A file is missing, corrupt, truncated or of a kind that cannot be registered."""


class WeightsError(FileFormatError):
    """Trained weights are missing, damaged, or do not belong to the method."""


class LicenceError(InputError):
    """A licence has to be accepted before something under it is used."""


class GeometryError(InputError):
    """A volume's place in the patient is unusable: singular, sheared beyond use, empty."""


class NoOverlapError(InputError):
    """Fixed and moving image share no space after the initial alignment."""


class SettingsError(InputError):
    """A setting has a value that makes no sense."""


class UnknownNameError(SettingsError):
    """A name (method, preset, metric ...) that does not exist; the message lists the right ones."""

    def __init__(self, what: str, name: str, known: Iterable[str]) -> None:
        names = sorted(known)
        close = difflib.get_close_matches(name, names, n=1)
        hint = f" Did you mean '{close[0]}'?" if close else ""
        super().__init__(f"There is no {what} '{name}'.{hint} Known: {', '.join(names)}.")


class ShapeError(DiffeoRegError, ValueError):
    """A tensor does not have the shape a function is defined for (a programming error of the caller)."""


class OutputError(DiffeoRegError):
    """A result could not be written."""


class OutputExistsError(OutputError):
    """A result exists already and overwriting was not asked for."""


class MemoryLimitError(DiffeoRegError):
    """The job does not fit into the memory there is, even on the coarsest sensible grid."""


class DeviceError(DiffeoRegError):
    """A compute device was asked for that does not exist or does not work."""


class ClusterError(DiffeoRegError):
    """The workers for many registrations cannot be had, or are lost."""


class Cancelled(DiffeoRegError):
    """The user stopped the run; nothing was written."""


NO_MEMORY = ("not enough memory", "out of memory", "allocate memory", "bad_alloc")
"""How torch and ITK say it where they have no exception of their own for it."""


def out_of_memory(problem: BaseException) -> bool:
    """True if an exception of any library says that there was no memory left."""
    if isinstance(problem, MemoryError) or type(problem).__name__ == "OutOfMemoryError":
        return True
    words = str(problem).lower()
    return isinstance(problem, RuntimeError) and any(part in words for part in NO_MEMORY)
