"""How well, how fast and from how far the initial alignment works, against SimpleITK's affine.

    python Testing/benchmarks/initial_alignment.py DATA [--trials 8] [--only brain capture]

brain     label Dice and seconds on the pairs of DATA/brain_pairs.csv: ours and SimpleITK's affine (Mattes
          information from the moments, two levels; the program that makes the benchmark's common start)
capture   a brain and a lung pair with the moving image's place turned by 20 to 40 degrees, shifted by 20 to
          60 mm and one storage axis run backwards: mean distance to the alignment from the given place, mm
contrast  T1 and FLAIR of one person published as aligned: mean distance to the identity, mm
known     a chest CT and its rigidly moved copy: mean distance to the published transform, mm
"""

from __future__ import annotations

import argparse
import csv
import time
from pathlib import Path

import numpy as np
import SimpleITK as sitk
import torch
from scipy.spatial.transform import Rotation

from DiffeoRegLib.methods.affine import initial_alignment
from DiffeoRegLib.settings import Settings
from DiffeoRegLib.space.grid import Grid
from DiffeoRegLib.volumes.files import read_volume
from DiffeoRegLib.volumes.intensity import foreground_points_mm, resample_affine
from DiffeoRegLib.volumes.volume import Volume

LPS = np.diag([-1.0, -1.0, 1.0, 1.0])
SUCCESS_MM = 5.0


def ras_matrix(transform: sitk.Transform) -> np.ndarray:
    """RAS mm 4x4 of a linear SimpleITK transform."""
    zero = np.array(transform.TransformPoint((0.0, 0.0, 0.0)))
    matrix = np.eye(4)
    for axis in range(3):
        matrix[:3, axis] = np.array(transform.TransformPoint(tuple(np.eye(3)[axis]))) - zero
    matrix[:3, 3] = zero
    return LPS @ matrix @ LPS


def simpleitk_affine(fixed: Path, moving: Path) -> np.ndarray:
    """SimpleITK's affine with the settings of the common start of peers.py."""
    f, m = (sitk.ReadImage(str(path), sitk.sitkFloat32) for path in (fixed, moving))
    start = sitk.CenteredTransformInitializer(
        f, m, sitk.AffineTransform(3), sitk.CenteredTransformInitializerFilter.MOMENTS
    )
    method = sitk.ImageRegistrationMethod()
    method.SetMetricAsMattesMutualInformation(32)
    method.SetMetricSamplingStrategy(method.RANDOM)
    method.SetMetricSamplingPercentage(0.2, 7)
    method.SetInterpolator(sitk.sitkLinear)
    method.SetOptimizerAsRegularStepGradientDescent(
        1.0, 1e-4, 200, relaxationFactor=0.5, gradientMagnitudeTolerance=1e-6
    )
    method.SetOptimizerScalesFromPhysicalShift()
    method.SetShrinkFactorsPerLevel([4, 2])
    method.SetSmoothingSigmasPerLevel([2, 1])
    method.SmoothingSigmasAreSpecifiedInPhysicalUnitsOn()
    method.SetInitialTransform(start, inPlace=True)
    method.Execute(f, m)
    return ras_matrix(start)


def mean_dice(fixed_labels: Volume, moving_labels: Volume, matrix: np.ndarray) -> float:
    moved = resample_affine(moving_labels, fixed_labels.grid, matrix, mode="nearest", outside="zeros")[0, 0]
    a, b = fixed_labels.data.flatten().long(), moved.round().flatten().long()
    size = int(max(a.max(), b.max())) + 1
    both = torch.bincount(a[a == b], minlength=size)
    total_a, total_b = torch.bincount(a, minlength=size), torch.bincount(b, minlength=size)
    shared = ((total_a > 0) & (total_b > 0)).nonzero().flatten()[1:]
    return float((2 * both[shared] / (total_a + total_b)[shared]).mean())


def timed(action):
    start, cpu = time.perf_counter(), time.process_time()
    result = action()
    return result, time.perf_counter() - start, time.process_time() - cpu


def brain(data: Path, trials: int) -> None:
    lines = [
        line
        for line in (data / "brain_pairs.csv").read_text(encoding="utf-8").splitlines()
        if line and line[0] != "#"
    ]
    for row in csv.DictReader(lines):
        fixed, moving = read_volume(data / row["fixed"]), read_volume(data / row["moving"])
        labels = [read_volume(data / row[key], labels=True) for key in ("fixed_labels", "moving_labels")]
        cells = []
        for name, action in (
            ("ours", lambda f=fixed, m=moving: initial_alignment(f, m, Settings())),
            ("SimpleITK", lambda r=row: simpleitk_affine(data / r["fixed"], data / r["moving"])),
        ):
            matrix, wall, cpu = timed(action)
            dice = mean_dice(*labels, matrix)
            cells.append(f"{name} Dice {dice:.4f}, {wall:5.1f} s ({cpu:.1f} CPU s)")
        print(
            f"brain {Path(row['fixed']).name[:4]}-{Path(row['moving']).name[:4]}: {'; '.join(cells)}",
            flush=True,
        )


