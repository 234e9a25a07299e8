"""Everything on one page: every method and every peer on the same pairs, from the same initial alignment.

    make results DATA=folder [PEER_PYTHON=python] [RESULTS=build/results] [RESULTS_FLAGS="--set brain"]
    PYTHONPATH=. python Testing/benchmarks/results.py --data DATA_FOLDER --peer-python PEER_PYTHON
    PYTHONPATH=. python Testing/benchmarks/results.py --page

Each row (set, pair, method, setting, device) is a file of its own under OUT/rows.  A row that is there is
kept while the code and the settings it came from are unchanged (--keep: whatever the code), so a run that was
killed goes on.  Before anything runs, the time that the missing rows will take is told, from the rows there
are (those of Resources/docs/results-table.json to begin with).  A program that fails is a row with words.
At the end, and with --page alone, Resources/docs gets results-table.md, its plots and choose-a-model.md.
Rows of the dynamic series are those of group_series.py (--series OUT/rows of that).  Linux and macOS.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parents[1])]

import peer_pair  # noqa: E402
import peer_scores  # noqa: E402
import peers  # noqa: E402
import results_pairs  # noqa: E402
import results_rows  # noqa: E402
import results_ways  # noqa: E402
from results_rows import Row, Store  # noqa: E402
from results_ways import Way  # noqa: E402

DOCS = HERE.parents[1] / "Resources" / "docs"
LARGE_LABELS = ("brain", "hippocampus")
"""Sets whose labels are structures, so that a distance of surfaces means something."""
FINE = ("ok", "not installed", "one modality only")
"""Statuses that are no failure."""
ALWAYS = ("--no-html", "--memory-limit-gb", "16")
"""Of all our runs. Without a limit of their own they take a coarser grid where others use the memory."""
KEPT_OF_REPORT = ("folded_percent", "minimum_determinant")


@dataclass(frozen=True)
class Task:
    """One row to be made or kept."""

    where: str
    pair: peer_pair.Pair
    way: Way
    settings: str
    code: str


def settings_hash(where: str, pair: peer_pair.Pair, way: Way, threads: int) -> str:
    """Of all that a row answers: the pair's files by name and size, the flags, the threads."""
    named = [pair.fixed, pair.moving, pair.fixed_labels, pair.moving_labels, pair.fixed_lesion]
    files = [(file.name, file.stat().st_size if file.exists() else -1) for file in named if file is not None]
    flags = [*way.flags, *results_pairs.flags_of(pair, way.method)]
    flags = [Path(word).name if "/" in word else word for word in flags]
    content = (where, pair.name, pair.start, files, way.name, flags, threads)
    return results_rows.digest([json.dumps(content).encode()])


def tasks_of(arguments: argparse.Namespace, cuda: bool) -> list[Task]:
    """All rows of the sets that are wanted and can be run; way by way, so that a stop leaves whole ways."""
    found = list[Task]()
    weights = dict(entry.split("=", 1) for entry in arguments.weights)
    paths = {name: Path(file).resolve() for name, file in weights.items()}
    for where in arguments.set:
        source = results_pairs.SETS[where](arguments.data, arguments.out / "cache")
        count = arguments.pairs or results_pairs.PAIRS[where]
        pairs = [pair for pair, _ in zip(source, range(count), strict=False)]
        for way in [Way("start", "start"), *results_ways.ways_of(where, cuda=cuda, weights=paths)]:
            if way.reason or (arguments.only and not any(part in way.name for part in arguments.only)):
                continue
            code = (
                results_rows.code_of_peers(arguments.peer_python) if way.peer else results_rows.code_of_ours()
            )
            for pair in pairs:
                settings = settings_hash(where, pair, way, arguments.threads)
                found.append(Task(where, pair, way, settings, code))
    return found


def missing(tasks: Sequence[Task], store: Store, arguments: argparse.Namespace) -> list[Task]:
    """Those that have to run."""
    return [
        task
        for task in tasks
        if not results_rows.kept(
            store.read(task.where, task.pair.name, task.way.name), task.code, task.settings,
            old_code=arguments.keep, retry=arguments.retry,
        )
    ]  # fmt: skip


