"""Killed training goes on to the same weights; two processes train what one does with twice the batch."""

from __future__ import annotations

import csv
import json
import os
import signal
import socket
import subprocess
import sys

import pytest
import torch

from DiffeoRegLib.errors import OutputError, SettingsError
from DiffeoRegLib.networks.build import build_network
from DiffeoRegLib.networks.weights import read_checkpoint, read_network
from DiffeoRegLib.training.processes import Processes
from Testing.training_cases import SETTINGS, Blobs, Shifts, same_weights, settings, trainer

pytestmark = pytest.mark.filterwarnings("ignore::EncodingWarning:matplotlib")  # its font cache, made once

PARTS = (
    {},
    {"optimiser": {"name": "adamw", "learning_rate": 5e-3, "schedule": "cosine", "weight_decay": 0.1}},
    {"batch": 2, "accumulation": 2},  # three batches an epoch: a step straddles two epochs
)
KILLED = """
import os, signal, sys
from Testing.training_cases import Blobs, settings, trainer
import torch
torch.set_num_threads(1)
def kill(progress):
    if progress.phase == "training" and progress.message.startswith("step 6 "):
        os.kill(os.getpid(), signal.SIGKILL)
trainer(__import__("pathlib").Path(sys.argv[1]), validation=Blobs(2), report=kill).run()
"""
SHARED = """
import json, sys
from pathlib import Path
import torch
from DiffeoRegLib.networks.build import build_network
from DiffeoRegLib.networks.build import build_network
from DiffeoRegLib.training.processes import joined
from Testing.training_cases import Blobs, settings, trainer
torch.set_num_threads(1)
folder = Path(sys.argv[1])
with joined() as processes:
    config = settings(**json.loads(sys.argv[2]))
    for start in ("new", "resumed"):
        torch.manual_seed(99 + processes.rank)  # the leader's weights are everybody's
        run = trainer(folder, config, build_network(config.network), Blobs(8), Blobs(3), processes=processes)
        # Only the second process is late: both have to stop.
        late = start == "new" and processes.rank == 1
        outcome = run.run(resume=start == "resumed", stop_after_seconds=0 if late else 600)
        assert outcome.step == (1 if start == "new" else config.steps), outcome
    total = sum(float(p.detach().double().sum()) for p in run.network.parameters())
    (folder / f"rank-{processes.rank}.json").write_text(json.dumps(total), encoding="utf-8")
"""


def rows(path):
    with path.open(encoding="utf-8", newline="") as file:
        return [
            {k: v for k, v in row.items() if k != "seconds"}
            for row in csv.DictReader(file)
        ]  # fmt: skip


class Noisy(Shifts):
    """Draws random numbers of its own in every step."""

    def __init__(self):
        super().__init__(dropout=0.5)


@pytest.mark.parametrize("changes", PARTS)
@pytest.mark.parametrize("network", [None, Noisy])
def test_a_run_in_pieces_is_the_run_in_one(tmp_path, monkeypatch, changes, network):
    """Every step in a run of its own, with other random numbers drawn in between."""
    monkeypatch.setattr("DiffeoRegLib.training.run_folder.draw_curve", lambda folder: False)  # slow
    config = settings(best="loss", **changes)
    made = (lambda: None) if network is None else network
    whole = trainer(tmp_path / "whole", config, made(), validation=Blobs(2))
    whole.run()
    for piece in range(8):
        torch.manual_seed(piece + 50)
        part = trainer(tmp_path / "parts", config, made(), validation=Blobs(2))
        if network is None and piece == 0:
            part.network.load_state_dict(trainer(tmp_path / "new", config).network.state_dict())
        outcome = part.run(resume=piece > 0, stop_after_seconds=0)
        assert outcome.step == piece + 1
        assert outcome.finished == (piece == 7)
    assert same_weights(part.network, whole.network)
    states = [read_checkpoint(tmp_path / name / "state.safetensors") for name in ("whole", "parts")]
    assert states[0].tensors.keys() == states[1].tensors.keys()
    assert all(torch.equal(v, states[1].tensors[k]) for k, v in states[0].tensors.items())
    for name in ("training.csv", "validation.csv"):
        assert rows(tmp_path / "parts" / name) == rows(tmp_path / "whole" / name)


