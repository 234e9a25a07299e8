"""Rows through a pool of workers, and what is done when workers are lost."""

from __future__ import annotations

import threading

import pytest

from DiffeoRegLib.cohorts.job import Outcome
from DiffeoRegLib.cohorts.pools import places, require_dask
from DiffeoRegLib.cohorts.runner import Run, WorkerDied
from DiffeoRegLib.cohorts.store import DONE, FAILED, Store
from DiffeoRegLib.errors import ClusterError, SettingsError
from Testing.cohort_cases import HerePool, job_of, tried


@pytest.fixture
def jobs(tmp_path):
    return [job_of(tmp_path, name, number) for number, name in enumerate("abcde", 1)]


class Said:
    """What a run reports."""

    def __init__(self):
        self.shares, self.messages, self.sentences = [], [], []

    def run(self, pool, store, patience=60.0):
        return Run(pool, store, self.report, self.sentences.append, patience)

    def report(self, share, message):
        self.shares.append(share)
        self.messages.append(message)


def test_every_row_is_done_and_the_progress_ends_at_all(jobs, tmp_path):
    store, said = Store(tmp_path / "out"), Said()
    pool = HerePool(lambda job: tried(store, job), ["one", "two"])
    outcomes = said.run(pool, store).all(jobs)
    assert {name: found.state for name, found in outcomes.items()} == dict.fromkeys("abcde", DONE)
    assert [name for name, _ in pool.taken] == list("abcde")
    assert said.shares == sorted(said.shares)
    assert said.shares[-1] == 1
    assert said.messages[-1] == "5 of 5 rows"


def test_a_worker_has_one_row_at_a_time(jobs, tmp_path):
    """Rows end only when told, from another thread: never more are out than there are workers."""
    store, out, most = Store(tmp_path / "out"), {}, []

    class Slow(HerePool):
        def submit(self, job, worker, ended):
            assert worker not in out.values()
            out[job.name] = worker
            most.append(len(out))
            threading.Timer(0.02, self.end, (job, ended)).start()

        def end(self, job, ended):
            out.pop(job.name)
            ended(Outcome(job.name, DONE))

        def progress(self):
            return dict.fromkeys("abcde", (0.5, "refine"))

    said = Said()
    assert len(said.run(Slow(None, ["one", "two"]), store).all(jobs)) == 5
    assert max(most) == 2
    assert 0.2 in [round(share, 6) for share in said.shares]  # two of five, half done each
    assert any("a: refine, b: refine" in message for message in said.messages)


def test_a_row_given_up_by_the_cluster_is_written_down_and_the_others_go_on(jobs, tmp_path):
    store, said = Store(tmp_path / "out"), Said()
    pool = HerePool(lambda job: WorkerDied(4) if job.name == "b" else tried(store, job))
    outcomes = said.run(pool, store).all(jobs)
    assert outcomes["b"].state == store.status(jobs[1]).state == FAILED
    assert [name for name, found in outcomes.items() if found.state == DONE] == list("acde")
    (sentence,) = said.sentences
    assert sentence.startswith("Row 2, 'b', failed: Its worker process died 4 times")
    assert store.status(jobs[1]).problem in sentence


def test_a_lost_scheduler_ends_the_run(jobs, tmp_path):
    store = Store(tmp_path / "out")
    pool = HerePool(lambda job: ClusterError("lost") if job.name == "b" else tried(store, job))
    with pytest.raises(ClusterError, match="lost"):
        Said().run(pool, store).all(jobs)
    assert [store.record(job) is not None for job in jobs] == [True, False, False, False, False]


def test_without_workers_it_is_patient_for_so_long(jobs, tmp_path):
    with pytest.raises(ClusterError, match="no workers for 0 s"):
        Said().run(HerePool(None, []), Store(tmp_path / "out"), patience=0.3).all(jobs)


def test_workers_that_come_later_are_used(jobs, tmp_path):
    store = Store(tmp_path / "out")
    pool = HerePool(lambda job: tried(store, job), [])
    threading.Timer(0.3, pool.names.append, ("late",)).start()
    assert len(Said().run(pool, store, None).all(jobs)) == 5


def test_places_count_within_a_computer():
    addresses = ["tcp://b:7", "tcp://a:2", "tcp://a:1", "tcp://[::1]:3"]
    assert places(addresses) == {"tcp://a:1": 0, "tcp://a:2": 1, "tcp://b:7": 0, "tcp://[::1]:3": 0}


def test_missing_packages_are_one_sentence(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if "dask" in name else object())
    with pytest.raises(SettingsError, match=r"needs dask: install .*diffeoreg\[cluster\]"):
        require_dask("local")
    with pytest.raises(SettingsError, match="needs dask and dask-jobqueue"):
        require_dask("slurm")


@pytest.mark.parametrize("scheduler", ["locl", "host:8786", "http://host", ""])
def test_an_unknown_scheduler_is_one_sentence(scheduler):
    with pytest.raises(SettingsError, match="There is no scheduler"):
        require_dask(scheduler)
