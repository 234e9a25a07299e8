"""Ours and the peers on the same pairs, from the same initial alignment: one command, one table.

    python Testing/benchmarks/peers.py --data DATA_FOLDER --set brain --methods ours,ours-fast,greedy,demons
    python Testing/benchmarks/peers.py --quick

Each method runs in its own process with `--threads` threads. `register s` is images in memory -> transform in
memory (ours: the phases of its report without reading, resampling, measuring and writing), `wall s` and
`CPU s` are the whole process, `MB` is its peak resident memory. `register CPU s` is for programs inside their
Python process. ANTs and ours make the inverse while they register; greedy's is a second command whose cost is
kept apart (`inverse CPU s`) but is part of `wall s` and `CPU s`. A method that is missing, crashes, runs out
of time or makes no sense for a pair says so in its row.

The pairs are described in peer_data.py. `--peer-python` names the interpreter that has the peers:
`pip install SimpleITK picsl_greedy antspyx itk-elastix convexadam tqdm`, then `pip install --no-deps
fireants` (it pins an old SimpleITK). Linux and macOS; on a machine that others use too, CPU seconds are the
fair figure.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))

import peer_data  # noqa: E402
import peer_pair  # noqa: E402
import peer_runners  # noqa: E402
import peer_scores  # noqa: E402
import peer_tables  # noqa: E402

Row = dict[str, Any]
LICENCE = ("--accept-licence", "CC-BY-NC-4.0")
OURS = {
    "ours": ("--method", "svf", "--effort", "balanced"),
    "ours-fast": ("--method", "svf", "--effort", "fast"),
    "ours-accurate": ("--method", "svf", "--effort", "accurate"),
    "ours-sitreg": ("--method", "sitreg-brain-t1", *LICENCE, "--effort", "balanced"),
    "ours-sitreg-accurate": ("--method", "sitreg-brain-t1", *LICENCE, "--effort", "accurate"),
    "ours-sitreg-network": ("--method", "sitreg-brain-t1", *LICENCE, "--effort", "fast"),
    "ours-sitreg-twice": ("--method", "sitreg-brain-t1", *LICENCE, "--effort", "fast", "--extra", "passes=2"),
    "ours-tvf": ("--method", "tvf-brain-t1", *LICENCE, "--effort", "balanced"),
    "ours-tvf-network": ("--method", "tvf-brain-t1", *LICENCE, "--effort", "fast"),
    "ours-tvf-lddmm": ("--method", "tvf-lddmm-brain-t1", *LICENCE, "--effort", "balanced"),
    "ours-tvf-lddmm-network": ("--method", "tvf-lddmm-brain-t1", *LICENCE, "--effort", "fast"),
    "ours-any-contrast": ("--method", "sitreg-any-contrast", "--effort", "balanced"),
    "ours-any-contrast-network": ("--method", "sitreg-any-contrast", "--effort", "fast"),
    "ours-any-contrast-twice": ("--method", "sitreg-any-contrast", "--effort", "fast", "--extra", "passes=2"),
    # its weights are not shipped: --ours-args "--weights FILE"
    "ours-voxelmorph-network": ("--method", "voxelmorph", "--effort", "fast"),
}
PRESETS = {
    **dict.fromkeys(("brain", "tumour", "hippocampus"), "brain-mr"),
    **dict.fromkeys(("liver", "abdomen"), "abdomen"),
    "lung": "lung-ct",
}
DEFAULT_METHODS = "ours,ours-fast,greedy,greedy-fast,ants-syn,demons,demons-fast,elastix,convexadam,fireants"
# Ours reports these phases outside registration proper; everything else counts.
NOT_REGISTERING = ("read", "writ", "measur", "report", "resampl", "warp", "check", "total")


@dataclass(frozen=True)
class Ran:
    """What the operating system says about one finished process."""

    code: int | None  # None = stopped at the time limit
    wall_seconds: float
    cpu_seconds: float
    peak_mb: float


def run_process(command: Sequence[str], log: Path, *, threads: int, limit_seconds: float, cwd: Path) -> Ran:
    """Run one command alone, its output in a log file, and read its resources when it ends."""
    libraries = ("OMP", "MKL", "OPENBLAS", "NUMEXPR")
    names = [*(f"{name}_NUM_THREADS" for name in libraries), "ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS"]
    environment = {**os.environ, **dict.fromkeys(names, str(threads)), "PYTHONPATH": str(HERE.parents[1])}
    began, peak_kb = time.perf_counter(), 0.0
    with log.open("wb") as sink:
        child = subprocess.Popen(
            command, stdout=sink, stderr=subprocess.STDOUT, env=environment, cwd=cwd, start_new_session=True
        )
        stopped = False
        while True:
            peak_kb = max(peak_kb, _resident_peak_kb(child.pid))
            pid, status, usage = os.wait4(child.pid, os.WNOHANG)
            if pid:
                break
            if not stopped and time.perf_counter() - began > limit_seconds:
                os.killpg(child.pid, signal.SIGKILL)
                stopped = True
            time.sleep(0.02)
    wall = time.perf_counter() - began
    child.returncode = os.waitstatus_to_exitcode(status)
    # ru_maxrss includes the parent's memory at the fork, so it is only the fallback (bytes on macOS)
    peak_kb = peak_kb or usage.ru_maxrss / (1024 if platform.system() == "Darwin" else 1)
    return Ran(None if stopped else child.returncode, wall, usage.ru_utime + usage.ru_stime, peak_kb / 1024)


def _resident_peak_kb(pid: int) -> float:
    try:
        lines = Path(f"/proc/{pid}/status").read_text(encoding="utf-8").splitlines()
    except OSError:  # no /proc on this system, or the process is gone: the caller has a fallback
        return 0.0
    return max((float(line.split()[1]) for line in lines if line.startswith("VmHWM")), default=0.0)


def run_peer(method: str, pair: peer_pair.Pair, start: Path, out: Path, args: argparse.Namespace) -> Row:
    """One peer on one pair; the row holds a status, the resources and, when ok, the transform's files."""
    job: dict[str, Any] = {
        "method": method,
        "fixed": str(pair.fixed),
        "moving": str(pair.moving),
        "start": str(start),
        "out": str(out),
        "threads": args.threads,
        "one_modality": pair.one_modality,
        "outside": pair.outside,
    }
    if args.masks and pair.fixed_mask and pair.moving_mask:
        job |= {"fixed_mask": str(pair.fixed_mask), "moving_mask": str(pair.moving_mask)}
    (out / "job.json").write_text(json.dumps(job), encoding="utf-8")
    command = [args.peer_python, str(HERE / "peer_runners.py"), str(out / "job.json")]
    ran = run_process(command, out / "log.txt", threads=args.threads, limit_seconds=args.limit, cwd=out)
    last = _last_line(out / "log.txt")
    status = {0: "ok", 3: "not installed", 4: last, None: f"time limit {args.limit:.0f} s"}
    row: Row = {"status": status.get(ran.code, f"crashed ({ran.code}): {last}"), **_resources(ran)}
    return row | (json.loads((out / "answer.json").read_text(encoding="utf-8")) if ran.code == 0 else {})


