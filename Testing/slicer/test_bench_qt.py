"""`import qt` behaves as PythonQt, and is stricter where PythonQt would stay silent."""

from __future__ import annotations

import ctk
import pytest
import qt
import slicer


@pytest.fixture
def button(bench):
    return qt.QPushButton("Apply")


def test_properties_are_attributes(button):
    assert (button.text, button.enabled) == ("Apply", True)
    button.text = "Cancel"
    assert button.text == "Cancel"
    with pytest.raises(TypeError, match="not callable"):
        button.text()


def test_methods_and_slots_are_called(button):
    button.setText("Cancel")
    button.setCheckable(True)
    button.toggle()
    assert (button.text, button.checked) == ("Cancel", True)


@pytest.mark.parametrize("name", ["txt", "enabledd", "onclick", "setText"])
def test_assigning_what_is_no_property_raises(button, name):
    with pytest.raises(AttributeError, match="cannot be assigned"):
        setattr(button, name, "x")


@pytest.mark.parametrize(("name", "value"), [("text", 3), ("enabled", "yes"), ("text", None)])
def test_a_value_of_the_wrong_type_raises(button, name, value):
    with pytest.raises(TypeError, match="does not take"):
        setattr(button, name, value)


def test_a_spin_box_takes_no_real_number_and_no_truth(bench):
    box = qt.QSpinBox()
    for value in (2.5, True, "2"):
        with pytest.raises(TypeError):
            box.value = value
    box.value = 7
    assert box.value == 7


@pytest.mark.parametrize(
    "signature", ["cliked()", "clicked(int)", "clicked", "currentNodeChanged(vtkMRMLNode*)"]
)
def test_an_unknown_signal_raises(button, signature):
    with pytest.raises(ValueError, match="has no signal"):
        button.connect(signature, print)
    with pytest.raises(ValueError, match="has no signal"):
        button.disconnect(signature, print)


def test_the_signal_of_qt_5_only_raises(bench):
    with pytest.raises(ValueError, match="currentIndexChanged"):
        qt.QComboBox().connect("currentIndexChanged(QString)", print)


def test_only_what_can_be_called_is_connected(button):
    with pytest.raises(TypeError):
        button.connect("clicked()", "print")


def test_slots_get_the_arguments_they_take(button):
    heard = []
    button.connect("clicked(bool)", lambda: heard.append("none"))
    button.connect("clicked(bool)", lambda *given: heard.append(given))
    button.connect("clicked()", lambda *given: heard.append(given))
    button.clicked.connect(lambda checked: heard.append(checked))
    button.click()
    assert sorted(map(str, heard)) == ["()", "(False,)", "False", "none"]


def test_disconnected_slots_are_silent(button):
    heard = []

    def slot():
        heard.append(1)

    assert not button.disconnect("clicked()", slot)
    button.connect("clicked()", slot)
    assert button.disconnect("clicked()", slot)
    button.click()
    assert heard == []


def test_a_bound_method_can_be_disconnected(button):
    class Listener:
        count = 0

        def hear(self):
            self.count += 1

    listener = Listener()
    button.connect("clicked()", listener.hear)
    button.click()
    button.disconnect("clicked()", listener.hear)
    button.click()
    assert listener.count == 1


def test_exceptions_in_slots_are_kept(bench, button):
    heard = []
    button.connect("clicked()", lambda: 1 / 0)
    button.connect("clicked()", lambda: heard.append(1))
    qt.QTimer.singleShot(0, lambda: [][1])
    button.click()
    bench.wait(lambda: len(qt.slotErrors) == 2)
    assert heard == [1]
    assert [type(error.exception) for error in qt.slotErrors] == [ZeroDivisionError, IndexError]
    assert "clicked()" in str(qt.slotErrors[0])
    qt.slotErrors.clear()


def test_exceptions_in_observers_are_kept(bench):
    bench.scene.AddObserver(slicer.vtkMRMLScene.NodeAddedEvent, lambda *_: 1 / 0)
    bench.scene.AddNewNodeByClass("vtkMRMLTableNode")
    assert {type(error.exception) for error in qt.slotErrors} == {ZeroDivisionError}
    qt.slotErrors.clear()


def test_c_plus_plus_takes_no_named_arguments(button):
    with pytest.raises(TypeError, match="named"):
        qt.QLabel(text="x")
    with pytest.raises(TypeError, match="named"):
        button.setText(text="x")


