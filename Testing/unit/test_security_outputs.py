"""What is written: pages without scripts, tables without formulas, private folders, names that stay."""

from __future__ import annotations

import csv
import io
import json
import os
import stat
from pathlib import Path

import pytest

from DiffeoRegLib.catalog import METHOD_CARDS, card, read_models
from DiffeoRegLib.cells import cell, visible
from DiffeoRegLib.cli.console import BarConsole, PlainConsole
from DiffeoRegLib.cli.evaluate_pairs import Row
from DiffeoRegLib.cli.evaluate_pairs import as_csv as pairs_csv
from DiffeoRegLib.cohorts.names import plain_names
from DiffeoRegLib.cohorts.page import html_page as cohort_page
from DiffeoRegLib.cohorts.summary import CohortRow, as_csv, summarise
from DiffeoRegLib.errors import InputError, OutputError, SettingsError
from DiffeoRegLib.outputs import staging
from DiffeoRegLib.training.curve import Table
from DiffeoRegLib.whole_file import make_private, replace_file

posix = pytest.mark.skipif(os.name != "posix", reason="permissions of this kind are POSIX")
SCRIPT = "<script>alert('x')</script><img src=x onerror=alert(1)>"
FORMULAS = ["=1+1", "+1", "-cmd", "@SUM(A1)", "\t=1", " =1", "\uff1d1+1"]


def cohort_row(**values):
    known = {
        "number": 1, "name": SCRIPT, "fixed": SCRIPT, "moving": SCRIPT, "method": SCRIPT, "state": SCRIPT,
        "attempts": 1, "folder": "row", "report": f"row/{SCRIPT}.html", "problem": SCRIPT,
        "numbers": {"dice": 0.5, "dice_initial": 0.4}, "labels": {"1": 0.5},
    }  # fmt: skip
    return CohortRow(**{**known, **values})


# --- pages --------------------------------------------------------------------------------------------------


def test_the_page_of_a_cohort_shows_names_as_text():
    rows = [cohort_row(), cohort_row(number=2, state="done", problem="")]
    page = cohort_page(rows, summarise(rows))
    assert "<script" not in page
    assert "<img" not in page
    assert "&lt;script&gt;" in page


def test_a_models_list_cannot_write_html_or_leave_its_folder(repository, tmp_path):
    methods = {one.name: one for one in METHOD_CARDS}
    shipped = json.loads((repository / "DiffeoRegLib/Resources/Models.json").read_text(encoding="utf-8"))
    path = tmp_path / "Models.json"

    def read(**weights):
        model = json.loads(json.dumps(shipped["models"][0]))
        model["weights"] |= weights
        model["title"] = SCRIPT
        path.write_text(json.dumps({"models": [model]}), encoding="utf-8")
        return read_models(path, methods)

    (one,) = read().values()
    assert one.title == SCRIPT  # text, which every page escapes: see test_report_page and the page above
    for file in (
        "../a.safetensors",
        "/etc/a",
        "C:\\a",
        "\\\\server\\a",
        "..",
        "a/b",
        "a\\b",
        ".hidden",
        "a\0b",
    ):
        with pytest.raises(SettingsError, match="plain file name"):
            read(file=file)
    for url in ("http://example.org/a", "file:///etc/a", "ftp://example.org/a", "HTTP://a"):
        with pytest.raises(SettingsError, match="only https"):
            read(url=url)
    for sum_ in ("", "0" * 63, "0" * 63 + "G", None):
        with pytest.raises(SettingsError):
            read(sha256=sum_)


def test_every_shipped_model_has_a_check_sum():
    trained = [one for one in (card(m) for m in ("sitreg-brain-t1", "vsvf-hippocampus")) if one.weights]
    assert trained
    assert all(len(weight.sha256) == 64 for one in trained for weight in one.weights)


# --- tables -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", FORMULAS)
def test_tables_hold_no_formulas(tmp_path, text):
    rows = [
        cohort_row(name=text, fixed=text, moving=text, method="svf", state="done", report=text, problem=text)
    ]
    table = Table(tmp_path / "problems.csv", ("problem",))
    table.start(0)
    table.add(1, {"problem": text})
    table.start(1)  # what is written again is not marked twice
    tables = [as_csv(rows), pairs_csv([Row(text, text, problem=text)])]
    tables.append((tmp_path / "problems.csv").read_bytes().decode("utf-8"))
    for content in tables:
        found = [one for row in csv.reader(io.StringIO(content, newline="")) for one in row]
        assert any(one == f"'{text}" for one in found)
        assert not any(one.startswith(tuple("=+-@\t\r\n\uff1d")) for one in found)


