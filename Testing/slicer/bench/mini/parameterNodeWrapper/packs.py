"""Fields of a class, and `@parameterPack`: several parameters under one name."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, get_type_hints

from .annotations import KNOWN, Choice, Default, find
from .kinds import kind_of


@dataclass(frozen=True)
class Field:
    """One parameter: its name, type, annotations and how it is kept (None for a pack)."""

    name: str
    type: Any
    annotations: tuple[Any, ...]
    kind: Any
    default: Any

    def check(self, value: Any) -> Any:
        """The value as it is kept; raises TypeError or ValueError."""
        if self.kind is None:
            if not isinstance(value, self.type):
                raise TypeError(f"{self.name}: {value!r} is not a {self.type.__name__}")
            return value
        try:
            value = self.kind.check(value)
            for annotation in self.annotations:
                if hasattr(annotation, "check") and value is not None:
                    annotation.check(value)
        except (TypeError, ValueError) as error:
            raise type(error)(f"{self.name}: {error}") from error
        return value

    def first(self) -> Any:
        """The default; a pack's and a container's own copy."""
        if self.kind is None:
            return self.type() if self.default is None else self.default
        return type(self.default)(self.default) if isinstance(self.default, list | dict) else self.default


def isParameterPack(thing: Any) -> bool:
    """Whether a class or an object is a parameter pack."""
    return getattr(thing, "_is_pack", False)


def fields_of(cls: type) -> dict[str, Field]:
    """The class's annotated attributes; raises TypeError for types, ValueError for defaults."""
    fields = {}
    for name, hint in get_type_hints(cls, include_extras=True).items():
        annotations = tuple(getattr(hint, "__metadata__", ()))
        base = hint.__origin__ if annotations else hint
        for annotation in annotations:
            if not isinstance(annotation, KNOWN):
                raise TypeError(f"{name}: the bench does not know the annotation {annotation!r}")
        kind = None if isParameterPack(base) else kind_of(base)
        field = Field(name, base, annotations, kind, _default(cls, name, annotations, kind))
        field.check(field.first())
        fields[name] = field
    return fields


def _default(cls: type, name: str, annotations: tuple[Any, ...], kind: Any) -> Any:
    if name in cls.__dict__:
        return cls.__dict__[name]
    if given := find(annotations, Default):
        return given.value
    if choice := find(annotations, Choice):
        return choice.choices[0]
    return None if kind is None else kind.default


class NodeStore:
    """The fields of a wrapper, or of a pack inside one, in the parameter node; names joined by dots."""

    def __init__(self, node: Any, fields: dict[str, Field], prefix: str = "") -> None:
        self.node, self.fields, self.prefix = node, fields, prefix
        self._fill({name: field.first() for name, field in fields.items()})

    def _fill(self, defaults: dict[str, Any]) -> None:
        """Keep the default of every field that the node does not hold, in packs of packs as well."""
        for name, field in self.fields.items():
            if field.kind is None:
                inner = {each: getattr(defaults[name], each) for each in field.type._fields}
                self.pack(field)._fill(inner)
            elif not self.has(name):
                self.set(name, defaults[name])

    def has(self, name: str) -> bool:
        """Whether the node holds the field."""
        field = self.fields[name]
        return True if field.kind is None else field.kind.is_in(self.node, self.prefix + name)

    def pack(self, field: Field) -> NodeStore:
        """The store of a pack inside."""
        inner = object.__new__(NodeStore)
        inner.node, inner.fields, inner.prefix = self.node, field.type._fields, f"{self.prefix}{field.name}."
        return inner

    def get(self, name: str) -> Any:
        """The field's value; a pack's changes go to the node."""
        field = self.fields[name]
        if field.kind is None:
            return field.type._on(self.pack(field))
        return field.kind.read(self.node, self.prefix + name, lambda value: self.set(name, value))

    def set(self, name: str, value: Any) -> None:
        """Keep a value."""
        field = self.fields[name]
        value = field.check(value)
        changing = self.node.StartModify()
        try:
            if field.kind is None:
                for inner in field.type._fields:
                    self.pack(field).set(inner, getattr(value, inner))
            else:
                field.kind.write(self.node, self.prefix + name, value)
        finally:
            self.node.EndModify(changing)


class DictStore:
    """The fields of a pack that belongs to nobody yet."""

    def __init__(self, fields: dict[str, Field]) -> None:
        self.fields, self.values = fields, {name: field.first() for name, field in fields.items()}

    def get(self, name: str) -> Any:
        return self.values[name]

    def set(self, name: str, value: Any) -> None:
        self.values[name] = self.fields[name].check(value)


def parameter(name: str) -> property:
    """An attribute kept in the object's store."""
    return property(lambda self: self._store.get(name), lambda self, value: self._store.set(name, value))


def resolve(owner: Any, path: str) -> tuple[Any, str]:
    """The object and the field that a dotted name means; raises ValueError if there is none."""
    *packs, name = path.split(".")
    for part in packs:
        if part not in owner._fields:
            raise ValueError(f"no parameter {path}")
        owner = getattr(owner, part)
    if not hasattr(owner, "_fields") or name not in owner._fields:
        raise ValueError(f"no parameter {path}")
    return owner, name


def refuse_unknown(self: Any, name: str, value: Any) -> None:
    """Assigning a misspelt parameter would be lost in the scene: an error."""
    if not name.startswith("_") and name not in self._fields and not hasattr(type(self), name):
        raise AttributeError(f"{type(self).__name__} has no parameter {name}")
    object.__setattr__(self, name, value)


def _init(self: Any, *values: Any, **named: Any) -> None:
    object.__setattr__(self, "_store", DictStore(self._fields))
    if len(values) > len(self._fields):
        raise ValueError(f"{type(self).__name__} has {len(self._fields)} parameters")
    for name, value in {**dict(zip(list(self._fields)[: len(values)], values, strict=True)), **named}.items():
        setattr(self, name, value)


def _on(cls: type, store: NodeStore) -> Any:
    pack = object.__new__(cls)
    object.__setattr__(pack, "_store", store)
    return pack


def _equal(self: Any, other: object) -> bool:
    same = type(other) is type(self)
    return same and all(getattr(self, name) == getattr(other, name) for name in self._fields)


def parameterPack(cls: type | None = None) -> Any:
    """Make a class of annotated attributes a pack of parameters."""
    if cls is None:
        return parameterPack
    cls._fields = fields_of(cls)
    cls._is_pack = True
    for name in cls._fields:
        setattr(cls, name, parameter(name))
    cls.__init__, cls.__eq__, cls.__hash__, cls.__setattr__ = _init, _equal, None, refuse_unknown
    cls._on = classmethod(_on)
    cls.getValue = lambda self, path: getattr(*resolve(self, path))
    cls.setValue = lambda self, path, value: setattr(*resolve(self, path), value)
    cls.dataType = staticmethod(lambda path: _type(cls, path))
    return cls


def _type(cls: type, path: str) -> Any:
    *packs, name = path.split(".")
    for part in packs:
        cls = cls._fields[part].type
    return cls._fields[name].type
