"""A disk that fills up at any moment, folders that may not be written to: a sentence, nothing lost."""

from __future__ import annotations

import errno
import io
import os
import sys
from pathlib import Path

import numpy as np
import pytest

from DiffeoRegLib.cli import BAD_OUTPUT, OK, main
from DiffeoRegLib.errors import OutputError
from DiffeoRegLib.exchange import Image, pack
from DiffeoRegLib.training.checkpoint import write_checkpoint
from DiffeoRegLib.volumes.files import read_points, write_points, write_volume
from Testing.robustness.profile import SEED, quick_words, times
from Testing.worker_jobs import pair

QUICK = quick_words(iterations=2)
LIMITED = times(3, most=60)


class FullDisk:
    """From the n-th write to a Python file on, the disk is full."""

    def __init__(self, monkeypatch, after: int) -> None:
        self.left = after
        for name in ("write_text", "write_bytes", "mkdir", "rename", "replace"):
            monkeypatch.setattr(Path, name, self._limited(getattr(Path, name)))

    def _limited(self, write):
        def limited(path, *arguments, **options):
            self.left -= 1
            if self.left < 0:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
            return write(path, *arguments, **options)

        return limited


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pair")
    for volume in pair():
        write_volume(volume, folder / f"{volume.name}.nii.gz")
    return [str(folder / name) for name in ("fixed.nii.gz", "moving.nii.gz")]


def said(capsys) -> str:
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("diffeoreg: ")]
    assert len(lines) == 1
    assert "Traceback" not in lines[0]
    assert lines[0].endswith(".")
    return lines[0]


def test_the_disk_fills_up_at_every_write_of_a_run(files, tmp_path, capsys):
    """Whichever write fails first: status, sentence, an earlier result is there, nothing else."""
    out = tmp_path / "out"
    words = ["register", *files, "-o", str(out), "--overwrite", *QUICK]
    assert main(words) == OK
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    capsys.readouterr()
    for after in range(12):
        with pytest.MonkeyPatch.context() as patch:
            FullDisk(patch, after)
            status = main(words)
        if status == OK:
            break
        assert status == BAD_OUTPUT
        assert "No space left" in said(capsys)
        assert sorted(path.name for path in tmp_path.iterdir()) == ["out"]
        now = {path.name: path.read_bytes() for path in out.iterdir()}
        # The last step moves finished files into place one by one: each is the old one or the new one, whole.
        assert set(now) == set(before)
    assert after > 3, "it never failed"


@pytest.mark.skipif(sys.platform == "win32", reason="limits on the size of a file are POSIX")
def test_files_that_cannot_grow(files, tmp_path, repository):
    """A limit on the size of files, at random places among the results."""
    import subprocess

    random = np.random.default_rng(SEED)
    program = (
        "import resource, signal, sys\n"
        "from DiffeoRegLib.cli import main\n"
        "import DiffeoRegLib.cli.commands\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "for limit in map(int, sys.argv[1].split(',')):\n"
        "    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))\n"
        "    print(limit, main(sys.argv[2:]), flush=True)\n"
    )
    limits = [int(10**exponent) for exponent in random.uniform(2, 4.2, LIMITED)]
    words = ["register", *files, "-o", str(tmp_path / "out"), *QUICK]
    done = subprocess.run(
        [sys.executable, "-c", program, ",".join(map(str, limits)), *words],
        capture_output=True, encoding="utf-8", cwd=repository, check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    statuses = [line.split() for line in done.stdout.splitlines() if line[:1].isdigit()]
    assert [status for _, status in statuses] == [str(BAD_OUTPUT)] * LIMITED, done.stdout
    assert done.stderr.count("diffeoreg: ") == LIMITED
    assert "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(sys.platform == "win32" or os.geteuid() == 0, reason="root may write anywhere")
def test_read_only_folders(files, tmp_path, capsys):
    tmp_path.chmod(0o500)
    try:
        assert main(["register", *files, "-o", str(tmp_path / "out"), *QUICK]) == BAD_OUTPUT
        assert "Permission denied" in said(capsys)
    finally:
        tmp_path.chmod(0o700)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("code", [errno.EACCES, errno.EROFS])
def test_folders_that_refuse(files, tmp_path, capsys, monkeypatch, code):
    """What a read-only folder answers, also where the tests run as root."""

    def refuses(path, *_, **__):
        raise OSError(code, os.strerror(code), str(path))

    monkeypatch.setattr(Path, "mkdir", refuses)
    assert main(["register", *files, "-o", str(tmp_path / "out"), *QUICK]) == BAD_OUTPUT
    monkeypatch.undo()
    assert os.strerror(code) in said(capsys)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("what", ["points", "weights", "exchange"])
def test_a_file_that_stops_in_the_middle_keeps_the_old_one(tmp_path, monkeypatch, what):
    """The disk is full after some bytes: the file of before is whole, and nothing lies beside it."""
    path = tmp_path / {"points": "p.csv", "weights": "w.safetensors", "exchange": "job.json"}[what]
    writes = {
        "points": lambda: write_points(np.ones((5, 3)), path, overwrite=True),
        "weights": lambda: write_checkpoint(path, {}, {"kind": "weights"}),
        "exchange": lambda: pack({"a": 1, "image": Image(np.zeros((2, 2, 2)), np.eye(4))}, tmp_path, "job"),
    }
    writes[what]()
    before = {one.name: one.read_bytes() for one in tmp_path.iterdir()}
    usual = io.open

    class Half:
        """A file that takes its first bytes and then no more."""

        def __init__(self, file) -> None:
            self.file = file

        def __enter__(self):
            return self

        def __exit__(self, *_):
            self.file.close()

        def __getattr__(self, name):
            return getattr(self.file, name)

        def write(self, content):
            self.file.write(content[: len(content) // 2])
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def opened(file, mode="r", *arguments, **options):
        found = usual(file, mode, *arguments, **options)
        return found if mode.startswith("r") else Half(found)

    monkeypatch.setattr(io, "open", opened)
    with pytest.raises(OutputError, match="No space left"):
        writes[what]()
    monkeypatch.undo()
    now = {one.name: one.read_bytes() for one in tmp_path.iterdir() if one.suffix != ".raw"}
    assert {name: before[name] for name in now if name in before} == {
        name: now[name] for name in now if name in before
    }
    assert path.read_bytes() == before[path.name]
    # The exchange folder is private to one run, which removes it whole.
    assert what == "exchange" or set(now) == set(before)
    if what == "points":
        assert read_points(path).shape == (5, 3)
