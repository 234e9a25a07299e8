"""`@parameterNodeWrapper`: a class of typed parameters around a vtkMRMLScriptedModuleNode."""

from __future__ import annotations

from typing import Any

import slicer
import vtk

from .annotations import Default
from .connectors import connector_for
from .packs import Field, NodeStore, fields_of, parameter, refuse_unknown, resolve

SlicerParameterNamePropertyName = "SlicerParameterName"


def isParameterNodeWrapper(thing: Any) -> bool:
    """Whether a class or an object wraps a parameter node."""
    return getattr(thing, "_is_wrapper", False)


def _bound_widgets(gui: Any) -> dict[str, Any]:
    """Parameter name -> widget: of a widget's children, or of a namespace of widgets."""
    if hasattr(gui, "isWidgetType"):
        import qt

        widgets = gui.findChildren(qt.QWidget)
    else:
        widgets = gui.__dict__.values()
    bound = {}
    for widget in widgets:
        name = widget.property(SlicerParameterNamePropertyName) if hasattr(widget, "property") else None
        if name:
            if name in bound:
                raise ValueError(f"two widgets are bound to {name}")
            bound[name] = widget
    return bound


class _Wrapper:
    """What the decorator adds to a class."""

    _is_wrapper = True

    def __init__(self, parameterNode: Any, prefix: str | None = None) -> None:
        if not isinstance(parameterNode, slicer.vtkMRMLScriptedModuleNode):
            raise TypeError(f"a parameter node is a vtkMRMLScriptedModuleNode, not {parameterNode!r}")
        object.__setattr__(self, "parameterNode", parameterNode)
        self._guis: dict[int, tuple[dict[str, Any], int]] = {}
        self._busy = False
        changing = parameterNode.StartModify()
        self._store = NodeStore(parameterNode, self._fields, prefix or "")
        parameterNode.EndModify(changing)

    def default(self, name: str) -> Default:
        """The default of a parameter, in its `value`."""
        return Default(self._field(name).first())

    def dataType(self, name: str) -> Any:
        """The type of a parameter."""
        return self._field(name).type

    def getValue(self, name: str) -> Any:
        """The value of a parameter, of a pack's by a dotted name."""
        return getattr(*resolve(self, name))

    def setValue(self, name: str, value: Any) -> None:
        """Set a parameter, a pack's by a dotted name."""
        setattr(*resolve(self, name), value)

    def _field(self, name: str) -> Field:
        owner, last = resolve(self, name)
        return owner._fields[last]

    def connectGui(self, gui: Any) -> int:
        """Bind every widget with the dynamic property SlicerParameterName; the tag is for disconnectGui."""
        return self.connectParametersToGui(_bound_widgets(gui))

    def connectParametersToGui(self, mapping: dict[str, Any]) -> int:
        """Bind widgets by parameter name."""
        connectors = {name: connector_for(widget, self._field(name)) for name, widget in mapping.items()}
        tag = max(self._guis, default=0) + 1
        for name, connector in connectors.items():
            connector.write(self.getValue(name))
            connector.start(lambda name=name, connector=connector: self._from_gui(name, connector))
        observer = self.parameterNode.AddObserver(vtk.vtkCommand.ModifiedEvent, lambda *_: self._to_gui())
        self._guis[tag] = (connectors, observer)
        return tag

    def disconnectGui(self, tag: int) -> None:
        """Undo connectGui."""
        connectors, observer = self._guis.pop(tag)
        self.parameterNode.RemoveObserver(observer)
        for connector in connectors.values():
            connector.stop()

    def _from_gui(self, name: str, connector: Any) -> None:
        if not self._busy:
            self.setValue(name, connector.read())

    def _to_gui(self) -> None:
        if self._busy:
            return
        self._busy = True
        try:
            for connectors, _ in list(self._guis.values()):
                for name, connector in connectors.items():
                    connector.write(self.getValue(name))
        finally:
            self._busy = False

    def StartModify(self) -> int:
        return self.parameterNode.StartModify()

    def EndModify(self, changing: int) -> int:
        return self.parameterNode.EndModify(changing)

    def Modified(self) -> None:
        self.parameterNode.Modified()

    def AddObserver(self, event: Any, callback: Any, priority: float = 0.0) -> int:
        return self.parameterNode.AddObserver(event, callback, priority)

    def RemoveObserver(self, tag: int) -> None:
        self.parameterNode.RemoveObserver(tag)


def parameterNodeWrapper(cls: type | None = None) -> Any:
    """Make a class of annotated attributes a wrapper of a parameter node."""
    if cls is None:
        return parameterNodeWrapper
    fields = fields_of(cls)
    for name in fields:
        if hasattr(_Wrapper, name):
            raise ValueError(f"{name} is reserved: a parameter cannot have this name")
        setattr(cls, name, parameter(name))
    for name, value in vars(_Wrapper).items():
        if not name.startswith("__") or name == "__init__":
            setattr(cls, name, value)
    cls._fields = fields
    cls.allParameters = fields
    cls.__setattr__ = refuse_unknown
    return cls
