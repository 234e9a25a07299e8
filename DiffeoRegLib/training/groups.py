"""Groups of images to train on: any images of a population, a person's visits, or the frames of a series."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import torch
from torch import Tensor
from torch.utils.data import Dataset

from DiffeoRegLib.errors import InputError, SettingsError
from DiffeoRegLib.training.augment import Augmentation, vary_group
from DiffeoRegLib.training.draws import generator_for
from DiffeoRegLib.training.store import Store
from DiffeoRegLib.training.subjects import Subject

KINDS = ("labels", "mask", "points_vox")


@dataclass(frozen=True)
class GroupOptions:
    """How groups are put together.

    of: `population`, any images; `person`, those of one person; `series`, the frames of 4D files or of lists,
    each series on its own grid (training/series.py).
    fewest, most: images in a group, drawn anew for each; what a person or a series has more is left out at
    random, the rest keeps its order.
    fixed_share: how often one image, drawn, is the fixed one; in validation 1 fixes the first, else all move.
    patch: voxels of boxes drawn at one place of all images; None = whole images.
    per_epoch: groups in an epoch; None = as many as images (population), persons or series.
    validation: groups to validate on, of `validation_images` each, or of the whole person or series.
    Raises SettingsError for numbers that make no sense.
    """

    of: Literal["population", "person", "series"] = "population"
    fewest: int = 2
    most: int = 4
    fixed_share: float = 0.5
    patch: tuple[int, ...] | None = None
    per_epoch: int | None = None
    validation: int = 10
    validation_images: int = 4

    def __post_init__(self) -> None:
        if not 2 <= self.fewest <= self.most or self.validation_images < 2:
            raise SettingsError(
                "A group has two images or more: 2 <= fewest <= most, 2 <= validation_images."
            )
        if not 0 <= self.fixed_share <= 1:
            raise SettingsError(f"fixed_share lies between 0 and 1, not at {self.fixed_share}.")
        if self.patch is not None and (len(self.patch) not in (2, 3) or min(self.patch) < 4):
            raise SettingsError("A patch has 2 or 3 axes of 4 voxels or more.")
        if self.validation < 1 or (self.per_epoch is not None and self.per_epoch < 1):
            raise SettingsError("An epoch and the validation have at least one group.")


class Members(Protocol):
    """Where groups are drawn from."""

    spacing: tuple[float, ...]

    def __len__(self) -> int:
        """Groups without any repetition."""
        ...

    def group(self, index: int, count: int, draw: random.Random) -> dict[str, Any]:
        """The parts of a GroupBatch (training/group_terms.py) of at most `count` images."""
        ...


class Population:
    """Subjects on the grid of a store; the group of an index holds the subject of that index and others.

    by_person: others of the same person only, in the order of the list; the index is then the person's.
    Raises InputError for fewer images than `fewest` in all or, by person, in every person.
    """

    def __init__(
        self, subjects: Sequence[Subject], store: Store, *, by_person: bool = False, fewest: int = 2
    ) -> None:
        self.store, self.by_person = store, by_person
        self.spacing = store.grid.spacing
        sets: list[tuple[Subject, ...]] = [tuple(subjects)]
        if by_person:
            persons = dict.fromkeys(one.group for one in subjects)
            sets = [tuple(one for one in subjects if one.group == person) for person in persons]
        self.sets = [held for held in sets if len(held) >= fewest]
        if not self.sets:
            whose = "no person has so many" if by_person else f"there are {len(subjects)}"
            raise InputError(f"A group needs {fewest} images or more, but {whose}.")

    def __len__(self) -> int:
        return len(self.sets) if self.by_person else len(self.sets[0])

    def group(self, index: int, count: int, draw: random.Random) -> dict[str, Any]:
        """See `Members`."""
        if self.by_person:
            held = self.sets[index]
            chosen = [held[k] for k in sorted(draw.sample(range(len(held)), min(count, len(held))))]
        else:
            (held,) = self.sets
            others = [k for k in range(len(held)) if k != index]
            chosen = [held[k] for k in (index, *draw.sample(others, min(count, len(held)) - 1))]
        parts = [self.store.load(one) for one in chosen]
        item: dict[str, Any] = {
            "images": torch.stack([one["image"] for one in parts]),
            "names": tuple(one.name for one in chosen),
        }
        found = {kind: [one[kind] for one in parts] for kind in KINDS if all(kind in one for one in parts)}
        if "labels" in found:
            item["labels"] = torch.stack(found["labels"]).to(torch.int64)
        if "mask" in found:
            item["masks"] = torch.stack(found["mask"])
        if "points_vox" in found:
            item["points"] = tuple(found["points_vox"])
        return item


class GroupDataset(Dataset[dict[str, Any]]):
    """Groups in an order, and of images, that a seed, an epoch and a position determine completely.

    validation: groups of all images of a person or series, or of `validation_images`; not varied.
    """

    def __init__(
        self,
        members: Members,
        options: GroupOptions,
        *,
        augmentation: Augmentation | None = None,
        seed: int = 0,
        validation: bool = False,
    ) -> None:
        self.members, self.options, self.augmentation = members, options, augmentation
        self.seed, self.validation = seed, validation
        self.count = options.per_epoch or len(members)
        if validation:
            self.count = min(options.validation, len(members))
        self.set_epoch(0)

    def set_epoch(self, epoch: int) -> None:
        """Choose the groups of an epoch."""
        self.epoch = epoch
        order: list[int] = []
        while len(order) < self.count:
            draw = random.Random(f"groups {self.seed} {epoch} {len(order)}")
            order += draw.sample(range(len(self.members)), min(len(self.members), self.count - len(order)))
        self._order = order

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> dict[str, Any]:
        """One group; raises InputError that names the image for one that cannot be read."""
        options = self.options
        draw = random.Random(f"group {self.seed} {self.epoch} {index}")
        count = draw.randint(options.fewest, options.most)
        if self.validation:
            count = options.validation_images if options.of == "population" else 10**6
        item = self.members.group(self._order[index], count, draw)
        if self.validation:
            item["fixed"] = 0 if options.fixed_share == 1 else None
            return item
        if options.patch is not None:
            item = cropped(item, options.patch, draw)
        if draw.random() < options.fixed_share:
            item["fixed"] = draw.randrange(len(item["images"]))
        if self.augmentation is not None:
            generator = generator_for("augment group", self.seed, self.epoch, index)
            item = vary_group(item, generator, self.augmentation, self.members.spacing)
        return item


def cropped(item: dict[str, Any], patch: Sequence[int], draw: random.Random) -> dict[str, Any]:
    """A box at one random place of all images of a group, without landmarks; an axis that is shorter stays.

    Raises SettingsError for a patch of another dimension.
    """
    shape = item["images"].shape[2:]
    if len(patch) != len(shape):
        raise SettingsError(f"A patch of {len(patch)} axes cannot be cut from {len(shape)}D images.")
    first = [draw.randint(0, max(n - p, 0)) for n, p in zip(shape, patch, strict=True)]
    box = [slice(None)] * 2 + [slice(a, a + p) for a, p in zip(first, patch, strict=True)]
    kept = {key: value[tuple(box)] if isinstance(value, Tensor) else value for key, value in item.items()}
    kept.pop("points", None)
    return kept
