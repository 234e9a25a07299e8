"""Check what Slicer's extensions index wants of an extension, as far as a program can without a network.

Run from anywhere: `python tools/check_index.py [ROOT]`.
Prints a line per rule: `ok`, `FAILS` with what is wrong, or `by hand` for what a program cannot tell.
Exit status 1 if a rule fails.  Source: the validators of the index, and its list for reviewers.
"""

from __future__ import annotations

import ast
import fnmatch
import hashlib
import json
import re
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

NAME = "DiffeoReg"
CLONE_BYTES, FILE_BYTES = 100_000_000, 1_024_000
SCHEMA = (
    "https://raw.githubusercontent.com/Slicer/Slicer/main/Schemas/slicer-extension-catalog-entry-schema-v1"
)
REQUIRED = {"$schema": str, "category": str, "scm_url": str}
OPTIONAL = {
    "build_dependencies": list, "build_subdirectory": str, "dicom_support_rule": str, "enabled": bool,
    "scm_revision": str, "scm_type": str, "tier": int,
}  # fmt: skip
LICENCES = ("LICENSE", "LICENCE", "License.txt", "LICENSE.txt", "COPYING", "COPYING.txt")
HEADINGS = ("Install", "Tutorial", "How to cite", "Safety and privacy", "License", "Support")
"""Sections a reader of the extension's page looks for; matched by their first words, in any case."""
BUNDLED = ("numpy", "scipy", "vtk", "SimpleITK", "slicer", "qt", "ctk", "mrml")
"""What Slicer brings along: modules may import it where they are loaded."""
OURS = ("DiffeoRegLib", "DiffeoRegPanel")
BY_HAND = (
    "GitHub: the repository is public and has the topic 3d-slicer-extension",
    "GitHub: Wiki, Projects, Discussions, Releases and Packages are hidden where they are not used",
    "the icon, the screenshots and the sample data answer under their addresses",
    "every dependency is in the index, on the branch the entry is sent to",
    "known patents are mentioned",
    "the extension is built and its tests pass in the full application on Windows, macOS and Linux",
    "the sentence for the Extensions Manager can be understood by someone who is no expert",
    "maintainers answer issues and mentions on the forum",
)

Problems = Iterator[str]


@dataclass(frozen=True)
class Checkout:
    """The repository at `root`."""

    root: Path

    def text(self, name: str) -> str:
        """Content of a file."""
        return (self.root / name).read_text(encoding="utf-8")

    def git(self, *words: str) -> str:
        """What git says; empty where this is no clone."""
        command = ["git", "-C", str(self.root), *words]
        done = subprocess.run(command, capture_output=True, encoding="utf-8", check=False)
        return done.stdout if done.returncode == 0 else ""

    def history_bytes(self, window: int = 0) -> int:
        """Size of what a clone would fetch; 0 where this is no clone.

        window: how far git looks for files that differ little; 0 is quick, and gives a little too much.
        """
        command = ["git", "-C", str(self.root), "pack-objects", "--revs", "--all", "--stdout", "-q"]
        command.append(f"--window={window}")
        nothing = subprocess.DEVNULL
        with subprocess.Popen(command, stdin=nothing, stdout=subprocess.PIPE, stderr=nothing) as packing:
            assert packing.stdout is not None
            count = 0
            while part := packing.stdout.read(1 << 20):
                count += len(part)
            return count

    @property
    def files(self) -> list[str]:
        """What is, or is about to be, in git; everything where this is no clone."""
        listed = self.git("ls-files", "-z", "--cached", "--others", "--exclude-standard").split("\0")
        names = [name for name in listed if name] or [
            path.relative_to(self.root).as_posix() for path in self.root.rglob("*") if path.is_file()
        ]
        return [name for name in names if (self.root / name).is_file()]

    @property
    def entry(self) -> dict[str, Any]:
        """The entry for the index."""
        return dict(json.loads(self.text(f"Resources/docs/{NAME}.json")))

    def cmake(self, name: str) -> list[str]:
        """Values of a variable that the top CMake file sets in a single line, in quotes, literally."""
        pattern = rf'^set\({name} "([^"$\n]+)"\)'
        return re.findall(pattern, self.text("CMakeLists.txt"), re.MULTILINE)


# --- repository ---------------------------------------------------------------------------------------------


