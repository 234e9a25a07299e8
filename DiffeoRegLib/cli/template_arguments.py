"""The flags of `diffeoreg template`. No torch: the help of the command needs none."""

from __future__ import annotations

import argparse
from collections.abc import Callable

from DiffeoRegLib.settings import EFFORTS, INTERPOLATIONS, PRESETS, SIMILARITIES

INITS = ("auto", "identity", "rigid", "affine")

TEMPLATE = """\
Make an unbiased template of several images and write to OUT:
  template.nii.gz    the sharpened mean of all images where they meet, intensities 0 to 1
  mean.nii.gz        the same without sharpening; deviation.nii.gz how much the images differ there
  template_to_000.h5, 000_to_template.h5, ...   both ways between the template and every image
  template.png       the mean as given, the mean aligned, the template
  report.json        how much the images differed at every stage

The images are registered to their middle as a group; then, round after round, each of them to the sharpened
mean, which is put where the mean of all maps is the identity: no image is preferred.
"""

TEMPLATE_EXAMPLES = """\
examples:
  diffeoreg template a.nii.gz b.nii.gz c.nii.gz d.nii.gz -o out/ --init affine
  diffeoreg template brains/*.nii.gz -o out/ --preset brain-mr --rounds 4 --sharpening 0.5

exit status: as of `diffeoreg register`.
"""


def template_flags(
    parser: argparse.ArgumentParser,
    numbers: Callable[[str], tuple[float, ...]],
    whole_numbers: Callable[[str], tuple[int, ...]],
) -> None:
    """Everything `diffeoreg template` takes; numbers, whole_numbers: how lists of them are read."""
    parser.add_argument("images", metavar="IMG", nargs="+", help="two images and more, or one 4D series")
    parser.add_argument("-o", "--output", metavar="OUT", required=True, help="folder for the results")
    parser.add_argument("--overwrite", action="store_true", help="replace results that exist in OUT")
    task = parser.add_argument_group("what to do")
    task.add_argument("--rounds", type=int, default=3, metavar="N", help="after the group (default 3)")
    task.add_argument(
        "--sharpening",
        type=float,
        default=1.0,
        metavar="X",
        help="share of what smoothing by a voxel would take from the mean that is added to it (default 1)",
    )
    task.add_argument("--preset", default="general", help=f"{', '.join(PRESETS)} (default general)")
    task.add_argument("--effort", default="balanced", help=f"{', '.join(EFFORTS)} (default balanced)")
    task.add_argument("--similarity", help=f"{', '.join(SIMILARITIES)} (default: what the preset says)")
    task.add_argument(
        "--init",
        default="auto",
        choices=INITS,
        help="first alignment; auto = where the headers put the images",
    )
    task.add_argument("--leave-out", action="store_true", help="go on without an image that has no use")
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
    machine = parser.add_argument_group("machine")
    machine.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, mps (default auto)")
    machine.add_argument("--threads", type=int, metavar="N", help="CPU threads")
    machine.add_argument(
        "--memory-limit-gb", type=float, metavar="GB", help="use a coarser grid rather than more memory"
    )
