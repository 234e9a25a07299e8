"""PySide6 objects that behave like PythonQt's, and refuse what PythonQt would refuse or silently ignore.

Properties are attributes, not calls; unknown attributes, signals and value types raise.
"""

from __future__ import annotations

import ctypes
import types
from collections.abc import Callable
from functools import cache, partial
from typing import Any

from PySide6 import QtCore, QtGui, QtWidgets
from shiboken6 import isValid

from Testing.slicer.bench.errors import guarded
from Testing.slicer.bench.facts import facts

MODULES = (QtWidgets, QtGui, QtCore)
# Wrapping QFile crashes the loader; the others have nothing that PythonQt treats differently.
PLAIN = (QtCore.QIODevice, QtCore.QCoreApplication, QtCore.QSettings)
# Virtual in C++ and also a property: Qt itself looks these up as methods.
ALWAYS_METHODS = frozenset({"sizeHint", "minimumSizeHint"})
# What a property of this type takes; other types are tried and refused by Qt itself.
ACCEPTED: dict[str, tuple[type, ...]] = {
    "bool": (bool, int),
    "int": (int,),
    "double": (int, float),
    "QString": (str,),
    "QStringList": (list, tuple),
}


QtType = type(QtCore.QObject)


class AdoptedType(QtType):
    """Metaclass of the strict classes of objects that C++ made: with its own, PySide6 refuses them."""


def _instance_of(cls: type, instance: Any) -> bool:
    base = cls.__dict__.get("_base")
    return type.__instancecheck__(cls, instance) if base is None else isinstance(instance, base)


def _subclass_of(cls: type, other: type) -> bool:
    base = cls.__dict__.get("_base")
    return type.__subclasscheck__(cls, other) if base is None else issubclass(other, base)


# isinstance(x, qt.QWidget) holds for every widget, although strict QLabel is no child of strict QWidget.
# A metaclass of our own would do, but takes PySide6's check for destroyed objects away.
QtType.__instancecheck__ = _instance_of
QtType.__subclasscheck__ = _subclass_of


@cache
def python_names(cls: type) -> frozenset[str]:
    """Attributes that Python classes add to the Qt class: those of the module and of the stand-ins."""
    written = [
        c
        for c in cls.__mro__
        if c not in (Strict, object)
        and "_base" not in c.__dict__
        and not c.__module__.startswith(("PySide6", "Shiboken", "shiboken"))
    ]
    return frozenset(name for c in written for name in c.__dict__)


def is_stand_in(cls: type) -> bool:
    """Whether the class plays a C++ class (strict), rather than being written by the module under test."""
    return "_base" in cls.__dict__ or cls.__dict__.get("_stand_in", False)


def signals(owner: QtCore.QObject) -> tuple[str, ...]:
    """Signatures of all signals, those with MRML types first."""
    return facts(type(owner)).signals


def _normalised(signature: str) -> str:
    return bytes(QtCore.QMetaObject.normalizedSignature(signature)).decode()


def _checked_signal(owner: QtCore.QObject, signature: str) -> str:
    wanted = _normalised(signature)
    if wanted not in signals(owner):
        raise ValueError(
            f"{class_name(owner)} has no signal {signature!r}; it has {', '.join(sorted(signals(owner)))}"
        )
    return wanted


def _attach(owner: QtCore.QObject, signature: str, call: Callable[..., None], how: str) -> None:
    """Connect or disconnect one callable."""
    private = getattr(type(owner), "_mrml_signals", {}).get(signature)
    if private:
        getattr(getattr(owner, private), how)(call)
    else:
        getattr(QtCore.QObject, how)(owner, QtCore.SIGNAL(signature), call)


