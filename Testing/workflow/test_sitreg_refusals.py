"""What a network's registration tells, hands over to the CPU, and refuses in one sentence."""

from __future__ import annotations

import pytest
import torch

from DiffeoRegLib.catalog import card
from DiffeoRegLib.errors import (
    Cancelled,
    InputError,
    MemoryLimitError,
    SettingsError,
    UnknownNameError,
    WeightsError,
)
from DiffeoRegLib.methods.sitreg import SITRegMethod
from DiffeoRegLib.pipeline import register
from DiffeoRegLib.settings import Settings
from DiffeoRegLib.space.grid import Grid
from DiffeoRegLib.space.transform import CompositeTransform
from DiffeoRegLib.volumes.volume import Volume
from Testing.halfway_cases import hostile_pair, network_file, same_numbers, settings_for
from Testing.scenes import Scene, turned_grid

# ---------------------------------------------------------------- what is told


def test_progress_notes_and_citations(weak):
    _, fixed, moving = hostile_pair()
    told = []
    settings = settings_for(weak, iterations=(2, 3), extras={"precision": "float32"})
    report = register(fixed, moving, settings, progress=told.append).report
    fractions = [step.fraction for step in told]
    assert fractions == sorted(fractions)
    assert sum(step.phase == "optimise" for step in told) == 5
    assert any("network looks at" in step.message for step in told)
    assert report["citations"] == [card("sitreg").citation, card("svf").citation]
    assert any("float32" in note for note in report["notes"])
    assert any("half-way between the images" in note for note in report["notes"])
    alone = register(fixed, moving, settings_for(weak)).report
    assert alone["citations"] == [card("sitreg").citation]


@pytest.mark.parametrize("phase", ["align", "prepare", "predict", "refine", "optimise", "integrate"])
def test_every_phase_can_be_cancelled(weak, phase):
    _, fixed, moving = hostile_pair()

    def stop(step):
        if step.phase == phase:
            raise Cancelled(phase)

    with pytest.raises(Cancelled, match=phase):
        register(fixed, moving, settings_for(weak, iterations=(2, 2)), progress=stop)


def test_out_of_device_memory_the_cpu_takes_over(monkeypatch, weak):
    _, fixed, moving = hostile_pair()
    expected = register(fixed, moving, settings_for(weak))
    calls, predict = [], SITRegMethod.predict

    def full_once(*arguments):
        calls.append(1)
        if len(calls) == 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return predict(*arguments)

    monkeypatch.setattr(SITRegMethod, "predict", full_once)
    result = register(fixed, moving, settings_for(weak))
    assert len(calls) == 2
    assert any("was not enough" in note for note in result.report["notes"])
    assert same_numbers(result.transform, expected.transform)


# ---------------------------------------------------------------- what is refused


def test_images_too_small_for_the_network(folder):
    deep = network_file(folder / "deep.safetensors", levels=7)
    scene = Scene(radius_mm=5.0)
    grid = turned_grid((20, 22, 18), (1.0, 1.0, 1.0))
    with pytest.raises(InputError, match="too small for 7 levels") as caught:
        register(scene.fixed(grid), scene.moving(grid), settings_for(deep))
    assert str(caught.value).count(". ") == 0


def test_slices_for_a_network_of_volumes_and_the_other_way_round(strong, flat):
    told = []
    _, fixed, moving = hostile_pair(2)
    with pytest.raises(InputError, match="works on 3D images and these are 2D"):
        register(fixed, moving, settings_for(strong), progress=told.append)
    _, fixed, moving = hostile_pair()
    with pytest.raises(InputError, match="works on 2D images and these are 3D"):
        register(fixed, moving, settings_for(flat), progress=told.append)
    assert told == []


def test_too_little_memory(strong):
    _, fixed, moving = hostile_pair()
    with pytest.raises(MemoryLimitError, match=r"only 0\.1 GB may be used"):
        register(fixed, moving, settings_for(strong, memory_limit_gb=0.1))
    finer = {"working_spacing_mm": 0.5, "iterations": (1, 1)}
    coarser = register(fixed, moving, settings_for(strong, memory_limit_gb=0.45, **finer))
    assert any("coarser than asked for" in note for note in coarser.report["notes"])
    assert min(coarser.transform.parts[1].grid.spacing) > 0.9


@pytest.mark.parametrize(
    ("changes", "error", "sentence"),
    [
        ({"extras": {"mod": "standard"}}, UnknownNameError, "Did you mean 'mode'"),
        ({"extras": {"mode": "exact"}}, UnknownNameError, "complete-exact"),
        ({"extras": {"precision": "fp16"}}, UnknownNameError, "bfloat16, float32"),
        ({"extras": {"fast": "yes"}}, SettingsError, "true or false"),
        ({"extras": {"search_radius_mm": 3.0}}, UnknownNameError, "fast, mode, passes, precision"),
        ({"extras": {"passes": 0}}, SettingsError, "from 1 to 10"),
        ({"extras": {"passes": 1.5}}, SettingsError, "from 1 to 10"),
        ({"iterations": (1, 2, 3, 4)}, SettingsError, "up to 3 numbers"),
        ({"levels_mm": (2.0,), "iterations": (1, 2)}, SettingsError, "do not match"),
    ],
)
def test_settings_that_make_no_sense(strong, changes, error, sentence):
    told = []
    _, fixed, moving = hostile_pair()
    with pytest.raises(error, match=sentence):
        register(fixed, moving, settings_for(strong, **changes), progress=told.append)
    assert told == []


def test_a_network_trained_without_its_finest_level(folder):
    """It runs as it was trained, whatever the default is, and not otherwise."""
    _, fixed, moving = hostile_pair()
    halved = network_file(folder / "halved.safetensors", fast=True)
    result = register(fixed, moving, settings_for(halved))
    told = register(fixed, moving, settings_for(halved, extras={"fast": True}))
    assert same_numbers(result.transform, told.transform)
    whole = network_file(folder / "whole.safetensors")
    other = register(fixed, moving, settings_for(whole))
    assert not same_numbers(result.transform, other.transform)
    fast = register(fixed, moving, settings_for(whole, extras={"fast": True}))
    assert same_numbers(result.transform, fast.transform)
    with pytest.raises(SettingsError, match="never trained"):
        register(fixed, moving, settings_for(halved, extras={"fast": False}))


def test_weights_that_cannot_be_used(folder, strong):
    _, fixed, moving = hostile_pair()
    with pytest.raises(WeightsError):
        register(fixed, moving, settings_for(folder / "nothing.safetensors"))
    with pytest.raises(SettingsError):
        register(fixed, moving, Settings(method="sitreg", device="cpu"))
    bent = folder / "bent.safetensors"
    content = bytearray(strong.read_bytes())
    content[-5] ^= 1
    bent.write_bytes(content)
    with pytest.raises(WeightsError, match="altered"):
        register(fixed, moving, settings_for(bent))


def test_images_that_share_no_space(strong):
    _, fixed, moving = hostile_pair()
    matrix = moving.grid.world_from_voxel.copy()
    matrix[0, 3] += 500
    far = Volume(moving.data, Grid(moving.grid.shape, matrix), "far")
    with pytest.raises(InputError, match="share"):
        register(fixed, far, settings_for(strong, init="identity"))
    assert isinstance(register(fixed, far, settings_for(strong)).transform, CompositeTransform)
