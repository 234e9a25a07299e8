"""`Copy as Python`: the text, run, asks for the same again."""

from __future__ import annotations

import dataclasses
import inspect
import shlex
import sys
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import slicer

from DiffeoRegLib.cli.arguments import build_parser
from DiffeoRegLib.settings import Settings
from DiffeoRegPanel.console import request_from_call, settings_of
from DiffeoRegPanel.request import Marks, Matching, Outputs, Region, Request
from DiffeoRegPanel.script import script_for

SIGNATURE = {
    "method": "svf", "steps": "auto", "preset": "general", "effort": "balanced", "initialTransform": None,
    "fixedMask": None, "movingMask": None, "excludeFixedMask": False, "excludeMovingMask": False,
    "fixedGuidance": None, "movingGuidance": None, "fixedGuidancePoints": None, "movingGuidancePoints": None,
    "fixedEvaluation": None, "movingEvaluation": None, "fixedEvaluationPoints": None,
    "movingEvaluationPoints": None, "fixedPathology": None, "movingPathology": None, "pathologyEdge": None,
    "regionSegmentation": None, "stiffness": None,
    "rest": "rigid-like", "movingSegmentation": None, "movingMarkups": None, "movingModels": None,
    "outputTransform": None, "inverseTransform": None, "outputVolume": None, "wantInverse": True,
    "wantVolume": True, "wantVelocity": True, "wantJacobian": False, "wantRegulariser": False,
    "storage": "half", "settings": None, "waitForCompletion": True, "progressCallback": None,
}  # fmt: skip
AWKWARD = 'it\'s "a" \\ [x]*?'


class DiffeoRegLogic:
    """The module's logic: instead of registering it gives back what it was asked for."""

    def register(self, fixedNode: Any, movingNode: Any, **given: Any) -> Request:
        assert set(given) <= set(SIGNATURE)
        all_of = {**SIGNATURE, **given}
        named = ("method", "preset", "effort", "steps", "settings")
        settings = settings_of(*(all_of.pop(name) for name in named))
        return request_from_call(fixedNode, movingNode, settings, **all_of)

    def close(self) -> None:
        closed.append(self)


closed: list[DiffeoRegLogic] = []


def run(text: str, monkeypatch: pytest.MonkeyPatch) -> Request:
    """What a script asks the logic for."""
    module = ModuleType("DiffeoReg")
    module.DiffeoRegLogic = DiffeoRegLogic  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "DiffeoReg", module)
    names: dict[str, Any] = {}
    closed.clear()
    exec(compile(text, "script", "exec"), names)
    assert len(closed) == 1
    return names["result"]