def test_what_qt_made_is_strict_as_well(bench):
    table = qt.QTableWidget(2, 1)
    header = table.horizontalHeader()
    header.stretchLastSection = True
    with pytest.raises(AttributeError):
        header.strechLastSection = True
    box = qt.QComboBox()
    table.setCellWidget(0, 0, box)
    assert table.cellWidget(0, 0) is box
    assert table.rowCount == 2


def test_lists_from_qt_are_tuples(bench):
    widget = qt.QWidget()
    layout = qt.QFormLayout(widget)
    layout.addRow("Steps:", qt.QSpinBox())
    assert isinstance(widget.children(), tuple)
    assert [child.className() for child in widget.findChildren(qt.QSpinBox)] == ["QSpinBox"]
    selector = slicer.qMRMLNodeComboBox()
    selector.nodeTypes = ["vtkMRMLVolumeNode"]
    assert selector.nodeTypes == ("vtkMRMLVolumeNode",)


def test_classes_keep_their_kinship(button):
    assert isinstance(button, qt.QPushButton)
    assert isinstance(button, qt.QWidget)
    assert not isinstance(button, qt.QLabel)
    assert isinstance(ctk.ctkSliderWidget(), qt.QWidget)
    assert issubclass(qt.QLabel, qt.QWidget)


def test_a_class_of_the_module_may_have_attributes(bench):
    class Panel(qt.QWidget):
        def __init__(self, parent=None):
            super().__init__(parent)
            self.count = 3

        def sizeHint(self):
            return qt.QSize(70, 20)

    panel = Panel()
    panel.count += 1
    panel.enabled = False
    assert (panel.count, panel.enabled, panel.sizeHint().width()) == (4, False, 70)


def test_a_destroyed_widget_is_an_error(bench, button):
    button.deleteLater()
    bench.spin()
    with pytest.raises(RuntimeError, match="destroyed"):
        _ = button.text
    with pytest.raises(RuntimeError, match="destroyed"):
        button.click()


def test_a_timer_ticks(bench):
    heard = []
    timer = qt.QTimer()
    timer.setInterval(1)
    timer.connect("timeout()", lambda: heard.append(1))
    timer.start()
    bench.wait(lambda: len(heard) > 2)
    timer.stop()
    timer.setSingleShot(True)
    assert timer.singleShot is True
    assert timer.interval == 1


def test_settings_and_data_are_the_tests_own(bench, tmp_path):
    qt.QSettings().setValue("DiffeoReg/device", "cpu")
    assert slicer.util.settingsValue("DiffeoReg/device", "auto") == "cpu"
    assert slicer.app.settings().value("DiffeoReg/device") == "cpu"
    assert str(tmp_path) in qt.QSettings().fileName()
    assert str(tmp_path) in qt.QStandardPaths.writableLocation(qt.QStandardPaths.AppDataLocation)


def test_settings_do_not_outlive_a_test(bench):
    assert slicer.util.settingsValue("DiffeoReg/device", "auto") == "auto"


def test_an_unknown_class_raises(bench):
    with pytest.raises(AttributeError):
        _ = qt.QPushButon
    with pytest.raises(AttributeError):
        _ = ctk.ctkSliderWiget


def test_a_picture_can_be_taken(bench, button, tmp_path):
    path = bench.grab(button, tmp_path / "button.png", width=120, height=30)
    picture = qt.QImage(str(path))
    assert (picture.width(), picture.height()) == (120, 30)
    assert len({picture.pixel(x, 15) for x in range(120)}) > 2


def test_dialogs_are_answered_by_the_test(bench):
    bench.person.answers = [qt.QMessageBox.Ok, "/a/path"]
    assert slicer.util.confirmOkCancelDisplay("Install?")
    assert qt.QFileDialog.getOpenFileName(None, "Weights", "", "*") == "/a/path"
    slicer.util.errorDisplay("No memory.", detailedText="log")
    assert [message.text for message in bench.person.messages][::2] == ["Install?", "No memory."]
    assert bench.person.messages[2].kind == "critical"


def test_a_question_that_nobody_answers_is_an_error(bench):
    with pytest.raises(AssertionError, match="Nobody is there"):
        slicer.util.confirmYesNoDisplay("Really?")


def test_nothing_is_opened_in_a_browser(bench):
    qt.QDesktopServices.openUrl(qt.QUrl("https://example.org/a"))
    assert bench.person.opened == ["https://example.org/a"]