def forecast(tasks: Sequence[Task], known: Sequence[Row]) -> tuple[float, int]:
    """CPU seconds of all rows that would run, and how many of them are guesses."""
    total, guesses = 0.0, 0
    for task in tasks:
        if task.way.method == "start":
            continue
        seconds, guess = results_rows.expected_seconds(known, task.where, task.way.method, task.way.setting)
        total, guesses = total + seconds, guesses + guess
    return total, guesses


def made(task: Task, arguments: argparse.Namespace) -> Row:
    """Run a task and judge it; whatever goes wrong is the row's status."""
    way, pair = task.way, task.pair
    row: Row = {"set": task.where, "pair": pair.name, "method": way.method, "setting": way.setting,
                "device": way.device, "peer": way.peer, "diffeomorphic": way.diffeomorphic}  # fmt: skip
    try:
        start = peer_pair.start_of(pair, arguments.out / "init")
        out = arguments.out / "runs" / pair.name / way.name
        out.mkdir(parents=True, exist_ok=True)
        row |= ran(task, start, out, arguments)
        if row["status"] == "ok":
            began = time.process_time()
            truth = peer_scores.Truth(pair, start)
            row |= truth.scores(row["forward"], row.get("inverse"), hd95=task.where in LARGE_LABELS)
            row["judging_seconds"] = time.process_time() - began
    except (OSError, RuntimeError, ValueError, KeyError, AssertionError) as error:
        row["status"] = f"could not be judged: {str(error).splitlines()[0][:160] if str(error) else error!r}"
    finally:
        cleaned(row, arguments.out / "runs" / pair.name / way.name)
    return row


def ran(task: Task, start: Path, out: Path, arguments: argparse.Namespace) -> Row:
    """The row of the process, not yet judged."""
    way, pair = task.way, task.pair
    if way.method == "start":
        return {"status": "ok", "forward": [str(start)]}
    if way.peer:
        return peers.run_peer(way.method, pair, start, out, arguments)
    extra = results_pairs.flags_of(pair, way.method)
    if way.device == "cpu":
        extra = (*extra, "--device", "cpu")
    peers.OURS[way.name] = (*way.flags, *extra, *ALWAYS, "--threads", str(arguments.threads))
    row = peers.run_ours(way.name, pair, start, out, arguments)
    if row["status"] == "ok":
        report = json.loads((out / "ours" / "report.json").read_text(encoding="utf-8"))
        folds = report.get("folds") or {}
        row["report"] = {key: folds.get(key) for key in KEPT_OF_REPORT}
        row["notes"] = report.get("notes", [])
    return row


def cleaned(row: Row, out: Path) -> None:
    """No paths of this machine in a row, no transforms left: they are hundreds of megabytes each."""
    for key in ("forward", "inverse", "files_reported", "command", "phases"):
        row.pop(key, None)
    for path in sorted(out.rglob("*")) if out.is_dir() else []:
        if path.suffix in (".h5", ".mha", ".gz", ".mat", ".safetensors"):
            path.unlink()


def run_all(tasks: Sequence[Task], store: Store, arguments: argparse.Namespace) -> int:
    """Every missing row; returns how many failed."""
    failed = 0
    commit, machine = results_rows.commit_of(), results_rows.machine_words()
    for number, task in enumerate(tasks, 1):
        row = made(task, arguments)
        row |= {"code": task.code, "settings": task.settings, "threads": arguments.threads,
                "date": f"{datetime.now(UTC):%Y-%m-%d}", "commit": commit, "machine": machine}  # fmt: skip
        store.write(task.where, task.pair.name, task.way.name, row)
        failed += not row["status"].startswith(FINE)
        print(f"[{number}/{len(tasks)}] {line_of(row)}", flush=True)
    return failed


