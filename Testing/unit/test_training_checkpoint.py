"""Files of weights and of training: nothing lost, nothing half written, nothing wrong accepted."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys

import pytest
import torch

from DiffeoRegLib.errors import FileFormatError, OutputError
from DiffeoRegLib.networks.build import build_network
from DiffeoRegLib.networks.weights import check_network, load_weights, read_checkpoint, read_network
from DiffeoRegLib.plain import as_plain
from DiffeoRegLib.training.checkpoint import load_optimiser, optimiser_tensors, write_checkpoint
from Testing.training_cases import SETTINGS, Blobs, same_weights, settings, trainer

pytestmark = pytest.mark.filterwarnings("ignore::EncodingWarning:matplotlib")  # its font cache, made once

TENSORS = {
    "a.weight": torch.arange(6.0).reshape(2, 3),
    "a.step": torch.tensor(7.0),
    "b": torch.tensor([1, 2**40]),
    "half": torch.ones(3, dtype=torch.bfloat16),
    "none": torch.zeros(0, 4),
}


def test_tensors_and_description_come_back(tmp_path):
    path = tmp_path / "new" / "x.safetensors"
    write_checkpoint(path, TENSORS, {"step": 3, "name": "é"})
    stored = read_checkpoint(path, sha256=hashlib.sha256(path.read_bytes()).hexdigest().upper())
    assert stored.tensors.keys() == TENSORS.keys()
    for name, value in TENSORS.items():
        assert stored.tensors[name].dtype == value.dtype
        assert torch.equal(stored.tensors[name], value)
    assert stored.description["step"] == 3
    assert stored.description["name"] == "é"
    assert set(stored.part("a")) == {"weight", "step"}
    assert [p.name for p in path.parent.iterdir()] == [path.name]


def test_shared_and_cut_out_tensors_are_stored_as_they_look(tmp_path):
    whole = torch.arange(12.0).reshape(3, 4)
    write_checkpoint(tmp_path / "x", {"one": whole, "same": whole, "part": whole.T[1:3]}, {})
    stored = read_checkpoint(tmp_path / "x").tensors
    assert torch.equal(stored["same"], whole)
    assert torch.equal(stored["part"], whole.T[1:3])


def test_every_altered_byte_is_noticed(tmp_path):
    """All bytes but the padding of the header: its length, names, shapes, text and numbers."""
    path = tmp_path / "x.safetensors"
    write_checkpoint(path, {"weight": torch.rand(3)}, {"step": 1})
    content = path.read_bytes()
    for place, byte in enumerate(content):
        if byte != ord(" "):
            path.write_bytes(content[:place] + bytes([byte ^ 1]) + content[place + 1 :])
            with pytest.raises(FileFormatError, match=r"x\.safetensors"):
                read_checkpoint(path)


@pytest.mark.parametrize("length", [0, 5, 60, -1])
def test_a_truncated_file_is_refused(tmp_path, length):
    path = tmp_path / "x.safetensors"
    write_checkpoint(path, TENSORS, {})
    path.write_bytes(path.read_bytes()[:length])
    with pytest.raises(FileFormatError, match="damaged"):
        read_checkpoint(path)


def test_another_file_than_the_catalogue_means_is_refused(tmp_path):
    write_checkpoint(tmp_path / "x", TENSORS, {})
    with pytest.raises(FileFormatError, match="checksum"):
        read_checkpoint(tmp_path / "x", sha256="0" * 64)


def test_a_missing_or_foreign_file_is_refused(tmp_path):
    from safetensors.torch import save_file

    save_file({"a": torch.zeros(2)}, tmp_path / "foreign.safetensors")
    with pytest.raises(FileFormatError, match="not written by DiffeoReg"):
        read_checkpoint(tmp_path / "foreign.safetensors")
    with pytest.raises(FileFormatError, match="cannot be read"):
        read_checkpoint(tmp_path / "none.safetensors")


def test_a_failing_disk_keeps_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "x.safetensors"
    write_checkpoint(path, TENSORS, {"step": 1})
    before = path.read_bytes()

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OutputError, match=r"No space left.*intact.*Free some space"):
        write_checkpoint(path, TENSORS, {"step": 2})
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


LIMITED = """
import resource, sys
from pathlib import Path
import torch
from DiffeoRegLib.errors import OutputError
from DiffeoRegLib.networks.weights import read_checkpoint
from DiffeoRegLib.training.checkpoint import write_checkpoint
path = Path(sys.argv[1])
write_checkpoint(path, {"w": torch.ones(1000)}, {"step": 1})
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
try:
    write_checkpoint(path, {"w": torch.zeros(100_000)}, {"step": 2})
