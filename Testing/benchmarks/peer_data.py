"""The benchmark pairs and the one initial alignment that every program gets.

Sets (all from the project's data folder; no result was looked at to choose a pair):

brain     Six T1 pairs of `brain_pairs.csv` (two people each, 138 Neuromorphometrics labels). Start: affine.
lung      Right lung CT, half-resolution baseline against follow-up, 26 landmarks, 36 mm apart. The follow-up
          was reconstructed from a published registration; voxels outside its valid mask become air (-1000).
          Lung masks exist and are handed over only with `--masks`. Start: affine.
liver     4D MR of two people, exhale master against two breathing states each; liver and outside landmarks.
          One file has a wrong z spacing (5 instead of 4); a corrected copy is written to the cache.
          Start: identity, because all states of one person were scanned in one frame.
abdomen   (a) CT against MR of two people, 3 mm slabs, automatic organ labels brought to one numbering.
          Start: affine. (b) A CT against itself under a known smooth motion of up to 20 mm, other noise, 500
          exact landmarks. Start: identity.
contrast  T1 against FLAIR of one person, aligned by their publisher; the moving image is pulled through a
          known affine and a known smooth motion, which gives 500 exact landmarks in the head and a lesion
          mask for Dice; both directions. Start: affine.
ctmr      (a) MR fixed against the other person's CT (organ labels). Start: affine. (b) T1 against CT of one
          person's sarcoma, published aligned, so the CT is pulled through a known smooth motion of up to
          12 mm (exact landmarks, tumour mask for Dice). Start: identity.
quick     A tiny synthetic pair with labels and exact landmarks, for smoke runs.

Every start is computed once per pair and saved as `PAIR.tfm` (ITK, LPS, fixed point -> moving point).
"""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import SimpleITK as sitk
from peer_pair import Pair, read_points, synthetic_pair


def brain(data: Path, cache: Path) -> Iterator[Pair]:
    lines = [
        line
        for line in (data / "brain_pairs.csv").read_text(encoding="utf-8").splitlines()
        if line and line[0] != "#"
    ]
    for row in csv.DictReader(lines):
        files = {key: data / value for key, value in row.items()}
        name = f"brain_{files['fixed'].name[:4]}_{files['moving'].name[:4]}"
        yield Pair(
            "brain", name, files["fixed"], files["moving"], files["fixed_labels"], files["moving_labels"]
        )


def lung(data: Path, cache: Path) -> Iterator[Pair]:
    folder, moving = data / "elastix_lung", cache / "lung_followup.nii.gz"
    if not moving.exists():
        cache.mkdir(parents=True, exist_ok=True)
        image = sitk.Cast(sitk.ReadImage(str(folder / "derived_followup_reconstructed.mha")), sitk.sitkInt16)
        valid = sitk.Cast(sitk.ReadImage(str(folder / "derived_followup_valid.mha")), sitk.sitkUInt8)
        sitk.WriteImage(sitk.Mask(image, valid, -1000), str(moving))
    yield Pair(
        "lung",
        "lung_baseline_followup",
        folder / "3DCT_lung_baseline_small.mha",
        moving,
        fixed_points_mm=read_points(folder / "landmarks_dev_fixed_baseline.txt"),
        moving_points_mm=read_points(folder / "landmarks_dev_moving_followup.txt"),
        fixed_mask=folder / "3DCT_lung_baseline_mask.mha",
        moving_mask=folder / "3DCT_lung_followup_mask.mha",
        outside=-1000.0,
    )


def liver(data: Path, cache: Path) -> Iterator[Pair]:
    for person, states in (("dataset18", ("cyc_1_10", "cyc_3_10")), ("dataset23", ("cyc_1_4", "cyc_5_4"))):
        folder = data / "ptvreg_ethliver" / person
        fixed = folder / "exhMaster_unmasked.force_direction.mha"
        for state in states:
            moving = folder / f"{state}.force_direction.mha"
            image = sitk.ReadImage(str(moving))
            spacing = sitk.ReadImage(str(fixed)).GetSpacing()
            if image.GetSpacing() != spacing:
                moving = cache / f"liver_{person}_{state}.nii.gz"
                if not moving.exists():
                    cache.mkdir(parents=True, exist_ok=True)
                    image.SetSpacing(spacing)
                    sitk.WriteImage(image, str(moving))
            points = [
                np.concatenate([read_points(folder / f"{stem}LM{kind}.vtk") for kind in ("liver", "outside")])
                for stem in ("exhMaster", state)
            ]
            yield Pair(
                "liver",
                f"liver_{person}_{state}",
                fixed,
                moving,
                fixed_points_mm=points[0],
                moving_points_mm=points[1],
                start="identity",
            )


# CT numbering -> MR numbering of the automatic organ labels; organs cut into lobes or levels are merged.
_MR_FROM_CT = {
    **{n: n for n in range(1, 10)},
    10: 10,
    11: 10,
    12: 11,
    13: 11,
    14: 11,
    18: 13,
    19: 14,
    20: 15,
    **dict.fromkeys(range(27, 51), 19),
    79: 21,
    52: 23,
    63: 24,
    64: 25,
    86: 46,
    87: 47,
    88: 48,
    89: 49,
}


