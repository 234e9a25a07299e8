"""`Copy as Python`: a request as text that repeats it in Slicer's Python console."""

from __future__ import annotations

import dataclasses
import shlex
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from DiffeoRegLib.catalog import card, check_steps
from DiffeoRegLib.errors import SettingsError
from DiffeoRegLib.settings import Settings
from DiffeoRegLib.stiffness import REST, Stiffness
from DiffeoRegPanel.request import Marks, Matching, Outputs, Region, Request

NAMED_SETTINGS = ("method", "steps", "preset", "effort")
WILDCARDS = "*?[]"
FLAGS = {"levels_mm": "levels"}  # settings whose flag of the command has another name
NO_FLAG = (
    "large_displacement", "window_vox", "update_sigma", "velocity_sigma", "guidance_weight", "extras",
)  # fmt: skip
MOST_LINE = 100


def script_for(request: Request) -> str:
    """Python for Slicer's console that does what the request asks for; only what differs from the defaults.

    Nodes are named by name where the scene has only one of that name, else by ID.
    Ends with the same run as a command line, as a comment.
    Raises SettingsError for time steps that the method does not offer: what is copied shall run.
    """
    check_steps(card(request.settings.method), request.settings.steps)
    lines = [
        "import slicer",
        "from DiffeoReg import DiffeoRegLogic",
        "",
        f"fixedNode = {node_text(request.fixed)}",
        f"movingNode = {node_text(request.moving)}",
        "logic = DiffeoRegLogic()",
        "result = logic.register(",
        "    fixedNode,",
        "    movingNode,",
        *(f"    {name}={text}," for name, text in arguments_of(request)),
        ")",
        "logic.close()",
        "",
        *command_lines(request),
    ]
    return "\n".join(lines) + "\n"


def node_text(node: Any) -> str:
    """The expression that finds a node again."""
    name, scene = node.GetName() or "", node.GetScene()
    same = 0 if scene is None or not name else scene.GetNodesByName(name).GetNumberOfItems()
    plain = same == 1 and not any(c in name for c in WILDCARDS) and scene.GetNodeByID(name) is None
    return f"slicer.util.getNode({(name if plain else node.GetID())!r})"


def arguments_of(request: Request) -> list[tuple[str, str]]:
    """Keywords of DiffeoRegLogic.register and their texts, without those at their defaults."""
    found = [(n, repr(v)) for n, v in changed(request.settings).items() if n in NAMED_SETTINGS]
    if request.initial is not None:
        found.append(("initialTransform", node_text(request.initial)))
    for side in ("fixed", "moving"):
        mask: Region | None = getattr(request, f"{side}_mask")
        if mask is not None:
            found.append((f"{side}Mask", region_text(mask)))
            if mask.exclude:
                found.append((f"exclude{side.capitalize()}Mask", "True"))
    found += _matching_arguments("Guidance", request.guidance)
    found += _matching_arguments("Evaluation", request.evaluation)
    found += _pathology_arguments(request.pathology)
    if request.regions is not None:
        found.append(("regionSegmentation", region_text(request.regions)))
    if request.stiffness:
        found.append(("stiffness", repr(dict(request.stiffness))))
    if request.rest != REST:
        found.append(("rest", repr(request.rest)))
    for name, nodes in (
        ("movingSegmentation", request.segmentations),
        ("movingMarkups", request.markups),
        ("movingModels", request.models),
    ):
        if nodes:
            found.append((name, several_text(nodes)))
    found += _output_arguments(request.outputs)
    others = {n: v for n, v in changed(request.settings).items() if n not in NAMED_SETTINGS}
    if others:
        found.append(("settings", repr(others)))
    return found


def setting_words(settings: Settings, without: Collection[str]) -> tuple[list[str], list[str]]:
    """Flags of the settings that are not the default, and the names of those that have none (`without`)."""
    words, left_out = list[str](), list[str]()
    for name, value in changed(settings).items():
        if name in without:
            left_out.append(name)
        elif name == "accepted_licences":
            words += [word for licence in value for word in ("--accept-licence", licence)]
        else:
            text = ",".join(map(str, value)) if isinstance(value, tuple) else str(value)
            words += [f"--{FLAGS.get(name, name).replace('_', '-')}", text]
    return words, left_out


