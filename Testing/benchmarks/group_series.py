"""Dynamic series registered as groups, and pair by pair: the table of the GroupMorph paper on public series.

    python Testing/benchmarks/group_series.py --data DATA -o OUT --peer-python PEER_PYTHON --weights WEIGHTS
        [--only NAME] [--series LIST]

Livers: two persons, three breathing states each, with landmarks (DATA/ptvreg_ethliver); one header states a
wrong slice distance, the others' is taken.  Breast: three frames of a contrast series without landmarks
(DATA/mirp_breast_dce).  Every method is judged alike, over the pairs i < j of frames: landmarks of frame i
carried to frame j; frame j read in the space of frame i by one interpolation, RMSE in intensities as given,
NMI = 2 (H_i + H_j - H_ij) / (H_i + H_j) of 32 bins, hard and with Gaussian (Parzen) kernels of one bin, on
the voxels whose partner lies inside frame j, before and after; folds of the maps i -> j.
CPU seconds of a whole series: ours from images to measured transforms in memory; elastix (its default
`bspline` map, same start) what registering alone takes; networks from images to maps, weights read from
disk.  Networks: WEIGHTS holds a file per series and form, SERIES without its dash, then `-` and the form of
NETWORKS; what they were trained on is for the results to say; see `group_networks.py`.  Each row is one file
under OUT/rows: those there are kept, so a stopped run goes on.  Writes OUT/series.md.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from DiffeoRegLib.groupwise import register_group
from DiffeoRegLib.losses.group_similarity import group_nmi, pair_nmi, pair_rmse
from DiffeoRegLib.pipeline import register
from DiffeoRegLib.report.scores import fold_scores
from DiffeoRegLib.settings import Settings
from DiffeoRegLib.space.grid import Matrix
from DiffeoRegLib.space.transform import AffineTransform, Transform
from DiffeoRegLib.volumes.files import read_points, read_volume, write_volume
from DiffeoRegLib.volumes.intensity import finite, intensity_window
from DiffeoRegLib.volumes.resample import warp_volume
from DiffeoRegLib.volumes.series_files import read_series
from DiffeoRegLib.volumes.transform_files import read_transform, write_transform
from DiffeoRegLib.volumes.volume import Volume

sys.path.insert(0, str(Path(__file__).resolve().parent))

import group_networks
import peers

STATES = {
    "liver-18": ("dataset18", "exhMaster", "cyc_1_10", "cyc_3_10"),
    "liver-23": ("dataset23", "exhMaster", "cyc_1_4", "cyc_5_4"),
}
BREAST = "mirp_breast_dce/UCSF-BR-06_dce4d.nii.gz"
SERIES = (*STATES, "breast")
IDENTITY = AffineTransform(np.eye(4))
NETWORKS = {
    "voxelmorph": "pair-u",
    "voxelmorph, diffeomorphic": "pair",
    "groupmorph to one": "one-u",
    "groupmorph to one, diffeomorphic": "one",
    "groupmorph to the middle": "middle-u",
    "groupmorph to the middle, diffeomorphic": "middle",
}
"""Rows of the paper's table that need weights, and the form that their files are named by."""
COLUMNS = ("CPU s", "wall s", "RMSE", "NMI", "NMI Parzen", "TRE mm", "to frame 0", "largest", "folds %")
Found = dict[tuple[int, int], Transform]


@dataclass(frozen=True, eq=False)
class Job:
    """One series: its frames on one grid, landmarks of each (RAS mm) where there are, and how to register."""

    name: str
    images: list[Volume]
    points: list[Matrix] | None
    settings: Settings
    scratch: Path
    peer_python: str | None
    limit_seconds: float
    weights: Path | None = None

    @property
    def pairs(self) -> list[tuple[int, int]]:
        """All i < j."""
        return list(itertools.combinations(range(len(self.images)), 2))


def read_job(name: str, arguments: argparse.Namespace) -> Job:
    """One of SERIES, or a 4D file that is named by its path."""
    points: list[Matrix] | None = None
    preset = "general"
    if name in STATES:
        person, *states = STATES[name]
        folder, images, points = arguments.data / "ptvreg_ethliver" / person, list[Volume](), list[Matrix]()
        for state in states:
            stem = "exhMaster_unmasked" if state == "exhMaster" else state
            images.append(read_volume(folder / f"{stem}.force_direction.mha", name=state))
            files = [folder / f"{state}LM{kind}.vtk" for kind in ("liver", "outside")]
            points.append(np.concatenate([read_points(file) for file in files]))
        images = [Volume(image.data, images[0].grid, image.name) for image in images]
        preset = "abdomen"
    else:
        images = read_series(arguments.data / BREAST if name == "breast" else Path(name))
    settings = Settings(preset=preset, init="identity", device="cpu", threads=arguments.threads)
    label = Path(name).name.split(".")[0]
    scratch = arguments.output / "scratch" / label
    return Job(
        label, images, points, settings, scratch, arguments.peer_python, arguments.limit, arguments.weights
    )


