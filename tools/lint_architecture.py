"""Check the rules of the house that no general linter knows; used by pytest and by pre-commit.

Run from anywhere: `python tools/lint_architecture.py [ROOT]`.
Prints one line per finding; exit status 1 if there are any.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TypeVar

ENGINE = "DiffeoRegLib"
PANEL = "DiffeoReg"
ROOTS = (ENGINE, PANEL, "Testing", "tools")

# Highest first. A room may import lower layers and itself, nothing else.
LAYERS: tuple[tuple[str, ...], ...] = (
    ("__main__",),
    ("cli", "worker"),
    ("cohorts", "group_outputs"),
    ("outputs",),
    ("geodesic_files", "velocity_files"),
    ("sealed_files",),
    ("template",),
    ("pipeline", "groupwise", "training"),
    ("methods",),
    ("optimise", "report"),
    ("metrics",),
    ("networks",),
    ("volumes", "flows", "losses", "device"),
    ("space",),
    ("settings", "catalog", "exchange", "waiting", "stiffness"),
    ("method_cards",),
    ("cards",),
    ("plain", "whole_file", "main_memory", "cells"),
    ("errors",),
)
HEIGHT = {room: len(LAYERS) - level for level, rooms in enumerate(LAYERS) for room in rooms}

# The panel imports these inside Slicer, where torch may not be installed.
TORCH_FREE = (
    "errors", "plain", "cards", "method_cards", "settings", "catalog", "exchange", "stiffness", "waiting",
)  # fmt: skip
SLICER_MODULES = ("slicer", "vtk", "qt", "ctk", "mrml", "PythonQt")
UNSAFE_MODULES = ("pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal")
# One door each: where coordinates meet torch, and where arrays become tensors.
ONE_DOOR = PurePosixPath(ENGINE, "space", "sample.py")
BEHIND_THE_DOOR = ("grid_sample", "affine_grid", "from_numpy")
MAX_LINES = 400
# What turns text into code, or a file into any object.
RUNS_TEXT = (
    "eval", "exec", "compile", "__import__", "os.system", "os.popen", "torch.jit.load", "torch.save",
    "runpy.run_path", "runpy.run_module",
)  # fmt: skip
LOADS_OBJECTS = ("UnsafeLoader", "FullLoader", "unsafe_load", "full_load", "unsafe_load_all", "full_load_all")
# The one door to the network, and where workers on other computers are talked to.
DOWNLOAD = PurePosixPath(PANEL, "DiffeoRegPanel", "download.py")
WITH_WORKERS = (
    PurePosixPath(ENGINE, "cohorts", "pools.py"), PurePosixPath(ENGINE, "cli", "batch.py"),
    PurePosixPath(ENGINE, "cli", "batch_worker.py"),
)  # fmt: skip
NETWORK = (
    "socket", "socketserver", "ssl", "http", "urllib.request", "urllib.error", "urllib3", "requests", "httpx",
    "aiohttp", "ftplib", "smtplib", "telnetlib", "xmlrpc", "webbrowser", "huggingface_hub",
)  # fmt: skip

Remark = tuple[int, str]
Node = TypeVar("Node", bound=ast.AST)


@dataclass(frozen=True)
class Source:
    """One parsed file; path is relative to the repository."""

    path: PurePosixPath
    text: str
    tree: ast.Module

    @property
    def room(self) -> str:
        """First name under the package: `space` for DiffeoRegLib/space/grid.py."""
        return PurePosixPath(self.path.parts[1]).stem

    def nodes(self, kind: type[Node]) -> Iterator[Node]:
        """All nodes of one kind, in no particular order."""
        return (node for node in ast.walk(self.tree) if isinstance(node, kind))

    def imports(self) -> Iterator[tuple[int, str]]:
        """Line and absolute dotted name of everything imported, by statement or by `import_module("...")`."""
        for node in ast.walk(self.tree):
            if isinstance(node, ast.Import):
                yield from ((node.lineno, alias.name) for alias in node.names)
            elif isinstance(node, ast.ImportFrom):
                base = self._absolute(node)
                yield from ((node.lineno, f"{base}.{alias.name}") for alias in node.names)
            elif isinstance(node, ast.Call) and _called(node) in ("import_module", "__import__"):
                yield from ((node.lineno, text) for text in map(_text, node.args[:1]) if text)

    def _absolute(self, node: ast.ImportFrom) -> str:
        if node.level == 0:
            return node.module or ""
        package = self.path.parts[: len(self.path.parts) - node.level]
        return ".".join([*package, *([node.module] if node.module else [])])


@dataclass(frozen=True)
class Finding:
    """One broken rule at one line."""

    path: PurePosixPath
    line: int
    rule: str
    message: str

    def __str__(self) -> str:
        return f"{self.path}:{self.line}: {self.rule}: {self.message}"


def _text(node: ast.AST) -> str:
    """The text of a string constant, empty for anything else."""
    return node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else ""


def _called(node: ast.Call) -> str:
    """Last name of what is called: `load` for torch.load(...)."""
    function = node.func
    return function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")


def _imports_of(source: Source, banned: tuple[str, ...]) -> Iterator[Remark]:
    return ((line, name) for line, name in source.imports() if name.split(".")[0] in banned)


def import_direction(source: Source) -> Iterator[Remark]:
    """Imports point down only; every room has a place in LAYERS."""
    if source.room != "__init__" and source.room not in HEIGHT:
        yield 1, f"'{source.room}' has no place in the layers: add it to LAYERS, at the height it belongs"
        return
    for line, name in source.imports():
        target = name.split(".")[1:2]
        if not name.startswith(f"{ENGINE}.") or target == ["__version__"]:
            continue
        room = target[0]
        if source.room == "__init__":
            yield line, "the package's __init__ imports nothing: the panel loads it without torch"
        elif room not in HEIGHT:
            yield line, f"'{room}' has no place in the layers"
        elif room != source.room and HEIGHT[room] >= HEIGHT[source.room]:
            yield line, f"{source.room} may not import {room}: imports point down only"


def torch_free(source: Source) -> Iterator[Remark]:
    """The panel can import settings, catalogue and errors without torch."""
    if source.room in (*TORCH_FREE, "__init__"):
        for line, name in _imports_of(source, ("torch",)):
            yield line, f"imports {name}: the panel needs this file without torch"


def no_slicer(source: Source) -> Iterator[Remark]:
    """The engine knows nothing of Slicer."""
    for line, name in _imports_of(source, SLICER_MODULES):
        yield line, f"the engine imports {name}: only the panel may"


def one_door(source: Source) -> Iterator[Remark]:
    """Sampling and numpy <-> torch happen in space/sample.py only."""
    if source.path == ONE_DOOR:
        return
    used = [(line, name.split(".")[-1]) for line, name in source.imports()]
    used += [(node.lineno, node.id) for node in source.nodes(ast.Name)]
    used += [(node.lineno, node.attr) for node in source.nodes(ast.Attribute)]
    for line, name in used:
        if name in BEHIND_THE_DOOR:
            yield line, f"{name} belongs to {ONE_DOOR} only"
    for call in source.nodes(ast.Call):
        if isinstance(call.func, ast.Attribute) and call.func.attr == "numpy":
            yield call.lineno, f".numpy() belongs to {ONE_DOOR} only: use array_from_tensor"


def no_print(source: Source) -> Iterator[Remark]:
    """Only the command line prints."""
    if source.room != "cli":
        for node in source.nodes(ast.Call):
            if isinstance(node.func, ast.Name) and node.func.id == "print":
                yield node.lineno, "only the command line prints"


def panel_without_torch(source: Source) -> Iterator[Remark]:
    """Torch runs in the worker process, never inside Slicer."""
    for line, name in _imports_of(source, ("torch",)):
        yield line, f"the panel imports {name}: torch lives in the worker process"


def nothing_unsafe(source: Source) -> Iterator[Remark]:
    """No code from a download, no half-loaded weights."""
    for line, name in _imports_of(source, UNSAFE_MODULES):
        yield line, f"imports {name}: use safetensors, or torch.load with weights_only"
    for node in source.nodes(ast.Call):
        given = {k.arg: k.value.value for k in node.keywords if isinstance(k.value, ast.Constant)}
        if given.get("strict") is False and _called(node) != "zip":
            yield node.lineno, "strict must not be False: what does not fit is an error"
        if given.get("allow_pickle") is True:
            yield node.lineno, "allow_pickle runs code from a file"
        if ast.unparse(node.func) == "torch.load" and given.get("weights_only") is not True:
            yield node.lineno, "torch.load needs weights_only to be True"


def nothing_swallowed(source: Source) -> Iterator[Remark]:
    """No error disappears without a word."""
    for node in source.nodes(ast.ExceptHandler):
        if all(
            isinstance(s, ast.Pass) or (isinstance(s, ast.Expr) and _is_ellipsis(s.value)) for s in node.body
        ):
            yield node.lineno, "an error is swallowed: handle it, or let it pass on"


def _is_ellipsis(node: ast.AST) -> bool:
    return isinstance(node, ast.Constant) and node.value is ...


def nothing_unfinished(source: Source) -> Iterator[Remark]:
    """No method that only promises."""
    for node in source.nodes(ast.Raise):
        if node.exc is not None and ast.unparse(node.exc).startswith("NotImplemented"):
            yield node.lineno, "unfinished: write it, or do not offer it"


def short_files(source: Source) -> Iterator[Remark]:
    """A file is short enough to be read."""
    lines = len(source.text.splitlines())
    if lines > MAX_LINES:
        yield 1, f"{lines} lines, at most {MAX_LINES}: split it"


def nothing_runs(source: Source) -> Iterator[Remark]:
    """No text becomes code, and no command goes through a shell."""
    for call in source.nodes(ast.Call):
        name = ast.unparse(call.func)
        shell = any(k.arg == "shell" and ast.unparse(k.value) != "False" for k in call.keywords)
        if shell or name in RUNS_TEXT or name.startswith("torch.hub."):
            yield call.lineno, f"{name} runs a text or a download as code"
    for node in source.nodes(ast.Attribute):
        if node.attr in LOADS_OBJECTS:
            yield node.lineno, f"{node.attr} makes objects of what a file says: use yaml.SafeLoader"


def nothing_sent(source: Source) -> Iterator[Remark]:
    """One door to the network, which is opened by a button; Dask's workers behind another."""
    for line, name in source.imports():
        if source.path != DOWNLOAD and any(f"{name}.".startswith(f"{known}.") for known in NETWORK):
            yield line, f"imports {name}: only {DOWNLOAD} may reach the network"
        if source.path not in WITH_WORKERS and name.split(".")[0] in ("dask", "distributed", "dask_jobqueue"):
            yield line, f"imports {name}: only {WITH_WORKERS[0]} has workers elsewhere"


