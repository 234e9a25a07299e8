"""Tables, jobs and workers for the tests of cohorts, without processes and without registrations."""

from __future__ import annotations

from pathlib import Path

from DiffeoRegLib.cohorts.attempt import Made, attempt
from DiffeoRegLib.cohorts.job import Job


def table_of(folder, lines, name="pairs.csv"):
    """A table in a folder, and its path."""
    path = folder / name
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def job_of(folder, name="a", number=1, **values):
    """A row whose two files exist."""
    inputs = {}
    for flag in ("fixed", "moving"):
        file = folder / f"{name}_{flag}.txt"
        if not file.exists():
            file.write_text(f"{flag} of {name}", encoding="utf-8")
        inputs[flag] = str(file)
    settings = {"effort": "fast", "method": "svf", **values}
    return Job(name, number, name, {**settings, **inputs}, settings, inputs)


def written(job, stage):
    """A registration that writes two files: one says what it read, the other is its report."""
    stage.mkdir(parents=True)
    text = " ".join(Path(path).read_text(encoding="utf-8") for path in job.inputs.values())
    (stage / "transform.h5").write_text(text, encoding="utf-8")
    (stage / "report.json").write_text("{}", encoding="utf-8")
    files = {"transform": stage / "transform.h5", "report": stage / "report.json"}
    return Made(files, {"dice": 0.5, "seconds": 2.0}, {"1": 0.5}, {"threads": 1})


def tried(store, job, work=written, session="s", retries=1):
    """One attempt at a row, here."""
    return attempt(store, job, session, retries, work, str)


class HerePool:
    """A worker for each name given, which does its row at once, in this thread."""

    def __init__(self, do, names=("one",)):
        self.do, self.names = do, list(names)
        self.taken = []

    def workers(self):
        return list(self.names)

    def submit(self, job, worker, ended):
        self.taken.append((job.name, worker))
        ended(self.do(job))

    def progress(self):
        return {}
