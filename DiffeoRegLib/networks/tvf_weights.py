"""The published TransMorph-TVF weights: their names to a network of ours, nothing left over.

They were trained with the order `official` (see `flows/time_varying.py`) on 160 x 192 x 224 voxels, and the
import keeps to it, unless told that the weights come from the later code, which composes as the paper does.
Source: the state dictionaries of the authors' repository junyuchen245/TransMorph_TVF (MIT licence).
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from DiffeoRegLib.errors import DiffeoRegError, FileFormatError
from DiffeoRegLib.flows.time_varying import Order
from DiffeoRegLib.networks.checkpoints import count_of, listed, load_published, read_state
from DiffeoRegLib.networks.tvf import TransMorphTVF, TVFConfig, TVFOptions
from DiffeoRegLib.networks.windows import resized_table, window_pairs
from DiffeoRegLib.space.sample import identity_vox

STATE = "state_dict"
WINDOW = (5, 6, 7)
SWIN = "transformer."
TABLE = "attn.relative_position_bias_table"
BLOCK = re.compile(r"transformer\.layers\.(\d+)\.blocks\.(\d+)\.attn\.relative_position_index")
WARPER = re.compile(r"spatial_trans(_down)?\.grid")
IN_BLOCK = (
    ("norm1", "norm1", True), ("attention.qkv", "attn.qkv", False), ("attention.proj", "attn.proj", True),
    ("norm2", "norm2", True), ("mlp.0", "mlp.fc1", True), ("mlp.2", "mlp.fc2", True),
)  # fmt: skip


def read_published_tvf(
    path: Path,
    *,
    window: Sequence[int] = WINDOW,
    order: Order = "official",
    options: TVFOptions | None = None,
) -> TransMorphTVF:
    """The network in a published checkpoint file; arguments as in `import_published_tvf`.

    Raises FileFormatError for a file that is no checkpoint, or not of a TransMorph-TVF network.
    """
    with _plain_numbers():
        state = read_state(path, STATE, "TransMorph")
    return import_published_tvf(state, window=window, order=order, options=options)


def import_published_tvf(
    state: Mapping[str, Tensor],
    *,
    window: Sequence[int] = WINDOW,
    order: Order = "official",
    options: TVFOptions | None = None,
) -> TransMorphTVF:
    """The network of a published state dictionary, in evaluation mode.

    window: tokens per axis the weights were trained with, which their names do not tell; a state that holds
    the index of its tables is checked against it.  order: of the code they were trained with.
    Raises FileFormatError for a missing or unknown name, a wrong shape, or a value no such network has.
    """
    config = published_tvf_config(state, window=window, order=order)
    network = TransMorphTVF(config, options)
    names = dict(published_tvf_names(config))
    _check_names(state, set(names.values()), config)
    load_published(network, state, names, "TransMorph-TVF")
    return network.eval()


def published_tvf_config(
    state: Mapping[str, Tensor], *, window: Sequence[int] = WINDOW, order: Order = "official"
) -> TVFConfig:
    """Sizes of the network a published state dictionary describes; raises FileFormatError where none fits."""
    stages = count_of(state, f"{SWIN}layers.{{}}.blocks.0.norm1.weight")
    depths = [count_of(state, f"{SWIN}layers.{i}.blocks.{{}}.norm1.weight") for i in range(stages)]
    steps = count_of(state, "reg_heads.{}.0.weight")
    if not stages or not steps:
        raise FileFormatError("These weights have no stages or no heads: not a TransMorph-TVF network.")
    patches = _shape(state, f"{SWIN}patch_embed.proj.weight")
    if len(patches) != len(window) + 2:
        raise FileFormatError(
            f"These weights are for {len(patches) - 2} axes, the windows for {len(window)}."
        )
    block = f"{SWIN}layers.0.blocks.0."
    try:
        return TVFConfig(
            embed=patches[0],
            depths=tuple(depths),
            heads=tuple(_shape(state, f"{SWIN}layers.{i}.blocks.0.{TABLE}")[1] for i in range(stages)),
            window=tuple(window),
            channels_in=patches[1],
            patch=patches[2],
            mlp_ratio=_shape(state, f"{block}mlp.fc1.weight")[0] // patches[0],
            shift_lone=True,
            head_channels=_shape(state, "reg_heads.0.0.weight")[1],
            steps=steps,
            order=order,
        )
    except FileFormatError:
        raise
    except DiffeoRegError as error:
        raise FileFormatError(f"These weights are not of a TransMorph-TVF network: {error}") from error


def published_tvf_names(config: TVFConfig) -> Iterator[tuple[str, str]]:
    """Pairs of our name and the published one, for all parameters."""
    swin = "backbone.swin."
    pairs = [(f"{swin}embed", f"{SWIN}patch_embed.proj", True)]
    pairs += [(f"{swin}embed_norm", f"{SWIN}patch_embed.norm", True)]
    for stage, depth in enumerate(config.depths):
        theirs = f"{SWIN}layers.{stage}"
        for index in range(depth):
            mine, block = f"{swin}stages.{stage}.{index}", f"{theirs}.blocks.{index}"
            yield f"{mine}.attention.table", f"{block}.{TABLE}"
            pairs += [(f"{mine}.{own}", f"{block}.{other}", bias) for own, other, bias in IN_BLOCK]
        pairs += [(f"{swin}norms.{stage}", f"{SWIN}norm{stage}", True)]
        if stage + 1 < len(config.depths):
            pairs += [(f"{swin}merge.{stage}.norm", f"{theirs}.downsample.norm", True)]
            pairs += [(f"{swin}merge.{stage}.reduce", f"{theirs}.downsample.reduction", False)]
    for level in range(len(config.depths) - 1):
        pairs += [(f"backbone.up.{level}.conv{n}", f"up{level}.conv{n}.0", False) for n in (1, 2)]
    for t in range(config.steps):
        pairs += [(f"steps.{t}.context", f"cs.{t}.0", False), (f"steps.{t}.head", f"reg_heads.{t}.0", True)]
        pairs += [(f"steps.{t}.first", f"up3s.{t}.conv1.0", False)]
        pairs += [(f"steps.{t}.second", f"up3s.{t}.conv2.0", False)]
    for mine, theirs, bias in pairs:
        for kind in ("weight", "bias") if bias else ("weight",):
            yield f"{mine}.{kind}", f"{theirs}.{kind}"


def with_window(
    state: Mapping[str, Tensor], window: Sequence[int], wanted: Sequence[int]
) -> dict[str, Tensor]:
    """Our state dictionary for windows of another size: every table of biases interpolated.

    window: tokens per axis of the state.  Raises ShapeError for tables of other windows.
    """
    return {
        name: resized_table(value, window, wanted) if name.endswith("attention.table") else value
        for name, value in state.items()
    }


def _check_names(state: Mapping[str, Tensor], expected: set[str], config: TVFConfig) -> None:
    """Nothing is missing, and everything else is one of the constants the published code stores."""
    missing = sorted(expected - set(state))
    if missing:
        raise FileFormatError(f"These weights lack {listed(missing)}: not a whole TransMorph-TVF network.")
    unknown = [n for n in sorted(set(state) - expected) if not _is_constant(n, state[n], config)]
    if unknown:
        raise FileFormatError(
            f"These weights hold {listed(unknown)}, which no TransMorph-TVF network with windows "
            f"{config.window} has."
        )


def _is_constant(name: str, value: Tensor, config: TVFConfig) -> bool:
    """True for what is stored beside the parameters and follows from the architecture."""
    block = BLOCK.fullmatch(name)
    if block is not None:
        stage, index = int(block[1]), int(block[2])
        known = stage < len(config.depths) and index < config.depths[stage]
        return known and torch.equal(value.flatten().long(), window_pairs(config.window, config.window))
    if WARPER.fullmatch(name) is None or value.dim() != config.dim + 2 or len(value) != 1:
        return False
    positions = identity_vox(value.shape[2:], value.dtype)
    return positions.shape == value.shape and torch.equal(positions, value)


def _shape(state: Mapping[str, Tensor], name: str) -> tuple[int, ...]:
    if name not in state or state[name].dim() < 2:
        raise FileFormatError(f"These weights have no '{name}': not a TransMorph-TVF network.")
    return tuple(state[name].shape)


def _plain_numbers() -> contextlib.AbstractContextManager[Any]:
    """Lets a checkpoint hold single numpy numbers: the authors' learning rates are, and they run no code."""
    scalar: Any = np.float64(0).__reduce__()[0]
    known = [(scalar, f"{place}.multiarray.scalar") for place in ("numpy.core", "numpy._core")]
    allowed: Any = getattr(torch.serialization, "safe_globals", None)
    if allowed is None:
        return contextlib.nullcontext()
    context: contextlib.AbstractContextManager[Any] = allowed([*known, np.dtype, type(np.dtype(np.float64))])
    return context
