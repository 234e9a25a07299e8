"""The 0-100 % slider: the moving volume on its way to the fixed one, every position a diffeomorphism.

Not the displacement scaled: a velocity is integrated, velocities that change in time are followed, or a
geodesic is shot from its momentum, to the time asked for, in the worker process.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import slicer

from DiffeoRegLib.errors import InputError
from DiffeoRegPanel.nodes import momentum, transforms, velocities, volumes
from DiffeoRegPanel.nodes.sequences import path_sequence, show_item
from DiffeoRegPanel.registration import all_or_nothing
from DiffeoRegPanel.runner import Event, Run, Runner

STORAGE = "half"
POSITIONS = 11
"""Of a sequence along a way that has no steps of its own."""


class Path:
    """A preview transform over the moving volume that follows the flow; closing it restores the scene.

    way: the node of a velocity, of velocities or of a momentum, made by a run with `want_velocity`.
    While one position is computed, only the newest of those asked for meanwhile is remembered.
    Raises InputError when the node holds none of them, was changed, or its volumes are gone.
    """

    def __init__(self, way: Any, runner: Runner, scene: Any = None) -> None:
        self.scene = scene or slicer.mrmlScene
        self.fraction: float | None = None
        self.node: Any = None
        self._runner = runner
        self._way = job_along(way)
        self._fixed, self._moving = volumes_of(way)
        self._parent_before = self._moving.GetTransformNodeID()
        self._own_from_world = np.linalg.inv(transforms.parent_of(way))
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
        self._run = self._runner.start(job_at(self._asked, self._way, self._fixed))

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
    way: Any, runner: Runner, positions: int | None = None, idle: Callable[[], Any] | None = None
) -> tuple[Any, Any]:
    """Transforms over the moving volume at equal steps from 0 to 100 %: (sequence, browser).

    way: the node of a velocity, of velocities or of a momentum.  positions: None = the start and the end of
    every time step of velocities that change in time, else POSITIONS.  idle: called while waiting.
    Raises InputError for fewer than 2 positions and whatever the worker ends with.
    """
    positions = positions_of(way) if positions is None else positions
    if positions < 2:
        raise InputError(f"A way from the start to the result has at least 2 positions, not {positions}.")
    job = job_along(way)
    fixed, moving = volumes_of(way)
    path = []
    for fraction in np.linspace(0, 1, positions).tolist():
        path.append((fraction, _answer(runner, job_at(fraction, job, fixed), idle)["transform"]))
    name = f"{moving.GetName()} -> {fixed.GetName()}, the way"
    parent = transforms.parent_of(way)
    sequence, browser = path_sequence(way.GetScene(), path, fixed, moving, name, parent=parent)
    show_item(browser, positions - 1)
    return sequence, browser


def shot_again(
    node: Any, runner: Runner, time: float = 1.0, idle: Callable[[], Any] | None = None
) -> tuple[Any, Any]:
    """The transform of a momentum or of velocities at a time, and its inverse, as new nodes over the volumes.

    Raises InputError for a node with neither or one that was changed, and whatever the worker ends with.
    """
    if not (momentum.holds_momentum(node) or velocities.holds_velocities(node)):
        raise InputError(
            "This node holds no momentum and no velocities that change in time: register by a method that "
            "finds them, such as lddmm, and keep them."
        )
    fixed, moving = volumes_of(node)
    job = {**job_at(float(time), job_along(node), fixed), "inverse": True}
    answer, so_far = _answer(runner, job, idle), "" if time == 1 else f", {100 * time:g} %"
    scene, names = node.GetScene(), (moving.GetName(), fixed.GetName())
    with all_or_nothing(scene, []):
        forward = transforms.output_transform(
            scene, answer["transform"], fixed, moving,
            name=f"{names[0]} -> {names[1]}{so_far}", parent=transforms.parent_of(node),
        )  # fmt: skip
        backward = transforms.inverse_transform(
            scene, answer["inverse"], fixed, moving, name=f"{names[1]} -> {names[0]}{so_far}"
        )
    return forward, backward


def job_along(way: Any) -> dict[str, Any]:
    """The worker's job for any position, but for the position; raises like `Path`."""
    if momentum.holds_momentum(way):
        return {"kind": "shoot", "geodesic": momentum.geodesic_of(way)}
    if velocities.holds_velocities(way):
        return {"kind": "follow", "velocities": velocities.velocities_of(way)}
    return {"kind": "flow", **volumes.velocity_of(way)}


def positions_of(way: Any) -> int:
    """How many positions a way has by itself: both ends and what lies between its time steps."""
    return velocities.steps_on_the_way(way) + 1 if velocities.holds_velocities(way) else POSITIONS


def job_at(fraction: float, job: dict[str, Any], fixed: Any) -> dict[str, Any]:
    """The worker's job for one position."""
    return {**job, "fraction": fraction, "storage": STORAGE, "fixed": volumes.place_of(fixed)}


def _answer(runner: Runner, job: dict[str, Any], idle: Callable[[], Any] | None) -> dict[str, Any]:
    """What the worker answers; raises InputError with its sentence when it ends without one."""
    last = runner.start(job).wait(idle=idle)
    if last.kind != "result" or last.result is None:
        raise InputError(last.message)
    return last.result


def volumes_of(way: Any) -> tuple[Any, Any]:
    """Fixed and moving volume of a velocity, velocities or momentum; raises InputError when they are gone."""
    fixed, moving = volumes.velocity_volumes(way)
    if fixed is None or moving is None:
        raise InputError(
            f"The volumes that '{way.GetName()}' belongs to are no longer in the scene. "
            "Load them, or register again."
        )
    return fixed, moving
