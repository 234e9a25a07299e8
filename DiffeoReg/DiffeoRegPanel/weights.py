"""The trained weights on this computer: are they there, are they the right ones, fetch and delete them."""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import IO, Any

from DiffeoRegLib.catalog import Card, WeightFile, card, check_weights_choice, linear_model, weight_path
from DiffeoRegLib.errors import FileFormatError, InputError, LicenceError, OutputError, WeightsError
from DiffeoRegLib.settings import Settings
from DiffeoRegPanel.download import fetch
from DiffeoRegPanel.machine import Machine

OURS = "fetched_by_diffeoreg.json"
"""In the models folder: which files were put there by us, and so may be deleted by us."""
BLOCK = 1 << 20
Download = Callable[[str, Path, str, int], None]


@dataclass(frozen=True)
class WeightState:
    """How a card's weights stand.

    kind: "not needed", "present", "missing" or "wrong checksum" (the worst of its files).
    sentence: for the user.  files: kind of every file.
    """

    kind: str
    sentence: str
    files: dict[str, str]

    @property
    def ok(self) -> bool:
        """The method can run."""
        return self.kind in ("not needed", "present")


class Weights:
    """The folder of weights that `machine` names.

    download: (url, path, sha256, size in bytes), raises OutputError; download.fetch unless given.
    """

    def __init__(self, machine: Machine, download: Download | None = None) -> None:
        self.machine = machine
        self._download = download or fetch
        self._known: dict[tuple[str, int, int], str] = {}

    def path_of(self, card: Card, weight: WeightFile) -> Path:
        """Where a file of weights lies, or would."""
        return weight_path(card, weight, self.machine.models_folder)

    def state(self, card: Card) -> WeightState:
        """Present, missing or wrong; unchanged files are read for their check sum only once."""
        if not card.weights:
            return WeightState("not needed", "This method needs no weights.", {})
        files = {weight.file: self._kind(card, weight) for weight in card.weights}
        spoilt = [w.file for w in card.weights if w.shipped and files[w.file] != "present"]
        if spoilt:
            sentence = f"Weights that come with DiffeoReg are not whole ({', '.join(spoilt)}): reinstall it."
            return WeightState(_worst(files), sentence, files)
        if "wrong checksum" in files.values():
            wrong = ", ".join(name for name, kind in files.items() if kind == "wrong checksum")
            sentence = (
                f"Weights are damaged or of another version ({wrong}): download them again, or import "
                "the right files."
            )
            return WeightState("wrong checksum", sentence, files)
        if "missing" in files.values():
            size = sum(w.size_bytes for w in card.weights if files[w.file] == "missing") / 1e6
            sentence = f"Weights are missing ({size:.3g} MB): press Download, or import a file you have."
            return WeightState("missing", sentence, files)
        if all(weight.shipped for weight in card.weights):
            return WeightState("present", "Weights come with DiffeoReg.", files)
        folder = self.path_of(card, next(w for w in card.weights if not w.shipped)).parent
        return WeightState("present", f"Weights are in '{folder}'.", files)

    def licences_to_accept(self, card: Card) -> tuple[str, ...]:
        """Licences of the card that were not accepted on this computer yet."""
        return tuple(x for x in card.licences_to_accept if x not in self.machine.accepted_licences)

    def settings_for(self, card: Card, settings: Settings) -> Settings:
        """The settings with what the worker must know of this computer: fetched weights, accepted licences.

        A network that finds the initial alignment counts, too.
        Raises LicenceError when a licence has to be accepted first, WeightsError when weights are missing or
        wrong, SettingsError for weights given to a method that has no use for them.
        """
        check_weights_choice(card, settings.weights)
        aligner = None if settings.init_network is None else linear_model(settings.init_network)
        if not card.trained and aligner is None:
            return settings
        accepted = tuple(sorted({*settings.accepted_licences, *self.machine.accepted_licences}))
        settings = settings.with_changes(accepted_licences=accepted)
        if aligner is not None:
            self._require_whole(aligner, accepted)
        if not card.trained:
            return settings
        if settings.weights is not None:
            # A file of the user: the worker looks at it, from another folder than this process.
            return settings.with_changes(weights=str(Path(settings.weights).expanduser().absolute()))
        self._require_whole(card, accepted)
        fetched = [self.path_of(card, weight) for weight in card.weights if not weight.shipped]
        return settings.with_changes(weights=str(fetched[0])) if fetched else settings

    def download(self, card: Card, progress: Callable[[str], None] | None = None) -> None:
        """Fetch the card's files that are missing or wrong.

        Raises InputError when a licence has to be accepted first, OutputError when a file cannot be fetched
        or written, or its place is taken by one that DiffeoReg has not put there; files that were there stay.
        """
        self._require_licences(card)
        for weight in card.weights:
            if weight.shipped or self._kind(card, weight) == "present":
                continue
            if progress is not None:
                progress(f"Downloading {weight.file} ({weight.size_bytes / 1e6:.3g} MB)")
            assert weight.url is not None  # it is not shipped
            with self._part_of(card, weight) as part:
                self._download(weight.url, part, weight.sha256, weight.size_bytes)

    def browse(self, folder: Path | str) -> None:
        """Use another folder for weights from now on; nothing is moved.

        Raises InputError when it is no folder.
        """
        if not Path(folder).is_dir():
            raise InputError(f"'{folder}' is no folder; choose one that exists.")
        self.machine.models_folder = Path(folder).resolve()

    def clear(self, card: Card) -> int:
        """Delete the card's files that were downloaded or imported by us; returns bytes freed.

        Files that come with DiffeoReg and those the user put into the folder stay.  Raises OutputError when
        a file cannot be deleted.
        """
        freed, ours = 0, self._ours()
        for weight in card.weights:
            path, entry = self.path_of(card, weight), f"{card.name}/{weight.file}"
            if weight.shipped or entry not in ours:
                continue
            try:
                freed += path.stat().st_size if path.exists() else 0
                path.unlink(missing_ok=True)
                self._write_ours(ours := ours - {entry})
            except OSError as error:
                raise OutputError(f"'{path}' could not be deleted: {error.strerror or error}.") from error
        return freed

    def import_offline(self, card: Card, source: Path | str) -> list[str]:
        """Take weights from a file or zip the user has; returns the names of the files taken.

        Only files of the right check sum are taken.  Raises InputError when a licence has to be accepted
        first or nothing in the source belongs to the card, FileFormatError for an unsafe or damaged zip,
        OutputError when they cannot be written.
        """
        self._require_licences(card)
        source = Path(source)
        if not card.weights:
            raise InputError(f"'{card.title}' needs no weights.")
        if all(weight.shipped for weight in card.weights):
            raise InputError(
                f"The weights of '{card.title}' come with DiffeoReg: nothing has to be imported."
            )
        if not source.is_file():
            raise InputError(f"There is no file '{source}'.")
        taken = self._from_zip(card, source) if zipfile.is_zipfile(source) else self._from_file(card, source)
        if not taken:
            names = ", ".join(weight.file for weight in card.weights)
            raise InputError(
                f"'{source.name}' does not hold the weights of '{card.title}' ({names}), or another version "
                "of them: the check sums differ."
            )
        return taken

    def _from_file(self, card: Card, source: Path) -> list[str]:
        for weight in _fetched(card):
            if source.stat().st_size == weight.size_bytes and self._digest(source) == weight.sha256:
                with self._part_of(card, weight) as part, source.open("rb") as stream:
                    _copy(stream, part, weight)
                return [weight.file]
        return []

    def _from_zip(self, card: Card, source: Path) -> list[str]:
        taken = []
        try:
            with zipfile.ZipFile(source) as archive:
                _refuse_unsafe(archive, source)
                for weight in _fetched(card):
                    for member in _members_for(archive, weight):
                        with archive.open(member) as stream:
                            if _digest_of(stream, weight.size_bytes) != weight.sha256:
                                continue
                        with self._part_of(card, weight) as part, archive.open(member) as stream:
                            _copy(stream, part, weight)
                        taken.append(weight.file)
                        break
        except (zipfile.BadZipFile, zlib.error, RuntimeError, EOFError, OSError, ValueError) as error:
            raise FileFormatError(f"'{source.name}' is damaged or encrypted: {error}.") from error
        return taken

    def _require_whole(self, card: Card, accepted: Collection[str]) -> None:
        """Raises LicenceError for a licence not among these, WeightsError for weights missing or wrong."""
        self._require_licences(card, accepted)
        state = self.state(card)
        if not state.ok:
            raise WeightsError(state.sentence)

    def _require_licences(self, card: Card, accepted: Collection[str] = ()) -> None:
        """accepted: for this run, beside those accepted on this computer."""
        open_ones = [name for name in self.licences_to_accept(card) if name not in accepted]
        if open_ones:
            raise LicenceError(licence_sentence(card, open_ones))

    def _kind(self, card: Card, weight: WeightFile) -> str:
        path = self.path_of(card, weight)
        if not path.is_file():
            return "missing"
        right = path.stat().st_size == weight.size_bytes and self._digest(path) == weight.sha256
        return "present" if right else "wrong checksum"

    def _digest(self, path: Path) -> str:
        status = path.stat()
        key = (str(path), status.st_mtime_ns, status.st_size)
        if key not in self._known:
            with path.open("rb") as stream:
                self._known[key] = _digest_of(stream, status.st_size)
        return self._known[key]

    @contextmanager
    def _part_of(self, card: Card, weight: WeightFile) -> Iterator[Path]:
        """A file to fill; it takes its name, and is noted as ours, only once its check sum is right."""
        target = self.path_of(card, weight)
        entry = f"{card.name}/{weight.file}"
        if target.exists() and entry not in self._ours():
            raise OutputError(
                f"'{target}' is in the way and was not put there by DiffeoReg: move or delete it, then try "
                "again."
            )
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            folder = Path(tempfile.mkdtemp(prefix="part-", dir=target.parent))
        except OSError as error:
            raise _not_writable(target.parent, error) from error
        try:
            part = folder / weight.file
            yield part
            if not part.is_file() or self._digest(part) != weight.sha256:
                raise OutputError(
                    f"'{weight.file}' did not arrive whole: its check sum is wrong. Try again, or use Import."
                )
            part.replace(target)
            self._write_ours(self._ours() | {entry})
        except OSError as error:
            raise _not_writable(target.parent, error) from error
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def _ours(self) -> frozenset[str]:
        path = self.machine.models_folder / OURS
        if not path.is_file():
            return frozenset()
        try:
            listed: Any = json.loads(path.read_text(encoding="utf-8"))
        except ValueError:
            return frozenset()  # an unreadable list: nothing counts as ours, nothing is deleted
        return frozenset(map(str, listed)) if isinstance(listed, list) else frozenset()

    def _write_ours(self, entries: frozenset[str]) -> None:
        path = self.machine.models_folder / OURS
        path.write_text(json.dumps(sorted(entries), indent=1) + "\n", encoding="utf-8")


