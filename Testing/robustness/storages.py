"""Images as hospitals store them: any orientation, voxel size, number type and byte order, by other programs.

The programs that write and judge here are nibabel and SimpleITK, or bytes put down by hand; never DiffeoReg.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import SimpleITK as sitk
from hypothesis import strategies as st

LARGEST = 97
MOST_VOXELS = 60_000
TYPES = ("i1", "u1", "i2", "u2", "i4", "u4", "i8", "u8", "f4", "f8")
LPS = np.diag([-1.0, -1.0, 1.0])
META_TYPES = {"i1": "CHAR", "u1": "UCHAR", "i2": "SHORT", "u2": "USHORT", "i4": "INT", "u4": "UINT",
              "i8": "LONG_LONG", "u8": "ULONG_LONG", "f4": "FLOAT", "f8": "DOUBLE"}  # fmt: skip


@dataclass(frozen=True, eq=False)
class Stored:
    """Voxels and their place.

    array: (i, j, k), one axis of a single voxel in 2D.  affine: RAS mm of (i, j, k, 1).
    """

    array: np.ndarray
    affine: np.ndarray

    def world(self, index: np.ndarray) -> np.ndarray:
        """RAS mm (n, 3) of voxel positions (n, 3) in the order i, j, k."""
        return np.asarray(nib.affines.apply_affine(self.affine, index))


angles = st.one_of(st.sampled_from([0.0, 90.0, 180.0, 30.0, 45.0]), st.floats(-180, 180))
lengths = st.one_of(st.sampled_from([1.0, 0.3, 8.0, 2.5]), st.floats(0.3, 8.0))
places = st.one_of(st.just(0.0), st.floats(-500, 500))


def turned(degrees: tuple[float, float, float]) -> np.ndarray:
    """A rotation about three axes in turn."""
    out = np.eye(3)
    for axis, angle in enumerate(np.radians(degrees)):
        i, j = (a for a in range(3) if a != axis)
        one = np.eye(3)
        one[i, i] = one[j, j] = math.cos(angle)
        one[i, j], one[j, i] = -math.sin(angle), math.sin(angle)
        out = out @ one
    # ITK inverts directions by a decomposition that fails (NaN, or a wrong place) on numbers like 1e-300.
    return np.where(np.abs(out) < 1e-12, 0.0, out)


@st.composite
def affines(draw: Any) -> np.ndarray:
    """Upright axes in any order, direction and angle, RAS mm."""
    axes = turned(draw(st.tuples(angles, angles, angles)))
    order = draw(st.permutations(range(3)))
    signs = draw(st.tuples(*[st.sampled_from([1.0, -1.0])] * 3))
    affine = np.eye(4)
    affine[:3, :3] = axes[:, list(order)] * signs * draw(st.tuples(lengths, lengths, lengths))
    affine[:3, 3] = draw(st.tuples(places, places, places))
    return affine


@st.composite
def shapes(draw: Any, least: int = 2, largest: int = LARGEST) -> tuple[int, int, int]:
    """2D, the single voxel along any axis, or 3D; few enough voxels to be quick."""
    sizes = [draw(st.integers(least, largest)), draw(st.integers(least, largest))]
    room = max(least, min(largest, MOST_VOXELS // math.prod(sizes)))
    sizes.append(draw(st.one_of(st.just(1), st.integers(least, room))))
    return tuple(draw(st.permutations(sizes)))


def values(shape: tuple[int, ...], kind: str, seed: int) -> np.ndarray:
    """Numbers over much of what the type can hold, exact in float32."""
    rng = np.random.default_rng(seed)
    if kind in ("f4", "f8"):
        return (rng.integers(-(2**20), 2**20, shape) / 64).astype(kind)
    limit = min(np.iinfo(kind).max, 2**24)
    return rng.integers(max(np.iinfo(kind).min, -(2**24)), limit + 1, shape).astype(kind)


@st.composite
def storages(draw: Any) -> Stored:
    """An image of any size, type and place."""
    array = values(draw(shapes()), draw(st.sampled_from(TYPES)), draw(st.integers(0, 2**31)))
    return Stored(array, draw(affines()))


def write_nifti(stored: Stored, path: Path, *, big: bool = False, codes: tuple[int, int] = (1, 1)) -> None:
    """By nibabel; codes: of sform and qform."""
    header = nib.Nifti1Header(endianness=">" if big else "<")
    header.set_data_dtype(stored.array.dtype)
    image = nib.Nifti1Image(stored.array, stored.affine, header)
    image.header.set_xyzt_units("mm")
    image.set_sform(stored.affine if codes[0] else None, codes[0])
    image.set_qform(stored.affine if codes[1] else None, codes[1])
    assert image.header.endianness == (">" if big else "<")
    nib.save(image, path)


def write_itk(stored: Stored, path: Path, *, compressed: bool = False) -> None:
    """By SimpleITK: NRRD, MetaImage, GIPL, NIfTI."""
    image = sitk.GetImageFromArray(stored.array.T)
    steps = LPS @ stored.affine[:3, :3]
    spacing = np.linalg.norm(steps, axis=0)
    image.SetSpacing(spacing.tolist())
    image.SetDirection((steps / spacing).ravel().tolist())
    image.SetOrigin((LPS @ stored.affine[:3, 3]).tolist())
    sitk.WriteImage(image, str(path), useCompression=compressed)


def write_by_hand(stored: Stored, path: Path) -> None:
    """NRRD or MetaImage with the high bytes first, which neither program writes here."""
    steps, origin = LPS @ stored.affine[:3, :3], LPS @ stored.affine[:3, 3]
    data = stored.array.T.astype(stored.array.dtype.newbyteorder(">")).tobytes()
    sizes = " ".join(map(str, stored.array.shape))
    kind = stored.array.dtype.str[1:]
    if path.suffix == ".nrrd":
        names = {"i": "int", "u": "uint", "f": {"f4": "float", "f8": "double"}.get(kind, "")}
        typed = names["f"] if kind[0] == "f" else f"{names[kind[0]]}{8 * int(kind[1])}"
        columns = " ".join(f"({','.join(repr(float(x)) for x in column)})" for column in steps.T)
        head = (
            f"NRRD0004\ntype: {typed}\ndimension: 3\nspace: left-posterior-superior\nsizes: {sizes}\n"
            f"space directions: {columns}\nkinds: domain domain domain\nendian: big\nencoding: raw\n"
            f"space origin: ({','.join(repr(float(x)) for x in origin)})\n\n"
        )
    else:
        spacing = np.linalg.norm(steps, axis=0)
        head = (
            "ObjectType = Image\nNDims = 3\nBinaryData = True\nBinaryDataByteOrderMSB = True\n"
            f"CompressedData = False\nTransformMatrix = {_numbers((steps / spacing).T.ravel())}\n"
            f"Offset = {_numbers(origin)}\nElementSpacing = {_numbers(spacing)}\nDimSize = {sizes}\n"
            f"ElementType = MET_{META_TYPES[kind]}\nElementDataFile = LOCAL\n"
        )
    path.write_bytes(head.encode("ascii") + data)


def _numbers(row: np.ndarray) -> str:
    return " ".join(repr(float(x)) for x in row)


def as_nibabel_sees(path: Path) -> Stored:
    """A file through nibabel alone."""
    image: Any = nib.load(path)
    return Stored(np.asanyarray(image.dataobj), image.affine)


def as_itk_sees(path: Path) -> Stored:
    """A file through SimpleITK alone, RAS mm."""
    image = sitk.ReadImage(str(path))
    direction = np.array(image.GetDirection()).reshape(3, 3)
    affine = np.eye(4)
    affine[:3, :3] = LPS @ direction * np.array(image.GetSpacing())
    affine[:3, 3] = LPS @ np.array(image.GetOrigin())
    return Stored(sitk.GetArrayFromImage(image).T, affine)
