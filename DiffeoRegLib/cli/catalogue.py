"""What `diffeoreg methods` says about methods and trained models."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Iterator

from DiffeoRegLib.catalog import Card, Measured

INDENT, WIDTH = " " * 4, 100


def method_lines(cards: Iterable[Card]) -> list[str]:
    """Methods, then trained models with what they ask for, as lines of text."""
    known = list(cards)
    plain = [card for card in known if not card.weights]
    models = [card for card in known if card.weights]
    lines = ["methods (--method)"]
    width = max((len(card.name) for card in plain), default=0)
    for card in plain:
        lines += [f"  {card.name:{width}}  {card.title}", f"  {'':{width}}  {card.use}"]
    if models:
        lines += ["", "trained models (--method)"]
        lines += [line for card in models for line in model_lines(card)]
    return lines


def model_lines(card: Card) -> Iterator[str]:
    """One trained model: what it is for, its weights, licences, voxel size and measured cost."""
    yield f"  {card.name}"
    yield f"{INDENT}{card.title}, version {card.version}. {card.use}"
    for weight in card.weights:
        where = "comes with DiffeoReg" if weight.shipped else f"fetched from {weight.url}"
        accept = "" if weight.permissive else f"; needs --accept-licence {weight.licence}"
        size = f"{weight.size_bytes / 1e6:.3g} MB"
        yield f"{INDENT}weights   {weight.file}, {size}, {weight.licence}{accept}; {where}"
    trained = f"{INDENT}trained   on {card.training_data} ({card.training_licence})"
    yield from textwrap.wrap(trained, WIDTH, subsequent_indent=f"{INDENT}{'':10}")
    yield f"{INDENT}images    {card.modality}, {card.anatomy}; {_spacing(card)}"
    yield f"{INDENT}cost      {_cost(card.measured)}"


def _spacing(card: Card) -> str:
    sizes = card.spacing_mm or ()
    same = len(set(sizes)) == 1
    size = f"{sizes[0]:g}" if same else " x ".join(f"{s:g}" for s in sizes)
    return f"works at voxels of {size} mm"


def _cost(measured: Measured | None) -> str:
    if measured is None:
        return "not measured"
    cores = {0: "", 1: "one core of "}.get(measured.cores, f"{measured.cores} cores of ")
    return (
        f"{measured.seconds:.3g} s and {measured.memory_mb:.0f} MB for {measured.voxels / 1e6:.3g} million "
        f"voxels, both directions, {cores}{measured.machine}"
    )