def command_lines(request: Request) -> list[str]:
    """The same run as comments that show a command line; files stand for nodes.

    What the command has no flag for is named in a further comment.
    """
    words = ["diffeoreg", "register", file_of(request.fixed), file_of(request.moving), "-o", "out"]
    found, left_out = setting_words(request.settings, NO_FLAG)
    words += found
    if request.initial is not None:
        words += _initial_words(request, left_out)
    for side in ("fixed", "moving"):
        mask: Region | None = getattr(request, f"{side}_mask")
        if mask is not None:
            words += [f"--{side}-mask", file_of(mask.node)]
            words += [f"--exclude-{side}-mask"] if mask.exclude else []
    words += _segmentation_words(request, left_out)
    words += _region_words(request, left_out)
    words += _pathology_words(request.pathology, left_out)
    left_out += [name for name in ("markups", "models") if getattr(request, name)]
    comments = ["# The same from a command line, with the nodes saved to these files:"]
    comments += wrapped(words)
    if left_out:
        comments.append(f"# Not on the command line: {', '.join(left_out)}.")
    return comments


def _pathology_words(marks: Marks, left_out: list[str]) -> list[str]:
    """The command has one choice of labels for both images; a segment's label in a file is not known here."""
    words = []
    for flag, region in (("--pathology", marks.fixed), ("--pathology-moving", marks.moving)):
        words += [] if region is None else [flag, file_of(region.node)]
    sides = [region for region in (marks.fixed, marks.moving) if region is not None]
    chosen = {region.keys for region in sides}
    if len(chosen) == 1 and all(region.node.IsA("vtkMRMLLabelMapVolumeNode") for region in sides):
        words += ["--pathology-classes", ",".join(*chosen)] if any(chosen) else []
    elif any(chosen):
        left_out.append("classes of the pathology (--pathology-classes A,B, by the labels of the file)")
    if marks and marks.edge_mm != Marks().edge_mm:
        words += ["--pathology-edge-mm", f"{marks.edge_mm:g}"]
    return words


def _initial_words(request: Request, left_out: list[str]) -> list[str]:
    """--init takes a word or a file, not both."""
    if request.settings.init != "auto":
        left_out.append("initial transform together with init")
        return []
    return ["--init", file_of(request.initial, ".h5")]


def _region_words(request: Request, left_out: list[str]) -> list[str]:
    """Regions and their stiffness; which label a segment gets in a file is not known here."""
    if request.regions is None:
        return []
    words = ["--regions", file_of(request.regions.node)]
    if request.regions.node.IsA("vtkMRMLLabelMapVolumeNode"):
        given = [f"{label}={_stiffness_text(value)}" for label, value in request.stiffness.items()]
        words += [word for text in given for word in ("--stiffness", text)]
    else:
        left_out.append("stiffness of the segments (--stiffness LABEL=NAME, by the labels of the file)")
    return words + ([] if request.rest == REST else ["--rest", _stiffness_text(request.rest)])


def _stiffness_text(stiffness: Stiffness) -> str:
    return stiffness if isinstance(stiffness, str) else ",".join(f"{share:g}" for share in stiffness)


def _segmentation_words(request: Request, left_out: list[str]) -> list[str]:
    words: list[str] = []
    guide, judge = request.guidance, request.evaluation
    if guide.fixed is not None and guide.moving is not None:
        words += ["--guidance-fixed-seg", file_of(guide.fixed.node)]
        words += ["--guidance-moving-seg", file_of(guide.moving.node)]
    if judge.fixed is not None and judge.moving is not None:
        words += ["--fixed-seg", file_of(judge.fixed.node), "--moving-seg", file_of(judge.moving.node)]
    elif request.segmentations:
        words += ["--moving-seg", file_of(request.segmentations[0])]
    if judge.fixed_points is not None and judge.moving_points is not None:
        words += [
            "--landmarks",
            *(file_of(n, ".mrk.json") for n in (judge.fixed_points, judge.moving_points)),
        ]
    if guide.fixed_points is not None:
        same = (guide.fixed_points, guide.moving_points) == (judge.fixed_points, judge.moving_points)
        words += ["--guide-with-landmarks"] if same else []
        left_out += [] if same else ["guidance points that are not the evaluation points"]
    if len(request.segmentations) > 1 or (request.segmentations and judge.moving is not None):
        left_out.append("further segmentations")
    return words


