"""The page of results from its rows: results-table.md, the rows as JSON, plots, choose-a-model.md."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import results_papers
import results_ways
from results_lines import KEY, Line, accuracy_cells, lines_of, number, others_text
from results_rows import Row

SETS = {
    "brain": "Brains: T1 MR of two persons, no skull, 138 labels (malf_miccai2012, CC BY-NC). Start: "
    "SimpleITK's "
    "affine. No training saw these persons; settings of `svf` were chosen on pairs of the same four persons.",
    "tumour": "A healthy brain onto one with a tumour. `glioma0005`: a real glioma (deepmedic_brats2013, CC "
    "BY-NC-SA); "
    "Dice of three tissues that thresholds find in either image, outside the lesion: crude, only differences "
    "count. `known`: a lesion with mass effect put into a brain at 2 mm; landmarks in the tissue around it, "
    "TRE is exact. Methods for lesions are given its outline, the others are not.",
    "lung": "Lung CT, baseline and follow-up, 26 landmarks (elastix_lung, Apache-2.0). Start: affine.",
    "liver": "Liver MR in two breathing states, 52 to 56 landmarks (ptvreg_ethliver, non-commercial). Start: "
    "as scanned.",
    "abdomen": "Abdominal CT with a known motion of up to 20 mm (totalseg_ct, CC BY), 500 exact landmarks. "
    "Start: as scanned.",
    "multimodal": "`contrast`: T1 and FLAIR of one person with a known motion, Dice of lesions "
    "(open_ms_data, "
    "CC BY); `abdomen_ct_mr`: CT and MR of two persons, automatic organ labels. Start: affine. "
    "Preset `multimodal`.",
    "hippocampus": "Crops around the hippocampus, two labels, persons that no training saw (msd_hippocampus, "
    "CC BY-SA). Start: affine.",
}
"""What each set is, and under what licence its images are."""
TITLES = {"brain": "Brain, T1", "tumour": "Healthy brain to tumour", "lung": "Lung", "liver": "Liver",
          "abdomen": "Abdomen", "multimodal": "Between modalities", "hippocampus": "Hippocampus"}  # fmt: skip
TOLD = ("fold", "smooth", "coarser")
"""Notes of a report with one of these words are kept."""


def table_of(rows: Sequence[Row], where: str) -> list[str]:
    """Heading, words, table and what was not run, of one set."""
    lines = lines_of(rows, where)
    text = [f"## {TITLES.get(where, where)}", "", SETS.get(where, ""), ""]
    if not lines:
        return [*text, "Not run.", ""]
    pairs = lines[0].pairs
    text += [f"{'Pair' if len(pairs) == 1 else 'Pairs'}: {', '.join(f'`{pair}`' for pair in pairs)}.", ""]
    shown = [
        ("dice", "Dice", 3),
        ("hd95_mm", "HD95 mm", 2),
        ("tre_mm", "TRE mm", 2),
        ("tre_95_mm", "TRE 95 % mm", 2),
    ]
    shown = [
        column
        for column in shown
        if any(row.get(column[0]) is not None for line in lines for row in line.done)
    ]
    heads = ["method", "setting", *(head for _, head, _ in shown), "folded % (body; whole grid)", "SDlogJ",
             "inverse error mm, mean (largest)", "CPU s", "wall s", "MB"]  # fmt: skip
    text += [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for line in lines:
        text.append(_row_text(line, shown, len(heads)))
    return [*text, "", *others_text(rows, where), *not_run(lines, where), ""]


def _row_text(line: Line, shown: Sequence[tuple[str, str, int]], width: int) -> str:
    device = "" if line.device == "cpu" else f", {line.device}"
    name = "nothing but the start" if line.method == "start" else f"{line.method}{device}"
    first = f'<a id="{line.anchor}"></a>{name}'
    if not line.done:
        failed = next(iter(line.rows.values()))["status"].replace("|", "/")
        return f"| {first} | {line.setting} | {failed} |" + " |" * (width - 3)
    cells = [accuracy_cells(line, key, digits) for key, _, digits in shown]
    folds = [line.largest("folded_percent"), line.largest("folded_whole_percent")]
    cells.append("0" if not any(folds) else "; ".join(_small(value) for value in folds))
    cells.append(number(_mean_done(line, "sd_log_jacobian"), 2))
    mean, most = _mean_done(line, "inverse_mean_mm"), line.largest("inverse_max_mm")
    cells.append("-" if mean is None else f"{number(mean, 3)} ({number(most, 1)})")
    cells += [
        number(_mean_done(line, key), digits) for key, digits in (("cpu_seconds", 0), ("wall_seconds", 0))
    ]
    cells.append(number(line.largest("peak_mb"), 0))
    setting = line.setting if line.method != "start" else ""
    if len(line.done) < len(line.pairs):
        failed = [row["status"] for row in line.rows.values() if row["status"] != "ok"]
        setting += f" ({len(line.done)} of {len(line.pairs)} pairs{': ' + failed[0] if failed else ''})"
    return f"| {first} | {setting} | " + " | ".join(cells) + " |"


def _mean_done(line: Line, key: str) -> float | None:
    values = [row[key] for row in line.done if row.get(key) is not None]
    return fmean(values) if values else None


def _small(value: float | None) -> str:
    return "-" if value is None else "0" if value == 0 else f"{value:.2g}"


def not_run(lines: Sequence[Line], where: str) -> list[str]:
    """Sentences on the ways without a row, by reason."""
    there = {(line.method, line.setting, line.device) for line in lines}
    reasons: dict[str, list[str]] = {}
    cpu = [way for way in results_ways.ways_of(where, cuda=True) if way.device == "cpu"]
    for way in cpu:
        if (way.method, way.setting, "cpu") not in there:
            named = (
                way.method
                if way.setting in ("from the headers", "default")
                else f"{way.method} ({way.setting})"
            )
            reasons.setdefault(way.reason or "not run yet", []).append(named)
    text = [f"* {', '.join(f'`{name}`' for name in names)}: {reason}." for reason, names in reasons.items()]
    if not any(line.device == "cuda" for line in lines):
        text.append("* On a GPU: not run, the machine has none.")
    return ["Not run:", "", *text]


def folds_text(rows: Iterable[Row]) -> list[str]:
    """Who folds, and whether its own report says so."""
    done = [row for row in rows if row["status"] == "ok" and row["method"] != "start"]
    ours = [row for row in done if not row["peer"]]
    folded = [row for row in ours if row["folded_whole_percent"] > 0]
    silent = [row for row in folded if not says_folds(row)]
    text = [
        "## Folds", "",
        "Corner determinants of the whole map as a program that knows nothing of ours reads it from the "
        "files, on the grid "
        "of the fixed image: a voxel counts as soon as one of its corners is zero or negative.", "",
        f"Rows of ours: {len(ours)}; with a folded corner anywhere: {len(folded)}; of these without a word "
        f"of it in "
        f"the report of the run: {len(silent)}.",
    ]  # fmt: skip
    for row in folded:
        text.append(f"* {row['set']}, {row['pair']}, {row['method']} ({row['setting']}): "
                    f"{row['folded_whole_percent']:.2g} %, "
                    f"report: {row['report']['folded_percent']}")  # fmt: skip
    peers = sorted({row["method"] for row in done if row["peer"] and row["folded_whole_percent"] > 0})
    counts = {m: [row["folded_whole_percent"] > 0 for row in done if row["method"] == m] for m in peers}
    told = "; ".join(f"{method} in {sum(c)} of {len(c)} rows" for method, c in counts.items())
    return [*text, "", f"Peers that fold: {told or 'none'}.", "", "![Folded corners](results-folds.png)", ""]


def says_folds(row: Row) -> bool:
    """Its own report counts folded cells."""
    return float((row.get("report") or {}).get("folded_percent") or 0.0) > 0


def series_text(series: Sequence[Row]) -> list[str]:
    """The dynamic series, registered as groups and pair by pair."""
    text = ["## Dynamic series", "", "`Testing/benchmarks/group_series.py`: livers in three breathing "
                                     "states with landmarks, "
            "a breast in three frames after contrast agent. Means over all pairs of frames; CPU seconds of "
            "a whole series.", ""]  # fmt: skip
    if not series:
        return [*text, "Not run.", ""]
    heads = ("series", "method", "TRE mm", "to frame 0", "largest", "RMSE", "NMI", "folded %", "CPU s")
    text += [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for row in series:
        anchor = f'<a id="{series_anchor(row)}"></a>'
        if "failed" in row:
            text.append(f"| {anchor}{row['series']} | {row['method']} | {row['failed']} |" + " |" * 6)
            continue
        cells = [number(row.get(key), 2) for key in ("tre_mm", "first_mm", "largest_mm", "rmse")]
        cells += [
            number(row.get("nmi"), 3),
            _small(fmean(row["folded_percent"])),
            number(row["cpu_seconds"], 0),
        ]
        text.append(f"| {anchor}{row['series']} | {row['method']} | " + " | ".join(cells) + " |")
    return [*text, ""]


def series_anchor(row: Row) -> str:
    """series-liver-18-svf-pairwise."""
    return "-".join(["series", row["series"], *row["method"].replace(",", "").split()])


def papers_text(rows: Sequence[Row]) -> list[str]:
    """The papers' own figures, ours, and why they differ."""
    text = ["## What the papers report", "", "Where images are of another kind the row says *other images*: "
        "such figures "
            "cannot be compared, only their order.", "",
            "| method | reported | where | ours | why they differ |", "|---|---|---|---|---|"]  # fmt: skip
    for one in results_papers.REPORTED:
        ours = "; ".join(filter(None, (short(rows, *key) for key in one.ours))) or "-"
        why = one.why if one.alike else f"*Other images.* {one.why}"
        text.append(f"| {one.what} | {one.figure} | {one.source} | {ours} | {why} |")
    return [*text, ""]


