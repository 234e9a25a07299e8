"""Every way to register that the results page compares: all methods of the catalogue, and the peers.

A way is a method with a setting: a trained network alone (`network`) or with iterations after it (`refined`),
an optimisation with its effort.  What cannot run on a set of pairs says why in one sentence.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from DiffeoRegLib.cards import Card
from DiffeoRegLib.catalog import CARDS

PAIR_SETS = ("brain", "tumour", "lung", "liver", "abdomen", "multimodal", "hippocampus")
EFFORTS = {"svf": ("balanced", "fast", "accurate")}
"""Of the optimisations; those that are not named run as they are by default."""
PEERS = {
    "greedy": "NCC 2x2x2, 100x50x10; NMI between modalities",
    "ants-syn": "SyNOnly: mutual information, 40x20x0",
    "elastix": "default B-spline",
    "demons": "diffeomorphic, levels 8-4-2-1",
    "convexadam": "MIND, defaults",
    "fireants": "greedy scheme, scales 4-2, Adam",
}
DIFFEOMORPHIC_PEERS = ("greedy", "ants-syn", "demons", "fireants")
ANATOMY = {
    "affine-brain-t1": ("brain", "tumour"),
    "sitreg-brain-t1": ("brain", "tumour"),
    "tvf-brain-t1": ("brain",),
    "tvf-lddmm-brain-t1": ("brain",),
    "metaregnet-brain-t1": ("tumour",),
    "sitreg-any-contrast": ("brain", "multimodal"),
    "vsvf-hippocampus": ("hippocampus",),
    "lddmm-hippocampus": ("hippocampus",),
    "rdmm-hippocampus": ("hippocampus",),
    "metaregnet-brain-2d": (),
    "metamorphosis": ("tumour",),
    "rdmm-regions": ("brain",),
}
"""Where a method makes sense; one that is not named is for every pair."""


@dataclass(frozen=True)
class Way:
    """A method, how it is set, and where it runs.  flags: of our command; empty for a peer.

    reason: why it is not run; empty = it is.
    """

    method: str
    setting: str
    device: str = "cpu"
    flags: tuple[str, ...] = ()
    reason: str = ""
    peer: bool = False

    @property
    def name(self) -> str:
        """Of its rows and files."""
        device = "" if self.device == "cpu" else f"--{self.device}"
        return f"{self.method}--{self.setting}{device}".replace(" ", "-")

    @property
    def diffeomorphic(self) -> bool:
        """Ours all claim it; of the peers those that say so."""
        return not self.peer or self.method in DIFFEOMORPHIC_PEERS


def settings_of(card: Card) -> dict[str, tuple[str, ...]]:
    """The flags of a method by the setting's name.

    What only aligns finds its own start: given one, it would hand that back.
    """
    if not card.deformable:
        return {"from the headers": ("--init", "auto")}
    if card.trained:
        found: dict[str, tuple[str, ...]] = {"network": ("--effort", "fast")}
        if card.refinable:
            found["refined"] = ("--effort", "balanced")
        return found
    return {effort: ("--effort", effort) for effort in EFFORTS.get(card.name, ("balanced",))}


def why_not(card: Card, where: str, weights: Mapping[str, Path]) -> str:
    """One sentence, or nothing."""
    if card.needs_group:
        return "registers groups, not pairs: see the dynamic series"
    if card.own_weights and card.name not in weights:
        return "needs weights of your own (--weights METHOD=FILE)"
    if where not in ANATOMY.get(card.name, PAIR_SETS):
        return _not_here(card, where)
    if card.own_weights and card.name == "metaregnet" and where != "tumour":
        return "is for images of which one shows a lesion"
    return ""


def _not_here(card: Card, where: str) -> str:
    if card.spacing_mm is not None and len(card.spacing_mm) == 2:
        return "registers slices, and these are volumes"
    if card.needs_region_labels:
        return "needs regions with their stiffness, which only the brain pairs have here"
    if card.appearance_change:
        return "is for images of which one shows a lesion"
    return f"was trained for other images ({card.modality}, {card.anatomy})"


def ways_of(where: str, *, cuda: bool, weights: Mapping[str, Path] | None = None) -> list[Way]:
    """All ways for a set of pairs, those that are not run too."""
    weights = weights or {}
    found = list[Way]()
    for card in CARDS.values():
        reason = why_not(card, where, weights)
        for setting, flags in settings_of(card).items():
            words = ["--method", card.name, *flags]
            for licence in card.licences_to_accept:
                words += ["--accept-licence", licence]
            if card.name in weights:
                words += ["--weights", str(weights[card.name])]
            found.append(Way(card.name, setting, "cpu", tuple(words), reason))
            on_gpu = reason or ("" if cuda else "no CUDA device on this machine")
            found.append(Way(card.name, setting, "cuda", (*words, "--device", "cuda"), on_gpu))
    found += [Way(name, "default", peer=True) for name in PEERS]
    return found