def small_clone(here: Checkout) -> Problems:
    """A clone, history and files together, has at most 100 MB."""
    files = sum((here.root / name).stat().st_size for name in here.files)
    history = here.history_bytes()
    if history + files > CLONE_BYTES:
        history = here.history_bytes(window=10)
    if history + files > CLONE_BYTES:
        yield f"{(history + files) / 1e6:.1f} MB: {files / 1e6:.1f} of files, {history / 1e6:.1f} of history"


def small_files(here: Checkout) -> Problems:
    """No file has more than 1 MB but the weights that the catalogue lists."""
    models = json.loads(here.text("DiffeoRegLib/Resources/Models.json"))["models"]
    listed = {f"DiffeoRegLib/Resources/Weights/{model['weights']['file']}" for model in models}
    for name in here.files:
        size = (here.root / name).stat().st_size
        if size > FILE_BYTES and name not in listed:
            yield f"{name} has {size / 1e6:.1f} MB"


def licence(here: Checkout) -> Problems:
    """A permissive licence lies where the index looks."""
    found = [name for name in LICENCES if (here.root / name).is_file()]
    if not found:
        yield "there is no licence file"
    elif not re.search(r"Apache License|MIT License", here.text(found[0])[:500]):
        yield f"{found[0]} is neither Apache nor MIT: the description has to say why"


# --- entry of the index -------------------------------------------------------------------------------------


def entry_schema(here: Checkout) -> Problems:
    """The entry has the keys and kinds of values of the schema."""
    entry, kinds = here.entry, {**REQUIRED, **OPTIONAL}
    yield from (f"{key} is missing" for key in REQUIRED if key not in entry)
    yield from (f"{key} is unknown" for key in entry if key not in kinds)
    wrong = [key for key, kind in kinds.items() if key in entry and type(entry[key]) is not kind]
    yield from (f"{key} is no {kinds[key].__name__}" for key in wrong)
    if wrong:
        return
    if not entry.get("$schema", SCHEMA).startswith(SCHEMA):
        yield "the schema is another one"
    if entry.get("category") != "Registration":
        yield "the category is not Registration"
    if not 1 <= entry.get("tier", 1) <= 5:
        yield "tier must be 1 to 5"
    if not all(isinstance(name, str) for name in entry.get("build_dependencies", [])):
        yield "dependencies are names"


def entry_layout(here: Checkout) -> Problems:
    """The entry is laid out as prettier would: two spaces, lists in a line, keys sorted, a line end."""
    content = (here.root / "Resources" / "docs" / f"{NAME}.json").read_bytes().decode("utf-8")
    entry = json.loads(content)
    lines = [f'  "{key}": {json.dumps(value, ensure_ascii=False)}' for key, value in sorted(entry.items())]
    if content != "{\n" + ",\n".join(lines) + "\n}\n":
        yield "it would be laid out anew"


def names(here: Checkout) -> Problems:
    """Extension, CMake project, entry and repository are named alike."""
    projects = re.findall(r"^project\((\w+)\)$", here.text("CMakeLists.txt"), re.MULTILINE)
    if projects != [NAME]:
        yield f"the CMake project is {projects}, the entry {NAME}"
    if NAME.lower().startswith("slicer"):
        yield "the name begins with Slicer"
    url = here.entry.get("scm_url", "")
    if not re.fullmatch(rf"https://github\.com/[\w-]+/Slicer[-_]?{NAME}\.git", url):
        yield f"'{url}' is no https address of a repository called Slicer{NAME}"
    if here.cmake("EXTENSION_HOMEPAGE") != [url.removesuffix(".git")]:
        yield "the homepage is not the repository"


def cmake_texts(here: Checkout) -> Problems:
    """Contributors and a description of one or two sentences are set."""
    if not here.cmake("EXTENSION_CONTRIBUTORS"):
        yield "there are no contributors"
    description = " ".join(here.cmake("EXTENSION_DESCRIPTION"))
    if not 1 <= len(re.findall(r"[.!?](?:\s|$)", description)) <= 2:
        yield f"the description is not one or two sentences: '{description}'"


def pictures(here: Checkout) -> Problems:
    """Icon and screenshots are single lines of literal addresses, whose files are in the repository."""
    entry = here.entry
    owner = urlsplit(entry.get("scm_url", "")).path.removesuffix(".git")
    start = f"https://raw.githubusercontent.com{owner}/{entry.get('scm_revision')}/"
    for name in ("EXTENSION_ICONURL", "EXTENSION_SCREENSHOTURLS"):
        values = here.cmake(name)
        if len(values) != 1:
            yield f"{name} is not set once, in one line, without variables"
        for address in " ".join(values).split():
            file = here.root / address.removeprefix(start)
            if not address.startswith(start) or not file.is_file():
                yield f"{address} is no file of this repository"
            elif png_size(file) is None:
                yield f"{file.name} is no PNG"
            elif name == "EXTENSION_ICONURL" and png_size(file) != (128, 128):
                yield f"the icon has {png_size(file)} pixels, not 128 x 128"


