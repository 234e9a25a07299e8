"""LDDMM and RDMM through the command: register, shoot the transform again, apply it."""

from __future__ import annotations

import json

import numpy as np
import pytest
import SimpleITK as sitk

from DiffeoRegLib.cli import main
from DiffeoRegLib.geodesic_files import SavedGeodesics, reshoot
from DiffeoRegLib.volumes.files import read_volume, write_volume
from DiffeoRegLib.volumes.resample import warp_volume
from Testing.fake_run import blobs, hostile_grid, labels_of
from Testing.geodesic_cases import whole_kernel

LDDMM = ["--method", "lddmm", "--kernel-sigmas", "0.15,0.3", "--init", "affine"]
RDMM = [
    "--method", "rdmm-regions", "--kernel-sigmas", "0.14,0.2,0.25,0.3", "--init", "identity",
    "--integrator", "dopri5",
    "--regions", "parts.nii.gz", "--stiffness", "1=soft", "--stiffness", "2=0.2,0.5,0.3,0",
]  # fmt: skip
FILES = {
    "transform.h5", "inverse.h5", "moved.nii.gz", "report.json",
    "geodesic.safetensors", "sigma_moving.nii.gz", "sigma_fixed.nii.gz",
}  # fmt: skip


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """A folder with a pair that a geodesic brings together, and a label map of the moving image."""
    folder = tmp_path_factory.mktemp("images")
    fixed = blobs(hostile_grid((20, 24, 26)), "fixed")
    known = SavedGeodesics((whole_kernel(fixed.grid),), fixed.grid, fixed.grid, np.eye(4))
    moving = warp_volume(fixed, reshoot(known)[1], fixed.grid)
    for name, volume in (("fixed", fixed), ("moving", moving), ("parts", labels_of(moving))):
        write_volume(volume, folder / f"{name}.nii.gz")
    return folder


@pytest.fixture(scope="module", params=[LDDMM, RDMM], ids=["lddmm", "rdmm-regions"])
def finished(request, images):
    """Images and results of one real run."""
    out = images / request.param[1]
    words = [str(images / word) if word.endswith(".nii.gz") else word for word in request.param]
    pair = [str(images / "fixed.nii.gz"), str(images / "moving.nii.gz")]
    more = ["-o", str(out), "--iterations", "8,6,0", "--no-html", "--quiet", "--device", "cpu"]
    assert main(["register", *pair, *more, *words]) == 0
    return images, out


def numbers(path):
    """All numbers of a transform file."""
    parts = sitk.CompositeTransform(sitk.ReadTransform(str(path)))
    return [np.array(parts.GetNthTransform(n).GetParameters()) for n in range(parts.GetNumberOfTransforms())]


def test_the_run_is_good_and_leaves_its_geodesic(finished):
    _, out = finished
    assert {path.name for path in out.iterdir()} == FILES
    report = json.loads((out / "report.json").read_text(encoding="utf-8"))
    similarity = report["similarity"]
    assert similarity["final"]["ncc"] > similarity["given"]["ncc"]
    assert report["folds"]["folded_percent"] == 0
    assert report["displacement_mm"]["deformation"]["max"] > 0.5
    size = {name: (out / name).stat().st_size for name in ("geodesic.safetensors", "transform.h5")}
    assert size["geodesic.safetensors"] < size["transform.h5"] / 2
    assert float(read_volume(out / "sigma_fixed.nii.gz").data.min()) > 0


def test_the_transform_is_shot_again_bit_for_bit(finished, tmp_path):
    _, out = finished
    words = ["-o", str(tmp_path / "t.h5"), "--inverse-output", str(tmp_path / "i.h5"), "--quiet"]
    assert main(["shoot", str(out / "geodesic.safetensors"), *words]) == 0
    for again, written in (("t.h5", "transform.h5"), ("i.h5", "inverse.h5")):
        pairs = list(zip(numbers(tmp_path / again), numbers(out / written), strict=True))
        assert len(pairs) == 2
        for mine, theirs in pairs:
            np.testing.assert_array_equal(mine, theirs)


def test_half_of_the_way_lies_between(finished, tmp_path):
    images, out = finished
    words = ["--times", "0,0.5,1", "-o", str(tmp_path / "way.h5"), "--quiet"]
    assert main(["shoot", str(out / "geodesic.safetensors"), *words]) == 0
    fixed = read_volume(images / "fixed.nii.gz")
    distance = []
    for number in range(3):
        moved = tmp_path / f"moved_{number}.nii.gz"
        like = ["--like", str(images / "fixed.nii.gz"), "-o", str(moved), "--quiet"]
        way = str(tmp_path / f"way_{number:03d}.h5")
        assert main(["apply", way, str(images / "moving.nii.gz"), *like]) == 0
        distance.append(float((read_volume(moved).data - fixed.data).square().mean()))
    assert distance[2] < distance[1] < distance[0]
