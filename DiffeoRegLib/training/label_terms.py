"""What training makes small where images have label maps: how far labels are from those they should meet.

With many labels an option takes a few of them per step, in turn: every label counts again after as many steps
as there are such parts, and which ones count is a function of the step alone.  After training, and where
validation measures, all of them count.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from DiffeoRegLib.errors import InputError, SettingsError
from DiffeoRegLib.losses.label_mse import warped_label_mse
from DiffeoRegLib.losses.overlap import labels_in, warped_label_dice
from DiffeoRegLib.space.sample import identity_vox

Measure = Callable[[Tensor, Tensor, Tensor, list[int]], Tensor]
"""Fixed and moving labels, positions in voxels, and the labels that count, to a scalar."""


def dice(
    moving: Tensor | None, fixed: Tensor | None, u_vox: Tensor, step: int | None, *, most: int | None = None
) -> Tensor:
    """One minus the mean soft Dice of label maps (N, 1, *shape), each pair by the labels it holds.

    most: labels per step, None = all.  A pair without any label has nothing to disagree on and gives 0.
    Raises InputError for missing maps.
    """
    return _mean("dice", _dice, moving, fixed, u_vox, some_labels(step, most))


def label_mse(
    moving: Tensor | None, fixed: Tensor | None, u_vox: Tensor, step: int | None, *, most: int | None = None
) -> Tensor:
    """`warped_label_mse` of label maps (N, 1, *shape): each pair by its labels and the background.

    most: labels per step beside the background, None = all.  A pair without any label gives 0.
    Raises InputError for missing maps.
    """
    return _mean("label-mse", _squares, moving, fixed, u_vox, some_labels(step, most))


LABEL_LOSSES: dict[str, Callable[..., Tensor]] = {"dice": dice, "label-mse": label_mse}
"""Called with the labels that are read, those they should meet, the field, the step, and their options."""


def some_labels(step: int | None, most: int | None) -> Callable[[Sequence[int]], list[int]]:
    """Which labels of a list count in a step: all, or every k-th one, so that at most so many do.

    Raises SettingsError for less than one.
    """
    if most is not None and most < 1:
        raise SettingsError(f"At least one label counts per step, not {most}.")

    def chosen(labels: Sequence[int]) -> list[int]:
        if most is None or step is None or not labels:
            return list(labels)
        parts = -(-len(labels) // most)
        return list(labels[step % parts :: parts])

    return chosen


def _mean(
    name: str,
    measure: Measure,
    moving: Tensor | None,
    fixed: Tensor | None,
    u_vox: Tensor,
    chosen: Callable[[Sequence[int]], list[int]],
) -> Tensor:
    """Over the pairs of a batch."""
    if moving is None or fixed is None:
        raise InputError(f"The {name} loss needs label maps, which a pair of this batch does not have.")
    position = identity_vox(u_vox.shape[2:], u_vox.dtype, u_vox.device) + u_vox
    values = []
    for i in range(len(u_vox)):
        one = slice(i, i + 1)
        labels = chosen(labels_in(moving[one], fixed[one]))
        if labels:
            values.append(measure(fixed[one], moving[one], position[one], labels))
        else:
            values.append(u_vox[i].sum() * 0)
    return torch.stack(values).mean()


def _dice(fixed: Tensor, moving: Tensor, position: Tensor, labels: list[int]) -> Tensor:
    return warped_label_dice(fixed, moving, position, labels=labels)


def _squares(fixed: Tensor, moving: Tensor, position: Tensor, labels: list[int]) -> Tensor:
    return warped_label_mse(fixed, moving, position, labels=[0, *labels])
