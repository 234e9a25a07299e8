"""The start of a geodesic as nodes of the scene, from which the whole way is shot again; see kept.py."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from DiffeoRegPanel.nodes import kept
from DiffeoRegPanel.nodes.kept import Kind, Piece, other_nodes, spare_nodes
from DiffeoRegPanel.nodes.places import Matrix

__all__ = ["geodesic_of", "holds_momentum", "momentum_node", "other_nodes", "spare_nodes"]

MOMENTUM = Kind("DiffeoReg.Geodesic", "momentum")
WORDS = {"momentum": "Momentum", "preweights": "Pre-weights"}


def momentum_node(
    scene: Any,
    geodesic: Mapping[str, Any],
    name: str,
    fixed: Any,
    moving: Any,
    *,
    parent: Matrix | None = None,
    node: Any = None,
) -> Any:
    """The vector volume of the momentum, with which the other nodes come and go.

    geodesic: the worker's `description` and `arrays`, Images (k, j, i, channels), the momentum first.
    node, parent: as for a velocity node.  name: what the names of all nodes end with.
    Raises InputError when `node` is no vector volume.
    """

    def title(piece: Piece) -> str:
        return _title(piece, name)

    return kept.fill(scene, MOMENTUM, geodesic, title, fixed, moving, parent=parent, node=node)


def holds_momentum(node: Any) -> bool:
    """Whether `momentum_node` has filled it."""
    return kept.holds(node, MOMENTUM)


def geodesic_of(node: Any) -> dict[str, Any]:
    """What `momentum_node` was given, exactly.

    Raises InputError when one of the nodes was changed, moved or removed since.
    """
    return kept.content_of(node, MOMENTUM)


def _title(piece: Piece, name: str) -> str:
    """`Pre-weights 4-5, MR -> CT`."""
    link, _, what = piece.name.rpartition(".")
    word = WORDS.get(what, what)
    if piece.first or what != "momentum":
        word += f" {piece.first + 1}-{piece.first + piece.count}"
    return f"{word}, {name}" if link in ("", "0") else f"{word} of link {int(link) + 1}, {name}"
