"""From what a method found to a map and its inverse, and on to transforms in patient space."""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor

from DiffeoRegLib.catalog import card
from DiffeoRegLib.flows.halfway import join
from DiffeoRegLib.flows.integrate import Flow, integrate
from DiffeoRegLib.flows.time_varying import Order
from DiffeoRegLib.methods.base import Motion
from DiffeoRegLib.methods.geodesic import finished
from DiffeoRegLib.methods.stepping import chosen_steps, followed, said
from DiffeoRegLib.settings import Settings
from DiffeoRegLib.space.field import u_mm_from_vox
from DiffeoRegLib.space.grid import Grid
from DiffeoRegLib.space.transform import AffineTransform, CompositeTransform, DisplacementTransform, Transform
from DiffeoRegLib.volumes.halfway import Halves
from DiffeoRegLib.volumes.intensity import resample_affine
from DiffeoRegLib.volumes.pair import Pair


def finish(motion: Motion, working: Grid, cover: Grid, settings: Settings) -> tuple[Flow, Motion]:
    """The map of a motion and its inverse over the view of `cover`, and the motion as it became, on the CPU.

    working: the grid the images were compared on.  A moving half-way grid needs no cover.
    """
    steps, taper_mm = settings.steps, settings.taper_mm
    if motion.geodesics:
        geodesics = [geodesic.to("cpu") for geodesic in motion.geodesics]
        flow = finished(geodesics, working, cover, taper_mm)
        return replace(flow, steps=sum(one.steps for one in geodesics)), Motion.of(*geodesics)
    if motion.stepping is not None:
        return _stepped(motion, motion.stepping, working, cover, settings)
    if motion.halves is None:
        flow = integrate(motion.velocity_vox.cpu(), motion.grid, cover, steps, taper_mm)
    else:
        halves = motion.halves[0].cpu(), motion.halves[1].cpu()
        flow = join(motion.velocity_vox.cpu(), halves, motion.grid, steps, taper_mm)
    return flow, Motion(flow.velocity_vox, flow.grid, flow.halves, source=motion.source)


def _stepped(
    motion: Motion, order: Order, working: Grid, cover: Grid, settings: Settings
) -> tuple[Flow, Motion]:
    """Of velocities that are followed step by step."""
    motion = replace(motion, velocity_vox=motion.velocity_vox.cpu())
    most = card(settings.method).steps_range[1]
    steps = chosen_steps(motion.velocity_vox, order, settings.steps, most)
    flow = followed(motion.velocity_vox, motion.grid, order, steps, working, cover, settings.taper_mm)
    return replace(flow, notes=[said(motion.velocity_vox, order, steps), *flow.notes]), motion


def source_on(grid: Grid, motion: Motion, pair: Pair) -> Tensor | None:
    """What a network adds to the moving image, (*grid.shape), in the intensities of that image.

    grid: in the space of the fixed image.  None where the method predicts no change.
    """
    if motion.source is None:
        return None
    low, high = pair.moving_window
    return resample_affine(motion.source, grid)[0, 0] * (high - low)


def to_patient(
    flow: Flow | None, initial: Transform, halves: Halves | None = None
) -> tuple[Transform, Transform]:
    """Flow and initial alignment as one transform and its inverse, RAS mm; no flow: the latter alone.

    halves: of the alignment, around a flow in half-way space.
    """
    if flow is None:
        return initial, initial.inverse()
    forward = DisplacementTransform(flow.grid, u_mm_from_vox(flow.forward_vox, flow.grid))
    backward = DisplacementTransform(flow.grid, u_mm_from_vox(flow.inverse_vox, flow.grid))
    if halves is None:
        return CompositeTransform((forward, initial)), CompositeTransform((initial.inverse(), backward))
    ways = (halves.grid_from_fixed, halves.moving_from_grid, halves.grid_from_moving, halves.fixed_from_grid)
    start, end, back_start, back_end = (AffineTransform(way) for way in ways)
    return CompositeTransform((start, forward, end)), CompositeTransform((back_start, backward, back_end))
