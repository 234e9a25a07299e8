"""Weights and training state as files: safetensors with a description, checked when read, replaced whole.

A file is written under a temporary name beside its place, forced to the disk and renamed: whatever happens in
between, the old file stays as it was.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor, nn

from DiffeoRegLib import __version__
from DiffeoRegLib.errors import FileFormatError, OutputError
from DiffeoRegLib.space.sample import array_from_tensor

FORMAT = "diffeoreg-checkpoint-1"
DESCRIPTION, CHECKSUM = "description", "sha256"


@dataclass(frozen=True, eq=False)
class Stored:
    """What a file holds: tensors by name on the CPU, and its description (JSON)."""

    tensors: dict[str, Tensor]
    description: dict[str, Any]

    def part(self, prefix: str) -> dict[str, Tensor]:
        """The tensors whose names start with `prefix.`, without it."""
        start = f"{prefix}."
        return {name[len(start) :]: t for name, t in self.tensors.items() if name.startswith(start)}


def write_checkpoint(path: Path, tensors: Mapping[str, Tensor], description: Mapping[str, Any]) -> None:
    """Write tensors and a description (JSON values) in place of what `path` held.

    Raises OutputError when that is not possible; an older file is then unharmed, and no other is left.
    """
    held = {name: t.detach().to("cpu", copy=True).contiguous() for name, t in tensors.items()}
    text = json.dumps({"format": FORMAT, "version": __version__, **description}, sort_keys=True)
    content = save(held, metadata={DESCRIPTION: text, CHECKSUM: checksum(held, text)})
    replace_file(path, content)


def replace_file(path: Path, content: bytes) -> None:
    """Put this content in place of a file's, wholly or not at all; raises OutputError."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        kept = "; the one written before is intact" if path.exists() else ""
        raise OutputError(
            f"'{path}' could not be written ({error.strerror or error}){kept}. Free some space and resume."
        ) from error


def read_checkpoint(path: Path, *, sha256: str | None = None) -> Stored:
    """The content of a file `write_checkpoint` made, if every byte of it is as it was written.

    sha256: of the whole file, as a catalogue states it.
    Raises FileFormatError for a file that is missing, truncated, altered or of another kind.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise FileFormatError(f"The weights '{path}' cannot be read: {error.strerror or error}.") from error
    if sha256 is not None and hashlib.sha256(content).hexdigest() != sha256.lower():
        raise FileFormatError(f"'{path}' is not the file it should be (checksum); download it again.")
    try:
        tensors = load(content)
        header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
        notes = header.get("__metadata__", {})
    except (SafetensorError, ValueError) as error:
        raise FileFormatError(f"'{path}' is damaged or no safetensors file: {error}.") from error
    if not {DESCRIPTION, CHECKSUM} <= set(notes):
        raise FileFormatError(f"'{path}' was not written by DiffeoReg: it says nothing about its network.")
    if checksum(tensors, notes[DESCRIPTION]) != notes[CHECKSUM]:
        raise FileFormatError(f"'{path}' was altered after it was written; use an intact copy.")
    description = json.loads(notes[DESCRIPTION])
    if description.get("format") != FORMAT:
        raise FileFormatError(
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

    Raises FileFormatError for a missing or unknown name, a shape of another size, a value that is not finite.
    """
    own = network.state_dict()
    missing, unknown = sorted(own.keys() - weights.keys()), sorted(weights.keys() - own.keys())
    if missing or unknown:
        wrong = f"lacks '{missing[0]}'" if missing else f"holds '{unknown[0]}', which the network has not"
        raise FileFormatError(f"'{source}' {wrong}: these are weights of another network.")
    for name, value in own.items():
        if value.shape != weights[name].shape:
            raise FileFormatError(
                f"'{name}' is {tuple(weights[name].shape)} in '{source}', but {tuple(value.shape)} in the "
                "network: these are weights of another size."
            )
        if weights[name].is_floating_point() and not bool(weights[name].isfinite().all()):
            raise FileFormatError(f"'{name}' in '{source}' holds values that are not finite.")
    network.load_state_dict(dict(weights), strict=True)


def check_network(stored: Stored, wanted: Mapping[str, Any], source: str) -> None:
    """Raises FileFormatError unless the description names the wanted network: its name and its sizes."""
    written = stored.description.get("network", {})
    for key in ("name", "sizes"):
        if written.get(key) != wanted.get(key):
            raise FileFormatError(
                f"'{source}' holds weights of another network: its {key} is {written.get(key)}, "
                f"not {wanted.get(key)}."
            )


def optimiser_tensors(optimiser: torch.optim.Optimizer) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """An optimiser's state as tensors by name and the rest as JSON values."""
    content = optimiser.state_dict()
    tensors: dict[str, Tensor] = {}
    others: dict[str, Any] = {}
    for index, state in content["state"].items():
        for name, value in state.items():
            place = tensors if isinstance(value, Tensor) else others
            place[f"{index}.{name}"] = value
    return tensors, {"values": others, "groups": content["param_groups"]}


def load_optimiser(
    optimiser: torch.optim.Optimizer, tensors: Mapping[str, Tensor], rest: Mapping[str, Any]
) -> None:
    """The inverse of `optimiser_tensors`; raises FileFormatError for a state of other parameters."""
    state: dict[int, dict[str, Any]] = {}
    for place, value in (*tensors.items(), *rest["values"].items()):
        index, name = place.split(".", 1)
        state.setdefault(int(index), {})[name] = value
    try:
        optimiser.load_state_dict({"state": state, "param_groups": rest["groups"]})
    except ValueError as error:
        raise FileFormatError(f"The optimiser's state belongs to another network: {error}") from error
