"""The cards of the methods: what each is for, needs and gives. No torch: panel and command build on this."""

from __future__ import annotations

import json
import math
import os
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from DiffeoRegLib.errors import SettingsError, UnknownNameError
from DiffeoRegLib.plain import build

RESOURCES = Path(__file__).resolve().parent / "Resources"
MODELS = RESOURCES / "Models.json"
SHIPPED_WEIGHTS = RESOURCES / "Weights"
"""Where the weights lie that come with DiffeoReg."""
NAME = r"[a-z0-9]+(-[a-z0-9]+)*"


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

    needs_*: inputs without which it does not run.  citation: printed in the report of every run that used it.
    time_steps: it has a flow whose number of steps can be chosen, within `steps_range` (first and last
    number worth offering) or as `steps_default`.
    refinable: iterations and regularity of the instance optimisation can be set.
    weights: files without which it does not run; empty for a method that was not trained.
    method: name of the engine's method; empty = the card's name.
    network: name of the network that its weights are for; empty = that of the method.
    version, modality, anatomy, training_data, training_licence: of a trained model, in words.
    spacing_mm: voxel size that the trained network works at.  measured: what the network needed.
    halfway: both images meet in the middle, so that exchanging them exchanges the results exactly.
    own_weights: it runs only with weights that the user has trained (Settings.weights).
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
    network: str = ""

    def __post_init__(self) -> None:
        if not self.method:
            object.__setattr__(self, "method", self.name)
        if not self.network:
            object.__setattr__(self, "network", self.method)
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


@dataclass(frozen=True)
class TrainingData:
    """What a model was trained on, in words, and the licence of that."""

    description: str
    licence: str


@dataclass(frozen=True)
class Model:
    """One entry of Models.json; see Models.schema.json for what each value means."""

    id: str
    method: str
    version: str
    title: str
    use: str
    paper: str
    weights: WeightFile
    training_data: TrainingData
    modality: str
    anatomy: str
    spacing_mm: tuple[float, ...]
    measured: Measured | None

    def __post_init__(self) -> None:
        if not re.fullmatch(NAME, self.id):
            raise SettingsError(f"A model needs an id of small letters, digits and hyphens, not '{self.id}'.")
        words = ("version", "title", "use", "paper", "modality", "anatomy")
        empty = [name for name in words if not getattr(self, name)]
        if not (self.training_data.description and self.training_data.licence):
            empty.append("training_data")
        if empty:
            raise SettingsError(f"The model '{self.id}' says nothing about {', '.join(empty)}.")

    def card(self, method: Card) -> Card:
        """Its card, given that of its method."""
        return Card(
            self.id, self.title, self.use, self.paper,
            time_steps=method.time_steps, symmetric=method.symmetric, refinable=method.refinable,
            weights=(self.weights,), method=self.method, version=self.version, modality=self.modality,
            anatomy=self.anatomy, spacing_mm=self.spacing_mm, training_data=self.training_data.description,
            training_licence=self.training_data.licence, measured=self.measured, halfway=method.halfway,
            network=method.network,
        )  # fmt: skip


@dataclass(frozen=True)
class Models:
    """The content of Models.json."""

    models: tuple[Model, ...]


