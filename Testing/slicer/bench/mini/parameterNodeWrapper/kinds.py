"""How values of each type are kept in a vtkMRMLScriptedModuleNode: as text, or as references to nodes."""

from __future__ import annotations

import enum
import json
import pathlib
import types
from collections.abc import Callable
from typing import Any, Union, get_args, get_origin

import slicer

from .annotations import FloatRange

CONTAINERS = (list, tuple, dict)
MUTATORS = {
    list: (
        "append",
        "extend",
        "insert",
        "remove",
        "pop",
        "clear",
        "sort",
        "reverse",
        "__setitem__",
        "__delitem__",
    ),
    dict: ("update", "setdefault", "pop", "popitem", "clear", "__setitem__", "__delitem__"),
}


def _observed(base: type) -> type:
    """A list or dict that stores itself again after every change."""

    def mutator(name: str) -> Callable[..., Any]:
        def change(self: Any, *arguments: Any, **named: Any) -> Any:
            result = getattr(base, name)(self, *arguments, **named)
            self.store(self)
            return result

        return change

    return type(f"Observed{base.__name__}", (base,), {name: mutator(name) for name in MUTATORS[base]})


OBSERVED = {base: _observed(base) for base in MUTATORS}


class Text:
    """A value with a text form."""

    def __init__(
        self, kind: type, default: Any, to_text: Any = str, from_text: Any = None, takes: Any = None
    ) -> None:
        self.kind, self.default = kind, default
        self.to_text, self.from_text, self.takes = to_text, from_text or kind, takes or (kind,)

    def check(self, value: Any) -> Any:
        if not isinstance(value, self.takes) or (isinstance(value, bool) and self.kind is not bool):
            raise TypeError(f"{value!r} is not a {self.kind.__name__}")
        return self.kind(value) if self.kind is float else value

    def write(self, node: Any, name: str, value: Any) -> None:
        node.SetParameter(name, self.to_text(self.check(value)))

    def read(self, node: Any, name: str, store: Any) -> Any:
        return self.from_text(node.GetParameter(name))

    def is_in(self, node: Any, name: str) -> bool:
        return name in node.GetParameterNames()


class Node:
    """A node of one of these classes, or None; kept as node reference, so that it survives saving."""

    default = None

    def __init__(self, classes: tuple[type, ...]) -> None:
        self.classes = classes

    def check(self, value: Any) -> Any:
        if value is not None and not isinstance(value, self.classes):
            raise TypeError(f"{value!r} is not a {' or '.join(c.__name__ for c in self.classes)}")
        if value is not None and value.GetID() is None:
            raise ValueError(f"{value.GetName()} is not in the scene: a parameter cannot refer to it")
        return value

    def write(self, node: Any, name: str, value: Any) -> None:
        node.SetNodeReferenceID(name, None if self.check(value) is None else value.GetID())

    def read(self, node: Any, name: str, store: Any) -> Any:
        return node.GetNodeReference(name)

    def is_in(self, node: Any, name: str) -> bool:
        return True


class Nodes:
    """A list of nodes, kept as references of one role."""

    def __init__(self, item: Node) -> None:
        self.item, self.default = item, []

    def check(self, value: Any) -> Any:
        if not isinstance(value, list | tuple):
            raise TypeError(f"{value!r} is not a list of nodes")
        for entry in value:
            self.item.check(entry)
        return value

    def write(self, node: Any, name: str, value: Any) -> None:
        self.check(value)
        wanted = [entry.GetID() for entry in value]
        count = node.GetNumberOfNodeReferences(name)
        if wanted == [node.GetNthNodeReferenceID(name, i) for i in range(count)]:
            return
        changing = node.StartModify()
        node.RemoveNodeReferenceIDs(name)
        for node_id in wanted:
            node.AddNodeReferenceID(name, node_id)
        node.EndModify(changing)

    def read(self, node: Any, name: str, store: Any) -> Any:
        count = node.GetNumberOfNodeReferences(name)
        found = [node.GetNthNodeReference(name, i) for i in range(count)]
        values = OBSERVED[list](entry for entry in found if entry is not None)
        values.store = store
        return values

    def is_in(self, node: Any, name: str) -> bool:
        return True


