"""Maps of a series by networks trained for `group_series.py`: GroupMorph of all frames, or of pairs.

What the networks say counts, as in the paper: no search follows, no fold is mended.  A network of two images
of which the first stays is a VoxelMorph with the losses of GroupMorph (lambda_v = 0); it is asked pair by
pair.  Without a flow the prediction is a displacement, whose inverse is solved on its grid.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from DiffeoRegLib.networks.groupmorph import GroupMaps, GroupMorph
from DiffeoRegLib.networks.weights import network_spacing_mm, read_network
from DiffeoRegLib.space.field import u_mm_from_vox
from DiffeoRegLib.space.grid import Grid
from DiffeoRegLib.space.transform import CompositeTransform, DisplacementTransform, Transform
from DiffeoRegLib.training.series import grid_at
from DiffeoRegLib.volumes.intensity import finite, intensity_window, normalise, resample_affine
from DiffeoRegLib.volumes.volume import Volume


@torch.no_grad()
def predicted(
    file: Path, frames: Sequence[Volume], pairs: Iterable[tuple[int, int]]
) -> dict[tuple[int, int], Transform]:
    """Points of frame i to those of frame j, RAS mm, for pairs (i, j) of frames on one grid.

    Raises SettingsError where the weights are for another number of frames.
    """
    network, description = read_network(file)
    if not isinstance(network, GroupMorph):
        raise TypeError(f"'{file}' is no GroupMorph.")
    grid = grid_at(frames[0].grid, network_spacing_mm(description, str(file)))
    images = torch.cat([_seen(frame, grid) for frame in frames])
    if network.config.form == "stack" and network.config.images == 2:
        return {(i, j): _ways(network(images[[i, j]]), grid, 1)[0] for i, j in pairs}
    maps = network(images)
    out, back = zip(*(_ways(maps, grid, k) for k in range(len(frames))), strict=True)
    return {(i, j): CompositeTransform((back[i], out[j])) for i, j in pairs}


def _seen(frame: Volume, grid: Grid) -> Tensor:
    """A frame as training shows it (training/series.py)."""
    frame = finite(frame)
    return normalise(resample_affine(frame, grid), intensity_window(frame))


def _ways(maps: GroupMaps, grid: Grid, index: int) -> tuple[Transform, Transform]:
    """From the common space to an image and back."""
    out, back = (u_mm_from_vox(way, grid) for way in (maps.u_of(index), maps.inverse_of(index)))
    return DisplacementTransform(grid, out), DisplacementTransform(grid, back)
