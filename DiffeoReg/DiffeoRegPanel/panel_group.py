"""The group part of the panel: a sequence or several volumes, where they go, what is carried along."""

from __future__ import annotations

from typing import Any

import slicer
from slicer.i18n import tr as _

from DiffeoRegLib.errors import DiffeoRegError
from DiffeoRegLib.settings import Settings
from DiffeoRegPanel.estimate_group import memory_mb
from DiffeoRegPanel.group import GroupRequest, GroupResult, check_group
from DiffeoRegPanel.panel_choices import CheckedNodes, ChoiceBox
from DiffeoRegPanel.panel_model import megabytes

CHOICES = {
    "modeCombo": ("mode", [("pair", _("A pair of volumes")), ("group", _("A group or a sequence"))]),
    "groupTargetCombo": ("group.target", [("middle", _("The middle of all")), ("frame", _("One frame"))]),
}  # fmt: skip
CHECKED = {
    "groupVolumes": (("vtkMRMLScalarVolumeNode", "groupVolumes"),),
    "groupCarry": (
        ("vtkMRMLSegmentationNode", "groupSegmentations"), ("vtkMRMLLabelMapVolumeNode", "groupLabelMaps"),
        ("vtkMRMLMarkupsNode", "groupMarkups"),
    ),
}  # fmt: skip
OF_GROUPS = (
    "groupSeries", "groupVolumes", "groupTargetCombo", "groupFrameSpin", "groupCarry", "groupMarkedSpin",
    "groupUncertainty", "groupPlayButton",
)  # fmt: skip
OF_PAIRS = (
    "fixedSelector", "movingSelector", "initialSelector", "methodCombo", "methodUse", "masksSection",
    "outputsSection",
)  # fmt: skip


class GroupSection:
    """The choice between a pair and a group, and what a group needs instead of a pair."""

    def __init__(self, ui: Any, services: Any) -> None:
        self._ui, self._services = ui, services
        self._parameters: Any = None
        self._parts: list[Any] = [ChoiceBox(getattr(ui, name), *what) for name, what in CHOICES.items()]
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
        self._ui.flowSection.setVisible(False)
        _show(self._ui, "groupVolumes", p.group.series is None)
        _show(self._ui, "groupFrameSpin", p.group.target == "frame")
        _show(self._ui, "groupMarkedSpin", bool(self._carried()))
        _show(self._ui, "groupPlayButton", p.group.browser is not None)
        self._ui.estimateText.setText(self._estimate())

    def request(self) -> GroupRequest:
        """What Apply asks for; raises SettingsError and UnknownNameError for settings that cannot be used."""
        p, machine = self._parameters, self._services.machine
        advanced = p.advanced
        settings = Settings(
            method="svf", preset=p.model.preset, effort=p.model.effort, init=advanced.init,
            similarity=advanced.similarity or None, working_spacing_mm=advanced.workingSpacing or None,
            interpolation=advanced.interpolation, memory_limit_gb=advanced.memoryLimit or None,
            device=machine.device, threads=machine.threads,
        )  # fmt: skip
        volumes = tuple(node for node in p.groupVolumes if node is not None)
        return GroupRequest(
            images=p.group.series if p.group.series is not None else volumes or None,
            settings=settings,
            fixed=p.group.frame if p.group.target == "frame" else None,
            carried=self._carried(),
            marked=p.group.marked if self._carried() else 0,
            want_uncertainty=p.group.wantUncertainty,
        )

    def problem(self) -> str:
        """Why this group cannot be registered, a sentence; empty when it can."""
        try:
            check_group(self.request())
        except DiffeoRegError as error:
            return str(error)
        return ""

    def show(self, result: GroupResult) -> None:
        """The aligned frames in the slice views, ready to be played."""
        self._parameters.group.browser = result.browser
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
        largest = max(images, key=lambda image: image.array.size)
        spacing = [float(sum(x * x for x in axis) ** 0.5) for axis in largest.world_from_voxel[:3, :3].T]
        needed = memory_mb(request.settings, len(images), largest.array.shape, spacing)
        return _("{count} images; about {size} of memory (estimate).").format(
            count=len(images), size=megabytes(needed)
        )


def _show(ui: Any, name: str, wanted: bool) -> None:
    """A control with the label of its row."""
    for widget in (getattr(ui, name), getattr(ui, f"{name}Label", None)):
        if widget is not None:
            widget.setVisible(wanted)
