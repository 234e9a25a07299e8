"""The flags of `diffeoreg template`. No torch: the help of the command needs none."""

from __future__ import annotations

import argparse
from collections.abc import Callable

from DiffeoRegLib.cli.group_arguments import (
    detail_flags,
    image_flags,
    machine_flags,
    method_flags,
    quality_flags,
    start_flag,
)
from DiffeoRegLib.settings import SIMILARITIES

TEMPLATE = """\
Make an unbiased template of several images and write to OUT:
  template.nii.gz    the sharpened mean of all images where they meet, intensities 0 to 1
  mean.nii.gz        the same without sharpening; deviation.nii.gz how much the images differ there
  template_to_000.h5, 000_to_template.h5, ...   both ways between the template and every image
  labels.nii.gz      with --labels: what most label maps say of a voxel
  template.png       the mean after the first alignment, the mean where all meet, the template
  report.json        how much the images (and labels) differed at every stage

The images are registered to their middle as a group; then, round after round, each of them to the sharpened
mean, which is put where the mean of all maps is the identity: no image is preferred.  A network for groups
(--method) does the first of these; the pairs of the rounds are left to svf.
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
    image_flags(parser)
    task = parser.add_argument_group("what to do")
    task.add_argument("--rounds", type=int, default=3, metavar="N", help="after the group (default 3)")
    task.add_argument(
        "--sharpening",
        type=float,
        default=1.0,
        metavar="X",
        help="share of what smoothing by a voxel would take from the mean that is added to it (default 1)",
    )
    method_flags(task)
    quality_flags(task)
    task.add_argument("--similarity", help=f"{', '.join(SIMILARITIES)} (default: what the preset says)")
    start_flag(task)
    task.add_argument(
        "--labels",
        nargs="+",
        metavar="FILE",
        help="a label map of each image, in their order: to judge by, and for labels of the template",
    )
    task.add_argument("--leave-out", action="store_true", help="go on without an image that has no use")
    detail_flags(parser, numbers, whole_numbers)
    machine = parser.add_argument_group("machine")
    machine_flags(machine)
