"""Trained models in Slicer: the licence in the panel, weights and licences in the Python console."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from DiffeoRegLib.catalog import CARDS, Card
from DiffeoRegLib.errors import InputError, LicenceError, WeightsError
from DiffeoRegPanel.machine import Machine
from DiffeoRegPanel.panel_choices import group_methods, methods
from Testing.model_cases import LICENCE, NAME, model_card, weight_file, write_weights
from Testing.slicer.panel_cases import add_volume
from Testing.slicer.panel_pictures import add_launcher
from Testing.slicer.pictures import load_pair

REPOSITORY = Path(__file__).resolve().parents[2]
TRAINED = {card.name for card in CARDS.values() if card.weights and not card.needs_group}
TRAINED_FOR_GROUPS = {card.name for card in CARDS.values() if card.weights and card.needs_group}


def slices() -> Any:
    """The shipped brain slices as Slicer has them: volumes of a single slice."""
    import SimpleITK as sitk
    import slicer

    nodes = []
    for number in ("0001", "0010"):
        path = REPOSITORY / "Resources" / "SampleData" / "brain_slices" / f"oasis2d_{number}.nrrd"
        array = sitk.GetArrayFromImage(sitk.ReadImage(str(path)))[None]
        nodes.append(slicer.util.addVolumeFromArray(array, name=f"slice {number}"))
    return SimpleNamespace(fixed=nodes[0], moving=nodes[1])


class Started:
    """Stands for the worker: keeps the jobs it was given."""

    def __init__(self) -> None:
        self.jobs: list[dict[str, Any]] = []

    def start(self, job: dict[str, Any]) -> None:
        self.jobs.append(job)

    def close(self) -> None:
        """Nothing runs."""


@pytest.fixture
def shipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Card:
    """A model that comes with DiffeoReg, under a licence that has to be accepted."""
    monkeypatch.setattr("DiffeoRegLib.catalog.SHIPPED_WEIGHTS", tmp_path)
    card = model_card(weight_file(write_weights(tmp_path / "invented.safetensors")))
    monkeypatch.setitem(CARDS, NAME, card)
    return card


@pytest.fixture
def module(bench: Any, shipped: Card) -> Iterator[Any]:
    with opened(bench) as loaded:
        yield loaded


@contextmanager
def opened(bench: Any) -> Iterator[Any]:
    """The module on the bench."""
    add_launcher(Path(bench.app.slicerHome))
    loaded = bench.load(REPOSITORY / "DiffeoReg" / "DiffeoReg.py")
    yield loaded.enter()
    loaded.close()


def test_apply_waits_for_the_licence(bench: Any, module: Any) -> None:
    panel, worker = module.panel, Started()
    module.logic._runner = worker
    panel.parameters.fixed, panel.parameters.moving = add_volume("CT", 1), add_volume("MR", 2)
    assert panel.ui.applyButton.enabled
    panel.ui.methodCombo.setCurrentIndex(panel.ui.methodCombo.findData(NAME))
    assert not panel.ui.applyButton.enabled
    assert LICENCE in panel.ui.statusLabel.text
    assert "come with DiffeoReg" in panel.ui.weightsState.text
    assert "Trained on Ten spheres (CC0-1.0)" in panel.ui.licenceText.text
    assert panel.ui.weightsButtons.isHidden()
    panel.ui.licenceCheck.click()
    assert panel.ui.applyButton.enabled
    assert "without the network" in panel.ui.estimateText.text
    module.logic.start(panel.request())
    settings = worker.jobs[0]["settings"]
    assert (settings["method"], settings["accepted_licences"]) == (NAME, (LICENCE,))
    assert settings["weights"] is None


def test_the_console_accepts_a_licence(bench: Any, module: Any) -> None:
    logic, worker = module.logic, Started()
    logic._runner = worker
    pair = add_volume("CT", 1), add_volume("MR", 2)
    later: dict[str, Any] = {"method": NAME, "waitForCompletion": False}
    with pytest.raises(LicenceError, match="tick under Setup"):
        logic.register(*pair, **later)
    logic.register(*pair, settings={"accepted_licences": (LICENCE,)}, **later)
    with pytest.raises(LicenceError):
        logic.register(*pair, **later)  # it was for that run
    logic.acceptLicence(LICENCE)
    assert Machine().accepted_licences == {LICENCE}
    logic.register(*pair, **later)
    assert [job["settings"]["accepted_licences"] for job in worker.jobs] == [(LICENCE,)] * 2


def test_the_worker_runs_weights_of_the_user(bench: Any, module: Any, tmp_path: Path) -> None:
    pair = load_pair(bench.core)
    mine = write_weights(tmp_path / "mine.safetensors")
    settings = {"weights": str(mine), "device": "cpu", "threads": 1}
    result = module.logic.register(
        pair.fixed, pair.moving, method="sitreg", effort="fast", settings=settings, wantVelocity=False
    )
    assert result.selfCheck.ok
    assert result.report["folds"]["folded_percent"] == 0
    assert result.report["settings"]["method"] == "sitreg"
    mine.write_bytes(mine.read_bytes()[:-9])
    with pytest.raises(InputError, match=r"mine\.safetensors' is damaged"):
        module.logic.register(pair.fixed, pair.moving, method="sitreg", settings=settings)


@pytest.mark.parametrize("name", sorted(TRAINED))
def test_a_model_of_the_catalogue_registers_the_shipped_pair(bench: Any, name: str) -> None:
    card = CARDS[name]
    pair = slices() if card.spacing_mm and len(card.spacing_mm) == 2 else load_pair(bench.core)
    settings = {"accepted_licences": card.licences_to_accept, "device": "cpu", "threads": 1}
    with opened(bench) as module:
        result = module.logic.register(
            pair.fixed, pair.moving, method=name, effort="fast", settings=settings, wantVelocity=False
        )
    assert result.selfCheck.ok
    assert result.report["folds"]["folded_percent"] == 0
    if card.deformable:
        assert result.report["displacement_mm"]["deformation"]["max"] > 0.3
    said = f"Weights: '{card.title}', version {card.version}"
    assert any(note.startswith(said) for note in result.report["notes"])


def test_weights_that_are_missing_are_said_before_a_run(bench: Any, module: Any, tmp_path: Path) -> None:
    module.logic.acceptLicence(LICENCE)
    (tmp_path / "invented.safetensors").unlink()
    with pytest.raises(WeightsError, match="reinstall"):
        module.logic.register(add_volume("CT", 1), add_volume("MR", 2), method=NAME)


def test_every_model_is_offered_but_none_that_needs_weights_of_the_user(bench: Any, shipped: Card) -> None:
    offered = [name for name, _ in methods()]
    assert set(offered) >= TRAINED
    assert {name for name, _ in group_methods()} >= TRAINED_FOR_GROUPS
    assert not [name for name in offered if CARDS[name].own_weights]
