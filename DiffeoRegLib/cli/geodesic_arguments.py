"""The flags of kernels, regions and kept motions: for `register`, `evaluate --pairs` and `shoot`."""

from __future__ import annotations

import argparse
from collections.abc import Callable

from DiffeoRegLib.settings import INTEGRATORS, KERNEL_UNITS
from DiffeoRegLib.stiffness import REST, STIFFNESS, Stiffness, stiffness_of

Numbers = Callable[[str], tuple[float, ...]]

SHOOT = """\
Make the transform of a run again from its geodesic.safetensors (lddmm, rdmm) or velocities.safetensors
(transmorph-tvf with --keep-path), wholly or part of the way:
at time 1 the very transform.h5 of the run, at time 0 the identity, invertible at every time between.

TRANSFORM is fixed point -> moving point: .h5, or one displacement field in .nrrd, .mha, .nii, .nii.gz.
"""

SHOOT_EXAMPLES = """\
examples:
  diffeoreg shoot out/geodesic.safetensors -o transform.h5 --inverse-output inverse.h5
  diffeoreg shoot out/geodesic.safetensors -o half.nii.gz --time 0.5
  diffeoreg shoot out/geodesic.safetensors -o way.h5 --times 0,0.25,0.5,0.75,1
      way_000.h5 to way_004.h5: all of them appear, or none
  diffeoreg shoot out/velocities.safetensors -o way.h5 --each-step
      way_000.h5 (the identity) to way_008.h5 after a run of 8 steps

exit status: as of `diffeoreg register`.
"""


def shoot_flags(parser: argparse.ArgumentParser, numbers: Numbers) -> None:
    """The flags of `diffeoreg shoot`; numbers: reads a list of them."""
    parser.add_argument(
        "kept", metavar="FILE", help="geodesic.safetensors or velocities.safetensors of a run"
    )
    parser.add_argument("-o", "--output", metavar="TRANSFORM", required=True, help="file to write")
    parser.add_argument(
        "--inverse-output",
        metavar="FILE",
        help="also write moving point -> fixed point; as one field it covers what lies under the fixed image",
    )
    when = parser.add_mutually_exclusive_group()
    when.add_argument(
        "--time", type=float, default=1.0, metavar="T", help="how far along, 0 to 1 (default 1)"
    )
    when.add_argument(
        "--times", type=numbers, metavar="A,B,..", help="several times: a numbered file for each"
    )
    when.add_argument(
        "--each-step",
        action="store_true",
        help="of velocities: a numbered file after every time step, from none to all of them",
    )
    parser.add_argument(
        "--steps",
        type=int,
        metavar="N",
        help="time steps, of every geodesic or of all velocities (default: those of the run)",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace files that exist")


def keep_flag(parser: argparse.ArgumentParser) -> None:
    """What `register` keeps of a motion beside its transforms."""
    parser.add_argument(
        "--keep-path",
        action="store_true",
        help="transmorph-tvf: also write the velocities, from which `diffeoreg shoot` makes the transform at "
        "any time",
    )


def region_flags(group: argparse._ArgumentGroup) -> None:
    """What says how stiff which part of the moving image is."""
    group.add_argument(
        "--regions", metavar="FILE", help="label map of the moving image, for the method rdmm-regions"
    )
    group.add_argument(
        "--stiffness",
        action="append",
        default=[],
        type=_stiffness_of_label,
        metavar="LABEL=STIFFNESS",
        help=f"of a label: {', '.join(STIFFNESS)}, or the shares of the kernels, narrow to wide, as in "
        "4=0.1,0.4,0.5,0; may be repeated",
    )
    group.add_argument(
        "--rest",
        type=stiffness_of,
        metavar="STIFFNESS",
        help=f"of everything else (default {REST})",
    )


def kernel_flags(group: argparse._ArgumentGroup, numbers: Numbers) -> None:
    """The regulariser of vsvf, lddmm and rdmm."""
    group.add_argument(
        "--kernel-sigmas",
        type=numbers,
        metavar="A,B,..",
        help="widths of the kernels, narrow to wide",
    )
    group.add_argument(
        "--kernel-weights", type=numbers, metavar="A,B,..", help="their shares (any sum above 0)"
    )
    group.add_argument(
        "--kernel-units",
        default="box",
        help=f"{', '.join(KERNEL_UNITS)}: widths as shares of the image's sides, or in mm (default box)",
    )
    group.add_argument(
        "--preweight-sigma",
        type=float,
        metavar="X",
        help="rdmm: smoothing of the weights that differ from place to place, in the same unit",
    )
    group.add_argument("--kinetic", type=float, metavar="X", help="weight of the energy of the motion")
    group.add_argument(
        "--integrator", metavar="NAME", help=f"lddmm, rdmm: {' or '.join(INTEGRATORS)} (default rk4)"
    )


def _stiffness_of_label(text: str) -> tuple[int, Stiffness]:
    """A label and its stiffness; raises SettingsError for an unknown name or impossible shares."""
    label, separator, stiffness = text.partition("=")
    if not (separator and label.strip().isascii() and label.strip().isdigit()):
        raise argparse.ArgumentTypeError(f"'{text}' is not LABEL=STIFFNESS, as in 3=soft")
    return int(label), stiffness_of(stiffness)
