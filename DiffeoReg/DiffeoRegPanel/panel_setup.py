"""The Setup box: state of PyTorch and of the weights, and the buttons that change it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import qt
import slicer
from slicer.i18n import tr as _

from DiffeoRegLib.catalog import Card
from DiffeoRegLib.errors import Cancelled
from DiffeoRegPanel.panel_run import POLL_MS, Status, process_events
from DiffeoRegPanel.weights import Weights, licence_sentence

BUTTONS = (
    "installButton", "testButton", "downloadWeightsButton", "browseWeightsButton", "importWeightsButton",
    "clearWeightsButton",
)  # fmt: skip

LICENCE_TEXTS = "https://spdx.org/licenses/{}.html"


@dataclass
class Services:
    """What the panel asks about this computer; tests give their own.

    setup: install.Setup.  weights: weights.Weights.  machine: machine.Machine.
    estimate: (card, settings, fixed dimensions, moving dimensions) -> an object with `sentence`.
    script_for: request -> Python text.  confirm: question -> whether the user agrees.
    """

    setup: Any
    weights: Any
    machine: Any
    estimate: Callable[..., Any]
    script_for: Callable[[Any], str]
    confirm: Callable[[str], bool]


def default_services() -> Services:
    """The real ones."""
    from DiffeoRegPanel.estimate import estimate
    from DiffeoRegPanel.install import Setup
    from DiffeoRegPanel.machine import Machine
    from DiffeoRegPanel.script_group import script_for

    machine = Machine()
    confirm = slicer.util.confirmOkCancelDisplay
    return Services(Setup(), Weights(machine), machine, estimate, script_for, confirm)


class SetupSection:
    """What is installed; nothing is installed, downloaded or started before a button is pressed."""

    def __init__(
        self, ui: Any, services: Services, status: Status, probe: Callable[[], Any],
        changed: Callable[[], None],
    ) -> None:  # fmt: skip
        """probe: starts the worker's probe job, returns its run.  changed: called when things may differ."""
        self._ui, self._services, self._status = ui, services, status
        self._start_probe, self._changed = probe, changed
        self.card: Card | None = None
        self.aligner: Card | None = None
        self._probe: Any = None
        self._timer = qt.QTimer()
        self._timer.setInterval(POLL_MS)
        self._timer.connect("timeout()", self.poll)
        ui.setupLog.setVisible(False)
        for button, act in (
            (ui.installButton, self._install), (ui.testButton, self._test),
            (ui.downloadWeightsButton, self._download), (ui.importWeightsButton, self._import),
            (ui.browseWeightsButton, self._browse), (ui.clearWeightsButton, self._clear),
        ):  # fmt: skip
            button.connect("clicked()", lambda act=act: self._guarded(act))
        ui.copySetupLogButton.connect("clicked()", self._copy)
        ui.licenceCheck.connect("clicked()", self._accept)
        self.ok, self.problem, self.weights_sentence, self.device_sentence = False, "", "", ""
        self.device = "cpu"  # until the worker has said otherwise

    def update(self, card: Card | None, aligner: Card | None = None) -> None:
        """Look what is there and show it; aligner: of the network that finds the initial alignment."""
        self.card, self.aligner = card, aligner
        state = self._services.setup.state()
        weights = None if card is None else self._services.weights.state(card)
        self._ui.torchState.setText(state.sentence)
        self._ui.torchState.setToolTip("\n".join(state.details))
        self.device_sentence = state.sentence
        self.weights_sentence = "" if weights is None else weights.sentence
        self._ui.weightsState.setText(self.weights_sentence)
        self._ui.installButton.setEnabled(not state.ok)
        self._ui.testButton.setEnabled(state.ok)
        self._ui.setupLog.setVisible(bool(self._ui.setupLog.plainText))
        self._show_licences()
        found = [state.sentence] if not state.ok else [self._problem_of(one) for one in self._cards]
        self.problem = next((sentence for sentence in found if sentence), "")
        self.ok = not self.problem

    @property
    def _cards(self) -> list[Card]:
        """What needs weights, or may."""
        return [card for card in (self.card, self.aligner) if card is not None]

    def _problem_of(self, card: Card) -> str:
        """Why the weights of a card cannot be used, a sentence; empty when they can."""
        open_ones, weights = (
            self._services.weights.licences_to_accept(card),
            self._services.weights.state(card),
        )
        if open_ones:
            return licence_sentence(card, open_ones)
        return "" if weights.ok else str(weights.sentence)

    def show_open(self) -> None:
        """Closed when all is well, open when something is missing."""
        self._ui.setupSection.collapsed = self.ok

    def poll(self) -> None:
        """Take in what the probe found; called by a timer."""
        if self._probe is None:
            return
        for event in self._probe.poll():
            if event.kind == "result":
                self.record(event.result)
            elif event.kind == "error":
                self._tell(event.message)
                self._status.say(event.message)
            elif event.message:
                self._tell(event.message)
        if self._probe.finished:
            self.stop()
            self._changed()

    def record(self, found: Mapping[str, Any]) -> None:
        """Keep what the worker said about the device it computes on."""
        self._services.setup.record_probe(found)
        self.device = str((found.get("device") or {}).get("device", self.device))

    def stop(self) -> None:
        """Give up a probe under way."""
        self._timer.stop()
        self._probe = None

    def _guarded(self, act: Callable[[], None]) -> None:
        """Do what a button stands for, with the buttons off meanwhile; errors become the status sentence."""
        for name in BUTTONS:
            getattr(self._ui, name).setEnabled(False)
        try:
            act()
        except Cancelled as declined:
            self._status.say(str(declined))
        except Exception as error:  # noqa: BLE001 - shown to the user, with the traceback in the log
            self._status.failed(error)
        finally:
            for name in BUTTONS:
                getattr(self._ui, name).setEnabled(True)
            self._changed()

    def _install(self) -> None:
        self._services.setup.install(self._services.confirm, self._tell)
        self._status.say(_("Installed."))

    def _test(self) -> None:
        self._tell(_("Starting the worker..."))
        self._probe = self._start_probe()
        self._timer.start()

    def _download(self) -> None:
        self._services.weights.download(self.card, self._tell)

    def _import(self) -> None:
        file = qt.QFileDialog.getOpenFileName(self._ui.setupSection, _("Weights from another computer"))
        if file:
            taken = self._services.weights.import_offline(self.card, file)
            self._status.say(_("Imported: {files}.").format(files=", ".join(taken)))

    def _browse(self) -> None:
        start = str(self._services.machine.models_folder)
        folder = qt.QFileDialog.getExistingDirectory(self._ui.setupSection, _("Folder for weights"), start)
        if folder:
            self._services.weights.browse(folder)

    def _clear(self) -> None:
        freed = self._services.weights.clear(self.card)
        self._status.say(_("Deleted {size:.1f} MB of weights.").format(size=freed / 1e6))

    def _accept(self) -> None:
        for licence in self._open_licences():
            self._services.machine.accept_licence(licence)
        self._changed()

    def _open_licences(self) -> list[str]:
        """The licences that are still to be accepted, each once."""
        every = (self._services.weights.licences_to_accept(card) for card in self._cards)
        return list(dict.fromkeys(licence for some in every for licence in some))

    def _show_licences(self) -> None:
        """Show what is still to be accepted, with a box to tick."""
        open_ones = self._open_licences()
        self._ui.licenceCheck.setVisible(bool(open_ones))
        self._ui.licenceCheck.setChecked(False)
        self._ui.licenceCheck.setText(_("I accept: {names}").format(names=", ".join(open_ones)))
        self._ui.licenceCheck.setToolTip(
            _("Weights under this licence are only downloaded, imported or used after you have accepted it.")
            + "".join(f"\n{LICENCE_TEXTS.format(name)}" for name in open_ones)
        )

    def _tell(self, line: str) -> None:
        self._ui.setupLog.setVisible(True)
        self._ui.setupLog.appendPlainText(line)
        process_events()

    def _copy(self) -> None:
        setup = self._services.setup
        lines = [setup.log, *setup.state().details, _("To install by hand:"), setup.manual_command]
        qt.QApplication.clipboard().setText("\n".join(lines).strip())
