"""Subjects brought onto the one grid a network is trained on, once: aligned, in [0, 1], kept on the disk."""

from __future__ import annotations

import hashlib
import json
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from DiffeoRegLib.errors import InputError, SettingsError
from DiffeoRegLib.methods.affine import initial_alignment
from DiffeoRegLib.settings import Settings
from DiffeoRegLib.space.grid import Grid, Matrix
from DiffeoRegLib.space.sample import tensor_from_array
from DiffeoRegLib.training.subjects import Subject
from DiffeoRegLib.volumes.checks import check_pair
from DiffeoRegLib.volumes.common_grid import common_grid
from DiffeoRegLib.volumes.file_guard import writing
from DiffeoRegLib.volumes.files import read_points, read_volume
from DiffeoRegLib.volumes.intensity import (
    finite,
    intensity_window,
    normalise,
    resample_affine,
)
from DiffeoRegLib.volumes.volume import Volume

VERSION = 1
"""Raised when preparation changes, so that what older versions kept is not used."""
CHUNK_BYTES = 2**20
SHARES = 256
"""A pathology is kept in this many shares of a voxel."""

Prepared = dict[str, Tensor]
"""image (1, *shape) float32 in [0, 1]; labels (1, *shape) int32, mask and pathology (1, *shape) float32 in
[0, 1] and points_vox (n, d) where the subject has them; moving_from_common (4, 4) float64, RAS mm."""


@dataclass(frozen=True)
class Preparation:
    """What every image becomes before the network sees it.

    shape: voxels of the working grid per tensor axis; 3D: along S, A, R.  spacing_mm: per axis.
    reference: the image all others are aligned to; the grid is centred on its object.
    alignment: identity, geometry, mass, rigid or affine.
    window: intensities that become 0 and 1, e.g. (-1000, 500) for CT; None = robust, per image.
    Raises SettingsError for values that make no sense.
    """

    shape: tuple[int, ...]
    spacing_mm: tuple[float, ...]
    reference: Path
    alignment: str = "affine"
    window: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        if len(self.shape) not in (2, 3) or len(self.shape) != len(self.spacing_mm):
            raise SettingsError(
                "The working grid needs two or three numbers for its shape and its spacing_mm."
            )
        if min(self.shape) < 4 or not all(0 < s < float("inf") for s in self.spacing_mm):
            raise SettingsError(
                "The working grid needs 4 or more voxels along each axis and a spacing above 0 mm."
            )
        if self.alignment == "auto":
            raise SettingsError(
                "The alignment of training images is stated: affine, rigid, mass, ... not 'auto'."
            )
        if self.window is not None and not self.window[0] < self.window[1]:
            raise SettingsError(f"The intensity window rises, unlike {self.window}.")
        Settings(init=self.alignment)  # knows the names, and says them


class Store:
    """Prepared subjects, made when first asked for and then read from a folder.

    folder: None = nothing is kept on the disk.  in_memory: how many subjects are kept in memory, too.
    A file is named by a hash of the contents of everything it was made of; a damaged one is made again.
    Raises InputError when the reference and the working grid do not fit.
    """

    def __init__(self, preparation: Preparation, folder: Path | None = None, *, in_memory: int = 0) -> None:
        self.preparation = preparation
        self.folder = folder
        self.in_memory = in_memory
        self.reference = finite(read_volume(preparation.reference))
        if self.reference.grid.dim != len(preparation.shape):
            raise InputError(
                f"The reference '{self.reference.name}' is {self.reference.grid.dim}D, the working grid "
                f"{len(preparation.shape)}D: give it {self.reference.grid.dim} numbers."
            )
        self.grid = common_grid(self.reference, preparation.shape, preparation.spacing_mm)
        self._kept: OrderedDict[Subject, Prepared] = OrderedDict()
        self._digests: dict[tuple[str, int, int], str] = {}
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)

    def load(self, subject: Subject) -> Prepared:
        """The prepared subject, a copy of its own.

        Raises InputError, naming the subject, for files that cannot be used, OutputError for a full disk.
        """
        if subject in self._kept:
            self._kept.move_to_end(subject)
        else:
            prepared = self._read_or_make(subject)
            if self.in_memory < 1:
                return prepared
            self._kept[subject] = prepared
            if len(self._kept) > self.in_memory:
                self._kept.popitem(last=False)
        return {key: value.clone() for key, value in self._kept[subject].items()}

    def path_of(self, subject: Subject) -> Path | None:
        """Where the prepared subject is kept; None without a folder.

        Raises InputError for files that cannot be read.
        """
        if self.folder is None:
            return None
        facts = {
            "version": VERSION,
            "shape": self.preparation.shape,
            "spacing_mm": self.preparation.spacing_mm,
            "alignment": self.preparation.alignment,
            "window": self.preparation.window,
            "reference": self._digest(self.preparation.reference),
            "files": [
                None if path is None else self._digest(path)
                for path in (subject.image, subject.labels, subject.mask, subject.points)
            ],
        }
        if subject.pathology is not None:  # or what older versions kept of healthy images would not be found
            facts["pathology"] = self._digest(subject.pathology)
        key = hashlib.sha256(json.dumps(facts, sort_keys=True).encode("utf-8")).hexdigest()
        return self.folder / f"{key[:32]}.safetensors"

    def _read_or_make(self, subject: Subject) -> Prepared:
        path = self.path_of(subject)
        if path is not None and path.is_file():
            kept = _kept_file(path)
            if kept is not None:
                return kept
        prepared = prepare_subject(subject, self.reference, self.grid, self.preparation)
        if path is not None:
            needed = sum(value.numel() * value.element_size() for value in prepared.values())
            with writing(path, overwrite=True, needed_bytes=needed) as partial:
                save_file({key: value.contiguous() for key, value in prepared.items()}, partial)
        return prepared

    def _digest(self, path: Path) -> str:
        """Hash of a file's content, or of all files of a DICOM folder; once per state of the file."""
        files = sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]
        total = hashlib.sha256()
        for file in files:
            try:
                state = file.stat()
                known = (str(file), state.st_mtime_ns, state.st_size)
                if known not in self._digests:
                    self._digests[known] = _hash(file)
            except OSError as error:
                raise InputError(f"'{file}' cannot be read: {error.strerror}.") from error
            total.update(f"{file.relative_to(path)} {self._digests[known]}\n".encode())
        return total.hexdigest()


