"""Typed parameters: kept in the scene, checked, and bound to widgets."""

from __future__ import annotations

import enum
import pathlib
from typing import Annotated, Optional, Union

import ctk
import pytest
import qt
import slicer
import slicer.util
import vtk
from slicer import vtkMRMLLabelMapVolumeNode, vtkMRMLScalarVolumeNode, vtkMRMLSegmentationNode
from slicer.parameterNodeWrapper import (
    Choice,
    Decimals,
    Default,
    FloatRange,
    RangeBounds,
    WithinRange,
    parameterNodeWrapper,
    parameterPack,
)


class Speed(enum.Enum):
    SLOW = 1
    FAST = 2

    def label(self):
        return self.name.capitalize()


@parameterPack
class Region:
    node: Union[vtkMRMLSegmentationNode, vtkMRMLLabelMapVolumeNode, None]  # noqa: UP007
    segment: str = ""
    steps: Annotated[int, WithinRange(1, 64)] = 8


@parameterPack
class Pair:
    fixed: Region
    weight: float = 1.0


@parameterNodeWrapper
class Parameters:
    count: int
    on: bool = True
    weight: Annotated[float, WithinRange(0.5, 4.0), Decimals(3)] = 1.5
    name: str = "a"
    speed: Speed
    folder: pathlib.Path
    mode: Annotated[str, Choice(["x", "y"])]
    limit: Annotated[int, Default(4)]
    volume: vtkMRMLScalarVolumeNode
    volumes: list[vtkMRMLScalarVolumeNode]
    words: list[str]
    fixed_words: tuple[str, ...]
    numbers: dict[str, float]
    maybe: Optional[int]  # noqa: UP045
    span: Annotated[FloatRange, RangeBounds(0, 10)]
    pair: Pair
    colour: str = ""


@pytest.fixture
def node(scene):
    return scene.AddNewNodeByClass("vtkMRMLScriptedModuleNode", "DiffeoReg")


@pytest.fixture
def parameters(node):
    return Parameters(node)


@pytest.fixture
def volume(scene):
    return scene.AddNewNodeByClass("vtkMRMLScalarVolumeNode", "CT")


def test_defaults(parameters):
    p = parameters
    assert (p.count, p.on, p.weight, p.name, p.speed, p.limit) == (0, True, 1.5, "a", Speed.SLOW, 4)
    assert (p.mode, p.folder, p.volume, p.maybe, p.span) == (
        "x",
        pathlib.Path(),
        None,
        None,
        FloatRange(0, 0),
    )
    assert (p.volumes, p.words, p.fixed_words, p.numbers) == ([], [], (), {})
    assert p.pair == Pair()
    assert p.default("pair.fixed.steps").value == 8


def set_all(p, volume):
    p.count, p.on, p.weight, p.name, p.speed = 3, False, 0.1 + 0.7, "b; =", Speed.FAST
    p.folder, p.mode, p.volume, p.volumes, p.words = pathlib.Path("/a b"), "y", volume, [volume], ["ä,", ""]
    p.fixed_words, p.numbers, p.maybe, p.span = ("u", "v"), {"k": 0.1}, 0, FloatRange(1, 2)
    p.pair.fixed.segment, p.pair.weight = "liver", 2.0


def assert_all(p, name="CT"):
    assert (p.count, p.on, p.weight, p.name, p.speed) == (3, False, 0.1 + 0.7, "b; =", Speed.FAST)
    assert (p.folder, p.mode, p.words) == (pathlib.Path("/a b"), "y", ["ä,", ""])
    assert (p.fixed_words, p.numbers, p.maybe, p.span) == (("u", "v"), {"k": 0.1}, 0, FloatRange(1, 2))
    assert (p.volume.GetName(), [v.GetName() for v in p.volumes]) == (name, [name])
    assert (p.pair.fixed.segment, p.pair.fixed.steps, p.pair.weight) == ("liver", 8, 2.0)


@pytest.mark.parametrize("ending", [".mrml", ".mrb"])
def test_values_come_back_with_the_scene(bench, ending, tmp_path):
    scene = bench.scene
    volume = scene.AddNewNodeByClass("vtkMRMLScalarVolumeNode", "CT")
    set_all(Parameters(scene.AddNewNodeByClass("vtkMRMLScriptedModuleNode", "DiffeoReg")), volume)
    path = str(tmp_path / f"saved{ending}")
    assert slicer.util.saveScene(path, {})
    scene.Clear(0)
    assert slicer.util.getNodesByClass("vtkMRMLScriptedModuleNode") == []
    slicer.util.loadNodeFromFile(path, "SceneFile", {"clear": True})
    assert_all(Parameters(slicer.util.getNode("DiffeoReg")))


def test_a_second_wrapper_sees_the_same(parameters, node, volume):
    set_all(parameters, volume)
    assert_all(Parameters(node))


def test_lists_and_dicts_are_kept_when_changed_in_place(parameters, node, volume):
    parameters.words.append("w")
    parameters.numbers["n"] = 2.0
    parameters.volumes.append(volume)
    again = Parameters(node)
    assert (again.words, again.numbers, again.volumes) == (["w"], {"n": 2.0}, [volume])


def test_a_removed_node_is_forgotten(parameters, scene, volume):
    parameters.volume, parameters.volumes = volume, [volume]
    scene.RemoveNode(volume)
    assert (parameters.volume, parameters.volumes) == (None, [])


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("count", 1.5),
        ("count", True),
        ("on", 1),
        ("weight", "1"),
        ("name", 3),
        ("speed", "FAST"),
        ("folder", "/a"),
        ("volume", "CT"),
        ("words", ("a",)),
        ("words", [1]),
        ("pair", Region()),
        ("pair.fixed.steps", 2.0),
    ],
)
def test_a_wrong_type_raises(parameters, name, value):
    before = parameters.getValue(name)
    with pytest.raises(TypeError):
        parameters.setValue(name, value)
    assert parameters.getValue(name) == before


