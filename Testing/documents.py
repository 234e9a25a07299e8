"""What the tests of the pages share: blocks of code, links, headings, and the words of the sources."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]
DOCS = REPOSITORY / "Resources" / "docs"
README = REPOSITORY / "README.md"
PAGES = [
    README,
    *sorted(DOCS.glob("*.md")),
    REPOSITORY / "Resources" / "SampleData" / "README.md",
    REPOSITORY / "Resources" / "Screenshots" / "README.md",
]
HOLE = "\0"
"""Where a sentence of the sources takes in something that is known only when it is said."""


def name_of(page: Path) -> str:
    """A page's path in the repository, for the names of tests."""
    return page.relative_to(REPOSITORY).as_posix()


@dataclass(frozen=True)
class Block:
    """A block of code of a page; caption: the last line of words before it."""

    language: str
    text: str
    caption: str


def blocks(page: Path, language: str) -> list[Block]:
    """The blocks of one language, in order."""
    return [block for block in all_blocks(page) if block.language == language]


def all_blocks(page: Path) -> Iterator[Block]:
    """Every fenced block; raises ValueError for a fence that is never closed."""
    language, lines, caption = None, [], ""
    for line in page.read_text(encoding="utf-8").splitlines():
        fence = re.match(r"\s*```(\w*)", line)
        if fence and language is None:
            language, lines = fence[1], []
        elif fence:
            yield Block(language, "\n".join(lines) + "\n", caption)
            language = None
        elif language is not None:
            lines.append(line)
        elif line.strip():
            caption = line.strip()
    if language is not None:
        raise ValueError(f"{page}: a block of code is not closed")


def prose(page: Path) -> str:
    """A page without its blocks of code, and without code within lines."""
    text = re.sub(r"^\s*```.*?^\s*```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    return re.sub(r"`[^`\n]+`", "``", text)


def links(page: Path) -> list[str]:
    """Where a page's links and pictures lead, but for addresses of the web and of mail."""
    found = re.findall(r"\]\(([^)\s]+)\)", prose(page))
    return [target for target in found if not re.match(r"(https?|mailto):", target)]


def anchors(page: Path) -> set[str]:
    """What the headings of a page are called in links, as GitHub does it, and places that have a name."""
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    found = set(re.findall(r'<a (?:id|name)="([^"]+)">', text))
    for title in re.findall(r"^#{1,6} (.+)$", text, re.MULTILINE):
        plain = re.sub(r"\]\([^)]*\)", "", title).lower().strip()
        name = re.sub(r"[^\w\- ]", "", plain).replace(" ", "-")
        count = sum(1 for other in found if other == name or re.fullmatch(re.escape(name) + r"-\d+", other))
        found.add(f"{name}-{count}" if count else name)
    return found


def commands(page: Path) -> list[str]:
    """Lines of a page's shell blocks that call `diffeoreg`, in one piece and without comments."""
    found = []
    for block in blocks(page, "sh"):
        whole = re.sub(r"\\\n\s*", " ", block.text)
        found += [line.split(" #")[0].strip() for line in whole.splitlines() if line.startswith("diffeoreg ")]
    return found


@cache
def templates() -> tuple[str, ...]:
    """Every text in the sources of engine and panel, with HOLE for what is filled in; longest first."""
    found: set[str] = set()
    for folder in ("DiffeoRegLib", "DiffeoReg"):
        for path in sorted((REPOSITORY / folder).rglob("*.py")):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                text = text_of(node)
                if text:
                    found.add(" ".join(text.split()))
    return tuple(sorted(found, key=len, reverse=True))


def text_of(node: ast.AST) -> str | None:
    """A text, or one put together from texts; None for anything else."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    if isinstance(node, ast.JoinedStr):
        return "".join(text_of(value) or HOLE for value in node.values)
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        parts = [text_of(side) for side in (node.left, node.right)]
        return "".join(part or HOLE for part in parts) if any(parts) else None
    return None


def is_said(sentence: str, depth: int = 0) -> bool:
    """Whether the sources can say this.

    A hole is filled by `...`, by at most three words, or by something else that the sources say.
    """
    for template in templates():
        parts = template.split(HOLE)
        if len(re.findall(r"[A-Za-z]{2,}", template)) < 2 or not all(part in sentence for part in parts):
            continue
        match = re.fullmatch("(.+?)".join(map(re.escape, parts)), sentence)
        if match and all(_fills(text, depth) for text in match.groups()):
            return True
    return False


def _fills(text: str, depth: int) -> bool:
    text = text.strip()
    return text == "..." or len(text.split()) <= 3 or (depth < 2 and is_said(text, depth + 1))
