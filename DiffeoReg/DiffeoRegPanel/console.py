"""From a call in the Python console to a request, and the wait for its end."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import slicer

from DiffeoRegLib.errors import InputError, SettingsError
from DiffeoRegLib.settings import Settings
from DiffeoRegLib.stiffness import STIFFNESS, Stiffness, stiffness_of
from DiffeoRegPanel.registration import Underway
from DiffeoRegPanel.request import Marks, Matching, Outputs, Region, Request
from DiffeoRegPanel.runner import Event


def request_from_call(fixed: Any, moving: Any, settings: Settings, **given: Any) -> Request:
    """The request of `DiffeoRegLogic.register`; the keywords are that call's."""
    return Request(
        fixed=fixed,
        moving=moving,
        settings=settings,
        initial=given["initialTransform"],
        fixed_mask=region_of(given["fixedMask"], exclude=given["excludeFixedMask"]),
        moving_mask=region_of(given["movingMask"], exclude=given["excludeMovingMask"]),
        guidance=_matching(given, "Guidance"),
        evaluation=_matching(given, "Evaluation"),
        pathology=_marks(given),
        regions=region_of(given["regionSegmentation"]),
        stiffness=_by_id(given["regionSegmentation"], given["stiffness"] or {}),
        rest=stiffness_from(given["rest"]),
        segmentations=several(given["movingSegmentation"]),
        markups=several(given["movingMarkups"]),
        models=several(given["movingModels"]),
        outputs=Outputs(
            given["outputTransform"], given["inverseTransform"], given["outputVolume"], given["wantInverse"],
            given["wantVolume"], given["wantVelocity"], given["wantJacobian"], given["wantRegulariser"],
            given["storage"],
        ),
    )  # fmt: skip


def classes_of(given: Any) -> Region | None:
    """A node, or (node, one or several of its segments or labels), as a Region.

    Raises InputError for a segment that is not there, and for a label that is no number.
    """
    if given is None:
        return None
    node, chosen = given if isinstance(given, tuple | list) and len(given) == 2 else (given, ())
    names = [chosen] if isinstance(chosen, str | int) else list(chosen)
    region = region_of(node)
    assert region is not None
    if node.IsA("vtkMRMLSegmentationNode"):
        return replace(region, classes=tuple(segment_id(node, str(name)) for name in names))
    if not all(str(name).lstrip("-").isdigit() for name in names):
        raise InputError(f"The labels of '{node.GetName()}' are whole numbers, not {names}.")
    return replace(region, classes=tuple(str(int(name)) for name in names))


def masks_from(given: Any, exclude: bool = False) -> Any:
    """The masks of a group: a node or (node, segment) for all images, a list with one, or None, for each.

    Raises InputError as `region_of`.
    """
    if isinstance(given, list):
        return tuple(region_of(one, exclude=exclude) for one in given)
    return region_of(given, exclude=exclude)


def _marks(given: Mapping[str, Any]) -> Marks:
    edge = given["pathologyEdge"]
    marks = Marks(classes_of(given["fixedPathology"]), classes_of(given["movingPathology"]))
    return marks if edge is None else replace(marks, edge_mm=float(edge))


def settings_of(
    method: str, preset: str, effort: str, steps: Any, more: Mapping[str, Any] | None
) -> Settings:
    """Settings of a call; raises InputError for a name that is no setting."""
    unknown = set(more or {}) - set(Settings.__dataclass_fields__)
    if unknown:
        raise InputError(
            f"No such setting: {', '.join(sorted(unknown))}. See DiffeoRegLib.settings.Settings."
        )
    return Settings(**{"method": method, "preset": preset, "effort": effort, "steps": steps, **(more or {})})


def region_of(given: Any, *, exclude: bool = False) -> Region | None:
    """A node, or (node, segment name or ID), as a Region; raises InputError for a name that is not there."""
    if given is None:
        return None
    node, name = given if isinstance(given, tuple | list) and len(given) == 2 else (given, "")
    if not hasattr(node, "IsA"):
        raise InputError(
            f"{given!r} is no region: give a segmentation or label map node, or (node, segment name)."
        )
    return Region(node, segment_id(node, name) if name else "", exclude)


def segment_id(node: Any, name: str) -> str:
    """The ID of a segment given by ID or name."""
    if node.IsA("vtkMRMLSegmentationNode"):
        segmentation = node.GetSegmentation()
        found = name if segmentation.GetSegment(name) else segmentation.GetSegmentIdBySegmentName(name)
        if found:
            return str(found)
    raise InputError(f"'{node.GetName()}' has no segment called '{name}'.")


def stiffness_from(given: Any) -> Stiffness:
    """A name, a text like "0.1, 0.4, 0.5, 0" or the shares themselves; raises SettingsError for others."""
    if isinstance(given, str):
        return stiffness_of(given)
    if isinstance(given, Sequence) and all(isinstance(share, int | float) for share in given):
        return tuple(float(share) for share in given)
    raise SettingsError(
        f"{given!r} is no stiffness: give {', '.join(STIFFNESS)}, or the shares of the kernels, narrow first."
    )


def several(given: Any) -> tuple[Any, ...]:
    """Nothing, one node or several as a tuple."""
    if given is None:
        return ()
    return tuple(given) if isinstance(given, (list, tuple)) else (given,)


def wait_for(
    registration: Underway,
    progress: Callable[[Event], None] | None = None,
    idle: Callable[[], None] | None = None,
) -> Any:
    """The result of a run, once it is there; raises what it ended with.

    idle: called between two looks, so that the application stays alive.
    """
    try:
        while not registration.finished:
            for event in registration.poll():
                if progress is not None:
                    progress(event)
            if idle is not None:
                idle()
            time.sleep(0.02)
    except BaseException:  # Ctrl-C or a callback that raised: the worker must not go on alone
        registration.cancel()
        raise
    if registration.error is not None:
        raise registration.error
    assert registration.result is not None
    return registration.result


def keep_application_alive() -> Callable[[], None] | None:
    """Slicer's event loop, or None outside the application."""
    application = getattr(slicer, "app", None)
    return None if application is None else application.processEvents


def _matching(given: Mapping[str, Any], kind: str) -> Matching:
    return Matching(
        region_of(given[f"fixed{kind}"]),
        region_of(given[f"moving{kind}"]),
        given[f"fixed{kind}Points"],
        given[f"moving{kind}Points"],
    )


def _by_id(regions: Any, stiffness: Mapping[Any, Any]) -> dict[str, Stiffness]:
    """Stiffness per segment ID, from names or IDs; label maps keep their numbers."""
    node = regions[0] if isinstance(regions, Sequence) else regions
    if node is None or not node.IsA("vtkMRMLSegmentationNode"):
        return {str(key): stiffness_from(value) for key, value in stiffness.items()}
    return {segment_id(node, str(key)): stiffness_from(value) for key, value in stiffness.items()}