def ours_command(
    method: str, pair: peer_pair.Pair, start: Path, out: Path, args: argparse.Namespace
) -> list[str]:
    """Our command line for a pair, without the interpreter."""
    preset = PRESETS.get(pair.group, "general") if pair.one_modality else "multimodal"
    command = ["register", str(pair.fixed), str(pair.moving), "-o", str(out / "ours"), "--init", str(start)]
    command += [*OURS[method], "--preset", preset, "--overwrite"]
    if args.masks and pair.fixed_mask and pair.moving_mask:
        command += ["--fixed-mask", str(pair.fixed_mask), "--moving-mask", str(pair.moving_mask)]
    return command + args.ours_args.split()


def run_ours(method: str, pair: peer_pair.Pair, start: Path, out: Path, args: argparse.Namespace) -> Row:
    """Ours through its command line, like any user; rows as for the peers."""
    command = [sys.executable, "-m", "DiffeoRegLib", *ours_command(method, pair, start, out, args)]
    ran = run_process(
        command, out / "log.txt", threads=args.threads, limit_seconds=args.limit, cwd=HERE.parents[1]
    )
    if ran.code != 0:
        missing = "No module named DiffeoRegLib" in (out / "log.txt").read_text(encoding="utf-8")
        failed = "not installed" if missing else f"crashed ({ran.code}): {_last_line(out / 'log.txt')}"
        return {"status": f"time limit {args.limit:.0f} s" if ran.code is None else failed, **_resources(ran)}
    report = json.loads((out / "ours" / "report.json").read_text(encoding="utf-8"))
    phases: dict[str, float] = peer_tables.phase_seconds(report)
    return {
        "status": "ok",
        **_resources(ran),
        "command": " ".join(command),
        "phases": phases,
        "register_seconds": sum(s for name, s in phases.items() if not name.startswith(NOT_REGISTERING)),
        "forward": [str(out / "ours" / "transform.h5")],
        "inverse": [str(out / "ours" / "inverse.h5")],
    }


def _resources(ran: Ran) -> Row:
    return {"wall_seconds": ran.wall_seconds, "cpu_seconds": ran.cpu_seconds, "peak_mb": ran.peak_mb}


