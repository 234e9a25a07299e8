"""The flags of every command, and the help that teaches them."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from typing import Any, NoReturn

from DiffeoRegLib import __version__
from DiffeoRegLib.catalog import CARDS
from DiffeoRegLib.cli.batch_arguments import BATCH, BATCH_EXAMPLES, batch_flags
from DiffeoRegLib.cli.geodesic_arguments import (
    SHOOT,
    SHOOT_EXAMPLES,
    keep_flag,
    kernel_flags,
    region_flags,
    shoot_flags,
)
from DiffeoRegLib.cli.group_arguments import GROUP, GROUP_EXAMPLES, group_flags
from DiffeoRegLib.cli.pathology_arguments import pathology_flags
from DiffeoRegLib.cli.template_arguments import TEMPLATE, TEMPLATE_EXAMPLES, template_flags
from DiffeoRegLib.cli.texts import INTRODUCTION, REGISTER, REGISTER_EXAMPLES
from DiffeoRegLib.cli.training_arguments import (
    IMPORT,
    IMPORT_EXAMPLES,
    TRAIN,
    TRAIN_EXAMPLES,
    import_flags,
    pairs_flags,
    train_flags,
)
from DiffeoRegLib.errors import SettingsError
from DiffeoRegLib.settings import EFFORTS, INIT_NETWORK, INITS, INTERPOLATIONS, PRESETS, SIMILARITIES


class Parser(argparse.ArgumentParser):
    """Reports a wrong flag as one sentence."""

    def error(self, message: str) -> NoReturn:
        """Raise SettingsError, so that a wrong flag ends like every other bad input."""
        sentence = message[0].upper() + message[1:].rstrip(".")
        raise SettingsError(f"{sentence}. See `{self.prog} --help`.")

    def parse_known_args(  # type: ignore[override]
        self, args: Sequence[str] | None = None, namespace: argparse.Namespace | None = None
    ) -> tuple[argparse.Namespace, list[str]]:
        """As argparse, but words left over are refused here: the sentence then names this help."""
        found, left = super().parse_known_args(args, namespace)
        if left:
            self.error(f"unrecognized arguments: {' '.join(left)}")
        return found, left


def build_parser() -> argparse.ArgumentParser:
    """The whole command line; parsing raises SettingsError for wrong flags."""
    parser = Parser(
        prog="diffeoreg", description=INTRODUCTION, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--version", action="version", version=f"diffeoreg {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", parser_class=Parser)
    _register(commands)
    _batch(commands)
    summary = "register a series or several images at once"
    group_flags(_command(commands, "group", summary, GROUP, GROUP_EXAMPLES), _numbers, _whole_numbers)
    summary = "make an unbiased template of several images"
    parts = _command(commands, "template", summary, TEMPLATE, TEMPLATE_EXAMPLES)
    template_flags(parts, _numbers, _whole_numbers)
    _apply(commands)
    summary = "transforms from the geodesic or the velocities of a run, at any time"
    shoot_flags(_command(commands, "shoot", summary, SHOOT, SHOOT_EXAMPLES), _numbers)
    _evaluate(commands)
    train_flags(_command(commands, "train", "train a network", TRAIN, TRAIN_EXAMPLES))
    summary = "use weights that the authors of SITReg or TransMorph-TVF published"
    import_flags(_command(commands, "import-weights", summary, IMPORT, IMPORT_EXAMPLES), _numbers)
    _methods(commands)
    _device(commands)
    return parser


def _command(
    commands: argparse._SubParsersAction[Parser],
    name: str,
    summary: str,
    description: str,
    examples: str = "",
) -> argparse.ArgumentParser:
    parser = commands.add_parser(
        name,
        help=summary,
        description=description,
        epilog=examples,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    talk = parser.add_argument_group("how it talks")
    talk.add_argument(
        "--json", action="store_true", help="one JSON object per line on standard output, for programs"
    )
    talk.add_argument("--quiet", action="store_true", help="no progress, only errors and the result")
    talk.add_argument("--debug", action="store_true", help="show the full traceback of an error")
    return parser


def _register(commands: argparse._SubParsersAction[Parser]) -> None:
    parser = _command(commands, "register", "bring one image onto another", REGISTER, REGISTER_EXAMPLES)
    parser.add_argument("fixed", metavar="FIXED", help="the image that stays")
    parser.add_argument("moving", metavar="MOVING", help="the image that is brought onto it")
    parser.add_argument("-o", "--output", metavar="OUT", required=True, help="folder for the results")
    parser.add_argument("--overwrite", action="store_true", help="replace results that exist in OUT")
    _registration_flags(parser)


def _batch(commands: argparse._SubParsersAction[Parser]) -> None:
    parser = _command(commands, "batch", "register every row of a table", BATCH, BATCH_EXAMPLES)
    batch_flags(parser)
    _registration_flags(parser)


def _registration_flags(parser: argparse.ArgumentParser) -> None:
    """Everything that `register` knows besides its images and its folder."""
    keep_flag(parser)
    _what_to_do(parser.add_argument_group("what to do"))
    _extra_inputs(parser.add_argument_group("masks, segmentations, landmarks"))
    region_flags(parser.add_argument_group("regions of the moving image, each with its stiffness"))
    pathology_flags(parser.add_argument_group("lesions that only one of the images shows"))
    _details(parser.add_argument_group("details (defaults come from preset and effort)"))
    kernel_flags(parser.add_argument_group("regulariser of vsvf, lddmm and rdmm"), _numbers)
    machine = parser.add_argument_group("machine and output")
    _resources(machine)
    _checks(machine)


def _what_to_do(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--method", default="svf", help=f"{', '.join(CARDS)} (default svf)")
    group.add_argument("--preset", default="general", help=f"{', '.join(PRESETS)} (default general)")
    group.add_argument("--effort", default="balanced", help=f"{', '.join(EFFORTS)} (default balanced)")
    group.add_argument(
        "--weights", metavar="FILE", help="trained weights to use instead of those the method comes with"
    )
    group.add_argument(
        "--accept-licence",
        action="append",
        default=[],
        metavar="NAME",
        help="you have read and accept this licence of the weights (`diffeoreg methods` names it)",
    )
    group.add_argument("--similarity", help=f"{', '.join(SIMILARITIES)} (default: what the preset says)")
    group.add_argument(
        "--init",
        default="auto",
        metavar="INIT",
        help=f"first alignment: {', '.join(INITS)}, {INIT_NETWORK}MODEL, or a transform file",
    )
    group.add_argument(
        "--steps",
        default="auto",
        type=_steps,
        metavar="N|auto",
        help="time steps of the flow; auto = the fewest that leave no fold, or that are one to one each",
    )


def _extra_inputs(group: argparse._ArgumentGroup) -> None:
    for side in ("fixed", "moving"):
        group.add_argument(
            f"--{side}-mask", metavar="FILE", help=f"where the {side} image counts; one side is enough"
        )
        group.add_argument(
            f"--exclude-{side}-mask",
            action="store_true",
            help=f"the {side} mask marks what to ignore instead",
        )
    group.add_argument("--moving-seg", metavar="FILE", help="label map to move along (does not guide)")
    group.add_argument("--fixed-seg", metavar="FILE", help="with --moving-seg: compare them before and after")
    group.add_argument(
        "--smooth-labels", action="store_true", help="move labels with smooth instead of blocky edges"
    )
    group.add_argument("--guidance-fixed-seg", metavar="FILE", help="label map that guides, with:")
    group.add_argument("--guidance-moving-seg", metavar="FILE", help="label map with the same label values")
    group.add_argument("--fixed-landmarks", metavar="FILE", help="points to measure the error at, with:")
    group.add_argument(
        "--moving-landmarks", metavar="FILE", help="the same points in the moving image, same order"
    )
    group.add_argument(
        "--landmarks", nargs=2, metavar=("FIXED", "MOVING"), help="both landmark files at once"
    )
    group.add_argument(
        "--guide-with-landmarks", action="store_true", help="let the landmarks guide the registration"
    )


def _details(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--iterations", type=_whole_numbers, metavar="A,B,..", help="per level, coarse to fine"
    )
    group.add_argument(
        "--regularity",
        type=float,
        default=1.0,
        metavar="X",
        help="factor on all smoothing: 2 is stiffer, 0.5 more flexible (default: 1)",
    )
    group.add_argument(
        "--dense-iterations",
        type=int,
        metavar="N",
        help="last steps at the finest level with a velocity of its own for every voxel",
    )
    group.add_argument("--levels", type=_numbers, metavar="A,B,..", help="voxel size of every level, mm")
    group.add_argument("--working-spacing-mm", type=float, metavar="MM", help="finest voxel size worked on")
    group.add_argument(
        "--padding-mm", type=float, default=0.0, metavar="MM", help="room added around what is registered"
    )
    group.add_argument(
        "--taper-mm",
        type=float,
        metavar="MM",
        help="width of the ring around the images over which the deformation fades to zero "
        "(default: as wide as the motion at the border needs)",
    )
    group.add_argument(
        "--interpolation", default="linear", help=f"{', '.join(INTERPOLATIONS)}, for moved.nii.gz"
    )
    group.add_argument(
        "--extra",
        action="append",
        default=[],
        type=_named_value,
        metavar="NAME=VALUE",
        help="a setting of one method alone, such as passes=1, mode=complete-exact or precision=float32 of "
        "the sitreg models, order=residual of transmorph-tvf; may be repeated",
    )
    group.add_argument("--seed", type=int, default=0, help="for methods that use random numbers (default 0)")


def _resources(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, mps (default auto)")
    group.add_argument("--threads", type=int, metavar="N", help="CPU threads")
    group.add_argument(
        "--memory-limit-gb", type=float, metavar="GB", help="use a coarser grid rather than more memory"
    )


def _checks(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--no-html", action="store_true", help="no report.html")
    group.add_argument(
        "--no-check", action="store_true", help="do not read the written transforms back and compare them"
    )


def _apply(commands: argparse._SubParsersAction[Parser]) -> None:
    parser = _command(
        commands,
        "apply",
        "move another volume, label map or point list with a transform",
        "Move MOVING through TRANSFORM. A volume or label map is resampled on the grid of --like;\n"
        "points (.fcsv, .mrk.json, .csv, ...) of the moving image are carried to the fixed image.",
        "example:\n  diffeoreg apply out/transform.h5 pet.nii.gz --like fixed.nii.gz -o pet_on_fixed.nii.gz",
    )
    parser.add_argument(
        "transform", metavar="TRANSFORM", help="transform.h5 or any ITK transform, fixed -> moving"
    )
    parser.add_argument(
        "moving", metavar="MOVING", help="volume, label map or point file of the moving image"
    )
    parser.add_argument("--like", metavar="FIXED", help="volume whose grid the result gets (not for points)")
    parser.add_argument("-o", "--output", metavar="FILE", required=True, help="file to write")
    parser.add_argument(
        "--labels", action="store_true", help="MOVING is a label map: no new values are made up"
    )
    parser.add_argument("--smooth-labels", action="store_true", help="like --labels, with smooth edges")
    parser.add_argument(
        "--inverse", action="store_true", help="go the other way: from the fixed to the moving image"
    )
    parser.add_argument(
        "--interpolation", default="linear", help=f"{', '.join(INTERPOLATIONS)} (default linear)"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace the file if it exists")


def _evaluate(commands: argparse._SubParsersAction[Parser]) -> None:
    parser = _command(
        commands,
        "evaluate",
        "measure a transform, or label maps that are moved already",
        "Dice, HD95 and landmark error before and after; folds and inverse error of the transform.\n"
        "Give what there is: each number needs only its own inputs.\n\n"
        "With --pairs, a method is run on every pair of a table and measured: pairs.csv has a row per pair,\n"
        "summary.json the means. A pair that fails is named and counted; the exit status is then 2.",
        "examples:\n"
        "  diffeoreg evaluate --fixed-seg a.nii.gz --moved-seg moved_seg.nii.gz\n"
        "  diffeoreg evaluate --transform t.h5 --inverse i.h5 --fixed a.nii.gz --landmarks a.csv b.csv\n"
        "  diffeoreg evaluate --pairs pairs.csv --method svf --effort fast -o scores/",
    )
    parser.add_argument("--transform", metavar="FILE", help="fixed -> moving, ITK format")
    parser.add_argument(
        "--inverse", metavar="FILE", help="moving -> fixed; adds the inverse consistency error"
    )
    parser.add_argument(
        "--fixed", metavar="FILE", help="fixed image (its grid; with --moving also similarity)"
    )
    parser.add_argument("--moving", metavar="FILE", help="moving image")
    parser.add_argument("--fixed-mask", metavar="FILE", help="where folds are counted too")
    parser.add_argument("--fixed-seg", metavar="FILE", help="label map of the fixed image")
    parser.add_argument("--moving-seg", metavar="FILE", help="label map of the moving image")
    parser.add_argument(
        "--moved-seg", metavar="FILE", help="label map moved already (instead of --moving-seg)"
    )
    parser.add_argument("--fixed-landmarks", metavar="FILE", help="points of the fixed image")
    parser.add_argument("--moving-landmarks", metavar="FILE", help="the same points of the moving image")
    parser.add_argument(
        "--landmarks", nargs=2, metavar=("FIXED", "MOVING"), help="both landmark files at once"
    )
    pairs_flags(parser.add_argument_group("a method over many pairs"))
    _what_to_do(parser.add_argument_group("with --pairs: what to do"))
    _details(parser.add_argument_group("with --pairs: details (defaults come from preset and effort)"))
    kernel_flags(parser.add_argument_group("with --pairs: regulariser of vsvf, lddmm and rdmm"), _numbers)
    _resources(parser.add_argument_group("with --pairs: machine"))


def _methods(commands: argparse._SubParsersAction[Parser]) -> None:
    _command(
        commands,
        "methods",
        "list methods and presets",
        "What can be chosen for --method and --preset, and what trained models need.",
    )


def _device(commands: argparse._SubParsersAction[Parser]) -> None:
    parser = _command(
        commands,
        "device",
        "which processor would be used, and why",
        "Try the devices of this machine by a computation.",
    )
    parser.add_argument("--device", default="auto", help="try this one (default auto)")


def _named_value(text: str) -> tuple[str, Any]:
    name, separator, value = text.partition("=")
    if not (name and separator):
        raise argparse.ArgumentTypeError(f"'{text}' is not NAME=VALUE, as in passes=1")
    try:
        return name, json.loads(value)
    except ValueError:  # a word, as it is
        return name, value


def _steps(text: str) -> int | str:
    if text == "auto":
        return text
    try:
        return int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"time steps are a whole number or 'auto', not '{text}'") from None


def _numbers(text: str) -> tuple[float, ...]:
    try:
        return tuple(float(part) for part in text.replace("x", ",").split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected numbers like 8,4,2, not '{text}'") from None


def _whole_numbers(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.replace("x", ",").split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected whole numbers like 100,60,20, not '{text}'") from None
