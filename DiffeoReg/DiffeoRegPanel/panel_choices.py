"""Combo boxes and lists of the panel that Slicer's own binding does not cover."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import qt
from slicer.i18n import tr as _

from DiffeoRegLib.catalog import AFFINE_NETWORK, CARDS
from DiffeoRegLib.errors import DiffeoRegError
from DiffeoRegLib.settings import INIT_NETWORK, PRESETS

Choices = Sequence[tuple[str, str]]


def methods() -> Choices:
    """The methods that register a pair, with weights there are; titles without brackets, to fit the panel."""
    offered = {name: card for name, card in CARDS.items() if not (card.needs_group or card.own_weights)}
    return [(name, card.title.partition(" (")[0]) for name, card in offered.items()]


def group_methods() -> Choices:
    """The methods that register a group: one search, and the trained ones there are."""
    offered = {name: card for name, card in CARDS.items() if card.needs_group and not card.own_weights}
    return [("svf", _("Search (SVF)")), *((name, card.title) for name, card in offered.items())]


def alignments() -> Choices:
    """The trained networks that find an initial alignment, with weights that come with DiffeoReg."""
    return [
        (INIT_NETWORK + name, card.title)
        for name, card in CARDS.items()
        if card.method == AFFINE_NETWORK and card.weights and all(weight.shipped for weight in card.weights)
    ]


def presets() -> Choices:
    """The presets, with their titles."""
    return [(name, preset.title) for name, preset in PRESETS.items()]


def fixed_choices() -> dict[str, tuple[str, Choices]]:
    """Combo box -> parameter, and its values with what the user reads."""
    return {
        "effortCombo": ("model.effort", [
            ("fast", _("Fast")), ("balanced", _("Balanced")), ("accurate", _("Accurate")),
        ]),
        "storageCombo": ("outputs.storage", [
            ("half", _("Half the resolution of the fixed volume")), ("full", _("Full resolution")),
        ]),
        "similarityCombo": ("advanced.similarity", [
            ("", _("As the preset says")), ("lncc", _("Local correlation")),
            ("lncc-squared", _("Local correlation, squared")),
            ("mk-lncc", _("Local correlation, several windows")), ("mse", _("Squared difference")),
            ("nmi", _("Mutual information")), ("mind", _("Local structure (MIND), multi-modal")),
        ]),
        "initCombo": ("advanced.init", [
            ("auto", _("Automatic")), ("identity", _("None: as placed in the scene")),
            ("geometry", _("Centres of the volumes")), ("mass", _("Centres of brightness")),
            ("rigid", _("Rigid")), ("affine", _("Affine")), *alignments(),
        ]),
        "largeCombo": ("advanced.largeDisplacement", [
            ("", _("As the preset says")), ("on", _("Search for it")), ("off", _("Do not search")),
        ]),
        "interpolationCombo": ("advanced.interpolation", [("linear", _("Linear")), ("cubic", _("Cubic"))]),
        "kernelUnitsCombo": ("advanced.kernelUnits", [
            ("box", _("shares of the image's sides")), ("mm", _("mm")),
        ]),
        "integratorCombo": ("advanced.integrator", [
            ("", _("As the method says")), ("rk4", _("Runge-Kutta, equal steps")),
            ("dopri5", _("Dormand-Prince, adaptive steps")),
        ]),
    }  # fmt: skip


class ChoiceBox:
    """A combo box that shows and sets one text parameter; an unknown value shows nothing selected."""

    def __init__(self, combo: Any, name: str, choices: Choices) -> None:
        self._combo, self._name = combo, name
        self._parameters: Any = None
        for value, text in choices:
            combo.addItem(text, value)
        combo.connect("currentIndexChanged(int)", self._chosen)

    def bind(self, parameters: Any) -> None:
        """Show these parameters from now on; None disconnects."""
        self._parameters = parameters
        self.update()

    def update(self) -> None:
        """Show the parameter's value."""
        if self._parameters is None:
            return
        was_blocked = self._combo.blockSignals(True)
        self._combo.setCurrentIndex(self._combo.findData(self._parameters.getValue(self._name)))
        self._combo.blockSignals(was_blocked)

    def _chosen(self, index: int) -> None:
        if self._parameters is not None and index >= 0:
            self._parameters.setValue(self._name, self._combo.itemData(index))


