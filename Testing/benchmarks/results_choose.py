"""choose-a-model.md: which method for which task, every figure read from the rows and linked to its row."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

import results_lines
import results_page
from results_lines import Line
from results_rows import Row

NEAR = {"dice": 0.01, "tre_mm": 0.3}
"""What counts as as good as the best."""


@dataclass(frozen=True)
class Advice:
    """A task: its set of pairs, what is measured, and what to know beside the figures."""

    task: str
    where: str
    key: str
    words: str


ADVICE = (
    Advice("Brains of T1 MR, two persons", "brain", "dice", "Nothing has to be trained or accepted for "
        "`svf`. A "
           "network alone is a first guess in seconds; its weights are for non-commercial use."),
    Advice("A healthy brain onto one with a lesion", "tumour", "tre_mm", "Mark the lesion: with its outline "
           "`metamorphosis` and `metaregnet-brain-t1` leave it out of the comparison and show what changed. "
           "The figure is the error in the tissue around a lesion with a known mass effect."),
    Advice("Lungs in CT", "lung", "tre_mm", "Preset `lung-ct`. Give lung masks if there are some."),
    Advice("Liver in MR, breathing", "liver", "tre_mm", "Preset `abdomen`. More than two states: `diffeoreg "
        "group`."),
    Advice("Abdomen in CT", "abdomen", "tre_mm", "Preset `abdomen`; large motions are searched for first."),
    Advice("Two contrasts or modalities", "multimodal", "dice", "Preset `multimodal`: images are compared "
        "by their "
           "edges and textures, not by their grey values."),
    Advice("Crops around one structure", "hippocampus", "dice", "Preset `brain-mr`. Networks that were "
        "trained on "
           "the structure itself start close; iterations after them cost little on small images."),
)  # fmt: skip
HARDWARE = """## By hardware and time

* **No GPU, seconds**: `--effort fast`. No GPU, a minute: leave everything as it is.
* **No GPU, little memory**: the rows name their megabytes; `--effort fast` and networks alone need least,
  `rdmm` most.
* **A GPU**: the code is meant for one (`--device cuda`), but no method was ever run on one here:
  no figures, and nothing promised.
* **Many pairs**: `diffeoreg batch` with one thread per pair; then CPU seconds count, and the table has those.

## By what you need besides the map

* **The same answer when fixed and moving are exchanged**: `sitreg`; `svf` and `metamorphosis` are symmetric
  as well.
* **Motion between the two moments**: `lddmm`, `rdmm` (a momentum that can be shot again), `tvf-brain-t1`
  (`--keep-path`).
* **A region that must stay stiff**: `rdmm-regions`.
* **What a lesion adds, and the brain as if healthy**: `metamorphosis`, `metaregnet-brain-t1`.
* **Several images at once, and how sure the motion is**: `diffeoreg group`.
* **Commercial use**: everything that was not trained, and `sitreg-any-contrast`; the brain networks are
  CC BY-NC.
