"""What a network makes of slices with lesions, as in the figure of MetaRegNet's paper; run by hand.

    PYTHONPATH=. python Testing/benchmarks/lesion_pictures.py WEIGHTS --cases CASE.safetensors --out OUT.png
    PYTHONPATH=. python Testing/benchmarks/lesion_pictures.py WEIGHTS --open DATA --out OUT.png

One row per case: healthy image, patient, marks, change of appearance within them, deformed healthy image
with the map's lines, and the sum of both.  --open makes three cases of images that anybody may show: the
template of nilearn (MNI, BSD) brought onto a glioma (pyradiomics, BSD-3-Clause), onto multiple sclerosis
(open_ms_data, CC BY) and onto another slice of that brain with a lesion that `training/lesions.py` puts in.
DATA holds the folders nilearn_mni, pyradiomics and open_ms_data.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import matplotlib
import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage
from torch import Tensor, nn

from DiffeoRegLib.networks.weights import read_network
from DiffeoRegLib.space.grid import Grid
from DiffeoRegLib.space.sample import array_from_tensor, identity_vox, tensor_from_array, warp
from DiffeoRegLib.training.appearance_terms import change_of
from DiffeoRegLib.training.draws import generator_for
from DiffeoRegLib.training.lesions import implant, organ_of
from DiffeoRegLib.volumes.files import read_volume
from DiffeoRegLib.volumes.intensity import resample_affine
from DiffeoRegLib.volumes.volume import Volume
from Testing.benchmarks.lesion_data import LESIONS_2D, QUANTILES, SHAPE_2D, Case, cases

matplotlib.use("Agg")
import matplotlib.pyplot as plt

TITLES = ("healthy", "patient", "marks", "change in the marks", "deformed healthy", "deformed + change")
LINES = 6
"""Voxels between lines of the map."""
CENTER_MM = (0.0, -18.0)
"""Right and anterior of the middle of the slices, MNI."""
TUMOUR_LEVEL = 16
"""Slice of the pyradiomics image; its tumour is largest there."""
BONE, SCALP, STRIP = 0.6, 1.6, 5
"""Intensities of bone and scalp by that of the middle, and how many voxels are between them and the brain."""
SEED = 4
LEVELS_MM = {"glioma": 26.0, "ms": 22.0, "implanted": 6.0}
"""Upwards, MNI: of the template, and of the patient where it lies in that space."""
MS = Path("open_ms_data/cross_sectional/MNI/patient19")
MS_NAME = "T1_N4_noneck_reduced_winsor_regtoFLAIR_brain_N4_regtoMNI.nii.gz"
MS_LESIONS = "GOLD_STANDARD_N4_noneck_reduced_winsor_regtoFLAIR_regtoMNI.nii.gz"


# ---------------------------------------------------------------- images anybody may show


def slice_of(volume: Volume, level_mm: float, *, labels: bool = False) -> NDArray[np.float64]:
    """Axial slice, 1 mm, rows forwards, columns to the right, (192, 160)."""
    matrix = np.eye(4)[:, [2, 1, 0, 3]]  # index (S, A, R) to (R, A, S)
    low = [-(n - 1) / 2 for n in SHAPE_2D]
    matrix[:3, 3] = [CENTER_MM[0] + low[1], CENTER_MM[1] + low[0], level_mm]
    grid = Grid((1, *SHAPE_2D), matrix)
    read = resample_affine(
        volume, grid, mode="nearest" if labels else "linear", outside="zeros" if labels else "border"
    )
    return array_from_tensor(read[0, 0, 0]).astype(np.float64)


def template(data: Path, level_mm: float) -> NDArray[np.float64]:
    """The brain of the MNI template in [0, 1]."""
    place = data / "nilearn_mni"
    image, grey, white = (
        read_volume(place / f"mni_icbm152_{kind}_tal_nlin_sym_09a_converted.nii.gz")
        for kind in ("t1", "gm", "wm")
    )
    tissue = slice_of(grey, level_mm) + slice_of(white, level_mm) > 60
    brain = ndimage.binary_fill_holes(ndimage.binary_closing(tissue, iterations=4))
    values = slice_of(image, level_mm) * brain
    found: NDArray[np.float64] = np.clip(values / np.percentile(values[brain], 99.5), 0, 1)
    return found


def stretched_onto(
    values: NDArray[np.float64], brain: NDArray[np.bool_], wanted: NDArray[np.bool_], order: int = 1
) -> NDArray[np.float64]:
    """A picture scaled and shifted along its axes so that its brain is as long and wide as the wanted one."""
    boxes = [(_box(brain, axis), _box(wanted, axis)) for axis in (0, 1)]
    factors = [(own[1] - own[0]) / (other[1] - other[0]) for own, other in boxes]
    offsets = [own[0] - factor * other[0] for (own, other), factor in zip(boxes, factors, strict=True)]
    found: NDArray[np.float64] = ndimage.affine_transform(
        values.astype(np.float64), np.array(factors), offsets, wanted.shape, order=order
    )
    return found


def _box(mask: NDArray[np.bool_], axis: int) -> tuple[int, int]:
    """First and last index of a mask along an axis."""
    there = np.flatnonzero(mask.any(1 - axis))
    return int(there[0]), int(there[-1])


def matched(
    values: NDArray[np.float64],
    brain: NDArray[np.bool_],
    healthy: NDArray[np.bool_],
    reference: NDArray[np.float64],
) -> NDArray[np.float64]:
    """The brain alone, with the reference's quantiles where it is healthy; see `lesion_data.matched`."""
    own = np.percentile(values[brain & healthy], QUANTILES)
    wanted = np.percentile(reference[reference > 0], QUANTILES)
    found: NDArray[np.float64] = np.interp(values, own, wanted) * brain
    return found


