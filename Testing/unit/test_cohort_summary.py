"""The table, the page and the plots of a cohort."""

from __future__ import annotations

import csv
import io
import re
from xml.etree import ElementTree

import pytest

from DiffeoRegLib.cohorts.page import html_page
from DiffeoRegLib.cohorts.store import DONE, FAILED, INTERRUPTED, Attempt, Store
from DiffeoRegLib.cohorts.strips import LEFT, RIGHT, WIDTH, Dot, nice_ticks, strip
from DiffeoRegLib.cohorts.summary import CohortRow, as_csv, rows_of, summarise, summary_lines, write_summary
from DiffeoRegLib.errors import InputError
from Testing.cohort_cases import job_of, tried


def rows(values=(0.8, 0.9, 0.7)):
    found = [
        CohortRow(
            number, f"row {number}", "f.nii", "m.nii", "svf", DONE, 1, f"row {number}",
            report=f"row {number}/report.html",
            numbers={"dice": value, "dice_initial": 0.5, "seconds": 10.0 + number},
            labels={"10": value, "2": None},
        )
        for number, value in enumerate(values, 1)
    ]  # fmt: skip
    problem = "'<cut>.nii' is damaged."
    return [*found, CohortRow(9, "bad", "f.nii", "<cut>.nii", "svf", FAILED, 2, "bad", problem=problem)]


def test_the_table_has_a_row_each_and_labels_in_order():
    found = list(csv.DictReader(io.StringIO(as_csv(rows()))))
    assert [row["state"] for row in found] == [DONE] * 3 + [FAILED]
    assert found[0]["dice"] == found[0]["dice_10"] == "0.8"
    assert found[0]["dice_2"] == found[0]["tre_mm"] == found[3]["dice"] == ""
    assert found[3]["problem"] == "'<cut>.nii' is damaged."
    assert found[0]["report"] == "row 1/report.html"
    header = as_csv(rows()).splitlines()[0]
    assert header.index("dice_2") < header.index("dice_10")


def test_the_summary_counts_and_spreads():
    found = summarise(rows())
    assert (found["rows"], found["done"], found["failed"]) == (4, 3, 1)
    assert found["numbers"]["dice"]["mean"] == pytest.approx(0.8)
    assert found["numbers"]["tre_mm"]["count"] == 0
    assert [line[0] for line in summary_lines(found)] == ["Dice before", "Dice", "seconds"]


def test_the_page_is_whole_and_links_every_report():
    page = html_page(rows(), summarise(rows()))
    assert "http" not in page
    assert "<cut>" not in page
    assert "&lt;cut&gt;" in page
    assert "3 of 4 registrations" in page
    for number in (1, 2, 3):  # a dot before, after, of the seconds, and a line of the table
        assert page.count(f'href="row%20{number}/report.html"') == 4
    for plot in re.findall(r"<svg.*?</svg>", page):
        ElementTree.fromstring(plot)
    assert len(re.findall("<svg", page)) == 2


def test_values_that_are_all_the_same_are_said_not_drawn():
    dots = [Dot(0.0, f"row {n}", "x.html") for n in range(20)]
    found = strip("Folded (%)", dots)
    assert "<svg" not in found
    assert "The same in all 20 rows: 0<" in found
    assert "<svg" in strip("Folded (%)", [*dots, Dot(0.1, "row 20", "x.html")])
    assert "<svg" in strip("Folded (%)", dots[:1])
    assert "<svg" in strip("Dice", dots, [Dot(0.5, "row 0", "x.html")])


def test_a_cohort_without_numbers_has_a_page_too():
    only = rows(())
    page = html_page(only, summarise(only))
    assert "<svg" not in page
    assert "Rows that failed" in page


def test_dots_stand_where_their_values_are():
    drawn = ElementTree.fromstring(
        strip("x", [Dot(0.0, "a", "a.html"), Dot(10.0, "b", "b.html")]).partition("</h3>")[2]
    )
    positions = [float(circle.get("cx")) for circle in drawn.iter("circle")]
    assert positions == [LEFT, WIDTH - RIGHT]
    middle = next(line for line in drawn.iter("line") if line.get("class") == "median")
    assert float(middle.get("x1")) == pytest.approx((LEFT + WIDTH - RIGHT) / 2)


@pytest.mark.parametrize(
    ("values", "ticks"),
    [
        ([0.0, 10.0], [0, 2, 4, 6, 8, 10]),
        ([3.2, 3.9], [3.2, 3.4, 3.6, 3.8, 4.0]),
        ([5.0], [5, 6]),
        ([0.0], [0, 0.2]),
        ([-0.5, 1200.0], [-500, 0, 500, 1000, 1500]),
    ],
)
def test_scales_are_round_and_hold_the_values(values, ticks):
    assert nice_ticks(values) == pytest.approx(ticks)


def test_rows_are_told_by_the_folder(tmp_path):
    store = Store(tmp_path / "out")
    done, bad, never = (job_of(tmp_path, name, number) for number, name in enumerate("abc", 1))

    def work(job, stage):
        raise InputError("cut short")

    tried(store, done)
    tried(store, bad, work)
    found = rows_of(store, [done, bad, never])
    assert [(row.state, row.attempts) for row in found] == [(DONE, 1), (FAILED, 1), ("waiting", 0)]
    assert found[0].report == "a/report.json"
    assert found[0].numbers["dice"] == 0.5
    assert found[1].problem == "cut short"
    write_summary(store.folder, found)
    assert (store.folder / "summary.csv").read_text(encoding="utf-8") == as_csv(found)
    # Killed in the middle: nobody runs it any more.
    store.write_status(store.status(never).begun(Attempt("t", "s", "host", 7, "now")))
    assert rows_of(store, [never])[0].state == INTERRUPTED
    # Killed after the results were in place and before the status was written: the results count.
    store.status_file("a").unlink()
    assert rows_of(store, [done])[0].state == DONE
