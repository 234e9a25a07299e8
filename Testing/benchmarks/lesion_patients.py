"""Patients with glioma or multiple sclerosis at full resolution: a healthy brain is brought onto each.

    PYTHONPATH=. python Testing/benchmarks/lesion_patients.py --data DATA --out build/patients
        [--metaregnet WEIGHTS] [--vm-cfm WEIGHTS] [--ways svf,...] [--patients ms19,...] [--healthy 1101]
    PYTHONPATH=. python Testing/benchmarks/lesion_patients.py --wrong --data DATA --out build/patients ...
    PYTHONPATH=. python Testing/benchmarks/lesion_patients.py --show --out build/patients [--figure FILE.png]

DATA, and what was done to the patients' images: see lesion_data.py.  Every run is a whole `register()` from
one affine alignment per patient; ways as in lesion_brains.py.  Nobody has drawn structures of these patients,
so what is compared outside the lesion comes from intensities alone, found in each image by itself, by one
rule, before any registration: three tissues (thresholds of least variance; dark, middle and bright: mostly
fluid, grey and white matter), fluid deep in the brain (mostly ventricles), and what is brain at all.  Such
maps are coarse, and contrast agent makes vessels bright: differences between ways count, not the height of an
overlap.  Next to them mutual information, folded cells and the spread of the log-Jacobian (of the
deformation's own grid), and seconds of the processor for everything after the affine alignment.
--wrong: marks as `wrong_marks` makes them, at 2 mm to save time; scores take the right ones.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage

from DiffeoRegLib.methods.affine import initial_alignment
from DiffeoRegLib.metrics import deformation_summary
from DiffeoRegLib.pipeline import Result, register
from DiffeoRegLib.report.scores import deformation_of
from DiffeoRegLib.settings import Settings
from DiffeoRegLib.space.sample import array_from_tensor
from DiffeoRegLib.space.transform import AffineTransform, Transform
from DiffeoRegLib.volumes.files import read_volume
from DiffeoRegLib.volumes.pair import Masks
from DiffeoRegLib.volumes.pathology import Pathology
from DiffeoRegLib.volumes.resample import warp_labels, warp_volume
from DiffeoRegLib.volumes.volume import Volume
from Testing.benchmarks.lesion_data import healthy_brains, patients
from Testing.benchmarks.lesion_patients_figure import draw, keep_slice
from Testing.benchmarks.lesion_scores import wrong_marks
from Testing.benchmarks.lesion_tissues import dice, nmi, tissues_of

Row = dict[str, Any]
WRONG_WAYS = ("metaregnet-refined", "metamorphosis")
"""The map of the network alone does not depend on any marks."""
MARGIN_MM = 10
"""Around the brain, when an image is cut out."""
COLUMNS = {
    "tissues": ("tissues", 3), "fluid": ("fluid", 3), "grey": ("grey", 3), "white": ("white", 3),
    "deep_fluid": ("deep fluid", 3), "brain": ("brain", 3), "nmi": ("NMI", 4), "cells": ("folded cells", 0),
    "sd_log_jacobian": ("SDlogJ", 3), "around_mm": ("moved, 10 mm around, mm", 1), "seconds": ("CPU s", 0),
}  # fmt: skip
"""Heading and decimals."""


# ---------------------------------------------------------------- one patient


@dataclass(frozen=True, eq=False)
class Patient:
    """An ill and a healthy brain, as they are and as tissues; initial: what aligns them."""

    name: str
    fixed: Volume
    lesion: Volume
    moving: Volume
    fixed_maps: tuple[Volume, Volume]
    moving_maps: tuple[Volume, Volume]
    initial: Transform

    @property
    def ill(self) -> NDArray[np.bool_]:
        """Voxels of the lesion."""
        return np.asarray(array_from_tensor(self.lesion.data) != 0)


def cut_out(image: Volume, lesion: Volume) -> tuple[Volume, Volume]:
    """Both on the box of the brain and a margin: a scan's empty air costs time and nothing else."""
    inside = np.argwhere(array_from_tensor(image.data) > 0)
    margin = np.array([round(MARGIN_MM / step) for step in image.grid.spacing])
    start = np.maximum(inside.min(0) - margin, 0)
    stop = np.minimum(inside.max(0) + 1 + margin, image.grid.shape)
    box = tuple(slice(int(a), int(b)) for a, b in zip(start, stop, strict=True))
    grid = image.grid.cropped(tuple(map(int, start)), tuple(map(int, stop)))
    marks = (lesion.data[box] != 0).to(torch.int32).contiguous()
    return Volume(image.data[box].contiguous(), grid, image.name), Volume(marks, grid, "lesion", True)


