"""Networks by name, as a training run or a weights file names them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import nn

from DiffeoRegLib.errors import SettingsError, UnknownNameError
from DiffeoRegLib.networks.pyramid import PyramidConfig
from DiffeoRegLib.networks.sitreg import SITReg
from DiffeoRegLib.networks.sitreg_options import Precision, SITRegOptions
from DiffeoRegLib.training.config import NetworkConfig
from DiffeoRegLib.training.reading import build

PRECISIONS: Mapping[str, Precision] = {"fp32": "float32", "bf16": "bfloat16"}


def sitreg(sizes: Mapping[str, Any], options: Mapping[str, Any], precision: str) -> nn.Module:
    """A SITReg network: sizes of PyramidConfig, options of SITRegOptions but the precision."""
    if "precision" in options:
        raise SettingsError("The precision is a setting of the run, not an option of the network.")
    chosen = {**options, "precision": PRECISIONS[precision]}
    return SITReg(
        build(PyramidConfig, sizes, "network.sizes"), build(SITRegOptions, chosen, "network.options")
    )


NETWORKS: dict[str, Callable[[Mapping[str, Any], Mapping[str, Any], str], nn.Module]] = {"sitreg": sitreg}


def build_network(config: NetworkConfig, precision: str = "fp32") -> nn.Module:
    """The network with random weights, drawn from torch's generator.

    Raises UnknownNameError for an unknown network or size, SettingsError for values that do not fit.
    """
    if config.name not in NETWORKS:
        raise UnknownNameError("network", config.name, NETWORKS)
    return NETWORKS[config.name](config.sizes, config.options, precision)