def plain(value: Any) -> Any:
    """A request in comparable parts: nodes as themselves, dataclasses as their fields."""
    if dataclasses.is_dataclass(value):
        return {f.name: plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    return dict(value) if isinstance(value, dict) else value


def volume(name: str) -> Any:
    return slicer.util.addVolumeFromArray(np.zeros((3, 4, 5), np.float32), name=name)


def segmentation(name: str, *segments: str) -> Any:
    node = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSegmentationNode", name)
    for number, segment in enumerate(segments):
        node.GetSegmentation().AddEmptySegment(f"Segment_{number}", segment)
    return node


def node_of(kind: str, name: str) -> Any:
    return slicer.mrmlScene.AddNewNodeByClass(kind, name)


@pytest.fixture
def full(scene: Any) -> Request:
    """Everything a request can hold, with names that need care."""
    organs = segmentation(AWKWARD, "liver", AWKWARD, "twice", "twice")
    other = segmentation("organs", "liver")
    label_map = node_of("vtkMRMLLabelMapVolumeNode", "labels")
    points = [node_of("vtkMRMLMarkupsFiducialNode", name) for name in ("F", "F", "M 1", "extra")]
    return Request(
        fixed=volume("MRHead"),
        moving=volume("MRHead"),
        settings=Settings(
            steps=16, preset="multimodal", effort="accurate", regularity=2.0, levels_mm=(4.0, 2.0), threads=3,
            iterations=(10, 5), similarity="mind", guidance_weight=0.5, extras={"a": 1}, device="cuda:1",
        ),
        initial=node_of("vtkMRMLTransformNode", "by\nhand"),
        fixed_mask=Region(organs, "Segment_0", exclude=True),
        moving_mask=Region(organs, "Segment_1"),
        guidance=Matching(Region(label_map), Region(other, "Segment_0"), points[0], points[1]),
        evaluation=Matching(Region(organs, "Segment_3"), Region(other), points[1], points[2]),
        pathology=Marks(
            Region(label_map, classes=("1", "4")), Region(organs, classes=("Segment_1", "Segment_2")), 2.5
        ),
        regions=Region(organs),
        stiffness={"Segment_0": "soft", "Segment_1": (0.1, 0.4, 0.5, 0.0)},
        rest="stiff",
        segmentations=(organs, label_map),
        markups=(points[3],),
        models=(node_of("vtkMRMLModelNode", "skin"), node_of("vtkMRMLModelNode", "bone*")),
        outputs=Outputs(
            node_of("vtkMRMLTransformNode", "out"), node_of("vtkMRMLTransformNode", "in"), volume("moved"),
            want_inverse=False, want_velocity=False, want_jacobian=True, want_regulariser=True,
            storage="full",
        ),
    )  # fmt: skip


def test_the_script_asks_for_the_same_again(full: Request, monkeypatch: pytest.MonkeyPatch) -> None:
    assert plain(run(script_for(full), monkeypatch)) == plain(full)


def test_a_plain_request_is_a_short_script(scene: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    request = Request(volume("MRHead"), volume("T2"), Settings(steps=7))
    text = script_for(request)
    assert plain(run(text, monkeypatch)) == plain(request)
    assert text == (
        "import slicer\n"
        "from DiffeoReg import DiffeoRegLogic\n"
        "\n"
        "fixedNode = slicer.util.getNode('MRHead')\n"
        "movingNode = slicer.util.getNode('T2')\n"
        "logic = DiffeoRegLogic()\n"
        "result = logic.register(\n"
        "    fixedNode,\n"
        "    movingNode,\n"
        "    steps=7,\n"
        ")\n"
        "logic.close()\n"
        "\n"
        "# The same from a command line, with the nodes saved to these files:\n"
        "#   diffeoreg register MRHead.nii.gz T2.nii.gz -o out --steps 7\n"
    )


def fields(name: str) -> list[str]:
    return [field.name for field in dataclasses.fields({"Request": Request, "Outputs": Outputs}[name])]


CHANGES = {
    "settings": lambda: Settings(method="affine", effort="fast", seed=3),
    "initial": lambda: node_of("vtkMRMLTransformNode", "start"),
    "fixed_mask": lambda: Region(segmentation("s", "one", "two"), "Segment_1", exclude=True),
    "moving_mask": lambda: Region(node_of("vtkMRMLLabelMapVolumeNode", "l"), exclude=True),
    "guidance": lambda: Matching(None, Region(segmentation("s", "one"))),
    "evaluation": lambda: Matching(moving_points=node_of("vtkMRMLMarkupsFiducialNode", "f")),
    "pathology": lambda: Marks(moving=Region(segmentation("s", "one", "two"), classes=("Segment_0",))),
    "regions": lambda: Region(segmentation("s", "one")),
    "stiffness": lambda: {"3": (0.2, 0.8)},
    "rest": lambda: "normal",
    "segmentations": lambda: (segmentation("s", "one"),),
    "markups": lambda: tuple(node_of("vtkMRMLMarkupsFiducialNode", n) for n in "ab"),
    "models": lambda: (node_of("vtkMRMLModelNode", "skin"),),
    "outputs": lambda: Outputs(want_volume=False),
}


@pytest.mark.parametrize("name", [name for name in fields("Request") if name not in ("fixed", "moving")])
def test_every_field_alone_is_in_the_script(scene: Any, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    request = Request(volume("a"), volume("b"), **{name: CHANGES[name]()})
    assert plain(run(script_for(request), monkeypatch)) == plain(request)
    assert plain(request) != plain(Request(request.fixed, request.moving))


def test_nodes_of_one_name_are_told_apart_by_their_id(scene: Any) -> None:
    text = script_for(Request(volume("same"), volume("same")))
    assert "getNode('vtkMRMLScalarVolumeNode1')" in text
    assert "getNode('vtkMRMLScalarVolumeNode2')" in text


def test_a_name_that_is_another_node_s_id_is_not_used(scene: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = volume("a"), volume("b")
    first.SetName(second.GetID())
    request = Request(first, second)
    assert plain(run(script_for(request), monkeypatch)) == plain(request)


@pytest.mark.parametrize(
    "name", ["x'); import os; os.abort() #", "a\nimport os", "# b", 'q"""', "\\", "ü µ", "$(ls)"]
)
def test_no_name_gets_out_of_its_quotes(scene: Any, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    organs = segmentation(name, name)
    request = Request(
        volume(name), volume("b"), moving_mask=Region(organs, "Segment_0"), segmentations=(organs,)
    )
    text = script_for(request)
    assert plain(run(text, monkeypatch)) == plain(request)
    command = text.partition("files:\n")[2]
    assert all(line.startswith("#") for line in command.splitlines())


def command_of(text: str) -> list[str]:
    lines = text.partition("files:\n")[2].splitlines()
    kept = [line for line in lines if not line.startswith("# Not on")]
    return shlex.split(" ".join(line.lstrip("# ").rstrip("\\") for line in kept))


def test_the_command_line_is_one_the_command_takes(full: Request) -> None:
    text = script_for(full)
    words = command_of(text)
    assert words[0] == "diffeoreg"
    found = build_parser().parse_args(words[1:])
    assert (found.steps, found.preset, found.effort, found.regularity) == (16, "multimodal", "accurate", 2.0)
    assert (found.levels, found.iterations, found.threads) == ((4.0, 2.0), (10, 5), 3)
    assert found.exclude_fixed_mask
    assert not found.exclude_moving_mask
    assert found.guidance_moving_seg == "organs.nii.gz"
    assert found.init == "by hand.h5"
    assert found.regions == found.fixed_mask
    assert found.rest == "stiff"
    assert found.pathology == "labels.nii.gz"
    assert found.pathology_moving == found.fixed_mask
    assert (found.pathology_classes, found.pathology_edge_mm) == (None, 2.5)
    for word in (
        "classes of the pathology",
        "guidance_weight",
        "extras",
        "stiffness of the segments",
        "markups",
        "models",
    ):
        assert word in text.rpartition("# Not on the command line: ")[2]


def test_labels_that_count_on_all_sides_are_on_the_command_line(scene: Any) -> None:
    one, other = (node_of("vtkMRMLLabelMapVolumeNode", name) for name in ("one", "other"))
    for marks, wanted in (
        (Marks(fixed=Region(one, classes=("1", "4"))), (1, 4)),
        (Marks(Region(one, classes=("3",)), Region(other, classes=("3",))), (3,)),
        (Marks(moving=Region(one)), None),
    ):
        text = script_for(Request(volume("a"), volume("b"), pathology=marks))
        assert build_parser().parse_args(command_of(text)[1:]).pathology_classes == wanted
        assert "Not on the command line" not in text
    marks = Marks(Region(one, classes=("3",)), Region(other))
    assert "--pathology-classes A,B" in script_for(Request(volume("a"), volume("b"), pathology=marks))


def test_every_setting_has_its_flag_or_is_named_as_left_out(scene: Any) -> None:
    changed = {
        "method": "affine", "preset": "abdomen", "effort": "fast", "init": "mass", "steps": 3,
        "similarity": "mse",
        "large_displacement": True, "working_spacing_mm": 2.0, "levels_mm": (4.0, 2.0), "iterations": (2, 1),
        "dense_iterations": 2, "window_vox": 7.0, "update_sigma": 2.0, "velocity_sigma": 1.0,
        "regularity": 2.0,
        "guidance_weight": 2.0, "padding_mm": 5.0, "taper_mm": 6.0, "interpolation": "cubic", "device": "cpu",
        "threads": 2, "memory_limit_gb": 4.0, "seed": 5, "extras": {"a": 1},
        "kernel_sigmas": (5.0, 10.0), "kernel_weights": (1.0, 2.0), "kernel_units": "mm",
        "preweight_sigma": 4.0, "kinetic": 2.0, "integrator": "dopri5",
        "weights": "mine.safetensors", "accepted_licences": ("CC-BY-NC-4.0", "MIT"),
    }  # fmt: skip
    assert set(changed) == {field.name for field in dataclasses.fields(Settings)}
    text = script_for(Request(volume("a"), volume("b"), Settings(**changed)))
    found = build_parser().parse_args(command_of(text)[1:])
    assert (found.weights, found.accept_licence) == ("mine.safetensors", ["CC-BY-NC-4.0", "MIT"])
    left_out = text.rpartition("# Not on the command line: ")[2]
    for name in changed:
        flag = {"levels_mm": "--levels", "accepted_licences": "--accept-licence"}.get(name, f"--{name}")
        flag = flag.replace("_", "-")
        assert (flag in command_of(text)) != (name in left_out)


def test_stiffness_by_label_is_on_the_command_line(scene: Any) -> None:
    regions = Region(node_of("vtkMRMLLabelMapVolumeNode", "parts"))
    stiffness = {"3": "soft", "4": (0.1, 0.4, 0.5, 0.0)}
    request = Request(
        volume("a"), volume("b"), Settings(method="rdmm-regions"), regions=regions, stiffness=stiffness
    )
    found = build_parser().parse_args(command_of(script_for(request))[1:])
    assert found.regions == "parts.nii.gz"
    assert found.stiffness == [(3, "soft"), (4, (0.1, 0.4, 0.5, 0.0))]
    assert "Not on the command line" not in script_for(request)


def test_the_saved_file_of_a_node_is_named(scene: Any) -> None:
    node = volume("a")
    node.AddDefaultStorageNode()
    node.GetStorageNode().SetFileName("/data/head one.nrrd")
    words = command_of(script_for(Request(node, volume("b"))))
    assert words[2:4] == ["/data/head one.nrrd", "b.nii.gz"]


def test_the_signature_is_the_logic_s(repository: Any) -> None:
    """The arguments this test assumes are those of DiffeoReg.py."""
    import ast

    tree = ast.parse((repository / "DiffeoReg" / "DiffeoReg.py").read_text(encoding="utf-8"))
    functions = [n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef) and n.name == "register"]
    arguments = functions[0].args
    names = [a.arg for a in (*arguments.args, *arguments.kwonlyargs)]
    assert names[1:] == ["fixedNode", "movingNode", *SIGNATURE]
    values = [ast.literal_eval(d) for d in (*arguments.defaults, *arguments.kw_defaults) if d is not None]
    assert values == list(SIGNATURE.values())
    assert "fixedNode" in inspect.signature(DiffeoRegLogic.register).parameters
