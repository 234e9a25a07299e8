"""The flags of a pathology. No torch: the help of the command needs none."""

from __future__ import annotations

import argparse

from DiffeoRegLib import catalog
from DiffeoRegLib.errors import SettingsError
from DiffeoRegLib.settings import PATHOLOGY_EDGE_MM


def pathology_flags(group: argparse._ArgumentGroup) -> None:
    """What says where one image shows a lesion."""
    group.add_argument(
        "--pathology",
        metavar="FILE",
        help="mask, segmentation or label map of the lesion in the fixed image, for metamorphosis and "
        "metaregnet; without any, both images count as healthy",
    )
    group.add_argument(
        "--pathology-moving", metavar="FILE", help="the same in the moving image; one side is enough"
    )
    group.add_argument(
        "--pathology-classes",
        type=_classes,
        metavar="A,B,..",
        help="labels that count as pathology, as in 1,4 (default: everything but 0)",
    )
    group.add_argument(
        "--pathology-edge-mm",
        type=float,
        metavar="MM",
        help=f"soft edge around what is marked, 0 for none (default {PATHOLOGY_EDGE_MM:g})",
    )


def check_pathology_flags(arguments: argparse.Namespace) -> None:
    """Raises SettingsError for flags of a pathology that need one another, or that the method ignores."""
    given = arguments.pathology is not None or arguments.pathology_moving is not None
    options = ("pathology_classes", "pathology_edge_mm")
    if not given and any(getattr(arguments, name) is not None for name in options):
        raise SettingsError(
            "--pathology-classes and --pathology-edge-mm speak of --pathology FILE or --pathology-moving "
            "FILE, which is missing."
        )
    if given and not catalog.card(arguments.method).needs_pathology_mask:
        raise SettingsError(
            f"The method '{arguments.method}' makes no use of a pathology: metamorphosis and metaregnet do."
        )


def _classes(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"classes are whole numbers like 1,4, not '{text}'") from None
