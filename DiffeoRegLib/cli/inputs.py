"""What the flags name, read from files; wrong combinations are found before anything is read."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from DiffeoRegLib import catalog
from DiffeoRegLib.cli.pathology_arguments import check_pathology_flags
from DiffeoRegLib.errors import InputError, OutputError, OutputExistsError, SettingsError
from DiffeoRegLib.networks.weights import check_weights
from DiffeoRegLib.settings import INIT_NETWORK, INITS, PATHOLOGY_EDGE_MM, Settings
from DiffeoRegLib.space.grid import Grid, Matrix
from DiffeoRegLib.volumes.files import read_points, read_volume
from DiffeoRegLib.volumes.pair import Correspondence, Masks
from DiffeoRegLib.volumes.pathology import Pathology
from DiffeoRegLib.volumes.regions import Regions
from DiffeoRegLib.volumes.volume import Volume

SAME_NAME = (
    "method", "preset", "effort", "similarity", "steps", "iterations", "dense_iterations", "regularity",
    "working_spacing_mm", "padding_mm",
    "taper_mm", "interpolation", "device", "threads", "memory_limit_gb", "seed", "weights",
    "kernel_sigmas", "kernel_weights", "kernel_units", "preweight_sigma", "kinetic", "integrator",
)  # fmt: skip


def settings_from(arguments: argparse.Namespace) -> tuple[Settings, str | None]:
    """Settings of the flags of `register`, and the transform file given to --init, if any.

    Raises SettingsError, UnknownNameError or InputError, before anything is read.
    """
    card = catalog.card(arguments.method)
    catalog.check_pair_method(card)
    init, initial_file = arguments.init, None
    if init not in INITS and not init.startswith(INIT_NETWORK):
        if not Path(init).is_file():
            known = ", ".join(INITS)
            raise InputError(f"There is no initial alignment and no transform file '{init}'. Known: {known}.")
        init, initial_file = "auto", init
    values: dict[str, Any] = {name: getattr(arguments, name) for name in SAME_NAME}
    accepted = tuple(arguments.accept_licence)
    settings = Settings(
        init=init, levels_mm=arguments.levels, accepted_licences=accepted, extras=_extras(arguments), **values
    )
    check_weights(card, settings)
    return settings, initial_file


def _extras(arguments: argparse.Namespace) -> dict[str, Any]:
    """Settings of --extra; raises SettingsError for one given twice."""
    extras = dict[str, Any]()
    for name, value in arguments.extra:
        if name in extras:
            raise SettingsError(f"--extra {name} is given twice.")
        extras[name] = value
    return extras


def check_flags(arguments: argparse.Namespace) -> None:
    """Raises SettingsError for flags of `register` that need one another."""
    for side in ("fixed", "moving"):
        if getattr(arguments, f"exclude_{side}_mask") and getattr(arguments, f"{side}_mask") is None:
            raise SettingsError(f"--exclude-{side}-mask needs --{side}-mask FILE.")
    if (arguments.guidance_fixed_seg is None) != (arguments.guidance_moving_seg is None):
        raise SettingsError("Guidance needs both --guidance-fixed-seg and --guidance-moving-seg.")
    if arguments.fixed_seg is not None and arguments.moving_seg is None:
        raise SettingsError("--fixed-seg is compared with --moving-seg, which is missing.")
    if arguments.smooth_labels and arguments.moving_seg is None:
        raise SettingsError("--smooth-labels needs --moving-seg FILE.")
    if arguments.guide_with_landmarks and landmark_files(arguments) is None:
        raise SettingsError("--guide-with-landmarks needs --landmarks FIXED MOVING.")
    landmark_files(arguments)
    _check_region_flags(arguments)
    check_pathology_flags(arguments)
    if arguments.keep_path and not catalog.card(arguments.method).time_varying:
        raise SettingsError(
            f"--keep-path is for methods whose velocities change in time, and '{arguments.method}' is none."
        )
    if arguments.levels and arguments.iterations and len(arguments.levels) != len(arguments.iterations):
        raise SettingsError(
            f"--levels names {len(arguments.levels)} levels but --iterations {len(arguments.iterations)}."
        )


def read_regions(arguments: argparse.Namespace) -> Regions | None:
    """The regions of --regions with their stiffness, or None; see `check_flags`."""
    if arguments.regions is None:
        return None
    rest = {} if arguments.rest is None else {"rest": arguments.rest}
    return Regions(read_volume(arguments.regions, labels=True), dict(arguments.stiffness), **rest)


def read_pathology(arguments: argparse.Namespace) -> Pathology | None:
    """The pathology of the flags, or None; see `check_pathology_flags`."""
    files = arguments.pathology, arguments.pathology_moving
    if files == (None, None):
        return None
    fixed, moving = (None if file is None else read_volume(file, labels=True) for file in files)
    edge_mm = PATHOLOGY_EDGE_MM if arguments.pathology_edge_mm is None else arguments.pathology_edge_mm
    return Pathology(fixed, moving, arguments.pathology_classes, edge_mm)


def _check_region_flags(arguments: argparse.Namespace) -> None:
    labels = [label for label, _ in arguments.stiffness]
    twice = [label for label in labels if labels.count(label) > 1]
    if twice:
        raise SettingsError(f"--stiffness is given twice for the label {twice[0]}.")
    if arguments.regions is None and (labels or arguments.rest is not None):
        raise SettingsError(
            "--stiffness and --rest speak of the label map of --regions FILE, which is missing."
        )
    needs = catalog.card(arguments.method).needs_region_labels
    if arguments.regions is not None and not needs:
        raise SettingsError(f"The method '{arguments.method}' makes no use of --regions.")
    if needs and not (arguments.regions is not None and labels):
        raise SettingsError(
            f"The method '{arguments.method}' needs --regions FILE and --stiffness LABEL=STIFFNESS for at "
            "least one label in it."
        )


def check_target(target: Path, *, overwrite: bool) -> None:
    """Raises OutputExistsError for a file that exists and is to be kept, OutputError without its folder."""
    if target.exists() and not overwrite:
        raise OutputExistsError(
            f"'{target}' exists already. Choose another name, or allow overwriting (--overwrite)."
        )
    if not target.parent.is_dir():
        raise OutputError(
            f"There is no folder '{target.parent}' to write '{target.name}' into. Create it first."
        )


def read_labels(path: str | None) -> Volume | None:
    """The label map of a flag, or None."""
    return None if path is None else read_volume(path, labels=True)


def read_segmentation(arguments: argparse.Namespace, moving: Volume) -> Volume | None:
    """The label map of --moving-seg, or None; raises InputError when it cannot lie on the moving image."""
    labels = read_labels(arguments.moving_seg)
    if labels is not None and labels.grid.dim != moving.grid.dim:
        raise InputError(
            f"The segmentation '{labels.name}' is {labels.grid.dim}D, its image {moving.grid.dim}D."
        )
    return labels


def read_masks(arguments: argparse.Namespace) -> Masks | None:
    """The masks of --fixed-mask and --moving-mask, or None without any."""
    if arguments.fixed_mask is None and arguments.moving_mask is None:
        return None
    return Masks(
        fixed=read_labels(arguments.fixed_mask),
        moving=read_labels(arguments.moving_mask),
        exclude_fixed=arguments.exclude_fixed_mask,
        exclude_moving=arguments.exclude_moving_mask,
    )


def landmark_files(arguments: argparse.Namespace) -> tuple[str, str] | None:
    """Both landmark files, or None; raises SettingsError when one is missing."""
    fixed, moving = arguments.landmarks or (arguments.fixed_landmarks, arguments.moving_landmarks)
    if fixed is None and moving is None:
        return None
    if fixed is None or moving is None:
        raise SettingsError("Landmarks are needed for both images: --landmarks FIXED MOVING.")
    return fixed, moving


def read_landmarks(
    arguments: argparse.Namespace, fixed: Grid | None = None, moving: Grid | None = None
) -> tuple[Matrix, Matrix] | tuple[None, None]:
    """Fixed and moving landmarks (n, 3), RAS mm, or None twice.

    fixed, moving: grids of the images, for point files that count voxels.
    Raises InputError when the lists do not pair up.
    """
    files = landmark_files(arguments)
    if files is None:
        return None, None
    fixed_mm, moving_mm = read_points(files[0], grid=fixed), read_points(files[1], grid=moving)
    if len(fixed_mm) != len(moving_mm) or len(fixed_mm) == 0:
        raise InputError(
            f"The landmark files must list the same points: '{files[0]}' has {len(fixed_mm)}, "
            f"'{files[1]}' has {len(moving_mm)}."
        )
    return fixed_mm, moving_mm


def guidance_and_evaluation(
    arguments: argparse.Namespace, fixed: Grid, moving: Grid
) -> tuple[Correspondence | None, Correspondence | None]:
    """What guides the registration and what judges it; None for what was not given."""
    points = read_landmarks(arguments, fixed, moving)
    guide_points = points if arguments.guide_with_landmarks else (None, None)
    guidance = evaluation = None
    if arguments.guidance_fixed_seg is not None or guide_points[0] is not None:
        labels = read_labels(arguments.guidance_fixed_seg), read_labels(arguments.guidance_moving_seg)
        guidance = Correspondence(*labels, *guide_points)
    if arguments.fixed_seg is not None or points[0] is not None:
        both = arguments.fixed_seg is not None
        labels = read_labels(arguments.fixed_seg), read_labels(arguments.moving_seg if both else None)
        evaluation = Correspondence(*labels, *points)
    return guidance, evaluation
