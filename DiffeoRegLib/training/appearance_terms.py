"""Pathologies in training: what a network adds to the moving image, what is left out, and what that costs.

A pathology mask M lies in the space of the fixed image, 1 where that one shows what the moving image has not.
MetaRegNet accounts for it by q M, which every loss then adds to the moving image as it arrives; other
networks can leave it out of the comparison (cost function masking).
Source: Joshi and Hong, MetaRegNet, 2023, equation 4; Brett et al., NeuroImage 2001 (masking).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal, Protocol, runtime_checkable

import torch
from torch import Tensor

from DiffeoRegLib.errors import InputError, SettingsError
from DiffeoRegLib.losses.regularity import FoldReading, fold_sum, image_diffusion

Direction = Literal["12", "21"]


@runtime_checkable
class Metamorphic(Protocol):
    """Maps with a change of intensity."""

    @property
    def appearance(self) -> Tensor:
        """q, (N, 1, *shape), on the grid of the fixed image."""
        ...


class Both(Protocol):
    """Maps both ways, (N, d, *shape), voxels."""

    @property
    def u12(self) -> Tensor: ...

    @property
    def u21(self) -> Tensor: ...


def change_of(maps: object, pathology: Tensor | None) -> Tensor | None:
    """q M, (N, 1, *shape), what the maps add to the moving image in fixed space; None = nothing.

    pathology: M; without one nothing is added.
    """
    if pathology is None or not isinstance(maps, Metamorphic):
        return None
    return maps.appearance * pathology.to(maps.appearance)


def healthy_part(pathology: Tensor | None, names: Sequence[str] = ()) -> Tensor:
    """1 - M, the weights of cost function masking.

    Raises InputError for missing masks, and for one that covers its whole image.
    """
    if pathology is None:
        raise InputError(
            "To leave the pathology out, every fixed image needs a pathology mask (0 = healthy)."
        )
    healthy = (1 - pathology).clamp(min=0)  # what was interpolated is above 1 by rounding
    covered = ~(healthy.flatten(1) > 0).any(1)
    if bool(covered.any()):
        which = f" of {', '.join(names)}" if names else ""
        raise InputError(
            f"The pathology mask{which} covers the whole fixed image: nothing healthy is left to compare."
        )
    return healthy


def appearance(maps: object, pathology: Tensor | None, ways: Sequence[Direction]) -> Tensor:
    """`image_diffusion` of q M, the same for both directions.

    Raises SettingsError for maps of another network, InputError for missing masks.
    """
    if not isinstance(maps, Metamorphic):
        raise SettingsError("The loss appearance needs a network that changes intensities: metaregnet.")
    change = change_of(maps, pathology)
    if change is None:
        raise InputError(
            "The loss appearance needs pathology masks, which a pair of this batch does not have."
        )
    return image_diffusion(change)


def folds(
    maps: Both, pathology: Tensor | None, ways: Sequence[Direction], *, reading: FoldReading = "corners"
) -> Tensor:
    """`fold_sum` of the displacements, the mean over the directions that count."""
    fields = [maps.u12 if way == "12" else maps.u21 for way in ways]
    return torch.stack([fold_sum(u_vox, reading=reading) for u_vox in fields]).mean()


APPEARANCE_LOSSES: dict[str, Callable[..., Tensor]] = {"appearance": appearance, "folds": folds}
"""Called with the maps, the pathology masks or None, the directions that count, and options of the term."""
