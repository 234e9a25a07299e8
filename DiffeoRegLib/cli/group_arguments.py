"""The flags of `diffeoreg group`. No torch: the help of the command needs none."""

from __future__ import annotations

import argparse
from collections.abc import Callable

from DiffeoRegLib.catalog import CARDS
from DiffeoRegLib.settings import EFFORTS, INTERPOLATIONS, PRESETS

SIMILARITIES = {"nmi": "nmi", "variance": "mse", "lncc": "lncc", "lncc-squared": "lncc-squared"}
"""Name of the flag and of the setting."""
INITS = ("auto", "identity", "rigid", "affine")
FORMATS = ("h5", "nii.gz")
METHODS = ("svf", *(name for name, card in CARDS.items() if card.needs_group))

GROUP = """\
Register a group of images at once, to one of them or to the middle of all, and write to OUT:
  common_to_000.h5, 000_to_common.h5, ...   both ways between the common space and every image, ITK format;
                      one after the other they lead from any image to any other (transforms.csv lists them)
  aligned.nii.gz      all images in the common space, 4D; mean.nii.gz their mean
  deviation_mm.nii.gz how sure the place of a point in every image is: its standard deviation, mm, 4D
  labels_of_..., points_of_...   with --labels-of and --points-of: what belongs to one image, on all others
  report.json, report.html       numbers and pictures

Give several files of one volume each, or one series: 4D NIfTI, NRRD, MetaImage. Images are numbered from 0.
"""

GROUP_EXAMPLES = """\
examples:
  diffeoreg group dce.nii.gz -o out/                     a series, to its middle
  diffeoreg group ct4d.nii.gz -o out/ --fixed-index 0 --preset lung-ct
  diffeoreg group visit1.nii.gz visit2.nii.gz visit3.nii.gz -o out/ --init rigid --labels-of 0:tumour.nii.gz
  diffeoreg group exhale.mha inhale.mha -o out/ --landmarks exhale.csv inhale.csv

exit status: as of `diffeoreg register`.
"""


def group_flags(
    parser: argparse.ArgumentParser,
    numbers: Callable[[str], tuple[float, ...]],
    whole_numbers: Callable[[str], tuple[int, ...]],
) -> None:
    """Everything `diffeoreg group` takes; numbers, whole_numbers: how lists of them are read."""
    image_flags(parser)
    task = parser.add_argument_group("what to do")
    goal = task.add_mutually_exclusive_group()
    goal.add_argument("--fixed-index", type=int, metavar="N", help="the image that stays as it is")
    goal.add_argument("--mean", action="store_true", help="to the middle of all images (default)")
    method_flags(task)
    quality_flags(task)
    task.add_argument(
        "--similarity",
        choices=tuple(SIMILARITIES),
        help="nmi and variance: the mean over all pairs; lncc: every image with the mean of the others "
        "(default: nmi, lncc for presets of one modality)",
    )
    start_flag(task)
    task.add_argument(
        "--leave-out", action="store_true", help="go on without an image that has no use (constant, all NaN)"
    )
    task.add_argument("--no-uncertainty", action="store_true", help="no standard deviations")
    extra = parser.add_argument_group("what belongs to the images")
    extra.add_argument(
        "--landmarks",
        nargs="+",
        metavar="FILE",
        help="the same points in every image, a file each, to judge by",
    )
    extra.add_argument("--masks", nargs="+", metavar="FILE", help="where each image counts, a label map each")
    for what, kind in (("labels", "label map"), ("points", "point file")):
        extra.add_argument(
            f"--{what}-of",
            action="append",
            default=[],
            type=_numbered_file,
            metavar="N:FILE",
            help=f"{kind} of image N, carried to all others; may be repeated",
        )
    details = detail_flags(parser, numbers, whole_numbers)
    details.add_argument("--format", default="h5", choices=FORMATS, help="of the transforms (default h5)")
    details.add_argument("--seed", type=int, default=0, help="of the samples of the uncertainty (default 0)")
    machine = parser.add_argument_group("machine and output")
    machine_flags(machine)
    machine.add_argument("--no-html", action="store_true", help="no report.html")


def image_flags(parser: argparse.ArgumentParser) -> None:
    """What is registered together, and where the results go."""
    parser.add_argument("images", metavar="IMG", nargs="+", help="two images and more, or one 4D series")
    parser.add_argument("-o", "--output", metavar="OUT", required=True, help="folder for the results")
    parser.add_argument("--overwrite", action="store_true", help="replace results that exist in OUT")


def method_flags(task: argparse._ArgumentGroup) -> None:
    """What registers the group."""
    task.add_argument(
        "--method",
        default="svf",
        choices=METHODS,
        help="svf: no training (default)",
    )
    task.add_argument("--weights", metavar="FILE", help="trained weights to use with --method groupmorph")
    task.add_argument(
        "--accept-licence",
        action="append",
        default=[],
        metavar="NAME",
        help="you have read and accept this licence of the weights (`diffeoreg methods` names it)",
    )


def quality_flags(task: argparse._ArgumentGroup) -> None:
    """Kind of images, and how much work is spent on them."""
    task.add_argument("--preset", default="general", help=f"{', '.join(PRESETS)} (default general)")
    task.add_argument("--effort", default="balanced", help=f"{', '.join(EFFORTS)} (default balanced)")


def start_flag(task: argparse._ArgumentGroup) -> None:
    """The first alignment."""
    task.add_argument(
        "--init",
        default="auto",
        choices=INITS,
        help="first alignment; auto = where the headers put the images",
    )


def detail_flags(
    parser: argparse.ArgumentParser,
    numbers: Callable[[str], tuple[float, ...]],
    whole_numbers: Callable[[str], tuple[int, ...]],
) -> argparse._ArgumentGroup:
    """How the search goes; more can be added to the group that it gives."""
    details = parser.add_argument_group("details (defaults come from preset and effort)")
    details.add_argument("--levels", type=numbers, metavar="A,B,..", help="voxel size of every level, mm")
    details.add_argument(
        "--iterations", type=whole_numbers, metavar="A,B,..", help="per level, coarse to fine"
    )
    details.add_argument(
        "--regularity", type=float, default=1.0, metavar="X", help="factor on all smoothing (default 1)"
    )
    details.add_argument("--working-spacing-mm", type=float, metavar="MM", help="finest voxel size worked on")
    details.add_argument("--interpolation", default="linear", help=f"{', '.join(INTERPOLATIONS)}")
    return details


def machine_flags(machine: argparse._ArgumentGroup) -> None:
    """Device, threads and memory."""
    machine.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, mps (default auto)")
    machine.add_argument("--threads", type=int, metavar="N", help="CPU threads")
    machine.add_argument(
        "--memory-limit-gb", type=float, metavar="GB", help="use a coarser grid rather than more memory"
    )


def _numbered_file(text: str) -> tuple[int, str]:
    number, separator, path = text.partition(":")
    if not (separator and path and number.strip().isdigit()):
        raise argparse.ArgumentTypeError(f"'{text}' is not N:FILE, as in 0:tumour.nii.gz")
    return int(number), path
