"""Finding, checking and loading the weights of a run: shipped, fetched, or the user's own."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from DiffeoRegLib import catalog
from DiffeoRegLib.catalog import CARDS, Card
from DiffeoRegLib.errors import InputError, LicenceError, SettingsError, WeightsError
from DiffeoRegLib.networks import weights as room
from DiffeoRegLib.networks.weights import check_weights, find_weights, network_for, read_checkpoint
from DiffeoRegLib.pipeline import register
from DiffeoRegLib.settings import Settings
from Testing.model_cases import LICENCE, SIZES, model_card, weight_file, write_weights
from Testing.volume_cases import volume

ACCEPTED = Settings(accepted_licences=(LICENCE,))
OWN = CARDS["sitreg"]


@pytest.fixture
def shipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of weights that come with DiffeoReg."""
    monkeypatch.setattr(catalog, "SHIPPED_WEIGHTS", tmp_path / "shipped")
    monkeypatch.setattr(room, "_KEPT", {})
    return tmp_path / "shipped"


@pytest.fixture
def card(shipped: Path) -> Card:
    return model_card(weight_file(write_weights(shipped / "invented.safetensors")))


def own(path: Path, **more: Any) -> Settings:
    return Settings(method="sitreg", weights=str(path), **more)


def test_shipped_weights_make_their_network(card: Card, shipped: Path) -> None:
    network, found = network_for(card, ACCEPTED)
    stored = room.read_weights(shipped / "invented.safetensors").tensors
    assert all(torch.equal(value, stored[name]) for name, value in network.state_dict().items())
    assert not network.training
    assert not any(p.requires_grad for p in network.parameters())
    assert found["config"]["data"]["spacing_mm"] == [2.0, 2.0, 2.0]
    assert network.options.precision == "float32"
    assert network_for(card, ACCEPTED, "bf16")[0].options.precision == "bfloat16"


def test_a_network_is_kept_but_its_file_looked_at_again(card: Card, shipped: Path) -> None:
    network, found = network_for(card, ACCEPTED)
    found["config"].clear()
    again, intact = network_for(card, ACCEPTED)
    assert again is network
    assert intact["config"]
    path = shipped / "invented.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(WeightsError, match="checksum"):
        network_for(card, ACCEPTED)


def test_only_a_few_networks_are_kept(shipped: Path, tmp_path: Path) -> None:
    paths = [write_weights(tmp_path / f"{n}.safetensors", step=n) for n in range(4)]
    networks = [network_for(OWN, own(path))[0] for path in paths]
    assert len(room._KEPT) == room.KEPT_NETWORKS
    assert network_for(OWN, own(paths[-1]))[0] is networks[-1]
    assert network_for(OWN, own(paths[0]))[0] is not networks[0]


def test_a_licence_is_accepted_by_name_before_the_weights_are_used(card: Card) -> None:
    for accepted in ((), ("MIT",), (LICENCE.lower(),)):
        with pytest.raises(LicenceError, match=f"Invented model.*--accept-licence {LICENCE}"):
            network_for(card, Settings(accepted_licences=accepted))
    assert find_weights(card, ACCEPTED).of_card