def changed(settings: Settings) -> dict[str, Any]:
    """Settings that are not at their default."""
    default = Settings()
    names = [field.name for field in dataclasses.fields(settings)]
    values = {
        name: getattr(settings, name) for name in names if getattr(settings, name) != getattr(default, name)
    }
    return {name: dict(value) if name == "extras" else value for name, value in values.items()}


def _matching_arguments(kind: str, matching: Matching) -> list[tuple[str, str]]:
    found = []
    for side in ("fixed", "moving"):
        region, points = getattr(matching, side), getattr(matching, f"{side}_points")
        if region is not None:
            found.append((f"{side}{kind}", region_text(region)))
        if points is not None:
            found.append((f"{side}{kind}Points", node_text(points)))
    return found


def _pathology_arguments(marks: Marks) -> list[tuple[str, str]]:
    found = []
    for side, region in (("fixed", marks.fixed), ("moving", marks.moving)):
        if region is not None:
            found.append((f"{side}Pathology", _classes_text(region)))
    if marks and marks.edge_mm != Marks().edge_mm:
        found.append(("pathologyEdge", repr(marks.edge_mm)))
    return found


def _classes_text(region: Region) -> str:
    """The node, or (node, [segments by name where only one has it, else by ID, or labels])."""
    node = node_text(region.node)
    if not region.keys:
        return node
    if region.node.IsA("vtkMRMLLabelMapVolumeNode"):
        # Numbers, whatever a scene from elsewhere calls its labels: this text will be run.
        return f"({node}, {[_label(key) for key in region.keys]})"
    return f"({node}, {[_segment_name(region.node, key) for key in region.keys]!r})"


def _label(key: str) -> int:
    if not key.isdecimal():
        raise SettingsError(f"'{key}' is no label of a label map: choose the classes of the pathology again.")
    return int(key)


def _output_arguments(outputs: Outputs) -> list[tuple[str, str]]:
    nodes = (
        ("outputTransform", outputs.transform),
        ("inverseTransform", outputs.inverse),
        ("outputVolume", outputs.volume),
    )
    found = [(name, node_text(node)) for name, node in nodes if node is not None]
    default = Outputs()
    for keyword, name in (
        ("wantInverse", "want_inverse"),
        ("wantVolume", "want_volume"),
        ("wantVelocity", "want_velocity"),
        ("wantJacobian", "want_jacobian"),
        ("wantRegulariser", "want_regulariser"),
        ("storage", "storage"),
    ):
        if getattr(outputs, name) != getattr(default, name):
            found.append((keyword, repr(getattr(outputs, name))))
    return found


def region_text(region: Region) -> str:
    """The node, or (node, segment): by name where only one segment has it, else by ID."""
    node = node_text(region.node)
    return f"({node}, {_segment_name(region.node, region.segment_id)!r})" if region.segment_id else node


def _segment_name(node: Any, key: str) -> str:
    segmentation = node.GetSegmentation()
    segment = segmentation.GetSegment(key)
    if segment is None:
        return key
    name = segment.GetName() or ""
    names = [segmentation.GetNthSegment(i).GetName() for i in range(segmentation.GetNumberOfSegments())]
    clear = names.count(name) == 1 and segmentation.GetSegment(name) is None
    return name if clear else key


def several_text(nodes: Sequence[Any]) -> str:
    """One node, or a list of several."""
    texts = [node_text(node) for node in nodes]
    return texts[0] if len(texts) == 1 else f"[{', '.join(texts)}]"


def file_of(node: Any, extension: str = ".nii.gz") -> str:
    """The file a node was saved to or loaded from, or one named after it."""
    storage = node.GetStorageNode() if hasattr(node, "GetStorageNode") else None
    known = storage.GetFileName() if storage is not None else None
    return known or f"{Path(node.GetName() or 'unnamed').name}{extension}"


def wrapped(words: Sequence[str]) -> list[str]:
    """One command over several comment lines."""
    lines, line = [], "#  "
    for word in (shlex.quote(" ".join(w.split())) for w in words):
        if len(line) + len(word) > MOST_LINE and line.strip("# "):
            lines.append(f"{line} \\")
            line = "#     "
        line += f" {word}"
    return [*lines, line]
