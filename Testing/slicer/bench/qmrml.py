"""Stand-ins for Slicer's MRML widgets, on the real scene: qMRMLWidget and the node selector.

Only properties, slots and Q_INVOKABLEs of the headers are public; `setNodeTypes` is none of them.
"""

from __future__ import annotations

from typing import Any, ClassVar

import slicer
from PySide6 import QtWidgets
from PySide6.QtCore import Property, Slot
from shiboken6 import isValid

from Testing.slicer.bench.ctk import Emits, _Composite, stored
from Testing.slicer.bench.ctk_numbers import ctkSliderWidget
from Testing.slicer.bench.errors import guarded
from Testing.slicer.bench.uiloader import register

SCENE_SLOT = "setMRMLScene(vtkMRMLScene*)"
SCENE_SIGNAL = {"mrmlSceneChanged(vtkMRMLScene*)": "_scene_changed"}


class _OnScene(_Composite):
    """Keeps a scene, and tells about changes of its nodes."""

    _stand_in = True
    _mrml_signals = SCENE_SIGNAL
    _mrml_slots = (SCENE_SLOT,)
    _scene_changed = Emits(object)

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._scene = None
        self._tags: list[int] = []

    @Slot(object)
    def setMRMLScene(self, scene: Any) -> None:
        if scene is not None and not isinstance(scene, slicer.vtkMRMLScene):
            raise TypeError(f"setMRMLScene takes a vtkMRMLScene, not {scene!r}")
        if scene is self._scene:
            return
        self._forget()
        self._scene = scene
        if scene is not None:
            self._observe(scene)
        self._refresh()
        self._scene_changed.emit(scene)

    @Slot()
    def mrmlScene(self) -> Any:
        return self._scene

    def _forget(self) -> None:
        for tag in self._tags:
            self._scene.RemoveObserver(tag)
        self._tags = []

    def _observe(self, scene: Any) -> None:
        event = slicer.vtkMRMLScene
        for code in (
            event.NodeAddedEvent,
            event.NodeRemovedEvent,
            event.EndBatchProcessEvent,
            event.EndImportEvent,
            event.EndCloseEvent,
        ):
            self._tags.append(scene.AddObserver(code, self._on_scene))

    def _on_scene(self, *_: Any) -> None:
        """The widget may be gone while the scene lives on; nothing is shown in the middle of a batch."""
        if isValid(self) and not self._scene.IsBatchProcessing():
            guarded(f"{type(self).__name__} on the scene", self._refresh)()

    def _refresh(self) -> None:
        """Nothing to show; selectors list their nodes."""


@register
class qMRMLWidget(_OnScene):
    """The top of a module's .ui file: hands its scene to every selector."""

    _stand_in = True

    def _refresh(self) -> None:
        """A plain container."""


@register
class qMRMLSliderWidget(ctkSliderWidget):
    """A slider that knows units."""

    _stand_in = True
    _mrml_slots = (SCENE_SLOT,)
    quantity = stored(str, "quantity", "")

    @Slot(object)
    def setMRMLScene(self, scene: Any) -> None:
        self._scene = scene


