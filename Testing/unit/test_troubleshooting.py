"""Every sentence the troubleshooting page quotes is one that the sources can say."""

from __future__ import annotations

import re

import pytest

from Testing import documents

PAGE = documents.DOCS / "troubleshooting.md"
QUOTED = re.findall(r"^> (.+)$", PAGE.read_text(encoding="utf-8"), re.MULTILINE)


@pytest.mark.parametrize("sentence", QUOTED)
def test_a_quoted_sentence_is_said_by_the_sources(sentence: str) -> None:
    assert documents.is_said(sentence)


def test_the_likely_problems_are_there() -> None:
    assert len(QUOTED) == len(set(QUOTED)) >= 25
    text = " ".join(QUOTED)
    for word in ("PyTorch", "CUDA", "GB", "share", "empty", "licence", "weights", "exists already",
                 "Cancelled", "DICOM", "landmarks", "folder"):  # fmt: skip
        assert word in text


@pytest.mark.parametrize(
    "sentence",
    [
        "The mask '...' is hollow: mark at least one voxel, or register without a mask.",
        "cuda is not used: the moon is not full tonight and never was.",
        "The mask '...' is empty: mark at least one voxel, or register without a mask. And so on.",
        "One two three.",
        "...",
    ],
)
def test_a_sentence_that_nothing_says_would_be_seen(sentence: str) -> None:
    assert not documents.is_said(sentence)