def png_size(path: Path) -> tuple[int, int] | None:
    """Width and height of a PNG, None for another file."""
    with path.open("rb") as file:
        head = file.read(24)
    return struct.unpack(">II", head[16:24]) if head[:8] == b"\x89PNG\r\n\x1a\n" and len(head) == 24 else None


def dependencies(here: Checkout) -> Problems:
    """CMake and the entry ask for the same extensions."""
    cmake = " ".join(here.cmake("EXTENSION_DEPENDS")).replace("NA", "").split()
    if cmake != here.entry.get("build_dependencies", []):
        yield f"CMake says {cmake}, the entry {here.entry.get('build_dependencies', [])}"


# --- modules ------------------------------------------------------------------------------------------------


def packaged(here: Checkout) -> Problems:
    """Every file of the module and its library is in a list that CMake installs."""
    for folder in ("DiffeoReg", "DiffeoRegLib"):
        text = here.text(f"{folder}/CMakeLists.txt")
        patterns = re.findall(r"\$\{CMAKE_CURRENT_SOURCE_DIR\}/(\S+)", text)
        for name in here.files:
            inside = name.removeprefix(f"{folder}/")
            if inside == name or inside == "CMakeLists.txt":
                continue
            if not any(_globbed(inside, pattern) for pattern in patterns):
                yield f"{name} is not packaged"
    modules = [n for n in here.files if re.fullmatch(r"DiffeoReg/[^/]+\.py", n)]
    if modules != ["DiffeoReg/DiffeoReg.py"]:
        yield f"Slicer would take each of these for a module: {modules}"
    if "WITH_GENERIC_TESTS" not in here.text("DiffeoReg/CMakeLists.txt"):
        yield "the generic tests are not asked for"


def _globbed(name: str, pattern: str) -> bool:
    """As CMake's GLOB_RECURSE: the last part in any folder below the first ones."""
    folder, _, last = pattern.rpartition("/")
    inside = not folder or name.startswith(f"{folder}/")
    return inside and fnmatch.fnmatch(name.rpartition("/")[2], last)


def panel_files(here: Checkout) -> list[str]:
    """What Slicer loads, or loads when the panel opens."""
    return [n for n in here.files if n.startswith("DiffeoReg/") and n.endswith(".py")]


def loads_in_a_new_slicer(here: Checkout) -> Problems:
    """What is imported where modules are loaded comes with Slicer, through all of our own files."""
    waiting, seen = panel_files(here), set[str]()
    while waiting:
        name = waiting.pop()
        if name in seen:
            continue
        seen.add(name)
        for module in _loaded(ast.parse(here.text(name))):
            top = module.split(".")[0]
            if top in OURS:
                waiting += [file for file in _files_of(here, module) if file not in seen]
            elif top not in sys.stdlib_module_names and top not in BUNDLED:
                yield f"{name} imports {module} where it is loaded"


def _loaded(tree: ast.Module) -> Iterator[str]:
    """Modules imported outside functions, but not those for the type checker alone."""
    waiting: list[ast.AST] = list(tree.body)
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            waiting += node.orelse
        elif not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            waiting += ast.iter_child_nodes(node)


def _files_of(here: Checkout, module: str) -> list[str]:
    """Files that importing a dotted name of ours loads."""
    parts = module.split(".")
    base = "DiffeoReg/" if parts[0] == "DiffeoRegPanel" else ""
    found = []
    for count in range(1, len(parts) + 1):
        place = base + "/".join(parts[:count])
        found += [n for n in (f"{place}.py", f"{place}/__init__.py") if (here.root / n).is_file()]
    return found


def nothing_happens_when_loaded(here: Checkout) -> Problems:
    """Module files define things, and do nothing else, when they are loaded."""
    definitions = (ast.Import, ast.ImportFrom, ast.FunctionDef, ast.ClassDef, ast.Assign, ast.AnnAssign)
    for name in panel_files(here):
        for node in ast.parse(here.text(name)).body:
            text = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
            typing = isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
            if not (text or typing or isinstance(node, definitions)):
                yield f"{name}:{node.lineno} runs when it is loaded"


