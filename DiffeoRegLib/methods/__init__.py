"""Registration methods, one file per published method."""

from __future__ import annotations

from DiffeoRegLib.errors import UnknownNameError
from DiffeoRegLib.methods.base import Method
from DiffeoRegLib.methods.svf import StationaryVelocity

METHODS: dict[str, type[Method]] = {"svf": StationaryVelocity}


def method_named(name: str) -> Method:
    """The deformable method of a card; raises UnknownNameError."""
    if name not in METHODS:
        raise UnknownNameError("deformable method", name, METHODS)
    return METHODS[name]()