def unregistered(job: Job) -> tuple[Found, dict[str, Any]]:
    """The frames as they are."""
    return dict.fromkeys(job.pairs, IDENTITY), {"cpu_seconds": 0.0}


def pairwise(job: Job) -> tuple[Found, dict[str, Any]]:
    """`svf` for every pair."""
    began = time.process_time()
    found = {(i, j): register(job.images[i], job.images[j], job.settings).transform for i, j in job.pairs}
    return dict(found), {"cpu_seconds": time.process_time() - began}


def as_group(fixed: int | None, **changes: Any) -> Callable[[Job], tuple[Found, dict[str, Any]]]:
    """All frames at once."""

    def run(job: Job) -> tuple[Found, dict[str, Any]]:
        began = time.process_time()
        result = register_group(
            job.images, job.settings.with_changes(**changes), fixed_index=fixed, with_uncertainty=False
        )
        found: Found = {(i, j): result.between(i, j) for i, j in job.pairs}
        facts = {
            "cpu_seconds": time.process_time() - began,
            "similarity": result.report["settings"]["similarity"],
            "folds_of_images": [one["folded_percent"] for one in result.report["folds"]],
        }
        return found, facts

    return run


def elastix(job: Job) -> tuple[Found, dict[str, Any]]:
    """elastix for every pair, each in a process of its own interpreter.

    Raises RuntimeError with the last line it said where it fails.
    """
    if job.peer_python is None:
        raise RuntimeError("elastix needs --peer-python, an interpreter with itk-elastix.")
    job.scratch.mkdir(parents=True, exist_ok=True)
    files = [job.scratch / f"frame{index}.mha" for index in range(len(job.images))]
    for image, file in zip(job.images, files, strict=True):
        write_volume(finite(image), file, overwrite=True)
    start = job.scratch / "start.tfm"
    write_transform(IDENTITY, start, overwrite=True)
    found, seconds, megabytes = Found(), 0.0, 0.0
    for i, j in job.pairs:
        out = job.scratch / f"elastix-{i}-{j}"
        out.mkdir(exist_ok=True)
        order = {
            "method": "elastix", "fixed": str(files[i]), "moving": str(files[j]), "start": str(start),
            "out": str(out), "threads": job.settings.threads, "one_modality": True,
            "outside": float(job.images[j].data.min()),
        }  # fmt: skip
        (out / "job.json").write_text(json.dumps(order), encoding="utf-8")
        ran = peers.run_process(
            [job.peer_python, str(Path(peers.__file__).with_name("peer_runners.py")), str(out / "job.json")],
            out / "log.txt", threads=job.settings.threads or 1, limit_seconds=job.limit_seconds, cwd=out,
        )  # fmt: skip
        if ran.code != 0:
            said = (out / "log.txt").read_text(encoding="utf-8", errors="replace").splitlines() or ["nothing"]
            raise RuntimeError(f"elastix ended with {ran.code} on frames {i} and {j}: {said[-1]}")
        seconds += json.loads((out / "answer.json").read_text(encoding="utf-8"))["register_cpu_seconds"]
        megabytes = max(megabytes, ran.peak_mb)
        found[i, j] = read_transform(out / "total.mha")
    return found, {"cpu_seconds": seconds, "peak_mb": megabytes}


def by_network(form: str) -> Callable[[Job], tuple[Found, dict[str, Any]]]:
    """What a trained network says, without any search after it.

    Raises RuntimeError where there are no weights for the series.
    """

    def run(job: Job) -> tuple[Found, dict[str, Any]]:
        name = f"{job.name.replace('-', '')}-{form}.safetensors"
        file = None if job.weights is None else job.weights / name
        if file is None or not file.is_file():
            raise RuntimeError("no weights")
        began = time.process_time()
        found = group_networks.predicted(file, job.images, job.pairs)
        return found, {"cpu_seconds": time.process_time() - began, "weights": file.name}

    return run


METHODS: dict[str, Callable[[Job], tuple[Found, dict[str, Any]]]] = {
    "none": unregistered,
    "svf pairwise": pairwise,
    "group to the middle, lncc": as_group(None, similarity="lncc"),
    "group to one, lncc": as_group(0, similarity="lncc"),
    "group to the middle, nmi": as_group(None, similarity="nmi"),
    "group to one, nmi": as_group(0, similarity="nmi"),
    "elastix pairwise": elastix,
    **{name: by_network(form) for name, form in NETWORKS.items()},
}