Picture = tuple[NDArray[np.float64], NDArray[np.bool_], NDArray[np.bool_]]
"""Values, where the brain is, where the lesion is."""


def glioma(data: Path) -> Picture:
    """The slice of the pyradiomics patient, 1 mm, its skull taken off, (192, 160)."""
    place = data / "pyradiomics"
    image = read_volume(place / "brain1_image.nrrd")
    label = read_volume(place / "brain1_label.nrrd", labels=True)
    values = array_from_tensor(image.data[TUMOUR_LEVEL]).astype(np.float64)[:, ::-1]  # stored leftwards
    marked = array_from_tensor(label.data[TUMOUR_LEVEL])[:, ::-1] > 0
    brain = stripped(values) | marked
    step = image.grid.spacing[-1]
    middle = [sum(_box(brain, axis)) / 2 for axis in (0, 1)]
    offsets = [m - (n - 1) / 2 / step for m, n in zip(middle, SHAPE_2D, strict=True)]

    def read(picture: NDArray[np.generic]) -> NDArray[np.float64]:
        found: NDArray[np.float64] = ndimage.affine_transform(
            picture.astype(np.float64), np.full(2, 1 / step), offsets, SHAPE_2D, order=1
        )
        return found

    return read(values), read(brain) > 0.5, read(marked) > 0.5


