"""Write the page of the Python interface from the docstrings: `make docs`, or `python tools/write_api.py`.

Sources are only parsed, never imported, so that no PyTorch is needed.  `--check` writes nothing and says with
its exit status whether the page is up to date.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PAGE = Path("Resources", "docs", "api.md")
ENGINE, SLICER = "DiffeoRegLib", "DiffeoReg"


@dataclass(frozen=True)
class Part:
    """One chapter of the page: what stands in one module.

    names: of functions and classes, or `Class.method` for single methods of a class.
    """

    title: str
    module: str
    names: tuple[str, ...]


PARTS = (
    Part("Register a pair", "DiffeoRegLib.pipeline", ("register", "Result")),
    Part("Settings and presets", "DiffeoRegLib.settings", ("Settings", "Preset")),
    Part("What goes with a pair", "DiffeoRegLib.volumes.pair", ("Masks", "Correspondence")),
    Part("Regions with a stiffness", "DiffeoRegLib.volumes.regions", ("Regions",)),
    Part("Lesions", "DiffeoRegLib.volumes.pathology", ("Pathology",)),
    Part("Register a group", "DiffeoRegLib.groupwise", ("register_group", "GroupResult")),
    Part("Make a template", "DiffeoRegLib.template", ("build_template", "TemplateResult")),
    Part("Evaluate", "DiffeoRegLib.metrics", (
        "dice_per_label", "mean_dice", "hd95_mm", "tre_mm", "inverse_consistency_mm", "Statistics",
    )),
    Part("Volumes", "DiffeoRegLib.volumes.volume", ("Volume",)),
    Part("Read and write images", "DiffeoRegLib.volumes.files", ("read_volume", "write_volume")),
    Part("Read and write series", "DiffeoRegLib.volumes.series_files", ("read_series", "write_series")),
    Part("Read and write landmarks", "DiffeoRegLib.volumes.point_files", ("read_points", "write_points")),
    Part("Read and write transforms", "DiffeoRegLib.volumes.transform_files", (
        "read_transform", "write_transform",
    )),
    Part("Transforms", "DiffeoRegLib.space.transform", (
        "Transform", "AffineTransform", "DisplacementTransform", "CompositeTransform",
    )),
    Part("Grids", "DiffeoRegLib.space.grid", ("Grid",)),
    Part("Apply a transform", "DiffeoRegLib.volumes.resample", ("warp_volume", "warp_labels")),
    Part("Files of a run", "DiffeoRegLib.outputs", ("write_results",)),
    Part("Geodesics that were kept", "DiffeoRegLib.geodesic_files", (
        "read_geodesics", "write_geodesics", "saved_geodesics", "reshoot",
    )),
    Part("Velocities that were kept", "DiffeoRegLib.velocity_files", (
        "read_velocities", "write_velocities", "saved_velocities", "retrace",
    )),
    Part("Methods and models that can be chosen", "DiffeoRegLib.catalog", ("card", "Model")),
    Part("Cards", "DiffeoRegLib.cards", ("Card", "WeightFile", "Measured")),
    Part("What a method is", "DiffeoRegLib.methods.base", ("Method", "Motion", "Progress")),
    Part("Errors", "DiffeoRegLib.errors", (
        "DiffeoRegError", "InputError", "FileFormatError", "WeightsError", "LicenceError", "GeometryError",
        "NoOverlapError", "SettingsError", "UnknownNameError", "OutputError", "OutputExistsError",
        "MemoryLimitError", "DeviceError", "Cancelled",
    )),
    Part("From Slicer's Python console", "DiffeoReg.DiffeoReg", (
        "DiffeoRegLogic.register", "DiffeoRegLogic.registerGroup", "DiffeoRegLogic.path",
        "DiffeoRegLogic.pathSequence", "DiffeoRegLogic.shoot", "DiffeoRegLogic.acceptLicence",
        "DiffeoRegLogic.close",
    )),
    Part("What a run in Slicer gives", "DiffeoReg.DiffeoRegPanel.registration", ("RegistrationResult",)),
    Part("What a group in Slicer gives", "DiffeoReg.DiffeoRegPanel.group", ("GroupResult",)),
)  # fmt: skip

HEAD = """# Python interface

Made from the docstrings by `make docs`; do not edit it by hand. It lists what is meant to be used from
outside; everything else may change. Conventions (RAS millimetres, direction, order of axes) are in
[conventions](conventions.md), examples in the [tutorial](tutorial.md), own methods in [extend](extend.md).
"""

Definition = ast.FunctionDef | ast.ClassDef


def main(arguments: Sequence[str]) -> int:
    """Write the page, or compare it with `--check`; 1 when it is not up to date."""
    text, path = page(ROOT), ROOT / PAGE
    if "--check" in arguments:
        current = path.read_text(encoding="utf-8") if path.is_file() else ""
        print(f"{PAGE.as_posix()} is {'up to date' if current == text else 'old: run `make docs`'}.")
        return 0 if current == text else 1
    path.write_text(text, encoding="utf-8", newline="\n")
    print(f"{PAGE.as_posix()}: {len(text.splitlines())} lines")
    return 0


def page(root: Path, parts: Sequence[Part] = PARTS) -> str:
    """The whole page; raises LookupError for a name that does not exist or says nothing about itself."""
    chapters = [chapter(root, part) for part in parts]
    contents = "\n".join(f"* [{part.title}](#{anchor(part.title)})" for part in parts)
    return "\n".join([HEAD, contents + "\n", *chapters])


def anchor(title: str) -> str:
    """What a heading is called in a link."""
    return "".join(c for c in title.lower().replace(" ", "-") if c.isalnum() or c in "-_")


def chapter(root: Path, part: Part) -> str:
    """One module's part of the page."""
    tree = ast.parse(source_of(root, part.module).read_text(encoding="utf-8"))
    words = [f"## {part.title}\n", f"`from {importable(part.module)} import ...`\n"]
    for name in part.names:
        words += [entry(find(tree, part.module, name), name)]
    return "\n".join(words)


