"""The cards of the methods: what each is for, needs and gives. No torch: panel and command build on this."""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from DiffeoRegLib.cards import Card, Measured, WeightFile
from DiffeoRegLib.errors import SettingsError, UnknownNameError
from DiffeoRegLib.method_cards import AFFINE_NETWORK, METHOD_CARDS
from DiffeoRegLib.plain import build

__all__ = [
    "AFFINE_NETWORK",
    "CARDS",
    "METHOD_CARDS",
    "Card",
    "Measured",
    "Model",
    "TrainingData",
    "WeightFile",
    "card",
    "check_pair_method",
    "check_steps",
    "check_weights_choice",
    "default_models_folder",
    "linear_model",
    "read_models",
    "weight_path",
]

RESOURCES = Path(__file__).resolve().parent / "Resources"
MODELS = RESOURCES / "Models.json"
SHIPPED_WEIGHTS = RESOURCES / "Weights"
"""Where the weights lie that come with DiffeoReg."""
NAME = r"[a-z0-9]+(-[a-z0-9]+)*"


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
    trained_steps: int = 0

    def __post_init__(self) -> None:
        if not re.fullmatch(NAME, self.id):
            raise SettingsError(f"A model needs an id of small letters, digits and hyphens, not '{self.id}'.")
        words = ("version", "title", "use", "paper", "modality", "anatomy")
        empty = [name for name in words if not getattr(self, name)]
        if not (self.training_data.description and self.training_data.licence):
            empty.append("training_data")
        if empty:
            raise SettingsError(f"The model '{self.id}' says nothing about {', '.join(empty)}.")
        if self.trained_steps < 0:
            raise SettingsError(f"The model '{self.id}' cannot be trained with {self.trained_steps} steps.")

    def card(self, method: Card) -> Card:
        """Its card, given that of its method."""
        return Card(
            self.id, self.title, self.use, self.paper,
            time_steps=method.time_steps, symmetric=method.symmetric, refinable=method.refinable,
            weights=(self.weights,), method=self.method, version=self.version, modality=self.modality,
            anatomy=self.anatomy, spacing_mm=self.spacing_mm, training_data=self.training_data.description,
            training_licence=self.training_data.licence, measured=self.measured, halfway=method.halfway,
            deformable=method.deformable, networks=method.networks, kernels=method.kernels,
            geodesic=method.geodesic, steps_range=method.steps_range, steps_default=method.steps_default,
            trained_steps=self.trained_steps, time_varying=method.time_varying,
            needs_pathology_mask=method.needs_pathology_mask, appearance_change=method.appearance_change,
            needs_group=method.needs_group, uncertainty=method.uncertainty,
        )  # fmt: skip


@dataclass(frozen=True)
class Models:
    """The content of Models.json."""

    models: tuple[Model, ...]


def linear_model(name: str) -> Card:
    """The card of a trained model that aligns linearly; raises UnknownNameError with those there are."""
    known = {n: c for n, c in CARDS.items() if c.method == AFFINE_NETWORK and not c.own_weights}
    if name not in known:
        raise UnknownNameError("network for the initial alignment", name, known)
    return known[name]


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


def check_pair_method(card: Card) -> None:
    """Raises SettingsError for a method of groups."""
    if card.needs_group:
        raise SettingsError(
            f"'{card.name}' registers a group of images (diffeoreg group), not a pair: choose another method."
        )


def check_steps(card: Card, steps: int | Literal["auto"]) -> None:
    """Raises SettingsError for a number of time steps that a method with a flow does not offer."""
    first, last = card.steps_range
    if card.time_steps and steps != "auto" and not first <= steps <= last:
        raise SettingsError(f"'{card.name}' takes {first} to {last} time steps, or 'auto', not {steps}.")


_METHODS = {card.name: card for card in METHOD_CARDS}
CARDS: dict[str, Card] = {**_METHODS, **read_models(MODELS, _METHODS)}


def card(name: str) -> Card:
    """The card of a method; raises UnknownNameError with the names there are."""
    if name not in CARDS:
        raise UnknownNameError("method", name, CARDS)
    return CARDS[name]