"""


def score(line: Line, key: str) -> float | None:
    """Mean over the pairs of the set that can have this measure; None unless every one was run."""
    values = [row[key] for row in line.done if row.get(key) is not None]
    return sum(values) / len(values) if values and line.complete else None


def seconds(line: Line, key: str) -> float:
    """CPU seconds, mean over the pairs that have the measure."""
    return fmean(row["cpu_seconds"] for row in line.done if row.get(key) is not None)


def linked(line: Line, key: str) -> str:
    """`svf` .645, 36 s with a link to the row."""
    value = score(line, key)
    unit = " mm" if key == "tre_mm" else ""
    name = line.method if line.setting in ("default", "balanced") else f"{line.method}, {line.setting}"
    figure = results_lines.number(value, 2 if unit else 3)
    return f"`{name}` [{figure}{unit}, {seconds(line, key):.0f} s](results-table.md#{line.anchor})"


def chosen(rows: Sequence[Row], advice: Advice) -> dict[str, str]:
    """The best of ours, the fastest about as good, the fastest with half of the gain, the best peer."""
    lines = [line for line in results_lines.lines_of(rows, advice.where) if line.device == "cpu"]
    scored = [(score(line, advice.key), line) for line in lines]
    sign = 1 if advice.key == "tre_mm" else -1
    start = next((value for value, line in scored if line.method == "start" and value is not None), None)
    valued = [(sign * value, line) for value, line in scored if value is not None and line.method != "start"]
    ours = sorted(((v, x) for v, x in valued if not x.done[0]["peer"]), key=lambda pair: pair[0])
    peers = sorted(((v, x) for v, x in valued if x.done[0]["peer"]), key=lambda pair: pair[0])
    found = dict.fromkeys(("best", "quick", "first", "peer"), "-")
    if ours:
        best = ours[0][0]
        found["best"] = linked(ours[0][1], advice.key)
        near = [x for v, x in ours if v <= best + NEAR[advice.key]]
        found["quick"] = linked(min(near, key=lambda x: seconds(x, advice.key)), advice.key)
        if start is not None:
            half = (best + sign * start) / 2
            moved = [x for v, x in ours if v <= half]
            found["first"] = (
                linked(min(moved, key=lambda x: seconds(x, advice.key)), advice.key) if moved else "-"
            )
    if peers:
        found["peer"] = linked(peers[0][1], advice.key)
    return found


def folds_of(rows: Sequence[Row]) -> str:
    """How many of the rows of `svf` fold, in words."""
    mine = [row for row in rows if row["method"] == "svf" and row["status"] == "ok"]
    folded = sum(row["folded_whole_percent"] > 0 for row in mine)
    return f"of its {len(mine)} rows {folded or 'none'} folds anywhere."


def choose_page(rows: Sequence[Row], series: Sequence[Row]) -> str:
    """The whole page."""
    text = [
        "# Choose a model", "",
        "Written by `make results` from the [table of results](results-table.md); every figure leads to its "
        "row. Seconds are "
        "CPU seconds of one core for the whole command, reading and writing included. Few pairs stand "
        "behind each figure: "
        "differences below .01 Dice or .3 mm say nothing.", "",
        "**If in doubt: leave `--method` alone** (`svf`), and name the preset of your images: `brain-mr`, "
        "`lung-ct`, "
        "`abdomen`, `multimodal`. It needs no training, no licence and no GPU, and gives the inverse; "
        f"{folds_of(rows)}", "",
        "| task | best of ours | about as good, fastest | half the way, fastest | best of the others |",
        "|---|---|---|---|---|",
    ]  # fmt: skip
    for advice in ADVICE:
        found = chosen(rows, advice)
        what = "TRE" if advice.key == "tre_mm" else "Dice"
        text.append(f"| {advice.task} ({what}) | " + " | ".join(found.values()) + " |")
    text += ["", "*About as good*: within .01 Dice or .3 mm of the best. *Half the way*: at least half of "
                 "the gain over the "
             "start that the best has. *The others*: greedy, ANTs SyN, elastix, demons, ConvexAdam, "
             "FireANTs with their documented "
             "settings; some fold, see [folds](results-table.md#folds).", "", "## By task", ""]  # fmt: skip
    text += [f"* **{advice.task}**: {advice.words}" for advice in ADVICE]
    text += [*series_words(series), "", HARDWARE]
    return "\n".join(text).rstrip() + "\n"


def series_words(series: Sequence[Row]) -> list[str]:
    """The best of every series with landmarks, groups and pairs."""
    found = list[str]()
    for name in dict.fromkeys(row["series"] for row in series):
        mine = [
            r for r in series if r["series"] == name and r.get("tre_mm") is not None and r["method"] != "none"
        ]
        ours = [row for row in mine if "elastix" not in row["method"]]
        if ours:
            best = min(ours, key=lambda row: row["tre_mm"])
            found.append(
                f"* **A series ({name})**: {best['method']} "
                f"[{best['tre_mm']:.2f} mm, {best['cpu_seconds']:.0f} s]"
                f"(results-table.md#{results_page.series_anchor(best)})."
            )
    return found
