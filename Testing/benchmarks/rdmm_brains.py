"""The methods with kernels on the brain pairs, beside the default method: Dice, folds, seconds, memory.

    python Testing/benchmarks/rdmm_brains.py --data DATA_FOLDER --out build/rdmm_brains.json --threads 1
    python Testing/benchmarks/rdmm_brains.py --show build/rdmm_brains.json

The pairs are those of `peers.py --set brain`, from the same initial alignment (SimpleITK's affine), every
run in a process of its own by the command line, `--preset brain-mr`. A row is written after every run, and
rows that are there are not run again: an interrupted study goes on where it stopped; `--again METHOD,...`
forgets some. `--pairs FIXED_MOVING,...` takes other persons of the same data set, for choosing settings.

Columns: Dice is the mean over all labels, nearest neighbour, one interpolation; folded % and SDlogJ are
inside the head; `det < 0` is the sum of |det| over points with a negative one and `diagonal` the sum of
|d1u1 d2u2 d3u3| where that product is negative, which is what the RDMM paper calls folds (central
differences, fixed grid); `register s` leaves out the affine, reading, measuring and writing.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))

import numpy as np  # noqa: E402
import peer_data  # noqa: E402
import peer_pair  # noqa: E402
import peer_scores  # noqa: E402
import peers  # noqa: E402

Row = dict[str, Any]
METHODS = ("svf", "vsvf", "lddmm", "rdmm")
COLUMNS = (
    ("dice", "Dice", "{:.4f}"),
    ("hd95_mm", "HD95 mm", "{:.2f}"),
    ("folded_percent", "folded %", "{:.4f}"),
    ("det_below_zero", "det < 0", "{:.2f}"),
    ("diagonal_below_zero", "diagonal", "{:.2f}"),
    ("sd_log_jacobian", "SDlogJ", "{:.3f}"),
    ("inverse_mean_mm", "inverse error mm", "{:.3f}"),
    ("inverse_max_mm", "largest", "{:.2f}"),
    ("register_seconds", "register s", "{:.1f}"),
    ("cpu_seconds", "CPU s, whole process", "{:.1f}"),
    ("peak_mb", "MB", "{:.0f}"),
)


def pairs_of(data: Path, names: str | None, cache: Path) -> Iterator[peer_pair.Pair]:
    """The benchmark's pairs, or those named."""
    if names is None:
        yield from peer_data.SETS["brain"](data, cache)
        return
    folder = data / "malf_miccai2012"
    for name in names.split(","):
        fixed, moving = name.split("_")
        files = [folder / f"{who}_{kind}.nii.gz" for kind in ("SS", "glm") for who in (fixed, moving)]
        yield peer_pair.Pair("brain", f"brain_{name}", files[0], files[1], files[2], files[3])


def negative_sums(row: Row, truth: peer_scores.Truth) -> Row:
    """How negative the determinant and the product of the diagonal are, summed over the foreground."""
    transform = peer_scores.read_transform(row["forward"], truth.start)
    position = peer_scores.index_positions(peer_scores.field_mm(transform, truth.fixed), truth.fixed)
    slopes = np.stack([np.gradient(position, axis=axis) for axis in range(3)], axis=-1)
    diagonal = slopes[..., 0, 0] * slopes[..., 1, 1] * slopes[..., 2, 2]
    found = {"det_below_zero": np.linalg.det(slopes), "diagonal_below_zero": diagonal}
    return {name: float(np.maximum(-values[truth.where], 0).sum()) for name, values in found.items()}


def measured(pair: peer_pair.Pair, method: str, truth: peer_scores.Truth, args: argparse.Namespace) -> Row:
    """One run and all its scores."""
    out = args.scratch / "runs" / pair.name / method
    out.mkdir(parents=True, exist_ok=True)
    peers.OURS[method] = ("--method", method, "--effort", args.effort)
    row: Row = {"pair": pair.name, "method": method, "effort": args.effort, "threads": args.threads}
    row |= peers.run_ours(method, pair, truth.start, out, args)
    if row["status"] == "ok":
        row |= truth.scores(row["forward"], row["inverse"], hd95=args.hd95) | negative_sums(row, truth)
        report = json.loads((out / "ours" / "report.json").read_text(encoding="utf-8"))
        row["notes"] = report.get("notes")
    return row


