"""A small whole file of every format DiffeoReg reads, how it is read, and what damage cannot hide in it.

Flipped bits among plain voxels leave no trace: nothing can notice them.  What can be expected of a format is
said by `Sample.sealed_from` (from this byte on a check sum covers the file: an error, or the right result)
and `Sample.plain` (here lie plain voxels: only those whose bytes changed may change).
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import SimpleITK as sitk
import torch

from DiffeoRegLib.catalog import METHOD_CARDS, MODELS, read_models
from DiffeoRegLib.cohorts.table import read_table
from DiffeoRegLib.exchange import Image, pack, unpack
from DiffeoRegLib.geodesic_files import read_geodesics, write_geodesics
from DiffeoRegLib.networks.weights import read_checkpoint
from DiffeoRegLib.space.sample import array_from_tensor
from DiffeoRegLib.space.transform import AffineTransform, DisplacementTransform
from DiffeoRegLib.training.checkpoint import write_checkpoint
from DiffeoRegLib.training.config import read_config
from DiffeoRegLib.training.series import series_from
from DiffeoRegLib.training.sources import collection_from
from DiffeoRegLib.velocity_files import read_velocities, write_velocities
from DiffeoRegLib.volumes.files import read_points, read_volume, write_points, write_volume
from DiffeoRegLib.volumes.series_files import read_series, write_series
from DiffeoRegLib.volumes.transform_files import read_transform, write_transform
from DiffeoRegLib.volumes.volume import Volume
from Testing.geodesic_cases import chained
from Testing.velocity_cases import saved
from Testing.volume_cases import oblique_grid, volume

__all__ = ["SAMPLES", "Content", "Sample", "make"]

Content = dict[str, Any]
"""What was read, as arrays and plain values by name, to compare."""
TRAINING = MODELS.parent / "Training" / "voxelmorph-brain-2d.yaml"
POINTS = np.array([[1.25, -20.5, 33.0], [4.0, 5.5, -6.75], [100.0, 0.0, 7.5]])
LABELS, NII_GZ_HEADER, NIFTI_HEADER = "labels", 10, 352


@dataclass(frozen=True)
class Sample:
    """A whole file and how to read it.

    path: of the file that is damaged.  read: its content.
    sealed_from: first byte that a check sum covers.  plain: where plain voxels lie, first and last + 1 byte.
    bytes_per_voxel: of them.  ends: a shortened file cannot be a whole one; a table or settings can.
    most_mb: of memory that reading may take; a file of some kilobytes has no use for more.
    """

    path: Path
    read: Callable[[], Content]
    sealed_from: int | None = None
    plain: tuple[int, int] = (0, 0)
    bytes_per_voxel: int = 4
    ends: bool = True
    most_mb: float = 400.0


def make(name: str, folder: Path) -> Sample:
    """The sample of a format, in a folder of its own."""
    folder.mkdir(parents=True)
    return SAMPLES[name](folder)


def _content_of(volumes: Volume | list[Volume]) -> Content:
    found = volumes if isinstance(volumes, list) else [volumes]
    return {
        "data": np.stack([array_from_tensor(one.data) for one in found]),
        "place": np.stack([one.grid.world_from_voxel for one in found]),
    }


def _image(name: str, *, labels: bool = False, flat: bool = False) -> Callable[[Path], Sample]:
    """An image as DiffeoReg writes it."""

    def sample(folder: Path) -> Sample:
        path = folder / name
        whole = volume((9, 11) if flat else (7, 8, 9), labels=labels)
        if flat:
            whole = Volume((whole.data.abs() * 100).round(), whole.grid)
        write_volume(whole, path)
        content = path.read_bytes()
        sealed = {".nii.gz": NII_GZ_HEADER, ".png": 0}.get(name[name.index(".") :])
        if name.endswith(".nrrd"):
            sealed = content.index(b"\n\n") + 2
        elif name.endswith(".mha"):
            sealed = content.index(b"LOCAL\n") + 6
        plain = (NIFTI_HEADER, len(content)) if name.endswith(".nii") else (0, 0)
        return Sample(path, lambda: _content_of(read_volume(path, labels=labels)), sealed, plain)

    return sample


def _itk_image(name: str, damaged: str, *, compressed: bool) -> Callable[[Path], Sample]:
    """An image of another program; damaged: which of its files."""

    def sample(folder: Path) -> Sample:
        image = sitk.GetImageFromArray(np.random.default_rng(3).normal(50, 20, (7, 8, 9)).astype(np.float32))
        image.SetSpacing((0.75, 1.25, 2.5))
        sitk.WriteImage(image, str(folder / name), useCompression=compressed)
        path = folder / damaged
        content = path.read_bytes()
        voxels = 7 * 8 * 9 * 4
        plain, sealed = (0, 0), None
        if compressed and damaged != name:
            sealed = 0
        elif compressed and damaged.endswith(".gipl.gz"):
            sealed = NII_GZ_HEADER
        elif not compressed and (damaged == name) == name.endswith((".mha", ".nrrd", ".gipl")):
            plain = (len(content) - voxels, len(content))
        return Sample(path, lambda: _content_of(read_volume(folder / name)), sealed, plain)

    return sample


def _mgh(name: str) -> Callable[[Path], Sample]:
    def sample(folder: Path) -> Sample:
        whole = volume((7, 8, 9))
        array = array_from_tensor(whole.data).T
        nib.save(nib.MGHImage(array, whole.grid.world_from_voxel[:, [2, 1, 0, 3]]), folder / name)
        sealed = NII_GZ_HEADER if name.endswith("z") else None
        return Sample(folder / name, lambda: _content_of(read_volume(folder / name)), sealed)

    return sample


def _series(folder: Path) -> Sample:
    whole = volume((5, 6, 7))
    write_series([whole, Volume(whole.data * 2, whole.grid)], folder / "four.nii.gz")
    return Sample(
        folder / "four.nii.gz", lambda: _content_of(read_series(folder / "four.nii.gz")), NII_GZ_HEADER
    )


def _dicom(folder: Path) -> Sample:
    write_volume(volume((5, 8, 9)), folder / "series")
    path = folder / "series" / "slice_0003.dcm"
    size = path.stat().st_size
    # GDCM takes the length of an element from the file, 32 bits, and so much memory before it reads on.
    return Sample(
        path, lambda: _content_of(read_volume(folder / "series")), plain=(size - 8 * 9 * 2, size),
        bytes_per_voxel=2, most_mb=4096,
    )  # fmt: skip


def _transform_content(path: Path) -> Content:
    points = oblique_grid().corners_mm() * 0.9 + 1
    return {"moved": read_transform(path).map_points(points)}


def _transform(name: str, *, field: bool) -> Callable[[Path], Sample]:
    """A transform as DiffeoReg writes it."""

    def sample(folder: Path) -> Sample:
        path = folder / name
        grid = oblique_grid()
        u_mm = torch.rand(1, 3, *grid.shape, generator=torch.Generator().manual_seed(1))
        matrix = np.eye(4)
        matrix[:3] += np.random.default_rng(2).normal(0, 0.1, (3, 4))
        write_transform(DisplacementTransform(grid, u_mm) if field else AffineTransform(matrix), path)
        content = path.read_bytes()
        sealed = NII_GZ_HEADER if name.endswith(".nii.gz") else None
        if name.endswith(".nrrd"):
            sealed = content.index(b"\n\n") + 2
        elif name.endswith(".mha"):
            sealed = content.index(b"LOCAL\n") + 6
        return Sample(path, lambda: _transform_content(path), sealed)

    return sample


def _matrix(folder: Path) -> Sample:
    path = folder / "greedy.mat"
    path.write_text("1 0 0 5.25\n0 1 0 -3\n0 0 1 2.5\n0 0 0 1\n", encoding="ascii")
    return Sample(path, lambda: _transform_content(path), ends=False)


def _points(name: str, text: str | None = None, *, ends: bool = False) -> Callable[[Path], Sample]:
    def sample(folder: Path) -> Sample:
        path = folder / name
        if text is None:
            write_points(POINTS, path)
        else:
            path.write_text(text, encoding="utf-8")
        return Sample(path, lambda: {"points": read_points(path)}, ends=ends)

    return sample


def _sealed(name: str) -> Callable[[Path], Sample]:
    """Files of our own with a check sum over all of them."""

    def sample(folder: Path) -> Sample:
        path = folder / "kept.safetensors"
        if name == "weights":
            tensors = {"a": torch.rand(3, 4), "b.c": torch.arange(5)}
            write_checkpoint(path, tensors, {"kind": "weights", "network": {"name": "sitreg"}})

            def read() -> Content:
                stored = read_checkpoint(path)
                arrays = {key: array_from_tensor(value) for key, value in stored.tensors.items()}
                return {**arrays, "description": stored.description}
        elif name == "geodesic":
            write_geodesics(path, chained())

            def read() -> Content:
                kept = read_geodesics(path)
                momenta = [array_from_tensor(t) for link in kept.geodesics for t in link.tensors]
                return {**{str(n): m for n, m in enumerate(momenta)}, "matrix": kept.moving_from_fixed}
        else:
            write_velocities(path, saved())

            def read() -> Content:
                kept = read_velocities(path)
                return {"velocity": array_from_tensor(kept.velocity_vox), "matrix": kept.moving_from_fixed}

        return Sample(path, read, sealed_from=0)

    return sample


def _text(
    name: str, text: str, read: Callable[[Path], Any], *, ends: bool = False
) -> Callable[[Path], Sample]:
    """Tables and settings: what the reader gives is compared as text."""

    def sample(folder: Path) -> Sample:
        path = folder / name
        for image in ("a.nii.gz", "b.nii.gz"):
            (folder / image).write_bytes(b"not looked into")
        path.write_text(text, encoding="utf-8")
        return Sample(path, lambda: {"said": repr(read(path))}, ends=ends)

    return sample


def _exchange(folder: Path) -> Sample:
    """A job on its way to the worker: its description; the arrays beside it are plain."""
    array = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
    pack({"kind": "flow", "image": Image(array, np.eye(4), "v"), "fraction": 0.5}, folder, "job")

    def read() -> Content:
        job = unpack(folder, "job")
        return {"job": repr({key: value for key, value in job.items() if key != "image"})}

    return Sample(folder / "job.json", read)


def _models(path: Path) -> Any:
    return read_models(path, {card.name: card for card in METHOD_CARDS})


PAIRS = "fixed,moving,preset\na.nii.gz,b.nii.gz,general\nb.nii.gz,a.nii.gz,general\n"
LEARN2REG = json.dumps({"training": [{"image": "a.nii.gz"}, {"image": "b.nii.gz"}], "name": "t"}, indent=1)
VTK = "# vtk DataFile Version 3.0\nx\nASCII\nDATASET POLYDATA\nPOINTS 2 float\n1 2 3\n4 5.5 6\n"

SAMPLES: dict[str, Callable[[Path], Sample]] = {
    "nii": _image("v.nii"),
    "nii.gz": _image("v.nii.gz"),
    "nii.gz labels": _image("v.nii.gz", labels=True),
    "nrrd": _image("v.nrrd"),
    "seg.nrrd labels": _image("v.seg.nrrd", labels=True),
    "mha": _image("v.mha"),
    "mha labels": _image("v.mha", labels=True),
    "png": _image("v.png", flat=True),
    "tif": _image("v.tif", flat=True),
    "plain nrrd": _itk_image("p.nrrd", "p.nrrd", compressed=False),
    "plain mha": _itk_image("p.mha", "p.mha", compressed=False),
    "nhdr, its header": _itk_image("p.nhdr", "p.nhdr", compressed=True),
    "nhdr, its data": _itk_image("p.nhdr", "p.raw.gz", compressed=True),
    "nhdr, plain data": _itk_image("p.nhdr", "p.raw", compressed=False),
    "mhd, its header": _itk_image("p.mhd", "p.mhd", compressed=False),
    "mhd, its data": _itk_image("p.mhd", "p.zraw", compressed=True),
    "mhd, plain data": _itk_image("p.mhd", "p.raw", compressed=False),
    "gipl": _itk_image("p.gipl", "p.gipl", compressed=False),
    "gipl.gz": _itk_image("p.gipl.gz", "p.gipl.gz", compressed=True),
    "mgh": _mgh("v.mgh"),
    "mgz": _mgh("v.mgz"),
    "series": _series,
    "dicom": _dicom,
    "h5": _transform("t.h5", field=False),
    "h5 field": _transform("t.h5", field=True),
    "tfm": _transform("t.tfm", field=False),
    "txt": _transform("t.txt", field=False),
    "mat": _transform("t.mat", field=False),
    "greedy mat": _matrix,
    "nrrd field": _transform("t.nrrd", field=True),
    "mha field": _transform("t.mha", field=True),
    "nii.gz field": _transform("t.nii.gz", field=True),
    "weights": _sealed("weights"),
    "geodesic": _sealed("geodesic"),
    "velocities": _sealed("velocities"),
    "points csv": _points("p.csv"),
    "points fcsv": _points("p.fcsv"),
    "points mrk.json": _points("p.mrk.json", ends=True),
    "points txt": _points("p.txt"),
    "points vtk": _points("p.vtk", VTK),
    "pairs csv": _text("t.csv", PAIRS, lambda path: read_table(path, ["fixed", "moving", "preset"])),
    "training csv": _text("t.csv", "image,person\na.nii.gz,1\nb.nii.gz,2\n", collection_from),
    "training json": _text("t.json", LEARN2REG, collection_from, ends=True),
    "series csv": _text("t.csv", "series,image\none,a.nii.gz\none,b.nii.gz\n", series_from),
    "training yaml": _text("t.yaml", TRAINING.read_text(encoding="utf-8"), read_config),
    "models": _text("Models.json", MODELS.read_text(encoding="utf-8"), _models, ends=True),
    "exchange": _exchange,
}
