"""The panel: ties its parts to the parameters in the scene and to the logic."""

from __future__ import annotations

from typing import Any

import qt
import slicer
import vtk
from slicer.i18n import tr as _

from DiffeoRegLib.errors import DiffeoRegError
from DiffeoRegPanel.panel_choices import CheckedNodes, MachineBox
from DiffeoRegPanel.panel_group import GroupSection
from DiffeoRegPanel.panel_model import ModelSection
from DiffeoRegPanel.panel_numbers import kept_numbers
from DiffeoRegPanel.panel_pathology import PathologySection
from DiffeoRegPanel.panel_regions import RegionSelector, StiffnessTable
from DiffeoRegPanel.panel_result import ResultSection
from DiffeoRegPanel.panel_run import RunControl, Status
from DiffeoRegPanel.panel_setup import Services, SetupSection, default_services
from DiffeoRegPanel.parameters import release_outputs, request_from
from DiffeoRegPanel.request import Request

REGIONS = {
    "fixedMask": "fixedMask", "movingMask": "movingMask",
    "guidanceFixed": "guidance.fixed", "guidanceMoving": "guidance.moving",
    "evaluationFixed": "evaluation.fixed", "evaluationMoving": "evaluation.moving",
}  # fmt: skip
SECTIONS = (
    "setupSection", "inputsSection", "modelSection", "masksSection", "flowSection", "outputsSection",
    "advancedSection",
)  # fmt: skip
CHECKED = {
    "carrySegmentations": (
        ("vtkMRMLSegmentationNode", "segmentations"), ("vtkMRMLLabelMapVolumeNode", "labelMaps"),
    ),
    "carryMarkups": (("vtkMRMLMarkupsNode", "markups"),),
    "carryModels": (("vtkMRMLModelNode", "models"),),
}  # fmt: skip


