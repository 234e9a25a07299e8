"""The cards of the methods: what each is for, needs and gives. No torch: panel and command build on this."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from DiffeoRegLib.errors import SettingsError, UnknownNameError


@dataclass(frozen=True)
class WeightFile:
    """One file of trained weights.

    file: its plain name on disk.  url: where it is offered, https only.  sha256: 64 lower-case hex digits.
    permissive: the licence lets anyone use the file for anything; otherwise it has to be accepted first.
    Raises SettingsError for a name with a folder in it, another scheme than https, a check sum of another
    form, or a size that is not positive.
    """

    file: str
    url: str
    sha256: str
    size_bytes: int
    licence: str
    permissive: bool

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.+-]*", self.file):
            raise SettingsError(f"A weight file needs a plain file name, not '{self.file}'.")
        if not self.url.startswith("https://"):
            raise SettingsError(f"'{self.file}' is offered at '{self.url}': only https addresses are used.")
        if not re.fullmatch(r"[0-9a-f]{64}", self.sha256):
            raise SettingsError(f"'{self.file}' needs a SHA-256 check sum of 64 lower-case hex digits.")
        if self.size_bytes <= 0:
            raise SettingsError(f"'{self.file}' needs a size above 0 bytes, not {self.size_bytes}.")


@dataclass(frozen=True)
class Card:
    """What a method needs and what it can give; panel, command and console are built from it.

    needs_*: inputs without which it does not run.  citation: printed in the report of every run that used it.
    time_steps: it has a flow whose number of steps can be chosen, within `steps_range` (first and last
    number worth offering) or as `steps_default`.
    refinable: iterations and regularity of the instance optimisation can be set.
    weights: files without which it does not run; empty for a method that was not trained.
    """

    name: str
    title: str
    use: str
    citation: str
    licence: str = "Apache-2.0"
    needs_pathology_mask: bool = False
    needs_region_labels: bool = False
    needs_group: bool = False
    time_steps: bool = True
    symmetric: bool = False
    appearance_change: bool = False
    uncertainty: bool = False
    refinable: bool = True
    weights: tuple[WeightFile, ...] = ()
    deformable: bool = True
    steps_range: tuple[int, int] = (1, 128)
    steps_default: int | Literal["auto"] = "auto"

    @property
    def download_bytes(self) -> int:
        """Size of all its weights together, bytes."""
        return sum(weight.size_bytes for weight in self.weights)

    @property
    def licences_to_accept(self) -> tuple[str, ...]:
        """Licences of its weights that have to be accepted before they are fetched, each once."""
        return tuple(dict.fromkeys(weight.licence for weight in self.weights if not weight.permissive))


CARDS: dict[str, Card] = {
    card.name: card
    for card in (
        Card(
            name="affine",
            title="Rigid and affine alignment",
            use="Only rotation, translation, scale and shear; also the start of every other method.",
            citation="Multi-start rigid and affine registration on a resolution pyramid (DiffeoReg).",
            time_steps=False,
            refinable=False,
            deformable=False,
        ),
        Card(
            name="svf",
            title="Stationary velocity field (instance optimisation)",
            use="Any pair, no training: symmetric, diffeomorphic, exact inverse.",
            citation=(
                "Arsigny V, Commowick O, Pennec X, Ayache N. A log-Euclidean framework for statistics on "
                "diffeomorphisms. MICCAI 2006; Avants BB et al. Symmetric diffeomorphic image registration "
                "with cross-correlation. Med Image Anal 2008;12:26-41."
            ),
            symmetric=True,
        ),
    )
}


def card(name: str) -> Card:
    """The card of a method; raises UnknownNameError with the names there are."""
    if name not in CARDS:
        raise UnknownNameError("method", name, CARDS)
    return CARDS[name]
