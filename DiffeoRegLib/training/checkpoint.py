"""Weights and training state as files: safetensors with a description, replaced whole.

A file is written under a temporary name beside its place, forced to the disk and renamed: whatever happens in
between, the old file stays as it was.  Reading and checking them is in networks/weights.py.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor

from DiffeoRegLib import __version__
from DiffeoRegLib.errors import FileFormatError
from DiffeoRegLib.networks.weights import CHECKSUM, DESCRIPTION, FORMAT, checksum
from DiffeoRegLib.whole_file import replace_file


def write_checkpoint(path: Path, tensors: Mapping[str, Tensor], description: Mapping[str, Any]) -> None:
    """Write tensors and a description (JSON values) in place of what `path` held.

    Raises OutputError when that is not possible; an older file is then unharmed, and no other is left.
    """
    held = {name: t.detach().to("cpu", copy=True).contiguous() for name, t in tensors.items()}
    text = json.dumps({"format": FORMAT, "version": __version__, **description}, sort_keys=True)
    content = save(held, metadata={DESCRIPTION: text, CHECKSUM: checksum(held, text)})
    replace_file(path, content)


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
