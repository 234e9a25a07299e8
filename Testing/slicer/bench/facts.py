"""What Qt's meta objects say of the classes."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

from PySide6 import QtCore


@dataclass(frozen=True)
class Facts:
    """What Qt says of a class: property -> (type, writable), signatures of signals and of slots."""

    properties: dict[str, tuple[str, bool]]
    signals: tuple[str, ...]
    slots: tuple[str, ...]


@cache
def facts(cls: type) -> Facts:
    """The class's facts, asked once: PySide6 lets a meta object die with the object that was asked for it."""
    meta = cls.__dict__.get("_base", cls).staticMetaObject
    properties = [meta.property(index) for index in range(meta.propertyCount())]
    methods = [meta.method(index) for index in range(meta.methodCount())]
    kinds = QtCore.QMetaMethod.MethodType
    signals, slots = (
        tuple(bytes(m.methodSignature()).decode() for m in methods if m.methodType() == kind)
        for kind in (kinds.Signal, kinds.Slot)
    )
    known = tuple(getattr(cls, "_mrml_signals", {}))
    return Facts(
        {entry.name(): (entry.typeName(), entry.isWritable()) for entry in properties},
        known + tuple(name for name in signals if not name.startswith("_")),
        tuple(getattr(cls, "_mrml_slots", ())) + slots,
    )
