"""A table of registrations, one a row, read and checked before anything starts."""

from __future__ import annotations

import csv
import difflib
import os
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from DiffeoRegLib.errors import FileFormatError, InputError
from DiffeoRegLib.volumes.file_guard import reading, suffix_of

NEEDED = ("fixed", "moving")
DELIMITERS = {".csv": ",", ".tsv": "\t"}
MOST_SAID = 4


@dataclass(frozen=True)
class TableRow:
    """One row: its number in the table, from 1, and the cells that say something, by column."""

    number: int
    cells: Mapping[str, str]


@dataclass
class Problems:
    """Everything wrong with a table, said at once."""

    table: Path
    found: list[str] = field(default_factory=list)

    def add(self, row: int, column: str | None, problem: str) -> None:
        """Something wrong in a row, or in one of its cells."""
        place = f"row {row}" if column is None else f"row {row}, column '{column}'"
        self.found.append(f"{place}: {problem.rstrip('.')}")

    def check(self) -> None:
        """Raises InputError with the first few, and how many more there are."""
        if not self.found:
            return
        shown = "; ".join(self.found[:MOST_SAID])
        more = len(self.found) - MOST_SAID
        tail = f"; and {more} more" if more > 0 else ""
        raise InputError(f"'{self.table}' cannot be used: {shown}{tail}. Nothing was started.")


def read_table(path: Path, known: Collection[str]) -> list[TableRow]:
    """The rows of a table that say something.

    known: the columns that are understood; `fixed` and `moving` are needed in every row.
    Raises InputError (FileFormatError for a file that cannot be read) that names row and column.
    """
    delimiter = DELIMITERS.get(suffix_of(path))
    if delimiter is None:
        raise InputError(f"'{path}' is no table of pairs: give a .csv or .tsv file.")
    with reading(path, "a table"), path.open(encoding="utf-8-sig", newline="") as file:
        try:
            header, *lines = list(csv.reader(file, delimiter=delimiter, strict=True)) or [[]]
        except csv.Error as error:
            raise FileFormatError(f"'{path}' could not be read as a table: {error}.") from error
    columns = [name.strip() for name in header]
    _check_columns(path, columns, known)
    problems, rows = Problems(path), []
    for number, line in enumerate(lines, 1):
        cells = [cell.strip() for cell in line]
        if not any(cells):
            continue
        if any(cells[len(columns) :]):
            problems.add(number, None, f"it has {len(cells)} cells for {len(columns)} columns")
        row = TableRow(number, {name: cell for name, cell in zip(columns, cells, strict=False) if cell})
        for name in NEEDED:
            if name not in row.cells:
                problems.add(number, name, "it is empty")
        rows.append(row)
    problems.check()
    if not rows:
        raise InputError(f"'{path}' has no rows.")
    return rows


def _check_columns(path: Path, columns: Sequence[str], known: Collection[str]) -> None:
    missing = [name for name in NEEDED if name not in columns]
    if missing:
        if len(columns) == 1 and ";" in columns[0]:
            raise InputError(
                f"'{path}' separates its cells by ';'. A table of pairs has commas (.csv) or tabs (.tsv): "
                "save it as one of these."
            )
        there = ", ".join(columns) or "none"
        raise InputError(
            f"'{path}' has no column '{missing[0]}'; its columns are: {there}. A table of pairs needs fixed "
            "and moving."
        )
    for name, count in Counter(columns).items():
        if count > 1:
            raise InputError(f"'{path}' has the column '{name}' {count} times.")
        if name not in known:
            close = difflib.get_close_matches(name, known, n=1)
            hint = f" Did you mean '{close[0]}'?" if close else ""
            raise InputError(
                f"'{path}' has a column '{name}', which means nothing to a registration.{hint} The columns "
                "are named in `diffeoreg batch --help`."
            )


def absolute(path: Path) -> Path:
    """A path from the root, without `..`; a link keeps its own name, which may be all that a person reads."""
    return Path(os.path.normpath(path.absolute()))


def located(folder: Path, cell: str) -> Path:
    """The file that a cell names, from the folder of its table; tables of Windows have `\\` in them."""
    path = absolute(folder / cell)
    slashed = absolute(folder / cell.replace("\\", "/"))
    return slashed if not path.exists() and slashed.exists() else path


def repeated(keys: Mapping[int, str]) -> dict[int, int]:
    """Rows whose key an earlier row has, and that row."""
    first: dict[str, int] = {}
    found = {}
    for number, key in keys.items():
        earlier = first.setdefault(key, number)
        if earlier != number:
            found[number] = earlier
    return found
