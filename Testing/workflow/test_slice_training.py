"""The 2D study from a folder of slices: three networks trained alike by the command, then measured."""

from __future__ import annotations

import json

import pytest
import torch

from DiffeoRegLib.errors import InputError
from DiffeoRegLib.networks.weights import read_network
from DiffeoRegLib.space.grid import Grid
from DiffeoRegLib.training.datasets import training_data
from DiffeoRegLib.volumes.files import write_volume
from DiffeoRegLib.volumes.volume import Volume
from Testing.benchmarks.tvf_slices import PAPER, configs, main, pairs_of
from Testing.command import run
from Testing.training_cases import blob

NAMES = [f"person_{n}" for n in "abcdef"]
HELD_OUT = ["person_b", "person_e"]
SHIPPED = {"transmorph": "transmorph", "tvf": "transmorph-tvf", "tvf-lddmm": "transmorph-tvf"}
CHANGES = [
    "network.sizes.embed=8", "network.sizes.heads=[1,2,4,4]", "data.options.shape=[32,36]", "steps=2",
    "validate_every=2", "checkpoint_every=2", "log_every=1", f"data.options.held_out={HELD_OUT}",
    "data.options.validation_pairs=2",
]  # fmt: skip


@pytest.fixture(scope="module")
def slices(tmp_path_factory):
    """Six slices with two spots, each somewhere else."""
    folder = tmp_path_factory.mktemp("slices")
    grid = Grid((32, 36), torch.eye(4, dtype=torch.float64).numpy())
    for number, name in enumerate(NAMES):
        places = (14.0 + number / 2, 16.0 - number / 3), (19.0, 22.0 + number / 2)
        image = sum(blob(place, (32, 36), width) for place, width in zip(places, (5, 3), strict=True))
        write_volume(Volume(image[0], grid, name), folder / f"{name}.nrrd")
    return folder


@pytest.fixture(scope="module")
def runs(slices, tmp_path_factory):
    """The shipped settings, small, two steps each."""
    folder = tmp_path_factory.mktemp("runs")
    changes = [word for change in CHANGES for word in ("--set", change)]
    for name in SHIPPED:
        words = [
            "train",
            f"{name}-slices",
            "--data",
            slices,
            "-o",
            folder / name,
            "--device",
            "cpu",
            *changes,
        ]
        assert run(*words, "--threads", "1", "--quiet") == 0
    return folder


def test_the_command_trains_the_networks_on_slices(runs):
    for name, network in SHIPPED.items():
        net, description = read_network(runs / name / "last.safetensors")
        assert description["network"]["name"] == network
        maps = net(torch.rand(1, 1, 32, 36), torch.rand(1, 1, 32, 36))
        assert maps.u12.shape == (1, 2, 32, 36)


def test_all_three_see_the_same_pairs_and_none_that_was_held_out(runs, slices):
    found = [training_data(config.data, seed=config.seed) for config in configs(runs, slices).values()]
    assert len(found) == 3
    first = found[0].training
    assert len(first) == 4 * 3
    for index in (0, 5, 11):
        items = [data.training[index] for data in found]
        assert not any(name in items[0]["names"] for name in HELD_OUT)
        for other in items[1:]:
            assert other["names"] == items[0]["names"]
            assert torch.equal(other["moving"], items[0]["moving"])
    assert not torch.equal(first[0]["fixed"], found[0].training.pairs[0]["fixed"])  # they are varied
    held_out = pairs_of(next(iter(configs(runs, slices).values())))
    assert [pair.name for pair in held_out] == ["person_b to person_e", "person_e to person_b"]


def test_the_study_measures_them(runs, slices, tmp_path, monkeypatch, capsys):
    out, figure = tmp_path / "rows.json", tmp_path / "figure.png"
    words = ["--data", slices, "--runs", runs, "--out", out, "--figure", figure, "--figure-pair", 1]
    monkeypatch.setattr("sys.argv", ["tvf_slices.py", *map(str, words)])
    assert main() == 0
    said = capsys.readouterr().out
    assert PAPER in said
    rows = json.loads(out.read_text(encoding="utf-8"))
    assert [row["method"] for row in rows] == [
        name for name in ("none", "affine", *SHIPPED) for _ in range(2)
    ]
    assert all(0 < row["ssim"] < 1 and 0 < row["fsim"] < 1 for row in rows)
    assert "folded_percent" not in rows[0]
    for row in rows[4:]:
        assert row["folded_percent"] == 0  # hardly trained, hardly moved
        assert row["inverse_max_vox"] < 1e-3
        assert row["ssim"] == pytest.approx(rows[0]["ssim"], abs=0.02)
    assert said.count("| 2 |") == 5
    assert figure.stat().st_size > 5000


def test_runs_that_were_not_trained_alike_are_not_compared(runs, slices, tmp_path):
    with pytest.raises(InputError, match="no run"):
        configs(tmp_path, slices)
    for name in ("tvf", "transmorph"):
        (tmp_path / name).mkdir()
        stored = json.loads((runs / name / "config.json").read_text(encoding="utf-8"))
        stored["steps"] += name == "tvf"
        (tmp_path / name / "config.json").write_text(json.dumps(stored), encoding="utf-8")
    with pytest.raises(InputError, match="differ in steps"):
        configs(tmp_path, slices)
