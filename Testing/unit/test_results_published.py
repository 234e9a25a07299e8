"""The rows of results that the repository holds: no silent folds, pages that fit, papers beside rows."""

from __future__ import annotations

import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "benchmarks"))

import results
import results_choose
import results_page
import results_papers
import results_ways

DOCS = Path(__file__).resolve().parents[2] / "Resources" / "docs"


def test_no_published_row_of_ours_folds_unsaid_and_the_diffeomorphic_ones_do_not_fold() -> None:
    rows = [row for row in results.published(DOCS) if row["status"] == "ok" and not row["peer"]]
    rows = [row for row in rows if row["method"] != "start"]
    assert len(rows) > 50
    folded = [row for row in rows if row["folded_whole_percent"] > 0]
    assert not [row for row in folded if not results_page.says_folds(row)]
    assert not [row for row in folded if row["diffeomorphic"]]


def test_the_published_pages_are_those_of_the_published_rows() -> None:
    stored = json.loads((DOCS / "results-table.json").read_text(encoding="utf-8"))
    content = stored["rows"], stored["series"]
    for name, write in (
        ("results-table.md", results_page.page),
        ("choose-a-model.md", results_choose.choose_page),
    ):
        text = write(*content)
        assert (DOCS / name).read_text(encoding="utf-8") == text, (
            f"make results FLAGS=--page writes {name} anew"
        )


def test_every_figure_of_a_paper_stands_beside_a_row_that_can_be_run() -> None:
    for one in results_papers.REPORTED:
        for where, method, setting in one.ours:
            way = [
                w
                for w in results_ways.ways_of(where, cuda=False)
                if (w.method, w.setting, w.device) == (method, setting, "cpu")
            ]
            assert [w.reason for w in way] == [""], one.what