@register
class qMRMLNodeComboBox(_OnScene):
    """Chooses a node of the scene; never by itself. A node that it does not list clears the choice."""

    _stand_in = True
    _mrml_signals: ClassVar = {
        **SCENE_SIGNAL,
        "currentNodeChanged(vtkMRMLNode*)": "_node_changed",
        "currentNodeChanged(bool)": "_has_node",
        "nodeActivated(vtkMRMLNode*)": "_node_activated",
        "nodeAddedByUserAction(vtkMRMLNode*)": "_node_added_by_user",
    }
    _mrml_slots = (SCENE_SLOT, "setCurrentNode(vtkMRMLNode*)")
    _node_changed = Emits(object)
    _node_activated = Emits(object)
    _node_added_by_user = Emits(object)
    _has_node = Emits(bool)
    currentNodeIDChanged = Emits(str)
    baseName = stored(str, "baseName", "")
    editEnabled = stored(bool, "editEnabled", False)
    removeEnabled = stored(bool, "removeEnabled", True)
    renameEnabled = stored(bool, "renameEnabled", False)
    selectNodeUponCreation = stored(bool, "selectNodeUponCreation", True)
    interactionNodeSingletonTag = stored(str, "interactionNodeSingletonTag", "")

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._filters: list[tuple[str, str, Any]] = []
        self._labels: dict[str, str] = {}
        self._current_id = ""
        self._combo = QtWidgets.QComboBox()
        self._combo.setSizePolicy(QtWidgets.QSizePolicy.Policy.Expanding, QtWidgets.QSizePolicy.Policy.Fixed)
        self._combo.setSizeAdjustPolicy(
            QtWidgets.QComboBox.SizeAdjustPolicy.AdjustToMinimumContentsLengthWithIcon
        )
        self._combo.setMinimumContentsLength(8)
        self._row(self._combo)
        self._combo.activated.connect(self._chosen)

    _defaults: ClassVar[dict[str, Any]] = {}

    def _setting(kind: Any, name: str, default: Any, kept: dict[str, Any] = _defaults) -> Any:  # noqa: N805 - used in the class body only
        """A property that changes what is listed."""
        kept[name] = default

        def put(self: Any, value: Any) -> None:
            self.__dict__[f"_{name}"] = value
            self._refresh()

        return Property(kind, lambda self: self.__dict__.get(f"_{name}", default), put)

    noneEnabled = _setting(bool, "noneEnabled", False)
    noneDisplay = _setting(str, "noneDisplay", "None")
    addEnabled = _setting(bool, "addEnabled", True)
    showHidden = _setting(bool, "showHidden", False)
    showChildNodeTypes = _setting(bool, "showChildNodeTypes", True)
    hideChildNodeTypes = _setting("QStringList", "hideChildNodeTypes", [])
    nodeTypes = _setting("QStringList", "nodeTypes", [])
    del _setting

    def _given(self, name: str) -> Any:
        """A setting, read past its property.

        For a widget on its way out PySide6 has once handed out the Property itself in place of its value.
        """
        return self.__dict__.get(f"_{name}", self._defaults[name])

    def _lists(self, node: Any) -> bool:
        if node is None or (node.GetHideFromEditors() and not self._given("showHidden")):
            return False
        kinds = self._given("nodeTypes")
        exact = node.GetClassName() in kinds
        child = self._given("showChildNodeTypes") and any(node.IsA(kind) for kind in kinds)
        hidden = any(node.IsA(kind) for kind in self._given("hideChildNodeTypes")) and not exact
        return (exact or child) and not hidden and self._passes(node)

    def _passes(self, node: Any) -> bool:
        """Attributes that nodes of a class must have, with this value where one is asked for."""
        for kind, name, value in self._filters:
            found = node.GetAttribute(name)
            if node.IsA(kind) and (found is None or (value is not None and found != str(value))):
                return False
        return True

    def _nodes(self) -> list[Any]:
        if self._scene is None:
            return []
        nodes = (self._scene.GetNthNode(i) for i in range(self._scene.GetNumberOfNodes()))
        return [node for node in nodes if self._lists(node)]

    def _refresh(self) -> None:
        nodes = self._nodes()
        self._fill(nodes)
        if self._current_id and self._current_id not in [node.GetID() for node in nodes]:
            self._select("")
        self._show_current()

    def _fill(self, nodes: list[Any]) -> None:
        self._combo.clear()
        if self._given("noneEnabled"):
            self._combo.addItem(self._given("noneDisplay"), "")
        for node in nodes:
            self._combo.addItem(node.GetName() or "", node.GetID())
        if self._given("addEnabled"):
            for kind in self._given("nodeTypes"):
                self._combo.addItem(f"Create new {self.nodeTypeLabel(kind)}", f"new:{kind}")

    def _label(self, kind: str) -> str:
        node = self._scene.CreateNodeByClass(kind) if self._scene else None
        if node is None:
            return kind
        node.UnRegister(None)
        return node.GetNodeTagName()

    def _show_current(self) -> None:
        self._combo.setCurrentIndex(self._combo.findData(self._current_id))

    def _select(self, node_id: str) -> None:
        if node_id == self._current_id:
            return
        self._current_id = node_id
        self._show_current()
        self._node_changed.emit(self.currentNode())
        self._has_node.emit(bool(node_id))
        self.currentNodeIDChanged.emit(node_id)

    def _chosen(self, index: int) -> None:
        """What the user picked: a node, none, or a new one."""
        data = self._combo.itemData(index) or ""
        if data.startswith("new:"):
            self._create(data.removeprefix("new:"))
        else:
            self._select(data)
        self._node_activated.emit(self.currentNode())

    def _create(self, kind: str) -> Any:
        name = self._scene.GenerateUniqueName(self.baseName or self._label(kind))
        node = self._scene.AddNewNodeByClass(kind, name)
        self._refresh()
        if self.selectNodeUponCreation:
            self._select(node.GetID())
        self._node_added_by_user.emit(node)
        return node

    @Slot()
    def currentNode(self) -> Any:
        return self._scene.GetNodeByID(self._current_id) if self._scene and self._current_id else None

    @Slot(object)
    def setCurrentNode(self, node: Any) -> None:
        if node is not None and not isinstance(node, slicer.vtkMRMLNode):
            raise TypeError(f"setCurrentNode takes a node, not {node!r}")
        known = node is not None and any(node is listed for listed in self._nodes())
        self._select(node.GetID() if known else "")

    @Slot(str)
    def setCurrentNodeID(self, node_id: str) -> None:
        self.setCurrentNode(self._scene.GetNodeByID(node_id) if self._scene and node_id else None)

    @Slot()
    @Slot(str)
    def addNode(self, kind: str = "") -> Any:
        return self._create(kind or self.nodeTypes[0])

    @Slot(int)
    def setCurrentNodeIndex(self, index: int) -> None:
        self.setCurrentNode(self.nodeFromIndex(index))

    @Slot(int)
    def nodeFromIndex(self, index: int) -> Any:
        nodes = self._nodes()
        return nodes[index] if 0 <= index < len(nodes) else None

    @Slot()
    def nodeCount(self) -> int:
        return len(self._nodes())

    @Slot(str, str, object)
    def addAttribute(self, kind: str, name: str, value: Any = None) -> None:
        self._filters.append((kind, name, value))
        self._refresh()

    @Slot(str, str)
    def removeAttribute(self, kind: str, name: str) -> None:
        self._filters = [entry for entry in self._filters if entry[:2] != (kind, name)]
        self._refresh()

    @Slot(str, str)
    def setNodeTypeLabel(self, label: str, kind: str) -> None:
        self._labels[kind] = label
        self._refresh()

    @Slot(str)
    def nodeTypeLabel(self, kind: str) -> str:
        return self._labels.get(kind) or self._label(kind)

    @Slot()
    def removeCurrentNode(self) -> None:
        self._scene.RemoveNode(self.currentNode())

    currentNodeID = Property(str, lambda self: self._current_id, setCurrentNodeID)