@pytest.mark.parametrize(
    ("name", "value"), [("weight", 4.5), ("mode", "z"), ("pair.fixed.steps", 0), ("span", FloatRange(1, 11))]
)
def test_a_value_out_of_range_raises(parameters, name, value):
    with pytest.raises(ValueError, match="not"):
        parameters.setValue(name, value)


def test_a_node_of_another_class_raises(parameters, scene, volume):
    with pytest.raises(TypeError):
        parameters.pair.fixed.node = volume
    parameters.pair.fixed.node = scene.AddNewNodeByClass("vtkMRMLSegmentationNode", "seg")
    assert parameters.pair.fixed.node.GetName() == "seg"


def test_misspelt_parameters_raise(parameters):
    for owner in (parameters, parameters.pair, Region()):
        with pytest.raises(AttributeError):
            owner.wieght = 1.0
    with pytest.raises(ValueError, match="no parameter"):
        parameters.setValue("pair.moving.steps", 3)


@pytest.mark.parametrize(
    "kind",
    [set, list, dict[str, list], "vtkMRMLScalarVolumeNode | None", "Union[int, str]", "Annotated[int, 3]"],
)
def test_types_that_cannot_be_kept_are_refused(kind):
    cls = type("P", (), {"__annotations__": {"x": kind}, "__module__": __name__})
    with pytest.raises(TypeError):
        parameterNodeWrapper(cls)


def test_a_default_out_of_range_is_refused():
    cls = type("P", (), {"__annotations__": {"x": Annotated[int, WithinRange(1, 5)]}, "__module__": __name__})
    with pytest.raises(ValueError, match="not within"):
        parameterNodeWrapper(cls)


def test_changes_in_one_batch_are_told_once(parameters):
    heard = []
    parameters.AddObserver(vtk.vtkCommand.ModifiedEvent, lambda *_: heard.append(1))
    with slicer.util.NodeModify(parameters):
        parameters.count, parameters.name = 7, "z"
    assert heard == [1]
    parameters.count = 7
    assert heard == [1]


WIDGETS = {
    "count": (qt.QSpinBox, "value", 5),
    "on": (qt.QCheckBox, "checked", False),
    "weight": (ctk.ctkSliderWidget, "value", 2.5),
    "name": (qt.QLineEdit, "text", "hello"),
    "speed": (qt.QComboBox, "currentText", "Fast"),
    "mode": (ctk.ctkComboBox, "currentText", "y"),
    "folder": (ctk.ctkPathLineEdit, "currentPath", "/b"),
    "pair.weight": (qt.QDoubleSpinBox, "value", 3.5),
    "pair.fixed.steps": (qt.QSlider, "value", 9),
    "pair.fixed.segment": (qt.QPlainTextEdit, "plainText", "lung"),
    "span": (ctk.ctkRangeWidget, "maximumValue", 7.0),
    "colour": (ctk.ctkColorPickerButton, None, "#ff0000"),
}
MEANS = {"speed": Speed.FAST, "folder": pathlib.Path("/b"), "span": FloatRange(0, 7)}


@pytest.mark.parametrize("name", WIDGETS)
def test_a_widget_and_its_parameter_follow_each_other(bench, parameters, node, name):
    kind, attribute, shown = WIDGETS[name]
    top = qt.QWidget()
    widget = kind(top)
    widget.setProperty("SlicerParameterName", name)
    tag = parameters.connectGui(top)
    before, wanted = parameters.getValue(name), MEANS.get(name, shown)
    if attribute:
        setattr(widget, attribute, shown)
    else:
        widget.color = qt.QColor(shown)
    assert parameters.getValue(name) == wanted
    if name != "colour":  # no colour at all cannot be shown
        Parameters(node).setValue(name, before)
        assert getattr(widget, attribute) != shown
    parameters.disconnectGui(tag)
    parameters.setValue(name, before)
    if attribute:
        setattr(widget, attribute, shown)
    assert parameters.getValue(name) == before


def test_a_selector_follows(bench, parameters, volume):
    top = slicer.qMRMLWidget()
    layout, box = qt.QVBoxLayout(top), slicer.qMRMLNodeComboBox()
    layout.addWidget(box)
    box.nodeTypes = ["vtkMRMLScalarVolumeNode"]
    box.setMRMLScene(bench.scene)
    box.setProperty("SlicerParameterName", "volume")
    parameters.connectGui(top)
    box.setCurrentNode(volume)
    assert parameters.volume is volume
    parameters.volume = None
    assert box.currentNode() is None
    parameters.volume = volume
    bench.scene.RemoveNode(volume)
    assert parameters.volume is None


def test_what_slicer_cannot_bind_is_refused(bench, parameters):
    for name, kind in (
        ("count", qt.QTableWidget),
        ("count", qt.QLineEdit),
        ("count", qt.QSlider),
        ("name", qt.QComboBox),
    ):
        widget = kind()
        with pytest.raises(RuntimeError):
            parameters.connectParametersToGui({name: widget})
    with pytest.raises(ValueError, match="no parameter"):
        parameters.connectParametersToGui({"cuont": qt.QSpinBox()})


def test_a_button_becomes_checkable(bench, parameters):
    button = qt.QPushButton("on")
    parameters.connectParametersToGui({"on": button})
    assert button.checked
    button.click()
    assert parameters.on is False
