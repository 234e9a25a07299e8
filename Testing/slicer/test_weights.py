"""Weights: what is there, what is fetched, what is refused."""

from __future__ import annotations

import hashlib
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from DiffeoRegLib.catalog import AFFINE_NETWORK, CARDS, Card, WeightFile
from DiffeoRegLib.errors import (
    FileFormatError,
    InputError,
    LicenceError,
    OutputError,
    SettingsError,
    UnknownNameError,
    WeightsError,
)
from DiffeoRegLib.settings import Settings
from DiffeoRegPanel import weights as room
from DiffeoRegPanel.machine import Machine
from DiffeoRegPanel.request import Request
from DiffeoRegPanel.weights import Weights, with_weights

CONTENT = {"encoder.safetensors": b"first " * 300, "decoder.safetensors": b"second " * 200}


class Store(dict[str, Any]):
    def value(self, key: str, default: Any = None) -> Any:
        return self.get(key, default)

    def setValue(self, key: str, value: Any) -> None:
        self[key] = value


def weight(name: str, **changes: Any) -> WeightFile:
    content = CONTENT[name]
    known = WeightFile(
        name, f"https://example.org/{name}", hashlib.sha256(content).hexdigest(), len(content), "MIT", True
    )
    return replace(known, **changes)


@pytest.fixture
def card() -> Card:
    return Card("trained", "Trained", "test", "nobody", weights=tuple(map(weight, CONTENT)))


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    known = Machine(Store())
    known.models_folder = tmp_path / "models"
    return known


def serve(url: str, path: Path, sha256: str, size_bytes: int) -> None:
    """A download that works."""
    content = CONTENT[url.rpartition("/")[2]]
    assert (hashlib.sha256(content).hexdigest(), len(content)) == (sha256, size_bytes)
    path.write_bytes(content)


