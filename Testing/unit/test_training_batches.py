"""Batches that depend on the seed and the position alone, however many processes read them."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch

from DiffeoRegLib.errors import InputError
from DiffeoRegLib.training.batches import Stream, collate, own_randomness
from Testing.training_cases import Blobs


def test_every_epoch_reads_each_pair_once_in_another_order():
    pairs = Blobs()
    stream = Stream(pairs, batch=2, seed=0).after(0)
    for _ in range(6):
        next(stream)
    first, second = pairs.read[:6], pairs.read[6:]
    assert sorted(first) == [(0, n) for n in range(6)]
    assert sorted(second) == [(1, n) for n in range(6)]
    assert [n for _, n in first] != [n for _, n in second]


def test_a_stream_starts_anywhere_and_two_processes_share_it():
    def images(stream, count):
        return [torch.stack([d.item["moving"] for d in next(stream)]) for _ in range(count)]

    whole = images(Stream(Blobs(), batch=2, seed=5).after(0), 5)
    late = images(Stream(Blobs(), batch=2, seed=5).after(2), 3)
    assert all(torch.equal(a, b) for a, b in zip(whole[2:], late, strict=True))
    shared = [images(Stream(Blobs(), batch=1, seed=5, rank=r, count=2).after(0), 5) for r in (0, 1)]
    assert all(torch.equal(w, torch.cat(pair)) for w, *pair in zip(whole, *shared, strict=True))


def test_reading_ahead_in_other_processes_changes_nothing():
    def images(workers):
        stream = Stream(Blobs(4), batch=2, seed=5, workers=workers).after(1)
        found = [d.item["moving"].clone() for _ in range(2) for d in next(stream)]
        stream.close()
        return torch.stack(found)

    assert torch.equal(images(0), images(1))


def test_items_leave_the_generators_as_they_were():
    def numbers():
        return random.random(), np.random.rand(), float(torch.rand(()))  # noqa: NPY002

    random.seed(1)
    expected = numbers()
    random.seed(1)
    np.random.seed(0)  # noqa: NPY002
    torch.manual_seed(0)
    before = numbers()
    random.seed(1)
    np.random.seed(0)  # noqa: NPY002
    torch.manual_seed(0)
    with own_randomness("a", 1):
        inside = numbers()
    assert numbers() == before
    with own_randomness("a", 1):
        assert numbers() == inside
    with own_randomness("a", 2):
        assert numbers() != inside
    assert len(set(inside) & set(expected)) == 0


def test_items_that_do_not_fit_together_are_named():
    first, second = {"moving": torch.zeros(1, 4, 5), "names": ("a", "b")}, {"moving": torch.zeros(1, 4, 6)}
    with pytest.raises(InputError, match="no image 'fixed': a -> b"):
        collate([first])
    items = [{**item, "fixed": item["moving"]} for item in (first, second)]
    with pytest.raises(InputError, match="different shapes"):
        collate(items)
    with pytest.raises(InputError, match="differ in shape"):
        collate([{**items[0], "fixed": torch.zeros(1, 4, 6)}])
    batch = collate([{**items[0], "moving_labels": torch.ones(1, 4, 5)}, items[0]])
    assert batch.moving_labels is None
    assert batch.names == ("a -> b", "a -> b")
