"""The report as a table node: every number, and still there after the scene was saved and read."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import slicer

from DiffeoRegLib.pipeline import register
from DiffeoRegLib.settings import Settings
from DiffeoRegLib.volumes.files import read_volume
from DiffeoRegLib.volumes.pair import Correspondence
from DiffeoRegPanel.nodes.tables import COLUMNS, report_table, rows_of, summary


@pytest.fixture(scope="module")
def real_report() -> dict[str, Any]:
    """Of the shipped pair, registered here; the label maps and two landmarks judge."""
    folder = Path(__file__).resolve().parents[2] / "Resources" / "SampleData" / "hippocampus"
    images = [read_volume(folder / "images" / f"hippocampus_{n}.nii.gz") for n in ("006", "138")]
    labels = [read_volume(folder / "labels" / f"hippocampus_{n}.nii.gz", labels=True) for n in ("006", "138")]
    points = images[0].grid.world_from_index([[10, 10, 10], [20, 20, 20]])
    judge = Correspondence(*labels, points, points + 1.0)
    report = register(*images, Settings(effort="fast", steps=4), evaluation=judge).report
    report["notes"] = [*report["notes"], "Slicer shows what was\ncomputed: OK."]
    return report


@pytest.fixture
def report(real_report: dict[str, Any]) -> dict[str, Any]:
    return copy.deepcopy(real_report)


def cells(node: Any) -> dict[str, list[str]]:
    """Quantity -> texts of the other columns; of equal quantities all are kept."""
    table, found = node.GetTable(), {}
    for row in range(table.GetNumberOfRows()):
        texts = [table.GetColumn(c).GetValue(row) for c in range(table.GetNumberOfColumns())]
        found.setdefault(texts[0], []).append(texts[1:])
    return {name: lines[0] if len(lines) == 1 else [x[2] for x in lines] for name, lines in found.items()}


REGIONS = {
    "1": {
        "stiffness": "soft", "volume_mm3": 12345.0, "folded_percent": 0.0,
        "displacement_mm": {"mean": 1.234, "max": 5.678},
        "determinant": {"mean": 1.1, "std": 0.2, "min": 0.5, "max": 1.9},
    },
    "7": {
        "stiffness": [0.0, 0.5, 0.5, 0.0], "volume_mm3": 0.0, "folded_percent": None,
        "displacement_mm": {"mean": None, "max": None},
        "determinant": {"mean": None, "std": None, "min": None, "max": None},
    },
    "rest": {
        "stiffness": "rigid-like", "volume_mm3": 1e6, "folded_percent": 0.0,
        "displacement_mm": {"mean": 0.1, "max": 0.2},
        "determinant": {"mean": 1.0, "std": 0.01, "min": 0.9, "max": 1.1},
    },
}  # fmt: skip


def test_regions_are_in_the_table_by_name(scene: Any, report: dict[str, Any]) -> None:
    report["regions"] = REGIONS
    found = cells(report_table(scene, report, region_names={1: "liver\nlobe"}))
    assert found["Region liver lobe, stiffness"][2] == "soft"
    assert found["Region liver lobe, volume"][2:] == ["12.35", "ml"]
    assert found["Region liver lobe, displacement, largest"][2:] == ["5.68", "mm"]
    assert found["Region liver lobe, Jacobian determinant, standard deviation"][2] == "0.200"
    assert found["Region 7, stiffness"][2] == "0, 0.5, 0.5, 0"
    assert found["Region 7, folded cells"][2:] == ["-", "%"]
    assert found["Region everything else, displacement, mean"][2] == "0.10"


def test_the_table_holds_the_report_s_numbers(scene: Any, report: dict[str, Any]) -> None:
    node = report_table(scene, report, name="Report, a -> b")
    assert node.IsA("vtkMRMLTableNode")
    assert node.GetName() == "Report, a -> b"
    table, found = node.GetTable(), cells(node)
    assert [table.GetColumnName(c) for c in range(5)] == list(COLUMNS)
    similarity, labels = report["similarity"], report["labels"]
    stages = ("given", "initial", "final")
    assert found["Local correlation (LNCC)"][:3] == [f"{similarity[s]['lncc']:.4f}" for s in stages]
    assert found["Overlap of the images"] == [
        *(f"{similarity[s]['overlap_percent']:.1f}" for s in stages),
        "%",
    ]
    assert found["Dice, mean"][:3] == [f"{labels['mean'][s]['dice']:.4f}" for s in stages]
    assert found["Dice, label 2"][2] == f"{labels['per_label']['2']['final']['dice']:.4f}"
    assert found["HD95, label 1"] == [
        *(f"{labels['per_label']['1'][s]['hd95_mm']:.2f}" for s in stages),
        "mm",
    ]
    assert found["Landmark error, mean"][0] == f"{report['landmarks']['given']['mean']:.2f}"
    assert found["Folded cells"] == ["", "", f"{report['folds']['folded_percent']:.4g}", "%"]
    assert found["Inverse error, mean"][2] == f"{report['inverse_consistency_mm']['mean']:.4f}"
    assert found["Displacement, largest"][2] == f"{report['displacement_mm']['whole']['max']:.2f}"
    assert found["Time, all phases"] == ["", "", f"{sum(report['seconds'].values()):.1f}", "s"]
    assert found["Time steps"][2] == "4"
    assert found["Effort"][2] == "fast"
    notes = found["Note"]
    assert (notes if len(report["notes"]) > 1 else [notes[2]])[-1] == "Slicer shows what was computed: OK."
    assert found["Please cite"] == [" ".join(text.split()) for text in report["citations"]]


def test_no_number_of_the_report_is_nan_or_a_python_word(report: dict[str, Any]) -> None:
    for row in rows_of(report):
        for text in (row.before, row.initial, row.after):
            assert text not in ("None", "nan")
            assert "{" not in text


def test_labels_have_their_names(scene: Any, report: dict[str, Any]) -> None:
    node = report_table(scene, report, label_names={1: "Anterior", 2: "Posterior\thippocampus"})
    assert {"Dice, Anterior", "HD95, Posterior hippocampus"} <= set(cells(node))


def test_a_given_node_is_filled_and_stays(scene: Any, report: dict[str, Any]) -> None:
    mine = scene.AddNewNodeByClass("vtkMRMLTableNode", "mine")
    report_table(scene, report, node=mine)
    identity = mine.GetID()
    full = mine.GetNumberOfRows()
    del report["labels"]
    report_table(scene, report, node=mine)
    assert scene.GetNumberOfNodesByClass("vtkMRMLTableNode") == 1
    assert (mine.GetID(), mine.GetName()) == (identity, "mine")
    assert 0 < mine.GetNumberOfRows() < full


def test_it_comes_back_with_the_saved_scene(scene: Any, report: dict[str, Any], tmp_path: Path) -> None:
    node = report_table(scene, report, name="numbers")
    before = cells(node)
    storage = node.CreateDefaultStorageNode()
    storage.SetFileName(str(tmp_path / "numbers.tsv"))
    scene.AddNode(storage)
    node.SetAndObserveStorageNodeID(storage.GetID())
    assert storage.WriteData(node)
    scene.SetURL(str(tmp_path / "scene.mrml"))
    assert scene.Commit()
    scene.Clear(0)
    assert scene.Import()
    again = slicer.util.getNode("numbers")
    assert cells(again) == before
    assert again.GetLocked()
    table = again.GetTable()
    assert [table.GetColumnName(c) for c in range(table.GetNumberOfColumns())] == list(COLUMNS)


def test_what_was_not_measured_has_no_line_or_a_dash(scene: Any, report: dict[str, Any]) -> None:
    report["labels"]["per_label"]["1"]["final"] = {"dice": None, "hd95_mm": None}
    report["similarity"]["given"] = None
    report["landmarks"] = None
    report["inverse_consistency_mm"] |= {"mean": None, "p95": None, "max": None}
    found = cells(report_table(scene, report))
    assert found["HD95, label 1"][2] == "-"
    assert found["Local correlation (LNCC)"][0] == "-"
    assert found["Inverse error, mean"][2] == "-"
    assert not any(name.startswith("Landmark") for name in found)


def test_an_empty_report_gives_an_empty_table(scene: Any) -> None:
    node = report_table(scene, {})
    assert node.GetNumberOfRows() == 0
    assert node.GetNumberOfColumns() == len(COLUMNS)


def test_the_error_of_the_nodes_is_listed(report: dict[str, Any]) -> None:
    report["inverse_in_slicer_mm"] = {"mean": 0.01, "p95": 0.02, "max": 0.5}
    named = {row.quantity: row.after for row in rows_of(report)}
    assert named["Inverse error of the transform nodes, largest"] == "0.5000"
    report["inverse_in_slicer_mm"] = 0.25
    named = {row.quantity: row.after for row in rows_of(report)}
    assert named["Inverse error of the transform nodes"] == "0.2500"


def test_the_summary_is_short_and_right(report: dict[str, Any]) -> None:
    short = summary(report)
    dice = report["labels"]["mean"]
    assert short["dice"] == f"{dice['given']['dice']:.3f} -> {dice['final']['dice']:.3f}"
    assert short["similarity"].startswith("LNCC ")
    assert short["folds"] == "0 % folded"
    assert short["inverse_error"].endswith("mm largest")
    assert short["landmark_error"].startswith(f"{report['landmarks']['given']['mean']:.2f} -> ")
    assert short["landmark_error"].endswith(" mm")
    assert all(len(text) < 40 for text in short.values())


def test_the_summary_says_what_was_not_measured(report: dict[str, Any]) -> None:
    report["similarity"]["given"] = None
    report["labels"] = report["landmarks"] = None
    short = summary(report)
    assert short["dice"] == short["landmark_error"] == "not measured"
    assert short["similarity"].startswith("LNCC - -> ")
    assert set(summary({}).values()) == {"not measured"}