Rule = Callable[[Source], Iterator[Remark]]
EVERYWHERE: tuple[Rule, ...] = (nothing_unsafe, nothing_swallowed, nothing_unfinished, short_files)
RULES: dict[str, tuple[Rule, ...]] = {
    ENGINE: (
        import_direction,
        torch_free,
        no_slicer,
        one_door,
        no_print,
        nothing_runs,
        nothing_sent,
        *EVERYWHERE,
    ),
    PANEL: (panel_without_torch, nothing_runs, nothing_sent, *EVERYWHERE),
}


def check_source(path: PurePosixPath, text: str) -> list[Finding]:
    """Everything wrong with one file; path is relative to the repository."""
    try:
        source = Source(path, text, ast.parse(text))
    except SyntaxError as error:
        return [Finding(path, error.lineno or 1, "syntax", error.msg)]
    rules = RULES.get(path.parts[0], EVERYWHERE)
    found = [Finding(path, line, rule.__name__, message) for rule in rules for line, message in rule(source)]
    return sorted(found, key=lambda finding: finding.line)


def python_files(root: Path) -> list[PurePosixPath]:
    """The repository's Python files, relative to root."""
    files = (path for top in ROOTS for path in (root / top).rglob("*.py"))
    return sorted(PurePosixPath(path.relative_to(root).as_posix()) for path in files)


def check_tree(root: Path) -> list[Finding]:
    """Everything wrong in the repository at root."""
    return [
        finding
        for path in python_files(root)
        for finding in check_source(path, (root / path).read_text(encoding="utf-8"))
    ]


def main(arguments: list[str]) -> int:
    """Print the findings of the repository; 1 when there are any."""
    root = Path(arguments[0]) if arguments else Path(__file__).resolve().parents[1]
    findings = check_tree(root)
    for finding in findings:
        print(finding)
    return 1 if findings else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
