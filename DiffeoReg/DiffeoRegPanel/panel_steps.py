"""The time steps of the panel: what the card of the chosen model offers, and what they mean there."""

from __future__ import annotations

from typing import Any

import slicer
from slicer.i18n import tr as _

from DiffeoRegLib.catalog import Card

MOST = 1024
"""What the parameter in the scene can hold."""
Steps = tuple[bool, int]
"""Automatic or not, and the number."""


class StepsControl:
    """A tick for automatic and a number: both as the model's card has them, and kept within its range."""

    def __init__(self, ui: Any) -> None:
        self._ui = ui
        self.note = ""  # about a number that the model does not take
        self._parameters: Any = None
        self._card: Card | None = None
        self._seen: Steps = (True, 0)

    def bind(self, parameters: Any) -> None:
        """Show these parameters from now on; None disconnects."""
        self._parameters, self._card = parameters, None

    def update(self, card: Card) -> None:
        """Show what this model offers; its own number of steps where that of the last model was not changed.

        A number outside the model's range becomes the nearest one in it, and `note` says so.
        """
        if not card.time_steps:
            self._ui.stepsSpin.setEnabled(not self._parameters.flow.autoSteps)
            return
        low, high = offered(card)
        automatic, number = self._chosen()
        if self._is_left_alone(card):
            automatic, number = defaults(card, number)
        within = min(max(number, low), high)
        if within != number and not automatic:
            self.note = _("{number} time steps became {within}: '{title}' takes {range}.").format(
                number=number, within=within, title=card.title, range=range_text(card)
            )
        self._show(card, automatic, low, high)
        self._keep(automatic, within)
        self._card, self._seen = card, self._chosen()

    def _chosen(self) -> Steps:
        flow = self._parameters.flow
        return bool(flow.autoSteps), int(flow.steps)

    def _is_left_alone(self, card: Card) -> bool:
        """Whether another model was chosen, and its predecessor's own number of steps never touched."""
        if self._card is None or card is self._card or slicer.mrmlScene.IsBatchProcessing():
            return False  # a scene that is read brings its own number
        chosen = self._chosen()
        return chosen == self._seen == defaults(self._card, chosen[1])

    def _show(self, card: Card, automatic: bool, low: int, high: int) -> None:
        spin, tick, meaning = self._ui.stepsSpin, self._ui.stepsAuto, meaning_of(card)
        was_blocked = spin.blockSignals(True)  # the parameter is set once, by `_keep`
        spin.setRange(low, high)
        spin.blockSignals(was_blocked)
        tick.setEnabled(low < high)
        spin.setEnabled(low < high and not automatic)
        for widget in (self._ui.stepsRowLabel, self._ui.stepsRow, spin):
            widget.setToolTip(meaning)
        tick.setToolTip(automatic_of(card))

    def _keep(self, automatic: bool, number: int) -> None:
        flow = self._parameters.flow
        if flow.autoSteps != automatic:
            flow.autoSteps = automatic
        if flow.steps != number:
            flow.steps = number
        if self._ui.stepsSpin.value != number:
            self._ui.stepsSpin.setValue(number)


def offered(card: Card) -> tuple[int, int]:
    """First and last number of steps that the panel offers for a model."""
    low, high = card.steps_range
    return low, min(high, MOST)


def defaults(card: Card, number: int) -> Steps:
    """What a model does unless told otherwise; number: what stays behind a tick at automatic."""
    if card.steps_default == "auto":
        low, high = offered(card)
        return True, min(max(number, low), high)
    return False, card.steps_default


def range_text(card: Card) -> str:
    """`1 to 128`, or the one number there is."""
    low, high = offered(card)
    return _("{low} to {high}").format(low=low, high=high) if low < high else _("only {n}").format(n=low)


def meaning_of(card: Card) -> str:
    """What the steps of this model are, in two or three sentences."""
    if card.trained_steps:
        text = _(
            "The network predicts {n} velocities, one for each of the {n} time steps it was trained with. "
            "Another number follows the same velocities in other steps: fewer are coarser, more fold less."
        ).format(n=card.trained_steps)
    elif card.time_varying:
        text = _(
            "The network predicts one velocity for each time step it was trained with. Another number "
            "follows the same velocities in other steps: fewer are coarser, more fold less."
        )
    elif card.geodesic:
        text = _("Steps in which the geodesic is shot from its momentum. More: more exact, and more time.")
    else:
        text = _(
            "Steps in which the flow is followed from start to end, rounded up to 1, 2, 4, 8 ... "
            "More: fewer folds, a more exact inverse, more time."
        )
    return _("{text} Offered: {range}.").format(text=text, range=range_text(card))


def automatic_of(card: Card) -> str:
    """What automatic means for this model."""
    if card.trained_steps or card.time_varying:
        return _(
            "As many steps as the network was trained with, or the fewest multiple of them with which every "
            "step is one to one."
        )
    if card.geodesic:
        return _("As many steps as the motion asks for.")
    return _("As many steps as the motion needs: the smallest number that leaves no fold.")
