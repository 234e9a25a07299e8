"""What is known of a method before it runs: its card, and the files of weights it needs. No torch."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Literal

from DiffeoRegLib.errors import SettingsError


@dataclass(frozen=True)
class WeightFile:
    """One file of trained weights.

    file: its plain name on disk.  url: where it is offered, https only; None = it comes with DiffeoReg.
    sha256: 64 lower-case hex digits.
    permissive: the licence lets anyone use the file for anything; otherwise it has to be accepted first.
    Raises SettingsError for a name with a folder in it, another scheme than https, a check sum of another
    form, a size that is not positive, or no licence.
    """

    file: str
    url: str | None
    sha256: str
    size_bytes: int
    licence: str
    permissive: bool

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.+-]*", self.file):
            raise SettingsError(f"A weight file needs a plain file name, not '{self.file}'.")
        if self.url is not None and not self.url.startswith("https://"):
            raise SettingsError(f"'{self.file}' is offered at '{self.url}': only https addresses are used.")
        if not re.fullmatch(r"[0-9a-f]{64}", self.sha256):
            raise SettingsError(f"'{self.file}' needs a SHA-256 check sum of 64 lower-case hex digits.")
        if self.size_bytes <= 0:
            raise SettingsError(f"'{self.file}' needs a size above 0 bytes, not {self.size_bytes}.")
        if not self.licence:
            raise SettingsError(f"'{self.file}' needs the name of its licence.")

    @property
    def shipped(self) -> bool:
        """It comes with DiffeoReg."""
        return self.url is None


@dataclass(frozen=True)
class Measured:
    """What a trained network needed, both directions, without alignment and refinement.

    seconds, memory_mb: time and peak memory of the process.  voxels: of the network's grid.
    cores: of the processor; 0 = a graphics processor.  machine: in words.
    """

    seconds: float
    memory_mb: float
    voxels: int
    cores: int
    machine: str

    def __post_init__(self) -> None:
        if not (0 < self.seconds < math.inf and 0 < self.memory_mb < math.inf and self.voxels > 0):
            raise SettingsError("Measured seconds, memory and voxels must be greater than 0.")
        if self.cores < 0 or not self.machine:
            raise SettingsError("What was measured needs the number of cores and the machine in words.")


@dataclass(frozen=True)
class Card:
    """What a method needs and what it can give; panel, command and console are built from it.

    needs_*: inputs without which it does not run; needs_pathology_mask: marks of the fixed or moving image,
    without which it runs as if both were healthy, and says so.
    citation: printed in the report of every run that used it.
    appearance_change: beside the motion it finds what changed in intensity, and shows it as volumes.
    time_steps: it has a flow whose number of steps can be chosen, within `steps_range` (first and last
    number worth offering) or as `steps_default`.  trained_steps: how many a model's network was trained with,
    0 = it knows of no steps.
    refinable: iterations and regularity of the instance optimisation can be set.
    weights: files without which it does not run; empty for a method that was not trained.
    method: name of the engine's method; empty = the card's name.
    networks: names of the networks that its weights may be of; empty = that of the method.
    version, modality, anatomy, training_data, training_licence: of a trained model, in words.
    spacing_mm: voxel size that the trained network works at.  measured: what the network needed.
    needs_group: it registers groups of images, not pairs.  uncertainty: it says how sure its motion is.
    halfway: both images meet in the middle, so that exchanging them exchanges the results exactly.
    own_weights: it runs only with weights that the user has trained (Settings.weights).
    kernels: its regulariser is made of Gaussian kernels; the kernel_* settings and `kinetic` are used.
    geodesic: the motion is shot from a momentum, which can be kept; `integrator` is used.
    time_varying: its velocities change in time and are followed in steps; they can be kept.
    """

    name: str
    title: str
    use: str
    citation: str
    licence: str = "Apache-2.0"
    needs_pathology_mask: bool = False
    needs_region_labels: bool = False
    needs_group: bool = False
    time_steps: bool = True
    symmetric: bool = False
    appearance_change: bool = False
    uncertainty: bool = False
    refinable: bool = True
    weights: tuple[WeightFile, ...] = ()
    deformable: bool = True
    steps_range: tuple[int, int] = (1, 128)
    steps_default: int | Literal["auto"] = "auto"
    trained_steps: int = 0
    method: str = ""
    version: str = ""
    modality: str = ""
    anatomy: str = ""
    spacing_mm: tuple[float, ...] | None = None
    training_data: str = ""
    training_licence: str = ""
    measured: Measured | None = None
    halfway: bool = False
    own_weights: bool = False
    networks: tuple[str, ...] = ()
    kernels: bool = False
    geodesic: bool = False
    time_varying: bool = False

    def __post_init__(self) -> None:
        if not self.method:
            object.__setattr__(self, "method", self.name)
        if not self.networks:
            object.__setattr__(self, "networks", (self.method,))
        if self.own_weights and self.weights:
            raise SettingsError(f"'{self.name}' runs with the user's weights, so it cannot have its own.")
        spacing = self.spacing_mm
        if spacing is not None and not (len(spacing) in (2, 3) and all(0 < s < math.inf for s in spacing)):
            raise SettingsError(f"The voxel size of '{self.name}' must be 2 or 3 lengths, not {spacing}.")

    @property
    def trained(self) -> bool:
        """It runs with weights, its own or the user's."""
        return self.own_weights or bool(self.weights)

    @property
    def download_bytes(self) -> int:
        """Size of all its weights that have to be fetched, bytes."""
        return sum(weight.size_bytes for weight in self.weights if not weight.shipped)

    @property
    def licences_to_accept(self) -> tuple[str, ...]:
        """Licences of its weights that have to be accepted before they are used, each once."""
        return tuple(dict.fromkeys(weight.licence for weight in self.weights if not weight.permissive))