class Container(Text):
    """A list, tuple or dict of values with a text form, as JSON."""

    def __init__(self, kind: type, items: tuple[Any, ...]) -> None:
        super().__init__(kind, kind())
        self.items = items

    def _entries(self, value: Any) -> list[Any]:
        return list(value.items()) if self.kind is dict else list(value)

    def check(self, value: Any) -> Any:
        if not isinstance(value, self.kind):
            raise TypeError(f"{value!r} is not a {self.kind.__name__}")
        for entry in self._entries(value):
            for kind, part in zip(self.items, entry if self.kind is dict else (entry,), strict=True):
                kind.check(part)
        return value

    def write(self, node: Any, name: str, value: Any) -> None:
        entries = self._entries(self.check(value))
        if self.kind is dict:
            key, item = self.items
            texts = [[key.to_text(k), item.to_text(v)] for k, v in entries]
        else:
            texts = [self.items[0].to_text(entry) for entry in entries]
        node.SetParameter(name, json.dumps(texts))

    def read(self, node: Any, name: str, store: Any) -> Any:
        texts = json.loads(node.GetParameter(name))
        if self.kind is dict:
            key, item = self.items
            values = OBSERVED[dict]({key.from_text(k): item.from_text(v) for k, v in texts})
        elif self.kind is list:
            values = OBSERVED[list](self.items[0].from_text(text) for text in texts)
        else:
            return tuple(self.items[0].from_text(text) for text in texts)
        values.store = store
        return values


class Maybe(Text):
    """A value with a text form, or None."""

    def __init__(self, item: Text) -> None:
        self.item, self.default = item, None

    def check(self, value: Any) -> Any:
        return None if value is None else self.item.check(value)

    def write(self, node: Any, name: str, value: Any) -> None:
        value = self.check(value)
        node.SetParameter(name, "" if value is None else f"={self.item.to_text(value)}")

    def read(self, node: Any, name: str, store: Any) -> Any:
        text = node.GetParameter(name)
        return self.item.from_text(text[1:]) if text else None


def _truth(text: str) -> bool:
    return {"True": True, "False": False}[text]


def _range_text(value: FloatRange) -> str:
    return json.dumps([value.minimum, value.maximum])


def _range(text: str) -> FloatRange:
    return FloatRange(*json.loads(text))


PLAIN = {
    bool: lambda: Text(bool, False, str, _truth),
    int: lambda: Text(int, 0),
    float: lambda: Text(float, 0.0, repr, float, (int, float)),
    str: lambda: Text(str, ""),
    pathlib.Path: lambda: Text(pathlib.Path, pathlib.Path(), pathlib.Path.as_posix),
    FloatRange: lambda: Text(FloatRange, FloatRange(0.0, 0.0), _range_text, _range),
}


def _is_node(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, slicer.vtkMRMLNode)


def _union(kind: Any) -> Any:
    parts = [part for part in get_args(kind) if part is not type(None)]
    optional = len(parts) < len(get_args(kind))
    if isinstance(kind, types.UnionType):
        raise TypeError(f"{kind}: Slicer's wrapper knows typing.Union and Optional, not A | B")
    if not optional:
        raise TypeError(f"{kind}: a Union needs None among its types, Slicer's wrapper throws without")
    if all(_is_node(part) for part in parts):
        return Node(tuple(parts))
    if len(parts) == 1 and isinstance(item := kind_of(parts[0]), Text):
        return Maybe(item)
    raise TypeError(f"{kind}: the bench keeps unions of nodes, or of one type and None")


def _container(kind: Any) -> Any:
    base, items = get_origin(kind), get_args(kind)
    if not items:
        raise TypeError(f"{kind}: say what is inside, list[str] for instance")
    if base is tuple:
        if len(items) != 2 or items[1] is not ...:
            raise TypeError(f"{kind}: the bench keeps tuple[X, ...]")
        items = items[:1]
    inner = tuple(kind_of(item) for item in items)
    if base is list and isinstance(inner[0], Node):
        return Nodes(inner[0])
    if not all(type(item) is Text for item in inner):
        raise TypeError(
            f"{kind}: the bench keeps lists, tuples and dicts of simple values, and lists of nodes"
        )
    return Container(base, inner)


def kind_of(kind: Any) -> Any:
    """How values of this type are kept; raises TypeError for a type that cannot be."""
    if kind in PLAIN:
        return PLAIN[kind]()
    if get_origin(kind) in CONTAINERS or kind in CONTAINERS:
        return _container(kind)
    if get_origin(kind) in (Union, types.UnionType):
        return _union(kind)
    if _is_node(kind):
        return Node((kind,))
    if isinstance(kind, type) and issubclass(kind, enum.Enum):
        return Text(kind, next(iter(kind)), lambda value: value.name, kind.__getitem__)
    raise TypeError(f"{kind}: neither a type the bench keeps nor a @parameterPack")
