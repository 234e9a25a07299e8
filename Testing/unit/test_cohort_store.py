"""The folder of a cohort: attempts, results that appear at once, and what a resume finds."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace

import pytest

from DiffeoRegLib.cohorts import attempt as attempts
from DiffeoRegLib.cohorts.job import fingerprint, same_file
from DiffeoRegLib.cohorts.store import (
    DONE,
    FAILED,
    INTERRUPTED,
    RECORD,
    RUNNING,
    Attempt,
    Status,
    Store,
    plan,
)
from DiffeoRegLib.errors import FileFormatError, InputError, OutputError, OutputExistsError
from Testing.cohort_cases import job_of, tried, written


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / "out")


def test_a_row_appears_with_everything_and_its_story(store, tmp_path):
    job = job_of(tmp_path)
    outcome = tried(store, job)
    assert outcome.state == DONE
    assert {path.name for path in store.place(job).iterdir()} == {"transform.h5", "report.json", RECORD}
    record = store.record(job)
    assert record["settings"] == {"effort": "fast", "method": "svf"}
    assert record["inputs"]["fixed"]["bytes"] == len("fixed of a")
    assert record["numbers"]["dice"] == 0.5
    (only,) = store.status(job).attempts
    assert (only.outcome, only.token) == (DONE, record["attempt"])
    assert only.started <= only.ended


def test_a_finished_row_is_not_repeated(store, tmp_path):
    job, calls = job_of(tmp_path), []

    def work(job, stage):
        calls.append(job)
        return written(job, stage)

    assert tried(store, job, work).state == tried(store, job, work).state == DONE
    assert len(calls) == 1
    assert len(store.status(job).attempts) == 1


def test_nothing_of_a_row_is_seen_before_it_is_whole(store, tmp_path):
    job = job_of(tmp_path)

    def work(job, stage):
        made = written(job, stage)
        assert not store.place(job).exists()
        assert store.status(job).state == RUNNING
        return made

    tried(store, job, work)
    assert store.place(job).is_dir()
    assert list((store.folder / ".work").iterdir()) == []


def test_a_row_that_fails_leaves_its_sentence_and_no_files(store, tmp_path):
    job = job_of(tmp_path)

    def work(job, stage):
        written(job, stage)
        raise InputError("The moving image is cut short.")

    outcome = tried(store, job, work)
    assert (outcome.state, outcome.problem) == (FAILED, "The moving image is cut short.")
    assert not store.place(job).exists()
    assert list((store.folder / ".work").iterdir()) == []
    status = store.status(job)
    assert (status.state, status.problem) == (FAILED, "The moving image is cut short.")
    assert tried(store, job).state == DONE  # mended
    assert store.status(job).problem == ""


def test_a_row_that_kills_its_workers_is_given_up(store, tmp_path):
    job, calls = job_of(tmp_path), []

    class Killed(BaseException):
        pass

    def work(job, stage):
        calls.append(job)
        raise Killed

    for _ in range(3):
        with pytest.raises(Killed):
            tried(store, job, work, retries=2)
    assert store.status(job).state == RUNNING  # nobody was left to say otherwise
    outcome = tried(store, job, work, retries=2)
    assert outcome.state == FAILED
    assert "died 3 times" in outcome.problem
    assert len(calls) == 3
    # The next session starts counting anew.
    assert tried(store, job, session="next", retries=0).state == DONE
    assert [one.outcome for one in store.status(job).attempts] == [INTERRUPTED] * 3 + [FAILED, DONE]


def test_of_two_workers_with_one_row_the_first_counts(store, tmp_path):
    """A worker that was given up and lives: its row was handed to another."""
    job = job_of(tmp_path)

    def work(inner, stage):
        made = written(inner, stage)
        tried(store, job)  # the other worker, meanwhile
        (stage / "transform.h5").write_text("late", encoding="utf-8")
        return made

    assert tried(store, job, work).state == DONE
    assert (store.place(job) / "transform.h5").read_text(encoding="utf-8") != "late"
    status = store.status(job)
    assert store.record(job)["attempt"] == status.attempts[-1].token
    assert [one.outcome for one in status.attempts] == [INTERRUPTED, DONE]


def test_a_plan_tells_finished_changed_and_open_rows_apart(store, tmp_path):
    jobs = [job_of(tmp_path, name, number) for number, name in enumerate("abcd", 1)]
    for job in jobs[:3]:
        tried(store, job)
    jobs[1] = replace(jobs[1], settings={**jobs[1].settings, "effort": "accurate", "seed": 3})
    (tmp_path / "c_moving.txt").write_text("another moving of c", encoding="utf-8")
    found = plan(store, jobs)
    assert [job.name for job in found.finished] == ["a"]
    assert [job.name for job in found.todo] == ["b", "c", "d"]
    assert found.changed == {
        "b": ('effort was "fast", is "accurate"', "seed was not set, is 3"),
        "c": ("the file of moving has changed",),
    }


def test_a_file_given_anew_or_no_more_is_a_change(store, tmp_path):
    job = job_of(tmp_path)
    tried(store, job)
    mask = replace(job, inputs={**job.inputs, "fixed_mask": job.inputs["fixed"]})
    assert plan(store, [mask]).changed == {"a": ("fixed_mask was not given",)}
    store.discard(job)
    tried(store, mask)
    assert plan(store, [job]).changed == {"a": ("fixed_mask was given",)}


def test_a_file_is_the_same_when_only_its_time_changes(tmp_path):
    file = tmp_path / "a.txt"
    file.write_text("one", encoding="utf-8")
    known = fingerprint(file)
    assert same_file(file, known)
    later = (known["changed_ns"] + 10**9,) * 2
    file.write_text("one", encoding="utf-8")
    os.utime(file, ns=later)
    assert same_file(file, known)
    file.write_text("two", encoding="utf-8")
    os.utime(file, ns=later)
    assert not same_file(file, known)
    file.unlink()
    assert not same_file(file, known)
    with pytest.raises(FileFormatError, match="could not be read"):
        fingerprint(file)


def test_a_folder_is_all_its_files(tmp_path):
    series = tmp_path / "series"
    series.mkdir()
    for name in "ab":
        (series / f"{name}.dcm").write_text("slice", encoding="utf-8")
    known = fingerprint(series)
    assert known["files"] == 2
    assert same_file(series, known)
    (series / "a.dcm").rename(series / "c.dcm")
    assert not same_file(series, known)


def test_a_folder_that_no_row_made_is_not_touched(store, tmp_path):
    job = job_of(tmp_path)
    store.place(job).mkdir(parents=True)
    (store.place(job) / "mine.txt").write_text("mine", encoding="utf-8")
    with pytest.raises(OutputExistsError, match="not the result of a row"):
        plan(store, [job])
    with pytest.raises(OutputExistsError):
        tried(store, job)
    assert (store.place(job) / "mine.txt").exists()


def test_results_are_discarded_whole(store, tmp_path):
    job = job_of(tmp_path)
    tried(store, job)
    store.discard(job)
    assert not store.place(job).exists()
    assert store.record(job) is None


def test_a_damaged_status_is_one_sentence(store, tmp_path):
    job = job_of(tmp_path)
    tried(store, job)
    for text in ('{"name": "a"', '{"name": "a", "row": "one"}', "[]"):
        store.status_file("a").write_text(text, encoding="utf-8")
        with pytest.raises(FileFormatError, match="is damaged"):
            store.status(job)


def test_the_status_is_read_as_it_was_written(store, tmp_path):
    job = job_of(tmp_path)
    status = Status("a", 1).begun(Attempt("t", "s", "host", 7, "now"))
    store.write_status(status)
    assert store.status(job) == status
    failed = status.failed("no more")
    assert (failed.state, failed.problem, failed.attempts[0].outcome) == (FAILED, "no more", INTERRUPTED)
    assert json.loads(store.status_file("a").read_text(encoding="utf-8"))["state"] == RUNNING


def test_one_command_at_a_time_works_in_a_folder(store, tmp_path):
    other = (
        "import sys, pathlib; from DiffeoRegLib.cohorts.store import Store; "
        "from DiffeoRegLib.errors import OutputError\n"
        "try:\n    with Store(pathlib.Path(sys.argv[1])).alone(): print('free')\n"
        "except OutputError as error: print(error)"
    )

    def ask():
        done = subprocess.run(
            [sys.executable, "-c", other, str(store.folder)],
            capture_output=True,
            encoding="utf-8",
            check=True,
        )
        return done.stdout.strip()

    with store.alone():
        assert "Another `diffeoreg batch` works" in ask()
    assert ask() == "free"


def test_a_folder_that_cannot_be_made_is_one_sentence(tmp_path):
    (tmp_path / "file").write_text("", encoding="utf-8")
    with pytest.raises(OutputError, match="cannot be written to"), Store(tmp_path / "file" / "out").alone():
        raise AssertionError


def test_workers_that_cannot_reach_the_folder_say_so(store, tmp_path, monkeypatch):
    job = job_of(tmp_path)

    def fail(*arguments, **options):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(type(store), "make_work", fail)
    with pytest.raises(OutputError, match="Workers need the folder of the results under the same name"):
        attempts._work(store, job, store.stage(job, "t"), "t", written)
