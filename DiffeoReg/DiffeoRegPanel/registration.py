"""One registration inside Slicer, from request to nodes: panel and console both go through here."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import slicer

from DiffeoRegLib.errors import Cancelled, DeviceError, DiffeoRegError, InputError, MemoryLimitError
from DiffeoRegLib.exchange import Image
from DiffeoRegPanel.checks import check_not_moved, check_request, check_still_there, voxel_places
from DiffeoRegPanel.job import job_of
from DiffeoRegPanel.nodes import (
    appearance,
    hierarchy,
    momentum,
    places,
    points,
    regulariser,
    segmentations,
    selfcheck,
    tables,
    transforms,
    velocities,
    volumes,
)
from DiffeoRegPanel.nodes.kept import other_nodes, spare_nodes
from DiffeoRegPanel.nodes.places import Matrix
from DiffeoRegPanel.request import Request
from DiffeoRegPanel.runner import Event, Run, Runner

BESIDES = {
    "velocity": "DiffeoReg.Velocity",
    "momentum": "DiffeoReg.Momentum",
    "velocities": "DiffeoReg.Velocities",
    "movingRegulariser": "DiffeoReg.MovingRegulariser",
    "fixedRegulariser": "DiffeoReg.FixedRegulariser",
    "appearanceChange": "DiffeoReg.AppearanceChange",
    "metamorphicVolume": "DiffeoReg.Metamorphic",
    "healthyVolume": "DiffeoReg.Healthy",
    "jacobianVolume": "DiffeoReg.Jacobian",
    "reportTable": "DiffeoReg.Report",
}
"""Results that follow their output transform: a run that fills it again fills them, too."""
IN_PIECES = ("momentum", "velocities")
"""Results that are spread over several nodes."""
KINDS: dict[str, type[DiffeoRegError]] = {
    "input": InputError,
    "memory": MemoryLimitError,
    "device": DeviceError,
    "torch": DeviceError,
}


@dataclass
class RegistrationResult:
    """The nodes a registration made or filled, and its numbers; None for what was not asked for.

    velocity, momentum, velocities: the one from which the way to the result is followed, see `way`; of
    velocities that change in time, the node of the first, which knows the others.
    movingRegulariser, fixedRegulariser: width of a geodesic's regulariser, mm, at its start on the moving
    volume and at its end on the fixed one.
    appearanceChange, metamorphicVolume, healthyVolume: what a lesion adds to the moved volume, their sum, and
    the volume that shows the lesion as if without it, on the fixed voxels.
    segmentations, markups, models: what was carried to the fixed volume, in the order of the request.
    report: see Resources/docs/report.md.  selfCheck: whether Slicer shows what the engine computed.
    """

    outputTransform: Any = None
    inverseTransform: Any = None
    movedVolume: Any = None
    appearanceChange: Any = None
    metamorphicVolume: Any = None
    healthyVolume: Any = None
    velocity: Any = None
    momentum: Any = None
    velocities: Any = None
    movingRegulariser: Any = None
    fixedRegulariser: Any = None
    jacobianVolume: Any = None
    reportTable: Any = None
    segmentations: list[Any] = field(default_factory=list)
    markups: list[Any] = field(default_factory=list)
    models: list[Any] = field(default_factory=list)
    report: dict[str, Any] = field(default_factory=dict)
    selfCheck: Any = None

    @property
    def way(self) -> Any:
        """The node that the 0-100 % slider follows: velocity, velocities or momentum; None without any."""
        found = (self.momentum, self.velocities, self.velocity)
        return next((node for node in found if node is not None), None)


class Underway:
    """A run of the worker that ends in nodes: poll it until `finished`, then read `result` or `error`.

    The scene changes only in the `poll` that finishes a run that succeeded.
    """

    def __init__(self, run: Run, make: Callable[[dict[str, Any]], Any]) -> None:
        """make: the nodes from the answer of the worker; what it raises is the error of the run."""
        self._run, self._make = run, make
        self.result: Any = None
        self.error: Exception | None = None

    @property
    def finished(self) -> bool:
        """Whether there is a result or an error."""
        return self.result is not None or self.error is not None

    @property
    def log(self) -> str:
        """What the worker wrote besides its answers."""
        return self._run.log

    def cancel(self) -> None:
        """Stop the run; it then finishes with Cancelled and the scene stays as it is."""
        self._run.cancel()

    def poll(self) -> list[Event]:
        """Take in what has happened, without waiting; makes the nodes when the worker is done."""
        events = [] if self.finished else self._run.poll()
        for event in events:
            if event.kind == "result":
                self._finish(event.result or {})
            elif event.kind == "cancelled":
                self.error = Cancelled("Cancelled; the scene is as it was.")
            elif event.kind == "error":
                self.error = KINDS.get(event.error_kind or "", DiffeoRegError)(event.message)
        return events

    def _finish(self, answer: dict[str, Any]) -> None:
        try:
            self.result = self._make(answer)
        except Exception as problem:  # noqa: BLE001 - whoever polls reads it in `error`
            self.error = problem


class Registration(Underway):
    """The registration of a pair under way; its result is a RegistrationResult.

    Raises InputError at once for a request that cannot be carried out.
    """

    def __init__(self, request: Request, runner: Runner, scene: Any = None) -> None:
        self.request = request
        self.scene = scene or slicer.mrmlScene
        self.notes = check_request(request)
        # As they are now: the user may go on working in the scene while the worker computes.
        self._parents = places.parent_matrix(request.fixed), places.parent_matrix(request.moving)
        self._places = voxel_places(request)
        job, self._regions = job_of(request)
        super().__init__(runner.start(job), self._nodes)

    def _nodes(self, answer: dict[str, Any]) -> RegistrationResult:
        check_still_there(self.request)
        check_not_moved(self.request, self._places)
        with all_or_nothing(self.scene, _given(self.request)):
            return make_nodes(self.request, answer, self.notes, self.scene, self._parents, self._regions)


def make_nodes(
    request: Request,
    answer: dict[str, Any],
    notes: list[str],
    scene: Any,
    parents: tuple[Matrix, Matrix],
    regions: Mapping[int, str],
) -> RegistrationResult:
    """All nodes of a finished run.

    parents: of fixed and moving volume when it began.  regions: names of the regions by their label.
    """
    fixed, moving, outputs = request.fixed, request.moving, request.outputs
    parts, inverse_parts, moved = answer["transform"], answer["inverse"], answer["moved"]
    result, former = RegistrationResult(report=dict(answer["report"])), besides(outputs.transform)
    pieces = {name: other_nodes(former[name]) for name in IN_PIECES if name in former}
    result.outputTransform = transforms.output_transform(
        scene, parts, fixed, moving, node=outputs.transform, parent=parents[1]
    )
    result.selfCheck = selfcheck.check_transform(
        result.outputTransform, moving, fixed, moved.array, interpolation=request.settings.interpolation
    )
    result.report["notes"] = [*notes, *result.report.get("notes", []), result.selfCheck.sentence]
    if outputs.want_inverse:
        result.inverseTransform = transforms.inverse_transform(
            scene, inverse_parts, fixed, moving, node=outputs.inverse, parent=parents[0]
        )
        result.report["inverse_in_slicer_mm"] = transforms.inverse_error_mm(
            result.outputTransform, result.inverseTransform, volumes.grid_points(fixed)
        )
    if outputs.want_volume:
        name = f"{moving.GetName()} on {fixed.GetName()}"
        result.movedVolume = volumes.volume_on(fixed, moved, name, node=outputs.volume, display_like=moving)
    if answer.get("jacobian") is not None:
        name = f"Jacobian determinant, {result.outputTransform.GetName()}"
        result.jacobianVolume = volumes.jacobian_on(
            fixed, answer["jacobian"], name, node=former.get("jacobianVolume")
        )
    if answer.get("velocity") is not None:
        result.velocity = _velocity(request, answer, scene, parents[1], former.get("velocity"))
    if answer.get("geodesic") is not None:
        name = f"{moving.GetName()} -> {fixed.GetName()}"
        result.momentum = momentum.momentum_node(
            scene, answer["geodesic"], name, fixed, moving, parent=parents[1], node=former.get("momentum")
        )
    if answer.get("velocities") is not None:
        name = f"{moving.GetName()} -> {fixed.GetName()}"
        result.velocities = velocities.velocities_node(
            scene, answer["velocities"], name, fixed, moving, parent=parents[1], node=former.get("velocities")
        )
    if answer.get("appearance") is not None:
        _appearance(request, answer["appearance"], former, result)
    if answer.get("sigma") is not None:
        _regularisers(request, answer["sigma"], former, result)
    _carry(request, answer, result)
    result.reportTable = tables.report_table(
        scene,
        result.report,
        name=f"Report, {result.outputTransform.GetName()}",
        node=former.get("reportTable"),
        region_names=regions,
    )
    for name, role in BESIDES.items():
        if getattr(result, name) is not None:
            result.outputTransform.SetNodeReferenceID(role, getattr(result, name).GetID())
    for node in _made(result):
        hierarchy.place_beside(node, fixed)
    if result.movingRegulariser is not None:
        hierarchy.place_beside(result.movingRegulariser, moving)
        hierarchy.place_beside(result.fixedRegulariser, fixed)
    if not outputs.want_volume:
        transforms.apply_to(result.outputTransform, moving)
    for name, parts in pieces.items():
        if getattr(result, name) is not None:
            for spare in spare_nodes(getattr(result, name), parts):
                scene.RemoveNode(spare)
    return result


def besides(transform: Any) -> dict[str, Any]:
    """The results that an earlier run made for this output transform, by their names in BESIDES."""
    if transform is None:
        return {}
    found = {name: transform.GetNodeReference(role) for name, role in BESIDES.items()}
    return {name: node for name, node in found.items() if node is not None}


def _velocity(request: Request, answer: dict[str, Any], scene: Any, parent: Matrix, node: Any) -> Any:
    field_of, steps = answer["velocity"]["field"], answer["velocity"]["steps"]
    matrices = [part["matrix"] for part in answer["initial"] if "matrix" in part]
    if len(matrices) != len(answer["initial"]):
        return None  # a start that is itself a deformation is no point on the way from nothing to the result
    name = f"Velocity, {request.moving.GetName()} -> {request.fixed.GetName()}"
    return volumes.velocity_node(
        scene, field_of, steps, matrices, name, request.fixed, request.moving, parent=parent, node=node
    )


def _appearance(
    request: Request, found: Mapping[str, Image], former: Mapping[str, Any], result: RegistrationResult
) -> None:
    """What a lesion adds, the moved volume with it, the ill volume without it, on the fixed voxels."""
    fixed, moving = request.fixed, request.moving
    result.appearanceChange = appearance.change_on(
        fixed, found["change"], f"{fixed.GetName()} appearance change", node=former.get("appearanceChange")
    )
    # As the engine has it: with marks of the moving volume only, that one is the patient.
    only_moving = request.pathology.fixed is None and request.pathology.moving is not None
    ill, where = (moving, f" on {fixed.GetName()}") if only_moving else (fixed, "")
    for key, kind, name, like in (
        ("metamorphicVolume", "metamorphic", f"{moving.GetName()} on {fixed.GetName()} with change", moving),
        ("healthyVolume", "healthy", f"{ill.GetName()}{where} without pathology", ill),
    ):
        node = volumes.volume_on(fixed, found[kind], name, node=former.get(key), display_like=like)
        setattr(result, key, node)


def _regularisers(
    request: Request, sigma: Mapping[str, Image], former: Mapping[str, Any], result: RegistrationResult
) -> None:
    """Start and end of the regulariser, each where it belongs, both in one window."""
    widest = regulariser.widest_of([*sigma.values()])
    for side, volume, time in (("moving", request.moving, 0), ("fixed", request.fixed, 1)):
        key, name = f"{side}Regulariser", f"{volume.GetName()} regulariser t={time} (mm)"
        node = regulariser.regulariser_on(volume, sigma[side], name, widest, node=former.get(key))
        setattr(result, key, node)


def _carry(request: Request, answer: dict[str, Any], result: RegistrationResult) -> None:
    """Bring what lies on the moving volume to the fixed volume."""
    forward = transforms.transform_from_parts(answer["transform"])
    backward = transforms.transform_from_parts(answer["inverse"])
    where = f"on {request.fixed.GetName()}"
    for node in request.segmentations:
        carry = (
            segmentations.transfer
            if node.IsA("vtkMRMLSegmentationNode")
            else segmentations.transfer_label_map
        )
        result.segmentations.append(carry(node, forward, request.fixed, name=f"{node.GetName()} {where}"))
    for node in request.markups:
        result.markups.append(
            points.transfer_markups(node, backward, request.fixed, f"{node.GetName()} {where}")
        )
    for node in request.models:
        result.models.append(
            points.transfer_model(node, backward, request.fixed, f"{node.GetName()} {where}")
        )


def _made(result: RegistrationResult) -> list[Any]:
    single = (
        result.outputTransform, result.inverseTransform, result.movedVolume, result.appearanceChange,
        result.metamorphicVolume, result.healthyVolume, result.velocity, result.momentum, result.velocities,
        result.jacobianVolume, result.reportTable,
    )  # fmt: skip
    several = (*result.segmentations, *result.markups, *result.models)
    pieces = [
        other
        for name in IN_PIECES
        if getattr(result, name) is not None
        for other in other_nodes(getattr(result, name))
    ]
    return [node for node in (*single, *pieces, *several) if node is not None]


def _given(request: Request) -> list[Any]:
    """Nodes that are there already and that the run fills."""
    outputs = request.outputs
    chosen = [node for node in (outputs.transform, outputs.inverse, outputs.volume) if node is not None]
    former = besides(outputs.transform)
    pieces = [other for name in IN_PIECES if name in former for other in other_nodes(former[name])]
    return [*chosen, *former.values(), *pieces]


@contextlib.contextmanager
def all_or_nothing(scene: Any, filled: list[Any]) -> Iterator[None]:
    """On an exception, remove the nodes added meanwhile and give `filled` nodes their content back."""
    before = {scene.GetNthNode(i).GetID() for i in range(scene.GetNumberOfNodes())}
    backups = []
    for node in filled:
        backup = node.CreateNodeInstance()
        backup.Copy(node)
        backups.append(backup)
    scene.StartState(slicer.vtkMRMLScene.BatchProcessState)
    try:
        yield
    except BaseException:
        added = [scene.GetNthNode(i) for i in range(scene.GetNumberOfNodes())]
        for node in [node for node in added if node.GetID() not in before]:
            scene.RemoveNode(node)
        for node, backup in zip(filled, backups, strict=True):
            node.Copy(backup)
        raise
    finally:
        scene.EndState(slicer.vtkMRMLScene.BatchProcessState)