class Panel(slicer.util.VTKObservationMixin):
    """Everything the module's widget does.

    widget: the ScriptedLoadableModuleWidget (layout, resourcePath).  logic: getParameterNode, start, path,
    runner, close.  services: what is known of this computer; the real ones unless given.
    """

    def __init__(self, widget: Any, logic: Any, services: Services | None = None) -> None:
        slicer.util.VTKObservationMixin.__init__(self)
        self.widget, self.logic = widget, logic
        self.services = services or default_services()
        self.parameters: Any = None
        self._gui_tag: Any = None
        self._entered = False
        self._updating = False
        self._last_problem = ""
        self._lost_run = False
        self._note = ""
        self._pair: tuple[Any, Any] = (None, None)

    def setup(self) -> None:
        """Build the panel and follow the scene."""
        top = slicer.util.loadUI(self.widget.resourcePath("UI/DiffeoReg.ui"))
        self.widget.layout.addWidget(top)
        self.top = top
        self.ui = slicer.util.childWidgetVariables(top)
        top.setMRMLScene(slicer.mrmlScene)
        self.status = Status(self.ui)
        self.model = ModelSection(self.ui, self.services)
        self.setup_box = SetupSection(
            self.ui, self.services, self.status, self._start_probe, self._setup_changed
        )
        self.machine = MachineBox(self.ui, self.services.machine, self._machine_changed, self.status.failed)
        self.regions = [RegionSelector(self.ui, prefix, name) for prefix, name in REGIONS.items()]
        self.checked = [CheckedNodes(getattr(self.ui, name), lists) for name, lists in CHECKED.items()]
        self.stiffness = StiffnessTable(self.ui.stiffnessTable, self._update_apply)
        self.pathology = PathologySection(self.ui, lambda: self.model.card, self._update_apply)
        self.group = GroupSection(self.ui, self.services, lambda: self.model.device)
        self.result = ResultSection(self.ui, self.status, self.logic.path)
        self.run = RunControl(self.ui, self.status, self._begin, self._done, self._run_changed)
        for name in SECTIONS:  # what is hidden in a section stays hidden when the section opens
            getattr(self.ui, name).connect("contentsCollapsed(bool)", self._section_folded)
        self.ui.copyPythonButton.connect("clicked()", self._copy_python)
        scene = slicer.mrmlScene
        self.addObserver(scene, slicer.vtkMRMLScene.StartCloseEvent, self._scene_closing)
        self.addObserver(scene, slicer.vtkMRMLScene.EndCloseEvent, self._scene_renewed)
        self.addObserver(scene, slicer.vtkMRMLScene.EndImportEvent, self._scene_renewed)
        self.addObserver(scene, slicer.vtkMRMLScene.StartSaveEvent, self._scene_being_saved)
        # After a reload the module is on the screen already, and nobody calls `enter`.
        self._entered = bool(getattr(getattr(self.widget, "parent", None), "isEntered", False))
        self._renew()

    def enter(self) -> None:
        """The module is shown."""
        self._entered = True
        self._renew()

    def exit(self) -> None:
        """Another module is shown; a run goes on."""
        self._entered = False
        self.group.hold_still()
        self.result.hold_still()
        self._disconnect_gui()

    def cleanup(self) -> None:
        """The panel is being destroyed."""
        self.run.cancel(wait=True)
        self.setup_box.stop()
        self.result.scene_closing()
        self._bind(None)
        self.removeObservers()

    def problem(self) -> str:
        """Why Apply cannot be pressed, a sentence; empty when it can."""
        p = self.parameters
        if p is None:
            return _("Open a scene first.")
        if p.mode == "group":
            return self.group.problem() or self.setup_box.problem
        if p.fixed is None or p.moving is None:
            return _("Choose a fixed and a moving volume.")
        if p.fixed is p.moving:
            return _("Fixed and moving volume are the same: choose two different ones.")
        found = [self.model.problem(), *(region.problem() for region in self.regions)]
        if self.model.card is not None and self.model.card.needs_region_labels:
            found.append(self.stiffness.problem())
        found.append(self.pathology.problem())
        return next((sentence for sentence in [*found, self.setup_box.problem] if sentence), "")

    def request(self) -> Request:
        """What Apply would ask for."""
        machine = self.services.machine
        return request_from(self.parameters, device=machine.device, threads=machine.threads)

    @property
    def _parts(self) -> tuple[Any, ...]:
        """What shows parameters, the model first: it says which controls are used."""
        parts = (self.model, *self.regions, *self.checked, self.stiffness, self.pathology)
        return (*parts, self.result, self.group)

    # The scene

    def _renew(self) -> None:
        """Take the parameters of the scene, and look again what is installed."""
        self._bind(self.logic.getParameterNode())
        self._setup_changed()
        self.setup_box.show_open()
        self._say_what_next()

    def _scene_closing(self, _caller: Any, _event: Any) -> None:
        self._lost_run, self._note = self._lost_run or self.run.running, ""
        self.run.cancel(wait=True)
        self.result.scene_closing()
        self._bind(None)

    def _scene_being_saved(self, _caller: Any, _event: Any) -> None:
        self.result.close_path()  # the preview is not saved, and what lies under it would lose its place

    def _scene_renewed(self, _caller: Any, _event: Any) -> None:
        if self._entered:
            self._renew()

    def _bind(self, parameters: Any) -> None:
        self._disconnect_gui()
        if self.parameters is not None:
            self.removeObserver(self.parameters, vtk.vtkCommand.ModifiedEvent, self._parameters_modified)
        self.parameters = parameters
        if parameters is not None:
            self._gui_tag = parameters.connectGui(self.ui)
            self.addObserver(parameters, vtk.vtkCommand.ModifiedEvent, self._parameters_modified)
            self._pair = (parameters.fixed, parameters.moving)
        for part in self._parts:
            part.bind(parameters)
        self._update_apply()

    def _disconnect_gui(self) -> None:
        if self.parameters is not None and self._gui_tag is not None:
            self.parameters.disconnectGui(self._gui_tag)
        self._gui_tag = None

    def _section_folded(self, collapsed: bool) -> None:
        if not collapsed and self.parameters is not None:
            self._look_at_setup()
            self.model.update()

    def _parameters_modified(self, _caller: Any, _event: Any) -> None:
        if self._updating or self.parameters is None:
            return
        self._updating = True
        try:
            box = self.setup_box
            if box.card is not self.model.card or box.aligner is not self.model.aligner:
                self._look_at_setup()
            self._notice_pair()
            for part in self._parts:
                part.update()
            self._update_apply()
            self._note = self.model.take_note()
            if self._note and not self.run.running:
                self._last_problem = f"{self._note} {self.problem()}".strip()  # until something is changed
                self.status.say(self._last_problem)
        finally:
            self._updating = False

    def _notice_pair(self) -> None:
        """Another pair makes new nodes; not while a scene is read, when nodes come one by one."""
        pair = (self.parameters.fixed, self.parameters.moving)
        if pair != self._pair and None not in pair and not slicer.mrmlScene.IsBatchProcessing():
            self._pair = pair
            release_outputs(self.parameters)

    # Setup

    def _setup_changed(self) -> None:
        self._look_at_setup()
        self.model.update()
        self._update_apply()

    def _look_at_setup(self) -> None:
        self.setup_box.update(self.model.card, self.model.aligner)
        box = self.setup_box
        self.model.show_state(box.weights_sentence, box.device_sentence, box.device)

    def _start_probe(self) -> Any:
        return self.logic.runner.start({"kind": "probe"})

    def _machine_changed(self) -> None:
        if not self.run.running:
            self.logic.close()  # the next worker starts with the new folder
        self._update_apply()

    # Running

    def _update_apply(self) -> None:
        if self.run.running:
            return
        problem = self.problem()
        self.ui.applyButton.setEnabled(not problem)
        self.ui.applyButton.setToolTip(problem or _("Start the registration."))
        self.ui.copyPythonButton.setEnabled(self._copyable())
        if problem:
            self.status.say(problem)
        elif self.ui.statusLabel.text in ("", self._last_problem):
            self.status.say(_("Ready."))
        self._last_problem = problem

    def _copyable(self) -> bool:
        if self.parameters is None:
            return False
        if self.parameters.mode == "group":
            return not self.group.problem()
        return not (self.model.problem() or self.pathology.problem())

    def _say_what_next(self) -> None:
        if self.run.running:
            return
        what_next = self.problem() or _("Ready.")
        self._note = self.model.take_note() or self._note
        if self._note:
            self._last_problem = what_next = f"{self._note} {what_next}"
        if self._lost_run:
            what_next = _("Cancelled, because the scene was closed. {next}").format(next=what_next)
        self._lost_run = False
        self.status.say(what_next)

    def _begin(self) -> Any:
        self.result.hold_still()
        self.group.hold_still()
        try:
            if self.parameters.mode == "group":
                return self.logic.startGroup(self.group.request())
            return self.logic.start(self.request())
        except DiffeoRegError as error:
            self._last_problem = str(error)  # said until something is changed
            raise

    def _run_changed(self) -> None:
        running = self.run.running
        self.result.enable_path(not running)
        for name in SECTIONS:
            getattr(self.ui, name).setEnabled(not running)
        if running:
            self.ui.applyButton.setEnabled(True)
        else:
            self._update_apply()

    def _done(self, registration: Any) -> None:
        """Select what was made, show the numbers, and the volumes if wanted."""
        result, request = registration.result, registration.request
        if self.parameters is None:
            return
        if self.parameters.mode == "group":
            self.group.show(result)
            self.setup_box.record({"device": result.report.get("device") or {}})
            self._setup_changed()
            self.result.bind(self.parameters)
            count = result.aligned.GetNumberOfDataNodes()
            words = _("Done: {count} frames. {check}")
            self.status.say(words.format(count=count, check=result.selfCheck.sentence).strip())
            return
        keep_result(self.parameters, result, request)
        self.setup_box.record({"device": result.report.get("device") or {}})
        self._setup_changed()
        self.result.bind(self.parameters)
        if self.parameters.outputs.showResult:
            self.result.restore()
            self.result.show("blendButton")
        self.status.say(_("Done. {check}").format(check=getattr(result.selfCheck, "sentence", "")).strip())

    def _copy_python(self) -> None:
        try:
            group = self.parameters.mode == "group"
            text = self.services.script_for(self.group.request() if group else self.request())
        except Exception as error:  # noqa: BLE001 - shown to the user, with the traceback in the log
            self.status.failed(error)
            return
        qt.QApplication.clipboard().setText(text)
        self.status.say(_("Copied: paste it into Slicer's Python console."))


def keep_result(parameters: Any, result: Any, request: Request) -> None:
    """Select the nodes of a run in the parameters, and keep its numbers."""
    with slicer.util.NodeModify(parameters):
        parameters.outputs.transform = result.outputTransform
        if result.inverseTransform is not None:
            parameters.outputs.inverse = result.inverseTransform
        if result.movedVolume is not None:
            parameters.outputs.volume = result.movedVolume
        parameters.velocity, parameters.jacobian = result.way, result.jacobianVolume
        parameters.change, parameters.metamorphic = result.appearanceChange, result.metamorphicVolume
        parameters.healthy = result.healthyVolume
        parameters.reportTable = result.reportTable
        parameters.resultFixed, parameters.resultSource = request.fixed, request.moving
        parameters.resultMoving = result.movedVolume or request.moving
        parameters.resultTransform = result.outputTransform
        parameters.report = kept_numbers(result.report, getattr(result.selfCheck, "sentence", ""))
