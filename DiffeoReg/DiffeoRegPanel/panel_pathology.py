"""The pathology part of the panel: marks on either volume, which classes of them count, what is wrong."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import qt
import slicer
from slicer.i18n import tr as _

from DiffeoRegLib.catalog import Card
from DiffeoRegLib.errors import InputError
from DiffeoRegLib.settings import PRESETS
from DiffeoRegPanel.checks_regions import check_comparable
from DiffeoRegPanel.nodes.pathology import Seen, look_at
from DiffeoRegPanel.panel_regions import SegmentObserver, segments_of
from DiffeoRegPanel.parameters import classes_from, keep_classes, marks_from

SIDES = ("fixed", "moving")
MOST_ROWS = 5


class PathologySection:
    """Segmentation or label map of either volume, a tick for each class of it, a sentence beside it."""

    def __init__(self, ui: Any, card: Callable[[], Card | None], changed: Callable[[], None]) -> None:
        """card: of the chosen method.  changed: called when marks have changed."""
        self._ui, self._card, self._changed = ui, card, changed
        self._sides = {side: _Side(ui, side, self._refresh) for side in SIDES}
        self._parameters: Any = None

    def bind(self, parameters: Any) -> None:
        """Show these parameters from now on; None disconnects."""
        self._parameters = parameters
        for side in self._sides.values():
            side.bind(parameters)
        self.update()

    def update(self) -> None:
        """Show the classes there are and those that count, and look at the marks where they are used."""
        if self._parameters is None:
            return
        used = self._used
        seen = [side.update(used) for side in self._sides.values()]
        nothing = all(one.empty for one in seen)
        self._ui.pathologyState.setText(nothing_text() if nothing else "")
        self._ui.pathologyState.setVisible(used and nothing)

    def problem(self) -> str:
        """A sentence when the marks cannot be used, else empty."""
        card, p = self._card(), self._parameters
        if p is None or card is None or not self._used:
            return ""
        seen = [side.seen for side in self._sides.values()]
        found = next((one.problem for one in seen if one.problem), "")
        preset = PRESETS.get(p.model.preset)
        if found or preset is None or all(one.empty for one in seen):
            return found
        try:
            check_comparable(card, p.advanced.similarity or preset.similarity)
        except InputError as error:
            return str(error)
        return ""

    @property
    def _used(self) -> bool:
        card = self._card()
        return card is not None and card.needs_pathology_mask

    def _refresh(self) -> None:
        self.update()
        self._changed()


def nothing_text() -> str:
    """What a run without marks does."""
    return _(
        "Nothing is marked: both volumes are taken for healthy, and a lesion that one of them shows draws "
        "the result towards it."
    )


class _Side:
    """Marks of one of the volumes; the node itself is bound by Slicer."""

    def __init__(self, ui: Any, side: str, changed: Callable[[], None]) -> None:
        self._side, self._changed = side, changed
        prefix = f"pathology{side.capitalize()}"
        self._node, self._list = getattr(ui, f"{prefix}Node"), getattr(ui, f"{prefix}Classes")
        self._state = getattr(ui, f"{prefix}State")
        self._parameters: Any = None
        self._listed: list[tuple[str, str]] = []
        self._known: tuple[Any, list[tuple[str, str]]] = (None, [])
        self._looked: Any = None
        self._observed = SegmentObserver(changed)
        self.seen = Seen(empty=True)
        self._node.connect("currentNodeChanged(vtkMRMLNode*)", self._node_chosen)
        self._list.connect("itemChanged(QListWidgetItem*)", self._ticked)

    @property
    def _choice(self) -> Any:
        return self._parameters.getValue(f"pathology.{self._side}")

    def bind(self, parameters: Any) -> None:
        self._parameters, self._looked = parameters, None
        if parameters is None:
            self._observed.follow(None)

    def update(self, used: bool) -> Seen:
        """What there is to say; looked at again only when something has changed."""
        node = self._choice.node
        self._observed.follow(node)
        self._show(self._classes_of(node) if used and node is not None else [])
        self.seen = self._look() if used else Seen(empty=True)
        sentence = self.seen.problem or self.seen.note
        self._state.setText(sentence)
        self._state.setVisible(bool(sentence))
        return self.seen

    def _classes_of(self, node: Any) -> list[tuple[str, str]]:
        """Counted once: a large label map takes time, and every change of any parameter comes here."""
        if node.IsA("vtkMRMLSegmentationNode"):  # names may change, and voxels are not looked at
            return segments_of(node)
        now = _version(node)
        if self._known[0] != now:
            self._known = (now, segments_of(node))
        return self._known[1]

    def _show(self, classes: list[tuple[str, str]]) -> None:
        """A tick for every class; of one class there is nothing to choose."""
        chosen, everything = classes_from(self._choice), not self._choice.classes
        was_blocked = self._list.blockSignals(True)
        if classes != self._listed:
            self._listed = classes
            self._list.clear()
            for _key, name in classes:
                self._list.addItem(name)
            if classes:
                self._list.setFixedHeight(6 + self._list.sizeHintForRow(0) * min(len(classes), MOST_ROWS))
        for row, (key, _name) in enumerate(classes):
            counts = everything or key in chosen
            self._list.item(row).setCheckState(qt.Qt.Checked if counts else qt.Qt.Unchecked)
        self._list.blockSignals(was_blocked)
        self._list.setVisible(len(classes) > 1)

    def _look(self) -> Seen:
        volume, choice = self._parameters.getValue(self._side), self._choice
        region = getattr(marks_from(self._parameters.pathology), self._side)
        if region is None:
            return Seen(empty=True)
        if choice.classes and not region.classes:
            return Seen(_("Tick at least one class of '{name}'.").format(name=region.node.GetName()))
        if volume is None or volume.GetImageData() is None:
            return Seen()
        now = (_version(region.node), region.classes, _version(volume))
        if self._looked is None or self._looked[0] != now:
            self._looked = (now, look_at(region, volume))
        seen: Seen = self._looked[1]
        return seen

    def _node_chosen(self, _node: Any = None) -> None:
        """Another node has other classes: all of them count; a scene that is read brings its own choice."""
        if self._parameters is None or slicer.mrmlScene.IsBatchProcessing():
            return
        there = {key for key, _name in segments_of(self._node.currentNode())}
        if not there.issuperset(classes_from(self._choice)):
            keep_classes(self._choice, None)

    def _ticked(self, _item: Any) -> None:
        if self._parameters is None:
            return
        rows = range(len(self._listed))
        ticked = [self._list.item(row).checkState() == qt.Qt.Checked for row in rows]
        kept = [key for (key, _name), on in zip(self._listed, ticked, strict=True) if on]
        keep_classes(self._choice, None if all(ticked) else kept)


def _version(node: Any) -> tuple[Any, ...]:
    """Changes whenever voxels, segments or the place of a node do."""
    if node.IsA("vtkMRMLSegmentationNode"):
        inside = node.GetSegmentation()
        segments = [inside.GetNthSegment(n) for n in range(inside.GetNumberOfSegments())]
        images = [segment.GetRepresentation("Binary labelmap") for segment in segments]
        content = (len(segments), *(0 if image is None else image.GetMTime() for image in images))
    else:
        content = (node.GetMTime(), 0 if node.GetImageData() is None else node.GetImageData().GetMTime())
    parent = node.GetParentTransformNode()
    return node.GetID(), content, None if parent is None else (parent.GetID(), parent.GetMTime())
