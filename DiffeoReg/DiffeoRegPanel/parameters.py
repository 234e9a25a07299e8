"""What the user has chosen, kept in the scene, and how it becomes a request."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Union

from slicer import (
    vtkMRMLLabelMapVolumeNode,
    vtkMRMLMarkupsFiducialNode,
    vtkMRMLMarkupsNode,
    vtkMRMLModelNode,
    vtkMRMLScalarVolumeNode,
    vtkMRMLSegmentationNode,
    vtkMRMLSequenceBrowserNode,
    vtkMRMLSequenceNode,
    vtkMRMLTableNode,
    vtkMRMLTransformNode,
)
from slicer.parameterNodeWrapper import WithinRange, parameterNodeWrapper, parameterPack

from DiffeoRegLib.catalog import Card, card, check_steps
from DiffeoRegLib.errors import SettingsError
from DiffeoRegLib.settings import PATHOLOGY_EDGE_MM, Settings
from DiffeoRegLib.stiffness import REGIONAL_SIGMAS, REST, stiffness_of
from DiffeoRegPanel.nodes.volumes import FIXED
from DiffeoRegPanel.request import Marks, Matching, Outputs, Region, Request

AS_PRESET = -1  # refinement iterations
WIDTHS, WEIGHTS = "Kernel widths", "Kernel weights"
# Slicer's wrapper understands typing.Union with None, and no `A | B`.
RegionNode = Union[vtkMRMLSegmentationNode, vtkMRMLLabelMapVolumeNode, None]  # noqa: UP007


@parameterPack
class RegionChoice:
    """A segmentation or label map, one segment of it (empty: all), and whether it is left out."""

    node: RegionNode
    segment: str = ""
    exclude: bool = False


@parameterPack
class MarksChoice:
    """A segmentation or label map, and those of its segments or labels that count.

    classes: JSON list of segment IDs or of labels as text; empty: all.
    """

    node: RegionNode
    classes: str = ""


@parameterPack
class PathologyChoice:
    """What only one of the volumes shows, and how wide the marks of it fade, mm."""

    fixed: MarksChoice
    moving: MarksChoice
    edge: Annotated[float, WithinRange(0.0, 50.0)] = PATHOLOGY_EDGE_MM


@parameterPack
class MatchingChoice:
    """Regions and landmarks of both volumes that belong together."""

    fixed: RegionChoice
    moving: RegionChoice
    fixedPoints: vtkMRMLMarkupsFiducialNode
    movingPoints: vtkMRMLMarkupsFiducialNode


@parameterPack
class ModelChoice:
    """Names of method, preset and effort."""

    method: str = "svf"
    preset: str = "general"
    effort: str = "balanced"


@parameterPack
class FlowChoice:
    """Time steps, refinement (-1: as the preset says), regularity."""

    autoSteps: bool = True
    steps: Annotated[int, WithinRange(1, 1024)] = 8
    refinement: Annotated[int, WithinRange(AS_PRESET, 2000)] = AS_PRESET
    regularity: Annotated[float, WithinRange(0.1, 5.0)] = 1.0


@parameterPack
class OutputChoice:
    """Nodes to fill (none: new ones), what is wanted, how finely the transform is stored."""

    transform: vtkMRMLTransformNode
    inverse: vtkMRMLTransformNode
    volume: vtkMRMLScalarVolumeNode
    wantInverse: bool = True
    wantVolume: bool = True
    wantVelocity: bool = True
    wantJacobian: bool = False
    wantRegulariser: bool = False
    storage: str = "half"
    showResult: bool = True


@parameterPack
class AdvancedChoice:
    """The rest of the settings; an empty name or 0 means: as preset or method say, or automatic.

    kernelWidths, kernelWeights: numbers with commas between, as typed; empty = the method's own.
    """

    similarity: str = ""
    init: str = "auto"
    largeDisplacement: str = ""
    workingSpacing: Annotated[float, WithinRange(0.0, 20.0)] = 0.0
    window: Annotated[float, WithinRange(0.0, 31.0)] = 0.0
    interpolation: str = "linear"
    guidanceWeight: Annotated[float, WithinRange(0.0, 100.0)] = 1.0
    kernelWidths: str = ""
    kernelWeights: str = ""
    kernelUnits: str = "box"
    integrator: str = ""
    padding: Annotated[float, WithinRange(0.0, 200.0)] = 0.0
    memoryLimit: Annotated[float, WithinRange(0.0, 1024.0)] = 0.0


@parameterPack
class GroupChoice:
    """A sequence or its browser (none: the volumes ticked); the frame that stays, where `target` is `frame`.

    method: of groups.  frame, marked: numbers from 0.  mask: where all frames count.
    browser, report: the last result, which the browser plays, and its numbers as JSON.
    """

    series: Union[vtkMRMLSequenceNode, vtkMRMLSequenceBrowserNode, None]  # noqa: UP007
    method: str = "svf"
    target: str = "middle"
    frame: Annotated[int, WithinRange(0, 9999)] = 0
    marked: Annotated[int, WithinRange(0, 9999)] = 0
    mask: RegionChoice
    wantUncertainty: bool = True
    leaveOut: bool = False
    browser: vtkMRMLSequenceBrowserNode
    report: str = ""


@parameterNodeWrapper
class DiffeoRegParameterNode:
    """Everything the panel shows; saved with the scene.

    mode: pair or group.
    stiffness: JSON of segment ID or label value -> name or shares, as typed; rest: of everything else.
    velocity ... report: the last result, shown again when the scene is loaded.
    velocity: what the slider follows: a velocity or a momentum.
    resultMoving: the moved volume, or the moving one under its transform; resultSource: the moving one;
    resultTransform: what brings it there, also when the next run shall make a new one.
    change, metamorphic, healthy: what a lesion changes, of a method that finds it.  report: JSON.
    """

    mode: str = "pair"
    group: GroupChoice
    groupVolumes: list[vtkMRMLScalarVolumeNode]
    groupSegmentations: list[vtkMRMLSegmentationNode]
    groupLabelMaps: list[vtkMRMLLabelMapVolumeNode]
    groupMarkups: list[vtkMRMLMarkupsNode]
    fixed: vtkMRMLScalarVolumeNode
    moving: vtkMRMLScalarVolumeNode
    initial: vtkMRMLTransformNode
    model: ModelChoice
    fixedMask: RegionChoice
    movingMask: RegionChoice
    pathology: PathologyChoice
    regions: RegionChoice
    stiffness: str = "{}"
    rest: str = REST
    segmentations: list[vtkMRMLSegmentationNode]
    labelMaps: list[vtkMRMLLabelMapVolumeNode]
    markups: list[vtkMRMLMarkupsNode]
    models: list[vtkMRMLModelNode]
    guidance: MatchingChoice
    evaluation: MatchingChoice
    flow: FlowChoice
    outputs: OutputChoice
    advanced: AdvancedChoice
    velocity: vtkMRMLScalarVolumeNode
    jacobian: vtkMRMLScalarVolumeNode
    change: vtkMRMLScalarVolumeNode
    metamorphic: vtkMRMLScalarVolumeNode
    healthy: vtkMRMLScalarVolumeNode
    reportTable: vtkMRMLTableNode
    resultFixed: vtkMRMLScalarVolumeNode
    resultMoving: vtkMRMLScalarVolumeNode
    resultSource: vtkMRMLScalarVolumeNode
    resultTransform: vtkMRMLTransformNode
    report: str = ""


def settings_from(
    parameters: Any, *, method: str | None = None, device: str = "auto", threads: int | None = None
) -> Settings:
    """The settings of the next run; what the chosen method does not use stays at its default.

    method: the name of another than that of the pair.  device, threads: of this computer, not of the scene.
    Raises UnknownNameError for a method or preset this version does not have, SettingsError for bad values,
    among them time steps that the method does not offer.
    """
    model, flow, advanced = parameters.model, parameters.flow, parameters.advanced
    method = card(method or model.method)
    changes: dict[str, Any] = {}
    if method.time_steps and not flow.autoSteps:
        check_steps(method, flow.steps)
        changes["steps"] = flow.steps
    if method.deformable:
        changes |= {"regularity": flow.regularity, "guidance_weight": advanced.guidanceWeight}
        changes |= {"similarity": advanced.similarity or None, "window_vox": advanced.window or None}
        if not method.trained and not method.kernels:
            changes["large_displacement"] = {"on": True, "off": False}.get(advanced.largeDisplacement)
    if own_kernels(method):
        changes |= _kernels_from(advanced, method)
    if method.geodesic:
        changes["integrator"] = advanced.integrator or None
    if dense_iterations_of(method) and flow.refinement != AS_PRESET:
        changes["dense_iterations"] = flow.refinement
    return Settings(
        method=method.name, preset=model.preset, effort=model.effort, init=advanced.init,
        working_spacing_mm=advanced.workingSpacing or None, interpolation=advanced.interpolation,
        padding_mm=advanced.padding, memory_limit_gb=advanced.memoryLimit or None,
        device=device, threads=threads, **changes,
    )  # fmt: skip


def request_from(parameters: Any, *, device: str = "auto", threads: int | None = None) -> Request:
    """What Apply asks for: only the inputs the chosen method uses.

    Raises UnknownNameError and SettingsError as `settings_from`.
    """
    method = card(parameters.model.method)
    return Request(
        fixed=parameters.fixed,
        moving=parameters.moving,
        settings=settings_from(parameters, device=device, threads=threads),
        initial=parameters.initial,
        fixed_mask=region_from(parameters.fixedMask),
        moving_mask=region_from(parameters.movingMask),
        guidance=_matching_from(parameters.guidance) if method.deformable else Matching(),
        evaluation=_matching_from(parameters.evaluation),
        pathology=marks_from(parameters.pathology) if method.needs_pathology_mask else Marks(),
        regions=region_from(parameters.regions) if method.needs_region_labels else None,
        **(_stiffness_from(parameters) if method.needs_region_labels else {}),
        segmentations=(*_present(parameters.segmentations), *_present(parameters.labelMaps)),
        markups=_present(parameters.markups),
        models=_present(parameters.models),
        outputs=_outputs_from(parameters.outputs, method),
    )


def release_outputs(parameters: Any) -> None:
    """Another pair than that of the last result: its nodes are kept, and the next run makes new ones."""
    pair, outputs = (parameters.resultFixed, parameters.resultSource), parameters.outputs
    if None in pair or pair == (parameters.fixed, parameters.moving):
        return
    if outputs.transform is not None and outputs.transform is parameters.resultTransform:
        outputs.transform = None
    if outputs.inverse is not None and outputs.inverse.GetNodeReference(FIXED) is parameters.resultSource:
        outputs.inverse = None
    if outputs.volume is not None and outputs.volume is parameters.resultMoving:
        outputs.volume = None


def region_from(choice: Any) -> Region | None:
    """The region chosen, None without a node."""
    return None if choice.node is None else Region(choice.node, choice.segment, choice.exclude)


def marks_from(choice: Any) -> Marks:
    """The marks chosen on either volume."""
    sides = (choice.fixed, choice.moving)
    fixed, moving = (
        None if side.node is None else Region(side.node, classes=classes_from(side)) for side in sides
    )
    return Marks(fixed, moving, choice.edge)


def classes_from(choice: Any) -> tuple[str, ...]:
    """The segments or labels that count; none for all, and where an edited scene made them unreadable."""
    try:
        stored = json.loads(choice.classes or "[]")
    except ValueError:
        return ()
    return tuple(map(str, stored)) if isinstance(stored, list) else ()


def keep_classes(choice: Any, classes: Sequence[str] | None) -> None:
    """Store the segments or labels that count; None for all, and an empty sequence for none."""
    choice.classes = "" if classes is None else json.dumps(list(classes))


def numbers_from(text: str, what: str) -> tuple[float, ...] | None:
    """Numbers as typed, with commas or spaces between; None for an empty text, SettingsError for others."""
    words = text.replace(",", " ").replace(";", " ").split()
    try:
        return tuple(float(word) for word in words) or None
    except ValueError as error:
        raise SettingsError(
            f"{what} are numbers with commas between, such as 0.05, 0.1, 0.2; got '{text.strip()}'."
        ) from error


def kernels_of(parameters: Any) -> int:
    """How many kernels the stiffness of a region is a mixture of; raises SettingsError as `numbers_from`."""
    return len(numbers_from(parameters.advanced.kernelWidths, WIDTHS) or REGIONAL_SIGMAS)


def own_kernels(method: Card) -> bool:
    """Whether the kernels of the regulariser can be chosen; those of a network belong to its weights."""
    return method.kernels and not method.trained


def dense_iterations_of(method: Card) -> bool:
    """Whether iterations at the finest resolution can be set; a search for several velocities has none."""
    return method.refinable and not own_kernels(method) and not method.time_varying


def _kernels_from(advanced: Any, method: Card) -> dict[str, Any]:
    """The kernel settings; the unit counts only for widths that are given, weights only without regions."""
    widths = numbers_from(advanced.kernelWidths, WIDTHS)
    found: dict[str, Any] = {
        "kernel_sigmas": widths,
        "kernel_units": advanced.kernelUnits if widths else "box",
    }
    if not method.needs_region_labels:
        found["kernel_weights"] = numbers_from(advanced.kernelWeights, WEIGHTS)
    return found


def _stiffness_from(parameters: Any) -> dict[str, Any]:
    """What the request says about stiffness; raises SettingsError for a text that is none."""
    texts, node = stiffness_from(parameters), parameters.regions.node
    if node is not None and node.IsA("vtkMRMLSegmentationNode"):  # what is kept may be of another one
        there = node.GetSegmentation()
        texts = {key: text for key, text in texts.items() if there.GetSegment(key) is not None}
    return {
        "stiffness": {key: stiffness_of(text) for key, text in texts.items()},
        "rest": stiffness_of(parameters.rest),
    }


def stiffness_from(parameters: Any) -> dict[str, str]:
    """Stiffness per segment ID or label value, as typed; nothing when an edited scene made it unreadable."""
    try:
        stored = json.loads(parameters.stiffness or "{}")
    except ValueError:
        return {}
    return {str(key): str(value) for key, value in stored.items()} if isinstance(stored, dict) else {}


def keep_stiffness(parameters: Any, stiffness: Mapping[str, str]) -> None:
    """Store the stiffness per segment ID or label value, as typed."""
    parameters.stiffness = json.dumps(dict(stiffness))


def _matching_from(choice: Any) -> Matching:
    return Matching(
        region_from(choice.fixed), region_from(choice.moving), choice.fixedPoints, choice.movingPoints
    )


def _outputs_from(choice: Any, method: Card) -> Outputs:
    return Outputs(
        transform=choice.transform,
        inverse=choice.inverse if choice.wantInverse else None,
        volume=choice.volume if choice.wantVolume else None,
        want_inverse=choice.wantInverse,
        want_volume=choice.wantVolume,
        want_velocity=choice.wantVelocity and method.time_steps,
        want_jacobian=choice.wantJacobian and method.deformable,
        want_regulariser=choice.wantRegulariser and method.geodesic,
        storage=choice.storage,
    )


def _present(nodes: Any) -> tuple[Any, ...]:
    """The nodes that are still in the scene."""
    return tuple(node for node in nodes if node is not None)
