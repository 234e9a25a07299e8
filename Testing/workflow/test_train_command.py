"""The command `train` in processes of its own: killed, stopped, and several at once."""

from __future__ import annotations

import json
import signal
import sys

import pytest
import torch

from DiffeoRegLib.networks.weights import read_checkpoint
from Testing.command import run
from Testing.train_command import CONFIG, rows, same_runs, started, wait_for_step, written

pytestmark = [
    pytest.mark.filterwarnings("ignore::EncodingWarning:matplotlib"),  # its font cache, made once
    pytest.mark.skipif(sys.platform == "win32", reason="these signals are a matter of Unix"),
]
LONG = {"steps": 60, "checkpoint_every": 7, "validate_every": 20, "log_every": 1}
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The run of LONG in one piece."""
    folder = tmp_path_factory.mktemp("whole")
    assert run("train", written(folder / "run.yaml", **LONG), "-o", folder / "run", "--quiet") == 0
    return folder / "run"


@pytest.mark.parametrize(("number", "status"), [(signal.SIGKILL, -signal.SIGKILL), (signal.SIGINT, 130)])
def test_a_run_that_was_ended_from_outside_goes_on_as_if_nothing_had_been(
    tmp_path, repository, whole, number, status
):
    config = written(tmp_path / "run.yaml", **LONG)
    words = ["train", config, "-o", tmp_path / "run", "--threads", "1", "--json"]
    process = started(words, repository)
    wait_for_step(process, 9)
    process.send_signal(number)
    said = process.communicate(timeout=60)[1]
    assert process.returncode == status, said
    step = read_checkpoint(tmp_path / "run" / "state.safetensors").description["step"]
    assert 7 <= step < LONG["steps"]
    if status == 130:
        assert said == f"diffeoreg: Stopped after step {step} of 60; --resume goes on from there.\n"
    else:
        assert step % 7 == 0

    process = started([*words, "--resume"], repository)
    out, said = process.communicate(timeout=120)
    assert process.returncode == 0, said
    result = json.loads(out.strip().splitlines()[-1])
    assert (result["event"], result["finished"], result["step"]) == ("result", True, 60)
    assert same_runs(tmp_path / "run", whole)


def test_two_processes_of_torchrun_train_as_one_with_twice_the_batch(tmp_path, repository):
    changes = {
        "steps": 4, "validate_every": 2, "best": "loss",
        # Plain descent: a wrong mean over the processes would show in the length of a step.
        "optimiser": {"name": "sgd", "learning_rate": 0.5},
        "data": {**CONFIG["data"], "options": {**CONFIG["data"]["options"], "pairs_per_epoch": 8}},
        "network": {**CONFIG["network"], "options": {"tolerance_vox": 1e-4}},
    }  # fmt: skip
    config = written(tmp_path / "two.yaml", **changes, batch=1)
    words = ["-m", "DiffeoRegLib", "train", config, "-o", tmp_path / "two", "--device", "cpu"]
    process = started(words, repository, TORCHRUN)
    out, said = process.communicate(timeout=180)
    assert process.returncode == 0, said
    assert out.count("Trained 4 steps.") == 1  # one process speaks

    assert run("train", written(tmp_path / "one.yaml", **changes, batch=2), "-o", tmp_path / "one") == 0
    assert run("train", config, "-o", tmp_path / "start", "--stop-after", 0) == 0  # one step
    one, two, start = (
        read_checkpoint(tmp_path / name / "last.safetensors").tensors for name in ("one", "two", "start")
    )
    assert all(torch.allclose(value, two[name], atol=1e-6) for name, value in one.items())
    assert max(float((value - start[name]).abs().max()) for name, value in one.items()) > 1e-3
    for name in ("training.csv", "validation.csv"):
        for first, second in zip(rows(tmp_path / "one" / name), rows(tmp_path / "two" / name), strict=True):
            assert float(first["loss"]) == pytest.approx(float(second["loss"]), rel=1e-5)