def connect(owner: QtCore.QObject, signature: str, receiver: Any, slot: str | None = None) -> bool:
    """PythonQt's connect: a signature that the class has, and a callable (or an object and its slot)."""
    signature = _checked_signal(owner, signature)
    target = getattr(receiver, slot.split("(")[0]) if slot else receiver
    if not callable(target):
        raise TypeError(f"connect({signature!r}) needs something to call, not {target!r}")
    call = guarded(f"{class_name(owner)}.{signature}", target, adopt)
    owner.__dict__.setdefault("_links", []).append((signature, target, call))
    _attach(owner, signature, call, "connect")
    return True


def disconnect(owner: QtCore.QObject, signature: str, receiver: Any = None, slot: str | None = None) -> bool:
    """Undo connect; False when there was nothing to undo."""
    signature = _checked_signal(owner, signature)
    target = getattr(receiver, slot.split("(")[0]) if slot else receiver
    links = owner.__dict__.setdefault("_links", [])
    gone = [link for link in links if link[0] == signature and (target is None or link[1] == target)]
    for link in gone:
        links.remove(link)
        _attach(owner, signature, link[2], "disconnect")
    return bool(gone)


def _private_signal(cls: type, name: str) -> str | None:
    """Where a stand-in keeps the signal that Qt cannot declare: currentNodeChanged(vtkMRMLNode*)."""
    known = getattr(cls, "_mrml_signals", {})
    return next((private for signature, private in known.items() if signature.startswith(f"{name}(")), None)


class Signal:
    """`button.clicked`: connect, disconnect, emit, or call it to emit."""

    def __init__(self, owner: QtCore.QObject, name: str, bound: Any) -> None:
        self.owner, self.bound = owner, bound
        self.signature = next(s for s in signals(owner) if s.startswith(f"{name}("))

    def connect(self, receiver: Any) -> bool:
        return connect(self.owner, self.signature, receiver)

    def disconnect(self, receiver: Any = None) -> bool:
        return disconnect(self.owner, self.signature, receiver)

    def emit(self, *arguments: Any) -> None:
        self.bound.emit(*arguments)

    __call__ = emit


class Method:
    """A C++ method: positional arguments only; what it returns is strict as well."""

    def __init__(self, bound: Callable[..., Any]) -> None:
        self.bound = bound

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        if named:
            raise TypeError(f"{self.bound.__name__} is a C++ method: it takes no named arguments")
        return adopt(self.bound(*arguments))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Method) and self.bound == other.bound

    def __hash__(self) -> int:
        return hash(self.bound.__name__)


def find_children(owner: QtCore.QObject, kind: Any = None, name: str | None = None) -> tuple[Any, ...]:
    """All descendants of a class (given as class or as its name), and of a name."""
    found = [adopt(child) for child in QtCore.QObject.findChildren(owner, QtCore.QObject)]
    if isinstance(kind, str):
        found = [child for child in found if is_a(child, kind)]
    elif kind is not None:
        found = [child for child in found if isinstance(child, kind)]
    return tuple(child for child in found if name in (None, QtCore.QObject.objectName(child)))


def is_a(child: QtCore.QObject, name: str) -> bool:
    """Whether the object's class, or one it comes from, has this name."""
    return any(c.__name__ == name for c in type(child).__mro__)


def find_child(owner: QtCore.QObject, kind: Any = None, name: str | None = None) -> Any:
    """The first of find_children, or None."""
    return next(iter(find_children(owner, kind, name)), None)


def class_name(owner: QtCore.QObject) -> str:
    """Name of the C++ class that the object is, or plays."""
    return next(c.__name__ for c in type(owner).__mro__ if is_stand_in(c))


BY_HAND: dict[str, Callable[..., Any]] = {
    "connect": connect,
    "disconnect": disconnect,
    "findChildren": find_children,
    "findChild": find_child,
    "className": class_name,
}
_reading: set[tuple[int, str]] = set()


def read_property(owner: QtCore.QObject, name: str) -> Any:
    """The value; a virtual getter that comes back here on its way meets the plain method instead."""
    key = (id(owner), name)
    _reading.add(key)
    try:
        return adopt(QtCore.QObject.property(owner, name))
    finally:
        _reading.discard(key)