def test_a_cell_is_no_row():
    assert cell("a\r=1\n@b") == "a =1 @b"
    assert cell("\r\n=1") == "' =1"


def test_other_cells_stay_as_they_are():
    for text in ("a=b", "sub-01", "", "'quoted'", "1"):
        assert cell(text) == text


# --- terminals ----------------------------------------------------------------------------------------------


def test_names_cannot_steer_a_terminal():
    out, errors = io.StringIO(), io.StringIO()
    console = PlainConsole(out, errors)
    name = "a\x1b]0;owned\x07\u202e\ud800b"
    console.log(name)
    console.progress("reading", 0.1, name)
    console.result(f"{name}\nline", {})
    console.error(name, "InputError", 2)
    said = out.getvalue() + errors.getvalue()
    assert not set(said) & set("\x1b\x07\u202e\ud800")
    assert "line" in out.getvalue().splitlines()
    assert visible("Müller µm – ok\t1") == "Müller µm – ok\t1"


def test_names_are_no_markup_for_the_progress_bar():
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    errors = Terminal()
    console = BarConsole(Terminal(), errors)
    console.progress("[/red]", 0.5, "scan[/red].nii.gz")
    console.log("[bold]x[/nothing]")
    console.close()
    assert "scan[/red].nii.gz" in errors.getvalue()


# --- names --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    ["../x", "/x", "a/../b", "C:\\x", "C:x", "\\\\server\\share", "..", ".", "a\\b", "x\0", "~/x", "$HOME",
     "nul", "CON", "aux.nii", "com1", "LPT9.txt", "summary.csv", "Summary.html", "dataset_description.json"],
)  # fmt: skip
def test_no_row_writes_outside_its_folder_or_over_the_cohort_s_files(name):
    with pytest.raises(InputError, match="cannot name"):
        plain_names(Path("a.nii"), Path("b.nii"), name)


@pytest.mark.parametrize("file", ["..nii", "...", "~.nii.gz", "$(rm).nii", "nul\x1b.nii"])
def test_rows_named_after_odd_files_stay_inside(file):
    names = plain_names(Path("f.nii"), Path(file), None)
    assert Path(names.folder).name == names.folder
    assert names.folder not in ("", ".", "..")
    assert names.folder.isascii()


# --- folders and files --------------------------------------------------------------------------------------


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@posix
def test_work_in_progress_is_private_and_results_are_as_usual(tmp_path):
    before = os.umask(0o022)
    try:
        with staging(tmp_path / "out") as stage:
            assert mode(stage.parent) == 0o700
            assert stage.parent.parent == tmp_path
            (stage / "moved.nii.gz").write_bytes(b"x")
            stage.rename(tmp_path / "out")
        assert mode(tmp_path / "out") == 0o755
    finally:
        os.umask(before)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize("problem", [OutputError("full"), KeyboardInterrupt(), OSError(28, "full")])
def test_work_in_progress_is_removed_whatever_happens(tmp_path, problem):
    def fail():
        with staging(tmp_path / "out") as stage:
            (stage / "half").write_bytes(b"x")
            raise problem

    with pytest.raises((OutputError, KeyboardInterrupt)):
        fail()
    assert list(tmp_path.iterdir()) == []


@posix
def test_attempts_of_a_cohort_are_private(tmp_path):
    from DiffeoRegLib.cohorts.store import WORK, Store

    store = Store(tmp_path / "cohort")
    store.make_work()
    store.make_work()  # by the next worker
    assert mode(tmp_path / "cohort" / WORK) == 0o700


@posix
def test_a_link_that_waits_in_a_shared_folder_is_not_written_through(tmp_path, monkeypatch):
    precious = tmp_path / "precious"
    precious.write_text("mine", encoding="utf-8")
    folder = tmp_path / "shared"
    folder.mkdir()
    (folder / f".summary.csv.{os.getpid()}.part").symlink_to(precious)
    replace_file(folder / "summary.csv", b"rows")
    monkeypatch.setattr("DiffeoRegLib.whole_file.secrets.token_hex", lambda count: "guessed")
    (folder / ".summary.csv.guessed.part").symlink_to(precious)
    with pytest.raises(OutputError):
        replace_file(folder / "summary.csv", b"more")
    (folder / "summary.json").symlink_to(precious)  # the link itself is replaced, not what it leads to
    monkeypatch.undo()
    replace_file(folder / "summary.json", b"{}")
    assert precious.read_text(encoding="utf-8") == "mine"
    assert (folder / "summary.csv").read_bytes() == b"rows"
    with pytest.raises(FileExistsError):
        make_private(folder)
