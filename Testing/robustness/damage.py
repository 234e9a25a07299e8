"""What can happen to a file between two programs: cut short, bits turned, blocks lost or filled."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

HEADER = 400
"""Most formats say what they are within so many bytes: every second damage falls there."""


@dataclass(frozen=True)
class Damage:
    """A damaged content.

    kind: cut, flip (bits in place) or other.  first: the first byte that is not as it was.
    changed: bytes that differ from the whole file, where its length is kept.
    """

    kind: str
    content: bytes
    first: int
    changed: tuple[int, ...] = ()


def damaged(whole: bytes, rng: np.random.Generator) -> Damage:
    """One damage of a file's content, never none."""
    while True:
        kind = str(rng.choice(["cut", "flip", "flip", "flip", "fill", "lose", "grow"]))
        at = int(rng.integers(min(len(whole), HEADER) if rng.random() < 0.5 else len(whole)))
        if kind == "cut":
            at = at if rng.random() < 0.7 else len(whole) - int(rng.integers(1, min(len(whole), 9) + 1))
            return Damage("cut", whole[:at], at)
        content = bytearray(whole)
        if kind == "flip":
            for place in [at, *rng.integers(len(whole), size=rng.choice([0, 0, 0, 1, 5]))]:
                content[place] ^= (
                    int(rng.integers(1, 256)) if rng.random() < 0.5 else 1 << int(rng.integers(8))
                )
        elif kind == "fill":
            length = int(rng.integers(1, 64))
            content[at : at + length] = rng.choice([b"\0", b"\xff", b"9", b" "]) * len(
                content[at : at + length]
            )
        elif kind == "lose":
            del content[at : at + int(rng.integers(1, 64))]
        else:
            content[at:at] = rng.bytes(int(rng.integers(1, 64)))
        if bytes(content) == whole:
            continue
        if len(content) == len(whole):
            changed = np.flatnonzero(np.frombuffer(content, np.uint8) != np.frombuffer(whole, np.uint8))
            return Damage("flip", bytes(content), int(changed[0]), tuple(changed.tolist()))
        return Damage("other", bytes(content), at)
