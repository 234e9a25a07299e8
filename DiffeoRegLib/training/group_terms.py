"""What training makes small for a group of images registered at once.

Every image k is read at x + u_k(x), and all pairs of them should look alike, where the sample points of all
lie inside; the divergence of the predicted Gaussian from the prior is the mean over the moving images.
Label maps, where there are any, should meet over all pairs, too: a term of ours.
Source: van der Ouderaa et al., GroupMorph, 2020, equation 7.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from DiffeoRegLib.errors import InputError, NoOverlapError, UnknownNameError
from DiffeoRegLib.losses.group_similarity import group_nmi, group_variance, inside_all
from DiffeoRegLib.losses.overlap import labels_in
from DiffeoRegLib.losses.velocity_prior import graph_laplacian_kl
from DiffeoRegLib.networks.groupmorph import GroupMaps
from DiffeoRegLib.space.sample import warp
from DiffeoRegLib.training.config import LossConfig

GROUP_SIMILARITIES: Mapping[str, Callable[..., Tensor]] = {
    "group-nmi": group_nmi,
    "group-variance": group_variance,
}
OPTIONS: Mapping[str, tuple[str, ...]] = {
    "group-nmi": ("bins", "sigma_bins", "share"),
    "group-variance": (),
    "kl": tuple(
        name for name, one in inspect.signature(graph_laplacian_kl).parameters.items()
        if one.kind is one.KEYWORD_ONLY
    ),
    "group-dice": (),
}  # fmt: skip


@dataclass(frozen=True, eq=False)
class GroupBatch:
    """One group: images (K, 1, *shape) in [0, 1], their names, and what goes with all of them or is None.

    fixed: the image that stays, None = all move.  labels: whole numbers, masks: weights, (K, 1, *shape) both.
    points: landmarks of every image, (n, d) in voxels, alike in number and order.
    times: of the frames of a series, 0 at its first and 1 at its last; None = no series.
    """

    images: Tensor
    names: tuple[str, ...]
    fixed: int | None = None
    labels: Tensor | None = None
    masks: Tensor | None = None
    points: tuple[Tensor, ...] = ()
    times: tuple[float, ...] | None = None

    @property
    def count(self) -> int:
        """Groups in the batch."""
        return 1

    def through(self, network: nn.Module) -> GroupMaps:
        """What a network for groups makes of the group."""
        maps: GroupMaps = network(self.images, self.fixed, self.times)
        return maps

    def to(self, device: torch.device) -> GroupBatch:
        """The same on another device."""
        held = {name: getattr(self, name) for name in ("images", "labels", "masks")}
        moved = {n: v.to(device, non_blocking=True) for n, v in held.items() if v is not None}
        return replace(self, **moved)


def group_of(item: Mapping[str, object]) -> GroupBatch:
    """The batch of one item of a data set of groups.

    item: `images` and `names`, and any of the others in GroupBatch.
    Raises InputError for parts that do not fit each other.
    """
    known = {name: item[name] for name in GroupBatch.__dataclass_fields__ if item.get(name) is not None}
    batch = GroupBatch(**known)  # type: ignore[arg-type]
    count = len(batch.images)
    shapes = {tuple(v.shape) for v in (batch.images, batch.labels, batch.masks) if v is not None}
    if len(shapes) > 1 or len(batch.names) != count or len(batch.points) not in (0, count):
        raise InputError(
            f"Images, labels, masks and landmarks of the group do not fit: {', '.join(batch.names)}."
        )
    return batch


class GroupObjective:
    """The weighted sum of the losses of a configuration for groups.

    spacing: of the grid, mm per tensor axis, None = unit voxels; for landmarks in validation.
    Raises SettingsError or UnknownNameError for a loss or an option that groups do not have.
    """

    def __init__(self, losses: Sequence[LossConfig], *, spacing: Sequence[float] | None = None) -> None:
        self.losses = tuple(loss for loss in losses if loss.counts)
        self.spacing = spacing
        for loss in self.losses:
            if loss.name not in OPTIONS:
                raise UnknownNameError("loss of a group", loss.name, OPTIONS)
            for name in loss.options:
                if name not in OPTIONS[loss.name]:
                    raise UnknownNameError(f"option of {loss.name}", name, OPTIONS[loss.name])

    @property
    def names(self) -> tuple[str, ...]:
        """Of the terms that count."""
        return tuple(loss.name for loss in self.losses)

    def __call__(
        self, maps: GroupMaps, batch: GroupBatch, step: int | None = None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss, a scalar, and its terms before weighting, detached.

        step: of the training, for weights that change and for the voxels that are drawn (with torch's
        generator); None = the weights after it, and all voxels.
        Raises NoOverlapError where no place lies inside all images.
        """
        total = batch.images.new_zeros((), dtype=torch.float32)
        terms = {name: total for name in self.names}
        warped = maps.warped(batch.images)
        mask = common_mask(maps, batch)
        for loss in self.losses:
            weight = loss.schedule.weight(loss.weight, step)
            if not weight > 0:
                continue
            options = dict(loss.options)
            if loss.name == "kl":
                value = graph_laplacian_kl(maps.mean, maps.log_variance, **options)
            elif loss.name == "group-dice":
                value = group_dice(maps, batch.labels)
            else:
                if step is None:
                    options.pop("share", None)
                value = GROUP_SIMILARITIES[loss.name](warped, mask=mask, **options)
            terms[loss.name] = value.detach()
            total = total + weight * value
        return total, terms


def group_dice(maps: GroupMaps, labels: Tensor | None) -> Tensor:
    """One minus the soft Dice of warped label maps (K, 1, *shape), mean over labels and all pairs.

    Each label is a map of 0 and 1 that is read linearly; beyond an image it holds none.  A label counts for
    the pairs in which it has a voxel.  Raises InputError for a group without labels.
    """
    if labels is None:
        raise InputError("The group-dice loss needs label maps, which a group of the batch does not have.")
    values = []
    for label in labels_in(labels, labels):
        own = (labels == label).to(maps.u_vox.dtype)
        held = warp(own, maps.u_vox, outside="zeros").flatten(1)
        shared = held @ held.T
        sizes = held.square().sum(1)
        both = sizes[:, None] + sizes
        pairs = torch.ones_like(both, dtype=torch.bool).triu(1) & (both > 0)
        values.append((2 * shared / both.clamp(min=1e-6))[pairs])
    found = torch.cat(values) if values else maps.u_vox.new_zeros(0)
    return 1 - found.mean() if len(found) else maps.u_vox.sum() * 0


@torch.no_grad()
def common_mask(maps: GroupMaps, batch: GroupBatch) -> Tensor:
    """Where all images have something to say, (1, 1, *shape) in [0, 1]; raises NoOverlapError for nowhere."""
    mask = inside_all(maps.u_vox, batch.images.shape[2:])
    if batch.masks is not None:
        for k, one in enumerate(batch.masks):
            mask = mask * warp(one[None], maps.u_vox[k : k + 1], outside="zeros")
        if not bool(mask.any()):
            raise NoOverlapError("The masks of the images do not meet any more.")
    return mask
