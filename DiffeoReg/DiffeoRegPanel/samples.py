"""The tutorial's images, offered in Slicer's Sample Data module; nothing is fetched before a click."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import Any

import numpy as np
import slicer
from numpy.typing import NDArray

HOMEPAGE = "https://github.com/DiffeoReg/SlicerDiffeoReg"
"""The project's page, the same as in CMakeLists.txt."""
RAW = HOMEPAGE.replace("github.com", "raw.githubusercontent.com") + "/main/Resources/SampleData/"
CATEGORY = "DiffeoReg"
BLOB_SHAPE, BLOB_SPACING_MM = (36, 40, 44), 2.0
SHIFT_MM = (4.0, -6.0, 4.0)
"""How far the moving blob lies from the fixed one, along k, j, i."""


@dataclass(frozen=True)
class SampleFile:
    """One file of a sample.

    path: below Resources/SampleData.  node: name in the scene.  kind: Slicer's file type.
    """

    path: str
    sha256: str
    node: str
    kind: str = "VolumeFile"


@dataclass(frozen=True)
class Sample:
    """What one click in Sample Data loads."""

    name: str
    files: tuple[SampleFile, ...]


SAMPLES = (
    Sample(
        "DiffeoRegHippocampus",
        (
            SampleFile(
                "hippocampus/images/hippocampus_006.nii.gz",
                "f57bc01710fa0905a7053c06d4972b827ae72bc0a2ece2f931e9fbb30d0e8a54",
                "Hippocampus fixed",
            ),
            SampleFile(
                "hippocampus/images/hippocampus_138.nii.gz",
                "b87289c1d541c0c6f440b760440efc88bd6fb9288eb573343c377d051a69eeec",
                "Hippocampus moving",
            ),
            SampleFile(
                "hippocampus/labels/hippocampus_006.nii.gz",
                "d244ec97822bb64d87582d66d7125c4879485fa4b97e48e6b78d8abed38a4a8d",
                "Hippocampus fixed segmentation",
                "SegmentationFile",
            ),
            SampleFile(
                "hippocampus/labels/hippocampus_138.nii.gz",
                "db87312c2874790ec4feda93bd601f97ede01da0048bf28b58b8552e3fdfb346",
                "Hippocampus moving segmentation",
                "SegmentationFile",
            ),
        ),
    ),
    Sample(
        "DiffeoRegBrainSlices",
        (
            SampleFile(
                "brain_slices/oasis2d_0001.nrrd",
                "d3e6cdc0a448650b321509ae033ccfc0577f814a4401fa9848ba713b45a6decc",
                "Brain slice fixed",
            ),
            SampleFile(
                "brain_slices/oasis2d_0010.nrrd",
                "96b8f35b1b1b7524385722be39154a5f57d254583f0b4508c27389cb0c709a50",
                "Brain slice moving",
            ),
        ),
    ),
)


def register_samples(logic: Any = None) -> None:
    """Add the samples to the Sample Data module; call it once the application has started.

    logic: SampleDataLogic, Slicer's unless given.
    """
    logic = logic or importlib.import_module("SampleData").SampleDataLogic
    for sample in SAMPLES:
        logic.registerCustomSampleDataSource(
            category=CATEGORY,
            sampleName=sample.name,
            uris=[RAW + file.path for file in sample.files],
            fileNames=[file_name(file) for file in sample.files],
            nodeNames=[file.node for file in sample.files],
            loadFileTypes=[file.kind for file in sample.files],
            checksums=[f"SHA256:{file.sha256}" for file in sample.files],
        )


def file_name(file: SampleFile) -> str:
    """The file's name in Slicer's cache: images and labels of one subject have the same name in ours."""
    folder, _, name = file.path.rpartition("/")
    return f"DiffeoReg_{folder.rpartition('/')[2]}_{name}"


def blob_pair() -> tuple[Any, Any]:
    """Two small volumes in the scene, one shape at two places, for the module's own test."""
    nodes = []
    for name, shift in (("Blob fixed", (0.0, 0.0, 0.0)), ("Blob moving", SHIFT_MM)):
        node = slicer.util.addVolumeFromArray(blob(shift), name=name)
        node.SetSpacing(BLOB_SPACING_MM, BLOB_SPACING_MM, BLOB_SPACING_MM)
        nodes.append(node)
    return nodes[0], nodes[1]


def blob(shift_mm: tuple[float, float, float]) -> NDArray[np.float32]:
    """A bright ellipsoid with a darker core off its centre, intensities 0 to 100; axes k, j, i."""
    k, j, i = np.indices(BLOB_SHAPE, dtype=np.float64) * BLOB_SPACING_MM
    centre = [(n - 1) * BLOB_SPACING_MM / 2 + s for n, s in zip(BLOB_SHAPE, shift_mm, strict=True)]
    k, j, i = k - centre[0], j - centre[1], i - centre[2]
    outer = np.sqrt((k / 20) ** 2 + (j / 24) ** 2 + (i / 28) ** 2)
    inner = np.sqrt(((k - 4) / 9) ** 2 + ((j + 5) / 8) ** 2 + ((i - 8) / 7) ** 2)
    return (100 * _edge(outer) - 60 * _edge(inner)).astype(np.float32)


def _edge(distance: NDArray[np.float64]) -> NDArray[np.float64]:
    """1 inside, 0 outside, soft at distance 1."""
    return 1 / (1 + np.exp(12 * (distance - 1)))
