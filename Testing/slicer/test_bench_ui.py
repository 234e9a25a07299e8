"""The .ui loader refuses what Slicer's would drop in silence, and makes the connections with MRML types."""

from __future__ import annotations

import pytest
import qt
import slicer

from Testing.slicer.bench.uiloader import UiError

CUSTOM = """
<customwidgets>
 <customwidget><class>qMRMLWidget</class><extends>QWidget</extends><header>qMRMLWidget.h</header></customwidget>
 <customwidget><class>qMRMLNodeComboBox</class><extends>QWidget</extends><header>a.h</header></customwidget>
 <customwidget><class>ctkSliderWidget</class><extends>QWidget</extends><header>b.h</header></customwidget>
 <customwidget><class>ctkCollapsibleButton</class><extends>QWidget</extends><header>c.h</header>
  <container>1</container></customwidget>
</customwidgets>"""
BODY = """
<widget class="qMRMLWidget" name="Top"><layout class="QVBoxLayout" name="all">
 <item><widget class="ctkCollapsibleButton" name="inputs">
  <property name="text"><string>Inputs</string></property>
  <property name="collapsed"><bool>true</bool></property>
  <layout class="QFormLayout" name="form">
   <item row="0" column="1"><widget class="qMRMLNodeComboBox" name="fixed">
    <property name="nodeTypes"><stringlist><string>vtkMRMLVolumeNode</string></stringlist></property>
    <property name="noneEnabled"><bool>true</bool></property>
    <property name="SlicerParameterName" stdset="0"><string>fixed</string></property>
   </widget></item>
   <item row="1" column="1"><widget class="ctkSliderWidget" name="steps">
    <property name="maximum"><double>32.0</double></property>
    <property name="value"><double>7.0</double></property>
   </widget></item>
  </layout></widget></item>
 <item><widget class="QPushButton" name="apply">
  <property name="text"><string>Apply</string></property></widget></item>
 <item><widget class="QLineEdit" name="line"/></item>
 <item><widget class="QLabel" name="label"/></item>
</layout></widget>"""
CONNECTIONS = """
<connections>
 <connection><sender>Top</sender><signal>mrmlSceneChanged(vtkMRMLScene*)</signal>
  <receiver>fixed</receiver><slot>setMRMLScene(vtkMRMLScene*)</slot></connection>
 <connection><sender>line</sender><signal>textChanged(QString)</signal>
  <receiver>label</receiver><slot>setText(QString)</slot></connection>
</connections>"""


@pytest.fixture
def load(bench, tmp_path):
    """Load a .ui file made of the body with one text replaced."""

    def make(old="", new="", custom=CUSTOM):
        text = f'<ui version="4.0"><class>Top</class>{BODY}{custom}{CONNECTIONS}</ui>'
        assert old in text
        path = tmp_path / "panel.ui"
        path.write_text(text.replace(old, new) if old else text, encoding="utf-8")
        top = slicer.util.loadUI(str(path))
        return top, slicer.util.childWidgetVariables(top)

    return make


def test_the_file_becomes_strict_widgets(load):
    top, ui = load()
    assert (top.className(), ui.apply.text, ui.steps.value) == ("qMRMLWidget", "Apply", 7.0)
    assert ui.fixed.nodeTypes == ("vtkMRMLVolumeNode",)
    assert ui.fixed.property("SlicerParameterName") == "fixed"
    assert (ui.inputs.collapsed, ui.inputs.text) == (True, "Inputs")
    with pytest.raises(AttributeError):
        ui.apply.txt = "x"
    with pytest.raises(AttributeError):
        _ = top.apply
    with pytest.raises(AttributeError):
        ui.fixed.setNodeTypes(["vtkMRMLVolumeNode"])


def test_the_scene_reaches_the_selectors(load, scene):
    top, ui = load()
    volume = scene.AddNewNodeByClass("vtkMRMLScalarVolumeNode", "CT")
    assert ui.fixed.nodeCount() == 0
    top.setMRMLScene(scene)
    assert ui.fixed.nodeCount() == 1
    ui.fixed.setCurrentNode(volume)
    assert ui.fixed.currentNode() is volume


def test_connections_of_qt_work(load):
    _, ui = load()
    ui.line.text = "CT"
    assert ui.label.text == "CT"


def test_a_folded_section_hides_its_content(load, bench):
    top, ui = load()
    top.show()
    bench.spin()
    assert not ui.steps.visible
    ui.inputs.collapsed = False
    assert ui.steps.visible


@pytest.mark.parametrize(
    ("old", "new", "why"),
    [
        ("QPushButton", "QPushButon", "neither Qt nor the bench"),
        ('class="ctkSliderWidget"', 'class="ctkSlider"', "neither Qt nor the bench"),
        ('name="collapsed"', 'name="colapsed"', "no property colapsed"),
        ('name="noneEnabled"', 'name="noneEnable"', "no property noneEnable"),
        (' stdset="0"', "", "no property SlicerParameterName"),
        ("<bool>true</bool>", "<string>true</string>", "is a bool"),
        ("<double>7.0</double>", "<string>7</string>", "is a double"),
        ("mrmlSceneChanged(vtkMRMLScene*)", "sceneChanged(vtkMRMLScene*)", "no signal"),
        ("setMRMLScene(vtkMRMLScene*)", "setScene(vtkMRMLScene*)", "no slot"),
        ("textChanged(QString)", "textchanged(QString)", "no signal"),
        ("setText(QString)", "setTxt(QString)", "no slot"),
        ("setText(QString)", "setNum(int)", "other arguments"),
        ("<receiver>label</receiver>", "<receiver>lable</receiver>", "not in the file"),
        ('name="label"', 'name="line"', "used twice"),
    ],
)
def test_what_does_not_exist_is_refused(load, old, new, why):
    with pytest.raises(UiError, match=why):
        load(old, new)


def test_a_class_that_is_not_declared_is_refused(load):
    with pytest.raises(UiError, match="customwidgets"):
        load(custom="")


def test_a_file_that_is_missing_is_an_error(bench):
    with pytest.raises(RuntimeError, match="not found"):
        slicer.util.loadUI("/nowhere/panel.ui")


def test_tables_hold_widgets(bench):
    table = qt.QTableWidget(1, 2)
    box = qt.QComboBox()
    box.addItems(["soft", "stiff"])
    table.setCellWidget(0, 1, box)
    table.setItem(0, 0, qt.QTableWidgetItem("liver"))
    table.cellWidget(0, 1).currentText = "stiff"
    assert (box.currentIndex, table.item(0, 0).text()) == (1, "liver")
