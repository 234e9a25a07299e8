"""What importing any published checkpoint shares: the numbers in a file, and what their names tell."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from DiffeoRegLib.errors import FileFormatError

SHARED = 4
"""How often the numbers of a checkpoint may be used in it: some layers share theirs."""


def read_state(path: Path, key: str, whose: str) -> Mapping[str, Tensor]:
    """The tensors under `key` in a checkpoint file; nothing in it can run code.

    whose: the authors, for the sentence.  Raises FileFormatError for a file that is no such checkpoint.
    """
    _require_unpacked(path)
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise FileFormatError(f"{path} cannot be read: {error.strerror or error}.") from error
    except Exception as error:  # whatever is wrong with the bytes, torch has an error of its own for it
        raise FileFormatError(
            f"{path} cannot be read as a checkpoint: it is damaged, of another kind, or holds objects that "
            "could run code, which are never loaded."
        ) from error
    state = content.get(key) if isinstance(content, dict) else None
    if not isinstance(state, Mapping) or not all(isinstance(value, Tensor) for value in state.values()):
        raise FileFormatError(
            f"{path} holds no '{key}': it is not a checkpoint of the {whose} authors' code."
        )
    # A tensor may repeat one number along its axes: a small file then describes an immense network.
    described = sum(value.numel() * value.element_size() for value in state.values())
    if described > SHARED * path.stat().st_size:
        raise FileFormatError(f"{path} describes more numbers than it holds: it is damaged, or made to harm.")
    return state


def _require_unpacked(path: Path) -> None:
    """Raises FileFormatError for a packed checkpoint: torch never packs, and would unpack any size."""
    if not zipfile.is_zipfile(path):
        return
    with zipfile.ZipFile(path) as archive:
        packed = [entry for entry in archive.infolist() if entry.compress_type != zipfile.ZIP_STORED]
    if packed:
        raise FileFormatError(f"{path} was packed again after PyTorch wrote it: use the file as published.")


def load_published(
    network: nn.Module, state: Mapping[str, Tensor], names: Mapping[str, str], what: str
) -> None:
    """Gives a network the numbers of a published state.

    names: of its own tensors to those of the state, which has them all.  what: the kind of network, for the
    sentence.  Raises FileFormatError for a wrong shape, or a value that is not finite.
    """
    own = {mine: state[theirs] for mine, theirs in names.items()}
    for name, value in network.state_dict().items():
        if own[name].shape != value.shape:
            raise FileFormatError(
                f"'{names[name]}' is {tuple(own[name].shape)} in these weights, but {tuple(value.shape)} in "
                f"the {what} network their other sizes describe."
            )
        if not bool(own[name].isfinite().all()):
            raise FileFormatError(f"'{names[name]}' holds values that are not finite; the file is damaged.")
    network.load_state_dict(own)


def count_of(state: Mapping[str, Tensor], pattern: str) -> int:
    """How many consecutive numbers from 0 up make a name of the state."""
    count = 0
    while pattern.format(count) in state:
        count += 1
    return count


def listed(names: list[str]) -> str:
    """The first few names, and how many more."""
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(f"'{name}'" for name in names[:3]) + more
