"""`diffeoreg train`: a configuration becomes a run; alone, or as one of several processes of `torchrun`."""

from __future__ import annotations

import argparse
import math
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

from DiffeoRegLib.cli.console import Console
from DiffeoRegLib.device import choose_device, set_threads
from DiffeoRegLib.errors import Cancelled, SettingsError, UnknownNameError
from DiffeoRegLib.methods.base import Progress
from DiffeoRegLib.training.changes import changed
from DiffeoRegLib.training.config import SYNTHETIC, TrainingConfig, config_from
from DiffeoRegLib.training.loop import Outcome, Trainer
from DiffeoRegLib.training.processes import joined
from DiffeoRegLib.training.reading import read_yaml
from DiffeoRegLib.training.run_folder import BEST, LAST
from DiffeoRegLib.training.start import prepared_run, shipped_configs

FILE_PATTERNS = ("images", "labels", "masks", "points", "pathologies")
PERSONS = ("held_out", "same_person")
"""Options of `ImageOptions` that belong to one folder: how its files are called, and whom they show."""
STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Stop:
    """Set by the first Ctrl-C: the run ends after the step at work."""

    def __init__(self) -> None:
        self.wanted = False

    def __call__(self) -> bool:
        return self.wanted


def train(arguments: argparse.Namespace, console: Console) -> None:
    """Train to the end, to the time limit, or to Ctrl-C."""
    minutes, folder = arguments.stop_after, Path(arguments.output)
    if minutes is not None and not 0 <= minutes < math.inf:
        raise SettingsError(f"--stop-after takes minutes, not {minutes}.")
    if arguments.threads is not None and arguments.threads < 1:
        raise SettingsError(f"--threads takes a number from 1 up, not {arguments.threads}.")
    config, base = configured(arguments, folder)
    set_threads(arguments.threads)
    device = choose_device(arguments.device).device
    stop = Stop()

    def progress(step: Progress) -> None:
        console.progress(step.phase, step.fraction, step.message)

    with joined(device) as team:
        console.progress("preparing", 0.0, f"network and data on {team.device}")
        run, notes = prepared_run(
            config, folder, base=base, resume=arguments.resume, processes=team, report=progress,
            stop_wanted=stop,
        )  # fmt: skip
        for note in notes if team.leads else ():
            console.log(note)
        with stop_after_the_step(stop, alone=team.count == 1):
            outcome = _run(run, arguments.resume, math.inf if minutes is None else 60 * minutes)
    if stop.wanted and not outcome.finished:
        raise Cancelled(f"Stopped after step {outcome.step} of {config.steps}; --resume goes on from there.")
    if team.leads:
        _tell(console, config, folder, outcome)


def configured(arguments: argparse.Namespace, run: Path) -> tuple[TrainingConfig, Path]:
    """The configuration the flags ask for, and the folder its file names are relative to.

    Raises SettingsError for a file that cannot be read, settings that make no sense, or missing data.
    """
    shipped, name = shipped_configs(), arguments.config
    path, base = Path(name), Path(name).parent
    # A plain word means a shipped one; `./word` would be a file of that name.
    is_shipped = name == path.stem and not path.is_file()
    if is_shipped:
        if name not in shipped:
            raise UnknownNameError("training configuration or file", name, shipped)
        path, base = shipped[name], run
    content = read_yaml(path)
    changes = _own_files(content, arguments)
    if arguments.data is not None:
        changes.append(f"data.source={_quoted(arguments.data)}")
    changes += arguments.set
    if arguments.start_from is not None:
        changes.append(f"start_from.file={_quoted(arguments.start_from)}")
    placeholder = content.get("data", {}).get("source")
    config = config_from(changed(content, changes))
    if is_shipped and placeholder != SYNTHETIC and config.data.source == placeholder:
        raise SettingsError(
            f"'{name}' needs images to train on: --data FOLDER. What it expects is said in {path}."
        )
    return config, base


def _own_files(content: dict[str, Any], arguments: argparse.Namespace) -> list[str]:
    """The changes for files of other names than a configuration has in mind, and so of other persons."""
    options = content.get("data", {}).get("options") or {}
    table = arguments.data is not None and Path(arguments.data).is_file()
    if table and (arguments.images or arguments.labels):
        raise SettingsError("--images and --labels go with a folder: a table names its files itself.")
    changes: dict[str, str | None] = {}
    if arguments.images or (table and options.get("images")):
        changes = {key: None for key in FILE_PATTERNS if key in options}
        changes |= {key: "[]" for key in PERSONS if key in options}
    if arguments.images:
        changes["images"] = _quoted(arguments.images)
    if arguments.labels:
        changes["labels"] = _quoted(arguments.labels)
    found = [f"data.options.{key}={'null' if value is None else value}" for key, value in changes.items()]
    if arguments.images and not arguments.labels and content.get("best", "dice") == "dice":
        found.append("best=loss")  # that measure came with labels that are not there
    return found


def _run(run: Trainer, resume: bool, seconds: float) -> Outcome:
    try:
        return run.run(resume=resume, stop_after_seconds=seconds)
    except Cancelled as error:
        raise Cancelled("Stopped while measuring; --resume goes on from there.") from error
    except KeyboardInterrupt as error:
        raise Cancelled("Stopped at once; --resume goes on from the last state that was written.") from error


@contextmanager
def stop_after_the_step(stop: Stop, *, alone: bool) -> Iterator[None]:
    """Inside, Ctrl-C or a polite kill asks for the end of the run; a second Ctrl-C ends it where it is.

    An exception in the middle of an update would leave weights that belong to no step.
    alone: with other processes, `torchrun` passes a signal on more than once; then only the first counts.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def ask(number: int, frame: FrameType | None) -> None:
        if stop.wanted and alone and number == signal.SIGINT:
            raise KeyboardInterrupt
        stop.wanted = True

    before = {name: signal.signal(name, ask) for name in STOP_SIGNALS}
    try:
        yield
    finally:
        for name, handler in before.items():
            signal.signal(name, handler)


def _tell(console: Console, config: TrainingConfig, folder: Path, outcome: Outcome) -> None:
    """What the run left behind."""
    files = {name: folder / name for name in (BEST, LAST) if (folder / name).is_file()}
    if outcome.finished:
        lines = [f"Trained {outcome.step} steps."]
    else:
        lines = [f"Stopped in time after step {outcome.step} of {config.steps}; --resume goes on from there."]
    if outcome.skipped:
        lines.append(f"{outcome.skipped} steps were skipped: see {folder / 'problems.csv'}.")
    if outcome.best is not None:
        lines.append(f"Best {config.best} on the validation pairs: {outcome.best:.4g}.")
    lines.append("Weights: " + ", ".join(map(str, files.values())))
    data = {
        "command": "train",
        "step": outcome.step,
        "steps": config.steps,
        "finished": outcome.finished,
        "best": outcome.best,
        "best_metric": config.best,
        "skipped": outcome.skipped,
        "files": {name: str(path) for name, path in files.items()},
    }
    console.result("\n".join(lines), data)


def _quoted(text: str) -> str:
    """A text as a YAML value, whatever it holds."""
    return "'" + text.replace("'", "''") + "'"
