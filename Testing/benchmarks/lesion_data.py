"""Images for the study of healthy brains brought onto pathological ones, made from public data; run by hand.

    PYTHONPATH=. python Testing/benchmarks/lesion_data.py --data DATA --out FOLDER [--cache CACHE]
        [--figure FILE.png]

DATA holds the folders malf_miccai2012 (healthy, T1, labels), deepmedic_brats2013 (two glioma, T1 with
contrast agent; of one the scan ends before the back of the head) and open_ms_data (patient 19, T1).  All are
without skull and aligned (affine) with the first healthy brain; CACHE keeps that.  Grey values of a patient's
healthy tissue are spread as that brain's (`matched`).  FOLDER gets
  healthy/, patients/          axial slices, 1 mm, 192 x 160 (A, R), in [0, 1]; _labels, _pathology beside
  grid.nii.gz                  the reference of these slices for a training: it has nothing but their grid
  train.csv                    pairs of healthy slices of one level and two persons, of the training persons
  held_out.csv                 such pairs of the persons held out
  patients.csv                 healthy slices of persons held out onto slices of patients
  cases/SET/NAME.safetensors   what is measured; see `Case` and `cases`:
    real-2d, real-3d           patients as above; 3D: 80 x 96 x 80 (S, A, R), 2 mm
    known-2d, known-3d         lesions put into persons held out; moving: the same brain, bent; truth known
    other-2d, other-3d         the same patients, moving: the brain of another person, with labels
Nobody is in training and in any of these.
"""

from __future__ import annotations

import argparse
import csv
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import permutations
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from DiffeoRegLib.space.grid import Grid
from DiffeoRegLib.space.sample import array_from_tensor, tensor_from_array
from DiffeoRegLib.training.draws import generator_for, normal
from DiffeoRegLib.training.lesion_pairs import known_pair
from DiffeoRegLib.training.lesions import Implanted, LesionOptions, organ_of
from DiffeoRegLib.training.shapes import ShapeOptions
from DiffeoRegLib.training.store import Preparation, Store
from DiffeoRegLib.training.subjects import Subject
from DiffeoRegLib.volumes.files import read_volume, write_volume
from DiffeoRegLib.volumes.intensity import intensity_window, normalise, resample_affine
from DiffeoRegLib.volumes.volume import Volume

HELD_OUT = ("1101", "1110", "1113", "1116")
TWICE = {"1025": "1005", "1038": "1018", "1039": "1019"}
"""Persons scanned twice, by their second name."""
SHAPE_3D, SPACING_3D = (80, 96, 80), (2.0, 2.0, 2.0)
SHAPE_2D, LEVELS_MM = (192, 160), tuple(range(-16, 33, 4))
"""Voxels along A and R, 1 mm; and where slices lie, from the centre of the first brain upwards."""
LEAST_LESION, MOST_SLICES = 60, 5
"""Voxels of lesion a patient's slice has, and how many are taken of one patient."""
LESIONS_2D = LesionOptions(count=(1, 1), radius_vox=(10, 20), growth=(0.3, 0.6), looks=("t1", "t1c"))
LESIONS_3D = replace(LESIONS_2D, radius_vox=(6, 11), reaches_vox=(8, 16, 24))
MOTION_2D = ShapeOptions(motion_scales_vox=(64, 32), motion_vox=4.0)
MOTION_3D = ShapeOptions(motion_scales_vox=(32, 16), motion_vox=2.0)
NOISE = 0.02
QUANTILES = (0.5, *range(5, 100, 10), 99.5)
"""Percent."""


@dataclass(frozen=True, eq=False)
class Case:
    """One pair; tensors (1, C, *shape), images in [0, 1].  spacing: mm per tensor axis.

    organ: 1 inside, in the fixed image.  truth_vox: from fixed to moving voxels.  labels: int64.
    """

    name: str
    spacing: tuple[float, ...]
    moving: Tensor
    fixed: Tensor
    pathology: Tensor
    organ: Tensor
    truth_vox: Tensor | None = None
    moving_labels: Tensor | None = None
    fixed_labels: Tensor | None = None


TENSORS = ("moving", "fixed", "pathology", "organ", "truth_vox", "moving_labels", "fixed_labels")


