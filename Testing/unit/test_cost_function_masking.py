"""A lesion that only one image has is taken out of the comparison by its mask (cost function masking)."""

from __future__ import annotations

import pytest
import torch

from DiffeoRegLib.errors import InputError, NoOverlapError
from DiffeoRegLib.training.config import LossConfig
from DiffeoRegLib.training.objective import Batch, Objective
from Testing.sitreg_cases import pictures
from Testing.training_cases import Fields

SHAPE = (40, 44)
LESION = (slice(None), slice(None), slice(15, 24), slice(18, 29))


def healthy():
    """Weights of the fixed image: 0 in the lesion."""
    mask = torch.ones(1, 1, *SHAPE)
    mask[LESION] = 0
    return mask


def loss_and_pull(fixed, mask, name, options, u_vox=None, symmetric=False):
    """The loss and its derivative by the field."""
    moving, _ = pictures(SHAPE)
    field = (torch.full((1, 2, *SHAPE), 0.3) if u_vox is None else u_vox).clone().requires_grad_()
    batch = Batch(moving, fixed, fixed_mask=mask)
    objective = Objective([LossConfig(name, 1.0, options)], symmetric=symmetric)
    value, _ = objective(Fields(field, -field), batch)
    (pull,) = torch.autograd.grad(value, field)
    return value.detach(), pull


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("mse", {}),
        ("lncc-squared", {"window": 5}),
        ("lncc", {"window": 5}),
        ("lncc-published", {"window": 5}),
    ],
)
def test_what_a_lesion_looks_like_changes_nothing(name, options, symmetric):
    """Neither the loss nor its derivative; a field of whole voxels carries the mask with the lesion."""
    _, fixed = pictures(SHAPE)
    u_vox = torch.ones(1, 2, *SHAPE)
    found = []
    for look in (0.0, 0.9, None):
        changed = fixed.clone()
        if look is not None:
            changed[LESION] = look
        found.append(loss_and_pull(changed, healthy(), name, options, u_vox, symmetric))
    for value, pull in found[1:]:
        torch.testing.assert_close(value, found[0][0], rtol=1e-6, atol=1e-7)
        if not symmetric:  # the other way reads the lesion, and the slope of an image looks one voxel ahead
            torch.testing.assert_close(pull, found[0][1], rtol=1e-4, atol=1e-9)
    changed = fixed.clone()
    changed[LESION] = 0.9
    unmasked = [loss_and_pull(image, None, name, options)[0] for image in (fixed, changed)]
    assert abs(float(unmasked[0] - unmasked[1])) > 1e-3


def test_nothing_pulls_inside_the_lesion():
    _, fixed = pictures(SHAPE)
    _, pull = loss_and_pull(fixed, healthy(), "mse", {})
    assert float(pull[LESION].abs().max()) == 0
    assert float(pull.abs().max()) > 0


def test_a_mask_without_any_healthy_voxel_is_refused():
    _, fixed = pictures(SHAPE)
    with pytest.raises((InputError, NoOverlapError)):
        loss_and_pull(fixed, torch.zeros(1, 1, *SHAPE), "mse", {})