def with_weights(request: Any, machine: Callable[[], Machine]) -> Any:
    """A request, of a pair or a group, with the weights and accepted licences of this computer.

    Only where networks are used.
    machine: asked only then.  Raises UnknownNameError, and what `Weights.settings_for` raises.
    """
    method = card(request.settings.method)
    if not (method.trained or request.settings.weights or request.settings.init_network):
        return request
    return replace(request, settings=Weights(machine()).settings_for(method, request.settings))


def licence_sentence(card: Card, licences: Iterable[str]) -> str:
    """What is to be done before weights under these licences are used."""
    return (
        f"The weights of '{card.title}' are under {', '.join(licences)}: read this licence, and tick under "
        "Setup that you accept it."
    )


def _fetched(card: Card) -> list[WeightFile]:
    return [weight for weight in card.weights if not weight.shipped]


def _worst(files: Mapping[str, str]) -> str:
    return "wrong checksum" if "wrong checksum" in files.values() else "missing"


def _digest_of(stream: IO[bytes], most: int) -> str:
    """SHA-256 of a stream, empty when it is longer than `most` bytes."""
    digest, size = hashlib.sha256(), 0
    while block := stream.read(BLOCK):
        size += len(block)
        if size > most:
            return ""
        digest.update(block)
    return digest.hexdigest()