def test_a_licence_goes_with_the_bytes_wherever_they_lie(
    card: Card, shipped: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(CARDS, card.name, card)
    copy = tmp_path / "mine.safetensors"
    copy.write_bytes((shipped / "invented.safetensors").read_bytes())
    with pytest.raises(LicenceError, match="Invented model"):
        network_for(OWN, own(copy))
    assert network_for(OWN, own(copy, accepted_licences=(LICENCE,)))
    assert not find_weights(OWN, own(copy, accepted_licences=(LICENCE,))).of_card


def test_own_weights_need_no_licence_and_replace_a_card_s(card: Card, tmp_path: Path) -> None:
    path = write_weights(tmp_path / "mine.safetensors", step=99)
    assert network_for(OWN, own(path))[1]["step"] == 99
    assert network_for(card, own(path))[1]["step"] == 99


def test_fetched_weights_are_used_from_the_models_folder(
    shipped: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    monkeypatch.setenv("LOCALAPPDATA", str(tmp_path))
    monkeypatch.setattr(Path, "home", lambda: tmp_path)
    source = write_weights(tmp_path / "fetched.safetensors")
    card = model_card(weight_file(source, url="https://example.org/fetched.safetensors"))
    with pytest.raises(WeightsError, match=r"are not at .*example\.org.*--weights"):
        network_for(card, ACCEPTED)
    place = catalog.default_models_folder() / card.name / "fetched.safetensors"
    place.parent.mkdir(parents=True)
    source.rename(place)
    assert find_weights(card, ACCEPTED).path == place
    assert network_for(card, ACCEPTED)
    place.write_bytes(place.read_bytes() + b" ")
    with pytest.raises(WeightsError, match=r"checksum.*fetch it again"):
        network_for(card, ACCEPTED)


def test_missing_shipped_weights_are_a_matter_of_the_installation(card: Card, shipped: Path) -> None:
    (shipped / "invented.safetensors").unlink()
    with pytest.raises(WeightsError, match="reinstall"):
        network_for(card, ACCEPTED)


def test_another_voxel_size_than_the_catalogue_s_is_refused(shipped: Path) -> None:
    weights = weight_file(write_weights(shipped / "invented.safetensors"))
    card = model_card(weights, spacing_mm=(2.0, 2.0, 1.0))
    with pytest.raises(WeightsError, match=r"works at 2 x 2 x 2 mm.*says 2 x 2 x 1 mm"):
        network_for(card, ACCEPTED)


def truncated(path: Path) -> None:
    write_weights(path)
    path.write_bytes(path.read_bytes()[:-100])


def altered(path: Path) -> None:
    write_weights(path)
    content = bytearray(path.read_bytes())
    content[-5] ^= 4
    path.write_bytes(content)


def foreign(path: Path) -> None:
    from safetensors.torch import save_file

    save_file({"a": torch.zeros(2)}, path)


def no_spacing(path: Path, value: Any = None) -> None:
    write_weights(path, config={"data": {"source": "synthetic", "spacing_mm": value}})


BAD = {
    "missing": (lambda path: None, "cannot be read"),
    "a folder": (lambda path: path.mkdir(), "cannot be read"),
    "empty": (lambda path: path.write_bytes(b""), "damaged"),
    "truncated": (truncated, "damaged"),
    "altered": (altered, "altered"),
    "foreign": (foreign, "not written by DiffeoReg"),
    "torch pickle": (lambda path: torch.save({"w": torch.zeros(2)}, path), "pickle file, which could run"),
    "old pickle": (
        lambda path: torch.save({"w": torch.zeros(2)}, path, _use_new_zipfile_serialization=False),
        "pickle file, which could run",
    ),
    "training state": (lambda path: write_weights(path, kind="state"), "state of a training run"),
    "another method": (
        lambda path: write_weights(path, network={"name": "other", "sizes": {}, "options": {}}),
        "weights of 'other'.*needs weights of 'sitreg'",
    ),
    "no network": (lambda path: write_weights(path, network=None), "weights of 'None'"),
    "unknown size": (
        lambda path: write_weights(path, network={"name": "sitreg", "sizes": {**SIZES, "depth": 3}}),
        "cannot build: .*depth",
    ),
    "other tensors": (lambda path: write_weights(path, {"a": torch.zeros(2)}), "weights of another network"),
    "other sizes": (
        lambda path: write_weights(path, network={"name": "sitreg", "sizes": {**SIZES, "encoder": [2, 6]}}),
        "another size",
    ),
    "no spacing": (no_spacing, "does not say at which voxel size"),
    "spacing of nothing": (lambda path: no_spacing(path, [0.0, 1.0, 1.0]), "voxel size"),
    "spacing in words": (lambda path: no_spacing(path, "two"), "voxel size"),
    "no config": (lambda path: write_weights(path, config=None), "voxel size"),
}


@pytest.mark.parametrize("what", BAD)
def test_bad_weights_are_refused_in_one_sentence(shipped: Path, tmp_path: Path, what: str) -> None:
    make, words = BAD[what]
    path = tmp_path / "bad.safetensors"
    make(path)
    with pytest.raises(WeightsError, match=words) as caught:
        network_for(OWN, own(path))
    assert "bad.safetensors" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_weights_are_given_where_they_are_used_and_only_there(tmp_path: Path) -> None:
    path = write_weights(tmp_path / "mine.safetensors")
    with pytest.raises(SettingsError, match="no use for weights"):
        check_weights(CARDS["svf"], Settings(weights=str(path)))
    with pytest.raises(SettingsError, match="--weights FILE"):
        check_weights(OWN, Settings(method="sitreg"))
    check_weights(CARDS["svf"], Settings())
    check_weights(OWN, own(path))


def test_a_run_with_bad_weights_ends_before_it_begins(tmp_path: Path) -> None:
    told: list[Any] = []
    with pytest.raises(InputError, match="cannot be read"):
        register(volume(), volume(), own(tmp_path / "none.safetensors"), progress=told.append)
    with pytest.raises(SettingsError, match="'svf' is no trained method"):
        register(volume(), volume(), Settings(weights="mine.safetensors"), progress=told.append)
    assert not told


@pytest.mark.parametrize("value", ["", 3, b"x"])
def test_weights_are_a_path(value: Any) -> None:
    with pytest.raises(SettingsError, match="path"):
        Settings(weights=value)


@pytest.mark.parametrize("value", ["MIT", ["MIT"], ("",), (1,)])
def test_accepted_licences_are_names(value: Any) -> None:
    with pytest.raises(SettingsError, match="tuple of names"):
        Settings(accepted_licences=value)


def test_without_the_package_that_reads_weights(monkeypatch, tmp_path):
    """Slicer does not bring it; the sentence says where to get it."""
    monkeypatch.setitem(sys.modules, "safetensors", None)
    with pytest.raises(WeightsError, match="install it in Slicer's module"):
        read_checkpoint(tmp_path / "any.safetensors")
