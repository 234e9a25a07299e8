"""The flags of `train` and `import-weights`, and those of `evaluate` for a method over a table of pairs."""

from __future__ import annotations

import argparse
from collections.abc import Callable

from DiffeoRegLib.networks.published import PUBLISHED, PUBLISHED_TVF

TRAIN = """\
Train a network as CONFIG says and write to RUN:
  best.safetensors   the weights that did best on the validation pairs
  last.safetensors   the latest weights
  state.safetensors  everything needed to go on exactly: --resume
  training.csv, validation.csv, curve.png, problems.csv, config.json

CONFIG is a YAML file, or the name of one that comes with DiffeoReg. File names in it are relative to it (in
one that comes with DiffeoReg: to RUN); file names on the command line are relative to the current folder.
"""

TRAIN_EXAMPLES = """\
examples:
  diffeoreg train sitreg-brain-t1 --data brains/ -o run/
  diffeoreg train sitreg-brain-t1 --data brains/ --images "{name}_t1.nii.gz" -o run/    your own names
  diffeoreg train mine.yaml -o run/ --stop-after 55    stop in time, then:
  diffeoreg train mine.yaml -o run/ --resume           ends with the weights of a run in one piece
  diffeoreg train mine.yaml -o second/ --start-from run/best.safetensors --set network.options.fast=false
  torchrun --nproc-per-node 2 -m DiffeoRegLib train mine.yaml -o run/     two processes, one card each

exit status: 0 done or stopped in time, 2 unusable settings or data, 3 the disk is full, 4 out of memory,
130 stopped by Ctrl-C after the step at work (it can be resumed), 1 anything unexpected.
"""

IMPORT = """\
Turn PUBLISHED, a checkpoint of the authors' code, into weights: of SITReg (honkamj/SITReg) for --method
sitreg, of TransMorph-TVF (junyuchen245/TransMorph_TVF) for --method transmorph-tvf.
Only numbers are read from it: nothing in the file can run. What was found is said, and kept in OUT.

The file does not say which way its images lay or how large their voxels were. Those of OASIS are known.
"""

IMPORT_EXAMPLES = """\
examples:
  diffeoreg import-weights model.pt -o oasis.safetensors --like oasis
  diffeoreg import-weights model.pt -o mine.safetensors --like mine.yaml --axes RAS --spacing-mm 2
  diffeoreg import-weights tvf.pth.tar -o tvf.safetensors --like tvf-oasis
  diffeoreg register fixed.nii.gz moving.nii.gz -o out/ --method sitreg --weights oasis.safetensors
"""


def train_flags(parser: argparse.ArgumentParser) -> None:
    """The flags of `diffeoreg train`."""
    parser.add_argument("config", metavar="CONFIG", help="YAML file, or the name of one that is shipped")
    parser.add_argument("-o", "--output", metavar="RUN", required=True, help="folder of the run")
    parser.add_argument("--resume", action="store_true", help="go on where the run in RUN stopped")
    parser.add_argument("--data", metavar="PATH", help="images to train on: short for --set data.source=PATH")
    parser.add_argument(
        "--images",
        metavar="PATTERN",
        help="how the images in the folder are called, as in '{name}_t1.nii.gz'; persons are then held "
        "out at random",
    )
    parser.add_argument(
        "--labels",
        metavar="PATTERN",
        help="how their label maps are called; without them the best weights are those of least loss",
    )
    parser.add_argument(
        "--start-from",
        metavar="WEIGHTS",
        help="weights of another run of the same network, in place of random ones",
    )
    parser.add_argument(
        "--stop-after", type=float, metavar="MINUTES", help="stop after the step at work then; resume later"
    )
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="change one setting, as in steps=500 or losses.1.weight=2; may be repeated",
    )
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, mps (default auto)")
    parser.add_argument("--threads", type=int, metavar="N", help="CPU threads of each process")


def import_flags(parser: argparse.ArgumentParser, numbers: Callable[[str], tuple[float, ...]]) -> None:
    """The flags of `diffeoreg import-weights`; numbers: reads a list of lengths."""
    parser.add_argument("published", metavar="PUBLISHED", help="checkpoint file of the authors' code")
    parser.add_argument("-o", "--output", metavar="OUT", required=True, help="file to write, .safetensors")
    parser.add_argument("--overwrite", action="store_true", help="replace OUT if it exists")
    parser.add_argument(
        "--like",
        metavar="NAME",
        required=True,
        help=f"which network it is: {', '.join((*PUBLISHED, *PUBLISHED_TVF))}, or the YAML file of a "
        "training run like it",
    )
    parser.add_argument(
        "--spacing-mm",
        type=numbers,
        metavar="MM",
        help="voxel size it was trained at: one number, or one each along S, A, R",
    )
    parser.add_argument(
        "--axes",
        metavar="XYZ",
        help="where the axes of the authors' arrays pointed, such as LIA: to the left, down, to the front",
    )
    parser.add_argument("--licence", metavar="NAME", help="of the weights, kept in OUT")


def pairs_flags(group: argparse._ArgumentGroup) -> None:
    """The flags of `diffeoreg evaluate` that make it run a method over pairs."""
    group.add_argument(
        "--pairs",
        metavar="TABLE",
        help="CSV or JSON with the columns fixed, moving and, as known, fixed_labels, moving_labels, "
        "fixed_points, moving_points, fixed_mask, moving_mask; every pair is registered as by `register`",
    )
    group.add_argument(
        "-o", "--output", metavar="OUT", help="with --pairs: folder for pairs.csv, summary.json"
    )
    group.add_argument("--overwrite", action="store_true", help="replace results that exist in OUT")
    group.add_argument(
        "--cycles",
        action="store_true",
        help="also go round every three images whose pairs the table holds (keeps all transforms in memory)",
    )
