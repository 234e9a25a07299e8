"""NIfTI and FreeSurfer files, by nibabel; their affines are RAS already."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np

from DiffeoRegLib.errors import FileFormatError
from DiffeoRegLib.space.grid import Matrix
from DiffeoRegLib.volumes.check_sums import require_sums
from DiffeoRegLib.volumes.claims import require_room, unpacked_bytes
from DiffeoRegLib.volumes.placed import NEARLY_ORTHOGONAL, placed, shear_of, storage_array
from DiffeoRegLib.volumes.volume import Volume

SUFFIXES = (".nii", ".nii.gz", ".hdr", ".img", ".img.gz", ".hdr.gz", ".mgz", ".mgh")
SCANNER, ALIGNED_TO_NOTHING = 1, 0
MM_PER_UNIT = {"meter": 1000.0, "mm": 1.0, "micron": 0.001, "unknown": 1.0}


def read_nifti(path: Path, name: str, *, labels: bool) -> Volume:
    """Volume of a NIfTI or MGH file; raises FileFormatError for what is not one grey volume."""
    image: Any = nib.load(path)
    _require_grey_volume(image, path)
    require_held(image, path)
    data = np.asanyarray(image.dataobj) if labels else image.get_fdata(dtype=np.float32, caching="unchanged")
    data = data.reshape((*data.shape, 1, 1)[:3]) if data.ndim < 3 else data.reshape(data.shape[:3])
    return placed(data.T, affine_of(image, path)[:, [2, 1, 0, 3]], name, labels=labels, where=str(path))


def require_held(image: Any, path: Path) -> None:
    """Raises FileFormatError for a header that promises more voxels than its file or this computer can hold.

    To be called before the voxels are touched. Raises what `require_sums` raises for a damaged packed file.
    """
    files = [Path(holder.filename) for holder in image.file_map.values() if holder.filename]
    packed = any(file.suffix.lower() in (".gz", ".mgz") for file in files)
    most = unpacked_bytes(files, packed=packed)
    voxels, size = math.prod(image.shape), image.get_data_dtype().itemsize
    require_room(path, voxels, size, most)
    require_sums(path, files, voxels * size)


def write_nifti(volume: Volume, path: Path) -> None:
    """One NIfTI-1 file in mm, with the affine as sform and, unless it is sheared, as qform."""
    array, affine = storage_array(volume)
    nib.save(nifti_image(array.T, affine), path)


def nifti_image(array: Any, affine: Matrix) -> Any:
    """NIfTI image of an (i, j, k, ...) array; raises nothing a correct Grid could cause."""
    # NIfTI-1 counts voxels in 16 bits.
    kind = nib.Nifti1Image if max(array.shape) < 2**15 else nib.Nifti2Image
    image = kind(array, affine)
    image.header.set_xyzt_units("mm")
    image.set_sform(affine, SCANNER)
    # A qform cannot hold shear. ITK would take it before the sform it cannot hold either: better it refuses.
    sheared = shear_of(affine) > NEARLY_ORTHOGONAL
    image.set_qform(affine, ALIGNED_TO_NOTHING if sheared else SCANNER, strip_shears=True)
    return image


def affine_of(image: Any, path: Path) -> Matrix:
    """RAS mm from (i, j, k): of sform and qform the one ITK, and so Slicer, takes.

    The sform when its code is 1 or the qform's is 0; else the qform; with both 0, axes along LPS from
    the origin. A sheared sform ITK cannot read is taken where there is no qform. Voxel sizes follow
    pixdim, as in ITK.
    """
    if not isinstance(image, nib.Nifti1Pair):
        return np.asarray(image.affine, dtype=np.float64)
    header: Any = image.header
    scale = MM_PER_UNIT.get(header.get_xyzt_units()[0], 1.0)
    matrix = _unscaled_affine(header, path)
    matrix[:3] *= scale
    return matrix


def _unscaled_affine(header: Any, path: Path) -> Matrix:
    sform_code, qform_code = int(header["sform_code"]), int(header["qform_code"])
    sizes = np.abs(np.asarray(header["pixdim"][1:4], dtype=np.float64))
    sform = np.asarray(header.get_sform(), dtype=np.float64)
    if sform_code > 0 and not np.isfinite(sform).all():
        raise FileFormatError(f"'{path}' has an orientation (sform) that is not a number. Export it again.")
    lengths = np.linalg.norm(sform[:3, :3], axis=0)
    usable = sform_code > 0 and lengths.min() > 0
    orthogonal = usable and shear_of(sform) < NEARLY_ORTHOGONAL
    if usable and (qform_code == 0 or (sform_code == SCANNER and orthogonal)):
        if orthogonal and sizes.min() > 0:
            sform[:3, :3] *= sizes / lengths
        return sform
    if qform_code > 0:
        return np.asarray(header.get_qform(), dtype=np.float64)
    if sform_code > 0:
        return sform  # singular: Grid refuses it with the name of the file
    sizes[sizes == 0] = 1.0
    return np.diag([-sizes[0], -sizes[1], sizes[2], 1.0])


def _require_grey_volume(image: Any, path: Path) -> None:
    """Raises FileFormatError, with what to do, unless the file holds one volume of real numbers."""
    require_grey(image, path)
    shape = tuple(image.shape)
    if int(np.prod(shape[3:])) > 1:
        what = "time points" if len(shape) == 4 else "values per voxel"
        count = " x ".join(str(n) for n in shape)
        raise FileFormatError(
            f"'{path}' has several volumes ({count}: {what} beyond the third axis). "
            "Split it and give one volume."
        )


def require_grey(image: Any, path: Path) -> None:
    """Raises FileFormatError, with what to do, unless the file holds real numbers on two axes or more."""
    if not hasattr(image, "dataobj") or not hasattr(image, "affine"):
        raise FileFormatError(f"'{path}' holds no image volume ({type(image).__name__}). Give a volume.")
    if isinstance(image, nib.AnalyzeImage) and not isinstance(image, nib.Nifti1Pair):
        raise FileFormatError(
            f"'{path}' is an Analyze 7.5 file, which does not say which side is left. "
            "Convert it to NIfTI first."
        )
    kind = image.get_data_dtype()
    shape = tuple(image.shape)
    if kind.fields is not None:
        raise FileFormatError(f"'{path}' is a colour image. Convert it to grey values first.")
    if np.issubdtype(kind, np.complexfloating):
        raise FileFormatError(f"'{path}' holds complex numbers. Save its magnitude and give that.")
    if len(shape) < 2 or not np.issubdtype(kind, np.number):
        raise FileFormatError(f"'{path}' holds no image of two or three axes.")