except OutputError as error:
    sys.stdout.write(str(error))
assert read_checkpoint(path).description["step"] == 1
assert [p.name for p in path.parent.iterdir()] == [path.name]
"""


@pytest.mark.skipif(sys.platform == "win32", reason="limits of a process are a matter of Unix")
def test_a_real_limit_of_the_system_keeps_the_old_file(tmp_path, repository):
    done = subprocess.run(
        [sys.executable, "-c", LIMITED, str(tmp_path / "x.safetensors")],
        cwd=repository, capture_output=True, text=True, encoding="utf-8", check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "intact" in done.stdout


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda w: w.pop("pyramid.encoder.entry.bias"), "lacks 'pyramid.encoder.entry.bias'"),
        (lambda w: w.update(extra=torch.zeros(1)), "holds 'extra'"),
        (lambda w: w.update({"pyramid.encoder.entry.bias": torch.zeros(1)}), "another size"),
        (lambda w: w["pyramid.encoder.entry.bias"].fill_(torch.nan), "not finite"),
    ],
)
def test_weights_that_do_not_fit_are_refused(change, words):
    network = build_network(settings().network)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    weights = {name: value.clone() for name, value in network.state_dict().items()}
    change(weights)
    with pytest.raises(FileFormatError, match=words):
        load_weights(network, weights, "file")
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


def test_a_run_leaves_weights_that_make_their_network_again(tmp_path):
    run = trainer(tmp_path, validation=Blobs(2))
    run.run()
    network, description = read_network(tmp_path / "last.safetensors", wanted=run.config.network)
    assert same_weights(network, run.network)
    assert not network.training
    assert description["step"] == 8
    assert description["config"] == as_plain(run.config)
    assert description["version"]
    json.dumps(description)
    best, found = read_network(tmp_path / "best.safetensors")
    assert found["validation"]["loss"] == run.counters.best
    assert same_weights(best, network) == (found["step"] == 8)


def test_weights_of_another_architecture_are_refused(tmp_path):
    trainer(tmp_path).run()
    sizes = {**SETTINGS["network"]["sizes"], "encoder": [4, 4]}
    wanted = settings(network={"name": "sitreg", "sizes": sizes}).network
    with pytest.raises(FileFormatError, match="sizes"):
        read_network(tmp_path / "last.safetensors", wanted=wanted)
    with pytest.raises(FileFormatError, match="state of a training run"):
        read_network(tmp_path / "state.safetensors")
    stored = read_checkpoint(tmp_path / "last.safetensors")
    with pytest.raises(FileFormatError, match="name is sitreg"):
        check_network(stored, {"name": "voxelmorph", "sizes": {}}, "file")


@pytest.mark.parametrize("kind", [torch.optim.Adam, torch.optim.AdamW, torch.optim.SGD])
def test_an_optimiser_goes_on_where_it_was(tmp_path, kind):
    def steps(weight, optimiser, count):
        for _ in range(count):
            optimiser.zero_grad()
            (weight**4).sum().backward()
            optimiser.step()

    options = {"momentum": 0.9} if kind is torch.optim.SGD else {}
    straight = torch.tensor([1.0, -2.0], requires_grad=True)
    steps(straight, kind([straight], 0.01, **options), 6)
    first = torch.tensor([1.0, -2.0], requires_grad=True)
    optimiser = kind([first], 0.01, **options)
    steps(first, optimiser, 3)
    tensors, rest = optimiser_tensors(optimiser)
    write_checkpoint(tmp_path / "x", tensors, {"rest": rest})
    stored = read_checkpoint(tmp_path / "x")
    second = first.detach().clone().requires_grad_()
    other = kind([second], 0.5, **options)
    load_optimiser(other, stored.tensors, stored.description["rest"])
    steps(second, other, 3)
    assert torch.equal(second, straight)


def test_an_optimiser_of_other_parameters_is_refused():
    weight = torch.zeros(2, requires_grad=True)
    tensors, rest = optimiser_tensors(torch.optim.Adam([weight]))
    with pytest.raises(FileFormatError, match="another network"):
        load_optimiser(torch.optim.Adam([weight, weight.clone().detach()]), tensors, rest)
