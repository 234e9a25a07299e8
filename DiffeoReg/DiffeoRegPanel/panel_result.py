"""The result part of the panel: numbers of the last run, ways to look at it, the 0-100 % slider."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import qt

from DiffeoRegPanel.display import Flicker, Views
from DiffeoRegPanel.group import group_nodes_of
from DiffeoRegPanel.panel_numbers import sentences
from DiffeoRegPanel.panel_run import POLL_MS, Status

PAIR_VIEWS = ("blendButton", "checkerboardButton", "flickerButton", "jacobianButton")
LESION_VIEWS = {"changeButton": "change", "metamorphicButton": "metamorphic", "healthyButton": "healthy"}
"""Buttons that are there for a result with a change of appearance -> the parameter with the volume."""
GROUP_VIEWS = {"uncertaintyButton": "uncertainty", "meanButton": "mean"}
"""Buttons for the result of a group -> what they show over the aligned frame."""
VIEWS = (*PAIR_VIEWS, *LESION_VIEWS, *GROUP_VIEWS)
ROWS = (
    "resultFolds", "resultInverse", "resultSimilarity", "resultDice", "resultLandmarks", "resultCheck",
    "resultPathology", "resultUncertainty",
)  # fmt: skip


class ResultSection:
    """Shows the result that the parameters refer to; empty and closed without one."""

    def __init__(self, ui: Any, status: Status, open_path: Callable[[Any], Any]) -> None:
        """open_path: velocity node -> the way along the flow (set, poll, busy, close)."""
        self._ui, self._status, self._open_path = ui, status, open_path
        self._parameters: Any = None
        self._path: Any = None
        self._shown = ""
        self._path_allowed = True
        self.views = Views()
        self.flicker = Flicker(self.views)
        self._timer = qt.QTimer()
        self._timer.setInterval(POLL_MS)
        self._timer.connect("timeout()", self.poll)
        for name in VIEWS:
            getattr(ui, name).connect("clicked()", lambda name=name: self._guarded(lambda: self._view(name)))
        ui.gridButton.connect("clicked()", lambda: self._guarded(self._grid))
        ui.restoreButton.connect("clicked()", self.restore)
        ui.pathSlider.connect("valueChanged(double)", self._moved)

    def bind(self, parameters: Any) -> None:
        """Show these parameters from now on; None disconnects."""
        self._parameters = parameters
        self._ui.resultSection.collapsed = not self._report()
        self.update()

    def update(self) -> None:
        """Show numbers and buttons of the result there is."""
        if self._parameters is None:
            return
        report, p = self._report(), self._parameters
        for name, sentence in zip(ROWS, sentences(report), strict=True):
            getattr(self._ui, name).setText(sentence)
            for widget in (getattr(self._ui, name), getattr(self._ui, f"{name}Label")):
                widget.setVisible(bool(sentence))
        group = p.mode == "group"
        nodes = group_nodes_of(p.group.browser) if group else {}
        for button, name in GROUP_VIEWS.items():
            getattr(self._ui, button).setVisible(nodes.get(name) is not None)
        for button in (*PAIR_VIEWS, "gridButton"):
            getattr(self._ui, button).setVisible(not group)
        pair = not group and p.resultFixed is not None and p.resultMoving is not None
        self._ui.blendButton.setEnabled(pair)
        self._ui.flickerButton.setEnabled(pair)
        on_fixed = pair and p.resultMoving is not p.resultSource
        self._ui.checkerboardButton.setEnabled(on_fixed)
        self._ui.jacobianButton.setEnabled(pair and p.jacobian is not None)
        self._ui.gridButton.setEnabled(pair and p.resultTransform is not None)
        for button, name in LESION_VIEWS.items():
            getattr(self._ui, button).setVisible(pair and p.getValue(name) is not None)
        self._ui.pathSlider.setEnabled(self._path_allowed and p.velocity is not None)
        for widget in (self._ui.pathSlider, self._ui.pathSliderLabel):
            widget.setVisible(not group and p.velocity is not None)

    def show(self, name: str) -> None:
        """Press one of the view buttons."""
        self._guarded(lambda: self._view(name))

    def enable_path(self, on: bool) -> None:
        """The slider needs the worker, which a run occupies."""
        self._path_allowed = on
        if not on:
            self.close_path()
        there = self._parameters is not None and self._parameters.velocity is not None
        self._ui.pathSlider.setEnabled(on and there)

    def poll(self) -> None:
        """Take in where the slider's transform is; called by a timer."""
        if self._path is None:
            return
        try:
            for event in self._path.poll():
                if event.kind == "error":
                    self._status.say(event.message)
        except Exception as error:  # noqa: BLE001 - shown to the user, with the traceback in the log
            self._status.failed(error)
            self.close_path()
            return
        if not self._path.busy:
            self._timer.stop()

    def hold_still(self) -> None:
        """No view changes by itself and no preview stays, while nobody looks at the result."""
        self.flicker.stop()
        if self._shown == "flickerButton":
            self._press("")
        self.close_path()

    def restore(self) -> None:
        """The slice views as they were before any button here was pressed."""
        self.flicker.stop()
        self.close_path()
        self.views.restore()
        self._press("")
        self._ui.gridButton.setChecked(False)

    def close_path(self) -> None:
        """The moving volume where it was; the slider at 100 %."""
        self._timer.stop()
        if self._path is not None:
            self._path.close()
            self._path = None
        was_blocked = self._ui.pathSlider.blockSignals(True)
        self._ui.pathSlider.value = 100.0
        self._ui.pathSlider.blockSignals(was_blocked)

    def scene_closing(self) -> None:
        """Let go of everything in the scene."""
        self.flicker.stop()
        self.close_path()
        self.views.forget()
        self._press("")
        self._ui.gridButton.setChecked(False)

    def _report(self) -> dict[str, Any]:
        p = self._parameters
        text = "" if p is None else p.group.report if p.mode == "group" else p.report
        try:
            report = json.loads(text or "{}")
        except ValueError:
            return {}  # an edited scene: no numbers to show
        return report if isinstance(report, dict) else {}

    def _view(self, name: str) -> None:
        p = self._parameters
        if name == self._shown:
            self.restore()
            return
        self.flicker.stop()
        show = {
            "blendButton": self.views.show_blend, "checkerboardButton": self.views.show_checkerboard,
            "flickerButton": self.flicker.start,
        }  # fmt: skip
        self._press("")
        if name == "jacobianButton":
            self.views.show_jacobian(p.jacobian, p.resultFixed)
        elif name == "changeButton":
            self.views.show_change(p.change, p.resultMoving)
        elif name == "metamorphicButton":
            self.views.show_blend(p.resultFixed, p.metamorphic)
        elif name == "healthyButton":
            self.views.show_over(p.resultFixed, p.healthy)
        elif name in GROUP_VIEWS:
            nodes = group_nodes_of(p.group.browser)
            opacity = 1.0 if name == "meanButton" else 0.6
            self.views.show_blend(nodes["aligned"], nodes[GROUP_VIEWS[name]], opacity)
        else:
            show[name](p.resultFixed, p.resultMoving)
        self._press(name)

    def _press(self, name: str) -> None:
        self._shown = name
        for button in VIEWS:
            getattr(self._ui, button).setChecked(button == name)

    def _grid(self) -> None:
        p = self._parameters
        on = self._ui.gridButton.checked
        if p.resultTransform is not None and p.resultFixed is not None:
            self.views.show_deformed_grid(p.resultTransform, p.resultFixed, on)

    def _moved(self, percent: float) -> None:
        self._guarded(lambda: self._follow(percent))

    def _follow(self, percent: float) -> None:
        p = self._parameters
        if p is None or p.velocity is None:
            return
        if self._path is None:
            self._path = self._open_path(p.velocity)
            self.flicker.stop()
            self._press("")
            if p.resultSource is not None and p.resultFixed is not None:
                self.views.show_blend(p.resultFixed, p.resultSource)
        self._path.set(percent / 100)
        self._timer.start()

    def _guarded(self, act: Callable[[], None]) -> None:
        try:
            act()
        except Exception as error:  # noqa: BLE001 - shown to the user, with the traceback in the log
            self._press("")
            self._status.failed(error)
