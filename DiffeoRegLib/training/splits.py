"""Who trains and who validates: persons are divided, never their images."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace

from DiffeoRegLib.errors import InputError, SettingsError, UnknownNameError
from DiffeoRegLib.training.subjects import Collection, Pairing, Subject, require_two

LEAST = 2
"""Images on each side: fewer make no pair."""


def split(
    subjects: Sequence[Subject], validation: float | Sequence[str] = 0.2, seed: int = 0
) -> tuple[list[Subject], list[Subject]]:
    """Training and validation subjects, each person on one side only, in the order given.

    validation: the share of images to validate on (0 = none), or the names of images or persons.
    The same names and seed give the same division, whatever the order of the subjects.
    Raises SettingsError for a share outside [0, 1), UnknownNameError, and InputError where a side would
    be left with fewer than two images.
    """
    if isinstance(validation, str):
        raise SettingsError(f"validation is a share like 0.2 or a list of names, not '{validation}'.")
    if isinstance(validation, int | float):
        chosen = _drawn(subjects, float(validation), seed)
    else:
        chosen = _named(subjects, validation)
    training = [one for one in subjects if one.group not in chosen]
    held_out = [one for one in subjects if one.group in chosen]
    if chosen and min(len(training), len(held_out)) < LEAST:
        persons = len({one.group for one in subjects})
        raise InputError(
            f"{len(subjects)} images of {persons} persons cannot be divided: {len(training)} would be left "
            f"to train on and {len(held_out)} to validate on, and a pair needs two. Add images, or set "
            "validation to 0."
        )
    require_two(training, "The training set")
    return training, held_out


def divide(collection: Collection, validation: float | Sequence[str] = 0.2, seed: int = 0) -> Collection:
    """The collection with its validation side filled by `split`; one that has a side of its own stays.

    Given pairs go where both their images go; pairs across the sides are left out and counted in the notes.
    Raises as `split`, and InputError when no pair is left to train on.
    """
    if collection.validation:
        return collection
    training, held_out = split(collection.subjects, validation, seed)
    sides = [{one.name for one in side} for side in (training, held_out)]
    pairs, held_pairs = (_within(collection.pairs, side) for side in sides)
    notes = collection.notes
    across = len(collection.pairs) - len(pairs) - len(held_pairs)
    if across:
        notes += (
            f"{across} of {len(collection.pairs)} given pairs lie across the division of persons: left out.",
        )
    if collection.pairs and not pairs:
        raise InputError(
            "No given pair has both its images on the training side: give more pairs, or name the persons to "
            "validate on."
        )
    return replace(
        collection,
        subjects=tuple(training),
        pairs=pairs,
        validation=tuple(held_out),
        validation_pairs=held_pairs,
        notes=notes,
    )


def _within(pairs: Sequence[Pairing], names: set[str]) -> tuple[Pairing, ...]:
    return tuple(pair for pair in pairs if pair[0].name in names and pair[1].name in names)


def _drawn(subjects: Sequence[Subject], share: float, seed: int) -> set[str]:
    """Persons drawn until the share of images is reached."""
    if not 0.0 <= share < 1.0:
        raise SettingsError(f"validation is a share of the images from 0 to below 1, not {share:g}.")
    if share == 0.0:
        return set()
    persons = sorted({one.group for one in subjects})
    random.Random(f"split {seed}").shuffle(persons)
    wanted = max(LEAST, round(share * len(subjects)))
    chosen: set[str] = set()
    count = 0
    for person in persons:
        if count >= wanted:
            break
        chosen.add(person)
        count += sum(one.group == person for one in subjects)
    return chosen


def _named(subjects: Sequence[Subject], names: Sequence[str]) -> set[str]:
    groups = {one.name: one.group for one in subjects} | {one.group: one.group for one in subjects}
    for name in map(str, names):
        if name not in groups:
            raise UnknownNameError("subject or person", name, groups)
    return {groups[str(name)] for name in names}