def judged(name: str, job: Job) -> dict[str, Any]:
    """One method on one series."""
    wall = time.perf_counter()
    found, facts = METHODS[name](job)
    row: dict[str, Any] = {"series": job.name, "method": name, **facts}
    row["seconds"] = time.perf_counter() - wall
    grid = job.images[0].grid
    folds = [0.0 if way is IDENTITY else fold_scores(way, grid)["folded_percent"] for way in found.values()]
    row["folded_percent"] = [float(share or 0) for share in folds]
    row["pairs"] = {f"{i}-{j}": likeness(job, i, j, way) for (i, j), way in found.items()}
    for key in ("rmse", "nmi", "nmi_parzen"):
        row[key] = float(np.mean([pair[key] for pair in row["pairs"].values()]))
    if job.points is not None:
        errors = {
            (i, j): np.linalg.norm(way.map_points(job.points[i]) - job.points[j], axis=1)
            for (i, j), way in found.items()
        }
        every = np.concatenate(list(errors.values()))
        row |= {"tre_mm": float(every.mean()), "sd_mm": float(every.std()), "largest_mm": float(every.max())}
        row["first_mm"] = float(np.concatenate([one for (i, _), one in errors.items() if i == 0]).mean())
        for (i, j), one in errors.items():
            row["pairs"][f"{i}-{j}"]["tre_mm"] = float(one.mean())
    return row


def likeness(job: Job, i: int, j: int, way: Transform) -> dict[str, float]:
    """RMSE and both NMI of frame j read in the space of frame i, where its places lie inside frame j."""
    grid = job.images[i].grid
    moved = warp_volume(finite(job.images[j]), way, grid, fill=float("nan")).data
    inside = torch.isfinite(moved)
    pair = torch.stack([finite(job.images[i]).data[inside], moved[inside]])[:, None, :, None].float()
    windows = [intensity_window(finite(job.images[k])) for k in (i, j)]
    scaled = torch.stack(
        [(one - low) / (high - low) for one, (low, high) in zip(pair, windows, strict=True)]
    ).clamp(0, 1)
    return {
        "rmse": float(pair_rmse(pair)[0, 1]),
        "nmi": float(pair_nmi(scaled)[0, 1]),
        "nmi_parzen": 1 - float(group_nmi(scaled)),
        "inside_percent": float(100 * inside.double().mean()),
    }


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Markdown, one part per series."""
    lines = list[str]()
    for series in dict.fromkeys(row["series"] for row in rows):
        lines += [
            f"### {series}",
            "",
            f"| method | {' | '.join(COLUMNS)} |",
            "|---" * (1 + len(COLUMNS)) + "|",
        ]
        for row in (one for one in rows if one["series"] == series):
            if "failed" in row:
                lines.append(f"| {row['method']} | {row['failed']} |" + " |" * (len(COLUMNS) - 1))
                continue
            cells = [
                f"{row['cpu_seconds']:.1f}",
                f"{row['seconds']:.1f}",
                f"{row['rmse']:.2f}",
                f"{row['nmi']:.4f}",
                f"{row['nmi_parzen']:.4f}",
            ]
            cells += [f"{row[key]:.2f}" if key in row else "" for key in ("tre_mm", "first_mm", "largest_mm")]
            cells.append(f"{np.mean(row['folded_percent']):.4f}")
            lines.append(f"| {row['method']} | {' | '.join(cells)} |")
        lines.append("")
    return "\n".join(lines)


def main() -> int:
    """All rows that are not there yet; 1 when a series or method is unknown, 2 when one failed."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, default=Path(), help="folder with the public data sets")
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--series", default=",".join(SERIES), help="comma list; a path is a 4D file")
    parser.add_argument("--only", default="", help="methods whose name holds this")
    parser.add_argument("--peer-python", help="interpreter that has itk-elastix")
    parser.add_argument("--weights", type=Path, help="folder with the networks' weights")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--limit", type=float, default=1800.0, help="seconds for one pair of a peer")
    arguments = parser.parse_args()
    arguments.output = arguments.output.resolve()
    chosen = [name for name in METHODS if arguments.only in name]
    unknown = [n for n in arguments.series.split(",") if n not in SERIES and not Path(n).is_file()]
    if unknown or not chosen:
        print(f"Unknown: {', '.join(unknown) or arguments.only}. Series: {', '.join(SERIES)}, a file; "
              f"methods: {', '.join(METHODS)}.")  # fmt: skip
        return 1
    torch.set_num_threads(arguments.threads)
    folder = arguments.output / "rows"
    folder.mkdir(parents=True, exist_ok=True)
    rows = list[dict[str, Any]]()
    for series in arguments.series.split(","):
        job = read_job(series, arguments)
        for name in chosen:
            file = folder / f"{job.name}-{name.replace(', ', '-').replace(' ', '-')}.json"
            if file.exists():
                rows.append(json.loads(file.read_text(encoding="utf-8")))
                continue
            try:
                rows.append(judged(name, job))
            except RuntimeError as error:
                rows.append({"series": job.name, "method": name, "failed": str(error)})
                print(rows[-1], flush=True)
                continue
            part = file.with_suffix(".part")
            part.write_text(json.dumps(rows[-1], indent=1), encoding="utf-8")
            part.replace(file)
            print(json.dumps({k: v for k, v in rows[-1].items() if k != "pairs"}), flush=True)
            (arguments.output / "series.md").write_text(table(rows), encoding="utf-8")
    (arguments.output / "series.md").write_text(table(rows), encoding="utf-8")
    return 2 if any("failed" in row for row in rows) else 0


if __name__ == "__main__":
    sys.exit(main())
