"""Transforms as files: ITK .h5, .tfm, .txt, .mat; displacement fields .nrrd, .mha, .nii.gz.

ITK's world is LPS; ours is RAS.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import SimpleITK as sitk
import torch

from DiffeoRegLib.errors import FileFormatError, GeometryError, InputError, OutputError
from DiffeoRegLib.space.grid import Grid, Matrix
from DiffeoRegLib.space.sample import array_from_tensor, tensor_from_array
from DiffeoRegLib.space.storage import storage_bytes, storage_grid, upright_grid
from DiffeoRegLib.space.transform import (
    AffineTransform,
    CompositeTransform,
    DisplacementTransform,
    InverseTransform,
    Transform,
    displacement_on,
)
from DiffeoRegLib.volumes import nifti
from DiffeoRegLib.volumes.file_guard import quiet_itk, reading, suffix_of, writing
from DiffeoRegLib.volumes.itk_images import opened, ras_affine, read_claimed, set_geometry
from DiffeoRegLib.volumes.placed import LPS, NEARLY_ORTHOGONAL, shear_of, without_single_axis
from DiffeoRegLib.volumes.transform_checks import (
    require_whole_hdf5,
    require_whole_matlab,
    require_whole_text,
)

__all__ = ["read_transform", "storage_bytes", "storage_grid", "write_transform"]

ITK_TRANSFORMS = (".h5", ".hdf5", ".tfm", ".txt", ".mat")
FIELD_IMAGES = (".nrrd", ".nhdr", ".mha", ".mhd")
NIFTI_FIELDS = (".nii", ".nii.gz")
WRITTEN_FIELDS = (".h5", ".hdf5", ".nrrd", ".mha", *NIFTI_FIELDS)
WRITTEN = (*ITK_TRANSFORMS, ".nrrd", ".mha", *NIFTI_FIELDS)
HDF5_BYTES = 1 << 16
"""More than an HDF5 file has besides its numbers."""
DISPVECT, VECTOR = 1006, 1007
FLIP = np.array([-1.0, -1.0, 1.0])


def read_transform(path: str | Path) -> Transform:
    """The transform in a file, fixed RAS mm to moving RAS mm.

    ITK .h5, .tfm, .txt, .mat (linear, displacement field, composite of them); fields in .nrrd, .mha and
    .nii.gz (intent 1006: RAS vectors, 1007: LPS vectors); 4x4 RAS matrices as text (greedy, ITK-SNAP). A NRRD
    field that Slicer marked as `modeling` runs the other way and comes back as its inverse.
    Raises FileFormatError for a missing, damaged or other file.
    """
    path = Path(path)
    suffix = suffix_of(path)
    with quiet_itk(), reading(path, "a transform"):
        if suffix in ITK_TRANSFORMS:
            matrix = _text_matrix(path) if suffix in (".txt", ".mat") else None
            if matrix is not None:
                return AffineTransform(matrix)
            if suffix in (".tfm", ".txt"):
                require_whole_text(path)
            if suffix == ".mat":
                require_whole_matlab(path)
            if suffix in (".h5", ".hdf5"):
                require_whole_hdf5(path)
            return _from_itk(sitk.ReadTransform(str(path)), path)
        if suffix in FIELD_IMAGES:
            return _read_field_image(path)
        if suffix in NIFTI_FIELDS:
            return _read_nifti_field(path)
        known = ", ".join((*ITK_TRANSFORMS, *FIELD_IMAGES, *NIFTI_FIELDS))
        raise FileFormatError(f"'{path}' is no transform file DiffeoReg knows. It reads {known}.")


def write_transform(
    transform: Transform, path: str | Path, *, overwrite: bool = False, displacement_grid: Grid | None = None
) -> None:
    """Writes a transform in the format its suffix names; the file appears complete or not at all.

    .h5 keeps the parts of a composite; .tfm, .txt and .mat hold linear transforms; .nrrd, .mha and
    .nii.gz hold one displacement field: anything else is evaluated on `displacement_grid`, as are
    inverses without a field of their own. Sheared grids, which ITK and Slicer cannot hold, are replaced by
    upright ones.
    Raises InputError without a needed `displacement_grid`, OutputError, OutputExistsError.
    """
    path = Path(path)
    suffix = suffix_of(path)
    if suffix not in WRITTEN:
        raise OutputError(f"'{path.name}': DiffeoReg writes transforms as {', '.join(WRITTEN)}.")
    needed = sum(storage_bytes(p.grid) for p in _flattened(transform) if isinstance(p, DisplacementTransform))
    if suffix in (".h5", ".hdf5"):
        needed += HDF5_BYTES
    with quiet_itk(), writing(path, overwrite=overwrite, needed_bytes=needed) as partial:
        if suffix in (".h5", ".hdf5"):
            sitk.WriteTransform(_to_itk(transform, displacement_grid), str(partial))
        elif suffix in ITK_TRANSFORMS:
            sitk.WriteTransform(_itk_affine(_one_matrix(transform, path)), str(partial))
        elif suffix in NIFTI_FIELDS:
            _write_nifti_field(_one_field(transform, displacement_grid, path), partial)
        else:
            image = _field_image(_one_field(transform, displacement_grid, path), sitk.sitkVectorFloat32)
            image.SetMetaData("displacement field type", "resampling")
            sitk.WriteImage(image, str(partial), useCompression=True)


def _from_itk(transform: Any, path: Path) -> Transform:
    """Our transform of a SimpleITK one."""
    transform = transform.Downcast()
    if isinstance(transform, sitk.CompositeTransform):
        count = transform.GetNumberOfTransforms()
        parts = [_from_itk(transform.GetNthTransform(n), path) for n in reversed(range(count))]
        return parts[0] if count == 1 else CompositeTransform(parts)
    if isinstance(transform, sitk.DisplacementFieldTransform):
        return _from_field_image(transform.GetDisplacementField(), path)
    if transform.IsLinear():
        dim = transform.GetDimension()
        origin = np.array(transform.TransformPoint([0.0] * dim))
        columns = [np.array(transform.TransformPoint(list(row))) - origin for row in np.eye(dim)]
        lps = np.eye(4)
        lps[:dim, :dim], lps[:dim, 3] = np.array(columns).T, origin
        return AffineTransform(LPS @ lps @ LPS)
    raise FileFormatError(
        f"'{path}' holds a {transform.GetName()}, which DiffeoReg does not read. "
        "Convert it to a displacement field first (in Slicer: Transforms, Convert)."
    )


def _from_field_image(image: sitk.Image, path: Path) -> DisplacementTransform:
    """Field of a vector image of LPS displacements."""
    dim = image.GetDimension()
    if dim not in (2, 3) or image.GetNumberOfComponentsPerPixel() != dim:
        raise FileFormatError(
            f"'{path}' is no displacement field: it needs as many values per voxel as axes."
        )
    array = sitk.GetArrayViewFromImage(image)
    if dim == 2:
        array = np.pad(array[None], ((0, 0), (0, 0), (0, 0), (0, 1)))
    return _field(array, FLIP, ras_affine(image)[:, [2, 1, 0, 3]], path)


def _field(vectors: Any, signs: Matrix, ras_from_kji: Matrix, path: Path) -> DisplacementTransform:
    """Field of vectors (k, j, i, 3), RAS when multiplied by their signs; one slice makes a 2D field."""
    with np.errstate(over="ignore", invalid="ignore"):  # what is no number is said below
        array = np.asarray(vectors, dtype=np.float32) * signs.astype(np.float32)
    if not np.isfinite(array).all():
        raise FileFormatError(f"'{path}' holds displacements that are not numbers.")
    array, matrix = without_single_axis(array, ras_from_kji, str(path))
    u_mm = np.moveaxis(array, -1, 0)[None]
    return DisplacementTransform(Grid(array.shape[:-1], matrix), tensor_from_array(u_mm, torch.float32))


def _read_field_image(path: Path) -> Transform:
    image = read_claimed(opened(path), path)
    key = "displacement field type"
    field = _from_field_image(image, path)
    modeling = image.HasMetaDataKey(key) and image.GetMetaData(key).strip().lower() == "modeling"
    return InverseTransform(field) if modeling else field


def _read_nifti_field(path: Path) -> DisplacementTransform:
    image: Any = nib.load(path)
    shape = image.shape
    intent = int(image.header["intent_code"]) if isinstance(image, nib.Nifti1Pair) else 0
    if len(shape) != 5 or shape[3] != 1 or shape[4] not in (2, 3):
        raise FileFormatError(
            f"'{path}' is no displacement field: its shape is {shape}, not (x, y, z, 1, 3)."
        )
    if intent not in (DISPVECT, VECTOR):
        raise FileFormatError(
            f"'{path}' does not say what its vectors are: intent {intent}, not 1006 (RAS) or 1007 (LPS)."
        )
    nifti.require_held(image, path)
    array = image.get_fdata(dtype=np.float32, caching="unchanged")[:, :, :, 0, :]
    array = np.pad(array, ((0, 0), (0, 0), (0, 0), (0, 3 - array.shape[-1])))
    signs = np.ones(3) if intent == DISPVECT else FLIP
    return _field(array.transpose(2, 1, 0, 3), signs, nifti.affine_of(image, path)[:, [2, 1, 0, 3]], path)


def _text_matrix(path: Path) -> Matrix | None:
    """RAS 4x4 of a text file with nothing but 16 (or, for 2D, 9) numbers; None for any other file."""
    if path.stat().st_size > 4096:
        return None
    try:
        values = np.array([float(word) for word in path.read_text(encoding="ascii").split()])
    except ValueError:
        return None
    if values.size == 16:
        return values.reshape(4, 4)
    if values.size != 9:
        return None
    flat, matrix = values.reshape(3, 3), np.eye(4)
    matrix[:2, :2], matrix[:2, 3] = flat[:2, :2], flat[:2, 2]
    return matrix


def _to_itk(transform: Transform, grid: Grid | None) -> Any:
    """SimpleITK transform of ours; a composite keeps its parts (ITK applies the last one first)."""
    parts = [_part_to_itk(part, grid) for part in _flattened(transform)]
    if not parts:
        return sitk.AffineTransform(3)
    return parts[0] if len(parts) == 1 else sitk.CompositeTransform(parts[::-1])


def _part_to_itk(part: Transform, grid: Grid | None) -> Any:
    if isinstance(part, AffineTransform):
        return _itk_affine(part.moving_from_fixed)
    if not isinstance(part, DisplacementTransform):
        part = _sampled(part, grid)
    return sitk.DisplacementFieldTransform(_field_image(part, sitk.sitkVectorFloat64))


def _itk_affine(matrix: Matrix) -> Any:
    lps = LPS @ matrix @ LPS
    affine = sitk.AffineTransform(3)
    affine.SetMatrix(lps[:3, :3].ravel().tolist())
    affine.SetTranslation(lps[:3, 3].tolist())
    return affine


def _flattened(transform: Transform) -> list[Transform]:
    """The parts of nested composites, first to act first."""
    if isinstance(transform, CompositeTransform):
        return [leaf for part in transform.parts for leaf in _flattened(part)]
    return [transform]


def _one_matrix(transform: Transform, path: Path) -> Matrix:
    """Product of linear parts; raises OutputError when a part is not linear."""
    matrix = np.eye(4)
    for part in _flattened(transform):
        if not isinstance(part, AffineTransform):
            raise OutputError(f"'{path.name}' holds linear transforms only; write .h5 instead.")
        matrix = part.moving_from_fixed @ matrix
    return matrix


def _one_field(transform: Transform, grid: Grid | None, path: Path) -> DisplacementTransform:
    """The transform as one field: its own when it is one and no grid is asked for."""
    parts = _flattened(transform)
    if grid is None and len(parts) == 1 and isinstance(parts[0], DisplacementTransform):
        return parts[0]
    if grid is None:
        raise InputError(
            f"'{path.name}' holds one displacement field; say on which grid (displacement_grid)."
        )
    return _sampled(transform, grid)


def _sampled(transform: Transform, grid: Grid | None) -> DisplacementTransform:
    """T(x) - x on a grid."""
    if grid is None:
        raise InputError(
            "This transform is no displacement field; say on which grid to write it (displacement_grid)."
        )
    return DisplacementTransform(grid, displacement_on(transform, grid))


def _upright(field: DisplacementTransform) -> DisplacementTransform:
    """The field itself, or resampled onto a grid at right angles where its own is sheared."""
    if shear_of(field.grid.world_from_voxel) <= NEARLY_ORTHOGONAL:
        return field
    grid = upright_grid(field.grid)
    return DisplacementTransform(grid, displacement_on(field, grid, extend=True))


def _stored(field: DisplacementTransform) -> tuple[Any, Matrix]:
    """RAS vectors (k, j, i, 3) and the RAS affine on (i, j, k)."""
    array = np.moveaxis(array_from_tensor(field.u_mm[0]), 0, -1)
    matrix = field.grid.world_from_voxel
    if field.grid.dim == 2:
        return array[None], matrix[:, [1, 0, 2, 3]]
    return array, matrix[:, [2, 1, 0, 3]]


def _field_image(field: DisplacementTransform, pixel: int) -> sitk.Image:
    """Vector image of LPS displacements."""
    array, affine = _stored(_upright(field))
    image = sitk.GetImageFromArray(array * FLIP.astype(array.dtype), isVector=True)
    set_geometry(image, affine, "The displacement field")
    return sitk.Cast(image, pixel)


def _write_nifti_field(field: DisplacementTransform, path: Path) -> None:
    """Intent 1006 means RAS vectors in the file, which ITK and Slicer turn into LPS when they read it."""
    array, affine = _stored(_upright(field))
    if len(array) == 1:
        # ITK takes a vector file of one slice for a 2D one and loses its place: two thinner slices instead.
        array, halved = np.repeat(array, 2, axis=0), np.eye(4)
        halved[2, 2:] = 0.5, -0.25
        affine = affine @ halved
    if not np.isfinite(affine).all():
        raise GeometryError("The grid of the displacement field is not finite.")
    image = nifti.nifti_image(array.transpose(2, 1, 0, 3)[:, :, :, None, :].astype(np.float32), affine)
    image.header.set_intent(DISPVECT, (), name="")
    nib.save(image, path)
