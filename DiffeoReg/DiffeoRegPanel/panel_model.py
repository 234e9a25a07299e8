"""The model part of the panel: what the chosen method is, and only the controls it uses."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from slicer.i18n import tr as _

from DiffeoRegLib.catalog import CARDS, Card
from DiffeoRegLib.errors import DiffeoRegError, InputError
from DiffeoRegLib.settings import INIT_NETWORK, PRESETS, Settings
from DiffeoRegPanel.checks_images import check_model
from DiffeoRegPanel.panel_choices import ChoiceBox, fixed_choices, methods, presets
from DiffeoRegPanel.panel_steps import StepsControl
from DiffeoRegPanel.parameters import dense_iterations_of, own_kernels, settings_from

# Widget (with the label of its row, if it has one) -> whether a method uses it.
USED_BY: dict[str, Callable[[Card], bool]] = {
    "pathologyGroup": lambda card: card.needs_pathology_mask,
    "regionsGroup": lambda card: card.needs_region_labels,
    "guidanceGroup": lambda card: card.deformable,
    "flowSection": lambda card: card.time_steps or card.refinable or card.deformable,
    "stepsRow": lambda card: card.time_steps,
    "refinementSpin": dense_iterations_of,
    "regularitySlider": lambda card: card.deformable,
    "wantVelocity": lambda card: card.time_steps,
    "wantJacobian": lambda card: card.deformable,
    "storageCombo": lambda card: card.deformable,
    "storageSize": lambda card: card.deformable,
    "wantRegulariser": lambda card: card.geodesic,
    # Neither a network nor the descent from rest of a regulariser of kernels searches first.
    "largeCombo": lambda card: card.deformable and not card.trained and not card.kernels,
    "windowSpin": lambda card: card.deformable,
    "guidanceWeightSpin": lambda card: card.deformable,
    "kernelWidthsEdit": own_kernels,
    "kernelUnitsCombo": own_kernels,
    "kernelWeightsEdit": lambda card: own_kernels(card) and not card.needs_region_labels,
    "integratorCombo": lambda card: card.geodesic,
    "modelWeights": lambda card: bool(card.weights),
    "weightsState": lambda card: bool(card.weights),
    "weightsButtons": lambda card: any(not weight.shipped for weight in card.weights),
}


class ModelSection:
    """Method, preset and effort, what they are for, and which controls of the panel the method uses."""

    def __init__(self, ui: Any, services: Any) -> None:
        self._ui, self._services = ui, services
        self._steps = StepsControl(ui)
        self._parameters: Any = None
        self._kind = "cpu"
        self._boxes = [ChoiceBox(getattr(ui, name), *what) for name, what in fixed_choices().items()]
        self._boxes += [
            ChoiceBox(ui.methodCombo, "model.method", methods()),
            ChoiceBox(ui.presetCombo, "model.preset", presets()),
        ]

    @property
    def card(self) -> Card | None:
        """The chosen method's card; None when this version does not have the method."""
        if self._parameters is None:
            return None
        p = self._parameters
        return CARDS.get(p.group.method if p.mode == "group" else p.model.method)

    @property
    def aligner(self) -> Card | None:
        """The card of the network chosen for the initial alignment; None where there is none."""
        init = "" if self._parameters is None else self._parameters.advanced.init
        return CARDS.get(init.removeprefix(INIT_NETWORK)) if init.startswith(INIT_NETWORK) else None

    def bind(self, parameters: Any) -> None:
        """Show these parameters from now on; None disconnects."""
        self._parameters = parameters
        for box in self._boxes:
            box.bind(parameters)
        self._steps.bind(parameters)
        self.update()

    def update(self) -> None:
        """Show what is chosen."""
        if self._parameters is None:
            return
        for box in self._boxes:
            box.update()
        self._ui.inverseSelector.setEnabled(self._parameters.outputs.wantInverse)
        self._ui.volumeSelector.setEnabled(self._parameters.outputs.wantVolume)
        preset = PRESETS.get(self._parameters.model.preset)
        self._ui.presetUse.setText(preset.use if preset else "")
        card = self.card
        self._ui.methodUse.setText(card.use if card else "")
        self._ui.licenceText.setText(licence_text(card) if card else "")
        if card is None:
            return
        show_only_used(self._ui, card)
        self._steps.update(card)
        if self._parameters.mode != "group":
            self._estimate(card)

    def take_note(self) -> str:
        """A sentence about a choice that the method did not take and that was changed; once, else empty."""
        note, self._steps.note = self._steps.note, ""
        return note

    def show_state(self, weights: str, device: str, kind: str) -> None:
        """What the Setup box found: sentences on weights and device, and the kind of device."""
        self._kind = kind
        self._ui.modelWeights.setText(weights)
        self._ui.deviceText.setText(device)

    def problem(self) -> str:
        """A sentence when the method, the preset or a setting cannot be used, else empty."""
        parameters = self._parameters
        try:
            self._settings()
        except DiffeoRegError as error:
            return str(error)
        card = self.card
        if card is not None and card.needs_group:
            return _("'{title}' registers a group of volumes, not a pair: choose another method.").format(
                title=card.title
            )
        if card is not None and card.own_weights:
            return _("'{title}' is used from Python (settings={{'weights': file}}): choose another.").format(
                title=card.title
            )
        pair = (parameters.fixed, parameters.moving)
        if card is not None and None not in map(dimensions_of, pair):
            try:
                check_model(card, *pair)
            except InputError as error:
                return str(error)
        if card is not None and card.needs_region_labels and parameters.regions.node is None:
            return _("This method needs regions: choose a segmentation under 'Masks and segmentations'.")
        return ""

    def _settings(self) -> Settings:
        machine = self._services.machine
        return settings_from(self._parameters, device=machine.device, threads=machine.threads)

    def _estimate(self, card: Card) -> None:
        fixed, moving = (dimensions_of(node) for node in (self._parameters.fixed, self._parameters.moving))
        try:
            settings = self._settings()
        except DiffeoRegError:
            settings = None  # `problem` says it
        if fixed is None or moving is None or settings is None:
            self._ui.estimateText.setText(_("Shown when both volumes are chosen."))
            self._ui.storageSize.setVisible(False)
            return
        found = self._services.estimate(
            card, settings, fixed, self._parameters.fixed.GetSpacing(), moving, self.device,
            has_initial=self._parameters.initial is not None, storage=self._parameters.outputs.storage,
            want_inverse=self._parameters.outputs.wantInverse,
        )  # fmt: skip
        self._ui.estimateText.setText(found.sentence)
        size = megabytes(found.transform_mb)
        self._ui.storageSize.setText(_("Transforms: at most {size}.").format(size=size))

    @property
    def device(self) -> str:
        """What the run will compute on, as far as it is known before the worker has been asked."""
        chosen = str(self._services.machine.device)
        return (self._kind if chosen == "auto" else chosen).partition(":")[0]


