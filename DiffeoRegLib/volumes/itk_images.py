"""Everything SimpleITK reads and writes: NRRD, MetaImage, GIPL, PNG, TIFF, JPEG. ITK's world is LPS."""

from __future__ import annotations

import gzip
import math
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk

from DiffeoRegLib.errors import FileFormatError, GeometryError, OutputError
from DiffeoRegLib.space.grid import Matrix
from DiffeoRegLib.volumes.check_sums import require_sums
from DiffeoRegLib.volumes.claims import data_files, require_room, unpacked_bytes
from DiffeoRegLib.volumes.file_guard import suffix_of
from DiffeoRegLib.volumes.placed import LPS, NEARLY_ORTHOGONAL, placed, shear_of, storage_array
from DiffeoRegLib.volumes.volume import Volume

PLACED = (".nrrd", ".seg.nrrd", ".nhdr", ".mha", ".mhd", ".gipl", ".gipl.gz")
PICTURES = (".png", ".tif", ".tiff", ".jpg", ".jpeg", ".bmp")
SUFFIXES = (*PLACED, *PICTURES)
GIPL_HEADER_BYTES = 256
WRITTEN = (".nrrd", ".seg.nrrd", ".mha", ".png", ".tif", ".tiff")


def read_itk(path: Path, name: str, *, labels: bool) -> Volume:
    """Volume of one file SimpleITK reads; raises FileFormatError for what is not one grey volume."""
    reader = opened(path)
    require_grey_volume(reader.GetSize(), reader.GetNumberOfComponents(), reader.GetPixelID(), path)
    return volume_from_itk(read_claimed(reader, path), name, labels=labels, where=str(path))


def opened(path: Path) -> Any:
    """SimpleITK's reader of a file with its header read; raises FileFormatError for one that lies.

    See `volumes.claims`: no other file is opened, and no memory taken, before the header is believed.
    """
    data_files(path)
    reader = sitk.ImageFileReader()
    reader.SetFileName(str(path))
    reader.ReadImageInformation()
    return reader


def read_claimed(reader: Any, path: Path) -> sitk.Image:
    """The image of a reader that `opened` gave; raises FileFormatError when it cannot be so large.

    Raises what `require_sums` raises for a file that its own check sums call damaged.
    """
    require_claimed(reader, path)
    if ".gipl" in path.suffixes:
        _require_all_of_gipl(path, reader)
    require_sums(path, data_files(path), math.prod(reader.GetSize()) * _voxel_bytes(reader))
    return reader.Execute()


def require_claimed(reader: Any, path: Path, files: int = 1) -> None:
    """Raises FileFormatError for a header that promises more than its file or this computer can hold.

    files: how many of this size there are, all of which are to be read.
    """
    voxels = files * math.prod(reader.GetSize())
    packed = suffix_of(path) in (*PLACED, ".seq.nrrd")  # pictures and DICOM have other ways to be small
    most = unpacked_bytes(data_files(path), packed=True) if packed else None
    require_room(path, voxels, _voxel_bytes(reader), most)


def _voxel_bytes(reader: Any) -> int:
    value = sitk.Image([1, 1], reader.GetPixelID()).GetSizeOfPixelComponent()
    return int(value * reader.GetNumberOfComponents())


def _require_all_of_gipl(path: Path, reader: Any) -> None:
    """Raises EOFError for a shortened GIPL file, which ITK reads without a word."""
    needed = GIPL_HEADER_BYTES + _voxel_bytes(reader) * math.prod(reader.GetSize())
    length = path.stat().st_size
    if path.suffix.lower() == ".gz":
        length = 0
        with gzip.open(path) as file:
            while length < needed and (part := file.read(1 << 20)):  # it may go on without end
                length += len(part)
    if length < needed:
        raise EOFError("the GIPL file ends early")


