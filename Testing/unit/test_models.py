"""Models.json: every entry true, every mistake in it said."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from DiffeoRegLib.catalog import CARDS, MODELS, SHIPPED_WEIGHTS, read_models
from DiffeoRegLib.errors import SettingsError
from Testing.model_cases import METHODS, check_shipped

SHIPPED = [card for card in CARDS.values() if any(weight.shipped for weight in card.weights)]
ENTRY: dict[str, Any] = {
    "id": "sitreg-invented",
    "method": "sitreg",
    "version": "1",
    "title": "Invented model",
    "use": "For tests.",
    "paper": "Nobody, 2026.",
    "weights": {
        "file": "invented.safetensors",
        "url": None,
        "sha256": "0123456789abcdef" * 4,
        "size_bytes": 10,
        "licence": "CC-BY-NC-4.0",
        "permissive": False,
    },
    "training_data": {"description": "Ten spheres", "licence": "CC0-1.0"},
    "modality": "T1 MR",
    "anatomy": "brain",
    "spacing_mm": [2, 2, 2.5],
    "measured": {"seconds": 3, "memory_mb": 900, "voxels": 100, "cores": 2, "machine": "a laptop"},
}


@pytest.fixture(scope="module")
def schema() -> dict[str, Any]:
    return json.loads((MODELS.with_name("Models.schema.json")).read_text(encoding="utf-8"))


@pytest.fixture
def write(tmp_path: Path) -> Any:
    def written(*entries: Any, **more: Any) -> Path:
        path = tmp_path / "Models.json"
        path.write_text(json.dumps({"models": list(entries), **more}), encoding="utf-8")
        return path

    return written


def changed(place: str, value: Any) -> dict[str, Any]:
    """The entry with one value replaced; `...` leaves it out."""
    entry = copy.deepcopy(ENTRY)
    *folders, name = place.split(".")
    inner = entry
    for folder in folders:
        inner = inner[folder]
    if value is ...:
        del inner[name]
    else:
        inner[name] = value
    return entry


def test_the_shipped_list_keeps_to_the_schema(schema: dict[str, Any]) -> None:
    jsonschema.Draft202012Validator.check_schema(schema)
    content = json.loads(MODELS.read_text(encoding="utf-8"))
    jsonschema.validate(content, schema)
    assert set(read_models(MODELS, METHODS)) == {entry["id"] for entry in content["models"]} <= set(CARDS)


def test_exactly_the_listed_weights_are_shipped() -> None:
    listed = {weight.file for card in SHIPPED for weight in card.weights if weight.shipped}
    assert {path.name for path in SHIPPED_WEIGHTS.glob("*")} - {".gitkeep"} == listed


def test_shipped_weights_are_what_the_catalogue_says() -> None:
    for card in SHIPPED:
        check_shipped(card)


def test_a_model_says_with_how_many_steps_it_was_trained(write: Any, schema: dict[str, Any]) -> None:
    """And offers those of its method."""
    jsonschema.validate({"models": [{**ENTRY, "trained_steps": 8}]}, schema)
    (card,) = read_models(write({**ENTRY, "trained_steps": 8}), METHODS).values()
    method = METHODS[ENTRY["method"]]
    assert (card.trained_steps, method.trained_steps) == (8, 0)
    assert (card.steps_range, card.steps_default) == (method.steps_range, method.steps_default)
    assert card.time_varying == method.time_varying
    with pytest.raises(SettingsError, match="cannot be trained with -1 steps"):
        read_models(write({**ENTRY, "trained_steps": -1}), METHODS)


def test_an_entry_becomes_a_card(write: Any, schema: dict[str, Any]) -> None:
    jsonschema.validate({"models": [ENTRY]}, schema)
    (card,) = read_models(write(ENTRY, **{"$schema": "x"}), METHODS).values()
    assert (card.name, card.method, card.version) == ("sitreg-invented", "sitreg", "1")
    assert card.spacing_mm == (2.0, 2.0, 2.5)
    assert (card.training_data, card.training_licence) == ("Ten spheres", "CC0-1.0")
    assert (card.modality, card.anatomy, card.citation) == ("T1 MR", "brain", "Nobody, 2026.")
    assert card.licences_to_accept == ("CC-BY-NC-4.0",)
    assert card.weights[0].shipped
    assert card.download_bytes == 0
    assert (card.halfway, card.symmetric, card.trained, card.own_weights) == (True, True, True, False)
    assert card.measured is not None
    assert (card.measured.seconds, card.measured.machine) == (3.0, "a laptop")


@pytest.mark.parametrize(
    ("place", "value", "words"),
    [
        ("id", "SITReg brain", "small letters"),
        ("id", "svf", "taken twice"),
        ("id", 3, "id"),
        ("method", "svf", "no trained method"),
        ("method", "elastic", "no trained method"),
        ("version", "", "version"),
        ("paper", ..., "paper"),
        ("title", ["x"], "title"),
        ("colour", "red", "colour"),
        ("weights", None, "weights"),
        ("weights.file", "../x.safetensors", "plain file name"),
        ("weights.url", "http://example.org/x", "https"),
        ("weights.sha256", "12", "SHA-256"),
        ("weights.size_bytes", 0, "size"),
        ("weights.size_bytes", "ten", "size_bytes"),
        ("weights.licence", "", "licence"),
        ("weights.permissive", "no", "permissive"),
        ("weights.permissive", ..., "permissive"),
        ("training_data.licence", "", "training_data"),
        ("training_data.description", ..., "description"),
        ("spacing_mm", [2.0], "2 or 3"),
        ("spacing_mm", [2.0, 2.0, 0.0], "2 or 3"),
        ("measured.seconds", 0, "Measured"),
        ("measured.voxels", 1.5, "voxels"),
        ("measured.cores", -1, "cores"),
        ("measured.machine", ..., "machine"),
    ],
)
def test_a_mistake_is_named_with_the_file(
    write: Any, schema: dict[str, Any], place: str, value: Any, words: str
) -> None:
    entry = changed(place, value)
    with pytest.raises(SettingsError, match=rf"Models\.json' is broken: .*{words}"):
        read_models(write(entry), METHODS)
    if words not in ("taken twice", "no trained method"):
        assert not jsonschema.Draft202012Validator(schema).is_valid({"models": [entry]})


def test_one_name_is_one_model(write: Any) -> None:
    with pytest.raises(SettingsError, match="taken twice"):
        read_models(write(ENTRY, ENTRY), METHODS)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"models": 3}', b"{}", b"\xff\xfe"])
def test_a_broken_file_is_one_clear_sentence(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "Models.json"
    path.write_bytes(content)
    with pytest.raises(SettingsError, match=r"Models\.json'"):
        read_models(path, METHODS)


def test_a_missing_file_is_said(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="reinstall"):
        read_models(tmp_path / "Models.json", METHODS)
