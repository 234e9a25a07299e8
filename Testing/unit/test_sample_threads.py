"""Reading spread over threads gives what one thread gives, bit for bit."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from DiffeoRegLib.space import sample as module
from DiffeoRegLib.space.sample import sample, sample_normalised


@pytest.fixture
def threads():
    """Sets the number of threads; back to what it was afterwards."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.fixture
def readings(monkeypatch):
    """Batch sizes that grid_sample was called with."""
    seen = []

    def spy(values, *others, **options):
        seen.append(len(values))
        return original(values, *others, **options)

    original = functional.grid_sample
    monkeypatch.setattr(module.functional, "grid_sample", spy)
    return seen


@pytest.mark.parametrize("outside", ["border", "zeros"])
@pytest.mark.parametrize("mode", ["linear", "nearest"])
@pytest.mark.parametrize(("shape", "out"), [((6, 7, 5), (9, 4, 3)), ((6, 5), (7, 8)), ((6, 7, 5), (31,))])
@pytest.mark.parametrize("count", [2, 3, 4])
def test_equal_to_one_thread(threads, readings, shape, out, mode, outside, count):
    values = torch.randn(1, 2, *shape)
    position = 8 * torch.rand(1, len(shape), *out) - 1
    threads(1)
    expected = sample(values, position, mode=mode, outside=outside)
    assert readings == [1]
    threads(count)
    got = sample(values, position, mode=mode, outside=outside)
    assert torch.equal(got, expected)
    assert readings[1] == count  # divided, and what remains of the rows read on its own
    assert len(readings) == (2 if out[0] % count == 0 else 3)


def test_normalised_reading(threads, readings):
    values, position = torch.randn(1, 3, 5, 6, 7), 2.4 * torch.rand(1, 5, 4, 3, 3) - 1.2
    threads(1)
    expected = sample_normalised(values, position)
    threads(2)
    assert torch.equal(sample_normalised(values, position), expected)
    assert readings == [1, 2, 1]


def test_gradients_pass_through(threads, readings):
    values = torch.randn(1, 1, 5, 6, dtype=torch.float64, requires_grad=True)
    position = (torch.rand(1, 2, 8, 3, dtype=torch.float64) * 3 + 0.1).requires_grad_()
    threads(2)
    assert torch.autograd.gradcheck(sample, (values, position))
    assert set(readings) == {1}


def test_batches_and_short_readings_are_left_whole(threads, readings):
    threads(4)
    sample(torch.randn(2, 1, 5, 6), torch.rand(2, 2, 8, 8))
    sample(torch.randn(1, 1, 5, 6), torch.rand(1, 2, 3, 8))
    assert readings == [2, 1]