@pytest.mark.skipif(sys.platform == "win32", reason="SIGKILL is a matter of Unix")
def test_a_killed_run_goes_on_to_the_same_weights(tmp_path, repository):
    """Killed at step 6, between its row and its state: the row is there once in the end."""
    done = subprocess.run(
        [sys.executable, "-c", KILLED, str(tmp_path / "killed")],
        cwd=repository, capture_output=True, text=True, encoding="utf-8", check=False,
    )  # fmt: skip
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert read_checkpoint(tmp_path / "killed" / "state.safetensors").description["step"] == 4
    assert rows(tmp_path / "killed" / "training.csv")[-1]["step"] == "6"
    torch.manual_seed(1234)
    network = trainer(tmp_path / "other").network
    resumed = trainer(tmp_path / "killed", network=network, validation=Blobs(2))
    assert resumed.run(resume=True).finished
    whole = trainer(tmp_path / "whole", validation=Blobs(2))
    whole.run()
    assert same_weights(resumed.network, whole.network)
    for name in ("training.csv", "validation.csv"):
        assert rows(tmp_path / "killed" / name) == rows(tmp_path / "whole" / name)
    best, _ = read_network(tmp_path / "killed" / "best.safetensors")
    assert same_weights(best, read_network(tmp_path / "whole" / "best.safetensors")[0])


def in_two_processes(repository, folder, changes):
    """A run by two processes that is stopped and resumed, with the environment torchrun gives them."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"}
    started = [
        subprocess.Popen(
            [sys.executable, "-c", SHARED, str(folder), json.dumps(changes)],
            cwd=repository, env={**os.environ, **shared, "RANK": str(r), "LOCAL_RANK": str(r)},
            stderr=subprocess.PIPE, text=True, encoding="utf-8",
        )
        for r in range(2)
    ]  # fmt: skip
    try:
        errors = [process.communicate(timeout=120)[1] for process in started]
    finally:
        for process in started:
            process.kill()
    assert [process.returncode for process in started] == [0, 0], errors


def test_two_processes_are_one_with_twice_the_batch_and_resume(tmp_path, repository):
    """Plain descent, whose steps are as long as the gradient: a wrong mean would show."""
    changes = {
        "steps": 3, "log_every": 1, "best": "loss", "optimiser": {"name": "sgd", "learning_rate": 0.2},
        # Inverses solved well: at the usual tolerance a rounding decides how many iterations they take.
        "network": {**SETTINGS["network"], "options": {"tolerance_vox": 1e-4}},
    }  # fmt: skip
    in_two_processes(repository, tmp_path / "two", {**changes, "batch": 1})
    sums = [(tmp_path / "two" / f"rank-{rank}.json").read_text(encoding="utf-8") for rank in (0, 1)]
    assert sums[0] == sums[1]

    config = settings(**changes, batch=2)
    torch.manual_seed(99)
    network = build_network(config.network)
    start = [p.detach().clone() for p in network.parameters()]
    one = trainer(tmp_path / "one", config, network, Blobs(8), Blobs(3))
    one.run()
    two, _ = read_network(tmp_path / "two" / "last.safetensors")
    moved = 0.0
    for first, second, before in zip(network.parameters(), two.parameters(), start, strict=True):
        assert torch.allclose(first, second, atol=1e-6)
        moved = max(moved, float((first - before).detach().abs().max()))
    assert moved > 1e-3
    for name in ("training.csv", "validation.csv"):
        tables = [rows(tmp_path / which / name) for which in ("one", "two")]
        assert [row["step"] for row in tables[0]] == [row["step"] for row in tables[1]]
        for first, second in zip(*tables, strict=True):
            assert float(first["loss"]) == pytest.approx(float(second["loss"]), rel=1e-5)


def test_another_number_of_processes_does_not_resume_a_run(tmp_path):
    trainer(tmp_path).run(stop_after_seconds=0)
    other = trainer(tmp_path)
    other.files.processes = Processes(0, 2)
    with pytest.raises(SettingsError, match="started with 1 processes, not 2"):
        other.files.read_state()


def test_a_disk_that_fills_up_costs_the_steps_since_the_last_state(tmp_path, monkeypatch):
    whole = trainer(tmp_path / "whole")
    whole.run()
    with monkeypatch.context() as patched:
        written = []

        def fill(descriptor):
            written.append(descriptor)
            # Four tables, state and weights of steps 0 and 2, the state of step 4.
            if len(written) > 9:
                raise OSError(28, "No space left on device")

        patched.setattr(os, "fsync", fill)
        with pytest.raises(OutputError, match="No space left"):
            trainer(tmp_path / "full").run()
    assert read_checkpoint(tmp_path / "full" / "state.safetensors").description["step"] == 4
    resumed = trainer(tmp_path / "full")
    resumed.run(resume=True)
    assert same_weights(resumed.network, whole.network)
