"""The pairs of the results page, by set; see peer_data.py for those that other benchmarks share.

brain        pairs of persons that no training saw, each person once per two pairs
tumour       a healthy brain onto a glioma (tissues of either image by themselves, outside the lesion; see
             lesion_tissues.py), and onto a lesion with a known mass effect (exact landmarks within 10 mm)
lung, liver  landmarks; abdomen: a CT with a known motion, exact landmarks
multimodal   T1 and FLAIR with a known motion; CT and MR of two persons
hippocampus  crops of persons that no training saw, two labels
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import SimpleITK as sitk
import torch
from scipy import ndimage

sys.path.insert(0, str(Path(__file__).resolve().parent))

import peer_data
from peer_pair import Pair

from DiffeoRegLib.space.grid import Grid
from DiffeoRegLib.space.sample import array_from_tensor
from DiffeoRegLib.training.draws import generator_for
from DiffeoRegLib.volumes.files import read_volume, write_volume
from DiffeoRegLib.volumes.intensity import intensity_window, normalise, resample_affine
from DiffeoRegLib.volumes.volume import Volume

Source = Callable[[Path, Path], Iterator[Pair]]
VENTRICLES = (49, 50, 51, 52)
HIPPOCAMPI = (("001", "056"), ("019", "075"), ("037", "093"))
BRAINS = ("brain_1110_1113", "brain_1116_1101", "brain_1101_1110", "brain_1113_1116", "brain_1101_1113",
          "brain_1110_1116")  # fmt: skip
"""The first two hold every person once."""
POINTS = 500


def brain(data: Path, cache: Path) -> Iterator[Pair]:
    """With regions of the moving brain: ventricles 1, the rest 2."""
    pairs = {pair.name: pair for pair in peer_data.brain(data, cache)}
    for name in BRAINS:
        pair = pairs[name]
        regions = cache / f"{name}_regions.nii.gz"
        if not regions.exists():
            assert pair.moving_labels is not None
            labels = sitk.ReadImage(str(pair.moving_labels))
            values = sitk.GetArrayFromImage(labels)
            parts = np.where(np.isin(values, VENTRICLES), 1, np.where(values > 0, 2, 0)).astype(np.uint8)
            _write_like(parts, labels, regions)
        yield replace(pair, regions=regions)


def tumour(data: Path, cache: Path) -> Iterator[Pair]:
    """A real glioma, then one with known truth."""
    yield _glioma(data, cache)
    yield _implanted(data, cache)


def _glioma(data: Path, cache: Path) -> Pair:
    from Testing.benchmarks.lesion_data import healthy_brains, patients
    from Testing.benchmarks.lesion_patients import cut_out
    from Testing.benchmarks.lesion_tissues import tissues_of

    stem = "tumour_glioma0005_1101"
    ends = ("fixed", "lesion", "moving", "fixed_tissues", "moving_tissues")
    files = {end: cache / f"{stem}_{end}.nii.gz" for end in ends}
    if not all(file.exists() for file in files.values()):
        cache.mkdir(parents=True, exist_ok=True)
        brains = healthy_brains(data)
        healthy = next(one.image for one in brains if one.name == "1101")
        ill = next(one for one in patients(data, cache, brains[0].image) if one.name == "glioma0005")
        assert ill.pathology is not None
        fixed, lesion = cut_out(read_volume(ill.image), read_volume(ill.pathology, labels=True))
        moving = read_volume(healthy)
        marked = array_from_tensor(lesion.data) != 0
        maps = tissues_of(fixed, marked)[0], tissues_of(moving)[0]
        for end, volume in zip(ends, (fixed, lesion, moving, *maps), strict=True):
            write_volume(volume, files[end], overwrite=True)
    return Pair("tumour", stem, files["fixed"], files["moving"], files["fixed_tissues"],
                files["moving_tissues"], fixed_lesion=files["lesion"])  # fmt: skip


def _implanted(data: Path, cache: Path) -> Pair:
    from DiffeoRegLib.training.lesion_pairs import known_pair
    from Testing.benchmarks.lesion_data import LESIONS_3D, MOTION_3D

    stem = "tumour_known_1113"
    files = {end: cache / f"{stem}_{end}.nii.gz" for end in ("fixed", "lesion", "moving")}
    points = cache / f"{stem}_points.npz"
    if not points.exists():
        cache.mkdir(parents=True, exist_ok=True)
        whole = read_volume(data / "malf_miccai2012" / "1113_SS.nii.gz")
        grid: Grid = whole.grid.coarsened([max(1, round(2.0 / step)) for step in whole.grid.spacing])
        image = normalise(resample_affine(whole, grid), intensity_window(whole))
        moving, patient, truth = known_pair(image, generator_for("results page", stem), LESIONS_3D, MOTION_3D)
        lesion = (patient.pathology[0, 0] > 0.5).to(torch.int32)
        for end, values in (("fixed", patient.image[0, 0]), ("moving", moving[0, 0]), ("lesion", lesion)):
            volume = Volume(values.contiguous(), grid, end, is_labels=end == "lesion")
            write_volume(volume, files[end], overwrite=True)
        marked = array_from_tensor(lesion) > 0
        near = ndimage.distance_transform_edt(~marked, sampling=grid.spacing) <= 10
        tissue = array_from_tensor(patient.organ[0, 0]) > 0.5
        index = np.argwhere(near & tissue)
        index = np.random.default_rng(3).permutation(index)[:POINTS].astype(np.float64)
        at = tuple(index.astype(int).T)
        shift = np.stack([array_from_tensor(truth[0, axis])[at] for axis in range(3)], axis=1)
        lps = np.array([-1.0, -1.0, 1.0])
        found = [(grid.world_from_voxel[:3, :3] @ p.T).T + grid.world_from_voxel[:3, 3]
                 for p in (index, index + shift)]  # fmt: skip
        np.savez(points, fixed=found[0] * lps, moving=found[1] * lps)
    truth_points = np.load(points)
    return Pair("tumour", stem, files["fixed"], files["moving"], fixed_points_mm=truth_points["fixed"],
                moving_points_mm=truth_points["moving"], fixed_lesion=files["lesion"])  # fmt: skip


def abdomen(data: Path, cache: Path) -> Iterator[Pair]:
    """The CT with a known motion."""
    yield from (pair for pair in peer_data.abdomen(data, cache) if pair.one_modality)


def liver(data: Path, cache: Path) -> Iterator[Pair]:
    """One state of each person before the others."""
    pairs = list(peer_data.liver(data, cache))
    yield from (*pairs[::2], *pairs[1::2])


def multimodal(data: Path, cache: Path) -> Iterator[Pair]:
    """T1 and FLAIR, CT and MR."""
    pairs = [*peer_data.contrast(data, cache), *peer_data.abdomen(data, cache), *peer_data.ctmr(data, cache)]
    wanted = ("contrast_t1_flair", "abdomen_ct_mr", "contrast_flair_t1", "ctmr_abdomen_mr_ct")
    by_name = {pair.name: pair for pair in pairs}
    yield from (by_name[name] for name in wanted)


def hippocampus(data: Path, cache: Path) -> Iterator[Pair]:
    """Pairs of the test persons."""
    folder = data / "msd_hippocampus"
    for fixed, moving in HIPPOCAMPI:
        files = [folder / kind / f"hippocampus_{who}.nii.gz" for kind in ("images", "labels")
                 for who in (fixed, moving)]  # fmt: skip
        yield Pair("hippocampus", f"hippocampus_{fixed}_{moving}", files[0], files[1], files[2], files[3])


SETS: dict[str, Source] = {
    "brain": brain,
    "tumour": tumour,
    "lung": peer_data.lung,
    "liver": liver,
    "abdomen": abdomen,
    "multimodal": multimodal,
    "hippocampus": hippocampus,
    "quick": peer_data.quick,
}
PAIRS = {"brain": 2, "tumour": 2, "lung": 1, "liver": 2, "abdomen": 1, "multimodal": 2, "hippocampus": 2,
         "quick": 1}  # fmt: skip
"""How many of each are run unless --pairs says otherwise."""


def flags_of(pair: Pair, method: str) -> tuple[str, ...]:
    """What our command is given about this pair besides the images."""
    lesions = method in ("metamorphosis", "metaregnet", "metaregnet-brain-t1")
    if pair.fixed_lesion is not None and lesions:
        return ("--pathology", str(pair.fixed_lesion))
    if pair.regions is not None and method == "rdmm-regions":
        return ("--regions", str(pair.regions), "--stiffness", "1=soft", "--stiffness", "2=normal",
                "--rest", "normal")  # fmt: skip
    return ()


def _write_like(values: np.ndarray, like: sitk.Image, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = sitk.GetImageFromArray(values)
    image.CopyInformation(like)
    sitk.WriteImage(image, str(path))
