"""Data sets as they lie on the disk: a folder of images, a table (CSV, JSON), Learn2Reg's dataset.json."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from DiffeoRegLib.errors import InputError
from DiffeoRegLib.training import learn2reg
from DiffeoRegLib.training.subjects import Collection, Pairing, Subject, checked, grouped, person_of
from DiffeoRegLib.volumes.file_guard import reading, stem_of, suffix_of

IMAGE_SUFFIXES = (".nii", ".nii.gz", ".nrrd", ".nhdr", ".mha", ".mhd", ".mgz", ".mgh", ".gipl", ".gipl.gz",
                  ".img", ".png", ".tif", ".tiff")  # fmt: skip
KINDS = ("labels", "mask", "points", "pathology")
SUBJECT_COLUMNS = ("image", *KINDS, "name", "person")
PAIR_COLUMNS = (
    *(f"{s}{end}" for s in ("fixed", "moving") for end in ("", "_labels", "_mask", "_points", "_person")),
    "fixed_pathology",
)


def collection_from(
    source: str | Path,
    *,
    images: str | None = None,
    labels: str | None = None,
    masks: str | None = None,
    points: str | None = None,
    pathologies: str | None = None,
    person: str | None = None,
    same_person: Sequence[Sequence[str]] = (),
) -> Collection:
    """The images of a data set, checked.

    source: a folder of images; a CSV or JSON table with the columns image (labels, mask, points, pathology,
    name, person) or fixed and moving (fixed_labels, moving_labels, ...; fixed_pathology); Learn2Reg's
    dataset.json or its folder.
    images, labels, masks, points, pathologies: for a folder, file patterns with {name}, as in
    "{name}_t1.nii.gz"; the last four may also be folders with files of the images' names.
    person, same_person: see `grouped`.
    Raises InputError (FileFormatError for a damaged table) with a sentence for anything that is not usable.
    """
    source = Path(source)
    patterns = {"labels": labels, "mask": masks, "points": points, "pathology": pathologies}
    if not source.exists():
        raise InputError(f"There is no data set '{source}': give a folder, a CSV or a JSON file.")
    if source.is_dir() and images is None and (source / "dataset.json").is_file():
        source = source / "dataset.json"
    if source.is_dir():
        collection = Collection(_folder(source, images or "{name}", patterns))
    elif any([images, *patterns.values()]):
        raise InputError(f"File patterns go with a folder of images; '{source}' names its files itself.")
    else:
        collection = _table(source)
    if same_person or person is not None:
        collection = _regrouped(collection, same_person, person)
    return checked(collection, source)


def subjects_from(source: str | Path, **options: Any) -> list[Subject]:
    """All subjects of a data set, those it keeps for validation too; see `collection_from`."""
    collection = collection_from(source, **options)
    return [*collection.subjects, *collection.validation]


def _regrouped(
    collection: Collection, same_person: Sequence[Sequence[str]], person: str | None
) -> Collection:
    everyone = grouped((*collection.subjects, *collection.validation), same_person, person)
    new = {one.name: one for one in everyone}
    count = len(collection.subjects)
    return replace(
        collection,
        subjects=everyone[:count],
        validation=everyone[count:],
        pairs=tuple((new[a.name], new[b.name]) for a, b in collection.pairs),
        validation_pairs=tuple((new[a.name], new[b.name]) for a, b in collection.validation_pairs),
    )


# ---------------------------------------------------------------- folders


def _folder(folder: Path, images: str, patterns: Mapping[str, str | None]) -> tuple[Subject, ...]:
    found = _named(folder, images)
    if not found:
        held = sorted(path.name for path in folder.iterdir() if not path.name.startswith("."))
        shown = f"it holds {', '.join(held[:3])}{' ...' if len(held) > 3 else ''}" if held else "it is empty"
        raise InputError(
            f"No image in '{folder}' matches '{images}': {shown}. Say how the images are called, as in "
            "'{name}_t1.nii.gz' (--images)."
        )
    subjects = []
    extras = {kind: _extras(folder, kind, pattern) for kind, pattern in patterns.items() if pattern}
    for kind, files in extras.items():
        missing = sorted(set(found) - set(files))
        if missing:
            shown = ", ".join(missing[:5]) + (" ..." if len(missing) > 5 else "")
            raise InputError(
                f"{len(missing)} of {len(found)} images in '{folder}' have no {kind} "
                f"('{patterns[kind]}'): {shown}."
            )
    for name, image in found.items():
        given: dict[str, Any] = {kind: files[name] for kind, files in extras.items()}
        subjects.append(Subject(name, image, **given))
    return tuple(subjects)


def _extras(folder: Path, kind: str, pattern: str) -> dict[str, Path]:
    """Files by subject name, of a pattern with {name} or of a folder."""
    if "{name}" in pattern:
        return _named(folder, pattern, any_suffix=kind == "points")
    place = folder / pattern
    if not place.is_dir():
        raise InputError(
            f"There is no folder '{place}' with {kind}; give a folder or a pattern with {{name}}."
        )
    return _named(place, "{name}", any_suffix=kind == "points")


def _named(folder: Path, pattern: str, *, any_suffix: bool = False) -> dict[str, Path]:
    """Files that match a pattern, by what stands at {name}; sorted, so that every machine sees one order."""
    if "{name}" not in pattern:
        raise InputError(
            f"'{pattern}' needs {{name}} where the subject's name stands, as in '{{name}}_t1.nii'."
        )
    if pattern == "{name}":
        files = sorted(p for p in folder.iterdir() if p.is_file() and not p.name.startswith("."))
        return {stem_of(p): p for p in files if any_suffix or suffix_of(p) in IMAGE_SUFFIXES}
    first, *rest = (re.escape(part).replace(r"\*", "[^/]*") for part in pattern.split("{name}"))
    expression = re.compile(f"{first}(?P<name>[^/]+)" + "(?P=name)".join(rest))
    found: dict[str, Path] = {}
    for path in sorted(folder.glob(pattern.replace("{name}", "*"))):
        match = expression.fullmatch(path.relative_to(folder).as_posix())
        if match is None:
            continue
        name = match.group("name")
        if name in found:
            raise InputError(f"'{pattern}' finds two files for '{name}': '{found[name]}' and '{path}'.")
        found[name] = path
    return found


# ---------------------------------------------------------------- tables


def _table(path: Path) -> Collection:
    kind = suffix_of(path)
    if kind in (".csv", ".tsv"):
        with reading(path, "a table"), path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file, delimiter="\t" if kind == ".tsv" else ",", restval="")
            return _rows(list(reader), path)
    if kind != ".json":
        raise InputError(f"'{path}' is no data set: give a folder of images, a .csv, .tsv or .json file.")
    with reading(path, "a JSON table"):
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    if learn2reg.describes(content):
        return learn2reg.collection(content, path)
    if isinstance(content, dict):
        content = content.get("pairs") or content.get("subjects") or content.get("images")
    if not isinstance(content, list) or not all(isinstance(row, dict) for row in content):
        raise InputError(
            f"'{path}' should hold a list of objects (or 'pairs' or 'subjects' with one), each with 'image', "
            "or with 'fixed' and 'moving'."
        )
    return _rows(content, path)


def _rows(rows: Sequence[Mapping[str, Any]], path: Path) -> Collection:
    if not rows:
        raise InputError(f"'{path}' has no rows.")
    columns = {str(key) for row in rows for key in row}
    paired = "fixed" in columns or "moving" in columns
    known = PAIR_COLUMNS if paired else SUBJECT_COLUMNS
    unknown = sorted(columns - set(known))
    if unknown or (not paired and "image" not in columns):
        raise InputError(
            f"'{path}' has the columns {', '.join(sorted(columns))}; a table of images has "
            f"{', '.join(SUBJECT_COLUMNS)}, a table of pairs {', '.join(PAIR_COLUMNS)}."
        )
    if not paired:
        return Collection(
            tuple(_subject(row, "image", "", path, number) for number, row in enumerate(rows, 1))
        )
    pairs = [
        (_subject(row, "fixed", "fixed_", path, number), _subject(row, "moving", "moving_", path, number))
        for number, row in enumerate(rows, 1)
    ]
    return _of_pairs(pairs, path)


def _of_pairs(pairs: Sequence[Pairing], path: Path) -> Collection:
    """Pairs and their subjects; an image named twice is one subject with everything said about it."""
    known: dict[Path, Subject] = {}
    for one in (one for pair in pairs for one in pair):
        known[one.image] = _merged(known[one.image], one, path) if one.image in known else one
    by_image = _unique_names(known)
    joined = tuple((by_image[fixed.image], by_image[moving.image]) for fixed, moving in pairs)
    for fixed, moving in joined:
        if fixed.image == moving.image:
            raise InputError(f"'{path}' pairs '{fixed.image}' with itself.")
    return Collection(tuple(by_image.values()), joined)


def _merged(one: Subject, other: Subject, path: Path) -> Subject:
    """One image's two mentions as one subject; raises InputError when they contradict each other."""
    values: dict[str, Any] = {}
    for kind in KINDS:
        first, second = getattr(one, kind), getattr(other, kind)
        if first is not None and second is not None and first != second:
            raise InputError(f"'{path}' gives '{one.image}' two different {kind}: '{first}' and '{second}'.")
        values[kind] = first or second
    groups = {one.group, other.group} - {person_of(one.name)} or {one.group}
    if len(groups) > 1:
        raise InputError(f"'{path}' gives '{one.image}' two persons: {' and '.join(sorted(groups))}.")
    return replace(one, group=groups.pop(), **values)


def _unique_names(subjects: Mapping[Path, Subject]) -> dict[Path, Subject]:
    """Images of one file name in different folders are told apart by their folder."""
    names = [one.name for one in subjects.values()]
    result = {}
    for image, one in subjects.items():
        if names.count(one.name) > 1:
            name = f"{image.parent.name}/{one.name}"
            own_group = one.group != person_of(one.name)
            one = replace(one, name=name, group=one.group if own_group else name)
        result[image] = one
    return result


def _subject(row: Mapping[str, Any], image: str, prefix: str, path: Path, number: int) -> Subject:
    """The subject of a row; file names are relative to the table."""

    def text(column: str) -> str:
        value = row.get(column)
        if value is not None and not isinstance(value, str | int):
            raise InputError(f"Row {number} of '{path}': '{column}' should be a text.")
        return "" if value is None else str(value).strip()

    if not text(image):
        raise InputError(f"Row {number} of '{path}' has no '{image}'.")
    given = {kind: path.parent / text(prefix + kind) for kind in KINDS if text(prefix + kind)}
    file = path.parent / text(image)
    name = (text("name") if image == "image" else "") or stem_of(file)
    return Subject(name, file, group=text(prefix + "person"), **given)
