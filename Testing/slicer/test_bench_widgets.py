"""The stand-ins for CTK's and Slicer's widgets."""

from __future__ import annotations

import ctk
import pytest
import qt
import slicer


@pytest.fixture
def nodes(scene):
    """Two volumes and a transform."""
    add = scene.AddNewNodeByClass
    volume = "vtkMRMLScalarVolumeNode"
    return add(volume, "CT"), add(volume, "MR"), add("vtkMRMLTransformNode", "T")


@pytest.fixture
def selector(bench, scene):
    box = slicer.qMRMLNodeComboBox()
    box.nodeTypes = ["vtkMRMLVolumeNode"]
    box.noneEnabled = True
    box.setMRMLScene(scene)
    return box


def heard_by(widget, *signatures):
    heard = []
    for signature in signatures:
        widget.connect(signature, lambda value, signature=signature: heard.append((signature, value)))
    return heard


def test_a_selector_never_picks_by_itself(selector, nodes):
    assert selector.currentNode() is None
    assert selector.currentNodeID == ""
    assert selector.nodeCount() == 2


def test_choosing_a_node_is_heard_once(selector, nodes):
    signals = (
        "currentNodeChanged(vtkMRMLNode*)",
        "currentNodeChanged(bool)",
        "currentNodeIDChanged(QString)",
    )
    heard = heard_by(selector, *signals)
    for _ in range(2):
        selector.setCurrentNode(nodes[1])
    assert heard == list(zip(signals, (nodes[1], True, nodes[1].GetID()), strict=True))


@pytest.mark.parametrize("choice", ["other class", "none", "unknown ID"])
def test_a_node_that_is_not_listed_clears_the_choice(selector, nodes, choice):
    selector.setCurrentNodeID(nodes[0].GetID())
    if choice == "unknown ID":
        selector.setCurrentNodeID("vtkMRMLScalarVolumeNode99")
    else:
        selector.setCurrentNode(nodes[2] if choice == "other class" else None)
    assert selector.currentNode() is None


def test_a_removed_node_clears_the_choice(selector, nodes, scene):
    selector.setCurrentNode(nodes[0])
    heard = heard_by(selector, "currentNodeChanged(vtkMRMLNode*)")
    scene.RemoveNode(nodes[0])
    assert (selector.currentNodeID, [value for _, value in heard]) == ("", [None])
    selector.setCurrentNode(nodes[1])
    scene.Clear(0)
    assert selector.currentNode() is None


def test_only_nodes_are_taken(selector):
    with pytest.raises(TypeError):
        selector.setCurrentNode("CT")
    with pytest.raises(TypeError):
        selector.setMRMLScene("scene")
    with pytest.raises(TypeError):
        selector.nodeTypes = "vtkMRMLVolumeNode"


def test_hidden_nodes_and_children_are_filtered(selector, nodes):
    nodes[0].SetHideFromEditors(True)
    selector.showChildNodeTypes = False
    assert selector.nodeCount() == 0
    selector.showChildNodeTypes = True
    assert selector.nodeCount() == 1
    selector.showHidden = True
    assert selector.nodeFromIndex(0) is nodes[0]
    selector.hideChildNodeTypes = ["vtkMRMLScalarVolumeNode"]
    assert selector.nodeCount() == 0


def test_attributes_filter(selector, nodes):
    selector.addAttribute("vtkMRMLVolumeNode", "Role", "mask")
    assert selector.nodeCount() == 0
    nodes[0].SetAttribute("Role", "mask")
    selector.setCurrentNode(nodes[0])
    assert selector.currentNode() is nodes[0]


def test_a_new_node_is_made_and_chosen(selector):
    selector.nodeTypes = ["vtkMRMLTransformNode"]
    selector.baseName = "Output"
    assert selector.addNode() is selector.currentNode()
    assert selector.currentNode().GetName() == "Output"


def test_the_scene_no_longer_reaches_a_destroyed_selector(selector, scene, bench):
    selector.deleteLater()
    bench.spin()
    scene.AddNewNodeByClass("vtkMRMLScalarVolumeNode")
    assert bench.slotErrors == []


