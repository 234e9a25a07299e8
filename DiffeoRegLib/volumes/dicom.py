"""A DICOM series as one volume: slices sorted by their place, gaps and tilts refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import SimpleITK as sitk

from DiffeoRegLib.errors import FileFormatError, GeometryError
from DiffeoRegLib.space.grid import Matrix
from DiffeoRegLib.volumes.itk_images import opened, read_itk, require_claimed, require_grey_volume
from DiffeoRegLib.volumes.placed import LPS, placed
from DiffeoRegLib.volumes.volume import Volume

SERIES_UID, SERIES_NAME, POSITION, ORIENTATION = "0020|000e", "0008|103e", "0020|0032", "0020|0037"
LARGEST_DRIFT_MM = 0.2
"""How far a stack may lean over its whole height: rounded headers lean a little, tilted gantries much."""
SUFFIXES = (".dcm", ".ima", ".dicom")


def read_dicom(path: Path, name: str, *, labels: bool) -> Volume:
    """Volume of the one series in a folder, or of the series a single file belongs to.

    Raises FileFormatError when there is none or more than one, GeometryError for missing or doubled
    slices and a tilted gantry.
    """
    folder = path if path.is_dir() else path.parent
    files = _files_of_series(folder, _header(path)[SERIES_UID] if path.is_file() else _only_series(path))
    if len(files) < 2:
        return read_itk(files[0] if files else path, name, labels=labels)
    order, step = _sorted_slices(files, folder)
    require_claimed(opened(order[0]), folder, len(order))
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames([str(file) for file in order])
    image = reader.Execute()
    require_grey_volume(image.GetSize(), image.GetNumberOfComponentsPerPixel(), image.GetPixelID(), folder)
    array = np.asarray(sitk.GetArrayViewFromImage(image)).reshape(image.GetSize()[2::-1])
    return placed(array, _affine(order[0], step)[:, [2, 1, 0, 3]], name, labels=labels, where=str(folder))


def _only_series(folder: Path) -> str:
    """UID of the series in a folder; the message lists them when there are several."""
    series = sitk.ImageSeriesReader.GetGDCMSeriesIDs(str(folder))
    if not series:
        raise FileFormatError(f"The folder '{folder}' holds no DICOM images.")
    if len(series) > 1:
        names = []
        for uid in series:
            files = _files_of_series(folder, uid)
            title = _header(files[0]).get(SERIES_NAME, "unnamed").strip()
            names.append(f"'{title}' ({len(files)} files, {files[0].name})")
        raise FileFormatError(
            f"The folder '{folder}' holds {len(series)} DICOM series: {'; '.join(names)}. "
            "Give one file of the series you mean instead of the folder."
        )
    return str(series[0])


def _files_of_series(folder: Path, uid: str) -> list[Path]:
    return [
        Path(name) for name in sitk.ImageSeriesReader.GetGDCMSeriesFileNames(str(folder), uid.strip("\0 "))
    ]


def _header(file: Path) -> dict[str, str]:
    """The few tags used here, as text, where the file has them."""
    reader = sitk.ImageFileReader()
    reader.SetFileName(str(file))
    reader.ReadImageInformation()
    tags = (SERIES_UID, SERIES_NAME, POSITION, ORIENTATION)
    found = {tag: reader.GetMetaData(tag) for tag in tags if reader.HasMetaDataKey(tag)}
    found.setdefault(SERIES_UID, "")
    return found


def _sorted_slices(files: list[Path], folder: Path) -> tuple[list[Path], Matrix]:
    """Files in order along the slice normal and the step between two slices, LPS mm."""
    headers = [_header(file) for file in files]
    if any(POSITION not in header or ORIENTATION not in header for header in headers):
        raise GeometryError(
            f"A DICOM file in '{folder}' does not say where its slice lies; the series cannot be stacked."
        )
    position = np.array([_numbers(header[POSITION]) for header in headers])
    axes = np.array([_numbers(header[ORIENTATION]) for header in headers])
    if np.abs(axes - axes[0]).max() > 1e-3:
        raise GeometryError(f"The slices of the DICOM series in '{folder}' are not parallel (a localiser?).")
    normal = np.cross(axes[0, :3], axes[0, 3:])
    height = position @ normal
    order = np.argsort(height)
    _require_even(np.diff(height[order]), folder)
    step = (position[order[-1]] - position[order[0]]) / (len(files) - 1)
    sideways = step - (step @ normal) * normal
    if np.linalg.norm(sideways) * (len(files) - 1) > LARGEST_DRIFT_MM:
        degrees = np.degrees(np.arcsin(np.linalg.norm(sideways) / np.linalg.norm(step)))
        raise GeometryError(
            f"The DICOM series in '{folder}' was taken with a gantry tilted by {degrees:.1f} degrees. "
            "Convert it with a program that straightens it (dcm2niix) and give the result."
        )
    return [files[i] for i in order], np.asarray(step - sideways)


def _require_even(gaps: Matrix, folder: Path) -> None:
    """Raises GeometryError for two slices in one place and for gaps of different size."""
    usual = float(np.median(gaps))
    if gaps.min() < 1e-3 * max(usual, 1e-6) or usual <= 0:
        raise GeometryError(
            f"The DICOM series in '{folder}' has several images of the same slice (time points or echoes?). "
            "Split it and give one volume."
        )
    if np.abs(gaps - usual).max() > 0.05 * usual:
        at = int(np.argmax(np.abs(gaps - usual)))
        raise GeometryError(
            f"The DICOM series in '{folder}' has uneven slices: {gaps[at]:.2f} mm after slice {at + 1}, "
            f"{usual:.2f} mm elsewhere. A slice may be missing; copy the series again."
        )


def _affine(first: Path, step: Matrix) -> Matrix:
    """RAS mm from (i, j, k) of a stack that starts with `first` and goes on by `step` (LPS mm)."""
    reader = sitk.ImageFileReader()
    reader.SetFileName(str(first))
    reader.ReadImageInformation()
    dim = reader.GetDimension()
    lps = np.eye(4)
    axes = _numbers(reader.GetMetaData(ORIENTATION)).reshape(2, 3)
    lps[:3, :2] = (axes * np.array(reader.GetSpacing()[:2])[:, None]).T
    lps[:3, 2] = step
    lps[:3, 3] = reader.GetOrigin()[:3] if dim > 2 else _numbers(reader.GetMetaData(POSITION))
    return np.asarray(LPS @ lps)


def _numbers(text: str) -> Matrix:
    return np.array([float(part) for part in text.strip("\0 ").split("\\")])
