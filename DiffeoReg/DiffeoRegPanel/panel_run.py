"""Apply and Cancel, progress, status sentence and log: one run at a time."""

from __future__ import annotations

import traceback
from collections.abc import Callable
from typing import Any

import qt
import slicer
from slicer.i18n import tr as _

from DiffeoRegLib.errors import Cancelled, DiffeoRegError

POLL_MS = 30


class Status:
    """The status sentence and the log of the panel: every message and error ends here, never in a dialog."""

    def __init__(self, ui: Any) -> None:
        self._ui = ui
        ui.copyLogButton.connect("clicked()", self._copy)

    def say(self, sentence: str) -> None:
        """Show one sentence."""
        self._ui.statusLabel.setText(sentence)

    def log(self, line: str) -> None:
        """Add one line to the log."""
        self._ui.logText.appendPlainText(line)

    def clear_log(self) -> None:
        """An empty log."""
        self._ui.logText.clear()

    def failed(self, error: BaseException) -> None:
        """Say what went wrong; what nobody foresaw goes to the log in full."""
        if isinstance(error, DiffeoRegError):
            self.say(str(error))
            self.log(str(error))
            return
        self.log("".join(traceback.format_exception(error)))
        self.say(
            _(
                "Something unexpected went wrong ({what}). The scene is as it was; "
                "copy the log below and report it."
            ).format(what=str(error) or type(error).__name__)
        )

    def _copy(self) -> None:
        qt.QApplication.clipboard().setText(self._ui.logText.toPlainText())


class RunControl:
    """The Apply button, which is the Cancel button of a run under way."""

    def __init__(
        self, ui: Any, status: Status, begin: Callable[[], Any], done: Callable[[Any], None],
        changed: Callable[[], None],
    ) -> None:  # fmt: skip
        """begin: starts a registration and returns it.  done: called with one that succeeded.

        changed: called whenever a run has begun or ended.
        """
        self._ui, self._status = ui, status
        self._begin, self._done, self._changed = begin, done, changed
        self._registration: Any = None
        self._timer = qt.QTimer()
        self._timer.setInterval(POLL_MS)
        self._timer.connect("timeout()", self.poll)
        ui.applyButton.connect("clicked()", self._pressed)
        self._show_idle()

    @property
    def running(self) -> bool:
        """Whether a run is under way."""
        return self._registration is not None

    def cancel(self, wait: bool = False) -> None:
        """Stop the run, if any; `wait` drops it at once (the scene is being closed)."""
        if self._registration is None:
            return
        self._registration.cancel()
        self._ui.applyButton.setEnabled(False)
        self._status.say(_("Cancelling..."))
        if wait:
            self._end()
            self._status.say(_("Cancelled, because the scene was closed."))

    def poll(self) -> None:
        """Take in what has happened; called by a timer."""
        registration = self._registration
        if registration is None:
            return
        try:
            for event in registration.poll():
                self._take(event)
        except Exception as error:  # noqa: BLE001 - shown to the user, with the traceback in the log
            registration.cancel()
            self._end()
            self._status.failed(error)
            return
        if self._registration is registration and registration.finished:
            self._finish(registration)

    def _pressed(self) -> None:
        if self._registration is not None:
            self.cancel()
            return
        self._status.clear_log()
        try:
            self._registration = self._begin()
        except Exception as error:  # noqa: BLE001 - shown to the user, with the traceback in the log
            self._status.failed(error)
            return
        self._ui.applyButton.setText(_("Cancel"))
        self._ui.applyButton.setToolTip(_("Stop this run; the scene stays as it is."))
        self._ui.progressBar.setValue(0)
        self._ui.progressBar.setVisible(True)
        self._status.say(_("Starting..."))
        self._timer.start()
        self._changed()

    def _take(self, event: Any) -> None:
        if event.kind == "log":
            self._status.log(event.message)
        elif event.kind == "progress":
            if event.fraction is not None:
                self._ui.progressBar.setValue(round(100 * event.fraction))
            if self._ui.applyButton.enabled:  # not while cancelling
                self._status.say(progress_sentence(event))

    def _finish(self, registration: Any) -> None:
        self._end()
        if registration.error is not None:
            self._status.failed(registration.error)
            if not isinstance(registration.error, Cancelled):
                self._add_log_of(registration)
            return
        self._add_log_of(registration)
        try:
            self._done(registration)
        except Exception as error:  # noqa: BLE001 - the nodes are there; showing them failed
            self._status.failed(error)

    def _add_log_of(self, registration: Any) -> None:
        text = getattr(registration, "log", "")
        if text:
            self._status.log(text)

    def _end(self) -> None:
        self._timer.stop()
        self._registration = None
        self._show_idle()
        self._changed()

    def _show_idle(self) -> None:
        self._ui.applyButton.setText(_("Apply"))
        self._ui.progressBar.setVisible(False)


def progress_sentence(event: Any) -> str:
    """What is being done and how long it will still take."""
    what = event.message or event.phase or _("Working")
    if event.eta_seconds is None or event.eta_seconds < 1:
        return str(what)
    return _("{what}, {time} left").format(what=what, time=duration(event.eta_seconds))


def duration(seconds: float) -> str:
    """A time as people say it: `40 s`, `3 min`, `1.5 h`."""
    if seconds < 90:
        return f"{max(round(seconds), 1)} s"
    if seconds < 5400:
        return f"{round(seconds / 60)} min"
    return f"{seconds / 3600:.1f} h"


def process_events() -> None:
    """Let the application draw, between two steps of something that blocks it."""
    slicer.app.processEvents()
