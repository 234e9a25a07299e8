"""Groupwise registration by one stationary velocity for every image, optimised for the group at hand.

Minimise  D(x_1 o exp(z_1), ..., x_K o exp(z_K))  over smooth stationary velocities z_k, coarse to fine;
exp(z_k) leads from the common space to image k.
All-moving: the mean of all z_k is zero, so the common space lies in the middle of the group.
All-to-one: z_p = 0, the common space is that of image p.  The images meet in the middle all the same, where
every one of them gives way and no motion is longer than it must be; the last step looks at the velocities
from image p.  (Compared in the space of image p, livers were found less well: results.md.)
Smoothness comes from smoothing each update and the velocities, as in `svf`; one step rule serves all images,
so that none of them decides where the others go.

Sources: van der Ouderaa et al., GroupMorph, 2020 (both tasks, the mean over all pairs); Vercauteren et al.,
MICCAI 2008 (updates of log-domain velocities, their bracket).  The mean of zero and the rest are ours.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from DiffeoRegLib.errors import SettingsError, UnknownNameError
from DiffeoRegLib.flows.exponential import exp
from DiffeoRegLib.flows.logarithm import unfold
from DiffeoRegLib.losses.group_forces import GROUP_SIMILARITIES, GroupForces, group_similarity
from DiffeoRegLib.losses.group_similarity import pair_nmi
from DiffeoRegLib.methods.base import Motion, Pair, Report
from DiffeoRegLib.methods.discrete import discrete_start
from DiffeoRegLib.methods.group_frame import seen_from
from DiffeoRegLib.methods.svf import LEAST_DETERMINANT, plans, searches, tellers
from DiffeoRegLib.optimise import Plan, layout, squarings_for
from DiffeoRegLib.settings import PRESETS, Settings
from DiffeoRegLib.space.blocks import Blocks
from DiffeoRegLib.space.field import change_grid, downsample_image
from DiffeoRegLib.space.filters import gaussian_smooth
from DiffeoRegLib.space.grid import Grid
from DiffeoRegLib.space.sample import warp
from DiffeoRegLib.volumes.group import Group

DEFAULT_SIMILARITY = "nmi"
BY_PRESET = ("brain-mr", "lung-ct", "abdomen")
"""Presets that promise one modality: their own measure sees more than the joint histograms do."""
TYPICAL_MM = 6.0
"""Voxel size at which the image most like all others is found."""
CONVERGED, WINDOW, PATIENCE = 2e-3, 10, 3
"""As in `optimise`: when a level ends early, and when its steps are halved."""


@dataclass(frozen=True, eq=False)
class GroupMotion:
    """Velocities (K, d, *grid.shape), voxels of `grid`: exp(z_k) leads from the common space to image k.

    fixed: the image whose space is the common one; None = the mean of the velocities is zero.
    value: of the similarity at the end.
    variances_vox: of the velocities, as a network gives them, all components for themselves; None = unknown.
    """

    velocities_vox: Tensor
    grid: Grid
    fixed: int | None
    value: float = float("nan")
    notes: tuple[str, ...] = ()
    variances_vox: Tensor | None = None

    def taken(self, order: Sequence[int], fixed: int | None) -> GroupMotion:
        """The same of the images in another order, and which of them is fixed there."""
        variances = None if self.variances_vox is None else self.variances_vox[list(order)]
        return dataclasses.replace(
            self, velocities_vox=self.velocities_vox[list(order)], fixed=fixed, variances_vox=variances
        )

    def to(self, device: torch.device | str) -> GroupMotion:
        """The same on another device."""
        variances = None if self.variances_vox is None else self.variances_vox.to(device)
        velocities = self.velocities_vox.to(device)
        return dataclasses.replace(self, velocities_vox=velocities, variances_vox=variances)


def similarity_of(settings: Settings) -> str:
    """What the group is compared by: the NMI, mean over all pairs, unless settings or preset say another.

    Raises UnknownNameError for a measure that is one of pairs only.
    """
    usual = PRESETS[settings.preset].similarity if settings.preset in BY_PRESET else DEFAULT_SIMILARITY
    name = settings.similarity or usual
    if name not in GROUP_SIMILARITIES:
        raise UnknownNameError("similarity of a group", name, GROUP_SIMILARITIES)
    return name


def group_plans(settings: Settings, grid: Grid) -> list[Plan]:
    """The levels of `svf` that have iterations, compared by a measure of groups.

    Raises SettingsError without any.
    """
    chosen = settings.with_changes(similarity=similarity_of(settings))
    found = [plan for plan in plans(chosen, grid) if plan.iterations > 0]
    if not found:
        raise SettingsError("A group needs iterations at one level at least.")
    return found


def search(
    group: Group,
    settings: Settings,
    fixed: int | None,
    report: Report,
    start: GroupMotion | None = None,
) -> GroupMotion:
    """The velocities of a group, coarse to fine; levels without iterations are skipped.

    start: where it begins, and then the images are compared in the space of the fixed one; None = see
    `group_start`.
    Raises UnknownNameError, SettingsError, and Cancelled from the report.
    """
    levels = group_plans(settings, group.grid)
    meeting = fixed if start is not None else None
    if start is None:
        velocities, grid = group_start(group, settings, fixed, report)
    else:
        velocities, grid = start.velocities_vox, start.grid
    value = float("nan")
    for plan, tell in zip(levels, tellers(levels, grid.dim, report), strict=True):
        level = GroupLevel(group, plan, meeting)
        velocities = change_grid(velocities, grid, level.grid)
        grid = level.grid
        velocities, value = optimise_group(velocities, level, plan, settings, tell)
        del level  # its images, before those of the next one are made
        if plan is levels[-1] and fixed is not None and meeting is None:
            velocities, meeting = seen_from(velocities, grid, fixed), fixed
        velocities = without_folds(velocities, meeting)
    return GroupMotion(velocities, grid, fixed, value)


def group_start(group: Group, settings: Settings, fixed: int | None, report: Report) -> tuple[Tensor, Grid]:
    """Velocities (K, d, *grid.shape) to start from: rest, or what the search for large displacements finds.

    It runs from one image to each of the others: the fixed one, or the one most like all others.  Their mean
    is zero.
    """
    if not searches(settings):
        levels = group_plans(settings, group.grid)
        grid = layout(group.grid, levels[0]).grid
        return group.images[0].new_zeros((len(group.images), grid.dim, *grid.shape)), grid
    middle = most_typical(group) if fixed is None else fixed
    found = dict[int, Motion]()
    others = [index for index in range(len(group.images)) if index != middle]
    for index in others:
        pair = Pair(
            group.images[middle], group.images[index], group.grid, group.image_from_grid[index],
            group.masks[middle], group.masks[index],
        )  # fmt: skip
        found[index] = discrete_start(
            pair, settings, lambda step: report(dataclasses.replace(step, fraction=0.0))
        )
    grid = found[others[0]].grid
    velocities = group.images[0].new_zeros((len(group.images), grid.dim, *grid.shape))
    for index, motion in found.items():
        velocities[index : index + 1] = motion.velocity_vox
    return centred(velocities, None), grid


def most_typical(group: Group) -> int:
    """The image with the highest mean NMI with the others, at about TYPICAL_MM."""
    strides = [
        max(1, min(round(TYPICAL_MM / s), n // 4))
        for s, n in zip(group.grid.spacing, group.grid.shape, strict=True)
    ]
    small = torch.cat([downsample_image(image, strides) for image in group.images])
    return int(pair_nmi(small).sum(1).argmax())


def without_folds(velocities_vox: Tensor, fixed: int | None) -> Tensor:
    """Velocities smoothed where their flows fold, and centred again."""
    for index in range(len(velocities_vox)):
        velocities_vox[index : index + 1], _ = unfold(velocities_vox[index : index + 1], LEAST_DETERMINANT)
    return centred(velocities_vox, fixed)


def centred(velocities_vox: Tensor, fixed: int | None) -> Tensor:
    """The same in place with a mean of zero over the images, or with rest at the fixed one."""
    if fixed is None:
        return velocities_vox.sub_(velocities_vox.mean(0, keepdim=True))
    velocities_vox[fixed] = 0
    return velocities_vox


class GroupLevel:
    """A group of images at one resolution, and the grid its velocities live on."""

    def __init__(self, group: Group, plan: Plan, fixed: int | None) -> None:
        grids = layout(group.grid, plan)
        device = group.images[0].device
        self.fixed, self.grid = fixed, grids.grid
        self.strides = tuple(s * b for s, b in zip(grids.strides, grids.sides, strict=True))
        self.nominal_mm = plan.level_mm * max(grids.sides)
        self.blocks = Blocks(grids.image_grid.shape, grids.sides, device=device)
        radii = [
            max(0, round((plan.window_vox * plan.level_mm / spacing - 1) / 2)) if size > 1 else 0
            for spacing, size in zip(self.grid.spacing, self.grid.shape, strict=True)
        ]
        self.similarity = group_similarity(plan.similarity, radii)
        coarse = max(grids.strides) > 1
        self.images = [
            self.blocks.pad((downsample_image(image, grids.strides) if coarse else image)[0])
            for image in group.images
        ]
        self.weights = [
            None if mask is None else downsample_image(mask, self.strides) for mask in group.masks
        ]
        self.cut = group.cut
        self.everywhere = torch.ones(self.grid.shape, device=device)

    def read(self, index: int, u_vox: Tensor | None) -> Tensor:
        """Image `index` at x + u(x), (1, P, *coarse); None = the image itself."""
        if u_vox is None:
            return self.blocks.split(self.images[index][:, *(slice(n) for n in self.blocks.shape)])
        return self.blocks.read(self.images[index], u_vox[0])

    def seen(self, index: int, u_vox: Tensor | None) -> Tensor | None:
        """Weight of image `index` at x + u(x), (*coarse); None where it counts everywhere."""
        mask = self.weights[index]
        if u_vox is None:
            return None if mask is None else mask[0, 0]
        weight = None if mask is None else warp(mask, u_vox)[0, 0]
        if self.cut[index]:
            inside = _inside(u_vox[0])
            weight = inside if weight is None else weight * inside
        return weight


def _inside(u_vox: Tensor) -> Tensor:
    """1 where x + u(x) lies in the field of view of the grid, (*spatial), up to the faces of its voxels."""
    held = torch.ones(u_vox.shape[1:], dtype=torch.bool, device=u_vox.device)
    for axis, size in enumerate(u_vox.shape[1:]):
        along = [-1 if a == axis else 1 for a in range(len(u_vox))]
        position = u_vox[axis] + torch.arange(size, dtype=u_vox.dtype, device=u_vox.device).view(along)
        held &= (position >= -0.5) & (position <= size - 0.5)
    return held.to(u_vox.dtype)


@torch.no_grad()
def optimise_group(
    velocities_vox: Tensor,
    level: GroupLevel,
    plan: Plan,
    settings: Settings,
    tell: Callable[[int, float], None],
) -> tuple[Tensor, float]:
    """The velocities after at most `plan.iterations` steps on one level, and the last value; see `optimise`.

    velocities_vox: (K, d, *level.grid.shape), changed in place.  The longest vector of all updates together
    has the length of a step, so an image that is in place already hardly moves.
    """
    spacing = velocities_vox.new_tensor(level.grid.spacing).view(1, -1, *[1] * level.grid.dim)
    update_sigma = [plan.update_sigma * level.nominal_mm / s for s in level.grid.spacing]
    velocity_sigma = [plan.velocity_sigma * level.nominal_mm / s for s in level.grid.spacing]
    step_mm, values = plan.step * level.nominal_mm, list[float]()
    updates = torch.empty_like(velocities_vox)
    for iteration in range(plan.iterations):
        forces, reads = compare(level, velocities_vox, settings)
        for index in range(len(velocities_vox)):
            if index == level.fixed:
                updates[index] = 0
                continue
            downhill = level.blocks.slope(forces.by_image[index : index + 1], reads[index : index + 1])
            smoothed = gaussian_smooth(downhill[None].neg_() / spacing, update_sigma)
            updates[index : index + 1] = smoothed
        values.append(forces.value)
        del forces, reads
        if level.fixed is None:
            updates -= updates.mean(0, keepdim=True)
        longest = max(float(update.square().sum(0).amax()) for update in updates) ** 0.5
        scale = step_mm / max(longest, 1e-12)
        for index in range(len(velocities_vox)):
            if index != level.fixed:
                moved = velocities_vox[index : index + 1] + updates[index : index + 1] * (scale / spacing)
                velocities_vox[index : index + 1] = gaussian_smooth(moved, velocity_sigma)
        centred(velocities_vox, level.fixed)
        tell(iteration, values[-1])
        if _converged(values):
            break
        if _stalled(values):
            step_mm *= 0.5
    return velocities_vox, values[-1] if values else float("nan")


def compare(level: GroupLevel, velocities_vox: Tensor, settings: Settings) -> tuple[GroupForces, Tensor]:
    """The similarity of all images in the common space with its derivatives, and the images read there."""
    reads, weight = compare_reads(level, velocities_vox, settings)
    return level.similarity(reads, weight), reads


def compare_reads(level: GroupLevel, velocities_vox: Tensor, settings: Settings) -> tuple[Tensor, Tensor]:
    """All images in the common space, (K, P, *coarse), and where all of them count, (*coarse).

    Frames are carried one after the other: only one flow exists at a time.
    """
    count = len(velocities_vox)
    reads = velocities_vox.new_empty((count, level.blocks.per_block, *level.grid.shape))
    weight = level.everywhere
    for index in range(count):
        u_vox = None
        if index != level.fixed:
            velocity = velocities_vox[index : index + 1]
            u_vox = exp(velocity, squarings_for(velocity, settings), first_step=2)
        reads[index : index + 1] = level.read(index, u_vox)
        seen = level.seen(index, u_vox)
        weight = weight if seen is None else weight * seen
    return reads, weight


def _converged(values: Sequence[float]) -> bool:
    """True when the last steps, each half of the window averaged, no longer lower the value."""
    if len(values) < 2 * WINDOW:
        return False
    recent = sum(values[-WINDOW:]) / WINDOW
    before = sum(values[-2 * WINDOW : -WINDOW]) / WINDOW
    return before - recent <= CONVERGED * (values[0] - recent)


def _stalled(values: Sequence[float]) -> bool:
    """True every PATIENCE steps that brought no new lowest value."""
    since = len(values) - 1 - min(range(len(values)), key=values.__getitem__)
    return since > 0 and since % PATIENCE == 0
