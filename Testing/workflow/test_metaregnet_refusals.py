"""What a MetaRegNet's registration refuses, and in which words."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from DiffeoRegLib.errors import InputError, SettingsError, UnknownNameError, WeightsError
from DiffeoRegLib.pipeline import register
from DiffeoRegLib.volumes.pathology import Pathology
from DiffeoRegLib.volumes.volume import Volume
from Testing.halfway_cases import hostile_pair
from Testing.halfway_cases import network_file as sitreg_file
from Testing.metaregnet_networks import ball, settings_for


def far_away(marks):
    matrix = marks.grid.world_from_voxel.copy()
    matrix[:3, 3] += 500
    return Volume(marks.data, dataclasses.replace(marks.grid, world_from_voxel=matrix), marks.name, True)


def everywhere(marks):
    return Volume(torch.ones_like(marks.data), marks.grid, marks.name, True)


REFUSED = {
    "everything": (lambda m: Pathology(everywhere(m)), {}, InputError, "covers all of 'patient'"),
    "outside": (lambda m: Pathology(far_away(m)), {}, InputError, "does not touch the image 'patient'"),
    "class": (lambda m: Pathology(m, classes=(7,)), {}, InputError, r"none of the chosen classes \(7\)"),
    "not used": (lambda m: Pathology(m), {"method": "svf", "weights": None, "extras": {}}, InputError,
                 "'svf' has no use for a pathology"),
    "contrast": (lambda m: Pathology(m), {"effort": "balanced", "similarity": "mind"}, InputError,
                 "which 'mind' does not compare"),
    "extra": (lambda m: Pathology(m), {"extras": {"order": "paper"}}, UnknownNameError, "Known: precision"),
    "precision": (lambda m: Pathology(m), {"extras": {"precision": "fp16"}}, UnknownNameError, "float32"),
    "levels": (lambda m: Pathology(m), {"levels_mm": (2.0,), "iterations": (1, 2)}, SettingsError,
               "do not match"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_refused_before_any_work(changing, pictures, name):
    fixed, moving, marks = pictures
    pathology, changes, error, words = REFUSED[name]
    began = []
    with pytest.raises(error, match=words) as refused:
        register(
            fixed, moving, settings_for(changing).with_changes(**changes), pathology=pathology(marks),
            progress=began.append,
        )  # fmt: skip
    assert "\n" not in str(refused.value)
    assert began == []


def test_weights_that_do_not_fit(folder, changing, pictures):
    fixed, moving, marks = pictures
    other = sitreg_file(folder / "sitreg.safetensors", dim=2)
    with pytest.raises(WeightsError, match="weights of 'sitreg', but 'metaregnet' needs"):
        register(fixed, moving, settings_for(other), pathology=Pathology(marks))
    with pytest.raises(WeightsError, match="cannot be read"):
        register(fixed, moving, settings_for(folder / "none.safetensors"))
    _, *volumes = hostile_pair()
    with pytest.raises(InputError, match="works on 2D images and these are 3D"):
        register(*volumes, settings_for(changing))
    with pytest.raises(SettingsError, match="runs with weights that you trained"):
        register(fixed, moving, settings_for(changing).with_changes(weights=None))
    with pytest.raises(InputError, match="is 3D, its image 'patient' 2D"):
        register(fixed, moving, settings_for(changing), pathology=Pathology(ball(volumes[0])))
