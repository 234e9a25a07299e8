"""Trained weights: files checked to the last byte, and the network each of them belongs to."""

from __future__ import annotations

import copy
import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from DiffeoRegLib.catalog import (
    CARDS,
    Card,
    WeightFile,
    check_weights_choice,
    default_models_folder,
    linear_model,
    weight_path,
)
from DiffeoRegLib.errors import LicenceError, SettingsError, WeightsError
from DiffeoRegLib.networks.build import NetworkConfig, build_network
from DiffeoRegLib.plain import as_plain, build
from DiffeoRegLib.settings import Settings
from DiffeoRegLib.space.sample import array_from_tensor

FORMAT = "diffeoreg-checkpoint-1"
DESCRIPTION, CHECKSUM = "description", "sha256"
PICKLES = (b"PK\x03\x04", b"\x80")
"""How files begin that torch.save or pickle wrote."""
KEPT_NETWORKS = 2
WITHOUT_METHOD = {"transmorph": "transmorph-tvf"}
"""Networks no method runs, which are for comparison only, and those to train in their place."""


@dataclass(frozen=True, eq=False)
class Stored:
    """What a file holds: tensors by name on the CPU, and its description (JSON)."""

    tensors: dict[str, Tensor]
    description: dict[str, Any]

    def part(self, prefix: str) -> dict[str, Tensor]:
        """The tensors whose names start with `prefix.`, without it."""
        start = f"{prefix}."
        return {name[len(start) :]: t for name, t in self.tensors.items() if name.startswith(start)}


def read_checkpoint(path: Path, *, sha256: str | None = None) -> Stored:
    """The content of a file `write_checkpoint` made, if every byte of it is as it was written.

    sha256: of the whole file, as a catalogue states it.
    Raises WeightsError for a file that is missing, truncated, altered or of another kind.
    """
    try:
        # Not at the top: in Slicer methods without weights run before this package is installed.
        from safetensors import SafetensorError
        from safetensors.torch import load
    except ImportError as error:
        raise WeightsError(
            "Weights are read with the package safetensors, which is not installed: install it in Slicer's "
            "module (Setup), or with pip install safetensors."
        ) from error
    try:
        content = path.read_bytes()
    except OSError as error:
        raise WeightsError(f"The weights '{path}' cannot be read: {error.strerror or error}.") from error
    if sha256 is not None and hashlib.sha256(content).hexdigest() != sha256.lower():
        raise WeightsError(f"'{path}' is not the file it should be (checksum); download it again.")
    try:
        tensors = load(content)
        header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
        notes = header.get("__metadata__", {})
    except (SafetensorError, ValueError) as error:
        if content.startswith(PICKLES):
            raise WeightsError(
                f"'{path}' is a PyTorch or pickle file, which could run code: only safetensors files that "
                "DiffeoReg wrote are read."
            ) from error
        raise WeightsError(f"'{path}' is damaged or no safetensors file: {error}.") from error
    if not {DESCRIPTION, CHECKSUM} <= set(notes):
        raise WeightsError(f"'{path}' was not written by DiffeoReg: it says nothing about its network.")
    if checksum(tensors, notes[DESCRIPTION]) != notes[CHECKSUM]:
        raise WeightsError(f"'{path}' was altered after it was written; use an intact copy.")
    description = json.loads(notes[DESCRIPTION])
    if description.get("format") != FORMAT:
        raise WeightsError(
            f"'{path}' has the format '{description.get('format')}', this version reads '{FORMAT}'."
        )
    return Stored(tensors, description)


def checksum(tensors: Mapping[str, Tensor], text: str) -> str:
    """SHA-256 over names, types, shapes and bytes of the tensors, and a text."""
    total = hashlib.sha256(text.encode())
    for name in sorted(tensors):
        value = tensors[name]
        total.update(f"\n{name} {value.dtype} {tuple(value.shape)}\n".encode())
        total.update(array_from_tensor(value.contiguous().flatten().view(torch.uint8)).tobytes())
    return total.hexdigest()


def load_weights(network: nn.Module, weights: Mapping[str, Tensor], source: str) -> None:
    """Put weights into a network, all of them and nothing else.

    Raises WeightsError for a missing or unknown name, a shape of another size, a value that is not finite.
    """
    _require_fit(network, weights, source)
    for name, value in weights.items():
        if value.is_floating_point() and not bool(value.isfinite().all()):
            raise WeightsError(f"'{name}' in '{source}' holds values that are not finite.")
    network.load_state_dict(dict(weights), strict=True)