def read_patients(data: Path, folder: Path, healthy: str, names: list[str] | None) -> list[Patient]:
    """The patients that are wanted, each aligned with the healthy brain (affine)."""
    brains = healthy_brains(data)
    moving = read_volume(next(one.image for one in brains if one.name == healthy))
    found = []
    for one in patients(data, folder, brains[0].image):
        if names and one.name not in names:
            continue
        assert one.pathology is not None
        fixed, lesion = cut_out(read_volume(one.image), read_volume(one.pathology, labels=True))
        file = folder / f"{one.name}_{healthy}_affine.json"
        if file.exists():
            matrix = np.array(json.loads(file.read_text(encoding="utf-8")))
        else:
            matrix = initial_alignment(fixed, moving, Settings(init="affine"))
            file.write_text(json.dumps(matrix.tolist()) + "\n", encoding="utf-8")
        ill = array_from_tensor(lesion.data) != 0
        maps = tissues_of(fixed, ill), tissues_of(moving)
        found.append(Patient(one.name, fixed, lesion, moving, *maps, AffineTransform(matrix)))
    return found


def scores(patient: Patient, transform: Transform) -> Row:
    """Everything of the head of this file but folds and seconds."""
    moved = array_from_tensor(warp_volume(patient.moving, transform, patient.fixed.grid).data)
    maps = [
        array_from_tensor(warp_labels(m, transform, patient.fixed.grid).data) for m in patient.moving_maps
    ]
    own = [array_from_tensor(m.data) for m in patient.fixed_maps]
    healthy = ~patient.ill
    row: Row = {
        name: dice((own[0] == value) & healthy, (maps[0] == value) & healthy)
        for value, name in enumerate(("fluid", "grey", "white"), 1)
    }
    row["tissues"] = (row["fluid"] + row["grey"] + row["white"]) / 3
    row["deep_fluid"] = dice((own[1] > 0) & healthy, (maps[1] > 0) & healthy)
    row["brain"] = dice((own[0] > 0) & healthy, (maps[0] > 0) & healthy)
    inside = (own[0] > 0) & healthy
    row["nmi"] = nmi(array_from_tensor(patient.fixed.data)[inside], moved[inside])
    return row


def ways_of(metaregnet: Path | None, vm_cfm: Path | None) -> dict[str, Settings | None]:
    """Settings by way; None: the affine alignment alone."""
    plain = Settings(preset="brain-mr", threads=1)
    network = plain.with_changes(
        method="metaregnet" if metaregnet else "metaregnet-brain-t1",
        weights=str(metaregnet) if metaregnet else None,
    )
    ways: dict[str, Settings | None] = {"affine": None, "svf": plain, "svf-left-out": plain}
    if vm_cfm:
        ways["vm-cfm"] = plain.with_changes(method="voxelmorph", weights=str(vm_cfm), effort="fast")
    ways["metaregnet"] = network.with_changes(effort="fast")
    ways["metaregnet-refined"] = network
    ways["metamorphosis"] = plain.with_changes(method="metamorphosis")
    return ways


def registered(patient: Patient, way: str, settings: Settings, marks: Volume) -> tuple[Row, Result]:
    """One run with its scores."""
    masks = Masks(fixed=marks, exclude_fixed=True) if way == "svf-left-out" else None
    takes = way.startswith("metaregnet") or way == "metamorphosis"
    begun = time.process_time()
    result = register(
        patient.fixed, patient.moving, settings, initial=patient.initial, masks=masks,
        pathology=Pathology(fixed=marks) if takes else None,
    )  # fmt: skip
    seconds = time.process_time() - begun
    row = scores(patient, result.transform) | {"seconds": seconds}
    deformation = deformation_of(result.transform, patient.fixed.grid)
    assert deformation is not None
    summary = deformation_summary(deformation.u_vox)
    cells = np.prod([n - 1 for n in deformation.grid.shape])
    row |= {"cells": round(summary["folded_percent"] / 100 * cells), "notes": result.report["notes"]}
    row |= {"sd_log_jacobian": summary["sd_log_jacobian"], "around_mm": moved_around(patient, result)}
    return row, result