def write_case(case: Case, folder: Path) -> None:
    """`folder`/NAME.safetensors."""
    folder.mkdir(parents=True, exist_ok=True)
    held = {name: getattr(case, name) for name in TENSORS}
    content = {name: value.contiguous() for name, value in held.items() if value is not None}
    spacing = " ".join(map(str, case.spacing))
    save_file(content, folder / f"{case.name}.safetensors", {"spacing": spacing})


def cases(folder: Path) -> Iterator[Case]:
    """All cases of a folder, in the order of their names."""
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, "pt") as file:
            spacing = tuple(map(float, file.metadata()["spacing"].split()))
            content = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping
        yield Case(path.stem, spacing, **content)


# ---------------------------------------------------------------- whole brains


def healthy_brains(data: Path) -> list[Subject]:
    """Everybody of the atlas data set, with labels."""
    images = sorted((data / "malf_miccai2012").glob("*_SS.nii.gz"))
    names = [path.name.split("_")[0] for path in images]
    return [
        Subject(name, path, path.with_name(f"{name}_glm.nii.gz"), group=TWICE.get(name, name))
        for name, path in zip(names, images, strict=True)
    ]


def patients(data: Path, folder: Path, like: Path) -> list[Subject]:
    """Patients cut out with their brain masks, where they have one, and matched with `like`, in `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    values = array_from_tensor(read_volume(like).data)
    reference = values[values > 0]
    places = []
    for number in ("0005", "0006"):
        place = data / "deepmedic_brats2013" / "train" / f"brats_2013_pat{number}_1"
        brain = read_volume(place / "brainmask.nii.gz", labels=True).data > 0
        files = place / "T1c_subtrMeanDivStd.nii.gz", place / "OTMultiClass.nii.gz"
        places.append((f"glioma{number}", *files, brain))
    place = data / "open_ms_data" / "cross_sectional" / "MNI" / "patient19"
    ends = ("T1_N4_noneck_reduced_winsor_regtoFLAIR_brain_N4_regtoMNI", "GOLD_STANDARD_N4_noneck_reduced_"
            "winsor_regtoFLAIR_regtoMNI")  # fmt: skip
    files = place / f"{ends[0]}.nii.gz", place / f"{ends[1]}.nii.gz"
    places.append(("ms19", *files, read_volume(files[0]).data > 0))
    found = []
    for name, file, pathology, brain in places:
        lesion = read_volume(pathology, labels=True).data > 0
        path = folder / f"{name}.nii.gz"
        write_volume(matched(read_volume(file), brain, lesion, reference), path, overwrite=True)
        found.append(Subject(name, path, pathology=pathology))
    return found


def matched(image: Volume, brain: Tensor, lesion: Tensor, reference: NDArray[np.floating]) -> Volume:
    """The brain alone, its grey values replaced so that quantiles of healthy tissue are the reference's.

    A rising map, linear between quantiles; what is beyond the outermost becomes those.
    """
    values = array_from_tensor(image.data).astype(np.float64)
    own = np.percentile(values[array_from_tensor(brain & ~lesion)], QUANTILES)
    mapped = np.interp(values, own, np.percentile(reference, QUANTILES)) * array_from_tensor(brain)
    return Volume(tensor_from_array(mapped, torch.float32), image.grid, image.name)


# ---------------------------------------------------------------- slices


class Slices:
    """Axial slices of subjects in the space of a store; files and what is in them."""

    def __init__(self, store: Store, folder: Path) -> None:
        self.store, self.folder = store, folder
        depth = LEVELS_MM[-1] - LEVELS_MM[0] + 1
        matrix = store.grid.world_from_voxel.copy()
        matrix[:3, :3] /= np.linalg.norm(matrix[:3, :3], axis=0)
        low = np.array([LEVELS_MM[0], *(-(n - 1) / 2 for n in SHAPE_2D)])
        matrix[:3, 3] = store.grid.center_mm + matrix[:3, :3] @ low
        self.grid = Grid((depth, *SHAPE_2D), matrix)

    def grid_of(self, level_mm: int) -> Grid:
        """Of one slice: along A and R, its third column the step upwards."""
        matrix = self.grid.world_from_voxel.copy()
        matrix[:3, 3] += matrix[:3, 0] * (level_mm - LEVELS_MM[0])
        return Grid(SHAPE_2D, matrix[:, [1, 2, 0, 3]])

    def write(self, subject: Subject, group: str) -> dict[int, dict[str, Path]]:
        """The files of every level by what they show: image, and labels or pathology where there are some."""
        back = array_from_tensor(self.store.load(subject)["moving_from_common"])
        image = read_volume(subject.image)
        window = intensity_window(image)
        shown = {"image": normalise(resample_affine(image, self.grid, back), window)[0, 0]}
        for kind, path in (("labels", subject.labels), ("pathology", subject.pathology)):
            if path is not None:
                read = resample_affine(
                    read_volume(path, labels=True), self.grid, back, mode="nearest", outside="zeros"
                )
                whole = read[0, 0].round().to(torch.int32)
                shown[kind] = (whole != 0).to(torch.int32) if kind == "pathology" else whole
        return {level: self._level(shown, level, subject.name, group) for level in LEVELS_MM}

    def _level(self, shown: dict[str, Tensor], level: int, name: str, group: str) -> dict[str, Path]:
        (self.folder / group).mkdir(parents=True, exist_ok=True)
        files = {}
        for kind, values in shown.items():
            end = "" if kind == "image" else f"_{kind}"
            path = self.folder / group / f"{name}_z{level - LEVELS_MM[0]:02d}{end}.nii.gz"
            content = values[level - LEVELS_MM[0]].contiguous()
            write_volume(Volume(content, self.grid_of(level), path.name), path, overwrite=True)
            files[kind] = path
        return files

    def write_reference(self) -> None:
        """A ramp: nothing in it tells an object from its surroundings, so that its own grid is taken."""
        ramp = torch.linspace(0, 1, SHAPE_2D[0])[:, None].expand(SHAPE_2D).contiguous()
        write_volume(Volume(ramp, self.grid_of(0), "grid"), self.folder / "grid.nii.gz", overwrite=True)


Files = dict[str, dict[int, dict[str, Path]]]


def write_pairs(path: Path, sides: Sequence[tuple[Files, Files]], persons: dict[str, str]) -> int:
    """A table of (fixed, moving) of one level and two persons; returns its rows."""
    rows = []
    for fixed, moving in sides:
        for one, other in ((a, b) for a in fixed for b in moving if persons[a] != persons[b]):
            for level in sorted(fixed[one].keys() & moving[other].keys()):
                row = {"fixed_person": persons[one], "moving_person": persons[other]}
                for side, files in (("fixed", fixed[one][level]), ("moving", moving[other][level])):
                    for kind, file in files.items():
                        key = side if kind == "image" else f"{side}_{kind}"
                        row[key] = file.relative_to(path.parent).as_posix()
                rows.append(row)
    columns = sorted({key for row in rows for key in row})
    with path.open("w", encoding="utf-8", newline="") as stream:
        table = csv.DictWriter(stream, columns, restval="")
        table.writeheader()
        table.writerows(rows)
    return len(rows)


def with_lesion(files: dict[int, dict[str, Path]]) -> dict[int, dict[str, Path]]:
    """Of a patient's slices those that show enough of the lesion, evenly spread."""
    sizes = {
        level: int((read_volume(kinds["pathology"], labels=True).data != 0).sum())
        for level, kinds in files.items()
    }
    shown = [level for level, size in sizes.items() if size >= LEAST_LESION]
    step = max(1, -(-len(shown) // MOST_SLICES))
    return {level: files[level] for level in shown[::step]}


# ---------------------------------------------------------------- cases


def real_cases_2d(patient: Files, healthy: Files, out: Path) -> None:
    """Every slice of every patient, with the healthy person whose turn it is."""
    turn = 0
    for name, levels in patient.items():
        for level, files in levels.items():
            person = list(healthy)[turn % len(healthy)]
            turn += 1
            fixed, moving = _image(files["image"]), _image(healthy[person][level]["image"])
            lesion = _image(files["pathology"])
            case = Case(f"{name}_z{level - LEVELS_MM[0]:02d}", (1.0, 1.0), moving, fixed, lesion,
                        torch.maximum(organ_of(fixed), lesion))  # fmt: skip
            write_case(case, out)


def real_cases_3d(store: Store, ill: Sequence[Subject], healthy: Sequence[Subject], out: Path) -> None:
    """Every patient with every healthy person held out."""
    for patient in ill:
        prepared = store.load(patient)
        fixed, lesion = prepared["image"][None], (prepared["pathology"][None] > 0.5).float()
        for person in healthy:
            moving = store.load(person)
            case = Case(f"{patient.name}_{person.name}", SPACING_3D, moving["image"][None], fixed, lesion,
                        torch.maximum(organ_of(fixed), lesion))  # fmt: skip
            write_case(case, out)


def implanted_cases(
    name: str, spacing: tuple[float, ...], own: tuple[Tensor, Tensor], other: tuple[Tensor, Tensor], out: Path
) -> None:
    """A known case of a person's image and labels, and the same patient with another person's."""
    image, labels = own
    dim = len(spacing)
    lesions, motion = (LESIONS_2D, MOTION_2D) if dim == 2 else (LESIONS_3D, MOTION_3D)
    moving, patient, truth = known_pair(image, generator_for("lesion case", name), lesions, motion)
    fixed, moving = (_noisy(i, f"{name} {end}") for i, end in ((patient.image, "fixed"), (moving, "moving")))
    case = Case(name, spacing, moving, fixed, patient.pathology, _organ(patient), truth)
    write_case(case, out / f"known-{dim}d")
    write_case(
        replace(case, moving=other[0], truth_vox=None, moving_labels=other[1],
                fixed_labels=patient.labels(labels)),
        out / f"other-{dim}d",
    )  # fmt: skip


def _organ(patient: Implanted) -> Tensor:
    return torch.maximum(patient.organ, patient.pathology)


def _noisy(image: Tensor, key: str) -> Tensor:
    """The image as if scanned once more: noise where there is tissue."""
    noise = NOISE * normal(generator_for("noise", key), image.shape)
    return torch.where(image > 0, (image + noise).clamp(0, 1), image)


def _image(path: Path) -> Tensor:
    return read_volume(path).data.float()[None, None]


def _labels(path: Path) -> Tensor:
    return read_volume(path, labels=True).data.long()[None, None]


def prepare(data: Path, out: Path, cache: Path) -> None:
    """Everything the head of this file lists."""
    healthy = healthy_brains(data)
    ill = patients(data, out / "volumes", healthy[0].image)
    store = Store(Preparation(SHAPE_3D, SPACING_3D, healthy[0].image), cache)
    slices = Slices(store, out)
    slices.write_reference()
    files = {one.name: slices.write(one, "healthy") for one in healthy}
    shown = {one.name: with_lesion(slices.write(one, "patients")) for one in ill}
    persons = {one.name: one.group for one in (*healthy, *ill)}
    rest = {name: levels for name, levels in files.items() if name not in HELD_OUT}
    kept = {name: files[name] for name in HELD_OUT}
    for name, sides in (("train", (rest, rest)), ("held_out", (kept, kept)), ("patients", (shown, kept))):
        print(f"{name}.csv: {write_pairs(out / f'{name}.csv', [sides], persons)} pairs", flush=True)
    real_cases_2d(shown, kept, out / "cases" / "real-2d")
    everyone = {one.name: one for one in healthy}
    real_cases_3d(store, ill, [everyone[name] for name in HELD_OUT], out / "cases" / "real-3d")
    for own, other in permutations(HELD_OUT, 2):
        level = LEVELS_MM[(len(LEVELS_MM) // 2 + 2 * HELD_OUT.index(other) - 2) % len(LEVELS_MM)]
        pair = [(_image(kept[p][level]["image"]), _labels(kept[p][level]["labels"])) for p in (own, other)]
        name = f"{own}_{other}_z{level - LEVELS_MM[0]:02d}"
        implanted_cases(name, (1.0, 1.0), pair[0], pair[1], out / "cases")
        both = [store.load(everyone[p]) for p in (own, other)]
        whole = [(one["image"][None], one["labels"][None].long()) for one in both]
        implanted_cases(f"{own}_{other}", SPACING_3D, whole[0], whole[1], out / "cases")


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--cache", type=Path, help="for aligned brains; default OUT/cache")
    parser.add_argument("--figure", type=Path, help="some cases of every set")
    options = parser.parse_args()
    prepare(options.data, options.out, options.cache or options.out / "cache")
    if options.figure:
        from Testing.benchmarks.lesion_figure import draw

        draw(options.out / "cases", options.figure)


if __name__ == "__main__":
    main()