METHOD_CARDS = (
    Card(
        name="affine",
        title="Rigid and affine alignment",
        use="Only rotation, translation, scale and shear; also the start of every other method.",
        citation="Multi-start rigid and affine registration on a resolution pyramid (DiffeoReg).",
        time_steps=False,
        refinable=False,
        deformable=False,
    ),
    Card(
        name="svf",
        title="Stationary velocity field (instance optimisation)",
        use="Any pair, no training: symmetric, diffeomorphic, exact inverse.",
        citation=(
            "Arsigny V, Commowick O, Pennec X, Ayache N. A log-Euclidean framework for statistics on "
            "diffeomorphisms. MICCAI 2006; Avants BB et al. Symmetric diffeomorphic image registration "
            "with cross-correlation. Med Image Anal 2008;12:26-41."
        ),
        symmetric=True,
    ),
    Card(
        name="sitreg",
        title="SITReg with weights of your own",
        use="Your own network, trained (diffeoreg train) or imported: both directions, exactly symmetric.",
        citation=(
            "Honkamaa J, Marttinen P. SITReg: Multi-resolution architecture for symmetric, inverse "
            "consistent, and topology preserving image registration. MELBA 2024;2:2148-2194."
        ),
        symmetric=True,
        halfway=True,
        own_weights=True,
    ),
    Card(
        name="voxelmorph",
        title="VoxelMorph-diff with weights of your own",
        use="A network that you trained (diffeoreg train), from fixed to moving: for comparison with SITReg.",
        citation=(
            "Dalca AV, Balakrishnan G, Guttag J, Sabuncu MR. Unsupervised learning of probabilistic "
            "diffeomorphic registration for images and surfaces. Med Image Anal 2019;57:226-236."
        ),
        own_weights=True,
        network="voxelmorph-diff",
    ),
)


def read_models(path: Path, methods: Mapping[str, Card]) -> dict[str, Card]:
    """The cards of the models in a file like Models.json, by name.

    methods: cards by name, among them that of every model's method.
    Raises SettingsError for a file that is missing, no JSON, or wrong in any value.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise SettingsError(
            f"The list of models '{path}' cannot be read ({error}): reinstall DiffeoReg."
        ) from error
    if isinstance(content, dict):
        content = {name: value for name, value in content.items() if name != "$schema"}
    try:
        found = build(Models, content, "models")
        cards: dict[str, Card] = {}
        for model in found.models:
            if model.id in cards or model.id in methods:
                raise SettingsError(f"The name '{model.id}' is taken twice.")
            if model.method not in methods or not methods[model.method].own_weights:
                raise SettingsError(f"'{model.id}' is for '{model.method}', which is no trained method.")
            cards[model.id] = model.card(methods[model.method])
    except SettingsError as error:
        raise SettingsError(f"The list of models '{path}' is broken: {error}") from error
    return cards


def weight_path(card: Card, weight: WeightFile, models_folder: Path) -> Path:
    """Where a card's weights lie, or would; models_folder: of the weights that were fetched."""
    return SHIPPED_WEIGHTS / weight.file if weight.shipped else models_folder / card.name / weight.file


def default_models_folder(
    platform: str = sys.platform, environment: Mapping[str, str] | None = None, home: Path | None = None
) -> Path:
    """The user's folder for application data, and in it ours, where fetched weights lie."""
    environment = os.environ if environment is None else environment
    home = Path.home() if home is None else home
    if platform == "win32":
        base = Path(environment.get("LOCALAPPDATA") or home / "AppData" / "Local")
    elif platform == "darwin":
        base = home / "Library" / "Application Support"
    else:
        base = Path(environment.get("XDG_DATA_HOME") or home / ".local" / "share")
    return base / "DiffeoReg" / "models"


def check_weights_choice(card: Card, weights: str | None) -> None:
    """Raises SettingsError for weights given to a method that has no use for them, or missing."""
    if weights is not None and not card.trained:
        raise SettingsError(f"'{card.name}' is no trained method and has no use for weights.")
    if weights is None and card.own_weights:
        raise SettingsError(
            f"'{card.name}' runs with weights that you trained: give their file (--weights FILE), or choose "
            "a trained model, see `diffeoreg methods`."
        )


_METHODS = {card.name: card for card in METHOD_CARDS}
CARDS: dict[str, Card] = {**_METHODS, **read_models(MODELS, _METHODS)}


def card(name: str) -> Card:
    """The card of a method; raises UnknownNameError with the names there are."""
    if name not in CARDS:
        raise UnknownNameError("method", name, CARDS)
    return CARDS[name]
