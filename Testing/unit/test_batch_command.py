"""The command `batch` in this process: its table, its resume, its end; the workers are stood in for."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from contextlib import contextmanager

import pytest

from DiffeoRegLib.cli import batch
from DiffeoRegLib.cli.batch_rows import jobs_from, register_flags
from DiffeoRegLib.cli.batch_worker import RowConsole, registered, with_resources
from DiffeoRegLib.cli.console import duration
from DiffeoRegLib.cohorts.attempt import attempt
from DiffeoRegLib.cohorts.pools import Slurm, remote_client, slurm_script
from DiffeoRegLib.errors import Cancelled, ClusterError
from Testing.cohort_cases import HerePool, table_of
from Testing.command import RESULTS, one_sentence, run

COLUMNS = "fixed,moving,fixed_labels,moving_labels,fixed_points,moving_points,name"
WHOLE = "fixed.nii.gz,moving.nii.gz,fixed_seg.nii.gz,moving_seg.nii.gz,fixed.csv,moving.fcsv,whole"
BACK = "moving.nii.gz,fixed.nii.gz,,,,,"
CUT = "fixed.nii.gz,cut.nii.gz,,,,,cut"


@pytest.fixture
def here(monkeypatch):
    """Rows are done in this process; holds what stands in for the worker."""

    @contextmanager
    def client(store, rows, arguments, slurm, console):
        yield arguments

    class Pool(HerePool):
        stop_at = None

        def __init__(self, client, task, fixed, topic, most):
            super().__init__(lambda job: self.work(fixed[0], job))

        def work(self, root, job):
            if job.name == Pool.stop_at:
                raise Cancelled("Cancelled; nothing was written.")
            told = []
            return attempt(
                batch.Store(batch.Path(root)), job, "s", 1,
                lambda job, stage: registered(
                    with_resources(job.values, 1, 2**34, 0), stage, lambda *seen: told.append(seen)
                ),
                lambda problem: " ".join(str(problem).split()),
            )  # fmt: skip

    monkeypatch.setattr(batch, "_client", client)
    monkeypatch.setattr(batch, "DaskPool", Pool)
    return Pool


def cohort(folder):
    with (folder / "summary.csv").open(encoding="utf-8", newline="") as file:
        return {row["name"]: row for row in csv.DictReader(file)}


def test_rows_are_what_register_writes(pair_files, registrations, here, tmp_path, capsys):
    table = table_of(pair_files, [COLUMNS, WHOLE, BACK], "two.csv")
    assert run("batch", table, "-o", tmp_path / "out", "--effort", "fast", "--seed", 3) == 0
    rows = cohort(tmp_path / "out")
    assert set(rows) == {"whole", "fixed_to_moving"}
    place = tmp_path / "out" / "whole"
    assert {path.name for path in place.iterdir()} == {*RESULTS, "moved_seg.nii.gz", "row.json"}
    assert float(rows["whole"]["dice"]) == 1  # the known run finds the truth
    assert float(rows["whole"]["tre_mm"]) < 0.05
    assert rows["fixed_to_moving"]["dice"] == ""
    assert all(seen["settings"].effort == "fast" and seen["settings"].seed == 3 for seen in registrations)
    assert registrations[0]["settings"].threads == 1
    assert registrations[0]["settings"].memory_limit_gb == pytest.approx(0.8 * 2**34 / 1e9)
    page = (tmp_path / "out" / "summary.html").read_text(encoding="utf-8")
    assert 'href="whole/report.html"' in page
    assert "2 of 2 rows are finished, 2 of them now" in capsys.readouterr().out


def test_cells_go_before_the_flags_of_the_command(pair_files, registrations, here, tmp_path):
    header = "fixed,moving,method,levels,iterations,extra,no_html,initial,exclude_fixed_mask,fixed_mask,name"
    lines = [
        header,
        'fixed.nii.gz,moving.nii.gz,,"8,4","7,5",a=1; b=two,yes,rigid,,,one',
        "fixed.nii.gz,moving.nii.gz,affine,,,,no,initial.tfm,true,fixed_seg.nii.gz,two",
    ]
    table = table_of(pair_files, lines, "cells.csv")
    words = ["--levels", "4", "--iterations", "3", "--extra", "c=3", "--init", "affine"]
    assert run("batch", table, "-o", tmp_path / "out", *words) == 0
    one, two = registrations
    assert (one["settings"].levels_mm, one["settings"].iterations) == ((8, 4), (7, 5))
    assert (one["settings"].extras, two["settings"].extras) == ({"a": 1, "b": "two"}, {"c": 3})
    assert (one["settings"].init, one["initial"]) == ("rigid", None)
    assert (two["settings"].method, two["settings"].levels_mm) == ("affine", (4,))
    assert two["initial"] is not None
    assert one["masks"] is None
    assert two["masks"].exclude_fixed
    assert not (tmp_path / "out" / "one" / "report.html").exists()
    assert (tmp_path / "out" / "two" / "report.html").exists()
    page = (tmp_path / "out" / "summary.html").read_text(encoding="utf-8")
    assert 'href="one/report.json"' in page


def test_a_corrupt_row_is_reported_and_the_others_finish(pair_files, registrations, here, tmp_path, capsys):
    table = table_of(pair_files, [COLUMNS, CUT, WHOLE], "corrupt.csv")
    assert run("batch", table, "-o", tmp_path / "out", "--quiet") == 2
    said = one_sentence(capsys)
    assert "1 of 2 rows failed, first row 1, 'cut'" in said
    assert "cut.nii.gz' could not be read" in said
    rows = cohort(tmp_path / "out")
    assert (rows["cut"]["state"], rows["whole"]["state"]) == ("failed", "done")
    assert "cut.nii.gz" in rows["cut"]["problem"]
    assert not (tmp_path / "out" / "cut").exists()


def test_a_resume_does_what_is_open_and_nothing_twice(pair_files, registrations, here, tmp_path, capsys):
    table = table_of(pair_files, [COLUMNS, WHOLE, CUT, BACK], "resume.csv")
    words = ["batch", table, "-o", tmp_path / "out"]
    here.stop_at = "fixed_to_moving"
    assert run(*words, "--quiet") == 130
    assert one_sentence(capsys) == (
        "diffeoreg: Stopped. 1 of 3 rows are finished and kept; the same command with --resume does the rest."
    )
    assert cohort(tmp_path / "out")["whole"]["state"] == "done"
    here.stop_at = None
    assert run(*words, "--quiet") == 3
    assert "--resume" in one_sentence(capsys)
    assert run(*words, "--resume") == 2
    said = capsys.readouterr()
    assert "1 of 3 rows are finished; 2 to do" in said.err
    assert "2 of 3 rows are finished, 1 of them now" in said.out
    attempts = {name: row["attempts"] for name, row in cohort(tmp_path / "out").items()}
    assert attempts == {"whole": "1", "cut": "2", "fixed_to_moving": "1"}
    assert len(registrations) == 2  # the cut image is not even read


def test_changed_rows_are_refused_or_done_again(pair_files, registrations, here, tmp_path, capsys):
    table = table_of(pair_files, [COLUMNS, WHOLE, BACK], "changed.csv")
    words = ["batch", table, "-o", tmp_path / "out", "--quiet"]
    assert run(*words) == 0
    assert run(*words, "--resume", "--threads", 2, "--memory-limit-gb", 3) == 0  # where, not what
    assert len(registrations) == 2
    capsys.readouterr()
    assert run(*words, "--resume", "--effort", "fast") == 2
    said = one_sentence(capsys)
    assert '\'whole\' was finished with something else: effort was "balanced", is "fast"' in said
    assert "and 1 more rows" in said
    assert "--redo-changed" in said
    assert len(registrations) == 2
    assert run(*words[:-1], "--resume", "--redo-changed", "--effort", "fast") == 0
    assert "'whole' is done again: effort was" in capsys.readouterr().err
    assert len(registrations) == 4
    record = json.loads((tmp_path / "out" / "whole" / "row.json").read_text(encoding="utf-8"))
    assert record["settings"]["effort"] == "fast"


def test_names_as_of_a_bids_derivative(pair_files, registrations, here, tmp_path):
    table = table_of(pair_files, ["fixed,moving,moving_person", "fixed.nii.gz,moving.nii.gz,07"], "bids.csv")
    assert run("batch", table, "-o", tmp_path / "out", "--bids-names") == 0
    place = tmp_path / "out" / "sub-07" / "from-moving_to-fixed"
    assert {path.name for path in place.iterdir()} == {
        "sub-07_from-moving_to-fixed_mode-image_xfm.h5",
        "sub-07_from-fixed_to-moving_mode-image_xfm.h5",
        "sub-07_space-fixed_desc-registered_image.nii.gz",
        "sub-07_from-moving_to-fixed_report.json",
        "sub-07_from-moving_to-fixed_report.html",
        "row.json",
    }
    described = json.loads((tmp_path / "out" / "dataset_description.json").read_text(encoding="utf-8"))
    assert described["DatasetType"] == "derivative"
    page = (tmp_path / "out" / "summary.html").read_text(encoding="utf-8")
    assert 'href="sub-07/from-moving_to-fixed/sub-07_from-moving_to-fixed_report.html"' in page


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        (["fixed,name", "a,b"], "has no column 'moving'; its columns are: fixed, name"),
        ([""], "has no column 'fixed'; its columns are: none"),
        (["fixed;moving", "a;b"], "separates its cells by ';'"),
        (["fixed,moving"], "has no rows"),
        (["fixed,moving", ",,"], "has no rows"),
        (["fixed,moving,moving_label", "a,b,c"], "Did you mean 'moving_labels'?"),
        (["fixed,moving,fixed", "a,b,c"], "has the column 'fixed' 2 times"),
        (["fixed,moving,device", "a,b,cpu"], "a column 'device', which means nothing"),
        (["fixed,moving", "fixed.nii.gz,none.nii.gz"], "row 1, column 'moving': there is no file"),
        (["fixed,moving", "fixed.nii.gz,"], "row 1, column 'moving': it is empty"),
        (["fixed,moving", "", "fixed.nii.gz,moving.nii.gz,x"], "row 2: it has 3 cells for 2 columns"),
        (["fixed,moving,levels", 'fixed.nii.gz,moving.nii.gz,"8,x"'], "column 'levels': expected numbers"),
        (["fixed,moving,seed", "fixed.nii.gz,moving.nii.gz,one"], "row 1, column 'seed': invalid int value"),
        (["fixed,moving,no_html", "fixed.nii.gz,moving.nii.gz,maybe"], "column 'no_html': it is yes or no"),
        (["fixed,moving,method", "fixed.nii.gz,moving.nii.gz,svg"], "row 1: There is no method 'svg'"),
        (["fixed,moving,fixed_labels", "fixed.nii.gz,moving.nii.gz,fixed_seg.nii.gz"], "--fixed-seg is"),
        (["fixed,moving", "fixed.nii.gz,fixed.nii.gz"], "row 1: fixed and moving are the same file"),
        (["fixed,moving,name", "fixed.nii.gz,moving.nii.gz,a/b"], "row 1: 'a/b' cannot name a folder"),
        (["fixed,moving,initial,init", "fixed.nii.gz,moving.nii.gz,rigid,mass"], "'initial': the column"),
        (["fixed,moving", *["fixed.nii.gz,moving.nii.gz"] * 2], "row 2: it is the same registration as"),
        (
            ["fixed,moving,name", "fixed.nii.gz,moving.nii.gz,One", "moving.nii.gz,fixed.nii.gz,one"],
            "row 2, column 'name': the name 'one' is that of row 1 too",
        ),
        (["fixed,moving", *[f"no{n}.nii,moving.nii.gz" for n in range(9)]], "and 5 more"),
        (['fixed,moving\n"fixed.nii.gz,moving.nii.gz'], "could not be read as a table"),
    ],
)  # fmt: skip
def test_a_wrong_table_is_one_sentence_and_nothing_starts(
    pair_files, registrations, here, tmp_path, capsys, lines, said
):
    table = table_of(pair_files, lines, "wrong.csv")
    assert run("batch", table, "-o", tmp_path / "out", "--quiet") == 2
    assert said in one_sentence(capsys)
    assert not registrations
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("words", "status", "said"),
    [
        (["{none}", "-o", "{out}"], 2, "There is no file"),
        (["{images}", "-o", "{out}"], 2, "is no table of pairs"),
        (["{table}", "-o", "{out}", "--workers", "0"], 2, "--workers must be at least 1"),
        (["{table}", "-o", "{out}", "--retries", "-1"], 2, "--retries must be at least 0"),
        (["{table}", "-o", "{out}", "--scheduler", "moon"], 2, "There is no scheduler 'moon'"),
        (["{table}", "-o", "{out}", "--resume"], 2, "nothing to resume"),
        (["{table}", "-o", "{out}", "--redo-changed"], 2, "goes with --resume"),
        (["{table}", "-o", "{out}", "--show-job-script"], 2, "goes with --scheduler slurm"),
        (["{table}", "-o", "{table}"], 3, "is a file"),
        (["{table}", "-o", "{out}", "--method", "svg"], 2, "Did you mean 'svf'"),
        (["{table}", "-o", "{out}", "--fixed-mask", "{none}"], 2, "which --fixed-mask names"),
    ],
)
def test_wrong_flags_are_one_sentence(pair_files, here, tmp_path, capsys, words, status, said):
    places = {
        "table": table_of(pair_files, [COLUMNS, BACK], "flags.csv"), "out": tmp_path / "out",
        "none": tmp_path / "none.csv", "images": pair_files / "fixed.nii.gz",
    }  # fmt: skip
    assert run("batch", *[word.format(**places) for word in words], "--quiet") == status
    assert said in one_sentence(capsys)


def test_every_flag_of_register_is_a_column_or_of_the_machine():
    columns = register_flags().columns
    assert {"fixed_labels", "fixed_seg", "regions", "stiffness", "keep_path", "effort", "name"} <= columns
    assert not columns & {"output", "overwrite", "device", "threads", "json", "help"}


def test_a_row_is_done_on_the_gpu_of_its_worker(monkeypatch):
    values = {"threads": None, "device": "auto", "memory_limit_gb": None}
    assert with_resources(values, 3, None, 0) == {"threads": 3, "device": "auto", "memory_limit_gb": None}
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    found = [with_resources(values, 3, 10**9, place) for place in range(3)]
    assert [one["device"] for one in found] == ["cuda:0", "cuda:1", "cuda:0"]
    assert found[0]["memory_limit_gb"] is None  # the limit is of main memory
    asked = with_resources({**values, "device": "cpu", "threads": 5}, 3, 10**9, 1)
    assert asked == {"threads": 5, "device": "cpu", "memory_limit_gb": 0.8}
    assert with_resources({**values, "device": "cuda:1"}, 3, None, 0)["device"] == "cuda:1"


def test_progress_of_a_row_is_told_twice_a_second_at_most():
    told = []
    console = RowConsole(lambda *seen: told.append(seen))
    for count in range(100):
        console.progress("refine", count / 100, "")
    assert told[0] == (0.0, "refine")
    assert len(told) <= 3
    assert duration(61) == "1 min 01 s"


def test_a_scheduler_that_is_not_there_is_one_sentence_in_time(unused_port):
    with (
        pytest.raises(ClusterError, match="No Dask scheduler answers"),
        remote_client(f"tcp://127.0.0.1:{unused_port}", seconds=1),
    ):
        raise AssertionError


@pytest.fixture
def unused_port():
    import socket

    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


def test_the_job_script_asks_slurm_for_what_was_said(pair_files, tmp_path, capsys):
    table = table_of(pair_files, [COLUMNS, BACK], "slurm.csv")
    words = ["--queue", "gpu", "--account", "brains", "--walltime", "02:00:00", "--memory", "8GiB",
             "--cores", "6", "--slurm-option=--gres=gpu:1", "--setup", "module load python"]  # fmt: skip
    out = tmp_path / "out"
    assert run("batch", table, "-o", out, "--scheduler", "slurm", *words, "--show-job-script") == 0
    script = capsys.readouterr().out
    for line in ("-p gpu", "-A brains", "--cpus-per-task=6", "--mem=8G", "-t 02:00:00", "--gres=gpu:1"):
        assert f"#SBATCH {line}\n" in script
    assert "module load python\n" in script
    assert "export DASK_DISTRIBUTED__WORKER__MEMORY__PAUSE=False\n" in script
    worker = next(line for line in script.splitlines() if "dask_worker" in line or "dask worker" in line)
    assert "--nthreads 6" in worker
    assert "--nworkers" not in worker  # one: a row at a time
    assert sys.executable in worker


def test_without_slurm_nothing_is_submitted(pair_files, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    table = table_of(pair_files, [COLUMNS, BACK], "slurm.csv")
    assert run("batch", table, "-o", tmp_path / "out", "--scheduler", "slurm", "--quiet") == 2
    assert "There is no 'sbatch'" in one_sentence(capsys)


def test_a_script_for_defaults_has_no_queue(tmp_path):
    script = slurm_script(Slurm(), tmp_path / "logs")
    assert "#SBATCH -p" not in script
    assert "--cpus-per-task=4" in script


def test_dask_is_loaded_only_by_this_command(repository):
    ask = (
        "import sys; from DiffeoRegLib.cli.commands import COMMANDS; import DiffeoRegLib.cohorts.pools; "
        "assert 'batch' in COMMANDS; print({'dask', 'distributed', 'dask_jobqueue'} & set(sys.modules))"
    )
    done = subprocess.run(
        [sys.executable, "-c", ask], cwd=repository, capture_output=True, encoding="utf-8", check=True
    )
    assert done.stdout.strip() == "set()"


def test_tables_are_read_relative_to_themselves(pair_files, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mask.nii.gz").write_bytes((pair_files / "fixed_seg.nii.gz").read_bytes())
    table = table_of(pair_files, [COLUMNS, WHOLE], "relative.csv")
    arguments = batch_arguments(table, "out", "--fixed-mask", "mask.nii.gz")
    (job,) = jobs_from(arguments)
    assert job.inputs["fixed"] == str(pair_files / "fixed.nii.gz")
    assert job.inputs["fixed_mask"] == str(tmp_path / "mask.nii.gz")  # a flag's: relative to the folder
    assert set(job.inputs) == {
        "fixed", "moving", "fixed_seg", "moving_seg", "fixed_landmarks", "moving_landmarks", "fixed_mask",
    }  # fmt: skip


def test_a_table_of_windows_is_read_anywhere(pair_files, tmp_path):
    """With its byte order mark, its line ends and its way to separate folders."""
    (tmp_path / "scans").mkdir()
    for name in ("fixed", "moving"):
        source = pair_files / f"{name}.nii.gz"
        (tmp_path / "scans" / source.name).write_bytes(source.read_bytes())
    table = tmp_path / "windows.csv"
    lines = ["fixed,moving,name", "scans\\fixed.nii.gz,.\\scans\\moving.nii.gz,new", ""]
    table.write_bytes("\r\n".join(lines).encode("utf-8-sig"))
    (job,) = jobs_from(batch_arguments(table, "out"))
    assert job.name == "new"
    assert job.inputs["fixed"] == str(tmp_path / "scans" / "fixed.nii.gz")
    assert job.inputs["moving"] == str(tmp_path / "scans" / "moving.nii.gz")


def batch_arguments(*words):
    from DiffeoRegLib.cli.arguments import build_parser

    table, out, *more = words
    return build_parser().parse_args(["batch", str(table), "-o", out, *more])
