"""What the folder and the files of a row are called: plainly, or as derivatives of a BIDS data set.

Source: BIDS specification, derivatives (sub, ses, space, desc), and its proposal 14 for transforms: an image
of the space `from` is resampled in the space `to`, `sub-01_from-T1w_to-MNI152_mode-image_xfm.h5`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from DiffeoRegLib.errors import InputError
from DiffeoRegLib.volumes.file_guard import stem_of, suffix_of

USABLE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
ENTITY = re.compile(r"([a-z]+)-([A-Za-z0-9]+)")
LONGEST = 150
RESERVED = ("status", "summary.csv", "summary.html", "dataset_description.json")
"""Files and folders of the cohort itself."""
DEVICES = re.compile(r"(con|prn|aux|nul|com[0-9]|lpt[0-9])(\..*)?", re.IGNORECASE)
"""Names that Windows keeps for devices, with any suffix."""
TRANSFORMS = ("transform", "inverse")
BIDS_VERSION = "1.9.0"


@dataclass(frozen=True)
class Names:
    """name: of the row, unique in its cohort.  folder: of its results, relative to the cohort's.

    files: names by kind of result; empty where they stay as `register` calls them.
    """

    name: str
    folder: str
    files: Mapping[str, str] = field(default_factory=dict)


def plain_names(fixed: Path, moving: Path, given: str | None) -> Names:
    """The name given in the table, or `moving_to_fixed`; raises InputError for one no folder can have."""
    name = given or "_to_".join(_cleaned(stem_of(path)) for path in (moving, fixed))
    return Names(_checked(name), name)


def bids_names(
    fixed: Path, moving: Path, given: str | None, person: str | None, kinds: Mapping[str, str]
) -> Names:
    """Names as of a BIDS derivative, of the moving image's subject and session.

    given: becomes the label of `desc`.  person: the subject, where the file names do not say it.
    kinds: the names that `register` gives, by kind.  Raises InputError where no label can be made.
    """
    said, session = _entities(moving), _entities(moving).get("ses")
    subject = _label(person.removeprefix("sub-")) if person else said.get("sub") or _label(stem_of(moving))
    prefix = f"sub-{subject}" + (f"_ses-{session}" if session else "")
    here, there = _space(moving, subject), _space(fixed, subject)
    if here == there:
        here, there = _label(stem_of(moving)), _label(stem_of(fixed))
    if here == there:
        raise InputError(f"'{moving.name}' and '{fixed.name}' give the same label '{here}'")
    desc = None if given is None else _label(given)
    tail = "" if desc is None else f"_desc-{desc}"
    way = f"from-{here}_to-{there}"
    files = {}
    for kind, name in kinds.items():
        suffix = suffix_of(Path(name))
        if kind in TRANSFORMS:
            ends = way if kind == "transform" else f"from-{there}_to-{here}"
            files[kind] = f"{prefix}_{ends}_mode-image{tail}_xfm{suffix}"
        elif suffix == ".nii.gz":
            what = "registered" if kind in ("moved", "moved_seg") else _label(kind)
            last = "dseg" if kind == "moved_seg" else said.get("suffix", "image")
            described = what if desc is None else desc + what.capitalize()
            files[kind] = f"{prefix}_space-{there}_desc-{described}_{last}{suffix}"
        else:
            files[kind] = f"{prefix}_{way}{tail}_{'report' if kind == 'page' else kind}{suffix}"
    place = [f"sub-{subject}", *([f"ses-{session}"] if session else []), f"{way}{tail}"]
    return Names(_checked(f"{prefix}_{way}{tail}"), "/".join(place), files)


def dataset_description(version: str) -> dict[str, object]:
    """What a BIDS derivative says of itself."""
    return {
        "Name": "DiffeoReg registrations",
        "BIDSVersion": BIDS_VERSION,
        "DatasetType": "derivative",
        "GeneratedBy": [{"Name": "DiffeoReg", "Version": version}],
    }


def _entities(path: Path) -> dict[str, str]:
    """Entities and suffix of a file name that follows BIDS; nothing for another."""
    *parts, suffix = stem_of(path).split("_")
    found = [ENTITY.fullmatch(part) for part in parts]
    if not (parts and parts[0].startswith("sub-") and all(found) and suffix.isalnum()):
        return {}
    return {match.group(1): match.group(2) for match in found if match} | {"suffix": suffix}


def _space(path: Path, subject: str) -> str:
    """A label of an image's space: short within its subject, else of its whole name."""
    said = _entities(path)
    if said.get("sub") != subject:
        return _label(stem_of(path))
    return (f"ses{said['ses']}" if "ses" in said else "") + said["suffix"]


def _label(text: str) -> str:
    """Only letters and digits, as BIDS has its labels; raises InputError where none are left."""
    label = re.sub(r"[^A-Za-z0-9]", "", text)
    if not label:
        raise InputError(f"'{text}' holds no letter or digit for a BIDS label")
    return label


def _cleaned(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9._-]+", "-", text).strip(".-") or "image"


def _checked(name: str) -> str:
    if not USABLE.fullmatch(name) or name.endswith("."):
        raise InputError(
            f"'{name}' cannot name a folder of results: use letters, digits, dot, dash and underscore"
        )
    if name.casefold() in RESERVED or DEVICES.fullmatch(name):
        raise InputError(f"'{name}' cannot name a folder of results: this name is taken, choose another")
    if len(name) > LONGEST:
        raise InputError(f"'{name[:40]}...' has {len(name)} characters, more than {LONGEST}")
    return name
