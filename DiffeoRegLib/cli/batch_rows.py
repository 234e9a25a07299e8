"""The rows of a table as the flags of `register`, each checked as that command would check it."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from DiffeoRegLib.cli.arguments import build_parser
from DiffeoRegLib.cli.inputs import check_flags, settings_from
from DiffeoRegLib.cohorts.job import Job
from DiffeoRegLib.cohorts.names import Names, bids_names, plain_names
from DiffeoRegLib.cohorts.table import Problems, TableRow, absolute, located, read_table, repeated
from DiffeoRegLib.errors import DiffeoRegError, FileFormatError, InputError
from DiffeoRegLib.outputs import NAMES
from DiffeoRegLib.settings import INIT_NETWORK, INITS

IMAGES = ("fixed", "moving")
ALIASES = {
    "fixed_labels": "fixed_seg", "moving_labels": "moving_seg",
    "fixed_points": "fixed_landmarks", "moving_points": "moving_landmarks",
    "fixed_pathology": "pathology", "moving_pathology": "pathology_moving",
    "initial": "init",
}  # fmt: skip
"""Columns of `evaluate --pairs` and of training, and the flags they stand for."""
OWN = ("name", "fixed_person", "moving_person")
TALK = ("help", "json", "quiet", "debug")
NOT_OF_A_ROW = (*TALK, "output", "overwrite", "landmarks", "device", "threads")
MACHINE = ("output", "overwrite", "device", "threads", "memory_limit_gb")
"""What says where to work rather than what: no reason to do a row again."""
YES, NO = ("yes", "true", "1"), ("no", "false", "0")
SEPARATOR = ";"


@dataclass(frozen=True)
class Flags:
    """The flags of `register`, by the name their value has."""

    actions: Mapping[str, argparse.Action]
    parser: argparse.ArgumentParser

    @property
    def columns(self) -> set[str]:
        """The columns a table may have."""
        return {*IMAGES, *ALIASES, *OWN, *(set(self.actions) - set(NOT_OF_A_ROW))}

    def is_file(self, name: str, value: Any) -> bool:
        """True for a value that names a file."""
        if name == "init":
            return isinstance(value, str) and value not in INITS and not value.startswith(INIT_NETWORK)
        return value is not None and (name in IMAGES or self.actions[name].metavar == "FILE")

    def read(self, name: str, cell: str) -> Any:
        """The value of a cell, as the flag reads it; raises InputError for one it does not take."""
        action = self.actions[name]
        if isinstance(action, argparse._StoreTrueAction):
            if cell.lower() not in (*YES, *NO):
                raise InputError(f"it is yes or no, not '{cell}'")
            return cell.lower() in YES
        parts = cell.split(SEPARATOR) if isinstance(action, argparse._AppendAction) else [cell]
        words = [f"{action.option_strings[-1]}={part.strip()}" for part in parts if part.strip()]
        try:
            found = self.parser.parse_args(["fixed", "moving", "-o", "out", *words])
        except InputError as problem:
            text = str(problem).partition(": ")[2].rpartition(" See `")[0] or str(problem)
            raise InputError(text) from problem
        return getattr(found, name)


def register_flags() -> Flags:
    """The flags of `diffeoreg register`, from its own parser."""
    subparsers = build_parser()._subparsers
    assert subparsers is not None
    choices = next(iter(subparsers._group_actions)).choices
    assert isinstance(choices, dict)
    parser = choices["register"]
    return Flags({action.dest: action for action in parser._actions}, parser)


def jobs_from(arguments: argparse.Namespace) -> list[Job]:
    """Every row of the table as a job.

    Raises InputError with row and column for files that do not exist, values that no flag takes, rows that
    are there twice, and names that cannot be told apart.
    """
    flags, table = register_flags(), Path(arguments.pairs)
    common = _common(flags, arguments)
    rows = read_table(table, flags.columns)
    problems, jobs = Problems(table), []
    for row in rows:
        values = _values(flags, common, row, table, problems)
        if values is None:
            continue
        try:
            _check(values)
            names = _names(row, values, bids=arguments.bids_names)
        except DiffeoRegError as problem:
            problems.add(row.number, None, str(problem))
            continue
        jobs.append(_job(flags, row.number, names, values))
    problems.check()
    _check_repeated(jobs, problems)
    return jobs


def _common(flags: Flags, arguments: argparse.Namespace) -> dict[str, Any]:
    """What the flags of the command say for all rows; files as absolute names."""
    values = {
        name: getattr(arguments, name) for name in flags.actions if name not in (*IMAGES, *TALK, "overwrite")
    }
    if values["landmarks"]:
        values["fixed_landmarks"], values["moving_landmarks"] = values["landmarks"]
    values |= {"landmarks": None, "overwrite": False, "output": None}
    for name, value in values.items():
        if flags.is_file(name, value):
            if not Path(value).exists():
                flag = flags.actions[name].option_strings[-1]
                raise FileFormatError(f"There is no file '{value}', which {flag} names.")
            values[name] = str(absolute(Path(value)))
    return values


def _values(
    flags: Flags, common: Mapping[str, Any], row: TableRow, table: Path, problems: Problems
) -> dict[str, Any] | None:
    """The flags of a row; None when a cell is wrong, which is then among the problems."""
    values, before = dict(common), len(problems.found)
    for column, cell in row.cells.items():
        name = ALIASES.get(column, column)
        if column in OWN:
            continue
        if column != name and name in row.cells:
            problems.add(row.number, column, f"the column '{name}' says the same")
            continue
        try:
            value = cell if name in IMAGES else flags.read(name, cell)
        except InputError as problem:
            problems.add(row.number, column, str(problem))
            continue
        if flags.is_file(name, value):
            file = located(table.parent, cell)
            if not file.exists():
                problems.add(row.number, column, f"there is no file '{file}'")
            value = str(file)
        values[name] = value
    return values if len(problems.found) == before else None


def _check(values: Mapping[str, Any]) -> None:
    """As `register` would, before anything is read."""
    row = argparse.Namespace(**values)
    settings_from(row)
    check_flags(row)
    if values["fixed"] == values["moving"]:
        raise InputError("fixed and moving are the same file")


def _names(row: TableRow, values: Mapping[str, Any], *, bids: bool) -> Names:
    fixed, moving, given = Path(values["fixed"]), Path(values["moving"]), row.cells.get("name")
    if bids:
        return bids_names(fixed, moving, given, row.cells.get("moving_person"), NAMES)
    return plain_names(fixed, moving, given)


def _job(flags: Flags, number: int, names: Names, values: Mapping[str, Any]) -> Job:
    inputs = {name: str(value) for name, value in values.items() if flags.is_file(name, value)}
    settings = {name: value for name, value in values.items() if name not in (*inputs, *MACHINE)}
    plain = json.loads(json.dumps(settings, sort_keys=True))
    return Job(names.name, number, names.folder, dict(values), plain, inputs, names.files)


def _check_repeated(jobs: list[Job], problems: Problems) -> None:
    same = {job.number: json.dumps([job.settings, job.inputs], sort_keys=True) for job in jobs}
    for number, earlier in repeated(same).items():
        problems.add(number, None, f"it is the same registration as row {earlier}")
    problems.check()
    # Some disks take capital and small letters for the same.
    for number, earlier in repeated({job.number: job.folder.casefold() for job in jobs}).items():
        name = next(job.name for job in jobs if job.number == number)
        problems.add(number, "name", f"the name '{name}' is that of row {earlier} too: give each row its own")
    problems.check()