def _require_fit(network: nn.Module, weights: Mapping[str, Tensor], source: str) -> None:
    """Raises WeightsError for a missing or unknown name, or a shape of another size."""
    own = network.state_dict()
    missing, unknown = sorted(own.keys() - weights.keys()), sorted(weights.keys() - own.keys())
    if missing or unknown:
        wrong = f"lacks '{missing[0]}'" if missing else f"holds '{unknown[0]}', which the network has not"
        raise WeightsError(f"'{source}' {wrong}: these are weights of another network.")
    for name, value in own.items():
        if value.shape != weights[name].shape:
            raise WeightsError(
                f"'{name}' is {tuple(weights[name].shape)} in '{source}', but {tuple(value.shape)} in the "
                "network: these are weights of another size."
            )


def check_network(stored: Stored, wanted: Mapping[str, Any], source: str) -> None:
    """Raises WeightsError unless the description names the wanted network: its name and its sizes."""
    written = stored.description.get("network", {})
    for key in ("name", "sizes"):
        if written.get(key) != wanted.get(key):
            raise WeightsError(
                f"'{source}' holds weights of another network: its {key} is {written.get(key)}, "
                f"not {wanted.get(key)}."
            )


def read_network(
    path: Path,
    *,
    sha256: str | None = None,
    precision: str = "fp32",
    wanted: NetworkConfig | None = None,
) -> tuple[nn.Module, dict[str, Any]]:
    """The network in a file of weights, in evaluation mode, and the file's description.

    sha256: of the file, as a catalogue states it.  wanted: the network it has to be.
    Raises WeightsError for a damaged or altered file, or one of another network than wanted or than this
    version can build.
    """
    stored = read_weights(path, sha256=sha256)
    if wanted is not None:
        check_network(stored, as_plain(wanted), str(path))
    return network_of(stored, str(path), precision), stored.description


def read_weights(path: Path, *, sha256: str | None = None) -> Stored:
    """As `read_checkpoint`; raises WeightsError for the state of a training run, too."""
    stored = read_checkpoint(path, sha256=sha256)
    if stored.description.get("kind") != "weights":
        raise WeightsError(f"'{path}' holds the state of a training run; use its best or last weights.")
    return stored


def network_of(stored: Stored, source: str, precision: str = "fp32") -> nn.Module:
    """The network of these weights, in evaluation mode; raises WeightsError where it cannot be built."""
    try:
        config = build(NetworkConfig, stored.description.get("network"), "network")
        with torch.device("meta"):  # takes no memory: a small file may describe an immense network
            _require_fit(build_network(config, precision), stored.tensors, source)
        network = build_network(config, precision)
    except (SettingsError, RuntimeError) as error:
        raise WeightsError(
            f"'{source}' is of a network that this version of DiffeoReg cannot build: {error}"
        ) from error
    load_weights(network, stored.tensors, source)
    return network.eval()


def network_spacing_mm(description: Mapping[str, Any], source: str) -> tuple[float, ...]:
    """The voxel size a network was trained at, mm per tensor axis, from its file's description.

    Raises WeightsError where the file does not say.
    """
    place: Any = description
    for key in ("config", "data", "spacing_mm"):
        place = place.get(key) if isinstance(place, Mapping) else None
    if not (
        isinstance(place, Sequence)
        and len(place) in (2, 3)
        and all(isinstance(s, int | float) and 0 < s < math.inf for s in place)
    ):
        raise WeightsError(
            f"'{source}' does not say at which voxel size its network was trained: train it with "
            "data.spacing_mm set."
        )
    return tuple(float(s) for s in place)


@dataclass(frozen=True)
class Found:
    """A file of weights a run may use. sha256: of its content.  of_card: the card's own weights."""

    path: Path
    sha256: str
    of_card: bool


