"""Who there is to train on: images with what belongs to them, and the persons behind them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from DiffeoRegLib.errors import InputError

BIDS = re.compile(r"^(sub-[0-9A-Za-z]+)")
VISIT = re.compile(r"^(.+_\d{4})_(?:MR)?\d{1,4}(?:_.*)?$")
"""Names that end in a case number and a visit or modality: OASIS (OAS1_0001_MR1), Learn2Reg (X_0001_0000)."""


@dataclass(frozen=True)
class Subject:
    """One image and what belongs to it.

    labels, mask: volumes in the image's space; points: a landmark file, RAS mm.
    pathology: a volume in the image's space, not 0 inside lesions; None = a healthy image.
    group: the person: images of one person never stand on both sides of a split.
    """

    name: str
    image: Path
    labels: Path | None = None
    mask: Path | None = None
    points: Path | None = None
    pathology: Path | None = None
    group: str = ""

    def __post_init__(self) -> None:
        if not self.group:
            object.__setattr__(self, "group", person_of(self.name))

    @property
    def files(self) -> tuple[Path, ...]:
        """The files that exist for this subject, image first."""
        every = (self.image, self.labels, self.mask, self.points, self.pathology)
        return tuple(path for path in every if path is not None)


Pairing = tuple[Subject, Subject]
"""Fixed and moving."""


@dataclass(frozen=True)
class Collection:
    """The images of a data set.

    pairs: the (fixed, moving) pairs to train on; empty = any two different subjects.
    validation, validation_pairs: what the data set itself keeps for validation; empty = not divided yet.
    notes: sentences on what was decided while reading it.
    """

    subjects: tuple[Subject, ...]
    pairs: tuple[Pairing, ...] = ()
    validation: tuple[Subject, ...] = ()
    validation_pairs: tuple[Pairing, ...] = ()
    notes: tuple[str, ...] = ()


def person_of(name: str) -> str:
    """The person a file name speaks of: BIDS `sub-01_...`, OASIS, Learn2Reg; else the name itself."""
    found = BIDS.match(name) or VISIT.match(name)
    return found.group(1) if found else name


def grouped(
    subjects: Iterable[Subject], same_person: Sequence[Sequence[str]] = (), person: str | None = None
) -> tuple[Subject, ...]:
    """The subjects with their persons set by hand.

    same_person: lists of names that are one person.  person: a regular expression whose first group, found
    in a name, is the person.
    Raises InputError for an unknown name, a bad expression, or names without a match.
    """
    result = list(subjects)
    if person is not None:
        result = [replace(one, group=_matched(person, one.name)) for one in result]
    names = {one.name for one in result}
    for together in same_person:
        unknown = sorted(set(together) - names)
        if unknown:
            raise InputError(f"same_person names {_listed(unknown)}, which the data set does not have.")
        groups = {one.group for one in result if one.name in together}
        label = min(groups)
        result = [replace(one, group=label) if one.group in groups else one for one in result]
    return tuple(result)


def checked(collection: Collection, source: Path) -> Collection:
    """The collection, after the checks every source needs.

    Raises InputError for no images or one, two subjects of one name, and files that do not exist.
    """
    everyone = (*collection.subjects, *collection.validation)
    if not everyone:
        raise InputError(f"'{source}' holds no images that DiffeoReg reads.")
    names = [one.name for one in everyone]
    doubled = (
        sorted({name for name in names if names.count(name) > 1}) if len(set(names)) < len(names) else []
    )
    if doubled:
        raise InputError(f"'{source}' names more than one image {_listed(doubled)}: give each its own name.")
    missing = sorted({str(path) for one in everyone for path in one.files if not path.exists()})
    if missing:
        raise InputError(f"'{source}' names files that do not exist: {_listed(missing)}.")
    require_two(collection.subjects, f"'{source}'")
    return collection


def require_two(subjects: Sequence[Subject], where: str) -> None:
    """Raises InputError when there are fewer than two images to make a pair of."""
    if len(subjects) == 1:
        raise InputError(
            f"{where} has one image to train on ('{subjects[0].name}'), and a pair needs two: add images, "
            "or train on synthetic pairs."
        )
    if not subjects:
        raise InputError(f"{where} has no image to train on.")


def _matched(pattern: str, name: str) -> str:
    try:
        found = re.search(pattern, name)
        if found is not None:
            return found.group(1)
    except (re.error, IndexError) as error:
        raise InputError(
            f"'{pattern}' is no usable expression for a person: it needs one group in parentheses, "
            "as in '^(sub-[0-9]+)'."
        ) from error
    raise InputError(f"The expression '{pattern}' finds no person in the name '{name}'.")


def _listed(names: Sequence[str], most: int = 5) -> str:
    shown = ", ".join(f"'{name}'" for name in names[:most])
    return shown if len(names) <= most else f"{shown} and {len(names) - most} more"