def displaced(volume: Volume, turn: np.ndarray, flip: int | None) -> Volume:
    """The volume put elsewhere in the patient by a 4x4, one storage axis run backwards; values untouched."""
    back, data = np.eye(4), volume.data
    if flip is not None:
        back[flip, flip], back[flip, 3] = -1, volume.grid.shape[flip] - 1
        data = torch.flip(data, [flip])
    return Volume(data, Grid(volume.grid.shape, turn @ volume.grid.world_from_voxel @ back), volume.name)


def random_turn(generator: np.random.Generator, center: np.ndarray) -> np.ndarray:
    axis, shift = generator.normal(size=3), generator.normal(size=3)
    turn = np.eye(4)
    angle = np.radians(generator.uniform(20, 40))
    turn[:3, :3] = Rotation.from_rotvec(axis / np.linalg.norm(axis) * angle).as_matrix()
    shift *= generator.uniform(20, 60) / np.linalg.norm(shift)
    turn[:3, 3] = center + shift - turn[:3, :3] @ center
    return turn


def distance_mm(matrix: np.ndarray, truth: np.ndarray, fixed: Volume) -> float:
    points = foreground_points_mm(fixed, 8.0)
    points = fixed.grid.corners_mm() if points is None else points
    difference = matrix - truth
    return float(np.linalg.norm(points @ difference[:3, :3].T + difference[:3, 3], axis=1).mean())


def capture(data: Path, trials: int) -> None:
    lung = data / "elastix_lung"
    for name, fixed_file, moving_file, settings in (
        (
            "brain",
            data / "malf_miccai2012/1101_SS.nii.gz",
            data / "malf_miccai2012/1110_SS.nii.gz",
            Settings(),
        ),
        (
            "lung",
            lung / "3DCT_lung_baseline_small.mha",
            lung / "derived_followup_reconstructed.mha",
            Settings(preset="lung-ct"),
        ),
    ):
        fixed, moving = read_volume(fixed_file), read_volume(moving_file)
        reference = initial_alignment(fixed, moving, settings)
        generator, errors = np.random.default_rng(1), []
        for trial in range(trials):
            turn = random_turn(generator, moving.grid.center_mm)
            elsewhere = displaced(moving, turn, (None, 0, 1, 2)[trial % 4])
            found = np.linalg.inv(turn) @ initial_alignment(fixed, elsewhere, settings)
            errors.append(distance_mm(found, reference, fixed))
        good = sum(error < SUCCESS_MM for error in errors)
        print(
            f"capture {name}: {good} of {trials} within {SUCCESS_MM:g} mm; "
            f"median {np.median(errors):.2f}, worst {max(errors):.2f} mm",
            flush=True,
        )


def contrast(data: Path, trials: int) -> None:
    folder = data / "open_ms_data/cross_sectional/MNI/patient19"
    images = [read_volume(next(folder.glob(f"{kind}_*.nii.gz"))) for kind in ("T1", "FLAIR")]
    generator = np.random.default_rng(2)
    for fixed, moving in (images, images[::-1]):
        turn = random_turn(generator, moving.grid.center_mm)
        found = np.linalg.inv(turn) @ initial_alignment(
            fixed, displaced(moving, turn, 1), Settings(preset="multimodal")
        )
        print(
            f"contrast {fixed.name} <- {moving.name}: {distance_mm(found, np.eye(4), fixed):.2f} mm",
            flush=True,
        )


def known(data: Path, trials: int) -> None:
    folder = data / "cip_ct64"
    fixed, moving = (read_volume(folder / f"{name}.nrrd") for name in ("ct-64", "ct-64-transformed"))
    published = ras_matrix(sitk.ReadTransform(str(folder / "TranslationRotation.tfm")))
    found = initial_alignment(fixed, moving, Settings(preset="lung-ct"))
    # The file holds the transform of the object, which is the inverse of the resampling direction.
    print(f"known: {distance_mm(found, np.linalg.inv(published), fixed):.4f} mm", flush=True)


PARTS = {"brain": brain, "capture": capture, "contrast": contrast, "known": known}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", type=Path)
    parser.add_argument("--trials", type=int, default=8)
    parser.add_argument("--only", nargs="*", choices=PARTS, default=list(PARTS))
    given = parser.parse_args()
    for part in given.only:
        PARTS[part](given.data, given.trials)


if __name__ == "__main__":
    main()
