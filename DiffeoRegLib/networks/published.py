"""The networks whose weights their authors describe: what their files do not tell. No torch.

Sources: the configurations in the authors' repositories honkamj/SITReg and junyuchen245/TransMorph_TVF (MIT
licence).
"""

from __future__ import annotations

from dataclasses import dataclass

from DiffeoRegLib.errors import SettingsError

DIRECTIONS = {"R": 2, "L": 2, "A": 1, "P": 1, "S": 0, "I": 0}
"""Where an axis points, and which of our axes (S, A, R) lies along it."""


@dataclass(frozen=True)
class Published:
    """A SITReg network of its authors.

    images: what it was trained on.  encoder, heads, groups, head_groups, affine: as in PyramidConfig.
    spacing_mm: of its voxels.  axes: where the authors' array axes point; both None where we do not know.
    """

    images: str
    encoder: tuple[int, ...]
    heads: tuple[int, ...]
    spacing_mm: float | None = None
    axes: str | None = None
    groups: int = 2
    head_groups: int = 0
    affine: bool = False


PUBLISHED = {
    # FreeSurfer's conformed space.
    "oasis": Published("OASIS brains, aligned", (8, 40, 40, 40), (16, 72, 72, 72), 1.0, "LIA"),
    "oasis-raw": Published(
        "OASIS brains, not aligned", (8, *[36] * 5, 48, 64, 88), (16, *[62] * 5), 1.0, "LIA", affine=True
    ),
    "lpba40": Published("LPBA40 brains", (8, *[36] * 6), (16, *[62] * 6)),
    "lung": Published("Lung250M, half resolution", (8, *[36] * 5), (16, *[62] * 5), 2.0),
    "lumir": Published(
        "LUMIR brains (Learn2Reg 2024)", (12, 32, 64, 128, 128, 128), (12, 64, 128, 256, 256, 256), 1.0,
        groups=4, head_groups=4,
    ),
}  # fmt: skip


@dataclass(frozen=True)
class PublishedTVF:
    """A TransMorph-TVF network of its authors; its file tells the sizes.  Values as in `Published`."""

    images: str
    spacing_mm: float | None = None
    axes: str | None = None


PUBLISHED_TVF = {"tvf-oasis": PublishedTVF("OASIS brains, aligned (Learn2Reg 2021)", 1.0, "LIA")}


def places_of(axes: str) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """For each of our axes S, A, R: the number of the array axis along it, and 1 or -1 for its sense.

    axes: where the array axes point, such as LIA.  Raises SettingsError for anything else.
    """
    letters = axes.upper()
    if len(letters) != 3 or sorted(DIRECTIONS.get(letter, -1) for letter in letters) != [0, 1, 2]:
        raise SettingsError(
            f"Axes are three letters, one each of R or L, A or P, S or I, such as LIA, not '{axes}'."
        )
    order = [letters.index(next(c for c in letters if DIRECTIONS[c] == own)) for own in range(3)]
    return tuple(order), tuple(1 if letters[place] in "SAR" else -1 for place in order)
