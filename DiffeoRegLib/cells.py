"""Text of files where another program would take it for more than text: a spreadsheet, a terminal."""

from __future__ import annotations

import re
import unicodedata

FORMULA = ("=", "+", "-", "@", "\uff1d", "\uff0b", "\uff0d", "\uff20")
"""How cells begin that spreadsheet programs compute; the last four are the wide forms of the first."""
CONTROLS = ("Cc", "Cf", "Cs")


def cell(text: str) -> str:
    """The text of a cell of a CSV table, with an apostrophe before what a spreadsheet would compute.

    For names and sentences, which become one line; numbers are written as they are.
    Source: the OWASP foundation's notes on CSV injection.
    """
    line = re.sub(r"[\r\n]+", " ", text)
    return f"'{line}" if line.lstrip().startswith(FORMULA) else line


def visible(text: str) -> str:
    """The text with a question mark for every character that would steer a terminal; lines and tabs stay."""
    if text.isascii() and text.isprintable():
        return text
    return "".join("?" if unicodedata.category(c) in CONTROLS and c not in "\n\t" else c for c in text)
