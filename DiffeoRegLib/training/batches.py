"""Pairs in an order that depends on nothing but the seed, so that any step can be made again.

Every pair is drawn with random numbers of its own, a function of the seed, the epoch and its index: neither
reading ahead in other processes nor how many of them share the work changes what is seen.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from DiffeoRegLib.errors import InputError, SettingsError
from DiffeoRegLib.training.group_terms import GroupBatch, group_of
from DiffeoRegLib.training.objective import IMAGES, Batch

POINTS = ("moving_points_vox", "fixed_points_vox")


class Pairs(Protocol):
    """A dataset of pairs.

    An item holds `moving` and `fixed` (1, *shape); it may hold `moving_labels` and `fixed_labels`, whole
    numbers alike, `moving_mask` and `fixed_mask`, `moving_points_vox` and `fixed_points_vox` (n, d), `names`,
    and `skipped`, sentences about images it was drawn in place of.
    """

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Mapping[str, Any]: ...

    def set_epoch(self, epoch: int) -> None:
        """Called before an epoch is read."""
        ...


@dataclass(frozen=True)
class Drawn:
    """One item, or the sentence that says why it could not be read."""

    item: Mapping[str, Any] | None
    problem: str = ""


class SeededPairs(Dataset[Drawn]):
    """The items of one epoch, each drawn with its own random numbers."""

    def __init__(self, pairs: Pairs, seed: int, epoch: int) -> None:
        self.pairs, self.seed, self.epoch = pairs, seed, epoch
        pairs.set_epoch(epoch)

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> Drawn:
        with own_randomness(self.seed, "item", self.epoch, index):
            try:
                return Drawn(self.pairs[index])
            except (InputError, OSError) as error:
                return Drawn(None, f"Pair {index} could not be read: {error}")


class Stream:
    """Batches of one process from any position on, epoch after epoch.

    A position counts batches of all processes together.  What is left of an epoch when no whole batch for
    every process can be made is not read.  Raises SettingsError for fewer pairs than one batch each.
    """

    def __init__(
        self, pairs: Pairs, *, batch: int, seed: int, rank: int = 0, count: int = 1, workers: int = 0
    ) -> None:
        self.pairs, self.batch, self.seed = pairs, batch, seed
        self.rank, self.count, self.workers = rank, count, workers
        self.per_epoch = len(pairs) // (batch * count)
        if not self.per_epoch:
            raise SettingsError(
                f"There are {len(pairs)} training pairs, fewer than one batch of {batch} for each of "
                f"{count} processes; use smaller batches or more pairs."
            )

    def epoch_of(self, position: int) -> int:
        """The epoch that holds a batch."""
        return position // self.per_epoch

    def after(self, position: int) -> Generator[list[Drawn], None, None]:
        """The batches at this position and all later ones, without end."""
        while True:
            epoch, first = divmod(position, self.per_epoch)
            loader = DataLoader(
                SeededPairs(self.pairs, self.seed, epoch),
                batch_sampler=self._indices(epoch)[first:],
                num_workers=self.workers,
                collate_fn=_unchanged,
                # Or the loader would draw a number from the generator the network draws from.
                generator=torch.Generator(),
            )
            yield from loader
            position = (epoch + 1) * self.per_epoch

    def _indices(self, epoch: int) -> list[list[int]]:
        """This process's indices for every batch of an epoch."""
        generator = torch.Generator().manual_seed(derived_seed(self.seed, "order", epoch))
        order = torch.randperm(len(self.pairs), generator=generator).tolist()
        whole = self.batch * self.count
        starts = [n * whole + self.rank * self.batch for n in range(self.per_epoch)]
        return [order[start : start + self.batch] for start in starts]


def collate(items: Sequence[Mapping[str, Any]]) -> Batch | GroupBatch:
    """One batch of items; labels and masks are kept where all have them, landmarks of a single one.

    An item with `images` is a group, the only one of its batch.

    Raises InputError for missing images or shapes that differ.
    """
    if "images" in items[0]:
        (item,) = items
        return group_of(item)
    names = tuple(_name(item.get("names", "a pair without a name")) for item in items)
    images: dict[str, Tensor] = {}
    for key in IMAGES:
        held = [item[key] for item in items if isinstance(item.get(key), Tensor)]
        if len(held) == len(items):
            images[key] = _stacked(held, names)
        elif key in IMAGES[:2]:
            raise InputError(f"A training pair has no image '{key}': {', '.join(names)}.")
    if len({tuple(image.shape) for image in images.values()}) > 1:
        raise InputError(f"Images, labels and masks of a pair differ in shape: {', '.join(names)}.")
    points = {key: items[0][key] for key in POINTS if len(items) == 1 and items[0].get(key) is not None}
    return Batch(**images, names=names, points=points)


def derived_seed(*parts: int | str) -> int:
    """A number of 63 bits that depends on all the parts."""
    text = "/".join(str(part) for part in parts)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def seed_all(seed: int) -> None:
    """Starts the generators of torch (all devices), numpy and Python anew."""
    torch.manual_seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002 - third parties still draw from the global generator
    random.seed(seed)


@contextmanager
def own_randomness(*parts: int | str) -> Iterator[None]:
    """Inside, the generators on the CPU start from these parts; afterwards they are as before."""
    torch_state, numpy_state, python_state = torch.get_rng_state(), np.random.get_state(), random.getstate()  # noqa: NPY002
    seed = derived_seed(*parts)
    torch.default_generator.manual_seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002 - see seed_all
    random.seed(seed)
    try:
        yield
    finally:
        torch.set_rng_state(torch_state)
        np.random.set_state(numpy_state)  # noqa: NPY002 - see seed_all
        random.setstate(python_state)


def _name(names: object) -> str:
    return " -> ".join(map(str, names)) if isinstance(names, list | tuple) else str(names)


def _stacked(images: Sequence[Tensor], names: Sequence[str]) -> Tensor:
    shapes = sorted({tuple(image.shape) for image in images})
    if len(shapes) > 1:
        raise InputError(
            f"The pairs {', '.join(names)} of one batch have different shapes {shapes}; bring them to one "
            "grid, or use a batch of 1."
        )
    return torch.stack(list(images))


def _unchanged(items: list[Drawn]) -> list[Drawn]:
    return items
