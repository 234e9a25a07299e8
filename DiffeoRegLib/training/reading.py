"""YAML files, read strictly."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from DiffeoRegLib.errors import SettingsError


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file.

    Raises SettingsError for a file that cannot be read, is not YAML, holds no mapping or a key twice.
    """
    yaml = _yaml()

    class Loader(yaml.SafeLoader):  # type: ignore[misc, name-defined]
        """Plain values only, no key twice (the second would silently win), and no references.

        A reference may hold itself, or a few lines of them may stand for billions of values.
        """

        def compose_node(self, parent: Any, index: Any) -> Any:
            if self.check_event(yaml.events.AliasEvent):
                raise SettingsError(f"'{path}' uses references (*name), which settings have no need of.")
            return super().compose_node(parent, index)

    def mapping(loader: Any, node: Any) -> dict[str, Any]:
        pairs = [(loader.construct_object(k, True), loader.construct_object(v, True)) for k, v in node.value]
        keys = [str(key) for key, _ in pairs]
        twice = sorted({key for key in keys if keys.count(key) > 1})
        if twice:
            raise SettingsError(f"'{path}' sets {', '.join(twice)} twice.")
        return {str(key): value for key, value in pairs}

    Loader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, mapping)
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), Loader)
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(f"The settings '{path}' cannot be read: {error}.") from error
    except (yaml.YAMLError, RecursionError) as error:
        raise SettingsError(f"'{path}' is not YAML: {_reason(error)}.") from error
    if not isinstance(content, dict):
        raise SettingsError(f"'{path}' must hold settings by name, not {type(content).__name__}.")
    return content


def yaml_value(text: str, where: str) -> Any:
    """The value a text means in YAML; raises SettingsError that quotes `where` if it means none."""
    yaml = _yaml()
    try:
        return yaml.safe_load(text)
    except (yaml.YAMLError, RecursionError) as error:
        raise SettingsError(f"The value in '{where}' is not YAML: {_reason(error)}.") from error


def _reason(error: Exception) -> str:
    return "it is nested too deeply" if isinstance(error, RecursionError) else " ".join(str(error).split())


def _yaml() -> Any:
    try:
        import yaml
    except ImportError as error:
        raise SettingsError(
            "Training settings are YAML; install PyYAML (pip install 'diffeoreg[training]')."
        ) from error
    return yaml