def _last_line(path: Path) -> str:
    lines = [line for line in path.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    return lines[-1][:160] if lines else "no output"


def benchmark(pairs: Sequence[peer_pair.Pair], methods: Sequence[str], args: argparse.Namespace) -> list[Row]:
    """Every method on every pair, with the start itself as the first row of each pair."""
    rows: list[Row] = []
    for pair in pairs:
        start = peer_pair.start_of(pair, args.scratch / "init")
        truth = peer_scores.Truth(pair, start)
        plan: list[str] = ["start", *methods]
        for method in plan:
            out = args.scratch / "runs" / pair.name / method
            out.mkdir(parents=True, exist_ok=True)
            if method == "start":
                row: Row = {"status": "ok", "forward": [str(start)]}
            else:
                row = (run_ours if method in OURS else run_peer)(method, pair, start, out, args)
            row = {"set": pair.group, "pair": pair.name, "method": method, **row}
            if row["status"] == "ok":
                row |= truth.scores(row["forward"], row.get("inverse"), hd95=args.hd95)
            rows.append(row)
            print(peer_tables.one_line(row), flush=True)
            if args.out:
                peer_tables.save(rows, args.out, args.reference)
    return rows


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, help="folder with the public data sets")
    parser.add_argument("--set", default="brain", help=f"comma list of {', '.join(peer_data.SETS)}, or all")
    parser.add_argument(
        "--methods",
        default=DEFAULT_METHODS,
        help=f"comma list of {', '.join([*OURS, *peer_runners.RUNNERS])}",
    )
    parser.add_argument("--pairs", help="a number (the first N) or names' parts, comma separated")
    parser.add_argument("--peer-python", default=sys.executable, help="interpreter that has the peers")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--limit", type=float, default=1800.0, help="seconds for one method on one pair")
    parser.add_argument("--masks", action="store_true", help="give the masks, where a pair has them")
    parser.add_argument("--hd95", action="store_true", help="also HD95 (slow with 138 labels)")
    parser.add_argument("--ours-args", default="", help="more flags for ours, one string")
    parser.add_argument("--reference", default="ours", help="method that the ratios are against")
    parser.add_argument(
        "--scratch", type=Path, default=Path("build/peers"), help="starts, prepared copies, results"
    )
    parser.add_argument("--out", type=Path, help="results .json or .md")
    parser.add_argument("--merge", type=Path, nargs="*", help="no runs: one table from earlier .json results")
    parser.add_argument("--quick", action="store_true", help="the tiny synthetic pair only")
    args = parser.parse_args(argv)
    args.scratch = args.scratch.resolve()
    return args


def main(argv: Sequence[str] | None = None) -> int:
    """Run, print the table, save; 1 when a named set or method does not exist, 2 when any run crashed."""
    args = parse(argv)
    if not hasattr(os, "wait4"):
        print("This benchmark reads the resources of its processes with os.wait4: Linux or macOS.")
        return 1
    if args.merge:
        rows = peer_tables.merge(
            [json.loads(path.read_text(encoding="utf-8"))["rows"] for path in args.merge]
        )
    else:
        methods = args.methods.split(",")
        groups = ["quick"] if args.quick else [g for g in peer_data.SETS if g != "quick"]
        groups = groups if args.quick or args.set == "all" else args.set.split(",")
        unknown = [n for n in methods if n not in {*OURS, *peer_runners.RUNNERS}]
        unknown += [n for n in groups if n not in peer_data.SETS]
        if unknown:
            print(
                f"Unknown: {', '.join(unknown)}. Methods: {', '.join([*OURS, *peer_runners.RUNNERS])}. "
                f"Sets: {', '.join(peer_data.SETS)}."
            )
            return 1
        if groups != ["quick"] and args.data is None:
            print("--data is needed (or --quick).")
            return 1
        data = (args.data or Path()).resolve()
        found = [_chosen(peer_data.SETS[g](data, args.scratch / "cache"), args.pairs) for g in groups]
        chosen = [pair for pairs in found for pair in pairs]
        rows = benchmark(chosen, methods, args)
    print(peer_tables.markdown(rows, args.reference))
    if args.out:
        peer_tables.save(rows, args.out, args.reference)
    return 2 if any(row["status"].startswith("crashed") for row in rows) else 0


def _chosen(pairs: Any, wanted: str | None) -> list[peer_pair.Pair]:
    everything = list(pairs)
    if wanted is None:
        return everything
    if wanted.isdigit():
        return everything[: int(wanted)]
    return [pair for pair in everything if any(part in pair.name for part in wanted.split(","))]


if __name__ == "__main__":
    sys.exit(main())
