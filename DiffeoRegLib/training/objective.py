"""What training makes small: named terms with weights, in one direction or in both alike.

A network is anything called with (moving, fixed) that returns maps: u12 reads the moving image on the fixed
one's grid, u21 the other way round.  The symmetric loss is
    L = 1/2 [S(I1 o f12, I2) + S(I2 o f21, I1)] + lambda/2 [G(f12) + G(f21)]
with S any similarity or label term, G any penalty, of the part of the map without the affine.  Terms of
the maps as a whole, such as a divergence from a prior, are added once.
Source: Honkamaa and Marttinen, SITReg, MELBA 2024, section 3.8.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Literal, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from DiffeoRegLib.errors import NoOverlapError, SettingsError, UnknownNameError
from DiffeoRegLib.losses.information import nmi
from DiffeoRegLib.losses.mind import mind_loss
from DiffeoRegLib.losses.published import published_lncc
from DiffeoRegLib.losses.regularity import bending, diffusion
from DiffeoRegLib.losses.similarity import l1, lncc, mk_lncc, mse
from DiffeoRegLib.losses.velocity_prior import graph_laplacian_kl
from DiffeoRegLib.space.sample import identity_vox, warp
from DiffeoRegLib.training.affine_terms import AFFINE_LOSSES
from DiffeoRegLib.training.appearance_terms import (
    APPEARANCE_LOSSES,
    Metamorphic,
    change_of,
    healthy_part,
)
from DiffeoRegLib.training.config import MAP_TERMS, PENALTIES, SIMILARITY_LOSSES, LossConfig, TrainingConfig
from DiffeoRegLib.training.group_terms import GroupObjective
from DiffeoRegLib.training.label_terms import LABEL_LOSSES
from DiffeoRegLib.training.path_terms import PATH_LOSSES
from DiffeoRegLib.training.velocity_terms import VELOCITY_LOSSES

Direction = Literal["12", "21"]
SIMILARITIES: dict[str, Callable[..., Tensor]] = {
    "lncc": lncc,
    "lncc-squared": partial(lncc, squared=True),
    "lncc-published": published_lncc,
    "mk-lncc": mk_lncc,
    "mse": mse,
    "l1": l1,
    "nmi": nmi,
    "mind": mind_loss,
}


IMAGES = ("moving", "fixed", "moving_labels", "fixed_labels", "moving_mask", "fixed_mask", "pathology")


class Maps(Protocol):
    """What a network returns; fields (N, d, *shape) in voxels.  u21 is asked for by symmetric losses only."""

    @property
    def u12(self) -> Tensor:
        """moving(x + u12(x)) looks like fixed(x)."""
        ...

    @property
    def u21(self) -> Tensor:
        """fixed(x + u21(x)) looks like moving(x)."""
        ...


@runtime_checkable
class PartlyPenalised(Protocol):
    """Maps that say which part of them a penalty is for: without the affine, or the velocity of a flow."""

    def deformable(self, way: Direction) -> Tensor:
        """(N, d, *grid)."""
        ...


@runtime_checkable
class InLooks(Protocol):
    """Maps found in several looks, of which each goes on from the one before."""

    @property
    def earlier(self) -> Sequence[Maps]:
        """The maps after the looks before the last."""
        ...


@runtime_checkable
class Probabilistic(Protocol):
    """Maps made from one draw of a Gaussian over velocities."""

    @property
    def mean(self) -> Tensor:
        """(N, C, *grid)."""
        ...

    @property
    def log_variance(self) -> Tensor:
        """(N, C, *grid)."""
        ...


@dataclass(frozen=True, eq=False)
class Batch:
    """Pairs of one shape: images (N, 1, *shape), labels and masks alike or None, and the pairs' names.

    pathology: (N, 1, *shape) in [0, 1], where the fixed image shows what the moving one has not.
    points: landmarks in voxels, `moving_points_vox` and `fixed_points_vox` (n, d), of a batch of one pair.
    """

    moving: Tensor
    fixed: Tensor
    moving_labels: Tensor | None = None
    fixed_labels: Tensor | None = None
    moving_mask: Tensor | None = None
    fixed_mask: Tensor | None = None
    pathology: Tensor | None = None
    names: tuple[str, ...] = ()
    points: Mapping[str, Tensor] = field(default_factory=dict)

    @property
    def count(self) -> int:
        """Pairs in the batch."""
        return len(self.fixed)

    def through(self, network: nn.Module) -> Any:
        """What a network makes of the pairs."""
        return network(self.moving, self.fixed)

    def to(self, device: torch.device) -> Batch:
        """The same on another device."""
        held = {name: getattr(self, name) for name in IMAGES}
        return replace(self, **{n: v.to(device, non_blocking=True) for n, v in held.items() if v is not None})


class Judge(Protocol):
    """A loss of maps and what they were made of, pairs or groups; see `Objective`."""

    spacing: Sequence[float] | None

    @property
    def names(self) -> tuple[str, ...]:
        """Of the terms that count."""
        ...

    def __call__(self, maps: Any, batch: Any, step: int | None = None) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss, and its terms before weighting, detached."""
        ...


