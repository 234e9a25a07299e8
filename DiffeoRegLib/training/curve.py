"""The record of a run: tables as CSV, the same numbers for TensorBoard, and a picture of the curve."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from DiffeoRegLib.cells import cell
from DiffeoRegLib.errors import FileFormatError, OutputError
from DiffeoRegLib.whole_file import replace_file

TRAINING, VALIDATION, PICTURE = "training.csv", "validation.csv", "curve.png"
NO_LOSS = ("epoch", "seconds", "learning_rate", "gradient_norm", "skipped")


class Table:
    """Rows of numbers or text by step in a CSV file that grows."""

    def __init__(self, path: Path, columns: Sequence[str]) -> None:
        self.path, self.columns = path, ("step", *columns)

    def start(self, step: int) -> None:
        """Keeps the rows up to a step, none at first: a resumed run writes the later ones again."""
        rows = [row for row in self.read() if int(row["step"]) <= step] if self.path.exists() else []
        text = io.StringIO(newline="")
        writer = csv.DictWriter(text, self.columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        replace_file(self.path, text.getvalue().encode())

    def add(self, step: int, values: Mapping[str, Any]) -> None:
        """One more row; what a column has no value for stays empty.  Raises OutputError."""
        try:
            row = {name: cell(value) if isinstance(value, str) else value for name, value in values.items()}
            with self.path.open("a", encoding="utf-8", newline="") as file:
                csv.DictWriter(file, self.columns, lineterminator="\n").writerow({"step": step, **row})
        except OSError as error:
            raise OutputError(f"'{self.path}' could not be written: {error.strerror or error}.") from error

    def read(self) -> list[dict[str, str]]:
        """All rows; one that a killed run left unfinished at the end is left out.

        Raises FileFormatError for a table with other columns.
        """
        with self.path.open(encoding="utf-8", newline="") as file:
            reader = csv.DictReader(file)
            rows = list(reader)
            if tuple(reader.fieldnames or ()) != self.columns:
                raise FileFormatError(
                    f"'{self.path}' has other columns than this run writes; move it away, or use another."
                )
        if rows and not (rows[-1]["step"].isdigit() and None not in rows[-1].values()):
            rows.pop()
        return rows


class Scalars:
    """The same numbers for TensorBoard, where it is installed; nothing otherwise."""

    def __init__(self, folder: Path, step: int) -> None:
        self.writer: Any = None
        if find_spec("tensorboard"):
            from torch.utils.tensorboard import SummaryWriter

            # What a killed run wrote after its last checkpoint is hidden.
            self.writer = SummaryWriter(str(folder / "tensorboard"), purge_step=step + 1)

    def add(self, step: int, group: str, values: Mapping[str, float]) -> None:
        """Values of one step."""
        if self.writer is not None:
            for name, value in values.items():
                self.writer.add_scalar(f"{group}/{name}", value, step)

    def close(self) -> None:
        """Everything added is in the file."""
        if self.writer is not None:
            self.writer.close()


def draw_curve(folder: Path) -> bool:
    """Draw the tables of a run's folder into its `curve.png`; False where matplotlib is not installed.

    Raises OutputError where the picture cannot be written.
    """
    if not find_spec("matplotlib"):
        return False
    from matplotlib.figure import Figure

    scores = columns_of(folder / VALIDATION) if (folder / VALIDATION).exists() else {}
    panels = [("training", _losses(columns_of(folder / TRAINING)))]
    panels += [(f"validation: {name}", {name: values}) for name, values in scores.items() if values[0]]
    figure = Figure(figsize=(4.5 * len(panels), 3.4), layout="constrained")
    for place, (title, lines) in enumerate(panels, start=1):
        axes = figure.add_subplot(1, len(panels), place)
        for name, (steps, values) in lines.items():
            axes.plot(steps, values, label=name, marker="." if len(steps) < 30 else None)
        axes.set_title(title)
        axes.set_xlabel("steps")
        axes.grid(alpha=0.3)
        if len(lines) > 1:
            axes.legend()
    picture = io.BytesIO()
    figure.savefig(picture, format="png", dpi=110)
    replace_file(folder / PICTURE, picture.getvalue())
    return True


def columns_of(path: Path) -> dict[str, tuple[list[int], list[float]]]:
    """Every column of a table as steps and the finite values there."""
    with path.open(encoding="utf-8", newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["step"].isdigit()]
    found: dict[str, tuple[list[int], list[float]]] = {}
    for name in rows[0] if rows else ():
        if name != "step":
            held = [(int(row["step"]), _number(row[name])) for row in rows]
            finite = [(step, value) for step, value in held if math.isfinite(value)]
            found[name] = [s for s, _ in finite], [v for _, v in finite]
    return found


def _number(text: str | None) -> float:
    """NaN for an empty or unfinished cell."""
    try:
        return float(text or "nan")
    except ValueError:
        return math.nan


def _losses(
    columns: Mapping[str, tuple[list[int], list[float]]],
) -> dict[str, tuple[list[int], list[float]]]:
    """The loss and its terms, without what is no loss."""
    return {name: values for name, values in columns.items() if name not in NO_LOSS}
