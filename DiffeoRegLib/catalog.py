"""The cards of the methods: what each is for, needs and gives. No torch: panel and command build on this."""

from __future__ import annotations

from dataclasses import dataclass

from DiffeoRegLib.errors import UnknownNameError


@dataclass(frozen=True)
class Card:
    """What a method needs and what it can give; panel, command and console are built from it.

    needs_*: inputs without which it does not run.  citation: printed in the report of every run that used it.
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
    weights: tuple[str, ...] = ()
    deformable: bool = True


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
