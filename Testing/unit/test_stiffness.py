"""Stiffness as a user writes it, and as shares of kernels."""

from __future__ import annotations

import pytest

from DiffeoRegLib.errors import SettingsError, UnknownNameError
from DiffeoRegLib.stiffness import REGIONAL_SIGMAS, STIFFNESS, shares_of, stiffness_of


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("soft", "soft"),
        (" rigid-like ", "rigid-like"),
        ("0.1, 0.4, 0.5, 0", (0.1, 0.4, 0.5, 0.0)),
        ("1 2;3", (1.0, 2.0, 3.0)),
    ],
)
def test_names_and_shares_are_read(text, expected):
    assert stiffness_of(text) == expected


@pytest.mark.parametrize("text", ["0, 0, 0", "-1, 2", "nan, 1", "inf 1", ""])
def test_useless_shares_are_refused(text):
    with pytest.raises(SettingsError, match="not all 0"):
        stiffness_of(text)


def test_an_unknown_name_is_answered_with_the_known_ones():
    with pytest.raises(UnknownNameError, match=r"Did you mean 'stiff'.*rigid-like"):
        stiffness_of("stif")
    with pytest.raises(UnknownNameError):
        shares_of("stif", 4)


def test_shares_are_brought_to_one():
    assert shares_of((1, 1, 2), 3) == (0.25, 0.25, 0.5)
    for name, row in STIFFNESS.items():
        assert shares_of(name, len(REGIONAL_SIGMAS)) == pytest.approx(row)


def test_names_stand_for_four_kernels():
    with pytest.raises(SettingsError, match="'soft' holds the shares of 4 kernels, and there are 5"):
        shares_of("soft", 5)
    with pytest.raises(SettingsError, match="2 kernels, and there are 4"):
        shares_of((1.0, 1.0), 4)
    with pytest.raises(SettingsError, match="not all 0"):
        shares_of((0.0, 0.0), 2)


def test_softer_names_have_more_of_the_narrow_kernels():
    widths = [sum(c * s * s for c, s in zip(row, REGIONAL_SIGMAS, strict=True)) for row in STIFFNESS.values()]
    assert widths == sorted(widths)
    assert list(STIFFNESS) == ["soft", "normal", "stiff", "rigid-like"]
