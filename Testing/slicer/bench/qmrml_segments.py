"""Stand-ins for the selectors of several nodes and of one segment."""

from __future__ import annotations

from typing import Any, ClassVar

import slicer
from PySide6 import QtCore, QtWidgets
from PySide6.QtCore import Property, Slot

from Testing.slicer.bench.ctk import Emits, stored
from Testing.slicer.bench.errors import guarded
from Testing.slicer.bench.qmrml import SCENE_SIGNAL, SCENE_SLOT, _OnScene, qMRMLNodeComboBox
from Testing.slicer.bench.uiloader import register

CHECKED, UNCHECKED = QtCore.Qt.CheckState.Checked, QtCore.Qt.CheckState.Unchecked


@register
class qMRMLCheckableNodeComboBox(qMRMLNodeComboBox):
    """Ticks any number of nodes."""

    _stand_in = True
    checkedNodesChanged = Emits()

    def __init__(self, *arguments: Any) -> None:
        self.__dict__["_ticked"] = []
        super().__init__(*arguments)
        palette = self._combo.palette()  # what is ticked is no placeholder, and not grey
        palette.setColor(palette.ColorRole.PlaceholderText, palette.color(palette.ColorRole.Text))
        self._combo.setPalette(palette)

    def _show_current(self) -> None:
        """The names of the ticked nodes, where a plain selector shows the chosen one."""
        names = [node.GetName() for node in self.checkedNodes()]
        self._combo.setPlaceholderText(", ".join(names) or "None")
        self._combo.setCurrentIndex(-1)

    def _refresh(self) -> None:
        known = [node.GetID() for node in self._nodes()]
        kept = [node_id for node_id in self._ticked if node_id in known]
        changed, self._ticked = kept != self._ticked, kept
        super()._refresh()
        if changed:
            self.checkedNodesChanged.emit()

    def _chosen(self, index: int) -> None:
        node = self._scene.GetNodeByID(self._combo.itemData(index) or "")
        if node is not None:
            self.setCheckState(node, UNCHECKED if node.GetID() in self._ticked else CHECKED)

    @Slot()
    def checkedNodes(self) -> tuple[Any, ...]:
        return tuple(node for node in self._nodes() if node.GetID() in self._ticked)

    @Slot()
    def uncheckedNodes(self) -> tuple[Any, ...]:
        return tuple(node for node in self._nodes() if node.GetID() not in self._ticked)

    @Slot(object)
    def checkState(self, node: Any) -> Any:
        return CHECKED if node.GetID() in self._ticked else UNCHECKED

    @Slot(object, QtCore.Qt.CheckState)
    def setCheckState(self, node: Any, state: Any) -> None:
        if not isinstance(node, slicer.vtkMRMLNode):
            raise TypeError(f"setCheckState takes a node, not {node!r}")
        if state not in (CHECKED, UNCHECKED):
            raise TypeError(f"setCheckState takes qt.Qt.Checked or qt.Qt.Unchecked, not {state!r}")
        if not any(node is listed for listed in self._nodes()) or self.checkState(node) == state:
            return
        if state == CHECKED:
            self._ticked = [*self._ticked, node.GetID()]
        else:
            self._ticked = [node_id for node_id in self._ticked if node_id != node.GetID()]
        self._show_current()
        self.checkedNodesChanged.emit()


@register
class qMRMLSegmentSelectorWidget(_OnScene):
    """Chooses a segmentation, and one of its segments (several with multiSelection)."""

    _stand_in = True
    _mrml_signals: ClassVar = {**SCENE_SIGNAL, "currentNodeChanged(vtkMRMLNode*)": "_node_changed"}
    _mrml_slots = (SCENE_SLOT, "setCurrentNode(vtkMRMLNode*)")
    _node_changed = Emits(object)
    currentSegmentChanged = Emits(str)
    segmentSelectionChanged = Emits("QStringList")
    noneEnabled = stored(bool, "noneEnabled", False)
    multiSelection = stored(bool, "multiSelection", False)

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._selected: list[str] = []
        self._watched: tuple[Any, list[int]] = (None, [])
        self._nodes, self._segments = qMRMLNodeComboBox(), QtWidgets.QComboBox()
        self._nodes.noneEnabled, self._nodes.addEnabled = True, False
        self._nodes.nodeTypes = ["vtkMRMLSegmentationNode"]
        self._row(self._nodes, self._segments)
        self._nodes.connect("currentNodeChanged(vtkMRMLNode*)", self._on_node)
        self._segments.activated.connect(
            lambda index: self.setSelectedSegmentIDs([self._segments.itemData(index)])
        )

    def _refresh(self) -> None:
        self._nodes.setMRMLScene(self._scene)

    def _on_node(self, node: Any) -> None:
        watched, tags = self._watched
        for tag in tags:
            watched.GetSegmentation().RemoveObserver(tag)
        self._watched = (None, [])
        if node is not None:
            inside = node.GetSegmentation()
            changed = guarded("qMRMLSegmentSelectorWidget", self._fill)
            events = (inside.SegmentAdded, inside.SegmentRemoved, inside.SegmentModified)
            self._watched = (node, [inside.AddObserver(event, lambda *_: changed()) for event in events])
        self.setSelectedSegmentIDs([])
        self._fill()
        self._node_changed.emit(node)

    def _fill(self) -> None:
        self._segments.clear()
        for segment_id in self._known():
            segment = self.currentNode().GetSegmentation().GetSegment(segment_id)
            self._segments.addItem(segment.GetName(), segment_id)
        self.setSelectedSegmentIDs([key for key in self._selected if key in self._known()])
        self._segments.setCurrentIndex(self._segments.findData(self.currentSegmentID()))

    def _known(self) -> list[str]:
        node = self.currentNode()
        return list(node.GetSegmentation().GetSegmentIDs()) if node is not None else []

    @Slot()
    def currentNode(self) -> Any:
        return self._nodes.currentNode()

    @Slot()
    def currentNodeID(self) -> str:
        return self._nodes.currentNodeID

    @Slot(object)
    def setCurrentNode(self, node: Any) -> None:
        self._nodes.setCurrentNode(node)

    @Slot(str)
    def setCurrentNodeID(self, node_id: str) -> None:
        self._nodes.setCurrentNodeID(node_id)

    @Slot()
    def currentSegmentID(self) -> str:
        return self._selected[0] if self._selected else ""

    @Slot(str)
    def setCurrentSegmentID(self, segment_id: str) -> None:
        self.setSelectedSegmentIDs([segment_id] if segment_id else [])

    @Slot()
    def selectedSegmentIDs(self) -> tuple[str, ...]:
        return tuple(self._selected)

    @Slot("QStringList")
    def setSelectedSegmentIDs(self, ids: Any) -> None:
        wanted = [key for key in ids if key in self._known()]
        wanted = wanted if self.multiSelection else wanted[:1]
        if wanted == self._selected:
            return
        before, self._selected = self.currentSegmentID(), wanted
        self._segments.setCurrentIndex(self._segments.findData(self.currentSegmentID()))
        if self.currentSegmentID() != before:
            self.currentSegmentChanged.emit(self.currentSegmentID())
        self.segmentSelectionChanged.emit(wanted)

    def _show_nodes(self, shown: bool) -> None:
        QtWidgets.QWidget.setVisible(self._nodes, shown)

    segmentationNodeSelectorVisible = Property(
        bool, lambda self: not QtWidgets.QWidget.isHidden(self._nodes), _show_nodes
    )
