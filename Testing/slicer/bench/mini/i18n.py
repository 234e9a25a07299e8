"""`slicer.i18n` without translations: every text comes back as it is."""

from __future__ import annotations


def _text(text: str) -> str:
    if not isinstance(text, str):
        raise TypeError(f"only text can be translated, not {text!r}")
    return text


def tr(text: str, disambiguation: str | None = None, n: int = -1) -> str:
    """The text, for the file that calls."""
    return _text(text)


def translate(context: str, text: str, disambiguation: str | None = None, n: int = -1) -> str:
    """The text, for the context given."""
    _text(context)
    return _text(text)


def getContext(sourceFile: str) -> str:
    """The translation context of a file: its name without ending."""
    return sourceFile.replace("\\", "/").rsplit("/", 1)[-1].removesuffix(".py")
