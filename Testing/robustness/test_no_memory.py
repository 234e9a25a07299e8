"""Memory that is not there, on a GPU and in the computer: the CPU takes over, or one sentence."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch

from DiffeoRegLib import pipeline
from DiffeoRegLib.cli import NO_MEMORY, OK, exit_status, main, sentence
from DiffeoRegLib.pipeline import register
from DiffeoRegLib.settings import Settings
from DiffeoRegLib.volumes.files import write_volume
from DiffeoRegLib.worker.serve import OUT_OF_MEMORY, told
from Testing.robustness.profile import quick_words
from Testing.worker_jobs import QUICK, pair

WORDS = quick_words(iterations=3)


class Allocator:
    """A device that gives out so many tensors and no more: every use of a layer of the engine asks it."""

    def __init__(self, monkeypatch, name: str, times: int) -> None:
        self.left, self.asked = times, 0
        usual = getattr(pipeline, name)

        def limited(*arguments, **options):
            self.asked += 1
            if self.left > 0:
                self.left -= 1
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")
            return usual(*arguments, **options)

        monkeypatch.setattr(pipeline, name, limited)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pair")
    for volume in pair():
        write_volume(volume, folder / f"{volume.name}.nii.gz")
    return [str(folder / name) for name in ("fixed.nii.gz", "moving.nii.gz")]


@pytest.mark.parametrize("where", ["prepare", "method_named"])
def test_out_of_gpu_memory_the_cpu_takes_over_and_says_so(monkeypatch, where):
    fixed, moving = pair()
    settings = Settings(**{name: tuple(v) if isinstance(v, list) else v for name, v in QUICK.items()})
    expected = register(fixed, moving, settings)
    Allocator(monkeypatch, where, 1)
    result = register(fixed, moving, settings)
    assert any("was not enough; the run was done on the CPU" in note for note in result.report["notes"])
    assert torch.equal(result.moved.data, expected.moved.data)


@pytest.mark.parametrize("where", ["prepare", "finish", "warp_volume", "measure"])
def test_out_of_memory_for_good_is_one_sentence(monkeypatch, files, tmp_path, capsys, where):
    Allocator(monkeypatch, where, 99)
    assert main(["register", *files, "-o", str(tmp_path / "out"), *WORDS]) == NO_MEMORY
    said = capsys.readouterr().err.strip().splitlines()
    assert len(said) == 1
    assert "Out of memory" in said[0]
    assert "--memory-limit-gb" in said[0]
    assert list(tmp_path.iterdir()) == []
    monkeypatch.undo()
    assert main(["register", *files, "-o", str(tmp_path / "out"), *WORDS]) == OK


@pytest.mark.parametrize(
    "problem",
    [
        torch.OutOfMemoryError("CUDA out of memory."),
        MemoryError(),
        RuntimeError(
            "[enforce fail at alloc_cpu.cpp:121] . DefaultCPUAllocator: not enough memory: you tried ..."
        ),
        RuntimeError(
            "[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: ..."
        ),
        RuntimeError("MPS backend out of memory (MPS allocated: 8.00 GB)"),
    ],
)
def test_the_user_is_told_in_words(problem):
    assert told(problem) == (OUT_OF_MEMORY, "memory")
    assert exit_status(problem) == NO_MEMORY
    assert sentence(problem, NO_MEMORY).startswith("Out of memory: ")


@pytest.mark.skipif(sys.platform != "linux", reason="the limit counts address space, as Linux does")
def test_a_process_that_gets_no_more_memory(files, tmp_path, repository):
    """The computer's own allocator says no, at several places: a status, a sentence, nothing left."""
    program = (
        "import resource, sys, torch\n"
        "import DiffeoRegLib.cli.commands\n"
        "from DiffeoRegLib.cli import main\n"
        "import DiffeoRegLib.volumes.files as files\n"
        "torch.set_num_threads(1)\n"
        "used = int(open('/proc/self/statm', encoding='ascii').read().split()[0]) * 4096\n"
        "for extra in (2, 30, 80, 4000):\n"
        "    limit = used + (extra << 20)\n"
        "    resource.setrlimit(resource.RLIMIT_AS, (limit, resource.RLIM_INFINITY))\n"
        "    print(extra, main(sys.argv[1:]), flush=True)\n"
    )
    words = ["register", *files, "-o", str(tmp_path / "out"), "--overwrite", "--working-spacing-mm", "0.4",
             "--preset", "general", "--levels", "1", *WORDS[:4], *WORDS[6:]]  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-c", program, *words], capture_output=True, encoding="utf-8", cwd=repository,
        check=False, env={**os.environ, "OMP_NUM_THREADS": "1"}, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    statuses = [int(line.split()[1]) for line in done.stdout.splitlines() if line[:1].isdigit()]
    assert len(statuses) == 4
    assert set(statuses[:-1]) <= {NO_MEMORY, OK}
    assert NO_MEMORY in statuses
    assert statuses[-1] == OK, done.stderr
    assert "Traceback" not in done.stderr
