"""Pairs of prepared subjects in an order that a seed, an epoch and a position determine completely."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import torch
from torch.utils.data import Dataset

from DiffeoRegLib.errors import InputError, SettingsError
from DiffeoRegLib.training.store import Store
from DiffeoRegLib.training.subjects import Pairing, Subject, require_two

Item = dict[str, Any]
"""moving, fixed (1, *shape) float32 in [0, 1]; moving_labels, fixed_labels (1, *shape) int64, moving_mask,
fixed_mask (1, *shape) float32 and moving_points_vox, fixed_points_vox (n, d) where both images have them;
pathology (1, *shape) float32 in the fixed image's space, where any image of the data set has one, 0 for a
healthy one; names: a text that names the two."""

KINDS = (("labels", torch.int64), ("mask", torch.float32), ("points_vox", torch.float32))


class PairDataset(Dataset[Item]):
    """Ordered pairs of different subjects, without replacement, or given pairs in shuffled order.

    subjects: what to pair, where some have a pathology every healthy image with every one of those; pairs:
    (fixed, moving) given, then `subjects` is not used.
    pairs_per_epoch: None = all there are; more than there are go round again, reshuffled.
    Item i of (seed, epoch) is the same in every process.  Workers of a DataLoader are copies: make a new
    loader (no persistent_workers) after `set_epoch`.
    Raises InputError for fewer than two subjects and for a moving image with a pathology, SettingsError for
    a bad number.
    """

    def __init__(
        self,
        subjects: Sequence[Subject],
        store: Store,
        *,
        pairs: Sequence[Pairing] = (),
        pairs_per_epoch: int | None = None,
        seed: int = 0,
    ) -> None:
        if not pairs:
            require_two(subjects, "The list of subjects")
        if pairs_per_epoch is not None and pairs_per_epoch < 1:
            raise SettingsError(f"An epoch has at least one pair, not {pairs_per_epoch}.")
        self.subjects = tuple(subjects)
        self.pairs = tuple(pairs) or onto_patients(subjects)
        self.pathological = any(fixed.pathology is not None for fixed, _ in self.pairs)
        for _, moving in self.pairs:
            if moving.pathology is not None:
                raise InputError(
                    f"'{moving.name}' has a pathology and is the moving image of a pair: healthy images are "
                    "moved onto pathological ones, so make it the fixed one."
                )
        self.store = store
        self.seed = seed
        self.available = len(self.pairs) or len(self.subjects) * (len(self.subjects) - 1)
        self.pairs_per_epoch = pairs_per_epoch or self.available
        self.set_epoch(0)

    def set_epoch(self, epoch: int, position: int = 0) -> None:
        """Choose the order of an epoch; item 0 is then its pair number `position` (to resume).

        Raises SettingsError for a position beyond the epoch.
        """
        if not 0 <= position <= self.pairs_per_epoch:
            raise SettingsError(f"An epoch of {self.pairs_per_epoch} pairs has no position {position}.")
        self.epoch, self.position = epoch, position
        order: list[int] = []
        while len(order) < self.pairs_per_epoch:
            count = min(self.available, self.pairs_per_epoch - len(order))
            draw = random.Random(f"pairs {self.seed} {epoch} {len(order)}")
            order += draw.sample(range(self.available), count)
        self._order = order

    def __len__(self) -> int:
        return self.pairs_per_epoch - self.position

    def pair(self, index: int) -> Pairing:
        """The (fixed, moving) subjects of an item; raises IndexError beyond the end."""
        if not 0 <= index < len(self):
            raise IndexError(f"{index} of {len(self)} pairs")
        number = self._order[self.position + index]
        if self.pairs:
            return self.pairs[number]
        first, second = divmod(number, len(self.subjects) - 1)
        return self.subjects[first], self.subjects[second + (second >= first)]

    def __getitem__(self, index: int) -> Item:
        """One pair, see `Item`; raises InputError that names the subject for an unreadable image."""
        fixed_subject, moving_subject = self.pair(index)
        fixed, moving = self.store.load(fixed_subject), self.store.load(moving_subject)
        item: Item = {
            "moving": moving["image"],
            "fixed": fixed["image"],
            "names": f"{moving_subject.name} to {fixed_subject.name}",
        }
        for kind, dtype in KINDS:
            if kind in fixed and kind in moving:
                item[f"moving_{kind}"] = moving[kind].to(dtype)
                item[f"fixed_{kind}"] = fixed[kind].to(dtype)
        if self.pathological:
            item["pathology"] = fixed.get("pathology", torch.zeros_like(fixed["image"]))
        return item


def onto_patients(subjects: Sequence[Subject]) -> tuple[Pairing, ...]:
    """Every subject with a pathology as the fixed image of every one without; empty where none has one.

    Raises InputError where all have one.
    """
    patients = [one for one in subjects if one.pathology is not None]
    healthy = [one for one in subjects if one.pathology is None]
    if patients and not healthy:
        raise InputError("Every image has a pathology: a pair needs a healthy image to move.")
    return tuple((fixed, moving) for fixed in patients for moving in healthy)
