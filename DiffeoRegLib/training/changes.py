"""Single settings of a configuration changed from outside, as `key=value` with a dotted key."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from DiffeoRegLib.errors import SettingsError
from DiffeoRegLib.training.config import SYNTHETIC
from DiffeoRegLib.training.reading import yaml_value

PATHS = ("data.source", "data.validation", "data.options.cache", "data.options.reference", "start_from.file")
"""Settings that name files; given from outside, they are relative to the current folder."""
NO_PARTS = "There is no setting '{}': what it is said to be part of has no parts."


def changed(content: dict[str, Any], changes: Sequence[str]) -> dict[str, Any]:
    """The settings with `key=value` changes made in place; values are YAML.

    A number in a key counts the items of a list from 0, as in `losses.0.weight=2`.  Where the validation data
    were the training data, they still are after data.source was changed.
    Raises SettingsError for a change of another form or a key that leads nowhere.
    """
    for change in changes:
        key, mark, text = change.partition("=")
        if not mark or not all(key.split(".")):
            raise SettingsError(f"'{change}' is no change of a setting: write key=value, as in steps=1000.")
        value = yaml_value(text, change)
        if key in PATHS and isinstance(value, str) and value != SYNTHETIC:
            value = str(Path(value).absolute())
        if key == "data.source":
            _change_source(content, value)
        else:
            _put(content, key, value)
    return content


def _change_source(content: dict[str, Any], value: Any) -> None:
    data = content.get("data")
    together = isinstance(data, dict) and "source" in data and data.get("validation") == data["source"]
    _put(content, "data.source", value)
    if together:
        _put(content, "data.validation", value)


def _put(content: dict[str, Any], key: str, value: Any) -> None:
    inner: Any = content
    *parents, last = key.split(".")
    for name in parents:
        if isinstance(inner, dict) and inner.get(name) is None:
            inner[name] = {}
        inner = _item(inner, name, key)
    if isinstance(inner, list):
        _item(inner, last, key)
        inner[int(last)] = value
    elif isinstance(inner, dict):
        inner[last] = value
    else:
        raise SettingsError(NO_PARTS.format(key))


def _item(inner: Any, name: str, key: str) -> Any:
    if isinstance(inner, list):
        if name.isdigit() and int(name) < len(inner):
            return inner[int(name)]
        raise SettingsError(f"'{key}' needs the number of one of {len(inner)} items, from 0, not '{name}'.")
    if isinstance(inner, dict):
        return inner[name]
    raise SettingsError(NO_PARTS.format(key))