def test_several_nodes_are_ticked(bench, nodes, scene):
    box = slicer.qMRMLCheckableNodeComboBox()
    box.nodeTypes = ["vtkMRMLVolumeNode"]
    box.setMRMLScene(scene)
    heard = []
    box.connect("checkedNodesChanged()", lambda: heard.append(len(box.checkedNodes())))
    box.setCheckState(nodes[1], qt.Qt.Checked)
    box.setCheckState(nodes[0], qt.Qt.Checked)
    box.setCheckState(nodes[0], qt.Qt.Checked)
    assert box.checkedNodes() == nodes[:2]
    scene.RemoveNode(nodes[1])
    box.setCheckState(nodes[0], qt.Qt.Unchecked)
    assert heard == [1, 2, 1, 0]
    with pytest.raises(TypeError):
        box.setCheckState(nodes[0], True)


def test_one_segment_is_chosen(bench, scene):
    node = scene.AddNewNodeByClass("vtkMRMLSegmentationNode", "organs")
    segments = node.GetSegmentation()
    segments.AddEmptySegment("L", "liver")
    box = slicer.qMRMLSegmentSelectorWidget()
    box.setMRMLScene(scene)
    heard = heard_by(box, "currentSegmentChanged(QString)")
    box.setCurrentNode(node)
    box.setCurrentSegmentID("L")
    box.setCurrentSegmentID("nothing of the kind")
    box.setCurrentSegmentID("L")
    segments.AddEmptySegment("K", "kidney")
    assert (box.currentNode(), box.currentSegmentID()) == (node, "L")
    segments.RemoveSegment("L")
    assert [value for _, value in heard] == ["L", "", "L", ""]
    assert box.selectedSegmentIDs() == ()


def test_the_slider_of_real_numbers(bench):
    slider = ctk.ctkSliderWidget()
    slider.minimum, slider.maximum, slider.singleStep, slider.decimals = 0.5, 4.0, 0.25, 2
    heard = heard_by(slider, "valueChanged(double)")
    slider.value = 1.25
    slider.value = 1.25
    slider.value = 9
    assert [value for _, value in heard] == [1.25, 4.0]
    slider.suffix = " mm"
    assert (slider.suffix, slider.decimals) == (" mm", 2)
    with pytest.raises(TypeError):
        slider.value = "1"
    with pytest.raises(ValueError, match="has no signal"):
        slider.connect("valueChanged(int)", print)


def test_a_section_folds_by_its_button(bench):
    section = ctk.ctkCollapsibleButton("Advanced")
    layout = qt.QVBoxLayout(section)
    inside = qt.QLabel("steps")
    layout.addWidget(inside)
    section.show()
    heard = heard_by(section, "contentsCollapsed(bool)")
    section.click()
    assert (section.collapsed, inside.visible) == (True, False)
    section.collapsed = False
    assert (section.collapsed, inside.visible) == (False, True)
    assert [value for _, value in heard] == [True, False]


def test_paths(bench, tmp_path):
    line, button = ctk.ctkPathLineEdit(), ctk.ctkDirectoryButton()
    heard = heard_by(line, "currentPathChanged(QString)") + heard_by(button, "directoryChanged(QString)")
    assert heard == []
    line.currentPath = "/a"
    bench.person.answers = [str(tmp_path)]
    button.click()
    assert (line.currentPath, button.directory) == ("/a", str(tmp_path))


def test_items_are_ticked(bench):
    box = ctk.ctkCheckableComboBox()
    box.addItems(["a", "b"])
    box.setCheckState(box.model().index(1, 0), qt.Qt.Checked)
    assert [index.row() for index in box.checkedIndexes()] == [1]


@pytest.mark.parametrize(
    "name", ["ctkDoubleSpinBox", "ctkComboBox", "ctkCollapsibleGroupBox", "ctkFittedTextBrowser"]
)
def test_the_rest_can_be_made(bench, name):
    widget = getattr(ctk, name)()
    assert widget.className() == name
    with pytest.raises(AttributeError):
        widget.nothingOfTheKind = 1