def write_property(owner: QtCore.QObject, name: str, value: Any) -> None:
    """Set a property; raises AttributeError where there is none, TypeError where the value does not fit."""
    kind, writable = facts(type(owner)).properties.get(name, ("", False))
    if not writable:
        what = "read-only" if kind else "not a property"
        raise AttributeError(f"{class_name(owner)}.{name} is {what}: it cannot be assigned")
    fits = isinstance(value, ACCEPTED[kind]) if kind in ACCEPTED else True
    if kind != "bool" and isinstance(value, bool) and kind in ACCEPTED:
        fits = False
    if not fits or not QtCore.QObject.setProperty(owner, name, value):
        raise TypeError(f"{class_name(owner)}.{name} is a {kind}: it does not take {value!r}")


def _is_dead(owner: QtCore.QObject) -> bool:
    """Whether the C++ object is gone; of an adopted one PySide6 does not know it."""
    if isinstance(type(owner), AdoptedType):
        return owner.__dict__.get("_dead", False)
    return not isValid(owner)


class Strict:
    """Attribute access as in PythonQt; mixed into every class of `qt`."""

    def __init__(self, *arguments: Any, **named: Any) -> None:
        if named:
            raise TypeError(f"{type(self).__name__} is a C++ class: it takes no named arguments")
        super().__init__(*arguments)

    def __getattribute__(self, name: str) -> Any:
        get = super().__getattribute__
        if name.startswith("_") or name in get("__dict__"):
            return get(name)
        if name in python_names(type(self)):
            value = get(name)
            if isinstance(value, QtCore.SignalInstance):
                return Signal(self, name, value)
            return tuple(value) if type(value) is list and is_stand_in(type(self)) else value
        if _is_dead(self):
            raise RuntimeError(f"this {type(self).__name__} has been destroyed")
        if name in BY_HAND:
            return partial(BY_HAND[name], self)
        if name == "name":
            return QtCore.QObject.objectName(self)
        if (
            name not in ALWAYS_METHODS
            and (id(self), name) not in _reading
            and name in facts(type(self)).properties
        ):
            return read_property(self, name)
        value = get(_private_signal(type(self), name) or name)
        if isinstance(value, QtCore.SignalInstance):
            return Signal(self, name, value)
        return Method(value) if isinstance(value, types.BuiltinMethodType) else value

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "name":
            name = "objectName"
        cls = type(self)
        if name.startswith("_") or self.__dict__.get("_loading"):
            self.__dict__[name] = value  # while loading, PySide6 puts the children here
        elif name in facts(type(self)).properties or is_stand_in(cls):
            write_property(self, name, value)
        else:
            self.__dict__[name] = value


@cache
def strict_class(base: type) -> type:
    """The strict class of a PySide6 class."""
    return QtType(base.__name__, (Strict, base), {"_base": base, "__module__": "qt"})


@cache
def _adopted_class(base: type) -> type:
    """The strict class of objects that C++ made."""
    return AdoptedType(base.__name__, (Strict, base), {"_base": base, "__module__": "qt"})


def is_wrapped(base: Any) -> bool:
    """Whether PythonQt's ways differ from PySide6's for this class."""
    return isinstance(base, type) and issubclass(base, QtCore.QObject) and not issubclass(base, PLAIN)


def adopt(value: Any) -> Any:
    """Make what comes out of Qt strict: objects that C++ made, alone or in a list."""
    if isinstance(value, QtCore.QObject):
        cls = type(value)
        if cls.__module__.startswith("PySide6") and is_wrapped(cls) and not value.__dict__.get("_part"):
            notes = value.__dict__
            value.destroyed.connect(lambda: notes.update(_dead=True))
            value.__class__ = _adopted_class(cls)
            # When such an object dies, PySide6 gives back one reference to its class too many.
            ctypes.pythonapi.Py_IncRef(ctypes.py_object(value.__class__))
    elif type(value) in (list, tuple):
        return tuple(adopt(item) for item in value)  # PythonQt turns every Qt list into a tuple
    return value
