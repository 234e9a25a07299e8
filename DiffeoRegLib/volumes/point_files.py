"""Landmark files: Slicer markups, plain tables, elastix and VTK point lists; RAS mm outside this file."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from DiffeoRegLib.errors import FileFormatError, InputError, OutputError
from DiffeoRegLib.space.grid import Grid, Matrix
from DiffeoRegLib.space.lattice import as_points
from DiffeoRegLib.volumes.file_guard import reading, suffix_of, writing

FLIP = np.array([-1.0, -1.0, 1.0])


def read_points(path: str | Path, *, grid: Grid | None = None) -> Matrix:
    """Points of a landmark file, RAS mm, (n, 3), in file order.

    Slicer .mrk.json and .fcsv (coordinate system as their header says), .csv/.tsv with x, y, z (RAS, or as a
    comment line '# LPS' says), elastix .txt/.pts (LPS; 'index' files need the image's grid) and
    legacy ASCII .vtk points (LPS, as ITK programs write them).
    Raises FileFormatError for a missing, damaged or unknown file.
    """
    path = Path(path)
    suffix = suffix_of(path)
    readers: dict[str, Any] = {
        ".mrk.json": _read_markups,
        ".json": _read_markups,
        ".fcsv": _read_fcsv,
        ".csv": _read_table,
        ".tsv": _read_table,
        ".vtk": _read_vtk,
    }
    with reading(path, "points"):
        if suffix in (".txt", ".pts"):
            points = _read_elastix(path, grid)
        elif suffix in readers:
            points = readers[suffix](path)
        else:
            known = ", ".join([*readers, ".txt", ".pts"])
            raise FileFormatError(f"'{path}' is no point file DiffeoReg knows. It reads {known}.")
        points = np.asarray(points, dtype=np.float64)
        if points.ndim != 2 or points.shape[1] != 3 or not np.isfinite(points).all():
            raise FileFormatError(f"'{path}' holds no list of points with three coordinates each.")
        return points


def write_points(points_mm: NDArray[np.float64], path: str | Path, *, overwrite: bool = False) -> None:
    """RAS mm points (n, 3) as .mrk.json, .fcsv (both LPS), .csv (RAS) or elastix .txt/.pts (LPS).

    Raises OutputError for another suffix, OutputExistsError for an existing file.
    """
    path = Path(path)
    points = as_points(points_mm)
    writers: dict[str, Any] = {
        ".mrk.json": _markups_text,
        ".fcsv": _fcsv_text,
        ".csv": _table_text,
        ".txt": _elastix_text,
        ".pts": _elastix_text,
    }
    suffix = suffix_of(path)
    if suffix not in writers:
        raise OutputError(f"'{path.name}': DiffeoReg writes points as {', '.join(writers)}.")
    with writing(path, overwrite=overwrite) as partial:
        partial.write_text(writers[suffix](points), encoding="utf-8")


def _read_markups(path: Path) -> Matrix:
    document = json.loads(path.read_text(encoding="utf-8"))
    points = []
    for markup in document["markups"]:
        flip = _flip_of(str(markup.get("coordinateSystem", "LPS")), path)
        for point in markup["controlPoints"]:
            if point.get("positionStatus", "defined") == "defined":
                points.append(np.array(point["position"], dtype=np.float64) * flip)
    return np.array(points).reshape(-1, 3)


def _read_fcsv(path: Path) -> Matrix:
    flip, points = np.ones(3), []
    for line in path.read_text(encoding="utf-8").splitlines():
        if line.startswith("#"):
            key, _, value = line.lstrip("# ").partition("=")
            if key.strip() == "CoordinateSystem":
                flip = _flip_of(value.strip(), path)
        elif line.strip():
            points.append([float(x) for x in line.split(",")[1:4]])
    return np.asarray(np.array(points).reshape(-1, 3) * flip)


def _read_table(path: Path) -> Matrix:
    """x, y, z in the columns of those names, or in the first three."""
    lines = path.read_text(encoding="utf-8-sig").splitlines()
    comments = " ".join(line for line in lines if line.startswith("#")).upper()
    flip = FLIP if "LPS" in comments.replace("=", " ").replace(":", " ").split() else np.ones(3)
    body = [line for line in lines if line.strip() and not line.startswith("#")]
    separator = next((s for s in ("\t", ";", ",") if s in body[0]), None)
    rows = (
        [line.split() for line in body] if separator is None else list(csv.reader(body, delimiter=separator))
    )
    columns = [0, 1, 2]
    if not _is_number(rows[0][0]):
        names = [cell.strip().strip('"').lower() for cell in rows.pop(0)]
        if {"x", "y", "z"} <= set(names):
            columns = [names.index(axis) for axis in "xyz"]
    return np.asarray(np.array([[float(row[c]) for c in columns] for row in rows]).reshape(-1, 3) * flip)


def _read_elastix(path: Path, grid: Grid | None) -> Matrix:
    """'point' or 'index', the count, then the coordinates; index files count voxels as (i, j, k)."""
    words = path.read_text(encoding="utf-8").split()
    kind = words[0].lower() if words[0].lower() in ("point", "index") else "index"
    body = words[1:] if kind == words[0].lower() else words
    count = int(body[0])
    values = np.array([float(word) for word in body[1:]])
    if count < 1 or len(values) not in (2 * count, 3 * count):
        raise FileFormatError(f"'{path}' promises {count} points but holds {len(values)} numbers.")
    values = values.reshape(count, -1)
    if kind == "index":
        if grid is None:
            raise FileFormatError(
                f"'{path}' counts in voxels of an image; save its points in mm ('point') instead."
            )
        return grid.world_from_index(values[:, ::-1][:, -grid.dim :])
    return np.asarray(np.pad(values, ((0, 0), (0, 3 - values.shape[1]))) * FLIP)


def _read_vtk(path: Path) -> Matrix:
    words = path.read_text(encoding="ascii").split()
    upper = [word.upper() for word in words]
    if "ASCII" not in upper or "POINTS" not in upper:
        raise FileFormatError(f"'{path}' is no ASCII file of VTK points. Save it as legacy ASCII.")
    at = upper.index("POINTS")
    count = int(words[at + 1])
    numbers = np.array([float(word) for word in words[at + 3 : at + 3 + 3 * count]])
    return np.asarray(numbers.reshape(count, 3) * FLIP)


def _flip_of(system: str, path: Path) -> Matrix:
    """Factors that turn a file's coordinate system into RAS; Slicer 4 wrote 0 for RAS and 1 for LPS."""
    known = {"RAS": np.ones(3), "0": np.ones(3), "LPS": FLIP, "1": FLIP}
    if system.upper() not in known:
        raise FileFormatError(f"'{path}' uses the coordinate system '{system}'; only RAS and LPS are known.")
    return known[system.upper()]


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _markups_text(points: Matrix) -> str:
    control = [
        {"id": str(n + 1), "label": f"P-{n + 1}", "position": p.tolist(), "positionStatus": "defined"}
        for n, p in enumerate(points * FLIP)
    ]
    markup = {
        "type": "Fiducial",
        "coordinateSystem": "LPS",
        "coordinateUnits": "mm",
        "controlPoints": control,
    }
    schema = (
        "https://raw.githubusercontent.com/slicer/slicer/master/Modules/Loadable/Markups/Resources/Schema/"
    )
    return json.dumps({"@schema": f"{schema}markups-schema-v1.0.3.json#", "markups": [markup]}, indent=1)


def _fcsv_text(points: Matrix) -> str:
    head = ["# Markups fiducial file version = 5.0", "# CoordinateSystem = LPS"]
    head.append("# columns = id,x,y,z,ow,ox,oy,oz,vis,sel,lock,label,desc,associatedNodeID")
    rows = [
        f"{n + 1},{x!r},{y!r},{z!r},0,0,0,1,1,1,0,P-{n + 1},,"
        for n, (x, y, z) in enumerate((points * FLIP).tolist())
    ]
    return "\n".join([*head, *rows]) + "\n"


def _table_text(points: Matrix) -> str:
    return "\n".join(["# RAS mm", "x,y,z", *(f"{x!r},{y!r},{z!r}" for x, y, z in points.tolist())]) + "\n"


def _elastix_text(points: Matrix) -> str:
    if not len(points):
        raise InputError("There are no points to write.")
    rows = [f"{x!r} {y!r} {z!r}" for x, y, z in (points * FLIP).tolist()]
    return "\n".join(["point", str(len(points)), *rows]) + "\n"