def short(rows: Sequence[Row], where: str, method: str, setting: str) -> str:
    """`method setting .645`, linked; empty without a row."""
    line = next(
        (x for x in lines_of(rows, where) if (x.method, x.setting, x.device) == (method, setting, "cpu")),
        None,
    )
    if line is None or not line.done:
        return ""
    row = line.done[0]
    value = f"Dice {number(_mean_done(line, 'dice'), 3)}" if row.get("dice") is not None else ""
    value += f" TRE {number(_mean_done(line, 'tre_mm'), 2)} mm" if row.get("tre_mm") is not None else ""
    named = method if setting in ("default", "balanced") else f"{method} ({setting})"
    return f"[{named}](#{line.anchor}) {value.strip()}"


def page(rows: Sequence[Row], series: Sequence[Row]) -> str:
    """The whole page."""
    done = [row for row in rows if row["status"] == "ok"]
    dates, commits, machines = (
        sorted({row[key] for row in done if key in row}) for key in ("date", "commit", "machine")
    )
    threads = sorted({row["threads"] for row in done if "threads" in row})
    text = [
        "# Results table", "",
        "Written by `make results DATA=folder`; do not edit. [How to read it and what else was "
        "measured](results.md); "
        "[which model to choose](choose-a-model.md).", "",
        f"Measured: {', '.join(dates) or 'nothing yet'}; commit {', '.join(commits) or '-'}; "
        f"{'; '.join(machines) or '-'}; "
        f"threads: {', '.join(map(str, threads)) or '-'}.", "",
        "Every program starts from the same alignment of the same pair. CPU s and wall s are of the whole "
        "process: reading, "
        "registering, the inverse where it makes one, measuring (ours) and writing. The machine was shared, "
        "so CPU seconds "
        "compare programs, wall seconds do not. MB: peak resident memory. Inverse error: from the stored "
        "maps, forth and "
        "back. A mean (bold) stands only where every pair was run; the pairs follow in the order named.", "",
        "![Accuracy against seconds](results-accuracy.png)", "",
    ]  # fmt: skip
    for where in TITLES:
        text += table_of(rows, where)
    text += [*folds_text(rows), *series_text(series), *papers_text(rows)]
    return "\n".join(text).rstrip() + "\n"


