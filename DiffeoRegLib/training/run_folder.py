"""The files of one training run: its state, its weights, its record."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from DiffeoRegLib.errors import FileFormatError, InputError, OutputExistsError, SettingsError
from DiffeoRegLib.networks.weights import Stored, read_checkpoint
from DiffeoRegLib.plain import as_plain
from DiffeoRegLib.training.checkpoint import optimiser_tensors, write_checkpoint
from DiffeoRegLib.training.config import TrainingConfig, check_resumable, config_from
from DiffeoRegLib.training.curve import TRAINING, VALIDATION, Scalars, Table, draw_curve
from DiffeoRegLib.training.processes import Processes
from DiffeoRegLib.training.validation import metrics_of
from DiffeoRegLib.whole_file import replace_file

STATE, LAST, BEST, CONFIG = "state.safetensors", "last.safetensors", "best.safetensors", "config.json"


@dataclass
class Counters:
    """What a run remembers beside weights and optimiser: steps, time, failures, best value, means to log.

    validated: the last step that was validated, -1 before the first.
    """

    step: int = 0
    seconds: float = 0.0
    skipped: int = 0
    best: float | None = None
    best_step: int | None = None
    validated: int = -1
    sums: dict[str, float] = field(default_factory=dict)
    summed: int = 0

    def add(self, values: Mapping[str, float]) -> None:
        """The figures of one step, for the next row of the table."""
        self.sums = {name: self.sums.get(name, 0.0) + value for name, value in values.items()}
        self.summed += 1

    def means(self) -> dict[str, float]:
        """Mean figures since the last row, none if every step was skipped."""
        return {name: value / self.summed for name, value in self.sums.items()}

    def clear_means(self) -> None:
        """A new row begins."""
        self.sums, self.summed = {}, 0


class RunFolder:
    """Writes what a run leaves behind; in a group of processes only the leader writes weights and tables."""

    def __init__(
        self, folder: Path, config: TrainingConfig, terms: tuple[str, ...], processes: Processes, pairs: int
    ) -> None:
        self.folder, self.config, self.processes, self.pairs = folder, config, processes, pairs
        self.state = folder / STATE
        columns = ("epoch", "seconds", "learning_rate", "loss", *terms, "gradient_norm", "skipped")
        self.training = Table(folder / TRAINING, columns)
        self.validation = Table(folder / VALIDATION, metrics_of(config))
        name = "problems.csv" if processes.leads else f"problems-{processes.rank}.csv"
        self.problems = Table(folder / name, ("problem",))
        self.scalars: Scalars | None = None

    def require_empty(self) -> None:
        """Raises OutputExistsError for a folder that holds a run."""
        if self.state.exists():
            raise OutputExistsError(
                f"'{self.folder}' already holds a training run; resume it, or choose another folder."
            )

    def stored_state(self) -> Stored:
        """The state in the folder; raises InputError where there is none."""
        if not self.state.exists():
            raise InputError(f"There is no training run to resume in '{self.folder}'.")
        stored = read_checkpoint(self.state)
        if stored.description.get("kind") != "state":
            raise FileFormatError(f"'{self.state}' holds weights only; a run cannot be resumed from it.")
        return stored

    def read_state(self) -> Stored:
        """The state to go on from; raises SettingsError unless it is of the same run."""
        stored = self.stored_state()
        check_resumable(config_from(stored.description["config"]), self.config)
        for what, before, now in (
            ("processes", stored.description["processes"], self.processes.count),
            ("training pairs", stored.description["pairs"], self.pairs),
        ):
            if before != now:
                raise SettingsError(f"This run was started with {before} {what}, not {now}.")
        return stored

    def begin(self, step: int) -> None:
        """Tables hold what belongs to the steps done."""
        self.processes.wait()  # nobody writes before everybody has read
        self.problems.start(step - 1)  # named by the step that was being made
        if self.processes.leads:
            text = json.dumps(as_plain(self.config), indent=1, ensure_ascii=False) + "\n"
            replace_file(self.folder / CONFIG, text.encode())
            self.training.start(step)
            self.validation.start(step)
            self.scalars = Scalars(self.folder, step)

    def problem(self, step: int, sentence: str) -> None:
        """Names what went wrong in a step."""
        self.problems.add(step, {"problem": sentence})

    def log(self, step: int, row: Mapping[str, Any]) -> None:
        """One row of training figures."""
        if self.processes.leads:
            self.training.add(step, row)
            if self.scalars is not None:
                self.scalars.add(step, "training", row)

    def validated(self, step: int, found: Mapping[str, float], network: nn.Module, *, best: bool) -> None:
        """One row of validation figures, the weights if they are the best or to be kept, and the picture."""
        if not self.processes.leads:
            return
        self.validation.add(step, found)
        if self.scalars is not None:
            self.scalars.add(step, "validation", found)
        if best:
            self._write_weights(self.folder / BEST, network, step, found)
        if self.config.keep and step:
            self._write_weights(self.folder / f"step-{step:08d}.safetensors", network, step, found)
            for old in sorted(self.folder.glob("step-????????.safetensors"))[: -self.config.keep]:
                old.unlink()
        draw_curve(self.folder)

    def save(self, network: nn.Module, optimiser: torch.optim.Optimizer, counters: Counters) -> None:
        """The whole state in one file, then the last weights alone."""
        if not self.processes.leads:
            return
        tensors, rest = optimiser_tensors(optimiser)
        write_checkpoint(
            self.state,
            {**_named("network", network.state_dict()), **_named("optimiser", tensors)},
            {
                **self._description("state", counters.step),
                "counters": asdict(counters),
                "optimiser": rest,
                "processes": self.processes.count,
                "pairs": self.pairs,
            },
        )
        self._write_weights(self.folder / LAST, network, counters.step, {})

    def close(self) -> None:
        """The record is complete."""
        if self.processes.leads:
            draw_curve(self.folder)
            if self.scalars is not None:
                self.scalars.close()

    def _write_weights(self, path: Path, network: nn.Module, step: int, found: Mapping[str, float]) -> None:
        description = {**self._description("weights", step), "validation": dict(found)}
        write_checkpoint(path, network.state_dict(), description)

    def _description(self, kind: str, step: int) -> dict[str, Any]:
        plain = as_plain(self.config)
        return {"kind": kind, "step": step, "config": plain, "network": plain["network"]}


def _named(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {f"{prefix}.{name}": value for name, value in tensors.items()}
