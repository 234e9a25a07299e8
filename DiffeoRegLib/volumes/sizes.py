"""How large an image is, from its header alone: what a run will take is said before anything is read."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import nibabel as nib

from DiffeoRegLib.volumes import itk_images, nifti
from DiffeoRegLib.volumes.file_guard import READ_ERRORS, quiet_itk, suffix_of


def voxels_in(path: str | Path) -> int | None:
    """Voxels a file says it holds; None for folders and pictures, and for what cannot be read.

    Reading comes right after and says what is wrong with a file.
    """
    path = Path(path)
    suffix = suffix_of(path)
    try:
        with quiet_itk():
            if suffix in nifti.SUFFIXES:
                image: Any = nib.load(path)
                return int(math.prod(image.shape))
            if suffix in itk_images.PLACED:
                return int(math.prod(itk_images.opened(path).GetSize()))
    except READ_ERRORS:
        return None
    return None
