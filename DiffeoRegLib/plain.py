"""Plain values, as JSON and YAML hold them, to frozen dataclasses and back: every key and type checked."""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Mapping
from typing import Any, TypeVar

from DiffeoRegLib.errors import SettingsError, UnknownNameError

T = TypeVar("T")
NAMES = {
    int: "a whole number",
    float: "a number",
    str: "a text",
    bool: "true or false",
    type(None): "nothing",
}


def build(cls: type[T], content: Any, where: str = "") -> T:
    """A dataclass from a mapping, nested ones included.

    where: dotted name of the place, for messages.
    Raises UnknownNameError for an unknown key, SettingsError for a missing one or a value of another type.
    """
    place = where or "the settings"
    if not isinstance(content, Mapping):
        raise SettingsError(f"{place} must hold settings by name, not {content!r}.")
    fields = {field.name: field for field in dataclasses.fields(cls) if field.init}  # type: ignore[arg-type]
    hints = typing.get_type_hints(cls)
    for key in content:
        if key not in fields:
            raise UnknownNameError(f"setting in {place}", str(key), fields)
    missing = [
        name
        for name, field in fields.items()
        if name not in content
        and field.default is dataclasses.MISSING
        and field.default_factory is dataclasses.MISSING
    ]
    if missing:
        raise SettingsError(f"{place} must set {', '.join(missing)}.")
    values = {
        name: convert(hints[name], value, f"{where}.{name}" if where else name)
        for name, value in content.items()
    }
    return cls(**values)


def convert(hint: Any, value: Any, where: str) -> Any:
    """The value as the type it is declared with; raises SettingsError if it is of another."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:
        return value
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        return build(hint, value, where)
    if origin in (typing.Union, types.UnionType):
        return _one_of(arguments, value, where)
    if origin is tuple:
        return _tuple(arguments, value, where)
    if origin is typing.Literal:
        if value not in arguments:
            raise UnknownNameError(where, str(value), map(str, arguments))
        return value
    if origin is not None and isinstance(origin, type) and issubclass(origin, Mapping):
        if not isinstance(value, Mapping):
            raise SettingsError(f"{where} must hold settings by name, not {value!r}.")
        return {str(key): convert(arguments[1], item, f"{where}.{key}") for key, item in value.items()}
    return _single(hint, value, where)


def _single(hint: Any, value: Any, where: str) -> Any:
    if hint is float and isinstance(value, str):  # YAML takes 1e-4 for a text
        try:
            return float(value)
        except ValueError as error:
            raise SettingsError(f"{where} must be a number, not {value!r}.") from error
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, hint) or (isinstance(value, bool) and hint is not bool):
        raise SettingsError(f"{where} must be {NAMES.get(hint, hint)}, not {value!r}.")
    return value


def _tuple(arguments: tuple[Any, ...], value: Any, where: str) -> tuple[Any, ...]:
    if not isinstance(value, list | tuple):
        raise SettingsError(f"{where} must be a list, not {value!r}.")
    if len(arguments) == 2 and arguments[1] is Ellipsis:
        arguments = (arguments[0],) * len(value)
    if len(arguments) != len(value):
        raise SettingsError(f"{where} must be a list of {len(arguments)}, not {value!r}.")
    return tuple(
        convert(a, v, f"{where}[{i}]") for i, (a, v) in enumerate(zip(arguments, value, strict=True))
    )


def _one_of(arguments: tuple[Any, ...], value: Any, where: str) -> Any:
    if value is None and type(None) in arguments:
        return None
    kinds = [a for a in arguments if a is not type(None)]
    if len(kinds) == 1:
        return convert(kinds[0], value, where)
    for kind in kinds:
        if typing.get_origin(kind) is None and isinstance(value, kind):
            return convert(kind, value, where)
    return convert(kinds[-1], value, where)


def as_plain(settings: Any) -> dict[str, Any]:
    """A dataclass as values JSON and YAML can hold; `build` makes it again."""
    return {name: _plain(value) for name, value in dataclasses.asdict(settings).items()}


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value