class MachineBox:
    """Device, threads and temporary folder: kept for this computer, not in the scene."""

    def __init__(
        self, ui: Any, machine: Any, changed: Callable[[], None], refused: Callable[[BaseException], None]
    ) -> None:  # fmt: skip
        """changed: called after a change.  refused: told of a value that cannot be used."""
        self._ui, self._machine, self._changed, self._refused = ui, machine, changed, refused
        for value, text in (
            ("auto", _("Automatic")), ("cpu", _("Processor (CPU)")),
            ("cuda", _("NVIDIA graphics card (CUDA)")), ("mps", _("Apple graphics (MPS)")),
        ):  # fmt: skip
            ui.deviceCombo.addItem(text, value)
        self.update()
        ui.deviceCombo.connect("currentIndexChanged(int)", self._device_chosen)
        ui.threadsSpin.connect("valueChanged(int)", self._threads_chosen)
        ui.temporaryEdit.connect("editingFinished()", self._folder_chosen)
        ui.temporaryButton.connect("clicked()", self._browse)

    def update(self) -> None:
        """Show what is stored."""
        self._ui.deviceCombo.setCurrentIndex(max(self._ui.deviceCombo.findData(self._machine.device), 0))
        self._ui.threadsSpin.setValue(self._machine.threads or 0)
        self._ui.temporaryEdit.setText(str(self._machine.temporary_folder or ""))

    def _device_chosen(self, index: int) -> None:
        self._set("device", self._ui.deviceCombo.itemData(index))

    def _threads_chosen(self, count: int) -> None:
        self._set("threads", count or None)

    def _folder_chosen(self) -> None:
        self._set("temporary_folder", self._ui.temporaryEdit.text.strip() or None)

    def _set(self, name: str, value: Any) -> None:
        try:
            setattr(self._machine, name, value)
        except DiffeoRegError as error:
            self.update()
            self._refused(error)
            return
        self._changed()

    def _browse(self) -> None:
        title = _("Folder for temporary files")
        folder = qt.QFileDialog.getExistingDirectory(
            self._ui.temporaryButton, title, self._ui.temporaryEdit.text
        )
        if folder:
            self._ui.temporaryEdit.setText(folder)
            self._folder_chosen()


class CheckedNodes:
    """A list of nodes with a tick each, kept in one or several list parameters by the class of the node."""

    def __init__(self, combo: Any, lists: Sequence[tuple[str, str]]) -> None:
        """lists: (class of the node, name of the parameter)."""
        self._combo, self._lists = combo, lists
        self._parameters: Any = None
        combo.connect("checkedNodesChanged()", self._chosen)

    def bind(self, parameters: Any) -> None:
        """Show these parameters from now on; None disconnects."""
        self._parameters = parameters
        self.update()

    def update(self) -> None:
        """Tick the nodes of the parameters."""
        if self._parameters is None:
            return
        wanted = {node.GetID(): node for node in self._stored()}
        ticked = {node.GetID(): node for node in self._combo.checkedNodes()}
        was_blocked = self._combo.blockSignals(True)
        for identifier in ticked.keys() - wanted.keys():
            self._combo.setCheckState(ticked[identifier], qt.Qt.Unchecked)
        for identifier in wanted.keys() - ticked.keys():
            self._combo.setCheckState(wanted[identifier], qt.Qt.Checked)
        self._combo.blockSignals(was_blocked)

    def _stored(self) -> list[Any]:
        nodes = [node for _class, name in self._lists for node in self._parameters.getValue(name)]
        return [node for node in nodes if node is not None]

    def _chosen(self) -> None:
        if self._parameters is None:
            return
        checked = list(self._combo.checkedNodes())
        before = {node.GetID() for node in self._stored()}
        if before == {node.GetID() for node in checked}:
            return
        for class_name, name in self._lists:
            self._parameters.setValue(name, [node for node in checked if node.IsA(class_name)])