def importable(module: str) -> str:
    """How a module is named in an import: in Slicer, the folder of the module is on the path."""
    return module.removeprefix(f"{SLICER}.") if module.startswith(f"{SLICER}.") else module


def source_of(root: Path, module: str) -> Path:
    """The file of a module; raises LookupError when there is none."""
    path = root.joinpath(*module.split(".")).with_suffix(".py")
    if not path.is_file():
        raise LookupError(f"There is no module '{module}'.")
    return path


def find(tree: ast.AST, module: str, name: str) -> Definition:
    """The definition of `name` or `Class.method`; raises LookupError when there is none."""
    found: ast.AST = tree
    for part in name.split("."):
        body = getattr(found, "body", [])
        inside = [n for n in body if isinstance(n, ast.FunctionDef | ast.ClassDef) and n.name == part]
        if not inside:
            raise LookupError(f"'{module}' has no '{name}'.")
        found = inside[0]
    assert isinstance(found, ast.FunctionDef | ast.ClassDef)
    return found


def entry(node: Definition, name: str) -> str:
    """One function or class: its signature, what it says about itself, and its public methods."""
    words = [f"### `{name}`\n", f"```text\n{signature(node, name)}\n```\n", described(node, name)]
    if isinstance(node, ast.ClassDef):
        for method in methods(node):
            text = " ".join((ast.get_docstring(method) or "").split())
            if not text:
                raise LookupError(f"'{name}.{method.name}' has no docstring.")
            words.append(f"* `{heading(method)}`: {text}")
        if any(methods(node)):
            words.append("")
    return "\n".join(words)


def methods(node: ast.ClassDef) -> Iterator[ast.FunctionDef]:
    """Public methods and properties."""
    return (n for n in node.body if isinstance(n, ast.FunctionDef) and not n.name.startswith("_"))


def heading(method: ast.FunctionDef) -> str:
    """A method as it is called; a property without brackets."""
    marks = [ast.unparse(mark) for mark in method.decorator_list]
    if "property" in marks:
        return f"{method.name} -> {ast.unparse(method.returns)}" if method.returns else method.name
    return one_line(method, method.name, skip_first="staticmethod" not in marks)


def signature(node: Definition, name: str) -> str:
    """How something is called, long ones with an argument a line; of a dataclass, its fields."""
    if isinstance(node, ast.FunctionDef):
        skip = "." in name
        short = one_line(node, name, skip_first=skip)
        return short if len(short) <= 100 else broken(short)
    fields = [
        ast.unparse(n).split(" = field(")[0]
        for n in node.body
        if isinstance(n, ast.AnnAssign) and not ast.unparse(n.target).startswith("_")
    ]
    bases = f"({', '.join(map(ast.unparse, node.bases))})" if node.bases else ""
    return "\n    ".join([f"class {name}{bases}", *fields])


def one_line(node: ast.FunctionDef, name: str, *, skip_first: bool) -> str:
    """`name(arguments) -> result`."""
    arguments = ast.unparse(node.args)
    if skip_first:
        arguments = arguments.partition(", ")[2]
    result = f" -> {ast.unparse(node.returns)}" if node.returns else ""
    return f"{name}({arguments}){result}"


def broken(call: str) -> str:
    """A long call with one argument a line; commas within brackets and quotes stay."""
    start, depth = call.index("(") + 1, 0
    lines, word, quoted = [call[:start]], "", ""
    for place, letter in enumerate(call[start:], start):
        if letter in "'\"":
            quoted = "" if quoted == letter else quoted or letter
        depth += 0 if quoted else {"(": 1, "[": 1, "{": 1, ")": -1, "]": -1, "}": -1}.get(letter, 0)
        if depth < 0:
            return "\n".join([*lines, f"    {word.strip()},", call[place:]])
        if letter == "," and depth == 0 and not quoted:
            lines.append(f"    {word.strip()},")
            word = ""
        else:
            word += letter
    raise LookupError(f"'{call}' has no end.")


def described(node: Definition, name: str) -> str:
    """The docstring: its first sentence as text, the rest as a block that keeps its lines."""
    text = ast.get_docstring(node)
    if not text:
        raise LookupError(f"'{name}' has no docstring.")
    first, _, rest = text.partition("\n\n")
    first = " ".join(first.split())
    return f"{first}\n" + (f"\n```text\n{rest.strip()}\n```\n" if rest.strip() else "")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
