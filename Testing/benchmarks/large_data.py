"""A large CT pair: does it finish, in the memory and on the disk that were announced before the run? By hand.

    PYTHONPATH=. python Testing/benchmarks/large_data.py --ct CT -o OUT [--size 512 512 400] [--flags "..."]

CT: any CT volume, such as example_ct.nii.gz of TotalSegmentator's tests.  It is brought to the given size
(x, y, z) with noise of its own in each image; the fixed image is the moving one under a known smooth motion.
The command runs in a process of its own whose memory is watched.  Printed, and kept in OUT/result.json: what
was announced, the peak in every phase, the size of the written transforms, the error at known points.
Before it, a pair of --huge voxels (files without content) is offered within --huge-limit-gb: it has to be
refused by its headers.  Exit status 1 when it is not, or when more was needed than announced.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import SimpleITK as sitk

AIR = -1024.0
MOTION_MM = 10.0
FIELD_STEP_MM = 12.0
NOISE = 12.0
POINTS = 200
REFUSED = 4
MEGABYTE = 2**20


def synthesise(ct: Path, out: Path, size: tuple[int, int, int]) -> list[Path]:
    """Fixed and moving image and their points; kept for the next run of the same size."""
    stem = "x".join(str(n) for n in size)
    files = [out / f"{stem}-{name}" for name in ("fixed.nii", "moving.nii", "fixed.csv", "moving.csv")]
    if all(path.exists() for path in files):
        return files
    source = sitk.Cast(sitk.ReadImage(str(ct)), sitk.sitkInt16)
    grid = stretched(source, size)
    motion = smooth_motion(source)
    moving = sitk.Resample(source, grid, sitk.Transform(), sitk.sitkLinear, AIR, sitk.sitkInt16)
    write_noisy(moving, files[1], seed=1)
    fixed = sitk.Resample(source, grid, motion, sitk.sitkLinear, AIR, sitk.sitkInt16)
    points = body_points(fixed)
    write_noisy(fixed, files[0], seed=2)
    for path, places in ((files[2], points), (files[3], [motion.TransformPoint(p) for p in points])):
        rows = [f"{-x:.4f},{-y:.4f},{z:.4f}" for x, y, z in places]  # ITK's LPS to RAS
        path.write_text("\n".join(["x,y,z", *rows]) + "\n", encoding="utf-8")
    return files


def stretched(source: sitk.Image, size: tuple[int, int, int]) -> sitk.Image:
    """An empty image of this many voxels over the same field of view, half a voxel within it."""
    old = np.array(source.GetSize()) * np.array(source.GetSpacing())
    spacing = old / np.array(size)
    origin = source.TransformContinuousIndexToPhysicalPoint([-0.5] * 3)
    turn = np.array(source.GetDirection()).reshape(3, 3)
    image = sitk.Image([1, 1, 1], sitk.sitkInt16)
    image = sitk.Resample(image, list(size), sitk.Transform(), sitk.sitkNearestNeighbor,
                          (np.array(origin) + turn @ (spacing / 2)).tolist(), spacing.tolist(),
                          source.GetDirection(), AIR, sitk.sitkInt16)  # fmt: skip
    return image


def smooth_motion(source: sitk.Image) -> sitk.Transform:
    """Waves of up to MOTION_MM along each axis that fade at the border of the field of view."""
    extent = np.array(source.GetSize()) * np.array(source.GetSpacing())
    shape = np.maximum(np.ceil(extent / FIELD_STEP_MM).astype(int) + 1, 8)
    axes = [np.linspace(0, 1, n) for n in shape[::-1]]
    z, y, x = np.meshgrid(*axes, indexing="ij")
    fade = np.sin(np.pi * x) * np.sin(np.pi * y) * np.sin(np.pi * z)
    waves = [np.sin(2 * np.pi * (y + z)), np.cos(2 * np.pi * (x - z)), np.sin(2 * np.pi * (x + y))]
    field = sitk.GetImageFromArray(np.stack([MOTION_MM * fade * wave for wave in waves], -1), isVector=True)
    field.SetOrigin(source.GetOrigin())
    field.SetDirection(source.GetDirection())
    field.SetSpacing((extent / (shape - 1)).tolist())
    return sitk.DisplacementFieldTransform(sitk.Cast(field, sitk.sitkVectorFloat64))


def write_noisy(image: sitk.Image, path: Path, seed: int) -> None:
    """Slice by slice, so that making the data needs less memory than registering it."""
    random = np.random.default_rng(seed)
    array = sitk.GetArrayViewFromImage(image)
    noisy = np.empty(array.shape, dtype=np.int16)
    for number, plane in enumerate(array):
        noisy[number] = plane + np.rint(NOISE * random.standard_normal(plane.shape, dtype=np.float32))
    written = sitk.GetImageFromArray(noisy)
    written.CopyInformation(image)
    sitk.WriteImage(written, str(path))


def body_points(image: sitk.Image) -> list[tuple[float, float, float]]:
    """Points of soft tissue and bone, ITK's LPS mm."""
    array = sitk.GetArrayViewFromImage(image)
    random, found = np.random.default_rng(5), list[tuple[float, float, float]]()
    while len(found) < POINTS:
        index = random.uniform(0.1, 0.9, 3) * (np.array(array.shape) - 1)
        if array[tuple(np.rint(index).astype(int))] > -100:
            found.append(image.TransformContinuousIndexToPhysicalPoint(index[::-1].tolist()))
    return found