def stripped(values: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Where a brain is in an axial slice of a head: what the dark ring of the bone surrounds."""
    smooth = ndimage.gaussian_filter(values, 1.0)
    middle = tuple(slice(n // 2 - n // 8, n // 2 + n // 8) for n in values.shape)
    level = np.median(smooth[middle])
    tissue = (smooth > BONE * level) & (smooth < SCALP * level)
    parts, _ = ndimage.label(ndimage.binary_erosion(tissue, iterations=STRIP))
    counts = np.bincount(parts[middle].ravel(), minlength=2)
    brain = ndimage.binary_dilation(parts == 1 + counts[1:].argmax(), iterations=STRIP)
    whole = ndimage.binary_fill_holes(ndimage.binary_closing(brain, iterations=2 * STRIP))
    found: NDArray[np.bool_] = ndimage.binary_opening(whole, iterations=4 * STRIP)
    return found


def open_cases(data: Path) -> list[Case]:
    """The three cases of the head of this file."""
    image, lesions = read_volume(data / MS / MS_NAME), read_volume(data / MS / MS_LESIONS, labels=True)
    found = []
    for name, level in LEVELS_MM.items():
        if name == "glioma":
            values, brain, marked = glioma(data)
        else:
            values, marked = slice_of(image, level), slice_of(lesions, level, labels=True) > 0
            brain = ndimage.binary_fill_holes(values > 0.1 * np.percentile(values, 99))
        healthy = template(data, level)
        healthy = stretched_onto(healthy, healthy > 0, brain)
        patient = matched(values, brain, ~marked, healthy)
        fixed, marks = _tensor(patient), _tensor(marked)
        if name == "implanted":
            made = implant(fixed, generator_for("lesion picture", SEED), LESIONS_2D)
            fixed, marks = made.image, made.pathology
        organ = torch.maximum(organ_of(fixed), marks)
        found.append(Case(name, (1.0, 1.0), _tensor(healthy), fixed, marks, organ))
    return found


def _tensor(values: NDArray[np.generic]) -> Tensor:
    """(1, 1, *shape), float32."""
    return tensor_from_array(np.ascontiguousarray(values), torch.float32)[None, None]


# ---------------------------------------------------------------- the picture


@torch.no_grad()
def draw(network: nn.Module, shown: Sequence[Case], path: Path) -> None:
    """One row per case."""
    rows = len(shown)
    figure, axes = plt.subplots(rows, len(TITLES), figsize=(2.1 * len(TITLES), 2.6 * rows), squeeze=False)
    for axis, title in zip(axes[0], TITLES, strict=True):
        axis.set_title(title, fontsize=9)
    for row, case in zip(axes, shown, strict=True):
        maps = network(case.moving, case.fixed)
        u_vox, change = maps.u12.float(), change_of(maps, case.pathology)
        if change is None:
            change = torch.zeros_like(case.fixed)
        deformed = warp(case.moving, u_vox)
        pictures = (case.moving, case.fixed, case.pathology, change, deformed, deformed + change)
        for number, (axis, tensor) in enumerate(zip(row, pictures, strict=True)):
            low, high, colours = (-1, 1, "RdBu_r") if number == 3 else (0, 1, "gray")
            axis.imshow(array_from_tensor(tensor[0, 0]), cmap=colours, vmin=low, vmax=high, origin="lower")
            axis.set_xticks([])
            axis.set_yticks([])
        row[0].set_ylabel(case.name, fontsize=9)
        row[1].contour(array_from_tensor(case.pathology[0, 0]), [0.5], colors="tab:red", linewidths=0.7)
        position = array_from_tensor((identity_vox(u_vox.shape[2:], u_vox.dtype, u_vox.device) + u_vox)[0])
        for values in position:
            row[4].contour(values, np.arange(0, values.max(), LINES), colors="gold", linewidths=0.35)
    figure.tight_layout(pad=0.4)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=80)
    plt.close(figure)
    with Image.open(path) as picture:
        few = picture.convert("RGB").quantize(256, method=Image.Quantize.MAXCOVERAGE)
    few.save(path, optimize=True)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("weights", type=Path)
    parser.add_argument("--cases", type=Path, nargs="+", default=[])
    parser.add_argument("--open", type=Path, metavar="DATA")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    shown = [] if options.open is None else open_cases(options.open)
    for path in options.cases:
        shown += [case for case in cases(path.parent) if case.name == path.stem]
    if not shown:
        parser.error("--cases or --open says what to show")
    draw(read_network(options.weights)[0], shown, options.out)


if __name__ == "__main__":
    main()
