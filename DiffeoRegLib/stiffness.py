"""How stiff a region is: names, and the shares of kernels behind them. No torch: the panel imports this."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from DiffeoRegLib.errors import SettingsError, UnknownNameError

Stiffness = str | tuple[float, ...]
"""A name of STIFFNESS, or the shares of the kernels, narrow to wide."""
REGIONAL_SIGMAS = (0.03, 0.06, 0.09, 0.3)
"""Widths of the kernels, shares of the image box, of the paper's synthetic study with given regions."""
REGIONAL_PREWEIGHT_SIGMA = 0.05
STIFFNESS: Mapping[str, tuple[float, ...]] = {
    "soft": (0.2, 0.5, 0.3, 0.0),
    "normal": (0.1, 0.2, 0.3, 0.4),
    "stiff": (0.0, 0.05, 0.15, 0.8),
    "rigid-like": (0.0, 0.0, 0.0, 1.0),
}
"""Shares of four kernels; soft and rigid-like are the paper's inside and outside (NeurIPS 2019)."""
REST = "rigid-like"
"""Of what no region covers."""


def stiffness_of(text: str) -> Stiffness:
    """A stiffness as a user writes it: a name, or shares such as "0.1, 0.4, 0.5, 0".

    Raises UnknownNameError for another name, SettingsError for shares that are negative or all zero.
    """
    words = text.replace(",", " ").replace(";", " ").split()
    if text.strip() in STIFFNESS:
        return text.strip()
    try:
        shares = tuple(float(word) for word in words)
    except ValueError as error:
        raise UnknownNameError("stiffness", text.strip(), STIFFNESS) from error
    _check(shares)
    return shares


def shares_of(stiffness: Stiffness, kernels: int) -> tuple[float, ...]:
    """The shares of so many kernels, narrow to wide, brought to sum 1.

    Raises UnknownNameError for an unknown name, SettingsError for shares of another number of kernels (names
    stand for those of four), negative ones, or none above zero.
    """
    if isinstance(stiffness, str):
        if stiffness not in STIFFNESS:
            raise UnknownNameError("stiffness", stiffness, STIFFNESS)
        row, said = STIFFNESS[stiffness], f"'{stiffness}'"
    else:
        row, said = tuple(float(share) for share in stiffness), f"{tuple(stiffness)}"
    _check(row)
    if len(row) != kernels:
        raise SettingsError(
            f"The stiffness {said} holds the shares of {len(row)} kernels, and there are {kernels}: "
            "give one share per kernel."
        )
    total = sum(row)
    return tuple(share / total for share in row)


def _check(shares: Sequence[float]) -> None:
    if not shares or not all(0 <= share < math.inf for share in shares) or sum(shares) == 0:
        raise SettingsError(
            f"A stiffness is a name ({', '.join(STIFFNESS)}) or shares of the kernels, none of them negative "
            f"and not all 0; got {tuple(shares)}."
        )
