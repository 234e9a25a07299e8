"""The command `diffeoreg`: flags -> Settings -> pipeline -> files, and an exit status."""

from __future__ import annotations

import os
import signal
import sys
import threading
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from types import FrameType

from DiffeoRegLib.cli.arguments import build_parser
from DiffeoRegLib.cli.console import Console, open_console
from DiffeoRegLib.errors import (
    Cancelled,
    ClusterError,
    DeviceError,
    InputError,
    MemoryLimitError,
    OutputError,
    out_of_memory,
)
from DiffeoRegLib.waiting import choose_waiting

OK, UNEXPECTED, BAD_INPUT, BAD_OUTPUT, NO_MEMORY, CANCELLED = 0, 1, 2, 3, 4, 130
STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit status (see `diffeoreg register --help`)."""
    words = list(sys.argv[1:] if argv is None else argv)
    console = open_console(as_json="--json" in words, quiet="--quiet" in words)
    debug = "--debug" in words
    try:
        with _stop_signals():
            return _run(words, console)
    except SystemExit as leaving:  # --help and --version
        return int(leaving.code or 0)
    except BrokenPipeError:  # `diffeoreg methods | head`: the reader has had enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return OK
    except KeyboardInterrupt:
        return _stopped(console, Cancelled("Cancelled; nothing was written."), CANCELLED, debug)
    except Exception as problem:  # noqa: BLE001 - the outermost door: every error becomes a sentence and a status
        return _stopped(console, problem, exit_status(problem), debug)


def exit_status(problem: BaseException) -> int:
    """The exit status for an exception."""
    if isinstance(problem, (InputError, DeviceError, ClusterError)):
        return BAD_INPUT
    if isinstance(problem, OutputError):
        return BAD_OUTPUT
    if isinstance(problem, Cancelled):
        return CANCELLED
    if isinstance(problem, MemoryLimitError) or out_of_memory(problem):
        return NO_MEMORY
    return UNEXPECTED


def sentence(problem: BaseException, status: int) -> str:
    """What the user reads about an exception: one line."""
    text = " ".join(str(problem).split()) or type(problem).__name__
    if status == UNEXPECTED:
        return (
            f"Unexpected {type(problem).__name__}: {text} (run again with --debug for the details to report)"
        )
    if out_of_memory(problem):
        return "Out of memory: use --memory-limit-gb, a larger --working-spacing-mm, or --device cpu."
    return text


def _run(words: list[str], console: Console) -> int:
    arguments = build_parser().parse_args(words)
    if arguments.command is None:
        build_parser().print_help()
        return BAD_INPUT
    choose_waiting()
    from DiffeoRegLib.cli import commands  # torch is loaded here, so that --help stays quick

    try:
        # A library that prints would break the JSON lines: its words go to the error stream.
        with redirect_stdout(sys.stderr):
            commands.COMMANDS[arguments.command](arguments, console)
    finally:
        console.close()
    return OK


def _stopped(console: Console, problem: BaseException, status: int, debug: bool) -> int:
    if debug:
        traceback.print_exception(problem)
    console.error(sentence(problem, status), type(problem).__name__, status)
    return status


@contextmanager
def _stop_signals() -> Iterator[None]:
    """Turn Ctrl-C and a polite kill into Cancelled, once: clean-up is then left in peace."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(number: int, frame: FrameType | None) -> None:
        for name in STOP_SIGNALS:
            signal.signal(name, signal.SIG_IGN)
        raise Cancelled("Cancelled; nothing was written.")

    before = {name: signal.signal(name, stop) for name in STOP_SIGNALS}
    try:
        yield
    finally:
        for name, handler in before.items():
            signal.signal(name, handler)
