"""The cards: consistent with the code behind them, and strict about weights."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from DiffeoRegLib.catalog import CARDS, Card, WeightFile, card
from DiffeoRegLib.errors import SettingsError, UnknownNameError
from DiffeoRegLib.methods import method_named
from DiffeoRegLib.settings import Settings

GOOD: dict[str, Any] = {
    "file": "encoder.safetensors",
    "url": "https://example.org/encoder.safetensors",
    "sha256": "0123456789abcdef" * 4,
    "size_bytes": 10,
    "licence": "MIT",
    "permissive": True,
}


@pytest.mark.parametrize("known", CARDS.values(), ids=CARDS)
def test_every_card_is_complete(known: Card) -> None:
    assert card(known.name) is known
    assert known.title
    assert known.use.endswith(".")
    assert known.citation.endswith(".")
    assert Settings(method=known.name).method == known.name
    first, last = known.steps_range
    assert 1 <= first <= last
    assert known.steps_default == "auto" or first <= known.steps_default <= last
    assert known.deformable or not (known.time_steps or known.refinable)


@pytest.mark.parametrize(
    "known", [c for c in CARDS.values() if c.deformable and not c.needs_group], ids=lambda c: c.name
)
def test_every_deformable_card_has_its_method(known: Card) -> None:
    method = method_named(known.name)
    assert callable(method.predict)
    assert callable(method.refine)


def test_an_unknown_method_is_named_with_what_there_is() -> None:
    with pytest.raises(UnknownNameError, match="svf"):
        card("sfv")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("file", "../encoder.safetensors"),
        ("file", "a/b"),
        ("file", "a\\b"),
        ("file", ".hidden"),
        ("file", ""),
        ("url", "http://example.org/x"),
        ("url", "file:///etc/passwd"),
        ("sha256", "0123456789ABCDEF" * 4),
        ("sha256", "0123"),
        ("size_bytes", 0),
    ],
)
def test_unsafe_weights_are_refused(name: str, value: Any) -> None:
    with pytest.raises(SettingsError):
        WeightFile(**{**GOOD, name: value})


def test_a_card_sums_up_its_weights() -> None:
    first = WeightFile(**GOOD)
    bound = {"licence": "CC BY-NC 4.0", "permissive": False}
    second = dataclasses.replace(first, file="b.safetensors", **bound)
    third = dataclasses.replace(first, file="c.safetensors", **bound)
    trained = Card("x", "X", "Use.", "Paper.", weights=(first, second, third))
    assert trained.download_bytes == 30
    assert trained.licences_to_accept == ("CC BY-NC 4.0",)
    plain = Card("y", "Y", "Use.", "Paper.")
    assert (plain.download_bytes, plain.licences_to_accept) == (0, ())


def test_the_catalogue_needs_nothing_but_the_standard_library(repository: Path) -> None:
    code = "import sys; import DiffeoRegLib.catalog; assert not {'torch', 'numpy'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=repository)
