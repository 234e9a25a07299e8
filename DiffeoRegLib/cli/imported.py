"""What both kinds of imported weights are written with; see `import_weights.py`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from DiffeoRegLib.catalog import card
from DiffeoRegLib.networks.pyramid import parameter_count
from DiffeoRegLib.networks.weights import file_sha256
from DiffeoRegLib.training.checkpoint import write_checkpoint


@dataclass(frozen=True)
class Imported:
    """Where weights come from, and what is known of them.

    like: the last part of what --like said.  images, licence: in words.  axes: of the images, None = ours.
    """

    source: Path
    like: str
    images: str
    axes: str | None
    licence: str
    spacing_mm: Sequence[float]


def write_imported(
    target: Path,
    method: str,
    network: nn.Module,
    state: Mapping[str, Tensor],
    sizes: Mapping[str, Any],
    known: Imported,
) -> dict[str, Any]:
    """Write the weights of a network, complete or not at all; what programs read."""
    spacing_mm = list(known.spacing_mm)
    imported = {
        "file": known.source.name,
        "sha256": file_sha256(known.source),
        "like": Path(known.like).name,
        "images": known.images,
        "axes": known.axes,
        "licence": known.licence,
        "paper": card(method).citation,
    }
    write_checkpoint(
        target,
        dict(state),
        {
            "kind": "weights",
            "step": 0,
            "network": {"name": method, "sizes": dict(sizes), "options": {}},
            "config": {"method": method, "data": {"source": known.source.name, "spacing_mm": spacing_mm}},
            "imported": imported,
        },
    )
    return {
        "command": "import-weights",
        "files": {"weights": str(target)},
        "sizes": dict(sizes),
        "parameters": parameter_count(network),
        "spacing_mm": spacing_mm,
        "imported": imported,
    }
