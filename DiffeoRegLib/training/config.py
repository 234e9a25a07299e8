"""Everything that decides a training run, one YAML file per method."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from DiffeoRegLib.errors import SettingsError, UnknownNameError
from DiffeoRegLib.networks.build import NetworkConfig
from DiffeoRegLib.plain import as_plain, build
from DiffeoRegLib.training.changing import WeightSchedule
from DiffeoRegLib.training.reading import read_yaml

SIMILARITY_LOSSES = ("lncc", "lncc-squared", "lncc-published", "mk-lncc", "mse", "l1", "nmi", "mind")
PENALTIES = ("diffusion", "gradient", "bending")
PATH_TERMS = ("kinetic", "transport", "common", "consistency")
VELOCITY_TERMS = ("lddmm", "end-point")
APPEARANCE_TERMS = ("appearance", "folds")
MAP_TERMS = ("kl", "affine-size", "affine-inverse", *PATH_TERMS, *VELOCITY_TERMS, *APPEARANCE_TERMS)
LABEL_TERMS = ("dice", "label-mse")
GROUP_TERMS = ("group-nmi", "group-variance", "group-dice")
LOSSES = (*SIMILARITY_LOSSES, *PENALTIES, *MAP_TERMS, *LABEL_TERMS, *GROUP_TERMS)
HIGHER_IS_BETTER = {"dice": True, "tre_mm": False, "loss": False, "folded_percent": False,
                    "sd_log_jacobian": False, "nmi": True, "rmse": False}  # fmt: skip
SYNTHETIC = "synthetic"
"""The data source that is no file."""
HARMLESS = ("validate_every", "checkpoint_every", "log_every", "keep", "nan_limit", "on_bad_data")
"""Settings a resumed run may change: they do not change the weights of any step."""


@dataclass(frozen=True)
class DataConfig:
    """What is trained on.

    source, validation: a folder, a CSV or JSON of pairs, a `dataset.json`, or `synthetic`; None = no
    validation.
    spacing_mm: of the working grid per tensor axis, None = one unit, so that penalties count in voxels.
    workers: processes that read ahead.
    options: of the dataset (split, augmentation, synthesis ...), checked where it is built.
    """

    source: str
    validation: str | None = None
    spacing_mm: tuple[float, ...] | None = None
    workers: int = 0
    options: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        _whole("data.workers", self.workers, 0)
        if not self.source:
            raise SettingsError("data.source must name a folder, a list of pairs, or 'synthetic'.")
        if self.spacing_mm is not None and not (
            len(self.spacing_mm) in (2, 3) and all(0 < s < math.inf for s in self.spacing_mm)
        ):
            raise SettingsError(f"data.spacing_mm must be 2 or 3 lengths above 0, not {self.spacing_mm}.")


@dataclass(frozen=True)
class LossConfig:
    """One term of the loss: name, weight and keyword options of the function of that name.

    schedule: how the weight comes about.
    """

    name: str
    weight: float = 1.0
    options: Mapping[str, Any] = field(default_factory=dict)
    schedule: WeightSchedule = field(default_factory=WeightSchedule)

    def __post_init__(self) -> None:
        if self.name not in LOSSES:
            raise UnknownNameError("loss", self.name, LOSSES)
        if not 0 <= self.weight < math.inf:
            raise SettingsError(f"The weight of {self.name} must be at least 0, not {self.weight}.")

    @property
    def counts(self) -> bool:
        """It has a weight in some step."""
        return self.weight > 0 or bool(self.schedule.first)


@dataclass(frozen=True)
class OptimiserConfig:
    """How weights follow the gradient.

    warmup: first steps with a learning rate that grows linearly.  schedule: afterwards, `constant`, or
    `cosine` (to zero at the last step).  clip_norm: longest gradient, None = any.
    """

    name: Literal["adam", "adamw", "sgd"] = "adam"
    learning_rate: float = 1e-4
    betas: tuple[float, float] = (0.9, 0.999)
    weight_decay: float = 0.0
    schedule: Literal["constant", "cosine"] = "constant"
    warmup: int = 0
    clip_norm: float | None = None

    def __post_init__(self) -> None:
        _whole("optimiser.warmup", self.warmup, 0)
        _positive("optimiser.learning_rate", self.learning_rate)
        if self.clip_norm is not None:
            _positive("optimiser.clip_norm", self.clip_norm)
        if not all(0 <= beta < 1 for beta in self.betas) or not 0 <= self.weight_decay < math.inf:
            raise SettingsError("optimiser.betas lie in [0, 1), and optimiser.weight_decay is at least 0.")

    def rate(self, step: int, steps: int) -> float:
        """Learning rate of a step counted from 0: a function of the step alone, never stored."""
        if step < self.warmup:
            return self.learning_rate * (step + 1) / (self.warmup + 1)
        if self.schedule == "constant":
            return self.learning_rate
        share = (step - self.warmup) / max(steps - self.warmup, 1)
        return self.learning_rate * 0.5 * (1 + math.cos(math.pi * min(share, 1.0)))


@dataclass(frozen=True)
class StartConfig:
    """Weights that a run starts from, in place of random ones.

    part: of the network, where the rest is drawn; the file may then be of another network with the same part.
    sha256: of that file, filled in by the run.
    """

    file: str
    part: str | None = None
    sha256: str | None = None


@dataclass(frozen=True)
class TrainingConfig:
    """One training run.

    symmetric: both directions count, half each; symmetric_from: the step from which they do.
    leave_out_pathology: similarities compare outside the pathology of the fixed image only (cost function
    masking); otherwise a network that changes intensities accounts for it, and others overlook it.
    steps: of the optimiser.  batch: pairs per process at a time; accumulation: batches per step.
    precision: of the convolutions, `bf16` where the network offers it; fields are always fp32.
    validate_every, checkpoint_every, log_every: steps.  keep: numbered weights kept beside best and last.
    best: the validation metric that chooses the best weights.
    nan_limit: the run stops when so many steps had to be skipped.
    on_bad_data: `stop` at a pair that cannot be read, or `skip` it; either way it is named.
    start_from: weights of the same network; its options may differ.
    Raises SettingsError for values that make no sense.
    """

    method: str
    data: DataConfig
    network: NetworkConfig
    losses: tuple[LossConfig, ...]
    steps: int
    symmetric: bool = True
    symmetric_from: int = 0
    leave_out_pathology: bool = False
    optimiser: OptimiserConfig = field(default_factory=OptimiserConfig)
    batch: int = 1
    accumulation: int = 1
    precision: Literal["fp32", "bf16"] = "fp32"
    seed: int = 0
    validate_every: int = 1000
    checkpoint_every: int = 500
    log_every: int = 50
    keep: int = 0
    best: str = "dice"
    nan_limit: int = 10
    on_bad_data: Literal["stop", "skip"] = "stop"
    start_from: StartConfig | None = None

    def __post_init__(self) -> None:
        for name in ("steps", "batch", "accumulation", "validate_every", "checkpoint_every", "log_every",
                     "nan_limit"):  # fmt: skip
            _whole(name, getattr(self, name), 1)
        _whole("keep", self.keep, 0)
        _whole("symmetric_from", self.symmetric_from, 0)
        _whole("seed", self.seed, 0)
        if self.best not in HIGHER_IS_BETTER:
            raise UnknownNameError("metric", self.best, HIGHER_IS_BETTER)
        names = [loss.name for loss in self.losses]
        blind = (*PENALTIES, *MAP_TERMS)
        seeing = [loss for loss in self.losses if loss.name not in blind]
        if not any(loss.schedule.weight(loss.weight, 0) > 0 for loss in seeing):
            raise SettingsError("The losses need one of weight above 0 that compares images or labels.")
        if len(set(names)) < len(names):
            raise SettingsError(f"Each loss is named once, not {', '.join(names)}.")
        self._check_groups(names)

    @property
    def groups(self) -> bool:
        """It is about groups of images, not pairs."""
        return any(loss.name in GROUP_TERMS for loss in self.losses)

    def _check_groups(self, names: list[str]) -> None:
        pairwise = [name for name in names if name not in (*GROUP_TERMS, "kl")]
        if self.groups and pairwise:
            raise SettingsError(f"The losses compare pairs ({', '.join(pairwise)}) or groups, not both.")
        if not self.groups == ("groups" in self.data.options) == (self.network.name == "groupmorph"):
            raise SettingsError("The network groupmorph, losses and data.options of groups go together.")
        if self.groups and (self.batch > 1 or self.leave_out_pathology):
            raise SettingsError(
                "Groups come one at a time and without pathology: use accumulation in place of batch."
            )


def read_config(path: Path) -> TrainingConfig:
    """The training settings in a YAML file; raises SettingsError naming the key that is wrong."""
    return config_from(read_yaml(path))


def config_from(content: Mapping[str, Any]) -> TrainingConfig:
    """Training settings from plain values, such as `as_plain` gives; raises SettingsError."""
    return build(TrainingConfig, content)


def check_resumable(stored: TrainingConfig, wanted: TrainingConfig) -> None:
    """Raises SettingsError unless a run of the stored settings continues exactly under the wanted ones.

    Other intervals and more steps are fine; a cosine schedule fixes the number of steps.  Weights to start
    from are known by their content, wherever they lie.
    """
    before, now = as_plain(stored), as_plain(wanted)
    free = HARMLESS if stored.optimiser.schedule == "cosine" else (*HARMLESS, "steps")
    for content in (before, now):
        for name in free:
            del content[name]
        del content["data"]["workers"]
        content["start_from"] = (content["start_from"] or {}).get("sha256")
    changed = [name for name in before if before[name] != now[name]]
    if changed:
        raise SettingsError(
            f"This run was started with other settings ({', '.join(changed)}); "
            "resume it with its own, or train into another folder."
        )


def _whole(name: str, value: object, least: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise SettingsError(f"{name} must be a whole number of at least {least}, not {value!r}.")


def _positive(name: str, value: float) -> None:
    if not 0 < value < math.inf:
        raise SettingsError(f"{name} must be greater than 0, not {value!r}.")
