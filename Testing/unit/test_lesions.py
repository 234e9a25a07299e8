"""Synthetic lesions: the motion they make is known, one to one, and all that changes outside them."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from scipy import ndimage

from DiffeoRegLib.errors import InputError, SettingsError, ShapeError, UnknownNameError
from DiffeoRegLib.space.field import compose, minimum_corner_determinant
from DiffeoRegLib.space.sample import warp
from DiffeoRegLib.training.draws import generator_for
from DiffeoRegLib.training.growth import edge_window, mass_effect, outflow
from DiffeoRegLib.training.lesions import NECROSIS, OEDEMA, RING, SOLID, LesionOptions, implant, organ_of
from Testing.lesion_cases import brain, disc

SMALL = LesionOptions(radius_vox=(5, 10), reaches_vox=(8, 16))
CASES = [((64, 56), seed) for seed in range(6)] + [((28, 32, 30), seed) for seed in range(2)]


@pytest.fixture(params=CASES, ids=lambda case: f"{len(case[0])}D-{case[1]}")
def case(request):
    """A healthy image and a patient made of it."""
    shape, seed = request.param
    healthy = brain(shape, seed)
    radius = (5, 10) if len(shape) == 2 else (3, 6)
    options = dataclasses.replace(SMALL, radius_vox=radius)
    return healthy, implant(healthy, generator_for("lesion", seed), options)


def test_outside_the_lesion_the_patient_is_the_healthy_image_through_the_truth(case):
    healthy, patient = case
    outside = patient.pathology == 0
    read = warp(healthy, patient.u_vox)
    assert float((read - patient.image)[outside].abs().max()) <= 1e-5
    assert float((read - patient.image)[~outside].abs().mean()) > 0.01


def test_no_cell_of_the_truth_folds_and_its_inverse_undoes_it(case):
    _, patient = case
    assert float(minimum_corner_determinant(patient.u_vox).min()) > 0
    assert float(minimum_corner_determinant(patient.inverse_vox).min()) > 0
    there_and_back = compose(patient.u_vox, patient.inverse_vox)
    assert float(there_and_back.norm(dim=1).max()) < 2e-3


def test_lesions_lie_in_the_organ(case):
    _, patient = case
    assert bool(patient.pathology.any())
    assert not bool((patient.pathology * (1 - patient.organ)).any())
    assert set(patient.parts.unique().tolist()) <= {0, NECROSIS, SOLID, RING, OEDEMA}
    assert bool((patient.solid <= patient.pathology).all())


def test_tissue_is_pushed_away_and_the_far_background_rests(case):
    healthy, patient = case
    moved = patient.u_vox.norm(dim=1, keepdim=True)
    assert float(moved.max()) > 0.3
    assert float(moved[edge_window(organ_of(healthy)) == 0].max()) < 0.05
    # More room in the patient than there was: the lesion's voxels come from fewer healthy ones.
    room = float(patient.solid.sum())
    taken = float(warp(patient.solid, patient.inverse_vox, outside="zeros").sum())
    assert taken < 0.95 * room


def test_the_same_seed_gives_the_same_patient_and_another_seed_another():
    healthy = brain((64, 56), 0)
    first, again, other = (implant(healthy, generator_for("draw", seed), SMALL) for seed in (1, 1, 2))
    assert torch.equal(first.image, again.image)
    assert torch.equal(first.u_vox, again.u_vox)
    assert torch.equal(first.parts, again.parts)
    assert not torch.equal(first.image, other.image)


def test_drawing_leaves_the_global_generators_alone():
    state = torch.get_rng_state()
    implant(brain((64, 56), 0), generator_for("draw", 1), SMALL)
    assert torch.equal(torch.get_rng_state(), state)


def test_without_growth_nothing_moves_and_without_oedema_all_is_solid():
    healthy = brain((64, 56), 1)
    still = implant(healthy, generator_for(3), dataclasses.replace(SMALL, growth=(0, 0), oedema=0))
    assert not bool(still.u_vox.any())
    assert torch.equal(still.solid, still.pathology)
    outside = still.pathology == 0
    assert torch.allclose(still.image[outside], healthy[outside], atol=1e-5)


def test_options_decide_about_parts():
    healthy = brain((64, 56), 2)
    full = dataclasses.replace(SMALL, radius_vox=(10, 10), oedema=1, ring=1, necrosis=1, count=(1, 1))
    assert set(implant(healthy, generator_for(0), full).parts.unique().tolist()) == {0, 1, 2, 3, 4}
    plain = dataclasses.replace(full, oedema=0, ring=0, necrosis=0)
    assert set(implant(healthy, generator_for(0), plain).parts.unique().tolist()) == {0, SOLID}


def test_more_growth_pushes_farther():
    healthy = brain((64, 56), 2)
    lengths = [
        float(implant(healthy, generator_for(0), dataclasses.replace(SMALL, growth=(g, g))).u_vox.abs().max())
        for g in (0.1, 0.3)
    ]
    assert 1.5 * lengths[0] < lengths[1]


def test_a_healthy_patient_is_the_image_itself():
    healthy = brain((64, 56), 0)
    patient = implant(healthy, generator_for(0), dataclasses.replace(SMALL, healthy=1))
    assert torch.equal(patient.image, healthy)
    assert not bool(patient.u_vox.any())
    assert not bool(patient.pathology.any())


def test_labels_move_with_the_tissue_and_end_where_it_was_replaced():
    healthy = brain((64, 56), 4)
    patient = implant(healthy, generator_for(4), SMALL)
    labels = (1 + (healthy > 0.5).long()) * (organ_of(healthy) > 0).long()
    found = patient.labels(labels)
    assert found.dtype == labels.dtype
    assert not bool(found[patient.solid > 0].any())
    expected = warp(labels.float(), patient.u_vox, mode="nearest", outside="zeros").round().long()
    assert torch.equal(found[patient.solid == 0], expected[patient.solid == 0])


def test_an_organ_can_be_given():
    healthy = brain((64, 56), 0)
    left = torch.zeros_like(healthy)
    left[..., :28] = organ_of(healthy)[..., :28]
    for seed in range(4):
        patient = implant(healthy, generator_for(seed), SMALL, left)
        assert not bool(patient.pathology[..., 32:].any())


def test_holes_of_an_organ_are_closed():
    healthy = torch.zeros(1, 1, 40, 40)
    healthy[..., 8:32, 8:32] = 0.6
    healthy[..., 19:21, 19:21] = 0
    organ = organ_of(healthy)
    assert organ[0, 0, 20, 20] == 1
    assert organ[0, 0, 2, 2] == 0
    assert ndimage.label(organ[0, 0].numpy())[1] == 1


@pytest.mark.parametrize("image", [torch.rand(1, 1, 20), torch.rand(2, 1, 20, 20), torch.rand(1, 2, 20, 20)])
def test_only_one_image_takes_lesions(image):
    with pytest.raises(ShapeError, match="one image"):
        implant(image, generator_for(0), SMALL)


def test_an_image_without_an_organ_is_refused():
    with pytest.raises(InputError, match="no organ"):
        implant(torch.zeros(1, 1, 32, 32), generator_for(0), SMALL)
    with pytest.raises(ShapeError, match="organ is"):
        implant(brain((64, 56), 0), generator_for(0), SMALL, torch.ones(1, 1, 8, 8))


@pytest.mark.parametrize(
    "changes",
    [
        {"count": (0, 1)}, {"count": (3, 2)}, {"radius_vox": (0.5, 3)}, {"growth": (0.5, 0.2)},
        {"reaches_vox": ()}, {"oedema": 1.5}, {"bumps": 0.5}, {"looks": ()}, {"spread": (0, 3)},
    ],
)  # fmt: skip
def test_options_that_make_no_sense_are_refused(changes):
    with pytest.raises(SettingsError):
        LesionOptions(**changes)


def test_unknown_looks_are_named():
    with pytest.raises(UnknownNameError, match="t1w"):
        LesionOptions(looks=("t1w",))


# ---------------------------------------------------------------- growth


def test_outflow_of_a_disc_falls_with_distance_and_points_away():
    source = disc((96, 96), (48, 48), 6.0)
    velocity = outflow(source, 1e4)[0].numpy()
    y, x = np.mgrid[:96, :96] - 48.0
    radius = np.hypot(y, x)
    outward = (velocity[0] * y + velocity[1] * x) / np.maximum(radius, 1e-6)
    # Gauss: outside the disc the flow through a circle of radius r is the source's area. The box wraps
    # around: near its middle that changes little.
    area = float(source.sum())
    for r in (10, 14, 18):
        ring = np.abs(radius - r) < 0.5
        assert outward[ring].mean() == pytest.approx(area / (2 * np.pi * r), rel=0.15)
    short = outflow(source, 5.0)[0].numpy()
    assert np.abs(short[:, 48, 75]).max() < 0.05 * np.abs(velocity[:, 48, 75]).max()


def test_growth_is_as_long_as_asked_and_never_folds():
    source, organ = disc((80, 80), (40, 40), 12.0), disc((80, 80), (40, 40), 34.0)
    for largest in (1.0, 4.0, 1e6):
        u_vox = mass_effect(source, organ, largest, 20.0)
        assert float(minimum_corner_determinant(u_vox).min()) >= 0.05
        assert float(u_vox.norm(dim=1).max()) <= largest
    assert float(mass_effect(source, organ, 1.0, 20.0).norm(dim=1).max()) == pytest.approx(1.0, rel=0.15)
    assert not bool(mass_effect(source, organ, 0.0, 20.0).any())


def test_growth_that_cannot_be_is_refused():
    source, organ = disc((40, 40), (20, 20), 5.0), disc((40, 40), (20, 20), 15.0)
    with pytest.raises(InputError, match="Nothing grows"):
        mass_effect(torch.zeros_like(source), organ, 2.0, 10.0)
    with pytest.raises(SettingsError, match="reach"):
        mass_effect(source, organ, 2.0, 0.0)
    with pytest.raises(ShapeError):
        mass_effect(source[..., :10], organ, 2.0, 10.0)
