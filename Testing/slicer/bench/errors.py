"""Exceptions that nobody above can catch, kept for the test: those of slots, observers and event handlers."""

from __future__ import annotations

import traceback
import types
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class SlotError:
    """An exception that a slot, an observer or an event handler let out."""

    where: str
    exception: BaseException
    text: str

    def __str__(self) -> str:
        return f"{self.where}: {self.text}"


slot_errors: list[SlotError] = []


def record_error(where: str, error: BaseException) -> None:
    """Keep an exception that nobody above can catch."""
    slot_errors.append(SlotError(where, error, "".join(traceback.format_exception(error))))


def guarded(
    where: str, function: Callable[..., Any], prepare: Callable[[Any], Any] = lambda argument: argument
) -> Callable[..., None]:
    """The function as Qt calls it: only the arguments it takes (each prepared), its exceptions recorded."""
    takes = _positional(function)

    def call(*arguments: Any) -> None:
        try:
            function(*[prepare(argument) for argument in arguments[:takes]])
        except Exception as error:  # noqa: BLE001 - kept for the test to read
            record_error(where, error)

    return call


def _positional(function: Callable[..., Any]) -> int | None:
    """How many arguments a Python function takes; None = all, as PythonQt does for every other callable."""
    if isinstance(function, types.MethodType) and isinstance(function.__func__, types.FunctionType):
        code, own = function.__func__.__code__, 1
    elif isinstance(function, types.FunctionType):
        code, own = function.__code__, 0
    else:
        return None
    return None if code.co_flags & 0x04 else code.co_argcount - own
