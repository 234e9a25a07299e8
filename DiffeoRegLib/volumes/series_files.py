"""Series of volumes in one file: 4D NIfTI and NRRD in, a list of volumes out, and back."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import SimpleITK as sitk

from DiffeoRegLib.errors import FileFormatError, GeometryError, OutputError
from DiffeoRegLib.volumes.file_guard import quiet_itk, reading, stem_of, suffix_of, writing
from DiffeoRegLib.volumes.itk_images import opened, ras_affine, read_claimed
from DiffeoRegLib.volumes.nifti import affine_of, nifti_image, require_held
from DiffeoRegLib.volumes.placed import placed, storage_array
from DiffeoRegLib.volumes.volume import Volume

NIFTI = (".nii", ".nii.gz")
ITK = (".nrrd", ".nhdr", ".mha", ".mhd", ".seq.nrrd")


def read_series(path: str | Path) -> list[Volume]:
    """The volumes of a 4D file, named after it and numbered; of one slice each they come back 2D.

    NRRD and MetaImage: the fourth axis, or the values of a voxel (a Slicer sequence).
    Raises FileFormatError for a missing, damaged or other file, and one that holds a single volume.
    """
    path = Path(path)
    suffix, name = suffix_of(path), stem_of(path)
    with quiet_itk(), reading(path, "a series"):
        if suffix in NIFTI:
            return _read_nifti(path, name)
        if suffix in ITK:
            return _read_itk(path, name)
        raise FileFormatError(
            f"'{path}' is no series DiffeoReg reads: give a 4D NIfTI (.nii, .nii.gz), NRRD or MetaImage, "
            "or one file per image."
        )


def write_series(volumes: Sequence[Volume], path: str | Path, *, overwrite: bool = False) -> None:
    """Volumes on one grid as one 4D NIfTI file (.nii, .nii.gz); complete or not at all.

    Raises GeometryError for different grids, OutputError, OutputExistsError.
    """
    path = Path(path)
    if suffix_of(path) not in NIFTI:
        raise OutputError(f"'{path.name}': a series is written as .nii.gz or .nii.")
    if not volumes or any(not one.grid.same_as(volumes[0].grid) for one in volumes):
        raise GeometryError("A series is made of one volume or more on one grid.")
    first, affine = storage_array(volumes[0])
    array = np.empty((*first.T.shape, len(volumes)), dtype=np.float32)
    for number, volume in enumerate(volumes):
        array[..., number] = storage_array(volume)[0].T
    with writing(path, overwrite=overwrite) as partial:
        nib.save(nifti_image(array, affine), partial)


def _read_nifti(path: Path, name: str) -> list[Volume]:
    image: Any = nib.load(path)
    shape = tuple(image.shape)
    kind = image.get_data_dtype()
    if kind.fields is not None or np.issubdtype(kind, np.complexfloating):
        raise FileFormatError(f"'{path}' holds colours or complex numbers. Convert it to grey values first.")
    count = int(np.prod(shape[3:])) if len(shape) > 3 else 1
    _require_series(count, path)
    if shape[3] != count and shape[4:] != (count,):
        raise FileFormatError(f"'{path}' has more than four axes ({' x '.join(map(str, shape))}).")
    require_held(image, path)
    affine = affine_of(image, path)[:, [2, 1, 0, 3]]
    data = image.get_fdata(dtype=np.float32, caching="unchanged").reshape((*shape[:3], count))
    return [
        placed(np.ascontiguousarray(data[..., t].T), affine, f"{name}_{t:03d}", labels=False, where=str(path))
        for t in range(count)
    ]


def _read_itk(path: Path, name: str) -> list[Volume]:
    image = read_claimed(opened(path), path)
    affine = ras_affine(image)[:, [2, 1, 0, 3]]
    array = np.asarray(sitk.GetArrayViewFromImage(image))
    if image.GetNumberOfComponentsPerPixel() > 1:
        array = np.moveaxis(array, -1, 0)
        if image.GetDimension() == 2:
            array = array[:, None]
    elif image.GetDimension() < 4:
        array = array[None]
    if array.ndim != 4:
        raise FileFormatError(f"'{path}' is no series of volumes: it has {array.ndim} axes.")
    _require_series(len(array), path)
    return [
        placed(frame, affine, f"{name}_{t:03d}", labels=False, where=str(path))
        for t, frame in enumerate(array)
    ]


def _require_series(count: int, path: Path) -> None:
    if count < 2:
        raise FileFormatError(f"'{path}' holds one volume. Give a 4D file, or two files and more.")