def torch_by_its_extension(here: Checkout) -> Problems:
    """PyTorch comes through the PyTorch extension, never by pip."""
    text = here.text("DiffeoReg/DiffeoRegPanel/install.py")
    if 'import_module("PyTorchUtils")' not in text:
        yield "the PyTorch extension is not used"
    for name in panel_files(here):
        for call in (n for n in ast.walk(ast.parse(here.text(name))) if isinstance(n, ast.Call)):
            words = [n.value for n in ast.walk(call) if isinstance(n, ast.Constant)]
            pip = re.search(r"pip_(install|ensure)|install_wheels", ast.unparse(call.func))
            if pip and any(isinstance(word, str) and word.startswith("torch") for word in words):
                yield f"{name}:{call.lineno} installs torch by pip"
    (wheels,) = re.findall(r"^WHEELS = \((.*)\)$", text, re.MULTILINE)
    if "torch" in wheels:
        yield "torch is among the packages for pip"


def sample_data(here: Checkout) -> Problems:
    """The tutorial's images are registered in Sample Data, with the check sums of our files."""
    text = here.text("DiffeoReg/DiffeoRegPanel/samples.py")
    calls = [node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Call)]
    if not re.search(r'checksums=\[f"SHA256:', text):
        yield "samples are registered without check sums"
    files = [
        [ast.literal_eval(word) for word in c.args[:2]] for c in calls if ast.unparse(c.func) == "SampleFile"
    ]
    if not files:
        yield "there are no samples"
    for path, sha256 in files:
        file = here.root / "Resources" / "SampleData" / path
        if not file.is_file() or hashlib.sha256(file.read_bytes()).hexdigest() != sha256:
            yield f"{path} is not the file whose check sum is registered"


def downloads_can_be_deleted(here: Checkout) -> Problems:
    """The panel has a button that deletes what was downloaded, and one that chooses where it lies."""
    panel = here.text("DiffeoReg/DiffeoRegPanel/panel_setup.py")
    for button in ("clearWeightsButton", "browseWeightsButton"):
        if f'name="{button}"' not in here.text("DiffeoReg/Resources/UI/DiffeoReg.ui"):
            yield f"the panel has no {button}"
        elif f"(ui.{button}, " not in panel:
            yield f"{button} does nothing"


# --- the page -----------------------------------------------------------------------------------------------


def readme(here: Checkout) -> Problems:
    """The page begins with one or two sentences and a picture, and has the sections that users look for."""
    text = here.text("README.md")
    head, *sections = re.split(r"^## ", text, flags=re.MULTILINE)
    first = next((p for p in head.split("\n\n")[1:] if p.strip() and not p.startswith(("!", "["))), "")
    if not 1 <= len(re.findall(r"[.!?](?=\s|$|\*)", first)) <= 2:
        yield "the first paragraph is not one or two sentences"
    if not re.search(r"!\[[^]]+\]\([^)]+\.png\)", "".join([head, *sections[:1]])):
        yield "there is no picture near the top"
    titles = [section.splitlines()[0].strip().lower() for section in sections]
    for heading in HEADINGS:
        known = (heading.lower(), heading.lower().replace("license", "licence"))
        if not any(title.startswith(known) for title in titles):
            yield f"there is no section '{heading}'"
    if "Diffeomorphic Registration (DiffeoReg)" not in text:
        yield "the module is not named as in Slicer"


CHECKS: tuple[Callable[[Checkout], Problems], ...] = (
    small_clone, small_files, licence, entry_schema, entry_layout, names, cmake_texts, pictures, dependencies,
    packaged, loads_in_a_new_slicer, nothing_happens_when_loaded, torch_by_its_extension, sample_data,
    downloads_can_be_deleted, readme,
)  # fmt: skip


def findings(root: Path) -> dict[str, list[str]]:
    """What is wrong, by the sentence of each rule."""
    here = Checkout(root)
    return {(check.__doc__ or "").strip(): list(check(here)) for check in CHECKS}


def main(arguments: list[str]) -> int:
    """Print every rule and how it stands; 1 when one fails."""
    found = findings(Path(arguments[0]) if arguments else Path(__file__).resolve().parents[1])
    for rule, problems in found.items():
        print(f"{'FAILS  ' if problems else 'ok     '} {rule}")
        for problem in problems:
            print(f"         {problem}")
    for rule in BY_HAND:
        print(f"by hand {rule}")
    return 1 if any(found.values()) else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
