"""How a run talks: JSON lines for programs, a progress bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any, Protocol, TextIO

from DiffeoRegLib.cells import visible

PLAIN_STEP = 0.05  # without a terminal, a line per 5 % keeps log files short


class Console(Protocol):
    """Where progress, remarks, results and errors of one command go."""

    def progress(self, phase: str, fraction: float, message: str) -> None:
        """Show how far the run is; fraction of the whole run in 0..1."""

    def log(self, message: str) -> None:
        """Show one sentence."""

    def result(self, text: str, data: Mapping[str, Any]) -> None:
        """Show what the command found: `text` to people, `data` to programs."""

    def error(self, message: str, kind: str, exit_code: int) -> None:
        """Show why the command stopped, one sentence."""

    def close(self) -> None:
        """Leave the terminal as it was found."""


class TimeLeft:
    """Seconds left, from the fraction done and the time since the first report."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._start: float | None = None

    def seconds(self, fraction: float) -> float | None:
        """None while too little is done to say."""
        now = self._clock()
        if self._start is None:
            self._start = now
        if fraction < 0.03 or now - self._start < 0.5:
            return None
        return (now - self._start) * (1 - fraction) / fraction


class JsonConsole:
    """One JSON object per line on `stream`, flushed; nothing else is ever written there."""

    def __init__(self, stream: TextIO, errors: TextIO) -> None:
        self._stream, self._errors, self._left = stream, errors, TimeLeft()

    def _event(self, event: str, **content: Any) -> None:
        self._stream.write(json.dumps({"event": event, **content}, allow_nan=False) + "\n")
        self._stream.flush()

    def progress(self, phase: str, fraction: float, message: str) -> None:
        """Event `progress`."""
        left = self._left.seconds(fraction)
        seconds = None if left is None else round(left, 1)
        self._event(
            "progress", phase=phase, fraction=round(fraction, 4), message=message, eta_seconds=seconds
        )

    def log(self, message: str) -> None:
        """Event `log`."""
        self._event("log", message=message)

    def result(self, text: str, data: Mapping[str, Any]) -> None:
        """Event `result` with the data; the text is for people and left out."""
        self._event("result", **data)

    def error(self, message: str, kind: str, exit_code: int) -> None:
        """Event `error`, and the sentence on the error stream as without --json."""
        self._event("error", message=message, kind=kind, exit_code=exit_code)
        self._errors.write(f"diffeoreg: {visible(message)}\n")

    def close(self) -> None:
        """Nothing to restore."""


class PlainConsole:
    """Lines of text: results on `stream`, everything else on `errors`; `quiet` drops progress and remarks."""

    def __init__(self, stream: TextIO, errors: TextIO, quiet: bool = False) -> None:
        self._stream, self._errors, self._quiet = stream, errors, quiet
        self._left = TimeLeft()
        self._shown, self._phase = -1.0, ""

    def progress(self, phase: str, fraction: float, message: str) -> None:
        """A line for every new phase and every 5 %."""
        left = self._left.seconds(fraction)
        if self._quiet or (phase == self._phase and fraction < self._shown + PLAIN_STEP):
            return
        self._shown, self._phase = fraction, phase
        tail = "" if left is None else f" ({duration(left)} left)"
        self._errors.write(visible(f"{fraction:4.0%} {phase}: {message}{tail}") + "\n")
        self._errors.flush()

    def log(self, message: str) -> None:
        """A line."""
        if not self._quiet:
            self._errors.write(visible(message) + "\n")

    def result(self, text: str, data: Mapping[str, Any]) -> None:
        """The text."""
        self._stream.write(visible(text) + "\n")
        self._stream.flush()

    def error(self, message: str, kind: str, exit_code: int) -> None:
        """One line on the error stream."""
        self._errors.write(f"diffeoreg: {visible(message)}\n")

    def close(self) -> None:
        """Nothing to restore."""


class BarConsole(PlainConsole):
    """A progress bar with the time left on a terminal (needs rich); the rest as plain lines."""

    def __init__(self, stream: TextIO, errors: TextIO) -> None:
        from rich.console import Console as Terminal
        from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn

        super().__init__(stream, errors)
        self._bar = Progress(
            TextColumn("{task.description}", style="bold", markup=False),  # names of files
            BarColumn(bar_width=28),
            TaskProgressColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.fields[left]}", style="cyan"),
            TextColumn("{task.fields[message]}", style="dim", markup=False),
            console=Terminal(file=errors),
            transient=True,
        )
        self._task = self._bar.add_task("starting", total=1.0, left="", message="")
        self._started = False

    def progress(self, phase: str, fraction: float, message: str) -> None:
        """Move the bar."""
        if not self._started:
            self._bar.start()
            self._started = True
        left = self._left.seconds(fraction)
        tail = "" if left is None else f"{duration(left)} left"
        self._bar.update(
            self._task, completed=fraction, description=phase, message=visible(message), left=tail
        )

    def log(self, message: str) -> None:
        """A line above the bar."""
        self._bar.console.print(visible(message), markup=False, highlight=False)

    def close(self) -> None:
        """Remove the bar."""
        if self._started:
            self._bar.stop()
            self._started = False

    def result(self, text: str, data: Mapping[str, Any]) -> None:
        """The text, below where the bar was."""
        self.close()
        super().result(text, data)

    def error(self, message: str, kind: str, exit_code: int) -> None:
        """One line, below where the bar was."""
        self.close()
        super().error(message, kind, exit_code)


def open_console(*, as_json: bool, quiet: bool) -> Console:
    """The console that suits the flags and the terminal; rich is used where it is installed."""
    if as_json:
        return JsonConsole(sys.stdout, sys.stderr)
    if quiet or not sys.stderr.isatty():
        return PlainConsole(sys.stdout, sys.stderr, quiet)
    try:
        return BarConsole(sys.stdout, sys.stderr)
    except ImportError:
        return PlainConsole(sys.stdout, sys.stderr)


def duration(seconds: float) -> str:
    """`9 s`, `2 min 05 s` or `1 h 03 min`."""
    whole = max(round(seconds), 0)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def table(header: list[str], rows: list[list[str]]) -> str:
    """Text table, first column left, the others right."""
    widths = [max(len(row[i]) for row in [header, *rows]) for i in range(len(header))]

    def line(row: list[str]) -> str:
        first = row[0].ljust(widths[0])
        return "  ".join(
            [first, *(cell.rjust(w) for cell, w in zip(row[1:], widths[1:], strict=True))]
        ).rstrip()

    return "\n".join([line(header), "  ".join("-" * w for w in widths), *(line(row) for row in rows)])
