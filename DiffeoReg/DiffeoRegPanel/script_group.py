"""`Copy as Python` of a group: a request as text that repeats it in Slicer's Python console."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from DiffeoRegLib.catalog import card, check_steps
from DiffeoRegPanel import script
from DiffeoRegPanel.group import GroupRequest
from DiffeoRegPanel.request import Region, Request
from DiffeoRegPanel.script import (
    changed,
    file_of,
    node_text,
    region_text,
    setting_words,
    several_text,
    wrapped,
)

NAMED_SETTINGS = ("method", "preset", "effort")
NOT_ON_THE_COMMAND = (
    "steps", "large_displacement", "window_vox", "update_sigma", "velocity_sigma", "dense_iterations",
    "taper_mm", "extras",
)  # fmt: skip
SIMILARITIES = {"mse": "variance"}
"""As `diffeoreg group` calls them, where the name is another."""


def script_for(request: Request | GroupRequest) -> str:
    """Python for Slicer's console that does what the request, of a pair or of a group, asks for.

    See `script.script_for`.
    """
    if isinstance(request, Request):
        return script.script_for(request)
    check_steps(card(request.settings.method), request.settings.steps)
    lines = [
        "import slicer",
        "from DiffeoReg import DiffeoRegLogic",
        "",
        f"images = {_images_text(request.images)}",
        "logic = DiffeoRegLogic()",
        "result = logic.registerGroup(",
        "    images,",
        *(f"    {name}={text}," for name, text in arguments_of(request)),
        ")",
        "logic.close()",
        "",
        *command_lines(request),
    ]
    return "\n".join(lines) + "\n"


def arguments_of(request: GroupRequest) -> list[tuple[str, str]]:
    """Keywords of DiffeoRegLogic.registerGroup and their texts, without those at their defaults."""
    settings = changed(request.settings)
    found = [] if request.fixed is None else [("toFrame", repr(request.fixed))]
    found += [(name, repr(settings[name])) for name in NAMED_SETTINGS if name in settings]
    found += _mask_arguments(request.masks)
    markups = [node for node in request.carried if node.IsA("vtkMRMLMarkupsNode")]
    labels = [node for node in request.carried if node not in markups]
    if request.carried and request.marked:
        found.append(("markedFrame", repr(request.marked)))
    for name, nodes in (("segmentations", labels), ("markups", markups)):
        if nodes:
            found.append((name, several_text(nodes)))
    usual = GroupRequest(None)
    for keyword, name in (
        ("leaveOut", "leave_out"),
        ("wantMean", "want_mean"),
        ("wantUncertainty", "want_uncertainty"),
        ("storage", "storage"),
    ):
        if getattr(request, name) != getattr(usual, name):
            found.append((keyword, repr(getattr(request, name))))
    others = {name: value for name, value in settings.items() if name not in NAMED_SETTINGS}
    if others:
        found.append(("settings", repr(others)))
    return found


def command_lines(request: GroupRequest) -> list[str]:
    """The same run as comments that show `diffeoreg group`; files stand for nodes.

    What the command has no flag for is named in a further comment.
    """
    words = ["diffeoreg", "group", *_files(request.images), "-o", "out"]
    words += [] if request.fixed is None else ["--fixed-index", str(request.fixed)]
    found, left_out = setting_words(request.settings, NOT_ON_THE_COMMAND)
    words += [SIMILARITIES.get(word, word) for word in found]
    if request.masks is not None:
        left_out.append("masks (--masks takes a label map file for each image)")
    words += ["--leave-out"] if request.leave_out else []
    words += [] if request.want_uncertainty else ["--no-uncertainty"]
    for node in request.carried:
        points = node.IsA("vtkMRMLMarkupsNode")
        flag, extension = ("--points-of", ".mrk.json") if points else ("--labels-of", ".nii.gz")
        words += [flag, f"{request.marked}:{file_of(node, extension)}"]
    comments = ["# The same from a command line, with the nodes saved to these files:", *wrapped(words)]
    if left_out:
        comments.append(f"# Not on the command line: {', '.join(left_out)}.")
    return comments


def _images_text(images: Any) -> str:
    """A sequence, its browser, or a list of volumes."""
    if hasattr(images, "IsA"):
        return node_text(images)
    return f"[{', '.join(node_text(node) for node in images)}]"


def _files(images: Any) -> list[str]:
    if not hasattr(images, "IsA"):
        return [file_of(node) for node in images]
    browser = images.IsA("vtkMRMLSequenceBrowserNode")
    return [file_of(images.GetMasterSequenceNode() if browser else images, ".seq.nrrd")]


def _mask_arguments(masks: Region | Sequence[Region | None] | None) -> list[tuple[str, str]]:
    if masks is None:
        return []
    if isinstance(masks, Region):
        text, exclude = region_text(masks), masks.exclude
    else:
        text = f"[{', '.join('None' if mask is None else region_text(mask) for mask in masks)}]"
        exclude = any(mask.exclude for mask in masks if mask is not None)
    return [("masks", text), *([("excludeMasks", "True")] if exclude else [])]
