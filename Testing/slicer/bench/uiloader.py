"""`qt.QUiLoader`, strict: a .ui file with an unknown class, property, signal or slot is refused.

Qt's own loader drops what it does not know without a word, and so would Slicer.
"""

from __future__ import annotations

from typing import Any
from xml.etree import ElementTree

from PySide6 import QtCore, QtUiTools, QtWidgets

from Testing.slicer.bench import strict

# Known to the loader only: Designer's own spellings.
EXTRA_PROPERTIES = {"toolTip", "statusTip", "whatsThis", "windowTitle", "buttonGroup", "comment"}
# On items of tables, trees and combo boxes, and on columns and rows: no object has these.
ITEM_TAGS = ("item", "row", "column", "layoutitem")


class UiError(RuntimeError):
    """The .ui file names something that does not exist."""


_stand_ins: dict[str, type] = {}


def register(cls: type) -> type:
    """Offer a stand-in of a CTK or MRML widget to the loader, under its own name."""
    _stand_ins[cls.__name__] = cls
    return cls


def class_named(name: str) -> type:
    """The class that the loader makes for this name."""
    if name in _stand_ins:
        return _stand_ins[name]
    base = getattr(QtWidgets, name, None) or {"Line": QtWidgets.QFrame}.get(name)
    if not strict.is_wrapped(base):
        raise UiError(f"the .ui file has a widget of class {name}, which neither Qt nor the bench has")
    return base


def _custom_classes(root: ElementTree.Element) -> set[str]:
    return {node.findtext("class", "") for node in root.iter("customwidget")}


def _check_widget(node: ElementTree.Element, custom: set[str]) -> None:
    name, cls = node.get("class", ""), class_named(node.get("class", ""))
    where = f"{name} '{node.get('name')}'"
    if name in _stand_ins and name not in custom:
        raise UiError(
            f"{where}: {name} is not listed under <customwidgets>; Slicer's loader would not know it"
        )
    for entry in node.findall("property"):
        if entry.get("name") in getattr(cls, "_ui_only", ()):
            node.remove(entry)  # flags of a CTK class: right in Slicer, unknown to Qt's loader
        else:
            _check_property(entry, where, cls)


def _check_property(entry: ElementTree.Element, where: str, cls: type) -> None:
    name = entry.get("name", "")
    if entry.get("stdset") == "0" or name in EXTRA_PROPERTIES:
        return
    if name == "orientation" and cls is QtWidgets.QFrame:
        return  # Designer's Line
    kind, writable = strict.facts(cls).properties.get(name, ("", False))
    if not writable:
        raise UiError(f'{where} has no property {name}; a dynamic one is written with stdset="0"')
    value = next(iter(entry)).tag
    expected = {"bool": ("bool",), "int": ("number",), "double": ("double", "number"), "QString": ("string",)}
    if value not in expected.get(kind, (value,)):
        raise UiError(f"{where}: property {name} is a {kind}, the .ui file gives a <{value}>")


def _check_names(root: ElementTree.Element) -> None:
    names = [node.get("name") for tag in ("widget", "layout", "action") for node in root.iter(tag)]
    twice = sorted({name for name in names if name and names.count(name) > 1})
    if twice:
        raise UiError(f"names used twice in the .ui file: {', '.join(twice)}")


def _check_connection(node: ElementTree.Element, classes: dict[str, type]) -> tuple[str, str, str, str]:
    sender, signal, receiver, slot = (
        node.findtext(tag, "") for tag in ("sender", "signal", "receiver", "slot")
    )
    for name in (sender, receiver):
        if name not in classes:
            raise UiError(f"a connection of the .ui file names {name}, which is not in the file")
    if signal not in strict.facts(classes[sender]).signals:
        raise UiError(f"{sender} has no signal {signal}")
    if slot not in strict.facts(classes[receiver]).slots:
        raise UiError(f"{receiver} has no slot {slot}")
    if _arguments(slot) != _arguments(signal)[: len(_arguments(slot))]:
        raise UiError(f"{sender}.{signal} cannot be connected to {receiver}.{slot}: other arguments")
    return sender, signal, receiver, slot


def _arguments(signature: str) -> list[str]:
    inside = signature[signature.index("(") + 1 : -1]
    return inside.split(",") if inside else []


def checked(text: str) -> tuple[str, list[tuple[str, str, str, str]]]:
    """The .ui text without the connections that Qt cannot make, and those; raises UiError."""
    root = ElementTree.fromstring(text)
    custom = _custom_classes(root)
    for node in root.iter("widget"):
        _check_widget(node, custom)
    _check_names(root)
    classes = {node.get("name", ""): class_named(node.get("class", "")) for node in root.iter("widget")}
    by_hand = []
    for connections in root.iter("connections"):
        for node in list(connections):
            link = _check_connection(node, classes)
            # Qt's loader cannot reach the stand-ins' Python slots by typed signature.
            if any(classes[name].__name__ in _stand_ins for name in (link[0], link[2])):
                by_hand.append(link)
                connections.remove(node)
    return ElementTree.tostring(root, encoding="unicode"), by_hand


class _Loader(QtUiTools.QUiLoader):
    """Qt's loader, making strict widgets and the stand-ins for CTK's and MRML's.

    Made in Python, so that PySide6 knows when they are destroyed; it does not of those that C++ makes.
    """

    def createWidget(self, name: str, parent: Any = None, object_name: str = "") -> Any:
        if name == "Line":
            return super().createWidget(name, parent, object_name)
        base = class_named(name)
        cls = base if name in _stand_ins else strict.strict_class(base)
        return self._named(cls(parent) if parent is not None else cls(), object_name)

    def createLayout(self, name: str, parent: Any = None, object_name: str = "") -> Any:
        cls = strict.strict_class(getattr(QtWidgets, name))
        free = isinstance(parent, QtWidgets.QWidget) and QtWidgets.QWidget.layout(parent) is None
        return self._named(cls(parent) if free else cls(), object_name)

    def _named(self, made: Any, object_name: str) -> Any:
        QtCore.QObject.setObjectName(made, object_name)
        made.__dict__["_loading"] = True
        return made


class QUiLoader:
    """Loads a .ui file into strict widgets."""

    def load(self, file: QtCore.QFile, parent: Any = None) -> Any:
        """The file's top widget; raises UiError for what does not exist."""
        text, by_hand = checked(bytes(file.readAll()).decode("utf-8"))
        device = QtCore.QBuffer()
        device.setData(text.encode("utf-8"))
        device.open(QtCore.QIODevice.OpenModeFlag.ReadOnly)
        loader = _Loader()
        widget = strict.adopt(loader.load(device, parent))
        if widget is None:
            raise UiError(f"the .ui file cannot be read: {loader.errorString()}")
        self._finish(widget, by_hand)
        return widget

    def _finish(self, widget: Any, by_hand: list[tuple[str, str, str, str]]) -> None:
        found = [widget, *strict.find_children(widget)]
        named = {QtCore.QObject.objectName(child): child for child in found}
        for child in found:
            child.__dict__.pop("_loading", None)
        for name in [key for key in widget.__dict__ if key in named]:
            del widget.__dict__[name]  # PySide6's loader puts the children there; Slicer's does not
        for sender, signal, receiver, slot in by_hand:
            strict.connect(named[sender], signal, named[receiver], slot)
        # Without Python references to them, strict children would come back as plain ones.
        widget.__dict__["_children"] = found
