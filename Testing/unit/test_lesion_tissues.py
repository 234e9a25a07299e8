"""What the study of patients reads from intensities alone, on brains one can count."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from DiffeoRegLib.space.sample import array_from_tensor
from DiffeoRegLib.volumes.volume import Volume
from Testing.benchmarks import lesion_tissues as tissues
from Testing.round_head import SIZE, head


def test_thresholds_lie_between_three_heaps():
    draw = np.random.default_rng(1)
    values = np.concatenate([draw.normal(m, 4, n) for m, n in ((20, 300), (100, 900), (160, 500))])
    low, high = tissues.thresholds(values)
    assert 30 < low < 90
    assert 110 < high < 150


def test_three_tissues_and_the_deep_pool_are_found():
    image, kinds = head(noise=4)
    found, deep = tissues.tissues_of(image)
    found, deep = array_from_tensor(found.data), array_from_tensor(deep.data)
    assert (found == kinds)[kinds > 0].mean() > 0.93  # borders are smoothed
    assert ((found > 0) == (kinds > 0)).all()
    offset = np.indices((SIZE,) * 3) - (SIZE - 1) / 2
    pool = np.sqrt((offset**2).sum(0)) * 2 < 10
    assert tissues.dice(deep > 0, pool) > 0.9


def test_a_lesion_does_not_set_thresholds():
    image, kinds = head(noise=4)
    lesion = np.zeros(kinds.shape, bool)
    lesion[:, :, SIZE // 2 + 4 :] = True
    bright = Volume(image.data + 2000 * torch.tensor(lesion & (kinds > 0)), image.grid, "bright")
    plain = array_from_tensor(tissues.tissues_of(bright)[0].data)
    left_out = array_from_tensor(tissues.tissues_of(bright, lesion)[0].data)
    inside = (kinds > 0) & ~lesion
    inside[:, :, SIZE // 2 :] = False  # smoothing reaches across the border
    assert (left_out == kinds)[inside].mean() > 0.93 > (plain == kinds)[inside].mean() + 0.2


def test_overlap_and_mutual_information_of_known_pairs():
    one, other = np.array([1, 1, 1, 0], bool), np.array([0, 1, 1, 1], bool)
    assert tissues.dice(one, other) == pytest.approx(2 / 3)
    draw = np.random.default_rng(2)
    values = draw.random(20_000)
    assert tissues.nmi(values, 3 - 2 * values) == pytest.approx(2)  # one says all about the other
    assert tissues.nmi(values, draw.random(20_000)) < 1.03
