"""The tool that puts trained weights into the catalogue."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import torch

from DiffeoRegLib import catalog
from DiffeoRegLib.errors import DiffeoRegError
from DiffeoRegLib.networks import weights as room
from DiffeoRegLib.networks.build import NetworkConfig, build_network
from Testing.model_cases import METHODS, check_shipped, description, write_weights
from tools import add_weights

FLAGS = {
    "id": "sitreg-invented", "version": "1", "title": "Invented model", "use": "For tests.",
    "licence": "CC-BY-NC-4.0", "training-data": "Ten spheres", "training-licence": "CC0-1.0",
    "modality": "T1 MR", "anatomy": "brain",
}  # fmt: skip
MEASURED = {"seconds": "2.5", "memory-mb": "900", "voxels": "1000000", "cores": "2", "machine": "a laptop"}


class Catalogue:
    """An empty list of models, its folder of weights, and the tool working on them."""

    def __init__(self, folder: Path) -> None:
        self.models, self.weights = folder / "Models.json", folder / "Weights"
        self.weights.mkdir()
        self.models.write_text('{"$schema": "./Models.schema.json", "models": []}\n', encoding="utf-8")

    def add(self, *file: Path, **flags: str | None) -> int:
        words = [str(path) for path in file]
        for name, value in flags.items():
            words += [] if value is None else [f"--{name}", value]
        return add_weights.main(words)

    def cards(self) -> dict[str, catalog.Card]:
        return catalog.read_models(self.models, METHODS)

    def files(self) -> list[str]:
        return sorted(path.name for path in self.weights.iterdir())

    def content(self) -> Any:
        return json.loads(self.models.read_text(encoding="utf-8"))


@pytest.fixture
def made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Catalogue:
    (tmp_path / "resources").mkdir()
    catalogue = Catalogue(tmp_path / "resources")
    monkeypatch.setattr(add_weights, "MODELS", catalogue.models)
    monkeypatch.setattr(add_weights, "WEIGHTS", catalogue.weights)
    monkeypatch.setattr(catalog, "SHIPPED_WEIGHTS", catalogue.weights)
    monkeypatch.setattr(room, "_KEPT", {})
    return catalogue


@pytest.fixture
def best(tmp_path: Path) -> Path:
    return write_weights(tmp_path / "best.safetensors")


def test_the_tool_works_on_its_own_checkout() -> None:
    assert (add_weights.MODELS, add_weights.WEIGHTS) == (catalog.MODELS, catalog.SHIPPED_WEIGHTS)


def test_what_is_added_is_true_of_the_file(
    made: Catalogue, best: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert made.add(best, **FLAGS) == 0
    assert json.loads(capsys.readouterr().out) == made.content()["models"][0]
    card = made.cards()["sitreg-invented"]
    check_shipped(card)
    assert made.files() == ["sitreg-invented-1.safetensors"]
    assert card.citation == METHODS["sitreg"].citation
    assert not card.weights[0].permissive
    assert best.is_file()
    schema = json.loads((Path(catalog.RESOURCES) / "Models.schema.json").read_text(encoding="utf-8"))
    jsonschema.validate(made.content(), schema)


def test_a_network_belongs_to_the_method_that_runs_it(
    made: Catalogue, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Method and network have different names; one method runs two of them, and some have none."""
    for name, steps in (("voxelmorph-diff", {"decoder": [2]}), ("voxelmorph", {"decoder": [2, 2]})):
        stride = 2 if name.endswith("diff") else 1
        sizes = {"encoder": [2], **steps, "final": [2], "stride": stride}
        tensors = build_network(NetworkConfig(name, sizes)).state_dict()
        network = {"name": name, "sizes": sizes, "options": {}}
        file = write_weights(tmp_path / name, tensors, network=network)
        assert made.add(file, **FLAGS | {"id": f"{name}-invented"}) == 0
        card = made.cards()[f"{name}-invented"]
        assert (card.method, card.halfway) == ("voxelmorph", False)
        assert card.networks == ("voxelmorph-diff", "voxelmorph")
        check_shipped(card)
    sizes = {"embed": 4, "depths": [1] * 4, "heads": [1] * 4, "window": [2, 2, 2]}
    tensors = build_network(NetworkConfig("transmorph", sizes)).state_dict()
    network = {"name": "transmorph", "sizes": sizes, "options": {}}
    capsys.readouterr()
    assert made.add(write_weights(tmp_path / "single", tensors, network=network), **FLAGS) == 1
    assert "which no method runs" in capsys.readouterr().err


def test_numbers_of_16_bits_and_the_steps_of_a_network(made: Catalogue, tmp_path: Path) -> None:
    """Half the size, read as any other; a number too large for them is named."""
    sizes = {"embed": 4, "depths": [1] * 4, "heads": [1] * 4, "window": [2, 2, 2], "steps": 3}
    network = {"name": "transmorph-tvf", "sizes": sizes, "options": {}}
    tensors = build_network(NetworkConfig("transmorph-tvf", sizes)).state_dict()
    file = write_weights(tmp_path / "tvf", tensors, network=network)
    words = [str(file), *[word for name, value in FLAGS.items() for word in (f"--{name}", value)]]
    assert add_weights.main([*words, "--half"]) == 0
    card = made.cards()["sitreg-invented"]
    assert (card.method, card.trained_steps, card.time_varying) == ("transmorph-tvf", 3, True)
    schema = json.loads((Path(catalog.RESOURCES) / "Models.schema.json").read_text(encoding="utf-8"))
    jsonschema.validate(made.content(), schema)
    path = made.weights / "sitreg-invented-1.safetensors"
    assert path.stat().st_size < 0.7 * file.stat().st_size
    read = room.network_of(room.read_weights(path), "half").state_dict()
    assert all(value.dtype == torch.float32 for value in read.values())
    assert all(torch.equal(value, tensors[name].half().float()) for name, value in read.items())
    tensors["steps.0.head.bias"][0] = 1e6
    write_weights(tmp_path / "tvf", tensors, network=network)
    assert add_weights.main([*words, "--half"]) == 1