def moved_around(patient: Patient, result: Result) -> float:
    """Mean length of the deformation in the tissue up to 10 mm from the lesion, mm."""
    distance = ndimage.distance_transform_edt(~patient.ill, sampling=patient.fixed.grid.spacing)
    shell = (distance > 0) & (distance <= 10) & (array_from_tensor(patient.fixed_maps[0].data) > 0)
    points = np.argwhere(shell)[::7] @ patient.fixed.grid.world_from_voxel[:3, :3].T
    points = points + patient.fixed.grid.world_from_voxel[:3, 3]
    before, after = (map_.map_points(points) for map_ in (result.initial, result.transform))
    return float(np.linalg.norm(after - before, axis=1).mean())


# ---------------------------------------------------------------- all of them


def told_of(patient: Patient, wrong: bool) -> dict[str, Volume]:
    """The marks that the ways are told, by what is appended to their names."""
    if not wrong:
        return {"": patient.lesion}
    grid = patient.fixed.grid
    kinds = wrong_marks((patient.lesion.data[None, None] != 0).float(), grid.spacing)
    return {
        f", {kind}": Volume((m[0, 0] != 0).to(torch.int32), grid, kind, True) for kind, m in kinds.items()
    }


def run(options: argparse.Namespace) -> dict[str, Row]:
    """Rows by `PATIENT WAY[, MARKS]`; what is there is not run again."""
    options.out.mkdir(parents=True, exist_ok=True)
    file = file_of(options)
    rows: dict[str, Row] = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    ways = ways_of(options.metaregnet, options.vm_cfm)
    if options.wrong:
        ways = {n: s and s.with_changes(working_spacing_mm=2.0) for n, s in ways.items() if n in WRONG_WAYS}
    if options.ways:
        ways = {name: ways[name] for name in options.ways.split(",")}
    names = options.patients.split(",") if options.patients else None
    for patient in read_patients(options.data, options.out / "volumes", options.healthy, names):
        for end, marks in told_of(patient, options.wrong).items():
            for way, settings in ways.items():
                key = f"{patient.name} {way}{end}"
                if key not in rows:
                    rows[key], shown = one_run(patient, way, settings, marks)
                    keep_slice(options.out / f"{key}.npz", patient.fixed, patient.ill, shown)
                    file.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
                    print(key, rows[key], flush=True)
    return rows


def one_run(
    patient: Patient, way: str, settings: Settings | None, marks: Volume
) -> tuple[Row, dict[str, Volume]]:
    """Scores, and what there is to look at."""
    if settings is None:
        moved = warp_volume(patient.moving, patient.initial, patient.fixed.grid)
        return scores(patient, patient.initial), {"deformed": moved}
    row, result = registered(patient, way, settings, marks)
    look = result.appearance
    if look is None:
        return row, {"deformed": result.moved}
    return row, {"deformed": look.deformed, "metamorphic": look.metamorphic, "healthy": look.healthy}


def show(rows: dict[str, Row]) -> None:
    """One table."""
    print("| | " + " | ".join(heading for heading, _ in COLUMNS.values()) + " |")
    print("|---|" + "---|" * len(COLUMNS))
    for key, row in rows.items():
        cells = [f"{row[name]:.{digits}f}" if name in row else "-" for name, (_, digits) in COLUMNS.items()]
        print(f"| {key} | " + " | ".join(cells) + " |")


def file_of(options: argparse.Namespace) -> Path:
    """Where the rows are."""
    folder: Path = options.out
    return folder / ("wrong.json" if options.wrong else "patients.json")


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--metaregnet", type=Path, help="weights; without, those that come along")
    parser.add_argument("--vm-cfm", type=Path, help="weights; without, this way is left out")
    parser.add_argument("--ways")
    parser.add_argument("--patients")
    parser.add_argument("--healthy", default="1101")
    parser.add_argument("--wrong", action="store_true", help="tell the ways wrong marks")
    parser.add_argument("--show", action="store_true", help="run nothing")
    parser.add_argument("--figure", type=Path)
    options = parser.parse_args()
    if not options.show and options.data is None:
        parser.error("--data is needed, or --show")
    torch.set_num_threads(1)
    rows = json.loads(file_of(options).read_text(encoding="utf-8")) if options.show else run(options)
    show(rows)
    if options.figure:
        draw(options.out, list(rows), options.figure)


if __name__ == "__main__":
    main()
