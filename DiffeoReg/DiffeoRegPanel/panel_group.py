"""The group part of the panel: a sequence or several volumes, where they go, what is carried along."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import slicer
from slicer.i18n import tr as _

from DiffeoRegLib.errors import DiffeoRegError
from DiffeoRegLib.settings import Settings
from DiffeoRegPanel.estimate_group import estimate_group
from DiffeoRegPanel.group import GroupRequest, GroupResult, check_group, group_nodes_of
from DiffeoRegPanel.panel_choices import CheckedNodes, ChoiceBox, group_methods
from DiffeoRegPanel.panel_numbers import kept_group_numbers
from DiffeoRegPanel.panel_regions import RegionSelector
from DiffeoRegPanel.parameters import region_from, settings_from

CHOICES = {
    "modeCombo": ("mode", [("pair", _("A pair of volumes")), ("group", _("A group or a sequence"))]),
    "groupTargetCombo": ("group.target", [("middle", _("The middle of all")), ("frame", _("One frame"))]),
}  # fmt: skip
NOT_OF_GROUPS = ("guidanceWeightSpin",)
"""Hidden besides what the method does not use."""
CHECKED = {
    "groupVolumes": (("vtkMRMLScalarVolumeNode", "groupVolumes"),),
    "groupCarry": (
        ("vtkMRMLSegmentationNode", "groupSegmentations"), ("vtkMRMLLabelMapVolumeNode", "groupLabelMaps"),
        ("vtkMRMLMarkupsNode", "groupMarkups"),
    ),
}  # fmt: skip
OF_GROUPS = (
    "groupSeries", "groupVolumes", "groupTargetCombo", "groupFrameSpin", "groupMask", "groupCarry",
    "groupMarkedSpin", "groupUncertainty", "groupLeaveOut", "groupMethodCombo", "groupPlayButton",
)  # fmt: skip
OF_PAIRS = (
    "fixedSelector", "movingSelector", "initialSelector", "methodCombo", "methodUse", "masksSection",
    "outputsSection", "paddingSpin",
)  # fmt: skip


class GroupSection:
    """The choice between a pair and a group, and what a group needs instead of a pair."""

    def __init__(self, ui: Any, services: Any, device: Callable[[], str]) -> None:
        """device: what the run will compute on, as far as it is known."""
        self._ui, self._services, self._device = ui, services, device
        self._parameters: Any = None
        choices = CHOICES | {"groupMethodCombo": ("group.method", group_methods())}
        self._parts: list[Any] = [ChoiceBox(getattr(ui, name), *what) for name, what in choices.items()]
        self._mask = RegionSelector(ui, "groupMask", "group.mask")
        self._parts.append(self._mask)
        self._parts += [CheckedNodes(getattr(ui, name), lists) for name, lists in CHECKED.items()]
        ui.groupPlayButton.connect("toggled(bool)", self._play)

    def bind(self, parameters: Any) -> None:
        """Show these parameters from now on; None disconnects."""
        self.hold_still()
        self._parameters = parameters
        for part in self._parts:
            part.bind(parameters)
        self.update()

    def update(self) -> None:
        """Show what is chosen, and only what the mode uses."""
        p = self._parameters
        if p is None:
            return
        for part in self._parts:
            part.update()
        group = p.mode == "group"
        for names, wanted in ((OF_GROUPS, group), (OF_PAIRS, not group)):
            for name in names:
                _show(self._ui, name, wanted)
        if not group:
            return
        for name in NOT_OF_GROUPS:
            _show(self._ui, name, False)
        _show(self._ui, "groupMethodCombo", self._ui.groupMethodCombo.count > 1)
        _show(self._ui, "methodUse", p.group.method != "svf")
        _show(self._ui, "groupVolumes", p.group.series is None)
        _show(self._ui, "groupFrameSpin", p.group.target == "frame")
        _show(self._ui, "groupMarkedSpin", bool(self._carried()))
        _show(self._ui, "groupPlayButton", bool(group_nodes_of(p.group.browser)))
        self._ui.estimateText.setText(self._estimate())

    def request(self) -> GroupRequest:
        """What Apply asks for; raises SettingsError and UnknownNameError for settings that cannot be used."""
        p = self._parameters
        volumes = tuple(node for node in p.groupVolumes if node is not None)
        return GroupRequest(
            images=p.group.series if p.group.series is not None else volumes or None,
            settings=self._settings(),
            fixed=p.group.frame if p.group.target == "frame" else None,
            masks=region_from(p.group.mask),
            carried=self._carried(),
            marked=p.group.marked if self._carried() else 0,
            want_uncertainty=p.group.wantUncertainty,
            leave_out=p.group.leaveOut,
        )

    def problem(self) -> str:
        """Why this group cannot be registered, a sentence; empty when it can."""
        try:
            check_group(self.request())
        except DiffeoRegError as error:
            return str(error)
        return self._mask.problem()

    def show(self, result: GroupResult) -> None:
        """The aligned frames in the slice views, ready to be played, and the numbers."""
        with slicer.util.NodeModify(self._parameters):
            self._parameters.group.browser = result.browser
            self._parameters.group.report = kept_group_numbers(result.report, result.selfCheck.sentence)
        slicer.util.setSliceViewerLayers(background=result.browser.GetProxyNode(result.aligned), fit=True)
        self.update()

    def hold_still(self) -> None:
        """Nothing plays."""
        if self._ui.groupPlayButton.checked:
            self._ui.groupPlayButton.setChecked(False)

    def _play(self, on: bool) -> None:
        browser = None if self._parameters is None else self._parameters.group.browser
        if browser is not None:
            browser.SetPlaybackActive(on)

    def _settings(self) -> Settings:
        """What of the panel's settings a group uses."""
        p, machine = self._parameters, self._services.machine
        settings = settings_from(p, method=p.group.method, device=machine.device, threads=machine.threads)
        usual = Settings()
        return settings.with_changes(
            **{name: getattr(usual, name) for name in ("padding_mm", "guidance_weight")}
        )

    def _carried(self) -> tuple[Any, ...]:
        p = self._parameters
        nodes = (*p.groupSegmentations, *p.groupLabelMaps, *p.groupMarkups)
        return tuple(node for node in nodes if node is not None)

    def _estimate(self) -> str:
        try:
            request = self.request()
            images = check_group(request).images
        except DiffeoRegError:
            return _("Shown when the images are chosen.")  # `problem` says what is wrong
        found = estimate_group(
            request.settings, images, fixed=request.fixed, want_uncertainty=request.want_uncertainty,
            storage=request.storage, device=self._device(),
        )  # fmt: skip
        return found.sentence


def _show(ui: Any, name: str, wanted: bool) -> None:
    """A control with the label of its row."""
    for widget in (getattr(ui, name), getattr(ui, f"{name}Label", None)):
        if widget is not None:
            widget.setVisible(wanted)