def require_grey_volume(size: tuple[int, ...], components: int, pixel: int, path: Path) -> None:
    """Raises FileFormatError, with what to do, unless a header describes one volume of real numbers."""
    if pixel in (sitk.sitkComplexFloat32, sitk.sitkComplexFloat64):
        raise FileFormatError(f"'{path}' holds complex numbers. Save its magnitude and give that.")
    if components != 1:
        kind = "a colour image" if path.suffix.lower() in PICTURES else "no grey image"
        raise FileFormatError(
            f"'{path}' is {kind}: it has {components} values per voxel. "
            "Convert it to one grey value per voxel first."
        )
    if int(np.prod(size[3:])) > 1:
        count = " x ".join(str(n) for n in size)
        raise FileFormatError(f"'{path}' has several volumes ({count}). Split it and give one volume.")


def volume_from_itk(image: sitk.Image, name: str, *, labels: bool, where: str) -> Volume:
    """Volume of a 2D, 3D or single-volume 4D SimpleITK image."""
    array = np.asarray(sitk.GetArrayViewFromImage(image))
    array = array[None] if array.ndim == 2 else array.reshape(array.shape[-3:])
    return placed(array, ras_affine(image)[:, [2, 1, 0, 3]], name, labels=labels, where=where)


def ras_affine(image: Any) -> Matrix:
    """RAS mm from (i, j, k) of an image (or reader) with ITK's origin, spacing and direction."""
    dim = image.GetDimension()
    used = min(dim, 3)
    lps = np.eye(4)
    direction = np.array(image.GetDirection(), dtype=np.float64).reshape(dim, dim)
    lps[:used, :used] = (direction * np.array(image.GetSpacing()))[:used, :used]
    lps[:used, 3] = image.GetOrigin()[:used]
    return np.asarray(LPS @ lps)


def set_geometry(image: sitk.Image, ras_from_ijk: Matrix, what: str) -> None:
    """Gives a 3D image its place; raises GeometryError for axes that are not at right angles."""
    if shear_of(ras_from_ijk) > NEARLY_ORTHOGONAL:
        raise GeometryError(
            f"{what} is sheared: its axes are not at right angles, which this file format cannot hold. "
            "Write NIfTI, or resample it onto an upright grid first."
        )
    lps = LPS @ ras_from_ijk
    spacing = np.linalg.norm(lps[:3, :3], axis=0)
    image.SetSpacing(spacing.tolist())
    image.SetDirection((lps[:3, :3] / spacing).ravel().tolist())
    image.SetOrigin(lps[:3, 3].tolist())


def write_itk(volume: Volume, path: Path, suffix: str) -> None:
    """One file by SimpleITK; pictures (PNG, TIFF) keep the spacing but not the place in the patient."""
    array, affine = storage_array(volume)
    if suffix in (".png", ".tif", ".tiff"):
        image = _picture(volume, array[0] if volume.grid.dim == 2 else array, suffix)
    else:
        image = sitk.GetImageFromArray(array)
        set_geometry(image, affine, f"'{volume.name}'")
    sitk.WriteImage(image, str(path), useCompression=True)


def _picture(volume: Volume, array: Any, suffix: str) -> sitk.Image:
    """2D image with the volume's spacing; PNG gets whole numbers of 8 or 16 bits."""
    if array.ndim != 2:
        raise OutputError(f"'{volume.name}' is 3D; a {suffix} file holds one slice. Write .nii.gz or .nrrd.")
    if suffix == ".png":
        array = _sixteen_bits(array, volume.name)
    image = sitk.GetImageFromArray(array)
    image.SetSpacing(volume.grid.spacing[::-1])
    return image


def _sixteen_bits(array: Any, name: str) -> Any:
    """uint8 or uint16; raises OutputError where rounding would spoil the image."""
    whole = np.rint(array)
    finite = bool(np.isfinite(array).all())
    steps = float(array.max() - array.min()) if finite else 0.0
    if (
        not finite
        or whole.min() < 0
        or whole.max() > 65535
        or (steps < 50 and not np.array_equal(whole, array))
    ):
        raise OutputError(
            f"'{name}' does not fit into a PNG file, which holds whole numbers from 0 to 65535. "
            "Write .tif or .nii.gz."
        )
    return whole.astype(np.uint8 if whole.max() < 256 else np.uint16)