def find_weights(card: Card, settings: Settings) -> Found:
    """The weights that a run with these settings uses: the user's, those that are shipped, or fetched ones.

    Raises SettingsError when the method has no weights or needs the user's, LicenceError when a licence has
    to be accepted first, WeightsError when the file is not there or not the one the catalogue means.
    """
    check_weights_choice(card, settings.weights)
    if settings.weights is not None:
        return _given_weights(Path(settings.weights), card, settings)
    (weight,) = card.weights
    _require_licence(card, weight, settings)
    path = weight_path(card, weight, default_models_folder())
    if not path.is_file():
        fetch = f"fetch them in Slicer's module (Setup), or from {weight.url} and give --weights FILE"
        cure = "reinstall DiffeoReg" if weight.shipped else fetch
        raise WeightsError(f"The weights of '{card.title}' are not at '{path}': {cure}.")
    if path.stat().st_size != weight.size_bytes or file_sha256(path) != weight.sha256:
        raise WeightsError(
            f"'{path}' is not the file that '{card.title}' was published with (checksum): "
            + ("reinstall DiffeoReg." if weight.shipped else "delete it and fetch it again.")
        )
    return Found(path, weight.sha256, of_card=True)


def check_weights(card: Card, settings: Settings) -> None:
    """Raise what `find_weights` raises, before anything long begins; methods without weights pass.

    Those of a network that finds the initial alignment count, too.
    Raises SettingsError for weights given to one of these.
    """
    check_weights_choice(card, settings.weights)
    if card.trained:
        find_weights(card, settings)
    if settings.init_network is not None:
        find_weights(linear_model(settings.init_network), settings.with_changes(weights=None))


def network_for(card: Card, settings: Settings, precision: str = "fp32") -> tuple[nn.Module, dict[str, Any]]:
    """The trained network of a card or of Settings.weights, ready to use, and its file's description.

    The last few are kept: the same network may come back, on the device it was left on.
    precision: of the convolutions, `fp32` or `bf16`.
    Raises what `find_weights` raises, and WeightsError for a file that is damaged or altered, of another
    method, or without a voxel size, or with another one than the card states.
    """
    found = find_weights(card, settings)
    key = (found.sha256, card.name, precision)
    if key not in _KEPT:
        stored = read_weights(found.path, sha256=found.sha256)
        _check_belongs(stored, found, card)
        while len(_KEPT) >= KEPT_NETWORKS:
            _KEPT.pop(next(iter(_KEPT)))
        _KEPT[key] = network_of(stored, str(found.path), precision).requires_grad_(False), stored.description
    network, description = _KEPT[key]
    return network, copy.deepcopy(description)


_KEPT: dict[tuple[str, str, str], tuple[nn.Module, dict[str, Any]]] = {}


def file_sha256(path: Path) -> str:
    """SHA-256 of a file's content, lower-case hex digits; raises WeightsError when it cannot be read."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise WeightsError(f"The weights '{path}' cannot be read: {error.strerror or error}.") from error


def _given_weights(path: Path, card: Card, settings: Settings) -> Found:
    """A file of the user; a licence goes with the bytes, wherever they lie."""
    sha256 = file_sha256(path)
    for known in {**CARDS, card.name: card}.values():
        for weight in known.weights:
            if weight.sha256 == sha256:
                _require_licence(known, weight, settings)
    return Found(path, sha256, any(weight.sha256 == sha256 for weight in card.weights))


def _require_licence(card: Card, weight: WeightFile, settings: Settings) -> None:
    if not weight.permissive and weight.licence not in settings.accepted_licences:
        raise LicenceError(
            f"The weights of '{card.title}' are under {weight.licence}: read this licence and accept it "
            f"(--accept-licence {weight.licence}; in Slicer, tick it under Setup)."
        )


def _check_belongs(stored: Stored, found: Found, card: Card) -> None:
    """The weights are of the card's method, and say their voxel size, the card's where they are its own."""
    network = stored.description.get("network")
    name = network.get("name") if isinstance(network, Mapping) else None
    if name not in card.networks:
        better = WITHOUT_METHOD.get(str(name))
        if better in card.networks:
            raise WeightsError(
                f"The network '{name}' in '{found.path}' predicts displacements that have no inverse: train "
                f"'{better}' instead."
            )
        wanted = " or ".join(f"'{network}'" for network in card.networks)
        raise WeightsError(
            f"'{found.path}' holds weights of '{name}', but '{card.name}' needs weights of {wanted}."
        )
    spacing_mm = network_spacing_mm(stored.description, str(found.path))
    if found.of_card and card.spacing_mm != spacing_mm:
        raise WeightsError(
            f"The network in '{found.path}' works at {_listed(spacing_mm)} mm, but the catalogue says "
            f"{_listed(card.spacing_mm or ())} mm: reinstall DiffeoReg."
        )


def _listed(spacing_mm: Sequence[float]) -> str:
    return " x ".join(f"{s:g}" for s in spacing_mm) or "no"