def _organ_labels(data: Path, cache: Path) -> tuple[Path, Path]:
    folder = data / "totalseg_ct"
    ct, mr = cache / "organs_ct.nii.gz", cache / "organs_mr.nii.gz"
    if not (ct.exists() and mr.exists()):
        cache.mkdir(parents=True, exist_ok=True)
        table = np.zeros(256, dtype=np.uint8)
        for number, common in _MR_FROM_CT.items():
            table[number] = common
        keep = np.zeros(256, dtype=np.uint8)
        keep[list(set(_MR_FROM_CT.values()))] = list(set(_MR_FROM_CT.values()))
        for source, lookup, target in (("example_seg", table, ct), ("example_seg_mr", keep, mr)):
            labels = sitk.ReadImage(str(folder / f"{source}.nii.gz"))
            image = sitk.GetImageFromArray(lookup[sitk.GetArrayFromImage(labels)])
            image.CopyInformation(labels)
            sitk.WriteImage(image, str(target))
    return ct, mr


def abdomen(data: Path, cache: Path) -> Iterator[Pair]:
    ct_labels, mr_labels = _organ_labels(data, cache)
    folder = data / "totalseg_ct"
    ct, mr = folder / "example_ct_sm.nii.gz", folder / "example_mr_sm.nii.gz"
    yield Pair("abdomen", "abdomen_ct_mr", ct, mr, ct_labels, mr_labels, one_modality=False)
    whole = folder / "example_ct.nii.gz"
    yield synthetic_pair(
        "abdomen",
        "abdomen_ct_known",
        whole,
        whole,
        cache,
        amplitude_mm=20.0,
        cell_mm=80.0,
        outside=-1000.0,
        misalign=False,
    )


def contrast(data: Path, cache: Path) -> Iterator[Pair]:
    folder = data / "open_ms_data" / "cross_sectional" / "MNI" / "patient19"
    t1 = folder / "T1_N4_noneck_reduced_winsor_regtoFLAIR_brain_N4_regtoMNI.nii.gz"
    flair = folder / "FLAIR_N4_noneck_reduced_winsor_regtoFLAIR_brain_N4_regtoMNI.nii.gz"
    lesions = folder / "GOLD_STANDARD_N4_noneck_reduced_winsor_regtoFLAIR_regtoMNI.nii.gz"
    for name, fixed, moved in (("contrast_t1_flair", t1, flair), ("contrast_flair_t1", flair, t1)):
        yield synthetic_pair(
            "contrast",
            name,
            fixed,
            moved,
            cache,
            amplitude_mm=8.0,
            cell_mm=40.0,
            labels=lesions,
            one_modality=False,
        )


def ctmr(data: Path, cache: Path) -> Iterator[Pair]:
    ct_labels, mr_labels = _organ_labels(data, cache)
    folder, sarcoma = data / "totalseg_ct", data / "mirp_sts"
    yield Pair(
        "ctmr",
        "ctmr_abdomen_mr_ct",
        folder / "example_mr_sm.nii.gz",
        folder / "example_ct_sm.nii.gz",
        mr_labels,
        ct_labels,
        one_modality=False,
        outside=-1000.0,
    )
    yield synthetic_pair(
        "ctmr",
        "ctmr_sarcoma_t1_ct",
        sarcoma / "STS_002_MR_T1_image.nii.gz",
        sarcoma / "STS_002_CT_image.nii.gz",
        cache,
        amplitude_mm=12.0,
        cell_mm=45.0,
        labels=sarcoma / "STS_002_CT_mask.nii.gz",
        fixed_labels=sarcoma / "STS_002_MR_T1_mask.nii.gz",
        outside=-1000.0,
        misalign=False,
        one_modality=False,
    )


def quick(data: Path, cache: Path) -> Iterator[Pair]:
    cache.mkdir(parents=True, exist_ok=True)
    fixed, labels = cache / "quick_fixed.nii.gz", cache / "quick_labels.nii.gz"
    if not labels.exists():
        grid = np.stack(np.meshgrid(*(np.linspace(-1, 1, n) for n in (40, 44, 48)), indexing="ij"))
        radius = np.sqrt((grid**2).sum(axis=0))
        parts = (radius < 0.75).astype(np.uint8) + (radius < 0.45) + ((radius < 0.45) & (grid[0] > 0))
        texture = 6 * np.sin(9 * grid[0]) * np.sin(8 * grid[1]) * np.sin(7 * grid[2])
        for path, values in (
            (fixed, (40.0 * parts + texture * (parts > 0)).astype(np.float32)),
            (labels, parts),
        ):
            image = sitk.GetImageFromArray(values)
            image.SetSpacing((1.5, 1.5, 2.0))
            image.SetOrigin((10.0, -20.0, 5.0))
            sitk.WriteImage(image, str(path))
    yield synthetic_pair("quick", "quick", fixed, fixed, cache, amplitude_mm=5.0, cell_mm=25.0, labels=labels)


SETS: dict[str, Callable[[Path, Path], Iterator[Pair]]] = {
    "brain": brain,
    "lung": lung,
    "liver": liver,
    "abdomen": abdomen,
    "contrast": contrast,
    "ctmr": ctmr,
    "quick": quick,
}
