"""The default path of a new user beside ANTs SyN's: two brains in, a transform out, nothing prepared.

    PYTHONPATH=. python Testing/benchmarks/default_path.py --data DATA_FOLDER --peer-python PEER_PYTHON -o OUT

Ours: `diffeoreg register FIXED MOVING -o OUT` with `--preset brain-mr`, and without any flag.  ANTs:
`ants.registration(fixed, moving, "SyN")` of antspyx with nothing changed (affine, then mutual information at
40x20x0), and, with --full, `"antsRegistrationSyN[s]"`, the defaults of ANTs' own script (correlation,
100x70x50x20, the last at full resolution).  The programs take turns, each in a process of its own with
--threads threads; whole processes are timed, reading and writing included.  Told: Dice over all labels, wall
and CPU seconds of each turn and their medians.  Only a calm machine says something about wall seconds.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from statistics import median
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parents[1])]

import peer_data  # noqa: E402
import peer_pair  # noqa: E402
import peer_scores  # noqa: E402
import peers  # noqa: E402
import SimpleITK as sitk  # noqa: E402

Row = dict[str, Any]
ANTS = """import json, sys, ants
fixed, moving, out, kind = sys.argv[1:]
found = ants.registration(ants.image_read(fixed), ants.image_read(moving), kind, outprefix=out + "/ants_")
json.dump(found["fwdtransforms"], open(out + "/forward.json", "w", encoding="utf-8"))
"""
OURS = {"diffeoreg, preset brain-mr": ("--preset", "brain-mr"), "diffeoreg, no flags": (),
        "diffeoreg, brain-mr, fast": ("--preset", "brain-mr", "--effort", "fast")}  # fmt: skip
THEIRS = {"ANTs SyN": "SyN"}
FULL = {"antsRegistrationSyN": "antsRegistrationSyN[s]"}


def turn(name: str, pair: peer_pair.Pair, out: Path, arguments: argparse.Namespace) -> Row:
    """One program once; raises RuntimeError with its last words if it fails."""
    out.mkdir(parents=True, exist_ok=True)
    images = [str(pair.fixed), str(pair.moving)]
    kinds = THEIRS | FULL
    if name in kinds:
        command = [arguments.peer_python, "-c", ANTS, *images, str(out), kinds[name]]
    else:
        command = [sys.executable, "-m", "DiffeoRegLib", "register", *images, "-o", str(out / "ours"),
                   "--overwrite", "--threads", str(arguments.threads), *OURS[name]]  # fmt: skip
    ran = peers.run_process(
        command,
        out / "log.txt",
        threads=arguments.threads,
        limit_seconds=arguments.limit,
        cwd=HERE.parents[1],
    )
    if ran.code != 0:
        last = (out / "log.txt").read_text(encoding="utf-8", errors="replace").splitlines() or ["nothing"]
        raise RuntimeError(f"{name} ended with {ran.code}: {last[-1]}")
    return {
        "name": name,
        "wall_seconds": ran.wall_seconds,
        "cpu_seconds": ran.cpu_seconds,
        "peak_mb": ran.peak_mb,
    }


def forward_of(name: str, out: Path) -> list[str]:
    """Files that map fixed to moving points; the last acts first."""
    if name in OURS:
        return [str(out / "ours" / "transform.h5")]
    return list(reversed(json.loads((out / "forward.json").read_text(encoding="utf-8"))))


def summary(rows: list[Row]) -> str:
    """A line per program: Dice, median seconds, every turn."""
    lines = ["| program | Dice | folded % | wall s, median (each) | CPU s, median | MB |", "|---" * 6 + "|"]
    for name in dict.fromkeys(row["name"] for row in rows):
        mine = [row for row in rows if row["name"] == name]
        each = ", ".join(f"{row['wall_seconds']:.1f}" for row in mine)
        wall, cpu = (median(row[key] for row in mine) for key in ("wall_seconds", "cpu_seconds"))
        peak = max(row["peak_mb"] for row in mine)
        score = mine[0]
        lines.append(f"| {name} | {score['dice']:.4f} | {score['folded_whole_percent']:.4f} | {wall:.1f} "
                     f"({each}) "
                     f"| {cpu:.1f} | {peak:.0f} |")  # fmt: skip
    return "\n".join(lines)


def main() -> int:
    """Take turns, judge, print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("-o", "--out", type=Path, required=True)
    parser.add_argument("--peer-python", default=sys.executable)
    parser.add_argument("--pair", default="brain_1110_1113")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--only", default="", help="programs whose name holds this")
    parser.add_argument("--full", action="store_true", help="also ANTs' own script; an hour or more a turn")
    parser.add_argument("--limit", type=float, default=7200.0)
    arguments = parser.parse_args()
    out = arguments.out.resolve()
    pairs = {pair.name: pair for pair in peer_data.brain(arguments.data.resolve(), out)}
    pair = pairs[arguments.pair]
    start = out / "identity.tfm"
    out.mkdir(parents=True, exist_ok=True)
    sitk.WriteTransform(sitk.AffineTransform(3), str(start))
    truth = peer_scores.Truth(pair, start)
    names = [name for name in [*OURS, *THEIRS, *(FULL if arguments.full else ())] if arguments.only in name]
    rows: list[Row] = []
    for number in range(arguments.turns):
        for name in names:
            folder = out / name.replace(", ", "-").replace(" ", "-")
            row = turn(name, pair, folder, arguments)
            if number == 0:
                scores = truth.scores(forward_of(name, folder), None, hd95=False)
                row |= {key: scores[key] for key in ("dice", "folded_percent", "folded_whole_percent")}
            rows.append(row)
            print(
                {key: round(value, 4) if isinstance(value, float) else value for key, value in row.items()},
                flush=True,
            )
            (out / "default_path.json").write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    print(summary(rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
