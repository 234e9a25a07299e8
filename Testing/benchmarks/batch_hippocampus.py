"""A cohort of hippocampus pairs, killed in the middle and resumed, against an undisturbed run: by hand.

    PYTHONPATH=. python Testing/benchmarks/batch_hippocampus.py --data FOLDER -o OUT [--pairs 20]

FOLDER: images/ and labels/ of the Medical Segmentation Decathlon's task 4.  Every image is registered to the
next one.  The scheduler (it lives in the command's process) is killed with SIGKILL when half of the rows are
finished; the table of that run has one more row, whose image is cut short.  Printed, and kept in
OUT/result.json: how often each row was begun and finished, how many results differ from the undisturbed run,
seconds, Dice.
"""

from __future__ import annotations

import argparse
import csv
import itertools
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from DiffeoRegLib.space.sample import array_from_tensor
from DiffeoRegLib.volumes.files import read_volume
from DiffeoRegLib.volumes.transform_files import read_transform

FILES = ("transform.h5", "inverse.h5", "moved.nii.gz", "moved_seg.nii.gz")
CORRUPT = "corrupt"
COLUMNS = ("fixed", "moving", "fixed_labels", "moving_labels", "name")


def table(data: Path, out: Path, count: int, *, corrupt: bool) -> Path:
    """Pairs of neighbours in the order of their names."""
    names = sorted(path.name for path in (data / "images").glob("*.nii.gz"))[: count + 1]
    rows = [
        [data / "images" / a, data / "images" / b, data / "labels" / a, data / "labels" / b, b.split(".")[0]]
        for a, b in itertools.pairwise(names)
    ]
    if corrupt:
        cut = out / "cut.nii.gz"
        cut.write_bytes((data / "images" / names[0]).read_bytes()[:2000])
        rows.insert(3, [data / "images" / names[0], cut, "", "", CORRUPT])
    path = out / ("disturbed.csv" if corrupt else "undisturbed.csv")
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([COLUMNS, *rows])
    return path


def begin(pairs: Path, folder: Path, flags: list[str], *more: str) -> subprocess.Popen[str]:
    """The command, as a user starts it."""
    words = [sys.executable, "-m", "DiffeoRegLib", "batch", str(pairs), "-o", str(folder), *flags, *more]
    return subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, encoding="utf-8")


def stories(folder: Path) -> dict[str, Any]:
    """The status of every row that was begun."""
    return {
        path.stem: json.loads(path.read_text(encoding="utf-8")) for path in (folder / "status").glob("*.json")
    }


def finished(folder: Path) -> set[str]:
    """Rows whose results are in place."""
    return {path.parent.name for path in folder.glob("*/row.json")}


def kill_in_the_middle(process: subprocess.Popen[str], folder: Path, half: int) -> dict[str, list[str]]:
    """Kill the command when so many rows are finished and others run; which was which then."""
    while True:
        if process.poll() is not None:
            raise SystemExit(f"It ended before it could be killed: {process.communicate()}")
        running = [name for name, story in stories(folder).items() if story["state"] == "running"]
        if len(finished(folder)) >= half and running:
            break
        time.sleep(0.05)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    time.sleep(2)  # the workers see it and end
    return {"finished": sorted(finished(folder)), "running": sorted(running)}


def differing(one: Path, other: Path, names: list[str]) -> list[str]:
    """Results whose numbers are not the same, to the last bit."""
    return [
        f"{name}/{file}"
        for name in names
        for file in FILES
        if not np.array_equal(numbers_in(one / name / file), numbers_in(other / name / file))
    ]


def numbers_in(path: Path) -> NDArray[Any]:
    """The values of a volume; where a transform takes a lattice of points, RAS mm."""
    if path.suffix == ".h5":
        lattice = np.stack(np.meshgrid(*[np.arange(-40.0, 81.0, 4.0)] * 3, indexing="ij"), -1)
        return read_transform(path).map_points(lattice.reshape(-1, 3))
    return array_from_tensor(read_volume(path).data)


def dice(folder: Path, name: str) -> float:
    """Mean Dice of a row."""
    return float(json.loads((folder / name / "row.json").read_text(encoding="utf-8"))["numbers"]["dice"])


def main() -> None:
    """Both runs, compared."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("-o", "--out", type=Path, required=True)
    parser.add_argument("--pairs", type=int, default=20)
    parser.add_argument("--workers", default="2")
    parser.add_argument("--effort", default="fast")
    parser.add_argument("--flags", default="", help="further flags of `register`, in quotes")
    arguments = parser.parse_args()
    out = arguments.out.resolve()
    out.mkdir(parents=True)
    flags = ["--workers", arguments.workers, "--threads", "1", "--device", "cpu"]
    flags += ["--effort", arguments.effort, *arguments.flags.split()]
    result: dict[str, Any] = {}

    started = time.perf_counter()
    process = begin(
        table(arguments.data.resolve(), out, arguments.pairs, corrupt=True), out / "disturbed", flags
    )
    result["at the kill"] = kill_in_the_middle(process, out / "disturbed", arguments.pairs // 2)
    kept = {name: (out / "disturbed" / name / "row.json").stat().st_mtime_ns for name in
            result["at the kill"]["finished"]}  # fmt: skip
    process = begin(out / "disturbed.csv", out / "disturbed", flags, "--resume")
    said, errors = process.communicate()
    result["resumed"] = {
        "status": process.returncode, "last": errors.strip().splitlines()[-1],
        "seconds": round(time.perf_counter() - started, 1),
    }  # fmt: skip

    started = time.perf_counter()
    process = begin(
        table(arguments.data.resolve(), out, arguments.pairs, corrupt=False), out / "undisturbed", flags
    )
    process.communicate()
    result["undisturbed"] = {
        "status": process.returncode, "seconds": round(time.perf_counter() - started, 1),
    }  # fmt: skip

    known = stories(out / "disturbed")
    outcomes = {name: [one["outcome"] for one in story["attempts"]] for name, story in known.items()}
    names = sorted(finished(out / "undisturbed"))
    scores = [dice(out / "disturbed", name) for name in names]
    result |= {
        "rows": len(names),
        "rows finished exactly once": sum(outcomes[name].count("done") == 1 for name in names),
        "rows begun more than once": {name: list(of) for name, of in outcomes.items() if len(of) > 1},
        "kept rows written again": [
            name
            for name, when in kept.items()
            if (out / "disturbed" / name / "row.json").stat().st_mtime_ns != when
        ],
        "results compared": len(names) * len(FILES),
        "results that differ": differing(out / "disturbed", out / "undisturbed", names),
        "corrupt row": known[CORRUPT]["problem"],
        "mean Dice": round(sum(scores) / len(scores), 4),
    }
    text = json.dumps(result, indent=1)
    (out / "result.json").write_text(text + "\n", encoding="utf-8")
    print(said)
    print(text)


if __name__ == "__main__":
    main()
