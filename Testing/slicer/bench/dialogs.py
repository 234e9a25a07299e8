"""Windows that would wait for a person: answered from a list prepared by the test, and remembered."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from PySide6 import QtCore, QtWidgets

from Testing.slicer.bench.strict import strict_class


@dataclass(frozen=True)
class Message:
    """One window that the module opened: which kind, its title and its text."""

    kind: str
    title: str
    text: str
    details: str = ""


@dataclass
class Person:
    """Who sits before the screen: what was shown to them, and what they will answer, in order."""

    messages: list[Message] = field(default_factory=list)
    answers: list[Any] = field(default_factory=list)
    opened: list[str] = field(default_factory=list)

    def reset(self) -> None:
        """Nothing shown, nothing to say."""
        for notes in (self.messages, self.answers, self.opened):
            notes.clear()

    def answer(self, message: Message, default: Any = None) -> Any:
        """The next prepared answer; `default` if the window asks nothing; otherwise the test forgot one."""
        self.messages.append(message)
        if self.answers and default is None:
            return self.answers.pop(0)
        if default is None:
            raise AssertionError(
                f"Nobody is there to answer: {message}. Put the answer into bench.person.answers."
            )
        return default


person = Person()
_Box = QtWidgets.QMessageBox
_Button = _Box.StandardButton
_KINDS = {
    _Box.Icon.Information: "information",
    _Box.Icon.Warning: "warning",
    _Box.Icon.Critical: "critical",
    _Box.Icon.Question: "question",
    _Box.Icon.NoIcon: "message",
}


def _only_choice(buttons: Any) -> Any:
    """The button, where there is one at most to press."""
    return _Button.Ok if buttons in (_Button.Ok, _Button.NoButton) else None


def _static(kind: str, usual: Any) -> staticmethod:
    def show(parent: Any, title: str, text: str, buttons: Any = usual, default: Any = None) -> Any:
        return person.answer(Message(kind, title, text), _only_choice(buttons))

    return staticmethod(show)


class QMessageBox(strict_class(_Box)):
    """Never shown: exec() notes the text and returns the prepared answer."""

    _stand_in = True
    information = _static("information", _Button.Ok)
    warning = _static("warning", _Button.Ok)
    critical = _static("critical", _Button.Ok)
    question = _static("question", _Button.Yes | _Button.No)

    def exec_(self) -> Any:
        kind = _KINDS[_Box.icon(self)]
        message = Message(kind, _Box.windowTitle(self), _Box.text(self), _Box.detailedText(self))
        return person.answer(message, _only_choice(_Box.standardButtons(self)))

    exec = exec_


class QDialog(strict_class(QtWidgets.QDialog)):
    """A dialog whose exec() is a callable answer (called with the dialog), or a plain result."""

    _stand_in = True

    def exec_(self) -> Any:
        labels = self.findChildren(QtWidgets.QLabel)
        text = "\n".join(QtWidgets.QLabel.text(label) for label in labels)
        answer = person.answer(Message("dialog", QtWidgets.QDialog.windowTitle(self), text))
        return answer(self) if isinstance(answer, Callable) else answer

    exec = exec_


class QFileDialog(strict_class(QtWidgets.QFileDialog)):
    """Gives the path that the test prepared."""

    _stand_in = True


class QInputDialog(strict_class(QtWidgets.QInputDialog)):
    """Gives the text or number that the test prepared."""

    _stand_in = True


def _chooser(kind: str) -> staticmethod:
    def choose(parent: Any = None, title: str = "", *arguments: Any) -> Any:
        return person.answer(Message(kind, title, str(arguments)))

    return staticmethod(choose)


for _name in ("getOpenFileName", "getOpenFileNames", "getSaveFileName", "getExistingDirectory"):
    setattr(QFileDialog, _name, _chooser(_name))
for _name in ("getText", "getInt", "getDouble", "getItem", "getMultiLineText"):
    setattr(QInputDialog, _name, _chooser(_name))


class QDesktopServices:
    """Opens nothing; remembers what it was asked to open in `person.opened`."""

    @staticmethod
    def openUrl(url: QtCore.QUrl) -> bool:
        person.opened.append(url.toString())
        return True
