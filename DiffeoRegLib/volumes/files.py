"""The door for volumes and points: any common file in, a value with a place in the patient (RAS mm) out."""

from __future__ import annotations

from pathlib import Path

from DiffeoRegLib.errors import FileFormatError, OutputError
from DiffeoRegLib.volumes import dicom, itk_images, nifti
from DiffeoRegLib.volumes.dicom_write import write_dicom
from DiffeoRegLib.volumes.file_guard import quiet_itk, reading, stem_of, suffix_of, writing
from DiffeoRegLib.volumes.point_files import read_points, write_points
from DiffeoRegLib.volumes.volume import Volume

__all__ = ["read_points", "read_volume", "write_points", "write_volume"]

READABLE = (
    "NIfTI (.nii, .nii.gz), NRRD, MetaImage (.mha, .mhd), GIPL, .mgz, PNG, TIFF, JPEG or a DICOM folder"
)


def read_volume(path: str | Path, *, labels: bool = False, name: str | None = None) -> Volume:
    """One grey volume or label map from a file, or from a folder with a DICOM series.

    labels: int32 data, the file must hold whole numbers; else float32 (NaN and Inf are kept).
    name: for messages and reports, the file's stem by default. A volume of one slice comes back 2D.
    Raises FileFormatError for a missing, damaged, colour, complex or 4D file and GeometryError for one
    without a usable place in the patient.
    """
    path = Path(path)
    name = name or stem_of(path)
    suffix = suffix_of(path)
    with quiet_itk(), reading(path, "an image"):
        if path.is_dir() or suffix in dicom.SUFFIXES:
            return dicom.read_dicom(path, name, labels=labels)
        if suffix in nifti.SUFFIXES:
            return nifti.read_nifti(path, name, labels=labels)
        if suffix in itk_images.SUFFIXES:
            return itk_images.read_itk(path, name, labels=labels)
        if suffix == "" and _is_dicom(path):
            return dicom.read_dicom(path, name, labels=labels)
        raise FileFormatError(f"'{path}' is of a kind DiffeoReg does not read. It reads {READABLE}.")


def write_volume(volume: Volume, path: str | Path, *, overwrite: bool = False) -> None:
    """A volume as NIfTI, NRRD, MetaImage (.mha), a 2D one also as PNG or TIFF; without suffix a DICOM folder.

    Images are written as float32 (PNG: 8 or 16 bits), label maps in the smallest integer type that fits;
    a 2D volume becomes a file of one slice. The file appears complete or not at all.
    Raises OutputExistsError, OutputError, and GeometryError for a sheared grid in a format without shear.
    """
    path = Path(path)
    suffix = suffix_of(path)
    if not suffix:
        with quiet_itk():
            write_dicom(volume, path, overwrite=overwrite)
        return
    if suffix not in (".nii", ".nii.gz", *itk_images.WRITTEN):
        raise OutputError(
            f"'{path.name}': DiffeoReg writes .nii.gz, .nii, .nrrd, .mha, .png, .tif and, "
            "to a name without suffix, a folder of DICOM files."
        )
    with quiet_itk(), writing(path, overwrite=overwrite) as partial:
        if suffix in (".nii", ".nii.gz"):
            nifti.write_nifti(volume, partial)
        else:
            itk_images.write_itk(volume, partial, suffix)


def _is_dicom(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(132)[128:] == b"DICM"
