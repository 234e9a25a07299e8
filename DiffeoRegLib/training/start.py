"""From a configuration to a run that is ready to go; what can be checked is, before anything is computed."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from torch import nn

from DiffeoRegLib.errors import SettingsError, UnknownNameError, WeightsError
from DiffeoRegLib.methods.base import Report
from DiffeoRegLib.networks.build import build_network
from DiffeoRegLib.networks.weights import check_network, load_weights, read_checkpoint
from DiffeoRegLib.plain import as_plain
from DiffeoRegLib.training.config import StartConfig, TrainingConfig, config_from
from DiffeoRegLib.training.datasets import MEASURED_BY, data_options, training_data
from DiffeoRegLib.training.loop import Trainer
from DiffeoRegLib.training.objective import objective_of
from DiffeoRegLib.training.processes import Processes
from DiffeoRegLib.training.run_folder import RunFolder
from DiffeoRegLib.training.validation import metrics_of, require_metric

SHIPPED = Path(__file__).resolve().parents[1] / "Resources" / "Training"


def shipped_configs() -> dict[str, Path]:
    """The configurations that come with DiffeoReg, by name."""
    return {path.stem: path for path in sorted(SHIPPED.glob("*.yaml"))}


def prepared_run(
    config: TrainingConfig,
    folder: Path,
    *,
    base: Path,
    resume: bool = False,
    processes: Processes | None = None,
    report: Report = lambda progress: None,
    stop_wanted: Callable[[], bool] = lambda: False,
) -> tuple[Trainer, tuple[str, ...]]:
    """A run with its network and data, and sentences on how the data came about.

    The network's first weights are drawn from the seed, or read from `config.start_from`; a run that is
    resumed keeps the start it had.  base: what file names in the configuration are relative to.
    Raises SettingsError and InputError for a configuration or data that cannot be used, WeightsError for a
    start from other weights, OutputExistsError for a folder that holds another run.
    """
    team = processes or Processes()
    terms = objective_of(config).names
    data_options(config.data)
    torch.manual_seed(config.seed)
    network = build_network(config.network, config.precision)
    files = RunFolder(folder, config, terms, team, 0)
    if resume:
        config = _as_started(config, files, base)
    else:
        files.require_empty()
        config = _started(config, network, base)
    data = training_data(config.data, seed=config.seed, base=base)
    if data.validation is not None:
        require_metric(config.best, {*metrics_of(config)} - {*MEASURED_BY} | {*data.measures})
    run = Trainer(
        config, network, data.training, data.validation, folder,
        processes=team, report=report, stop_wanted=stop_wanted,
    )  # fmt: skip
    return run, data.notes


def _started(config: TrainingConfig, network: nn.Module, base: Path) -> TrainingConfig:
    """Puts the weights to start from into the network; the configuration with their checksum."""
    if config.start_from is None:
        return config
    start = _identified(config.start_from, base)
    path = base / start.file
    stored = read_checkpoint(path, sha256=start.sha256)
    if stored.description.get("kind") != "weights":
        raise WeightsError(
            f"'{path}' holds the state of a training run; start from its best or last weights."
        )
    if start.part is None:
        check_network(stored, as_plain(config.network), str(path))
        load_weights(network, stored.tensors, str(path))
    else:
        parts = dict(network.named_children())
        if start.part not in parts:
            raise UnknownNameError(f"part of {config.network.name}", start.part, parts)
        load_weights(parts[start.part], stored.part(start.part), str(path))
    return replace(config, start_from=start)


def _as_started(config: TrainingConfig, files: RunFolder, base: Path) -> TrainingConfig:
    """The configuration with the start of the run it resumes; one that is named has to be the same."""
    begun = config_from(files.stored_state().description["config"]).start_from
    if config.start_from is None:
        return replace(config, start_from=begun)
    named = _identified(config.start_from, base)
    if begun is None or (begun.sha256, begun.part) != (named.sha256, named.part):
        before = "random weights" if begun is None else f"'{begun.file}'"
        raise SettingsError(f"This run was started from {before}, not from '{named.file}' as it is now.")
    return replace(config, start_from=begun)


def _identified(start: StartConfig, base: Path) -> StartConfig:
    """A start with the checksum of its file; raises WeightsError where that is not the one it should have."""
    path = base / start.file
    try:
        found = hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        raise WeightsError(f"The weights '{path}' cannot be read: {error.strerror or error}.") from error
    if start.sha256 not in (None, found):
        raise WeightsError(f"'{path}' is not the file it should be (checksum).")
    return replace(start, sha256=found)
