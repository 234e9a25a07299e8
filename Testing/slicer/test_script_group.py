"""`Copy as Python` of groups: the text, run, asks for the same again; the command takes its words."""

from __future__ import annotations

import dataclasses
import inspect
import shlex
import sys
from types import ModuleType

import numpy as np
import pytest

from DiffeoRegLib.cli.arguments import build_parser
from DiffeoRegLib.errors import SettingsError
from DiffeoRegLib.settings import Settings
from DiffeoRegPanel.console import masks_from, settings_of, several
from DiffeoRegPanel.group import GroupRequest
from DiffeoRegPanel.nodes.series import browser_of
from DiffeoRegPanel.request import Region, Request
from DiffeoRegPanel.script_group import script_for
from Testing.slicer import region_cases as cases
from Testing.slicer.test_nodes_frames import sequence_of, volumes

USUAL = {
    "toFrame": None, "preset": "general", "effort": "balanced", "method": "svf", "masks": None,
    "excludeMasks": False, "markedFrame": 0, "segmentations": None, "markups": None, "leaveOut": False,
    "wantMean": True, "wantUncertainty": True, "storage": "half", "settings": None,
    "waitForCompletion": True, "progressCallback": None,
}  # fmt: skip


class DiffeoRegLogic:
    """The module's logic: instead of registering it gives back what it was asked for."""

    def registerGroup(self, images, **given):
        assert set(given) <= set(USUAL)
        asked = {**USUAL, **given}
        settings = settings_of(*(asked[n] for n in ("method", "preset", "effort")), "auto", asked["settings"])
        return GroupRequest(
            images, settings, asked["toFrame"], masks_from(asked["masks"], asked["excludeMasks"]),
            several(asked["segmentations"]) + several(asked["markups"]), asked["markedFrame"],
            asked["wantMean"], asked["wantUncertainty"], asked["leaveOut"], asked["storage"],
        )  # fmt: skip

    def close(self):
        """Nothing was started."""


def run(text, monkeypatch):
    """What a script asks the logic for."""
    module = ModuleType("DiffeoReg")
    module.DiffeoRegLogic = DiffeoRegLogic
    monkeypatch.setitem(sys.modules, "DiffeoReg", module)
    names = {}
    exec(compile(text, "copied", "exec"), names)
    return names["result"]


def command(text):
    """The words of the command line in the comments."""
    lines = [line.removeprefix("#").strip() for line in text.splitlines() if line.startswith("#")]
    joined = " ".join(line.removesuffix("\\") for line in lines if not line.endswith((":", ".")))
    return shlex.split(joined)


@pytest.fixture
def nodes(scene):
    given = volumes()
    organ = cases.add_segmentation(
        scene, [np.ones((6, 7, 8), np.uint8)], cases.FIXED_PLACE, [["liver"]], "organ"
    )
    tip = scene.AddNewNodeByClass("vtkMRMLMarkupsFiducialNode", "tip")
    sequence = sequence_of(scene, given)
    return {"volumes": given, "organ": organ, "tip": tip, "browser": browser_of(scene, [sequence], "player"),
            "sequence": sequence}  # fmt: skip


def requests(nodes):
    """Requests that differ in everything there is."""
    organ = nodes["organ"]
    yield GroupRequest(nodes["sequence"])
    yield GroupRequest(nodes["browser"], Settings(effort="fast", preset="abdomen"), fixed=1)
    yield GroupRequest(
        nodes["volumes"], Settings(similarity="mse", init="rigid", levels_mm=(4.0, 2.0), iterations=(3, 2)),
        masks=Region(organ, "id-liver", True), carried=(organ, nodes["tip"]), marked=2, want_mean=False,
        want_uncertainty=False, leave_out=True, storage="full",
    )  # fmt: skip
    yield GroupRequest(nodes["volumes"], masks=[Region(organ), None, Region(organ)])
    yield GroupRequest(
        nodes["sequence"], Settings(method="groupmorph", weights="net.safetensors", steps=16), fixed=0,
        carried=(nodes["tip"],),
    )  # fmt: skip


def plain(request):
    """A request as something that can be compared."""
    found = {f.name: getattr(request, f.name) for f in dataclasses.fields(request)}
    masks = found["masks"]
    regions = [masks] if isinstance(masks, Region) else masks or []
    found["masks"] = [None if r is None else (r.node.GetID(), r.segment_id, r.exclude) for r in regions]
    images = found["images"]
    found["images"] = [n.GetID() for n in ([images] if hasattr(images, "IsA") else images)]
    found["carried"] = [node.GetID() for node in found["carried"]]
    return found


@pytest.mark.parametrize("number", range(5))
def test_the_text_asks_for_the_same(nodes, monkeypatch, number):
    request = list(requests(nodes))[number]
    assert plain(run(script_for(request), monkeypatch)) == plain(request)


def test_the_keywords_are_those_of_the_logic(scene):
    from DiffeoReg import DiffeoRegLogic as Real

    parameters = inspect.signature(Real.registerGroup).parameters
    assert {name: p.default for name, p in parameters.items() if name not in ("self", "images")} == USUAL


@pytest.mark.parametrize("number", range(5))
def test_the_command_takes_the_words(nodes, number):
    request = list(requests(nodes))[number]
    words = command(script_for(request))
    assert words[:2] == ["diffeoreg", "group"]
    given = build_parser().parse_args(words[1:])
    assert given.fixed_index == request.fixed
    assert given.leave_out == request.leave_out
    assert given.no_uncertainty == (not request.want_uncertainty)
    assert (given.method, given.effort) == (request.settings.method, request.settings.effort)
    if number == 2:
        assert given.images == ["phase 0.nii.gz", "phase 1.nii.gz", "phase 2.nii.gz"]
        assert given.labels_of == [(2, "organ.nii.gz")]
        assert given.points_of == [(2, "tip.mrk.json")]
        assert (given.similarity, given.levels, given.init) == ("variance", (4.0, 2.0), "rigid")
    else:
        assert given.images == (["liver.seq.nrrd"] if number != 3 else given.images)


def test_what_the_command_cannot_do_is_named(nodes):
    texts = [script_for(request) for request in requests(nodes)]
    assert "Not on the command line" not in texts[0]
    assert "Not on the command line: masks" in texts[3]
    assert "Not on the command line: steps." in texts[4]


def test_a_pair_is_still_a_pair(nodes):
    fixed, moving, _other = nodes["volumes"]
    assert "logic.register(" in script_for(Request(fixed, moving))
    with pytest.raises(SettingsError, match="time steps"):
        script_for(GroupRequest(nodes["sequence"], Settings(steps=100_000)))