def watched(words: list[str]) -> dict[str, Any]:
    """Runs the command; its messages, the peak of its memory per phase and in all, seconds."""
    started, cpu = time.perf_counter(), times()
    process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, encoding="utf-8")
    peaks, phase, peak, over = dict[str, float](), ["starting"], [0.0], threading.Event()

    def poll() -> None:
        while not over.wait(0.02):
            now, most = memory_mb(process.pid)
            peaks[phase[0]] = max(peaks.get(phase[0], 0.0), now)
            peak[0] = max(peak[0], most)

    watcher = threading.Thread(target=poll)
    watcher.start()
    said, last = list[str](), dict[str, Any]()
    assert process.stdout is not None
    assert process.stderr is not None
    for line in process.stdout:
        event = json.loads(line)
        if event["event"] == "progress":
            phase[0] = event["phase"]
        elif event["event"] == "log":
            said.append(event["message"])
        else:
            last = event
    errors = process.stderr.read()
    process.wait()
    over.set()
    watcher.join()
    used = [after - before for after, before in zip(times(), cpu, strict=True)]
    return {
        "status": process.returncode, "said": said, "last": last, "errors": errors.strip(),
        "peak_mb_by_phase": {name: round(value) for name, value in peaks.items()},
        "peak_mb": peak[0],
        "cpu_seconds": sum(used),
        "seconds": time.perf_counter() - started,
    }  # fmt: skip


def times() -> tuple[float, float]:
    """Seconds of the processor of all processes started here that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime, used.ru_stime


def memory_mb(pid: int) -> tuple[float, float]:
    """What a process holds in memory just now, and the most it has held; 0 when it has ended."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text(encoding="utf-8").splitlines()
    except OSError:
        return 0.0, 0.0
    kilobytes = {line.split(":")[0]: line.split()[1] for line in lines if line.startswith(("VmRSS", "VmHWM"))}
    return float(kilobytes.get("VmRSS", 0)) / 2**10, float(kilobytes.get("VmHWM", 0)) / 2**10


def verdict(run: dict[str, Any], folder: Path) -> dict[str, Any]:
    """What was announced against what was needed."""
    report = run["last"].get("report", {})
    planned = report.get("planned", {})
    written = sum((folder / name).stat().st_size for name in ("transform.h5", "inverse.h5")) / MEGABYTE
    return {
        "planned": planned,
        "transforms_mb": written,
        "grid": report["transform"].get("transform_grid"),
        "memory kept": run["peak_mb"] <= planned["memory_mb"],
        "disk kept": written <= planned["transforms_mb"],
        "landmarks": report["landmarks"],
        "folded_percent": report["folds"]["folded_percent"],
        "seconds by phase": report["seconds"],
    }


def refused(out: Path, size: Sequence[int], limit_gb: float) -> dict[str, Any]:
    """What is said to a pair that is too large for so much memory, and what it takes to say it."""
    paths = [out / f"huge-{name}.nii" for name in ("fixed", "moving")]
    for path in paths:
        image = nib.Nifti1Image(np.zeros((1, 1, 1), np.int16), np.diag([0.4, 0.4, 0.6, 1]))
        image.header.set_data_shape(size)
        with path.open("wb") as file:
            file.write(image.header.binaryblock)
            file.truncate(352 + 2 * int(np.prod(size)))  # a hole, where the system knows such a thing
    words = [sys.executable, "-m", "DiffeoRegLib", "register", *map(str, paths), "-o", str(out / "huge")]
    run = watched([*words, "--json", "--memory-limit-gb", str(limit_gb)])
    for path in paths:
        path.unlink()
    return {name: run[name] for name in ("status", "peak_mb", "cpu_seconds", "errors")} | {
        "size": list(size), "limit_gb": limit_gb, "refused": run["status"] == REFUSED,
    }  # fmt: skip


def main() -> None:
    """Make the pair, run, judge."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--ct", type=Path, required=True)
    parser.add_argument("-o", "--out", type=Path, required=True)
    parser.add_argument("--size", type=int, nargs=3, default=(512, 512, 400), metavar=("X", "Y", "Z"))
    parser.add_argument("--flags", default="--preset abdomen --effort fast", help="of `register`, in quotes")
    parser.add_argument("--name", default="run", help="of the folder of results in OUT")
    parser.add_argument("--huge", type=int, nargs=3, default=(1024, 1024, 600), metavar=("X", "Y", "Z"))
    parser.add_argument("--huge-limit-gb", type=float, default=14.0)
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    huge = refused(arguments.out, arguments.huge, arguments.huge_limit_gb)
    fixed, moving, *points = synthesise(arguments.ct, arguments.out, tuple(arguments.size))
    folder = arguments.out / arguments.name
    words = [sys.executable, "-m", "DiffeoRegLib", "register", str(fixed), str(moving), "-o", str(folder)]
    words += ["--overwrite", "--json", "--landmarks", *map(str, points), *arguments.flags.split()]
    run = watched(words)
    found: dict[str, Any] = {"huge": huge, "size": list(arguments.size), "flags": arguments.flags}
    found |= {name: value for name, value in run.items() if name != "last"}
    if run["status"] == 0:
        found |= verdict(run, folder)
    else:
        found["error"] = run["last"].get("message", run["errors"])
    text = json.dumps(found, indent=1)
    (arguments.out / f"{arguments.name}.json").write_text(text + "\n", encoding="utf-8")
    print(text)
    kept = run["status"] == 0 and found["memory kept"] and found["disk kept"]
    sys.exit(0 if kept and huge["refused"] else 1)


if __name__ == "__main__":
    main()