def prepare_subject(subject: Subject, reference: Volume, grid: Grid, preparation: Preparation) -> Prepared:
    """A subject on the working grid, read through its alignment to the reference.

    Raises InputError for unusable files, with the subject's name in the sentence.
    """
    try:
        image = read_volume(subject.image, name=subject.name)
        check_pair(reference, image)
        image = finite(image)
        matrix = _alignment(reference, image, preparation)
        window = preparation.window or intensity_window(image)
        prepared = {
            "image": normalise(resample_affine(image, grid, matrix), window)[0],
            "moving_from_common": tensor_from_array(matrix, torch.float64),
        }
        if subject.labels is not None:
            labels = _same_dimension(read_volume(subject.labels, labels=True), image)
            read = resample_affine(labels, grid, matrix, mode="nearest", outside="zeros")
            prepared["labels"] = read.round().to(torch.int32)[0]
        for kind, path in (("mask", subject.mask), ("pathology", subject.pathology)):
            if path is not None:
                mask = _same_dimension(read_volume(path, labels=True), image)
                inside = Volume((mask.data != 0).float(), mask.grid, mask.name)
                prepared[kind] = resample_affine(inside, grid, matrix, outside="zeros")[0]
        if "pathology" in prepared:  # rounding errors of the reading are no lesion
            prepared["pathology"] = (prepared["pathology"] * SHARES).round() / SHARES
        if subject.points is not None:
            points = read_points(subject.points, grid=image.grid)
            back = np.linalg.inv(matrix)
            common = grid.index_from_world(points @ back[:3, :3].T + back[:3, 3])
            prepared["points_vox"] = tensor_from_array(common, torch.float32)
    except InputError as error:
        raise InputError(f"Subject '{subject.name}': {error}") from error
    return prepared


def _alignment(reference: Volume, image: Volume, preparation: Preparation) -> Matrix:
    """RAS mm 4x4 from the reference's space to the image's; the reference itself is not moved."""
    if reference.grid.same_as(image.grid) and torch.equal(reference.data, image.data):
        return np.eye(4)
    return initial_alignment(reference, image, Settings(init=preparation.alignment))


def _same_dimension(labels: Volume, image: Volume) -> Volume:
    if labels.grid.dim != image.grid.dim:
        raise InputError(f"'{labels.name}' is {labels.grid.dim}D but its image is {image.grid.dim}D.")
    if int(labels.data.max()) >= 2**24:
        raise InputError(f"'{labels.name}' has labels of 2^24 and more: renumber them.")
    return labels


def _kept_file(path: Path) -> Prepared | None:
    """What a file of the store holds, or None if it is damaged and has to be made again."""
    try:
        content = load_file(path)
    except (SafetensorError, OSError):
        return None
    return content if "image" in content else None


def _hash(file: Path) -> str:
    digest = hashlib.sha256()
    with file.open("rb") as stream:
        while chunk := stream.read(CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()