def write_page(rows: Sequence[Row], series_folder: Path | None, docs: Path) -> None:
    """Everything that is made from rows; without plots where matplotlib is not installed, which it says."""
    from results_choose import choose_page

    stored = docs / "results-table.json"
    series: list[Row] = []
    if series_folder is not None:
        files = sorted(series_folder.glob("*.json"))
        series = [slim(json.loads(file.read_text(encoding="utf-8"))) for file in files]
    elif stored.exists():
        series = json.loads(stored.read_text(encoding="utf-8")).get("series", [])
    rows = sorted(
        (slim(row) for row in rows), key=lambda r: (r["set"], r["pair"], *(r[name] for name in KEY))
    )
    docs.mkdir(parents=True, exist_ok=True)
    body = {"rows": rows, "series": series}
    parts = [
        f'"{name}": [\n' + ",\n".join(json.dumps(row) for row in found) + "\n]"
        for name, found in body.items()
    ]
    _replace(stored, "{" + ",\n".join(parts) + "}\n")
    _replace(docs / "results-table.md", page(rows, series))
    _replace(docs / "choose-a-model.md", choose_page(rows, series))
    try:
        from results_plots import draw
    except ModuleNotFoundError as error:
        print(f"No plots: {error}.")
        return
    draw(rows, docs)


def slim(row: Row) -> Row:
    """Without what nobody reads later; numbers of six digits."""
    dropped = ("pairs", "folds_of_images", "files", "hardware")
    found = {key: _rounded(value) for key, value in row.items() if key not in dropped}
    if "notes" in found:
        found["notes"] = [note for note in found["notes"] if any(word in note.lower() for word in TOLD)]
    return found


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return float(f"{value:.6g}")
    if isinstance(value, dict):
        return {key: _rounded(one) for key, one in value.items()}
    return [_rounded(one) for one in value] if isinstance(value, list) else value


def _replace(path: Path, text: str) -> None:
    part = path.with_suffix(path.suffix + ".part")
    part.write_text(text, encoding="utf-8")
    part.replace(path)
