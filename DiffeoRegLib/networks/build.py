"""Networks by name, as a training run or a weights file names them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from torch import nn

from DiffeoRegLib.errors import SettingsError, UnknownNameError
from DiffeoRegLib.networks.affine_net import AffineNet, AffineNetConfig, AffineNetOptions
from DiffeoRegLib.networks.groupmorph import GroupMorph, GroupMorphConfig, GroupMorphOptions
from DiffeoRegLib.networks.metaregnet import MetaRegNet, MetaRegNetConfig, MetaRegNetOptions
from DiffeoRegLib.networks.pyramid import PyramidConfig
from DiffeoRegLib.networks.shooting_net import LDDMMNet, RDMMNet, ShootingNet, VSVFNet
from DiffeoRegLib.networks.shooting_sizes import ShootingOptions, ShootingSizes
from DiffeoRegLib.networks.sitreg import SITReg
from DiffeoRegLib.networks.sitreg_options import Precision, SITRegOptions
from DiffeoRegLib.networks.transmorph import TransMorph, TransMorphConfig, TransMorphOptions, sizes_of
from DiffeoRegLib.networks.tvf import TransMorphTVF, TVFConfig, TVFOptions
from DiffeoRegLib.networks.unet import UNetConfig, UNetOptions
from DiffeoRegLib.networks.voxelmorph import (
    CLASSIC,
    CLASSIC_DIFF,
    VoxelMorph,
    VoxelMorphDiff,
    VoxelMorphDiffOptions,
)
from DiffeoRegLib.plain import build

PRECISIONS: Mapping[str, Precision] = {"fp32": "float32", "bf16": "bfloat16"}


@dataclass(frozen=True)
class NetworkConfig:
    """Which network: its name, its sizes (they belong to the weights) and its options (they do not)."""

    name: str
    sizes: Mapping[str, Any] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)


def sitreg(sizes: Mapping[str, Any], options: Mapping[str, Any], precision: str) -> nn.Module:
    """A SITReg network: sizes of PyramidConfig, options of SITRegOptions but the precision."""
    chosen = _with_precision(options, precision)
    return SITReg(
        build(PyramidConfig, sizes, "network.sizes"), build(SITRegOptions, chosen, "network.options")
    )


def voxelmorph(sizes: Mapping[str, Any], options: Mapping[str, Any], precision: str) -> nn.Module:
    """A VoxelMorph network: sizes of UNetConfig, by default CLASSIC, options of UNetOptions."""
    chosen = _with_precision(options, precision)
    return VoxelMorph(
        build(UNetConfig, {**CLASSIC, **sizes}, "network.sizes"),
        build(UNetOptions, chosen, "network.options"),
    )


def voxelmorph_diff(sizes: Mapping[str, Any], options: Mapping[str, Any], precision: str) -> nn.Module:
    """A VoxelMorphDiff network: sizes of UNetConfig, by default CLASSIC_DIFF."""
    chosen = _with_precision(options, precision)
    return VoxelMorphDiff(
        build(UNetConfig, {**CLASSIC_DIFF, **sizes}, "network.sizes"),
        build(VoxelMorphDiffOptions, chosen, "network.options"),
    )


def affine_network(sizes: Mapping[str, Any], options: Mapping[str, Any], precision: str) -> nn.Module:
    """An AffineNet: sizes of AffineNetConfig, options of AffineNetOptions but the precision."""
    chosen = _with_precision(options, precision)
    return AffineNet(
        build(AffineNetConfig, sizes, "network.sizes"), build(AffineNetOptions, chosen, "network.options")
    )


def metaregnet(sizes: Mapping[str, Any], options: Mapping[str, Any], precision: str) -> nn.Module:
    """A MetaRegNet: sizes of MetaRegNetConfig, options of MetaRegNetOptions but the precision."""
    chosen = _with_precision(options, precision)
    return MetaRegNet(
        build(MetaRegNetConfig, sizes, "network.sizes"), build(MetaRegNetOptions, chosen, "network.options")
    )


def groupmorph(sizes: Mapping[str, Any], options: Mapping[str, Any], precision: str) -> nn.Module:
    """A GroupMorph: sizes of GroupMorphConfig, options of GroupMorphOptions but the precision."""
    chosen = _with_precision(options, precision)
    return GroupMorph(
        build(GroupMorphConfig, sizes, "network.sizes"), build(GroupMorphOptions, chosen, "network.options")
    )


def transmorph(sizes: Mapping[str, Any], options: Mapping[str, Any], precision: str) -> nn.Module:
    """A single-step TransMorph: sizes of TransMorphConfig, or some of them by a name; see `_named`."""
    chosen = _with_precision(options, precision)
    return TransMorph(
        build(TransMorphConfig, _named(sizes), "network.sizes"),
        build(TransMorphOptions, chosen, "network.options"),
    )


def transmorph_tvf(sizes: Mapping[str, Any], options: Mapping[str, Any], precision: str) -> nn.Module:
    """A TransMorph-TVF: sizes of TVFConfig, or some of them by a name; see `_named`."""
    chosen = _with_precision(options, precision)
    return TransMorphTVF(
        build(TVFConfig, _named(sizes), "network.sizes"), build(TVFOptions, chosen, "network.options")
    )


def _named(sizes: Mapping[str, Any]) -> dict[str, Any]:
    """Sizes with `size` (tiny, small, base, large) and `dim` (3) replaced by what they stand for.

    Sizes that are also given by themselves are taken as given.
    """
    rest = dict(sizes)
    if "size" not in rest:
        if "dim" in rest:
            raise SettingsError("network.sizes: dim goes with size; the window gives it otherwise.")
        return rest
    name, dim = rest.pop("size"), rest.pop("dim", 3)
    return {**sizes_of(name, dim), **rest}


def _shooting(
    kind: type[ShootingNet], sizes: Mapping[str, Any], options: Mapping[str, Any], precision: str
) -> nn.Module:
    """A network that predicts a momentum: sizes of ShootingSizes, options of ShootingOptions."""
    chosen = _with_precision(options, precision)
    return kind(
        build(ShootingSizes, sizes, "network.sizes"), build(ShootingOptions, chosen, "network.options")
    )


def _with_precision(options: Mapping[str, Any], precision: str) -> dict[str, Any]:
    if "precision" in options:
        raise SettingsError("The precision is a setting of the run, not an option of the network.")
    return {**options, "precision": PRECISIONS[precision]}


NETWORKS: dict[str, Callable[[Mapping[str, Any], Mapping[str, Any], str], nn.Module]] = {
    "affine-network": affine_network,
    "groupmorph": groupmorph,
    "lddmm-network": partial(_shooting, LDDMMNet),
    "metaregnet": metaregnet,
    "rdmm-network": partial(_shooting, RDMMNet),
    "sitreg": sitreg,
    "transmorph": transmorph,
    "transmorph-tvf": transmorph_tvf,
    "vsvf-network": partial(_shooting, VSVFNet),
    "voxelmorph": voxelmorph,
    "voxelmorph-diff": voxelmorph_diff,
}


def build_network(config: NetworkConfig, precision: str = "fp32") -> nn.Module:
    """The network with random weights, drawn from torch's generator.

    Raises UnknownNameError for an unknown network or size, SettingsError for values that do not fit.
    """
    if config.name not in NETWORKS:
        raise UnknownNameError("network", config.name, NETWORKS)
    return NETWORKS[config.name](config.sizes, config.options, precision)
