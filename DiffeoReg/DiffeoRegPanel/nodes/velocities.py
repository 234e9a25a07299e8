"""Velocities that change in time as nodes of the scene: the whole way is made from them; see kept.py."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from DiffeoRegLib.errors import InputError
from DiffeoRegPanel.nodes import kept
from DiffeoRegPanel.nodes.kept import Kind, Piece
from DiffeoRegPanel.nodes.places import Matrix

VELOCITIES = Kind("DiffeoReg.Velocities", "velocities", "were")


def velocities_node(
    scene: Any,
    velocities: Mapping[str, Any],
    name: str,
    fixed: Any,
    moving: Any,
    *,
    parent: Matrix | None = None,
    node: Any = None,
) -> Any:
    """The vector volume of the first velocity, with which those of the others come and go.

    velocities: the worker's `description` and `arrays`, Images (k, j, i, channels), in the order of time.
    node, parent: as for a velocity node.  name: what the names of all nodes end with.
    Raises InputError when `node` is no vector volume.
    """
    count = len(velocities["arrays"])

    def title(piece: Piece) -> str:
        return f"Velocity {piece.name.rpartition('.')[2]} of {count}, {name}"

    return kept.fill(scene, VELOCITIES, velocities, title, fixed, moving, parent=parent, node=node)


def holds_velocities(node: Any) -> bool:
    """Whether `velocities_node` has filled it."""
    return kept.holds(node, VELOCITIES)


def velocities_of(node: Any) -> dict[str, Any]:
    """What `velocities_node` was given, exactly.

    Raises InputError when one of the nodes was changed, moved or removed since.
    """
    return kept.content_of(node, VELOCITIES)


def steps_on_the_way(node: Any) -> int:
    """The steps of the run, or one for each velocity where these are fewer: parts of one are no step of time.

    Raises InputError when the node was changed since.
    """
    try:
        description = json.loads(node.GetAttribute(VELOCITIES.attribute))
        return max(1, min(int(description["steps"]), int(description["fields"])))
    except (TypeError, ValueError, KeyError) as error:
        raise InputError(
            f"The velocities in '{node.GetName()}' were changed ({error}): register again."
        ) from error