def line_of(row: Row) -> str:
    """Progress in words."""
    name = f"{row['set']}  {row['pair']}  {row['method']} ({row['setting']}, {row['device']})"
    if row["status"] != "ok":
        return f"{name}: {row['status']}"
    shown = (("dice", "Dice {:.4f}"), ("tre_mm", "TRE {:.2f} mm"), ("folded_whole_percent", "folds {:.4f} %"),
             ("cpu_seconds", "{:.1f} CPU s"), ("wall_seconds", "{:.1f} s"), ("peak_mb", "{:.0f} "
                 "MB"))  # fmt: skip
    return f"{name}: " + ", ".join(text.format(row[key]) for key, text in shown if row.get(key) is not None)


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, help="folder with the public data sets")
    parser.add_argument("--out", type=Path, default=Path("build/results"))
    parser.add_argument("--set", default=",".join(results_ways.PAIR_SETS), help="comma list")
    parser.add_argument(
        "--only", default="", help="ways whose METHOD--SETTING holds one of these, comma list"
    )
    parser.add_argument("--pairs", type=int, help="the first N of each set")
    parser.add_argument("--peer-python", default=sys.executable, help="interpreter that has the peers")
    parser.add_argument("--weights", action="append", default=[], metavar="METHOD=FILE")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--limit", type=float, default=3600.0, help="seconds for one row")
    parser.add_argument("--keep", action="store_true", help="keep rows of other code, too")
    parser.add_argument("--retry", action="store_true", help="run rows that failed again")
    parser.add_argument("--plan", action="store_true", help="tell the time, run nothing")
    parser.add_argument("--page", action="store_true", help="write the page from the rows there are")
    parser.add_argument("--series", type=Path, help="rows of group_series.py")
    parser.add_argument("--docs", type=Path, default=DOCS, help="where the page is written")
    arguments = parser.parse_args(argv)
    arguments.out, arguments.docs = arguments.out.resolve(), arguments.docs.resolve()
    arguments.data = arguments.data.resolve() if arguments.data else None
    arguments.set = arguments.set.split(",")
    arguments.only = [part for part in arguments.only.split(",") if part]
    arguments.masks, arguments.ours_args, arguments.scratch = False, "", arguments.out
    unknown = [name for name in arguments.set if name not in results_pairs.SETS]
    if unknown:
        parser.error(f"There is no set {', '.join(unknown)}; there are {', '.join(results_pairs.SETS)}.")
    if arguments.data is None and not arguments.page:
        parser.error("Name the folder with the public data sets: make results DATA=folder, or --data FOLDER.")
    if any("=" not in entry for entry in arguments.weights):
        parser.error("Weights are given as METHOD=FILE.")
    return arguments


def main(argv: Sequence[str] | None = None) -> int:
    """Tell, run, write; 2 when a row failed."""
    arguments = parse(argv)
    store = Store(arguments.out / "rows")
    failed = 0
    if arguments.data is not None:
        if not hasattr(os, "wait4"):
            print("This benchmark reads the resources of its processes with os.wait4: Linux or macOS.")
            return 1
        tasks = tasks_of(arguments, cuda_here())
        todo = missing(tasks, store, arguments)
        print(told(tasks, todo, [*published(arguments.docs), *store.rows()]), flush=True)
        if arguments.plan:
            return 0
        failed = run_all(todo, store, arguments)
    from results_page import write_page

    write_page(merged(published(arguments.docs), store.rows()), arguments.series, arguments.docs)
    return 2 if failed else 0


def told(tasks: Sequence[Task], todo: Sequence[Task], known: Sequence[Row]) -> str:
    """What is kept, what runs, and for how long."""
    seconds, guesses = forecast(todo, known)
    guess = f" ({guesses} of them never timed, taken as {results_rows.UNKNOWN_SECONDS:.0f} s each)"
    return (
        f"{len(tasks)} rows, {len(tasks) - len(todo)} kept, {len(todo)} to run: about "
        f"{results_rows.words_of_seconds(seconds)} of one core{guess if guesses else ''}."
    )


def published(docs: Path) -> list[Row]:
    """The rows that the repository holds."""
    path = docs / "results-table.json"
    if not path.exists():
        return []
    content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return list(content["rows"])


def merged(older: Sequence[Row], newer: Sequence[Row]) -> list[Row]:
    """The newer row of each question; a row that was not run never replaces one that was."""
    found: dict[tuple[str, ...], Row] = {}
    for row in [*older, *newer]:
        key = tuple(str(row.get(name)) for name in ("set", "pair", "method", "setting", "device"))
        old = found.get(key)
        if old is None or old["status"] != "ok" or not row["status"].startswith(results_rows.TRIED_AGAIN):
            found[key] = row
    return list(found.values())


def cuda_here() -> bool:
    """Whether there is a GPU to run on."""
    import torch

    return torch.cuda.is_available()


if __name__ == "__main__":
    sys.exit(main())
