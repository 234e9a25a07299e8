"""Series in one file: the volumes of a 4D image, one after the other."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import SimpleITK as sitk

from DiffeoRegLib.volumes import itk_images, nifti
from DiffeoRegLib.volumes.file_guard import quiet_itk, reading, stem_of, suffix_of
from DiffeoRegLib.volumes.files import read_volume
from DiffeoRegLib.volumes.placed import placed
from DiffeoRegLib.volumes.volume import Volume


def read_frames(path: str | Path, *, name: str | None = None) -> list[Volume]:
    """The volumes of a 4D NIfTI, NRRD or MetaImage file in their order; of any other image the only one.

    name: the file's stem by default; frame t of several is called `name-t`, counted from 0.
    Raises FileFormatError and GeometryError as `read_volume`.
    """
    path = Path(path)
    name = name or stem_of(path)
    suffix = suffix_of(path)
    with quiet_itk(), reading(path, "an image"):
        if not path.is_dir() and suffix in (".nii", ".nii.gz"):
            image: Any = nib.load(path)
            if len(image.shape) == 4 and image.shape[3] > 1:
                return _of_nifti(image, path, name)
        if not path.is_dir() and suffix in itk_images.PLACED:
            reader = itk_images.opened(path)
            if reader.GetDimension() == 4 and reader.GetSize()[3] > 1:
                return _of_itk(reader, path, name)
    return [read_volume(path, name=name)]


def _of_nifti(image: Any, path: Path, name: str) -> list[Volume]:
    nifti.require_grey(image, path)
    nifti.require_held(image, path)
    affine = nifti.affine_of(image, path)[:, [2, 1, 0, 3]]
    frames = []
    for number in range(image.shape[3]):
        data = np.asarray(image.dataobj[..., number], dtype=np.float32)
        frames.append(placed(data.T, affine, f"{name}-{number}", labels=False, where=str(path)))
    return frames


def _of_itk(reader: Any, path: Path, name: str) -> list[Volume]:
    itk_images.require_grey_volume(
        reader.GetSize()[:3], reader.GetNumberOfComponents(), reader.GetPixelID(), path
    )
    whole = itk_images.read_claimed(reader, path)
    array = np.asarray(sitk.GetArrayViewFromImage(whole))
    affine = itk_images.ras_affine(whole)[:, [2, 1, 0, 3]]
    return [
        placed(frame, affine, f"{name}-{number}", labels=False, where=str(path))
        for number, frame in enumerate(array)
    ]
