"""Reads damaged files one after the other, in a process of its own: a crash of a library ends only this one.

python -m Testing.robustness.reading FOLDER COUNT SEED FORMAT ...: one JSON line before every file, one after.
"""

from __future__ import annotations

import faulthandler
import json
import re
import resource
import sys
import traceback
import warnings
from pathlib import Path
from typing import Any

import numpy as np

from DiffeoRegLib.errors import InputError
from Testing.robustness.damage import Damage, damaged
from Testing.robustness.formats import Content, Sample, make

LONGEST_SECONDS = 20
MOST_MEMORY = 4 << 30


def main(words: list[str]) -> None:
    """Damage and read; every outcome is a line on the output."""
    folder, count, seed, *formats = words
    resource.setrlimit(resource.RLIMIT_AS, (MOST_MEMORY, MOST_MEMORY))
    warnings.filterwarnings("error", category=RuntimeWarning, module="DiffeoRegLib")
    for name in formats:
        sample = make(name, Path(folder) / re.sub(r"\W", "_", name))
        whole = sample.path.read_bytes()
        right = sample.read()
        for number in range(int(seed), int(seed) + int(count)):
            tell(format=name, number=number)
            damage = damaged(whole, np.random.default_rng([number, len(whole)]))
            sample.path.write_bytes(damage.content)
            faulthandler.dump_traceback_later(LONGEST_SECONDS, exit=True)
            before = peak_mb()
            problem = look(sample, damage, right)
            faulthandler.cancel_dump_traceback_later()
            if not problem and peak_mb() - before > sample.most_mb:
                problem = f"it took {peak_mb() - before:.0f} MB"
            tell(format=name, number=number, kind=damage.kind, first=damage.first, problem=problem)
        sample.path.write_bytes(whole)


def look(sample: Sample, damage: Damage, right: Content) -> str:
    """What is wrong with how a damaged file is read; empty: nothing."""
    try:
        found = sample.read()
    except InputError as error:
        return unclear(str(error))
    except BaseException:  # noqa: BLE001 - whatever else comes out is what is looked for
        return traceback.format_exc()
    return wrong(sample, damage, right, found)


def unclear(text: str) -> str:
    """What is wrong with a sentence for the user."""
    if "\n" in text or "Traceback" in text or not text.endswith((".", "?", ")")):
        return f"no sentence: {text!r}"
    return ""


def wrong(sample: Sample, damage: Damage, right: Content, found: Content) -> str:
    """What is wrong with what was read without complaint."""
    different = [key for key in right if not same(right[key], found.get(key))]
    if not different:
        return ""
    for key, value in found.items():
        if key != "data" and isinstance(value, np.ndarray) and not np.isfinite(value).all():
            return f"{key} is not finite"
    if sample.sealed_from is not None and damage.first >= sample.sealed_from:
        return f"silently wrong in spite of a check sum: {different}"
    if damage.kind == "cut" and sample.ends:
        return f"cut short and not noticed: {different}"
    if damage.changed and sample.plain[0] <= damage.changed[0] and damage.changed[-1] < sample.plain[1]:
        if different != ["data"]:
            return f"voxels changed {different}"
        voxels = {(byte - sample.plain[0]) // sample.bytes_per_voxel for byte in damage.changed}
        count = int((~same_values(right["data"], found["data"])).sum())
        if count > len(voxels):
            return f"{len(voxels)} voxels changed {count}"
    return ""


def same(one: Any, other: Any) -> bool:
    if not isinstance(one, np.ndarray):
        return bool(one == other)
    return isinstance(other, np.ndarray) and one.shape == other.shape and bool(same_values(one, other).all())


def same_values(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    return (one == other) | ((one != one) & (other != other))


def peak_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def tell(**values: Any) -> None:
    sys.stdout.write(json.dumps(values) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main(sys.argv[1:])
