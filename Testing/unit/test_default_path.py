"""The race of the default path against ANTs: what runs, whose files are judged, what is told."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "benchmarks"))

import default_path
import peer_pair
import peers


@pytest.fixture
def pair(tmp_path: Path) -> peer_pair.Pair:
    return peer_pair.Pair("brain", "p", tmp_path / "fixed.nii.gz", tmp_path / "moving.nii.gz")


def test_each_program_is_started_with_its_defaults(
    pair: peer_pair.Pair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from DiffeoRegLib.cli.arguments import build_parser

    commands: list[list[str]] = []

    def played(command: list[str], *_: object, **how: object) -> peers.Ran:
        commands.append(command)
        assert how["threads"] == 2
        return peers.Ran(0, 9.0, 12.0, 800.0)

    monkeypatch.setattr(peers, "run_process", played)
    arguments = argparse.Namespace(peer_python="peer", threads=2, limit=10.0)
    row = default_path.turn("diffeoreg, no flags", pair, tmp_path / "a", arguments)
    assert (row["wall_seconds"], row["cpu_seconds"], row["peak_mb"]) == (9.0, 12.0, 800.0)
    read = build_parser().parse_args(commands[0][3:])
    assert (read.fixed, read.moving, read.threads) == (str(pair.fixed), str(pair.moving), 2)
    assert (read.init, read.preset, read.effort) == ("auto", "general", "balanced")  # nothing is helped along
    default_path.turn("ANTs SyN", pair, tmp_path / "b", arguments)
    assert commands[1][0] == "peer"
    assert commands[1][3:] == [str(pair.fixed), str(pair.moving), str(tmp_path / "b"), "SyN"]


def test_a_program_that_fails_is_told_with_its_last_words(
    pair: peer_pair.Pair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def played(_: object, log: Path, **__: object) -> peers.Ran:
        log.write_text("first\nno memory\n", encoding="utf-8")
        return peers.Ran(3, 1.0, 1.0, 1.0)

    monkeypatch.setattr(peers, "run_process", played)
    arguments = argparse.Namespace(peer_python="peer", threads=2, limit=10.0)
    with pytest.raises(RuntimeError, match="ANTs SyN ended with 3: no memory"):
        default_path.turn("ANTs SyN", pair, tmp_path / "b", arguments)


def test_the_last_file_acts_first(tmp_path: Path) -> None:
    (tmp_path / "forward.json").write_text(json.dumps(["warp.nii.gz", "affine.mat"]), encoding="utf-8")
    assert default_path.forward_of("ANTs SyN", tmp_path) == ["affine.mat", "warp.nii.gz"]
    assert default_path.forward_of("diffeoreg, no flags", tmp_path)[0].endswith("transform.h5")


def test_medians_are_told_with_every_turn() -> None:
    rows = [
        {"name": "ANTs SyN", "wall_seconds": wall, "cpu_seconds": 2 * wall, "peak_mb": 10.0 * wall,
         "dice": 0.5, "folded_whole_percent": 0.0}
        for wall in (30.0, 10.0, 20.0)
    ]  # fmt: skip
    last = default_path.summary(rows).splitlines()[-1]
    assert last == "| ANTs SyN | 0.5000 | 0.0000 | 20.0 (30.0, 10.0, 20.0) | 40.0 | 300 |"
