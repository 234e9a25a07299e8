"""The data sets of the Learn2Reg challenges, as their dataset.json describes them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from DiffeoRegLib.errors import InputError
from DiffeoRegLib.training.subjects import Collection, Pairing, Subject
from DiffeoRegLib.volumes.file_guard import stem_of

TRAINING = ("training", "training_paired_images", "training_pairs")
VALIDATION = ("validation", "registration_val")
KINDS = {
    "labels": (("label", "labels"), "labels", (".nii.gz", ".nii")),
    "mask": (("mask", "masks"), "masks", (".nii.gz", ".nii")),
}
"""Per kind of file: its keys in an entry, the folder beside images*, its suffixes."""
KEYPOINTS = ("keypoints", "landmarks")


def describes(content: object) -> bool:
    """True if a JSON content has Learn2Reg's lists."""
    return isinstance(content, dict) and any(isinstance(content.get(key), list) for key in TRAINING)


def collection(content: Mapping[str, Any], path: Path) -> Collection:
    """Subjects and pairs of a dataset.json; its test cases are left out, whoever validates does not train.

    An entry is a file name, an object with `image`, or one with `fixed` and `moving`.
    Raises InputError for anything else.
    """
    known: dict[str, Subject] = {}
    parts = {}
    for side, keys in (("training", TRAINING), ("validation", VALIDATION)):
        entries = [entry for key in keys for entry in _entries(content, key, path)]
        alone = [_subject(entry, path, known) for entry in entries if not _paired(entry)]
        pairs = [
            (_subject(entry["fixed"], path, known), _subject(entry["moving"], path, known))
            for entry in entries
            if _paired(entry)
        ]
        parts[side] = (alone, pairs)
    validation = _distinct(parts["validation"])
    held_out = {one.group for one in validation}
    training = [one for one in _distinct(parts["training"]) if one.group not in held_out]
    left_out = len(_distinct(parts["training"])) - len(training)
    notes = []
    if left_out:
        notes.append(f"{left_out} images are of persons that '{path}' validates on; they are not trained on.")
    if any(isinstance(e, dict) and set(KEYPOINTS) & set(e) for key in TRAINING for e in content.get(key, [])):
        notes.append(
            f"The keypoints '{path}' names are voxel indices, not landmarks in mm; they are not read."
        )
    names = {one.name for one in training}
    return Collection(
        tuple(training),
        tuple(pair for pair in parts["training"][1] if pair[0].name in names and pair[1].name in names),
        tuple(validation),
        tuple(parts["validation"][1]),
        tuple(notes),
    )


def _entries(content: Mapping[str, Any], key: str, path: Path) -> Sequence[Any]:
    entries = content.get(key, [])
    if not isinstance(entries, list):
        raise InputError(f"'{key}' in '{path}' should be a list.")
    return entries


def _paired(entry: object) -> bool:
    return isinstance(entry, dict) and "fixed" in entry and "moving" in entry


def _distinct(part: tuple[Sequence[Subject], Sequence[Pairing]]) -> list[Subject]:
    alone, pairs = part
    return list({one.name: one for one in (*alone, *(one for pair in pairs for one in pair))}.values())


def _subject(entry: object, path: Path, known: dict[str, Subject]) -> Subject:
    """The subject of an entry; what is said of an image once holds for its later mentions too."""
    fields: dict[str, Any] = entry if isinstance(entry, dict) else {"image": entry}
    if not isinstance(fields.get("image"), str):
        raise InputError(f"'{path}' has an entry that names no image: {entry!r}.")
    image = path.parent / fields["image"]
    name = stem_of(image)
    subject = known.get(name, Subject(name, image))
    found: dict[str, Any] = {}
    for kind, (keys, folder, suffixes) in KINDS.items():
        stated = next((fields[key] for key in keys if isinstance(fields.get(key), str)), None)
        if stated is not None:
            found[kind] = path.parent / stated
        elif getattr(subject, kind) is None:
            found[kind] = _beside(image, folder, suffixes)
    subject = replace(subject, **found)
    known[name] = subject
    return subject


def _beside(image: Path, folder: str, suffixes: Sequence[str]) -> Path | None:
    """The file of one kind that belongs to an image of images*/ by the challenge's folder names, if any."""
    if not image.parent.name.startswith("images"):
        return None
    place = image.parent.parent / (folder + image.parent.name.removeprefix("images"))
    return next((p for s in suffixes if (p := place / (stem_of(image) + s)).is_file()), None)