def licence_text(card: Card) -> str:
    """The licences of a method: its own, and for a trained one those of its weights and training data."""
    if not card.weights:
        return card.licence
    names = ", ".join(dict.fromkeys(weight.licence for weight in card.weights))
    return _("Weights: {names}. Trained on {data} ({licence}).").format(
        names=names, data=card.training_data, licence=card.training_licence
    )


def show_only_used(ui: Any, card: Card) -> None:
    """Show the controls that the method of this card uses, and hide the others with their labels."""
    for name, used in USED_BY.items():
        for widget in (getattr(ui, name), getattr(ui, f"{name}Label", None)):
            if widget is not None:
                widget.setVisible(used(card))


def dimensions_of(node: Any) -> tuple[int, int, int] | None:
    """Voxels along i, j, k; None without a volume or without voxels."""
    if node is None or node.GetImageData() is None:
        return None
    i, j, k = node.GetImageData().GetDimensions()
    return int(i), int(j), int(k)


def megabytes(size_mb: float) -> str:
    """A size as people read it: `0.4 MB`, `25 MB`, `1.3 GB`."""
    if size_mb < 0.1:
        return _("less than 0.1 MB")
    if size_mb >= 1000:
        return f"{size_mb / 1000:.1f} GB"
    return f"{size_mb:.0f} MB" if size_mb >= 10 else f"{size_mb:.1f} MB"