def text(row: Row, key: str, pattern: str) -> str:
    """One cell."""
    value = row.get(key)
    return "-" if value is None or not np.isfinite(value) else pattern.format(value)


def table(rows: Sequence[Row]) -> str:
    """A line per pair and method, and the means of the methods over the pairs that all of them have."""
    shown = [c for c in COLUMNS if any(c[0] in row for row in rows)]
    lines = ["| pair | method | " + " | ".join(heading for _, heading, _ in shown) + " |"]
    lines.append("|---" * (2 + len(shown)) + "|")
    for row in rows:
        cells = [text(row, key, pattern) for key, _, pattern in shown]
        lines.append(f"| {row['pair']} | {row['method']} | " + " | ".join(cells) + " |")
    good = [row for row in rows if row["status"] == "ok"]
    methods = list(dict.fromkeys(row["method"] for row in good))
    sets = [{row["pair"] for row in good if row["method"] == method} for method in methods]
    common = set.intersection(*sets) if sets else set()
    for method in methods:
        chosen = [row for row in good if row["method"] == method and row["pair"] in common]
        if chosen:
            cells = [
                text({key: float(np.mean([r.get(key, np.nan) for r in chosen]))}, key, pattern)
                for key, _, pattern in shown
            ]
            lines.append(f"| **mean of {len(common)}** | {method} | " + " | ".join(cells) + " |")
    failed = [f"{row['pair']} {row['method']}: {row['status']}" for row in rows if row["status"] != "ok"]
    return "\n".join([*lines, *failed])


def main() -> int:
    """Run what is missing, print the table; 2 when a run failed."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, help="folder with the public data sets")
    parser.add_argument("--methods", default=",".join(METHODS))
    parser.add_argument("--pairs", help="FIXED_MOVING,... numbers of persons")
    parser.add_argument("--effort", default="balanced")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--limit", type=float, default=3600.0, help="seconds for one run")
    parser.add_argument("--hd95", action="store_true", help="also HD95 (slow with 138 labels)")
    parser.add_argument("--ours-args", default="", help="more flags, one string")
    parser.add_argument("--again", default="", help="methods whose rows are forgotten, comma separated")
    parser.add_argument("--scratch", type=Path, default=Path("build/rdmm_brains"))
    parser.add_argument("--out", type=Path, default=Path("build/rdmm_brains.json"))
    parser.add_argument("--show", type=Path, help="no runs: the table of a results file")
    args = parser.parse_args()
    if args.show:
        print(table(json.loads(args.show.read_text(encoding="utf-8"))))
        return 0
    if args.data is None:
        parser.error("--data is needed (or --show).")
    args.masks, args.scratch, data = False, args.scratch.resolve(), args.data.resolve()
    args.out.parent.mkdir(parents=True, exist_ok=True)
    rows: list[Row] = json.loads(args.out.read_text(encoding="utf-8")) if args.out.exists() else []
    rows = [row for row in rows if row["method"] not in args.again.split(",")]
    for pair in pairs_of(data, args.pairs, args.scratch / "cache"):
        missing = [
            m for m in args.methods.split(",")
            if not any(row["pair"] == pair.name and row["method"] == m for row in rows)
        ]  # fmt: skip
        truth = peer_scores.Truth(pair, peer_pair.start_of(pair, args.scratch / "init")) if missing else None
        for method in missing:
            assert truth is not None
            rows.append(measured(pair, method, truth, args))
            args.out.write_text(json.dumps(rows, indent=1), encoding="utf-8")
            print(table(rows[-1:]).splitlines()[-1], flush=True)
    print(table(rows))
    return 2 if any(row["status"] != "ok" for row in rows) else 0


if __name__ == "__main__":
    sys.exit(main())
