"""The 0-100 % slider: the moving volume on its way to the fixed one, every position a diffeomorphism.

Not the displacement scaled: the velocity is integrated to the time asked for, in the worker process.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import slicer

from DiffeoRegLib.errors import InputError
from DiffeoRegPanel.nodes import transforms, volumes
from DiffeoRegPanel.nodes.sequences import path_sequence, show_item
from DiffeoRegPanel.runner import Event, Run, Runner

STORAGE = "half"


class Path:
    """A preview transform over the moving volume that follows the flow; closing it restores the scene.

    velocity_node: made by a run with `want_velocity`.  While one position is computed, only the newest of
    those asked for meanwhile is remembered.
    Raises InputError when the node holds no velocity or its volumes are gone.
    """

    def __init__(self, velocity_node: Any, runner: Runner, scene: Any = None) -> None:
        self.scene = scene or slicer.mrmlScene
        self.fraction: float | None = None
        self.node: Any = None
        self._runner = runner
        self._flow = volumes.velocity_of(velocity_node)
        self._fixed, self._moving = volumes_of(velocity_node)
        self._parent_before = self._moving.GetTransformNodeID()
        self._own_from_world = np.linalg.inv(transforms.parent_of(velocity_node))
        self._wanted: float | None = None
        self._run: Run | None = None
        self._asked: float | None = None

    def set(self, fraction: float) -> None:
        """Ask for a position, 0 = as it was, 1 = registered."""
        self._wanted = min(max(float(fraction), 0.0), 1.0)
        self._next()

    @property
    def busy(self) -> bool:
        """Whether a position is being computed."""
        return self._run is not None

    def poll(self) -> list[Event]:
        """Take in what has happened, without waiting."""
        if self._run is None:
            return []
        events = self._run.poll()
        for event in events:
            if event.kind == "result":
                self._show(event.result["transform"])
        if self._run.finished:
            self._run = None
            self._next()
        return events

    def keep(self) -> Any:
        """The transform at the position shown, as a node of its own; None before there is one."""
        if self.node is None or self.fraction is None:
            return None
        name = f"{self._moving.GetName()} -> {self._fixed.GetName()}, {100 * self.fraction:.0f} %"
        kept = self.scene.AddNewNodeByClass("vtkMRMLTransformNode", self.scene.GetUniqueNameByString(name))
        kept.CopyContent(self.node)
        return kept

    def close(self) -> None:
        """Remove the preview; the moving volume is where it was."""
        if self._run is not None:
            self._run.cancel()
            self._run = None
        self._wanted = None
        if self.node is None:
            return
        if self.scene.IsNodePresent(self._moving) and self._moving.GetTransformNodeID() == self.node.GetID():
            there = (
                self._parent_before is not None and self.scene.GetNodeByID(self._parent_before) is not None
            )
            self._moving.SetAndObserveTransformNodeID(self._parent_before if there else None)
        if self.scene.IsNodePresent(self.node):
            self.scene.RemoveNode(self.node)
        self.node = None

    def _next(self) -> None:
        if self._run is not None or self._wanted is None:
            return
        self._asked, self._wanted = self._wanted, None
        self._run = self._runner.start(job_at(self._asked, self._flow, self._fixed))

    def _show(self, parts: list[dict[str, Any]]) -> None:
        if not self.scene.IsNodePresent(self._moving):
            raise InputError(
                f"'{self._moving.GetName()}' was removed from the scene, so it cannot be moved any more: "
                "load it, or register again."
            )
        if self.node is None or not self.scene.IsNodePresent(self.node):
            name = f"{self._moving.GetName()} -> {self._fixed.GetName()} (preview)"
            self.node = self.scene.AddNewNodeByClass("vtkMRMLTransformNode", name)
            self.node.SetSaveWithScene(False)
        transform = transforms.transform_from_parts(parts, then=self._own_from_world)
        self.node.SetAndObserveTransformFromParent(transform)
        self._moving.SetAndObserveTransformNodeID(self.node.GetID())
        self.fraction = self._asked


def sequence_along(
    velocity_node: Any, runner: Runner, positions: int, idle: Callable[[], Any] | None = None
) -> tuple[Any, Any]:
    """Transforms over the moving volume at equal steps from 0 to 100 %: (sequence, browser).

    idle: called while waiting for the worker.
    Raises InputError for fewer than 2 positions and whatever the worker ends with.
    """
    if positions < 2:
        raise InputError(f"A way from the start to the result has at least 2 positions, not {positions}.")
    flow = volumes.velocity_of(velocity_node)
    fixed, moving = volumes_of(velocity_node)
    path = []
    for fraction in np.linspace(0, 1, positions).tolist():
        last = runner.start(job_at(fraction, flow, fixed)).wait(idle=idle)
        if last.kind != "result" or last.result is None:
            raise InputError(last.message)
        path.append((fraction, last.result["transform"]))
    name = f"{moving.GetName()} -> {fixed.GetName()}, the way"
    parent = transforms.parent_of(velocity_node)
    sequence, browser = path_sequence(velocity_node.GetScene(), path, fixed, moving, name, parent=parent)
    show_item(browser, positions - 1)
    return sequence, browser


def job_at(fraction: float, flow: dict[str, Any], fixed: Any) -> dict[str, Any]:
    """The worker's job for one position."""
    place = volumes.place_of(fixed)
    return {**flow, "kind": "flow", "fraction": fraction, "storage": STORAGE, "fixed": place}


def volumes_of(velocity_node: Any) -> tuple[Any, Any]:
    """Fixed and moving volume of a velocity; raises InputError when they are gone."""
    fixed, moving = volumes.velocity_volumes(velocity_node)
    if fixed is None or moving is None:
        raise InputError(
            f"The volumes that '{velocity_node.GetName()}' belongs to are no longer in the scene. "
            "Load them, or register again."
        )
    return fixed, moving
