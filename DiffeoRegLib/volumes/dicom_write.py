"""A volume as a new DICOM series, one file a slice: derived secondary captures with their place."""

from __future__ import annotations

import secrets
import shutil
from pathlib import Path

import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray

from DiffeoRegLib.errors import OutputError, OutputExistsError
from DiffeoRegLib.volumes.file_guard import FOREIGN
from DiffeoRegLib.volumes.itk_images import set_geometry
from DiffeoRegLib.volumes.placed import storage_array
from DiffeoRegLib.volumes.volume import Volume

SECONDARY_CAPTURE = "1.2.840.10008.5.1.4.1.1.7"
UID_ROOT = "2.25."
"""Under this root anyone may make identifiers from a random number (DICOM PS3.5, B.2)."""
LEVELS = 65535


def write_dicom(volume: Volume, folder: Path, *, overwrite: bool = False) -> None:
    """A folder of DICOM files, 16 bits with slope and intercept; it appears complete or not at all.

    Raises OutputExistsError for a folder that holds files unless `overwrite` (which replaces the folder),
    OutputError when writing fails, GeometryError for a sheared grid.
    """
    if folder.exists() and not folder.is_dir():
        raise OutputError(f"'{folder}' is a file; a DICOM series needs a folder.")
    if folder.exists() and any(folder.iterdir()) and not overwrite:
        raise OutputExistsError(
            f"'{folder}' holds files already. Choose another folder, or allow overwriting."
        )
    if not folder.parent.is_dir():
        raise OutputError(f"There is no folder '{folder.parent}' to write into. Create it first.")
    partial = folder.with_name(f".{folder.name}.{secrets.token_hex(4)}")
    try:
        partial.mkdir()
        _write_slices(volume, partial)
        if folder.exists():
            shutil.rmtree(folder)
        partial.rename(folder)
    except FOREIGN as error:
        reason = getattr(error, "strerror", None) or "the disk may be full or the folder read-only"
        raise OutputError(
            f"'{folder}' could not be written: {reason}. Free some space or choose another folder."
        ) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _write_slices(volume: Volume, folder: Path) -> None:
    array, ras_from_ijk = storage_array(volume)
    stored, slope, intercept = _sixteen_bits(array)
    image = sitk.GetImageFromArray(stored)
    set_geometry(image, ras_from_ijk, f"'{volume.name}'")
    direction = np.array(image.GetDirection()).reshape(3, 3)
    series = _new_uid()
    common = {
        "0008|0008": "DERIVED\\SECONDARY",
        "0008|0016": SECONDARY_CAPTURE,
        "0008|0060": "OT",
        "0008|103e": volume.name[:64],
        "0020|000d": _new_uid(),
        "0020|000e": series,
        "0020|0052": _new_uid(),
        "0020|0037": "\\".join(f"{v:.10g}" for v in [*direction[:, 0], *direction[:, 1]]),
        "0018|0050": f"{image.GetSpacing()[2]:.10g}",
        "0018|0088": f"{image.GetSpacing()[2]:.10g}",
        "0028|0100": "16",
        "0028|0101": "16",
        "0028|0102": "15",
        "0028|0103": "1",
        "0028|1052": f"{intercept:.10g}",
        "0028|1053": f"{slope:.10g}",
    }
    writer = sitk.ImageFileWriter()
    writer.KeepOriginalImageUIDOn()
    for number in range(image.GetDepth()):
        piece = image[:, :, number]
        place = image.TransformIndexToPhysicalPoint((0, 0, number))
        own = {
            "0008|0018": _new_uid(),
            "0020|0013": str(number + 1),
            "0020|0032": "\\".join(f"{v:.10g}" for v in place),
        }
        for key, value in {**common, **own}.items():
            piece.SetMetaData(key, value)
        writer.SetFileName(str(folder / f"slice_{number + 1:04d}.dcm"))
        writer.Execute(piece)


def _sixteen_bits(array: NDArray[np.generic]) -> tuple[NDArray[np.float64] | NDArray[np.int16], float, float]:
    """Values for a writer that applies slope and intercept itself: small whole numbers, else reals."""
    low, high = float(np.min(array)), float(np.max(array))
    if np.issubdtype(array.dtype, np.integer) and low >= -32768 and high <= 32767:
        return array.astype(np.int16), 1.0, 0.0
    slope = (high - low) / LEVELS or 1.0
    return array.astype(np.float64), slope, low + 32768 * slope


def _new_uid() -> str:
    return f"{UID_ROOT}{secrets.randbits(120)}"
