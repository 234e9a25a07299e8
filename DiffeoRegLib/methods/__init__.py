"""Registration methods, one file per published method."""

from __future__ import annotations

from DiffeoRegLib.catalog import CARDS
from DiffeoRegLib.errors import UnknownNameError
from DiffeoRegLib.methods.base import Method
from DiffeoRegLib.methods.sitreg import SITRegMethod
from DiffeoRegLib.methods.svf import StationaryVelocity
from DiffeoRegLib.methods.voxelmorph import VoxelMorphMethod

METHODS: dict[str, type[Method]] = {
    "sitreg": SITRegMethod,
    "svf": StationaryVelocity,
    "voxelmorph": VoxelMorphMethod,
}


def method_named(name: str) -> Method:
    """The deformable method of a card; raises UnknownNameError."""
    known = CARDS[name].method if name in CARDS else name
    if known not in METHODS:
        raise UnknownNameError("deformable method", name, METHODS)
    return METHODS[known]()
