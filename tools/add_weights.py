"""Put trained weights into the catalogue: copy the file, state its sum, size and voxel size in Models.json.

Run from anywhere, with DiffeoReg importable:
  python tools/add_weights.py run/best.safetensors --id sitreg-brain-t1 --version 1 --title "..." --use "..."
      --licence CC-BY-NC-4.0 --training-data "..." --training-licence "..." --modality "T1 MR" --anatomy brain
An entry that is there keeps what is not given again; without FILE only its words and measurements change.
With --half the file holds numbers of 16 bits, which networks read as they do any other.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import re
import sys
from collections.abc import Sequence
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from DiffeoRegLib import catalog
from DiffeoRegLib.errors import DiffeoRegError, InputError
from DiffeoRegLib.networks.tvf import TransMorphTVF
from DiffeoRegLib.networks.weights import Stored, network_of, network_spacing_mm, read_weights
from DiffeoRegLib.training.checkpoint import write_checkpoint
from DiffeoRegLib.whole_file import replace_file

RESOURCES = Path(__file__).resolve().parents[1] / "DiffeoRegLib" / "Resources"
"""Of the checkout this file lies in, whichever DiffeoReg is installed."""
MODELS, WEIGHTS = RESOURCES / "Models.json", RESOURCES / "Weights"
MOST_BYTES = 16_000_000
PERMISSIVE = ("Apache-2.0", "BSD-2-Clause", "BSD-3-Clause", "CC-BY-4.0", "CC-BY-SA-4.0", "CC0-1.0", "MIT")
"""Licences that let anyone use a file for anything, as the SPDX list names them."""
WORDS = ("version", "title", "use", "paper", "modality", "anatomy")
MEASURED = {"seconds": float, "memory_mb": float, "voxels": int, "cores": int, "machine": str}


def add(models: Path, weights: Path, given: argparse.Namespace) -> dict[str, Any]:
    """Make or change the entry `given.id` of a file like Models.json, and put its weights into a folder.

    Returns the entry.  Raises InputError for what is missing or does not fit; nothing has changed then.
    """
    if not re.fullmatch(catalog.NAME, given.id):
        raise InputError(f"A model needs an id of small letters, digits and hyphens, not '{given.id}'.")
    content = json.loads(models.read_text(encoding="utf-8"))
    before = next((entry for entry in content["models"] if entry["id"] == given.id), None)
    if before is None and given.file is None:
        raise InputError(f"There is no model '{given.id}' yet: give its weights FILE.")
    others = [entry for entry in content["models"] if entry is not before]
    entry: dict[str, Any] = {"id": given.id, "measured": None, **(before or {})}
    made = weights / f".{given.id}.new"
    try:
        if given.file is not None:
            _take(Path(given.file), given, entry, made)
        _describe(entry, given)
        content["models"] = sorted([*others, _in_order(entry)], key=lambda e: str(e["id"]))
        _write(models, content)
        if given.file is not None:
            made.replace(weights / entry["weights"]["file"])
    finally:
        made.unlink(missing_ok=True)
    used = {e["weights"]["file"] for e in content["models"]}
    if before is not None and before["weights"]["file"] not in used:
        (weights / before["weights"]["file"]).unlink(missing_ok=True)
    return entry


def _describe(entry: dict[str, Any], given: argparse.Namespace) -> None:
    entry |= {name: getattr(given, name) for name in WORDS if getattr(given, name) is not None}
    entry.setdefault("paper", catalog.card(entry["method"]).citation)
    _set_training_data(entry, given)
    _set_measured(entry, given)
    missing = [name for name in (*WORDS, "training_data") if name not in entry]
    if missing:
        raise InputError(f"The model '{given.id}' still needs {', '.join(missing)}.")


def _take(source: Path, given: argparse.Namespace, entry: dict[str, Any], target: Path) -> None:
    """Copy the weights, without the folders of the computer they were trained on, and describe them."""
    stored = read_weights(source)
    network_of(stored, str(source))  # in full precision: what is not finite is named here
    if given.half:
        halves = {name: t.half() if t.is_floating_point() else t for name, t in stored.tensors.items()}
        stored = Stored(halves, stored.description)
    built = network_of(stored, str(source))
    licence = given.licence or entry.get("weights", {}).get("licence")
    version = given.version or entry.get("version")
    if not licence or not version:
        raise InputError("New weights need their --licence and a --version.")
    network = stored.description["network"]["name"]
    methods = [card.name for card in catalog.METHOD_CARDS if card.own_weights and network in card.networks]
    if not methods:
        raise InputError(f"'{source}' holds weights of '{network}', which no method runs.")
    entry["method"] = methods[0]
    entry["spacing_mm"] = list(network_spacing_mm(stored.description, str(source)))
    entry.pop("trained_steps", None)
    if isinstance(built, TransMorphTVF):
        entry["trained_steps"] = built.config.steps
    write_checkpoint(target, stored.tensors, without_folders(stored.description))
    content = target.read_bytes()
    if len(content) > MOST_BYTES and given.url is None:
        raise InputError(
            f"'{source}' takes {len(content) / 1e6:.1f} MB; at most {MOST_BYTES / 1e6:.0f} MB are shipped."
        )
    entry["weights"] = {
        "file": f"{given.id}-{version}.safetensors",
        "url": given.url,
        "sha256": hashlib.sha256(content).hexdigest(),
        "size_bytes": len(content),
        "licence": licence,
        "permissive": licence in PERMISSIVE,
    }


def without_folders(value: Any) -> Any:
    """The same JSON value, with every path in it cut down to its last name."""
    if isinstance(value, dict):
        return {key: without_folders(item) for key, item in value.items()}
    if isinstance(value, list):
        return [without_folders(item) for item in value]
    if isinstance(value, str) and (PurePosixPath(value).is_absolute() or value.startswith((".", "~"))):
        return PurePosixPath(value).name
    if isinstance(value, str) and PureWindowsPath(value).is_absolute():
        return PureWindowsPath(value).name
    return value


def _set_training_data(entry: dict[str, Any], given: argparse.Namespace) -> None:
    known = dict(entry.get("training_data", {}))
    for name, value in (("description", given.training_data), ("licence", given.training_licence)):
        if value is not None:
            known[name] = value
    if set(known) == {"description", "licence"}:
        entry["training_data"] = known


def _set_measured(entry: dict[str, Any], given: argparse.Namespace) -> None:
    measured = {name: getattr(given, name) for name in MEASURED}
    if all(value is None for value in measured.values()):
        return
    if None in measured.values():
        missing = ", ".join(f"--{n.replace('_', '-')}" for n, value in measured.items() if value is None)
        raise InputError(f"What was measured is stated whole; {missing} is missing.")
    entry["measured"] = measured


def _in_order(entry: dict[str, Any]) -> dict[str, Any]:
    """The values of an entry as the schema lists them."""
    names = ["id", "method", *WORDS[:4], "weights", "training_data", *WORDS[4:], "spacing_mm"]
    names += ["trained_steps", "measured"]
    return {name: entry[name] for name in names if name in entry}


def _write(models: Path, content: dict[str, Any]) -> None:
    """Replace the list, once the catalogue can read the new one."""
    text = (json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode()
    trial = models.with_name(f"{models.name}.new")
    try:
        replace_file(trial, text)
        catalog.read_models(trial, {card.name: card for card in catalog.METHOD_CARDS})
    finally:
        trial.unlink(missing_ok=True)
    replace_file(models, text)


def parser() -> argparse.ArgumentParser:
    """The flags."""
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("file", nargs="?", metavar="FILE", help="best or last weights of a training run")
    made.add_argument("--id", required=True, help="name of the model, small letters, digits, hyphens")
    for name in (*WORDS, "licence", "training-data", "training-licence", "machine"):
        made.add_argument(f"--{name}", metavar="TEXT")
    for name, kind in MEASURED.items():
        if kind is not str:
            made.add_argument(f"--{name.replace('_', '-')}", type=kind, metavar="N")
    made.add_argument("--half", action="store_true", help="keep numbers of 16 bits: half the size")
    made.add_argument("--url", help="where the file will be offered instead of being shipped (https)")
    return made


def main(arguments: Sequence[str]) -> int:
    """Add the weights; 1 and a sentence when that is not possible."""
    given = parser().parse_args(arguments)
    try:
        entry = add(MODELS, WEIGHTS, given)
    except DiffeoRegError as error:
        print(error, file=sys.stderr)
        return 1
    print(json.dumps(entry, indent=2, ensure_ascii=False))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