def files_below(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def test_todays_methods_need_no_download(machine: Machine) -> None:
    for known in CARDS.values():
        state = Weights(machine).state(known)
        assert (state.ok, state.kind) == (True, "present" if known.weights else "not needed")
    assert not machine.models_folder.exists()  # looking makes no folder


@pytest.fixture
def shipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Card:
    """A card whose weights come with DiffeoReg, under a licence that has to be accepted."""
    monkeypatch.setattr("DiffeoRegLib.catalog.SHIPPED_WEIGHTS", tmp_path / "with it")
    (tmp_path / "with it").mkdir()
    name = "encoder.safetensors"
    (tmp_path / "with it" / name).write_bytes(CONTENT[name])
    bound = weight(name, url=None, licence="CC-BY-NC-4.0", permissive=False)
    return Card("shipped", "Shipped", "test", "nobody", weights=(bound,))


def test_shipped_weights_are_there_and_stay(machine: Machine, shipped: Card, tmp_path: Path) -> None:
    weights = Weights(machine)
    assert weights.state(shipped).kind == "present"
    assert "come with DiffeoReg" in weights.state(shipped).sentence
    machine.accept_licence("CC-BY-NC-4.0")
    machine.models_folder.mkdir()
    (machine.models_folder / room.OURS).write_text('["shipped/encoder.safetensors"]', encoding="utf-8")
    assert weights.clear(shipped) == 0
    path = weights.path_of(shipped, shipped.weights[0])
    assert path == tmp_path / "with it" / "encoder.safetensors"
    weights.download(shipped)  # nothing to fetch
    with pytest.raises(InputError, match="come with DiffeoReg"):
        weights.import_offline(shipped, path)
    assert path.read_bytes() == CONTENT["encoder.safetensors"]


@pytest.mark.parametrize("what", ["missing", "wrong checksum"])
def test_spoilt_shipped_weights_are_a_matter_of_the_installation(
    machine: Machine, shipped: Card, what: str
) -> None:
    path = Weights(machine).path_of(shipped, shipped.weights[0])
    if what == "missing":
        path.unlink()
    else:
        path.write_bytes(CONTENT["encoder.safetensors"][:-1] + b"?")
    state = Weights(machine).state(shipped)
    assert (state.ok, state.kind) == (False, what)
    assert "reinstall" in state.sentence
    machine.accept_licence("CC-BY-NC-4.0")
    Weights(machine, serve).download(shipped)  # it is nowhere to be fetched
    assert Weights(machine).state(shipped) == state
    with pytest.raises(WeightsError, match="reinstall"):
        Weights(machine).settings_for(shipped, Settings(method="shipped"))


def test_the_worker_is_told_of_accepted_licences_and_fetched_weights(
    machine: Machine, shipped: Card, card: Card, tmp_path: Path
) -> None:
    weights, settings = Weights(machine, serve), Settings(seed=5)
    with pytest.raises(LicenceError, match=r"CC-BY-NC-4\.0"):
        weights.settings_for(shipped, settings)
    once = weights.settings_for(shipped, settings.with_changes(accepted_licences=("CC-BY-NC-4.0",)))
    assert once.accepted_licences == ("CC-BY-NC-4.0",)
    assert machine.accepted_licences == frozenset()
    machine.accept_licence("CC-BY-NC-4.0")
    told = weights.settings_for(shipped, settings)
    assert told == settings.with_changes(accepted_licences=("CC-BY-NC-4.0",))
    single = replace(card, weights=card.weights[:1])
    with pytest.raises(WeightsError, match="Download"):
        weights.settings_for(single, settings)
    weights.download(single)
    path = machine.models_folder / "trained" / "encoder.safetensors"
    assert weights.settings_for(single, settings).weights == str(path)
    mine = settings.with_changes(weights="mine.safetensors")
    assert weights.settings_for(single, mine).weights == str(Path("mine.safetensors").absolute())


def test_a_request_is_completed_only_for_trained_methods(
    machine: Machine, shipped: Card, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(CARDS, "shipped", shipped)
    asked: list[Machine] = []

    def ask() -> Machine:
        asked.append(machine)
        return machine

    plain = Request(None, None, Settings())
    assert with_weights(plain, ask) is plain
    assert not asked
    request = Request("fixed", "moving", Settings(method="shipped"))
    with pytest.raises(LicenceError, match="tick under Setup"):
        with_weights(request, ask)
    machine.accept_licence("CC-BY-NC-4.0")
    done = with_weights(request, ask)
    assert (done.fixed, done.settings.accepted_licences) == ("fixed", ("CC-BY-NC-4.0",))
    with pytest.raises(SettingsError, match="no use for weights"):
        with_weights(Request(None, None, Settings(weights="mine.safetensors")), ask)
    with pytest.raises(SettingsError, match="runs with weights that you trained"):
        with_weights(Request(None, None, Settings(method="sitreg")), ask)
    with pytest.raises(UnknownNameError):
        with_weights(Request(None, None, Settings(method="elastic")), ask)


def test_a_network_that_aligns_needs_its_licence_whatever_the_method(
    machine: Machine, shipped: Card, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    aligner = replace(shipped, name="aligner", method=AFFINE_NETWORK, networks=(), deformable=False)
    monkeypatch.setitem(CARDS, "aligner", aligner)
    request = Request(None, None, Settings(init="network:aligner"))
    (licence,) = aligner.licences_to_accept
    with pytest.raises(LicenceError, match=licence):
        with_weights(request, lambda: machine)
    once = replace(request, settings=request.settings.with_changes(accepted_licences=(licence,)))
    assert with_weights(once, lambda: machine).settings.accepted_licences == (licence,)
    machine.accept_licence(licence)
    settings = with_weights(request, lambda: machine).settings
    assert (settings.accepted_licences, settings.weights) == ((licence,), None)
    (tmp_path / "with it" / aligner.weights[0].file).unlink()
    with pytest.raises(WeightsError, match="reinstall"):
        with_weights(request, lambda: machine)
    with pytest.raises(UnknownNameError, match="network for the initial alignment"):
        with_weights(Request(None, None, Settings(init="network:nothing")), lambda: machine)


def test_download_makes_missing_weights_present(machine: Machine, card: Card) -> None:
    weights = Weights(machine, serve)
    assert weights.state(card).kind == "missing"
    assert "Download" in weights.state(card).sentence
    told: list[str] = []
    weights.download(card, told.append)
    assert weights.state(card).ok
    assert len(told) == 2
    assert "encoder.safetensors" in told[0]
    kept = {f"trained/{name}" for name in CONTENT} | {room.OURS}
    assert files_below(machine.models_folder) == kept
    weights.download(card, told.append)  # nothing to do
    assert len(told) == 2


def test_a_changed_file_is_seen_and_fetched_again(machine: Machine, card: Card) -> None:
    weights = Weights(machine, serve)
    weights.download(card)
    path = weights.path_of(card, card.weights[0])
    path.write_bytes(b"X" + path.read_bytes()[1:])
    state = weights.state(card)
    assert (state.ok, state.kind) == (False, "wrong checksum")
    assert "encoder.safetensors" in state.sentence
    weights.download(card)
    assert weights.state(card).ok


@pytest.mark.parametrize("what", ["fails", "wrong bytes", "nothing", "raises"])
def test_a_failed_download_leaves_nothing_and_spoils_nothing(machine: Machine, card: Card, what: str) -> None:
    Weights(machine, serve).download(replace(card, weights=card.weights[:1]))
    before = files_below(machine.models_folder)

    def broken(url: str, path: Path, sha256: str, size_bytes: int) -> None:
        if what != "nothing":
            path.write_bytes(b"half")
        if what == "raises":
            raise OSError(28, "No space left on device")
        if what == "fails":
            raise OutputError("The server is gone.")

    with pytest.raises(OutputError):
        Weights(machine, broken).download(card)
    assert files_below(machine.models_folder) == before
    assert not list(machine.models_folder.rglob("part-*"))
    assert Weights(machine).state(card).kind == "missing"


def test_the_one_door_to_the_network_is_used_when_none_is_given(
    machine: Machine, card: Card, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(room, "fetch", serve)
    Weights(machine).download(card)
    assert Weights(machine).state(card).ok


@pytest.mark.parametrize("how", ["download", "import"])
def test_a_file_that_somebody_else_put_there_stays(
    machine: Machine, card: Card, tmp_path: Path, how: str
) -> None:
    weights = Weights(machine, serve)
    theirs = weights.path_of(card, card.weights[0])
    theirs.parent.mkdir(parents=True)
    theirs.write_bytes(b"trained for weeks")
    source = tmp_path / "brought"
    source.write_bytes(CONTENT["encoder.safetensors"])
    with pytest.raises(OutputError, match="in the way"):
        weights.download(card) if how == "download" else weights.import_offline(card, source)
    assert theirs.read_bytes() == b"trained for weeks"


def test_a_licence_that_is_not_permissive_is_accepted_first(
    machine: Machine, card: Card, tmp_path: Path
) -> None:
    bound = replace(card, weights=(weight("encoder.safetensors", licence="CC BY-NC 4.0", permissive=False),))
    weights = Weights(machine, serve)
    source = tmp_path / "brought"
    source.write_bytes(CONTENT["encoder.safetensors"])
    assert weights.licences_to_accept(bound) == ("CC BY-NC 4.0",)
    for work in (lambda: weights.download(bound), lambda: weights.import_offline(bound, source)):
        with pytest.raises(InputError, match="CC BY-NC"):
            work()
    assert not machine.models_folder.exists()
    machine.accept_licence("CC BY-NC 4.0")
    weights.download(bound)
    assert weights.state(bound).ok
    assert weights.licences_to_accept(bound) == ()


def test_clear_deletes_only_what_we_fetched(machine: Machine, card: Card) -> None:
    weights = Weights(machine, serve)
    mine = weights.path_of(card, card.weights[1])
    mine.parent.mkdir(parents=True)
    mine.write_bytes(CONTENT["decoder.safetensors"])
    weights.download(card)
    assert weights.clear(card) == len(CONTENT["encoder.safetensors"])
    assert mine.is_file()
    assert weights.state(card).files == {"encoder.safetensors": "missing", "decoder.safetensors": "present"}
    assert weights.clear(card) == 0


def test_browse_takes_another_folder(machine: Machine, card: Card, tmp_path: Path) -> None:
    Weights(machine, serve).download(card)
    elsewhere = tmp_path / "elsewhere"
    with pytest.raises(InputError, match="no folder"):
        Weights(machine).browse(elsewhere)
    elsewhere.mkdir()
    Weights(machine).browse(elsewhere)
    assert machine.models_folder == elsewhere.resolve()
    assert Weights(machine).state(card).kind == "missing"


def test_a_file_is_imported_by_its_content_whatever_its_name(
    machine: Machine, card: Card, tmp_path: Path
) -> None:
    source = tmp_path / "download (1)"
    source.write_bytes(CONTENT["decoder.safetensors"])
    assert Weights(machine).import_offline(card, source) == ["decoder.safetensors"]
    assert source.is_file()
    assert Weights(machine).state(card).files["decoder.safetensors"] == "present"
    source.write_bytes(CONTENT["decoder.safetensors"][:-1] + b"?")
    with pytest.raises(InputError, match="check sums differ"):
        Weights(machine).import_offline(card, source)
    with pytest.raises(InputError, match="no file"):
        Weights(machine).import_offline(card, tmp_path / "gone")


def zipped(path: Path, entries: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in entries.items():
            archive.writestr(name, content)
    return path


def test_a_zip_is_imported(machine: Machine, card: Card, tmp_path: Path) -> None:
    entries = {f"release/v1/{name}": content for name, content in CONTENT.items()}
    source = zipped(tmp_path / "weights.zip", {"README": b"read me", **entries})
    assert Weights(machine).import_offline(card, source) == list(CONTENT)
    assert Weights(machine).state(card).ok
    assert "README" not in str(files_below(machine.models_folder))


@pytest.mark.parametrize(
    "name", ["../encoder.safetensors", "/tmp/encoder.safetensors", "a/../../b", "C:\\x", "..\\x"]
)
def test_a_zip_that_leads_out_of_its_folder_is_refused(
    machine: Machine, card: Card, tmp_path: Path, name: str
) -> None:
    entries = {name: b"x", "encoder.safetensors": CONTENT["encoder.safetensors"]}
    source = zipped(tmp_path / "weights.zip", entries)
    with pytest.raises(FileFormatError, match="leads out"):
        Weights(machine).import_offline(card, source)
    assert files_below(tmp_path) == {"weights.zip"}


def test_a_zip_with_other_content_or_a_damaged_one_gives_nothing(
    machine: Machine, card: Card, tmp_path: Path
) -> None:
    other = {name: content[:-1] + b"?" for name, content in CONTENT.items()}
    with pytest.raises(InputError, match="check sums differ"):
        Weights(machine).import_offline(card, zipped(tmp_path / "other.zip", other))
    source = zipped(tmp_path / "weights.zip", {"encoder.safetensors": CONTENT["encoder.safetensors"]})
    whole = source.read_bytes()
    damaged = 0
    for position in range(0, len(whole), 3):
        source.write_bytes(
            whole[:position] + bytes(b ^ 0xFF for b in whole[position:][:3]) + whole[position:][3:]
        )
        try:
            Weights(machine).import_offline(card, source)
        except (FileFormatError, InputError):
            damaged += 1
            assert files_below(machine.models_folder) <= {room.OURS}
        else:  # the damage lay in a date: the content is right
            assert Weights(machine).state(card).files["encoder.safetensors"] == "present"
            Weights(machine).clear(card)
    assert damaged > 20


def test_a_folder_that_cannot_be_written_to_is_said(machine: Machine, card: Card, tmp_path: Path) -> None:
    (tmp_path / "models").write_text("a file where the folder should be", encoding="utf-8")
    with pytest.raises(OutputError, match="Browse"):
        Weights(machine, serve).download(card)
