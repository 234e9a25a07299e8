"""The published SITReg weights: their names of 2023 and 2024 to a network of ours, nothing left over.

The 2023 code normalises after the activation, the 2024 code before it.  In the affine head of 2024 the first
linear layer reaches nothing (the second is fed the input again), so it is left out and one hidden layer kept.
Source: the state dictionaries of the authors' repository honkamj/SITReg (MIT licence), both layouts.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor

from DiffeoRegLib.errors import FileFormatError
from DiffeoRegLib.networks.checkpoints import count_of, listed, load_published, read_state
from DiffeoRegLib.networks.pyramid import Order, PyramidConfig
from DiffeoRegLib.networks.sitreg import SITReg
from DiffeoRegLib.networks.sitreg_options import SITRegOptions
from DiffeoRegLib.space.controls import cubic_basis

NETWORK = "registration_network"
FEATURES, HEADS, AFFINE = (
    "_feature_extractor.",
    "_not_none_dense_extration_networks.",
    "_affine_extraction_network.",
)
MARKER = re.compile(r"(.*\.)?_[a-z_]*coordinate_systems?\.(\d+\.)?_indicator")
KERNEL = re.compile(re.escape(HEADS) + r"(\d+)\._upsampler\.upsampling_kernels\.\d+")
UNUSED_AFFINE = (f"{AFFINE}linears.0.weight", f"{AFFINE}linears.0.bias")
NORMS: dict[Order, tuple[int, int]] = {"conv-norm-act": (1, 4), "conv-act-norm": (2, 5)}

Names = Iterator[tuple[str, str]]


def read_published(
    path: Path, *, groups: int = 2, head_groups: int = 0, options: SITRegOptions | None = None
) -> SITReg:
    """The network in a published checkpoint file.

    groups, head_groups: of the normalisations, which the file does not tell.
    Raises FileFormatError for a file that is no checkpoint, or not of a SITReg network to the last number.
    """
    state = read_state(path, NETWORK, "SITReg")
    return import_published(state, groups=groups, head_groups=head_groups, options=options)


def import_published(
    state: Mapping[str, Tensor],
    *,
    groups: int = 2,
    head_groups: int = 0,
    options: SITRegOptions | None = None,
) -> SITReg:
    """The network of a published state dictionary, of either layout, in evaluation mode.

    Raises FileFormatError for a missing or unknown name, a wrong shape, or a value no SITReg network has.
    """
    config = published_config(state, groups=groups, head_groups=head_groups)
    network = SITReg(config, options)
    names = dict(published_names(config))
    _check_names(state, set(names.values()), config)
    load_published(network, state, names, "SITReg")
    return network.eval()


def published_config(state: Mapping[str, Tensor], *, groups: int = 2, head_groups: int = 0) -> PyramidConfig:
    """Sizes of the network a published state dictionary describes.

    Raises FileFormatError where that cannot be told.
    """
    recent = f"{FEATURES}initial_convs.convolutions.0.conv.weight" in state
    unit = "conv." if recent else ""
    entry = _shape(state, f"{FEATURES}initial_projection.weight")
    downs = count_of(state, f"{FEATURES}downsampling_blocks.{{}}.projection.{unit}weight")
    last = "final_convolution.conv." if recent else "_final_conv."
    heads = count_of(state, f"{HEADS}{{}}.{last}weight")
    if head_groups and not recent:
        raise FileFormatError("The heads of 2023 are not normalised; read these weights with 0 head groups.")
    if not 1 <= heads <= downs + 1:
        raise FileFormatError(f"These weights predict motion at {heads} of {downs + 1} levels: not SITReg.")
    channels = [
        _shape(state, f"{FEATURES}downsampling_blocks.{i}.projection.{unit}weight")[0] for i in range(downs)
    ]
    return PyramidConfig(
        (entry[0], *channels),
        tuple(_shape(state, f"{HEADS}{i}.{last}weight")[1] for i in range(heads)),
        dim=len(entry) - 2,
        channels_in=entry[1],
        groups=groups,
        head_groups=head_groups,
        order="conv-norm-act" if recent else "conv-act-norm",
        affine=any(name.startswith(AFFINE) and "_indicator" not in name for name in state),
        affine_layers=1 if recent else 2,
    )


def published_names(config: PyramidConfig) -> Names:
    """Pairs of our name and the published one, for all parameters; the order tells the layout."""
    recent = config.order == "conv-norm-act"
    unit, block, first = (".conv", "conv", "initial_convs") if recent else ("", "double_conv", "initial_conv")
    pairs = [("encoder.entry", f"{FEATURES}initial_projection")]
    pairs += _block(config, 0, FEATURES + first, unit)
    for i in range(len(config.encoder) - 1):
        theirs = f"{FEATURES}downsampling_blocks.{i}"
        pairs += [(f"encoder.down.{i}", f"{theirs}.downsampling{unit}")]
        pairs += [(f"encoder.skip.{i}", f"{theirs}.projection{unit}")]
        pairs += _block(config, i + 1, f"{theirs}.{block}", unit)
    inside, last = (
        ("convolutions", "final_convolution.conv") if recent else ("_convolution_block", "_final_conv")
    )
    for i in range(len(config.heads)):
        mine, theirs = f"heads.{i}", f"{HEADS}{i}"
        pairs += [(f"{mine}.first", f"{theirs}.{inside}.convolutions.0{unit}")]
        pairs += [(f"{mine}.second", f"{theirs}.{inside}.convolutions.1{unit}")]
        pairs += [(f"{mine}.last", f"{theirs}.{last}")]
        if config.head_groups:
            pairs += [(f"{mine}.norms.{n}", f"{theirs}.{inside}.normalizers.{n}") for n in range(2)]
    if config.affine:
        layers = ["linears.1", "final_linear"] if recent else ["_linear_1", "_linear_2", "_final_linear"]
        pairs += [(f"affine.layers.{2 * i}", AFFINE + name) for i, name in enumerate(layers)]
    for mine, theirs in pairs:
        for kind in ("weight", "bias"):
            yield f"pyramid.{mine}.{kind}", f"{theirs}.{kind}"


def _block(config: PyramidConfig, level: int, theirs: str, unit: str) -> list[tuple[str, str]]:
    """Names of the two convolutions and normalisations of one encoder level."""
    norms = "normalizers" if config.order == "conv-norm-act" else "normalizer_modules"
    mine = f"encoder.blocks.{level}"
    pairs = [(f"{mine}.{3 * n}", f"{theirs}.convolutions.{n}{unit}") for n in range(2)]
    return pairs + [
        (f"{mine}.{index}", f"{theirs}.{norms}.{n}") for n, index in enumerate(NORMS[config.order])
    ]


def _check_names(state: Mapping[str, Tensor], expected: set[str], config: PyramidConfig) -> None:
    """Nothing is missing, and everything else is one of the constants the published code stores."""
    missing = sorted(expected - set(state))
    if missing:
        raise FileFormatError(f"These weights lack {listed(missing)}: not a whole SITReg network.")
    constant = {name for name in set(state) - expected if _is_constant(name, state[name], config)}
    unknown = sorted(set(state) - expected - constant)
    if unknown:
        raise FileFormatError(f"These weights hold {listed(unknown)}, which no SITReg network we know has.")


def _is_constant(name: str, value: Tensor, config: PyramidConfig) -> bool:
    """True for what is stored beside the parameters and follows from the architecture."""
    if MARKER.fullmatch(name):
        return value.numel() == 0
    if name in UNUSED_AFFINE:
        return config.affine and config.affine_layers == 1
    kernel = KERNEL.fullmatch(name)
    return kernel is not None and _is_spline(value, 2 ** int(kernel[1]))


def _is_spline(kernel: Tensor, stride: int) -> bool:
    """True for the sampled cubic B-spline of a level: another one would be another network."""
    taps = 4 * stride - stride % 2
    place = (torch.arange(taps, dtype=torch.float64) - (taps - 1) / 2) / stride
    return kernel.shape == (taps,) and bool((kernel.double() - cubic_basis(place)).abs().max() < 1e-5)


def _shape(state: Mapping[str, Tensor], name: str) -> tuple[int, ...]:
    if name not in state or state[name].dim() not in (4, 5):
        raise FileFormatError(f"These weights have no convolution '{name}': not a SITReg network.")
    return tuple(state[name].shape)