def _copy(stream: IO[bytes], part: Path, weight: WeightFile) -> None:
    """Write at most the weight's size; a longer stream fails its check sum later."""
    left = weight.size_bytes
    with part.open("wb") as out:
        while left > 0 and (block := stream.read(min(BLOCK, left))):
            out.write(block)
            left -= len(block)


def _members_for(archive: zipfile.ZipFile, weight: WeightFile) -> list[zipfile.ZipInfo]:
    """Entries of the right name and size, in any folder of the zip."""
    return [
        entry for entry in archive.infolist()
        if PurePosixPath(entry.filename).name == weight.file and entry.file_size == weight.size_bytes
    ]  # fmt: skip


def _refuse_unsafe(archive: zipfile.ZipFile, source: Path) -> None:
    """Raises FileFormatError for entries that lead out of their folder."""
    for entry in archive.infolist():
        name = entry.filename.replace("\\", "/")
        path = PurePosixPath(name)
        if path.is_absolute() or ".." in path.parts or PureWindowsPath(name).drive:
            raise FileFormatError(f"'{source.name}' is not used: its entry '{name}' leads out of the folder.")


def _not_writable(folder: Path, error: OSError) -> OutputError:
    return OutputError(
        f"Weights cannot be written to '{folder}': {error.strerror or error}. "
        "Choose another folder with Browse."
    )
