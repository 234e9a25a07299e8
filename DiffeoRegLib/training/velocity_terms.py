"""What TransMorph-TVF makes small beside the difference of the images: the roughness of its velocities.

Both terms are the same for both directions: the way back is along the same velocities.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal, Protocol, runtime_checkable

from torch import Tensor

from DiffeoRegLib.errors import SettingsError
from DiffeoRegLib.losses.lddmm_operator import (
    ALPHA,
    BETA,
    GAMMA,
    Form,
    end_point_diffusion,
    lddmm_energy,
)

Direction = Literal["12", "21"]


@runtime_checkable
class TimeVarying(Protocol):
    """Maps made from velocities that change in time."""

    @property
    def velocities_vox(self) -> tuple[Tensor, ...]:
        """One (N, d, *grid) per step, voxels per step."""
        ...


def lddmm(
    maps: object,
    ways: Sequence[Direction],
    step: int | None,
    *,
    alpha: float = ALPHA,
    gamma: float = GAMMA,
    beta: float = BETA,
    form: Form = "paper_sum",
) -> Tensor:
    """`lddmm_energy` of the velocities; raises SettingsError for maps of another network."""
    return lddmm_energy(_velocities(maps, "lddmm"), alpha=alpha, gamma=gamma, beta=beta, form=form)


def end_point(maps: object, ways: Sequence[Direction], step: int | None) -> Tensor:
    """`end_point_diffusion` of the velocities; raises SettingsError for maps of another network."""
    return end_point_diffusion(_velocities(maps, "end-point"))


VELOCITY_LOSSES: dict[str, Callable[..., Tensor]] = {"lddmm": lddmm, "end-point": end_point}
"""Called as those of `path_terms.py`: maps, directions that count, step of training, options of the term."""


def _velocities(maps: object, name: str) -> tuple[Tensor, ...]:
    if not isinstance(maps, TimeVarying):
        raise SettingsError(
            f"The loss {name} needs a network that predicts velocities over time, such as transmorph-tvf."
        )
    return maps.velocities_vox
