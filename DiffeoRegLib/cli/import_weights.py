"""`diffeoreg import-weights`: published weights as a file that `register --weights` takes."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from DiffeoRegLib.cli.console import Console
from DiffeoRegLib.cli.import_tvf import METHOD as TVF
from DiffeoRegLib.cli.import_tvf import TVFLike, check_method, import_tvf, published_like, training_like
from DiffeoRegLib.cli.imported import Imported, write_imported
from DiffeoRegLib.errors import FileFormatError, OutputError, OutputExistsError, SettingsError
from DiffeoRegLib.networks.published import PUBLISHED, PUBLISHED_TVF, places_of
from DiffeoRegLib.networks.pyramid import PyramidConfig, parameter_count
from DiffeoRegLib.networks.sitreg import SITReg
from DiffeoRegLib.networks.sitreg_turned import turned_weights
from DiffeoRegLib.networks.sitreg_weights import read_published
from DiffeoRegLib.plain import as_plain, build
from DiffeoRegLib.training.config import read_config

ORDERS = {
    "conv-act-norm": "activation, then normalisation (the authors' code of 2023)",
    "conv-norm-act": "normalisation, then activation (the authors' code of 2024)",
}
NOT_STATED = "not stated"


@dataclasses.dataclass(frozen=True)
class Like:
    """What --like says: sizes the network must have, and what else is known of it."""

    expected: PyramidConfig
    spacing_mm: tuple[float, ...] | None
    axes: str | None
    images: str


def import_weights(arguments: argparse.Namespace, console: Console) -> None:
    """Read, check, turn to our axes and write; nothing is written unless all of it is right."""
    source, target = Path(arguments.published), Path(arguments.output)
    _check_target(target, overwrite=arguments.overwrite)
    like = like_of(arguments.like)
    dim = len(like.window) if isinstance(like, TVFLike) else like.expected.dim
    spacing_mm = _spacing(arguments.spacing_mm or like.spacing_mm, dim, arguments.like)
    axes = _axes(arguments.axes or like.axes, dim, arguments.like)
    console.progress("reading", 0.0, "reading the published weights")
    if isinstance(like, TVFLike):
        licence = arguments.licence or NOT_STATED
        found = import_tvf(source, target, like, arguments.like, spacing_mm, axes, licence)
        console.progress("writing", 1.0, "done")
        console.result(*found)
        return
    network = read_published(source, groups=like.expected.groups, head_groups=like.expected.head_groups)
    _check_sizes(network.config, like.expected, str(source), arguments.like)
    state = network.state_dict() if axes is None else turned_weights(network, *places_of(axes))
    licence = arguments.licence or NOT_STATED
    known = Imported(source, arguments.like, like.images, axes, licence, spacing_mm)
    data = write_imported(target, "sitreg", network, state, sizes_of(network.config), known)
    console.progress("writing", 1.0, "done")
    console.result("\n".join(_said(network, spacing_mm, axes, licence, target)), data)


def _said(
    network: SITReg, spacing_mm: Sequence[float], axes: str | None, licence: str, target: Path
) -> list[str]:
    """What was found, for people."""
    config = network.config
    affine = ", and an affine stage" if config.affine else ""
    return [
        f"network   {parameter_count(network):,} parameters, {len(config.heads)} levels of motion{affine}",
        f"encoder   {', '.join(map(str, config.encoder))}; heads {', '.join(map(str, config.heads))}",
        f"blocks    {ORDERS[config.order]}",
        f"groups    {config.groups} in the encoder, {config.head_groups or 'none'} in the heads",
        f"axes      {'as they are' if axes is None else f'{axes.upper()}, turned to S, A, R'}",
        f"voxels    {' x '.join(f'{s:g}' for s in spacing_mm)} mm",
        f"licence   {licence}",
        f"Written to {target}: use it with --method sitreg --weights {target}",
    ]


def like_of(name: str) -> Like | TVFLike:
    """The network of a name in PUBLISHED or PUBLISHED_TVF, or of a training configuration.

    Raises SettingsError for neither, or for a configuration of another network.
    """
    if name in PUBLISHED:
        known = PUBLISHED[name]
        config = PyramidConfig(
            known.encoder, known.heads, groups=known.groups, head_groups=known.head_groups,
            affine=known.affine,
        )  # fmt: skip
        size = known.spacing_mm
        return Like(config, None if size is None else (size,) * 3, known.axes, known.images)
    if name in PUBLISHED_TVF:
        return published_like(name)
    if not Path(name).is_file():
        raise SettingsError(
            f"--like takes {', '.join((*PUBLISHED, *PUBLISHED_TVF))} or the YAML file of a training run, and "
            f"there is no file '{name}'."
        )
    training = read_config(Path(name))
    check_method(name, training.network.name)
    if training.network.name == TVF:
        return training_like(training, NOT_STATED)
    config = build(PyramidConfig, training.network.sizes, "network.sizes")
    return Like(config, training.data.spacing_mm, None, NOT_STATED)


def sizes_of(config: PyramidConfig) -> dict[str, Any]:
    """The sizes as a training configuration states them: those that are not the usual ones."""
    usual = {field.name: field.default for field in dataclasses.fields(PyramidConfig)}
    if not config.affine:
        usual["affine_layers"] = config.affine_layers  # of no layers at all
    return {name: value for name, value in as_plain(config).items() if value != usual[name]}


def _check_target(target: Path, *, overwrite: bool) -> None:
    if target.suffix != ".safetensors":
        raise SettingsError(f"Weights are written as .safetensors, not as '{target.name}'.")
    if target.exists() and not overwrite:
        raise OutputExistsError(
            f"'{target}' exists already. Choose another name, or allow overwriting (--overwrite)."
        )
    if not target.parent.is_dir():
        raise OutputError(f"There is no folder '{target.parent}' to write '{target.name}' into.")


def _spacing(given: Sequence[float] | None, dim: int, like: str) -> tuple[float, ...]:
    """The voxel size along every axis, from one number or all of them."""
    if given is None:
        raise SettingsError(f"The voxel size of '{like}' is not known: give --spacing-mm.")
    sizes = tuple(given) * dim if len(given) == 1 else tuple(given)
    if len(sizes) != dim or not all(0 < size < float("inf") for size in sizes):
        raise SettingsError(f"--spacing-mm takes 1 or {dim} lengths above 0, not {tuple(given)}.")
    return sizes


def _axes(given: str | None, dim: int, like: str) -> str | None:
    """Where the authors' axes point; None for slices, whose axes are those of the images."""
    if dim == 2:
        if given is not None:
            raise SettingsError("--axes is for networks of volumes; slices keep their own axes.")
        return None
    if given is None:
        raise SettingsError(
            f"Where the array axes of the images of '{like}' pointed is not known: give --axes, such as RAS."
        )
    places_of(given)
    return given.upper()


def _check_sizes(found: PyramidConfig, expected: PyramidConfig, source: str, like: str) -> None:
    """Raises FileFormatError unless the network has the sizes it should have."""
    for name in ("dim", "encoder", "heads", "channels_in", "affine"):
        if getattr(found, name) != getattr(expected, name):
            raise FileFormatError(
                f"'{source}' is not like '{like}': its {name} is {getattr(found, name)}, "
                f"not {getattr(expected, name)}."
            )
