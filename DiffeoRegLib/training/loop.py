"""The training loop: the same for every network, every number of processes, and after every kill.

Nothing but weights, the optimiser's memory and a few counters is carried from step to step: the order of the
pairs, their random changes, the learning rate and the network's own random numbers are functions of the seed
and the step.  So a run that is killed and resumed ends with the weights of one that was not.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from DiffeoRegLib.errors import Cancelled, InputError, NoOverlapError
from DiffeoRegLib.flows.shooting import ShootingDiverged
from DiffeoRegLib.methods.base import Progress, Report
from DiffeoRegLib.networks.weights import load_weights
from DiffeoRegLib.training.batches import Drawn, Pairs, Stream, collate, derived_seed, seed_all
from DiffeoRegLib.training.checkpoint import load_optimiser
from DiffeoRegLib.training.config import TrainingConfig
from DiffeoRegLib.training.group_terms import GroupBatch
from DiffeoRegLib.training.objective import Batch, objective_of
from DiffeoRegLib.training.processes import Processes, sum_gradients
from DiffeoRegLib.training.run_folder import Counters, RunFolder
from DiffeoRegLib.training.validation import is_better, require_metric, validate

PAIRS, LOSS, STOP = "pairs", "loss", "stop"


@dataclass(frozen=True)
class Outcome:
    """How a run ended: steps done of all, the best validation value, steps skipped."""

    step: int
    finished: bool
    best: float | None
    skipped: int


@runtime_checkable
class Growing(Protocol):
    """A network that does more from some step of training on; untold it does all it can."""

    def at_step(self, step: int) -> None:
        """The step at work, counted from 0."""
        ...


@dataclass(eq=False)
class Trainer:
    """One run: a network, its data and the folder that holds what becomes of it.

    network: called with (moving, fixed), returns Maps (objective.py); on the processes' device.
    training, validation: pairs; without validation the last weights are all there is.
    report: gets Progress after every logged step; may raise Cancelled, the run can then be resumed.
    stop_wanted: asked in every step; True ends the run after it, in all processes, as at the time limit.
    """

    config: TrainingConfig
    network: nn.Module
    training: Pairs
    validation: Pairs | None
    folder: Path
    processes: Processes = field(default_factory=Processes)
    report: Report = lambda progress: None
    stop_wanted: Callable[[], bool] = lambda: False

    def __post_init__(self) -> None:
        config, team = self.config, self.processes
        self.network.to(team.device).train()
        self.parameters = [p for p in self.network.parameters() if p.requires_grad]
        self.optimiser = make_optimiser(config, self.parameters)
        self.objective = objective_of(config)
        self.stream = Stream(
            self.training, batch=config.batch, seed=config.seed, rank=team.rank, count=team.count,
            workers=config.data.workers,
        )  # fmt: skip
        self.files = RunFolder(self.folder, config, self.objective.names, team, len(self.training))
        self.counters = Counters()
        self.started = time.monotonic()

    def run(self, *, resume: bool = False, stop_after_seconds: float = math.inf) -> Outcome:
        """Train to the last step, or until the time is over; then `resume` goes on from there.

        resume: continue from the folder's state, which must be there.
        Raises OutputExistsError for a folder with another run, SettingsError for one of other settings,
        InputError where too many steps fail or a pair cannot be read, OutputError for a full disk, Cancelled.
        """
        self._begin(resume)
        self.started = time.monotonic()
        try:
            # Closed, or processes that read ahead would outlive the run.
            with closing(self.stream.after(self.counters.step * self.config.accumulation)) as batches:
                finished = self._run(batches, self.started + stop_after_seconds)
        except (Cancelled, InputError):
            self._save()  # these come between updates: the weights are those of the last whole step
            raise
        self._save()
        self.files.close()
        self.processes.wait()
        counters = self.counters
        return Outcome(counters.step, finished, counters.best, counters.skipped)

    def _begin(self, resume: bool) -> None:
        """The state of the folder, or a new run's."""
        if resume:
            stored = self.files.read_state()
            load_weights(self.network, stored.part("network"), str(self.files.state))
            load_optimiser(self.optimiser, stored.part("optimiser"), stored.description["optimiser"])
            self.counters = Counters(**stored.description["counters"])
        else:
            self.files.require_empty()
        self.processes.share(self.network)
        self.files.begin(self.counters.step)
        if not resume:
            self._save()  # a run can be resumed from its first second, and a full disk shows now
        if self.counters.validated < self.counters.step and self._due(self.config.validate_every):
            self._validate()

    def _due(self, interval: int) -> bool:
        """True where something done every so many steps, and at the last, is done now."""
        return self.counters.step % interval == 0 or self.counters.step == self.config.steps

    def _run(self, batches: Iterator[list[Drawn]], deadline: float) -> bool:
        """Steps until the last one (True) or the deadline (False)."""
        config, counters = self.config, self.counters
        while counters.step < config.steps:
            figures = self._step(batches, self.stop_wanted() or time.monotonic() >= deadline)
            counters.step += 1
            counters.seconds += time.monotonic() - self.started
            self.started = time.monotonic()
            if self._due(config.log_every):
                self._log()
            if self._due(config.validate_every):
                self._validate()
            if counters.step % config.checkpoint_every == 0:
                self._save()
            if figures[STOP] > 0 and counters.step < config.steps:
                return False
        return True

    def _step(self, batches: Iterator[list[Drawn]], stop: bool) -> dict[str, float]:
        """One update of the weights, or none where anything in it is not finite."""
        config, counters = self.config, self.counters
        names = (PAIRS, LOSS, *self.objective.names, STOP)
        seed_all(derived_seed(config.seed, "step", counters.step, self.processes.rank))
        self._tell_step()
        self.optimiser.zero_grad(set_to_none=True)
        own = torch.zeros(len(names), device=self.processes.device)
        own[-1] = float(stop)
        for _ in range(config.accumulation):
            batch = self._readable(next(batches))
            if batch is not None:
                own[:-1] += self._backward(batch)
        gradients, summed = sum_gradients(self.parameters, own, self.processes)
        figures = dict(zip(names, summed.tolist(), strict=True))
        norm = float(gradients.norm()) / max(figures[PAIRS], 1)
        if figures[PAIRS] == 0 or not all(map(math.isfinite, (norm, *figures.values()))):
            self._skip()
            return figures
        self._update(gradients / figures[PAIRS], norm)
        means = {name: figures[name] / figures[PAIRS] for name in names[1:-1]}
        counters.add({**means, "gradient_norm": norm})
        return figures

    def _tell_step(self) -> None:
        """Word to a network that changes on the way."""
        if isinstance(self.network, Growing):
            self.network.at_step(self.counters.step)

    def _backward(self, batch: Batch | GroupBatch) -> Tensor:
        """Adds one batch's gradients times its pairs; returns pairs, and loss and terms times them."""
        pairs = batch.count
        try:
            maps = batch.through(self.network)
            loss, terms = self.objective(maps, batch, self.counters.step)
        except (NoOverlapError, ShootingDiverged) as error:
            self.files.problem(self.counters.step, f"{', '.join(batch.names)}: {error}")
            return torch.full((2 + len(self.objective.names),), math.nan, device=self.processes.device)
        if bool(loss.isfinite()):
            (loss * pairs).backward()  # type: ignore[no-untyped-call]
        else:
            self.files.problem(self.counters.step, f"{', '.join(batch.names)}: the loss is {loss.item()}")
        return torch.stack([loss.new_ones(()), loss.detach(), *terms.values()]) * pairs

    def _readable(self, drawn: list[Drawn]) -> Batch | GroupBatch | None:
        """The pairs that could be read; the others are named, and end the run unless they may be skipped."""
        for one in drawn:
            for sentence in one.item.get("skipped", ()) if one.item else ():
                self.files.problem(self.counters.step, sentence)
            if one.item is None:
                self.files.problem(self.counters.step, one.problem)
                if self.config.on_bad_data == "stop":
                    raise InputError(
                        f"{one.problem} Repair or remove it, or set on_bad_data: skip; then resume."
                    )
        items = [one.item for one in drawn if one.item is not None]
        return collate(items).to(self.processes.device) if items else None

    def _update(self, gradients: Tensor, norm: float) -> None:
        """One step of the optimiser along the mean gradient of all pairs of all processes."""
        config = self.config.optimiser
        if config.clip_norm is not None and norm > config.clip_norm:
            gradients = gradients * (config.clip_norm / norm)
        shares = torch.split(gradients, [p.numel() for p in self.parameters])
        for parameter, share in zip(self.parameters, shares, strict=True):
            parameter.grad = share.view_as(parameter).to(parameter.dtype)
        for group in self.optimiser.param_groups:
            group["lr"] = config.rate(self.counters.step, self.config.steps)
        self.optimiser.step()

    def _skip(self) -> None:
        """Counts a step without an update; raises InputError when there were too many."""
        self.counters.skipped += 1
        if self.counters.skipped >= self.config.nan_limit:
            raise InputError(
                f"Training stopped: {self.counters.skipped} steps gave no finite loss and gradient (see "
                f"{self.files.problems.path.name}). Lower the learning rate, set optimiser.clip_norm, or "
                "look at the images; a higher nan_limit lets the run go on."
            )

    def _log(self) -> None:
        """One row of the means since the last, and word to whoever watches."""
        counters, config = self.counters, self.config
        means = counters.means()
        counters.clear_means()
        self.files.log(
            counters.step,
            {
                "epoch": self.stream.epoch_of(counters.step * config.accumulation),
                "seconds": round(counters.seconds, 3),
                "learning_rate": config.optimiser.rate(counters.step - 1, config.steps),
                "skipped": counters.skipped,
                **means,
            },
        )
        if self.processes.leads:
            loss = f"loss {means[LOSS]:.4f}" if LOSS in means else "no finite loss"
            text = f"step {counters.step} of {config.steps}, {loss}, {counters.skipped} skipped"
            self.report(Progress("training", counters.step / config.steps, text))

    def _validate(self) -> None:
        """Measures the network and keeps it if it is the best so far."""
        if self.validation is None:
            return
        self._tell_step()
        found = validate(
            self.network, self.validation, self.objective,
            processes=self.processes, seed=self.config.seed, stop_wanted=self.stop_wanted,
        )  # fmt: skip
        require_metric(self.config.best, found)
        value, counters = found[self.config.best], self.counters
        better = is_better(self.config.best, value, counters.best)
        if better:
            counters.best, counters.best_step = value, counters.step
        self.files.validated(counters.step, found, self.network, best=better)
        counters.validated = counters.step
        if self.processes.leads:
            text = ", ".join(f"{name} {number:.4g}" for name, number in found.items())
            self.report(Progress("validation", counters.step / self.config.steps, text))

    def _save(self) -> None:
        self.files.save(self.network, self.optimiser, self.counters)


def make_optimiser(config: TrainingConfig, parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
    """The optimiser of a configuration."""
    chosen = config.optimiser
    rate, decay = chosen.learning_rate, chosen.weight_decay
    if chosen.name == "sgd":
        return torch.optim.SGD(parameters, rate, momentum=chosen.betas[0], weight_decay=decay)
    kind = torch.optim.AdamW if chosen.name == "adamw" else torch.optim.Adam
    return kind(parameters, rate, betas=chosen.betas, weight_decay=decay)
