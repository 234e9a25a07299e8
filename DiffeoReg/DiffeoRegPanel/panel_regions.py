"""Parts of the panel that choose segments, and a stiffness for each."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import qt
import slicer
from slicer.i18n import tr as _

from DiffeoRegLib.errors import SettingsError
from DiffeoRegLib.stiffness import STIFFNESS, shares_of, stiffness_of
from DiffeoRegPanel.parameters import keep_stiffness, kernels_of, stiffness_from
from DiffeoRegPanel.request import NORMAL

REST_KEY = ""
"""Stands for everything that lies in no region; no segment has an empty ID."""
MOST_ROWS = 6
REGION_WIDTH = 130
"""Pixels: the longest name of our own fits in one line."""
SEGMENT_EVENTS = ("SegmentAdded", "SegmentRemoved", "SegmentModified")


def segments_of(node: Any) -> list[tuple[str, str]]:
    """(ID, name) of the segments of a segmentation; (value, name) of the labels of a label map."""
    if node is None:
        return []
    if node.IsA("vtkMRMLSegmentationNode"):
        segmentation = node.GetSegmentation()
        return [(i, segmentation.GetSegment(i).GetName()) for i in segmentation.GetSegmentIDs()]
    if node.GetImageData() is None:
        return []
    voxels = slicer.util.arrayFromVolume(node)
    values = [int(value) for value in _values(voxels) if value != 0]
    return [(str(value), _label_name(node, value)) for value in values]


def _values(voxels: Any) -> Any:
    """The values there are, in order; counting is 20 times faster than sorting millions of voxels."""
    if voxels.dtype.kind in "iu" and voxels.min() >= 0 and voxels.max() < 2**20:
        return np.flatnonzero(np.bincount(voxels.ravel()))
    return np.unique(voxels)


def _label_name(node: Any, value: int) -> str:
    display = node.GetDisplayNode()
    colors = None if display is None else display.GetColorNode()
    name = None if colors is None else colors.GetColorName(value)
    return f"{value}: {name}" if name else str(value)


class RegionSelector:
    """One segment, or all, of the segmentation chosen beside it; the node itself is bound by Slicer."""

    def __init__(self, ui: Any, prefix: str, name: str) -> None:
        """prefix: of the widgets.  name: of the RegionChoice parameter."""
        self._node = getattr(ui, f"{prefix}Node")
        self._segment = getattr(ui, f"{prefix}Segment")
        self._which = getattr(ui, f"{prefix}Which")
        self._exclude = getattr(ui, f"{prefix}Exclude", None)
        self.name = name
        self._parameters: Any = None
        self._observed = SegmentObserver(self.update)
        self._listed: list[tuple[str, str]] | None = None
        self._node.connect("currentNodeChanged(vtkMRMLNode*)", self._node_chosen)
        self._segment.connect("currentIndexChanged(int)", self._segment_chosen)

    def bind(self, parameters: Any) -> None:
        """Show these parameters from now on; None disconnects."""
        self._parameters = parameters
        if parameters is None:
            self._observed.follow(None)
        self.update()

    def update(self) -> None:
        """Show the segments of the node and the one chosen."""
        if self._parameters is None:
            return
        choice = self._parameters.getValue(self.name)
        node = choice.node
        self._observed.follow(node)
        several = node is not None and node.IsA("vtkMRMLSegmentationNode")
        was_blocked = self._segment.blockSignals(True)
        self._list(node, segments_of(node) if several else [])
        self._segment.setCurrentIndex(self._segment.findData(choice.segment))
        self._segment.blockSignals(was_blocked)
        self._segment.setVisible(several)
        self._which.setVisible(node is not None and (several or self._exclude is not None))

    def problem(self) -> str:
        """A sentence when the chosen segment is gone, else empty."""
        choice = self._parameters.getValue(self.name)
        node = choice.node
        if node is None or not choice.segment or choice.segment in dict(segments_of(node)):
            return ""
        return _("The chosen segment is no longer in '{name}': choose another one.").format(
            name=node.GetName()
        )

    def _list(self, node: Any, segments: list[tuple[str, str]]) -> None:
        entries = [("", _("All segments")), *segments]
        if entries == self._listed:
            return
        self._listed = entries
        self._segment.clear()
        for identifier, text in entries:
            self._segment.addItem(text, identifier)

    def _node_chosen(self, _node: Any = None) -> None:
        if self._parameters is None:
            return
        choice = self._parameters.getValue(self.name)
        if choice.segment and choice.segment not in dict(segments_of(self._node.currentNode())):
            choice.segment = ""

    def _segment_chosen(self, index: int) -> None:
        if self._parameters is not None and index >= 0:
            self._parameters.setValue(f"{self.name}.segment", self._segment.itemData(index))


class SegmentObserver:
    """Calls back when segments of the followed node are added, removed or renamed."""

    def __init__(self, changed: Callable[[], None]) -> None:
        self._changed = changed
        self._segmentation: Any = None
        self._tags: list[int] = []

    def follow(self, node: Any) -> None:
        """Follow this node only; None, or a label map: nothing."""
        several = node is not None and node.IsA("vtkMRMLSegmentationNode")
        segmentation = node.GetSegmentation() if several else None
        if segmentation is self._segmentation:
            return
        for tag in self._tags:
            self._segmentation.RemoveObserver(tag)
        self._segmentation, self._tags = segmentation, []
        if segmentation is not None:
            events = (getattr(slicer.vtkSegmentation, event) for event in SEGMENT_EVENTS)
            self._tags = [segmentation.AddObserver(event, self._happened) for event in events]

    def _happened(self, _caller: Any, _event: Any) -> None:
        self._changed()


class StiffnessTable:
    """A row per region, and one for everything else: its name, and a named stiffness or shares of kernels."""

    def __init__(self, table: Any, changed: Callable[[], None]) -> None:
        self._table, self._changed = table, changed
        self._parameters: Any = None
        self._rows: list[Row] = []
        self._observed = SegmentObserver(self._refill)
        self._node: Any = None
        table.setColumnCount(2)
        table.setHorizontalHeaderLabels([_("Region"), _("Stiffness")])
        table.setColumnWidth(0, REGION_WIDTH)
        table.verticalHeader().setVisible(False)
        table.horizontalHeader().setStretchLastSection(True)

    def bind(self, parameters: Any) -> None:
        """Show these parameters from now on; None disconnects."""
        self._parameters = parameters
        self._node = None
        self._observed.follow(None)
        self.update()

    def update(self) -> None:
        """Show the regions and their stiffness."""
        if self._parameters is None:
            return
        node = self._parameters.regions.node
        if node is not self._node:
            self._node = node
            self._observed.follow(node)
            self._refill()
        for row in self._rows:
            text = self._stored(row.key)
            if row.box.currentText != text:
                was_blocked = row.box.blockSignals(True)
                row.box.setEditText(text)
                row.box.blockSignals(was_blocked)

    def problem(self) -> str:
        """A sentence when a stiffness cannot be used, else empty."""
        try:
            kernels = kernels_of(self._parameters)
        except SettingsError:
            return ""  # the widths of the kernels are to be put right first; the model section says so
        for row in self._rows:
            try:
                shares_of(stiffness_of(row.box.currentText), kernels)
            except SettingsError as error:
                return f"{row.name}: {error}"
        return ""

    def _refill(self) -> None:
        segments = segments_of(self._node)
        names = [*segments, *([] if self._node is None else [(REST_KEY, _("Everything else"))])]
        self._table.setRowCount(len(names))
        self._rows = [self._row(number, *segment) for number, segment in enumerate(names)]
        self._table.setFixedHeight(34 + 30 * min(max(len(names), 1), MOST_ROWS))

    def _row(self, number: int, key: str, name: str) -> Row:
        item = qt.QTableWidgetItem(name)
        item.setFlags(qt.Qt.ItemIsEnabled)
        self._table.setItem(number, 0, item)
        box = qt.QComboBox()
        box.setEditable(True)
        box.setToolTip(self._table.toolTip)
        for text in STIFFNESS:
            box.addItem(text)
        box.setEditText(self._stored(key))
        box.connect("editTextChanged(QString)", self._edited)
        self._table.setCellWidget(number, 1, box)
        return Row(key, name or key, box)

    def _stored(self, key: str) -> str:
        if key == REST_KEY:
            return str(self._parameters.rest)
        return stiffness_from(self._parameters).get(key, NORMAL)

    def _edited(self, _text: str) -> None:
        """Keep what can be understood; the rest is said, and forgotten with the panel."""
        if not self.problem():
            texts = {row.key: row.box.currentText.strip() for row in self._rows}
            self._parameters.rest = texts.pop(REST_KEY)
            keep_stiffness(self._parameters, texts)
        self._changed()


class Row(NamedTuple):
    """One line of the table: segment ID or label value, its name, and the box with the stiffness."""

    key: str
    name: str
    box: Any