@dataclass(frozen=True, eq=False)
class _View:
    """One direction: what is read through which displacement and should look like what."""

    read: Tensor
    target: Tensor
    read_labels: Tensor | None
    target_labels: Tensor | None
    read_mask: Tensor | None
    target_mask: Tensor | None
    u_vox: Tensor
    penalised: Tensor
    added: Tensor | None = None
    """To what is read, once it is where the target is."""


class Objective:
    """The weighted sum of the losses of a configuration.

    symmetric: both directions count, from the step `symmetric_from` on.
    spacing: of the grid, mm per tensor axis, None = unit voxels.
    mask_outside: places whose counterpart lies outside the image do not count in the similarity.
    leave_out_pathology: see `TrainingConfig`.
    Raises SettingsError for options a loss does not have.
    """

    def __init__(
        self,
        losses: Sequence[LossConfig],
        *,
        symmetric: bool = True,
        symmetric_from: int = 0,
        spacing: Sequence[float] | None = None,
        mask_outside: bool = True,
        leave_out_pathology: bool = False,
    ) -> None:
        self.losses = tuple(loss for loss in losses if loss.counts)
        self.symmetric, self.symmetric_from = symmetric, symmetric_from
        self.spacing = spacing
        self.mask_outside, self.leave_out_pathology = mask_outside, leave_out_pathology
        for loss in self.losses:
            _check_options(loss)

    @property
    def names(self) -> tuple[str, ...]:
        """Of the terms that count."""
        return tuple(loss.name for loss in self.losses)

    def __call__(self, maps: Maps, batch: Batch, step: int | None = None) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss, a scalar, and its terms before weighting, detached; both means over the batch.

        Of maps found in several looks, loss and terms are sums over all looks.
        step: of the training, for weights that change; None = the weights after it.
        Raises NoOverlapError where a map leads nowhere into the image, InputError for missing labels,
        SettingsError for a term these maps do not have.
        """
        batch = self._without_pathology(maps, batch)
        earlier = maps.earlier if isinstance(maps, InLooks) else ()
        total = batch.fixed.new_zeros((), dtype=torch.float32)
        terms = {name: total for name in self.names}
        for one in (*earlier, maps):
            for loss, value in self._values(one, batch, step):
                terms[loss.name] = terms[loss.name] + value.detach()
                total = total + loss.schedule.weight(loss.weight, step) * value
        return total, terms

    def _without_pathology(self, maps: Maps, batch: Batch) -> Batch:
        """The batch with a mask of the fixed image that leaves out its pathology, if that is wanted."""
        if not self.leave_out_pathology:
            return batch
        if isinstance(maps, Metamorphic):
            raise SettingsError(
                "This network accounts for the pathology: leave_out_pathology is for the other networks."
            )
        healthy = healthy_part(batch.pathology, batch.names)
        mask = healthy if batch.fixed_mask is None else healthy * batch.fixed_mask
        return replace(batch, fixed_mask=mask)

    def _values(self, maps: Maps, batch: Batch, step: int | None) -> Iterator[tuple[LossConfig, Tensor]]:
        """The terms that count in a step, of the maps of one look."""
        both = self.symmetric and (step is None or step >= self.symmetric_from)
        ways: tuple[Direction, ...] = ("12", "21") if both else ("12",)
        views = [_view(maps, batch, way) for way in ways]
        for loss in self.losses:
            if not loss.schedule.weight(loss.weight, step) > 0:
                continue
            if loss.name in FLOW_LOSSES:
                yield loss, FLOW_LOSSES[loss.name](maps, ways, step, **loss.options)
            elif loss.name in APPEARANCE_LOSSES:
                yield loss, APPEARANCE_LOSSES[loss.name](maps, batch.pathology, ways, **loss.options)
            elif loss.name in MAP_TERMS:
                yield loss, MAP_LOSSES[loss.name](maps, **loss.options)
            else:
                yield loss, torch.stack([self._term(loss, view, step) for view in views]).mean()

    def _term(self, loss: LossConfig, view: _View, step: int | None) -> Tensor:
        if loss.name in PENALTIES:
            return penalty(loss.name, view.penalised, self.spacing)
        if loss.name in LABEL_LOSSES:
            labels = view.read_labels, view.target_labels
            return LABEL_LOSSES[loss.name](*labels, view.u_vox, step, **loss.options)
        read = warp(view.read, view.u_vox)
        if view.added is not None:
            read = read + view.added
        options = dict(loss.options)
        if loss.name == "mind" and self.spacing is not None:
            options.setdefault("spacing", self.spacing)
        mask = self._mask(view)
        return SIMILARITIES[loss.name](view.target, read, mask=mask, **options)

    @torch.no_grad()
    def _mask(self, view: _View) -> Tensor | None:
        """Where both images have something to say, None = everywhere."""
        parts = [inside(view.u_vox, view.read.shape[2:])] if self.mask_outside else []
        if view.target_mask is not None:
            parts.append(view.target_mask)
        if view.read_mask is not None:
            parts.append(warp(view.read_mask, view.u_vox, outside="zeros"))
        if not parts:
            return None
        mask = torch.stack(parts).prod(0)
        if not bool(mask.flatten(1).any(1).all()):
            raise NoOverlapError("The masks of the two images do not meet any more.")
        return mask


def objective_of(config: TrainingConfig) -> Judge:
    """What a training run makes small; raises SettingsError for options a loss does not have."""
    if config.groups:
        return GroupObjective(config.losses, spacing=config.data.spacing_mm)
    return Objective(
        config.losses,
        symmetric=config.symmetric,
        symmetric_from=config.symmetric_from,
        spacing=config.data.spacing_mm,
        leave_out_pathology=config.leave_out_pathology,
    )


def penalty(name: str, u_vox: Tensor, spacing: Sequence[float] | None = None) -> Tensor:
    """Roughness of a field, a scalar.

    `diffusion`, `bending`: see losses/regularity.py, in mm.  `gradient`: the mean over axes, components and
    voxels of the squared forward difference in voxels, the penalty of SITReg and VoxelMorph ('l2').
    Raises UnknownNameError for another name.
    """
    dim = u_vox.shape[1]
    voxels = (1.0,) * dim
    if name == "gradient":
        return diffusion(u_vox, voxels) / dim**2
    if name == "diffusion":
        return diffusion(u_vox, spacing or voxels)
    if name == "bending":
        return bending(u_vox, spacing or voxels)
    raise UnknownNameError("penalty", name, PENALTIES)


def velocity_kl(maps: object, **options: Any) -> Tensor:
    """`graph_laplacian_kl` of the Gaussian the maps were drawn from, a scalar.

    Raises SettingsError for maps that were not drawn from any.
    """
    if not isinstance(maps, Probabilistic):
        raise SettingsError(
            "The loss kl needs a network that predicts a Gaussian over velocities, such as voxelmorph-diff."
        )
    return graph_laplacian_kl(maps.mean, maps.log_variance, **options)


MAP_LOSSES: dict[str, Callable[..., Tensor]] = {"kl": velocity_kl, **AFFINE_LOSSES}
"""Terms of the maps as a whole, called once with the maps and the options of the term."""
FLOW_LOSSES: dict[str, Callable[..., Tensor]] = {**PATH_LOSSES, **VELOCITY_LOSSES}
"""Terms of the flow that made the maps, called with them, the directions, the step, and their options."""
OPTIONS: dict[str, Callable[..., Tensor]] = {
    "kl": graph_laplacian_kl, **AFFINE_LOSSES, **FLOW_LOSSES, **LABEL_LOSSES, **APPEARANCE_LOSSES,
}  # fmt: skip
"""Whose keyword arguments are the options of these terms."""


@torch.no_grad()
def inside(u_vox: Tensor, shape: Sequence[int]) -> Tensor:
    """1 where x + u(x) lies in the box of voxel centres of an image of this shape, else 0: (N, 1, *spatial).

    Raises NoOverlapError for a field that leads nowhere into it.
    """
    position = identity_vox(u_vox.shape[2:], u_vox.dtype, u_vox.device) + u_vox
    held = torch.ones_like(u_vox[:, :1], dtype=torch.bool)
    for axis, size in enumerate(shape):
        here = position[:, axis : axis + 1]
        held &= (here >= 0) & (here <= size - 1)
    if not bool(held.flatten(1).any(1).all()):
        raise NoOverlapError("The network moved an image wholly out of view.")
    return held.to(u_vox.dtype)


def _view(maps: Maps, batch: Batch, way: Direction) -> _View:
    u_vox = maps.u12 if way == "12" else maps.u21
    penalised = maps.deformable(way) if isinstance(maps, PartlyPenalised) else u_vox
    read, target = ("moving", "fixed") if way == "12" else ("fixed", "moving")
    change = change_of(maps, batch.pathology)
    seen: Tensor = getattr(batch, read)
    return _View(
        seen if way == "12" or change is None else seen - change, getattr(batch, target),
        getattr(batch, f"{read}_labels"), getattr(batch, f"{target}_labels"),
        getattr(batch, f"{read}_mask"), getattr(batch, f"{target}_mask"),
        u_vox, penalised, change if way == "12" else None,
    )  # fmt: skip


def _check_options(loss: LossConfig) -> None:
    """Raises UnknownNameError for an option the loss does not have."""
    known: list[str] = []
    if loss.name in SIMILARITY_LOSSES:
        own = inspect.signature(SIMILARITIES[loss.name]).parameters
        known = [name for name in own if name not in ("fixed", "warped", "mask")]
    elif loss.name in OPTIONS:
        own = inspect.signature(OPTIONS[loss.name]).parameters
        known = [name for name, parameter in own.items() if parameter.kind is parameter.KEYWORD_ONLY]
    if loss.options and not known:
        raise SettingsError(f"The loss {loss.name} has no options, but {', '.join(loss.options)} is set.")
    for name in loss.options:
        if name not in known:
            raise UnknownNameError(f"option of {loss.name}", name, known)