def test_no_folder_of_the_training_computer_is_published(made: Catalogue, best: Path) -> None:
    assert made.add(best, **FLAGS) == 0
    stored = room.read_weights(made.weights / "sitreg-invented-1.safetensors")
    assert stored.description["config"]["data"]["source"] == "images"
    assert b"somebody" not in (made.weights / "sitreg-invented-1.safetensors").read_bytes()
    before = room.read_weights(best).tensors
    assert all(torch.equal(before[name], value) for name, value in stored.tensors.items())
    kept = {"a": ["relative/name", 3, None, "synthetic"], "b": {"lr": 1e-3}}
    assert add_weights.without_folders(kept) == kept
    assert add_weights.without_folders(["C:\\Users\\x\\data", "~/data", "../data/t1"]) == [
        "data", "data", "t1",
    ]  # fmt: skip


def test_a_new_version_takes_the_place_of_the_old(made: Catalogue, best: Path, tmp_path: Path) -> None:
    assert made.add(best, **FLAGS) == 0
    other = write_weights(
        tmp_path / "o", step=9, config={"data": {"source": "x", "spacing_mm": [1.5, 1.5, 1.5]}}
    )
    assert made.add(other, id="sitreg-invented", version="2") == 0
    assert made.files() == ["sitreg-invented-2.safetensors"]
    card = made.cards()["sitreg-invented"]
    check_shipped(card)
    assert (card.version, card.spacing_mm, card.title) == ("2", (1.5, 1.5, 1.5), "Invented model")
    again = write_weights(tmp_path / "again", step=11)
    assert made.add(again, id="sitreg-invented") == 0  # the same version, trained again
    check_shipped(made.cards()["sitreg-invented"])
    assert made.files() == ["sitreg-invented-2.safetensors"]


def test_words_and_measurements_change_without_a_file(made: Catalogue, best: Path) -> None:
    assert made.add(best, **FLAGS) == 0
    assert made.add(id="sitreg-invented", title="Better title", **MEASURED) == 0
    card = made.cards()["sitreg-invented"]
    check_shipped(card)
    assert card.title == "Better title"
    assert card.measured == catalog.Measured(2.5, 900.0, 1_000_000, 2, "a laptop")


def test_a_permissive_licence_needs_no_acceptance(made: Catalogue, best: Path) -> None:
    assert made.add(best, **{**FLAGS, "licence": "Apache-2.0"}) == 0
    assert made.cards()["sitreg-invented"].licences_to_accept == ()


def test_weights_that_are_fetched_may_be_large(
    made: Catalogue, best: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(add_weights, "MOST_BYTES", 1000)
    assert made.add(best, **FLAGS, url="https://example.org/w") == 0
    assert not made.cards()["sitreg-invented"].weights[0].shipped


@pytest.mark.parametrize(
    ("change", "flags", "words"),
    [
        ({}, {"licence": None}, "--licence"),
        ({}, {"version": None}, "--version"),
        ({}, {"title": None, "anatomy": None}, "still needs title, anatomy"),
        ({}, {"training-data": None}, "training_data"),
        ({}, {"id": "Not A Name"}, "small letters"),
        ({}, {"id": "svf"}, "taken twice"),
        ({}, {"url": "http://example.org"}, "https"),
        ({}, {"seconds": "3"}, "--memory-mb, --voxels, --cores, --machine is missing"),
        ({"kind": "state"}, {}, "state of a training run"),
        ({"config": {}}, {}, "voxel size"),
        ({"network": {"name": "elastic", "sizes": {}}}, {}, "cannot build"),
        ({"network": {**description()["network"], "sizes": {"encoder": [2], "heads": [2]}}}, {}, "network"),
    ],
)
def test_what_is_missing_or_wrong_changes_nothing(
    made: Catalogue,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    change: dict[str, Any],
    flags: dict[str, str | None],
    words: str,
) -> None:
    good = write_weights(tmp_path / "good.safetensors")
    assert made.add(good, **{**FLAGS, "id": "sitreg-first"}) == 0
    before = made.models.read_bytes()
    capsys.readouterr()
    bad = write_weights(tmp_path / "bad.safetensors", **change)
    assert made.add(bad, **{**FLAGS, **flags}) == 1
    said = capsys.readouterr()
    assert words in said.err
    assert not said.out
    assert made.models.read_bytes() == before
    assert made.files() == ["sitreg-first-1.safetensors"]
    assert not list(made.models.parent.glob("*.new"))


def test_large_weights_are_not_shipped(
    made: Catalogue, best: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert add_weights.MOST_BYTES == 16_000_000
    monkeypatch.setattr(add_weights, "MOST_BYTES", 1000)
    assert made.add(best, **FLAGS) == 1
    assert "are shipped" in capsys.readouterr().err
    assert made.files() == []
    assert made.content()["models"] == []


def test_an_entry_begins_with_its_weights(made: Catalogue, capsys: pytest.CaptureFixture[str]) -> None:
    assert made.add(**FLAGS) == 1
    assert "give its weights FILE" in capsys.readouterr().err


def test_nothing_is_half_done_when_the_list_cannot_be_written(
    made: Catalogue, best: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path, content: bytes) -> None:
        raise DiffeoRegError("disk full")

    monkeypatch.setattr(add_weights, "replace_file", full)
    assert made.add(best, **FLAGS) == 1
    assert made.files() == []
