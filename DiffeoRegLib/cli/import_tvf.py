"""Published TransMorph-TVF weights as a file that `register --weights` takes; see `import_weights.py`.

The network keeps the axes of its images: transformers with windows of odd length cannot be turned exactly.
The file says where these axes point, and the method turns the images.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from DiffeoRegLib.cli.imported import Imported, write_imported
from DiffeoRegLib.errors import FileFormatError, SettingsError
from DiffeoRegLib.flows.time_varying import Order
from DiffeoRegLib.networks.build import build_network
from DiffeoRegLib.networks.published import PUBLISHED_TVF
from DiffeoRegLib.networks.pyramid import parameter_count
from DiffeoRegLib.networks.transmorph import sizes_of
from DiffeoRegLib.networks.tvf import TransMorphTVF, TVFConfig
from DiffeoRegLib.networks.tvf_weights import WINDOW, read_published_tvf
from DiffeoRegLib.plain import as_plain
from DiffeoRegLib.training.config import TrainingConfig

METHOD = "transmorph-tvf"


@dataclass(frozen=True)
class TVFLike:
    """What --like says of a TransMorph-TVF network.

    expected: the sizes it must have, None = those in its file.  window: of its weights, tokens per axis, as
    the file need not tell them.  order: of the code it was trained with.
    """

    expected: TVFConfig | None
    window: tuple[int, ...]
    order: Order
    spacing_mm: tuple[float, ...] | None
    axes: str | None
    images: str


def published_like(name: str) -> TVFLike:
    """Of a name in PUBLISHED_TVF."""
    known = PUBLISHED_TVF[name]
    size = known.spacing_mm
    return TVFLike(None, WINDOW, "official", None if size is None else (size,) * 3, known.axes, known.images)


def training_like(training: TrainingConfig, images: str) -> TVFLike:
    """Of a training configuration; raises SettingsError for sizes that do not fit."""
    network = build_network(training.network)
    assert isinstance(network, TransMorphTVF)
    config = network.config
    return TVFLike(config, config.window, config.order, training.data.spacing_mm, None, images)


def import_tvf(
    source: Path, target: Path, like: TVFLike, name: str, spacing_mm: Sequence[float], axes: str | None,
    licence: str,
) -> tuple[str, dict[str, Any]]:  # fmt: skip
    """Read, check and write; what people read, and what programs read.

    name: what --like said.  Raises FileFormatError for a file that is not like that.
    """
    network = read_published_tvf(source, window=like.window, order=like.order)
    if like.expected is not None:
        _check_sizes(network.config, like.expected, str(source), name)
    known = Imported(source, name, like.images, axes, licence, spacing_mm)
    data = write_imported(target, METHOD, network, network.state_dict(), plain_sizes(network.config), known)
    return "\n".join(_said(network, spacing_mm, axes, licence, target)), data


def plain_sizes(config: TVFConfig) -> dict[str, Any]:
    """The sizes as a training configuration states them: those that are not the usual ones."""
    usual = as_plain(TVFConfig())
    return {name: value for name, value in as_plain(config).items() if value != usual[name]}


def _said(
    network: TransMorphTVF, spacing_mm: Sequence[float], axes: str | None, licence: str, target: Path
) -> list[str]:
    config = network.config
    return [
        f"network   {parameter_count(network):,} parameters, {config.steps} velocities, {_size(config)}",
        f"windows   {' x '.join(map(str, config.window))} tokens",
        f"order     {config.order}"
        + (
            "; --extra order=paper composes its steps as the paper does" if config.order == "official" else ""
        ),
        f"axes      {'as they are' if axes is None else axes.upper()}",
        f"voxels    {' x '.join(f'{s:g}' for s in spacing_mm)} mm",
        f"licence   {licence}",
        f"Written to {target}: use it with --method {METHOD} --weights {target}",
    ]


def _size(config: TVFConfig) -> str:
    """The name of the size, or its embedding."""
    for name in ("base", "large", "small", "tiny"):
        known: Mapping[str, Any] = sizes_of(name, config.dim)
        if all(getattr(config, field) == known[field] for field in ("embed", "depths", "heads")):
            return f"size {name}"
    return f"embedding {config.embed}, depths {', '.join(map(str, config.depths))}"


def _check_sizes(found: TVFConfig, expected: TVFConfig, source: str, like: str) -> None:
    """Raises FileFormatError unless the network has the sizes it should have."""
    for field in dataclasses.fields(TVFConfig):
        if field.name in ("drop_path", "shift_lone"):
            continue  # the one is of training alone, the other is always that of the published code
        mine, theirs = getattr(found, field.name), getattr(expected, field.name)
        if mine != theirs:
            raise FileFormatError(
                f"'{source}' is not like '{like}': its {field.name} is {mine}, not {theirs}."
            )


def check_method(name: str, network: str) -> None:
    """Raises SettingsError for a configuration of a network whose published weights cannot be read."""
    if network not in ("sitreg", METHOD):
        raise SettingsError(f"'{name}' trains '{network}'; published weights are of 'sitreg' or '{METHOD}'.")
