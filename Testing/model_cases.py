"""Invented trained models: weights of a tiny network, and catalogues that offer them."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from DiffeoRegLib import catalog
from DiffeoRegLib.catalog import METHOD_CARDS, Card, Model, TrainingData, WeightFile
from DiffeoRegLib.networks.build import NetworkConfig, build_network
from DiffeoRegLib.networks.weights import file_sha256, network_for
from DiffeoRegLib.settings import Settings
from DiffeoRegLib.training.checkpoint import write_checkpoint
from tools.add_weights import MOST_BYTES, without_folders

SIZES = {"encoder": [2, 4], "heads": [2, 4], "dim": 3}
NAME, LICENCE = "sitreg-invented", "CC-BY-NC-4.0"
METHODS = {card.name: card for card in METHOD_CARDS}


def description(**changes: Any) -> dict[str, Any]:
    """What a file of weights says about itself."""
    return {
        "kind": "weights",
        "network": {"name": "sitreg", "sizes": SIZES, "options": {}},
        "config": {"data": {"source": "/home/somebody/images", "spacing_mm": [2.0, 2.0, 2.0]}},
        "step": 3,
        **changes,
    }


def write_weights(path: Path, tensors: Any = None, **changes: Any) -> Path:
    """A file of weights; tensors: others than those of the tiny network."""
    if tensors is None:
        tensors = build_network(NetworkConfig("sitreg", SIZES)).state_dict()
    write_checkpoint(path, tensors, description(**changes))
    return path


def weight_file(path: Path, **changes: Any) -> WeightFile:
    """The catalogue's entry for a file that is there."""
    content = path.read_bytes()
    known: dict[str, Any] = {
        "file": path.name, "url": None, "sha256": hashlib.sha256(content).hexdigest(),
        "size_bytes": len(content), "licence": LICENCE, "permissive": False,
    }  # fmt: skip
    return WeightFile(**(known | changes))


def model_card(weights: WeightFile, **changes: Any) -> Card:
    """The card of a model with these weights."""
    known: dict[str, Any] = {
        "id": NAME, "method": "sitreg", "version": "1", "title": "Invented model", "use": "For tests.",
        "paper": "Nobody, 2026.", "weights": weights, "training_data": TrainingData("Ten spheres", "CC0-1.0"),
        "modality": "T1 MR", "anatomy": "brain", "spacing_mm": (2.0, 2.0, 2.0), "measured": None,
    }  # fmt: skip
    return Model(**(known | changes)).card(METHODS["sitreg"])


def check_shipped(card: Card) -> None:
    """Everything the catalogue says about shipped weights is true of the file."""
    (weight,) = card.weights
    path = catalog.SHIPPED_WEIGHTS / weight.file
    assert path.stat().st_size == weight.size_bytes <= MOST_BYTES
    assert file_sha256(path) == weight.sha256
    network, description = network_for(card, Settings(accepted_licences=card.licences_to_accept))
    assert description["network"]["name"] in card.networks
    assert tuple(description["config"]["data"]["spacing_mm"]) == card.spacing_mm
    assert any(p.abs().max() > 0 for p in network.parameters())
    assert without_folders(description) == description
