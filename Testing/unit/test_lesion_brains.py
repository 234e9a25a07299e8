"""How the study of brains with lesions puts maps together, on cases one can work out."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from Testing.benchmarks import lesion_brains as brains
from Testing.benchmarks.lesion_data import Case
from Testing.round_head import head

SETTINGS = brains.BRAINS.with_changes(method="metamorphosis", levels_mm=(4.0,), iterations=(3,))


def case_of(truth=False):
    """A head, one that is a little smaller, and a lesion in the first."""
    image, _ = head(noise=0)
    fixed = (image.data / 200)[None, None]
    moving = torch.nn.functional.pad(fixed, (1, 0))[..., :-1]
    lesion = torch.zeros_like(fixed)
    lesion[..., 22:28, 22:28, 26:32] = 1
    patient = torch.where(lesion > 0, 1.0, fixed)
    known = torch.zeros(1, 3, *fixed.shape[2:]) if truth else None
    return Case("head", (2.0, 2.0, 2.0), moving, patient, lesion, (fixed > 0).float(), known)


def test_the_alignment_comes_after_the_deformation():
    draw = torch.Generator().manual_seed(0)
    u_vox = torch.randn(1, 3, 4, 5, 6, generator=draw)
    affine = np.eye(4)
    affine[:3] = [[1.1, 0.2, 0, 3], [0, 0.9, 0, -1], [0.1, 0, 1, 0.5]]
    found = brains.after(u_vox, affine)
    x = np.array([2, 3, 1])
    end = affine[:3, :3] @ (x + u_vox[0, :, 2, 3, 1].numpy()) + affine[:3, 3]
    np.testing.assert_allclose(found[0, :, 2, 3, 1].numpy(), end - x, atol=1e-5)


def test_only_cases_with_a_truth_are_aligned(monkeypatch):
    shift = np.eye(4)
    shift[2, 3] = 4.0  # mm: two voxels
    monkeypatch.setattr(brains, "alignment", lambda fixed, moving: shift)
    plain, nothing = brains.aligned(case_of())
    assert torch.equal(plain.moving, case_of().moving)
    assert np.array_equal(nothing, np.eye(4))
    case, between = brains.aligned(case_of(truth=True))
    assert between[:3, 3] == pytest.approx([0, 0, 2])
    torch.testing.assert_close(case.moving[..., :-2], case_of().moving[..., 2:])


def test_the_change_stays_within_marks_and_empty_marks_are_none():
    case = case_of()
    _, change, seconds = brains.by_method(SETTINGS, case, "given")
    assert float(change[case.pathology == 0].abs().max()) == 0
    assert float(change[case.pathology > 0].abs().mean()) > 0.05
    assert seconds > 0
    bare = Case("head", case.spacing, case.moving, case.fixed, torch.zeros_like(case.pathology), case.organ)
    told, change, _ = brains.by_method(SETTINGS, bare, "given")
    untold, _, _ = brains.by_method(SETTINGS, case, "none")
    assert change is None
    assert torch.equal(told, untold)
    left_out, _, _ = brains.by_method(SETTINGS.with_changes(method="svf"), case, "left out")
    assert not torch.equal(left_out, untold)
