"""Sample Data: what is offered is what the repository ships."""

from __future__ import annotations

import hashlib
import re
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import slicer

from DiffeoRegPanel import samples as room
from DiffeoRegPanel.samples import HOMEPAGE, RAW, SAMPLES, SHIFT_MM, blob_pair, register_samples


class Recorder:
    """SampleDataLogic, remembering what was registered."""

    def __init__(self) -> None:
        self.calls: list[dict[str, Any]] = []

    def registerCustomSampleDataSource(
        self, category: str, sampleName: str, uris: list[str], fileNames: list[str], nodeNames: list[str],
        loadFileTypes: list[str], checksums: list[str],
    ) -> None:  # fmt: skip
        self.calls.append(dict(locals()))


@pytest.fixture
def calls() -> list[dict[str, Any]]:
    recorder = Recorder()
    register_samples(recorder)
    return recorder.calls


def test_the_check_sums_are_those_of_the_shipped_files(samples: Path) -> None:
    for sample in SAMPLES:
        for file in sample.files:
            assert hashlib.sha256((samples / file.path).read_bytes()).hexdigest() == file.sha256


def test_every_shipped_image_is_offered(samples: Path) -> None:
    shipped = {
        p.relative_to(samples).as_posix() for p in samples.rglob("*") if p.name.endswith((".gz", ".nrrd"))
    }
    assert {file.path for sample in SAMPLES for file in sample.files} == shipped


def test_addresses_lead_to_the_repository_s_files(calls: list[dict[str, Any]], samples: Path) -> None:
    for call in calls:
        for uri in call["uris"]:
            assert uri.startswith("https://raw.githubusercontent.com/")
            assert (samples / uri.removeprefix(RAW)).is_file()


def test_lists_belong_together(calls: list[dict[str, Any]]) -> None:
    assert [call["sampleName"] for call in calls] == ["DiffeoRegHippocampus", "DiffeoRegBrainSlices"]
    for call in calls:
        lengths = {len(call[k]) for k in ("uris", "fileNames", "nodeNames", "loadFileTypes", "checksums")}
        assert len(lengths) == 1
        assert all(re.fullmatch("SHA256:[0-9a-f]{64}", text) for text in call["checksums"])
        for uri, name in zip(call["uris"], call["fileNames"], strict=True):
            assert name.endswith(uri.rpartition("/")[2])


def test_no_two_files_share_a_name_in_the_cache(calls: list[dict[str, Any]]) -> None:
    names = [name for call in calls for name in call["fileNames"]]
    assert len(set(names)) == len(names)
    nodes = [name for call in calls for name in call["nodeNames"]]
    assert len(set(nodes)) == len(nodes)


def test_the_owner_is_the_one_of_the_extension(repository: Path) -> None:
    text = (repository / "CMakeLists.txt").read_text(encoding="utf-8")
    found = re.search(r'set\(EXTENSION_HOMEPAGE "([^"]+)"\)', text)
    assert found is not None
    assert found[1] == HOMEPAGE
    raw = re.search(r'EXTENSION_ICONURL "(https://raw\S+?/main/)', text)  # the same server and branch
    assert raw is not None
    assert f"{raw[1]}Resources/SampleData/" == RAW
    panel = "".join(path.read_text(encoding="utf-8") for path in (repository / "DiffeoReg").rglob("*.py"))
    named = set(re.findall(r"https://github\.com/\w+/\w+", panel))
    assert named == {HOMEPAGE}


def test_slicer_s_sample_data_is_used_when_none_is_given(monkeypatch: pytest.MonkeyPatch) -> None:
    recorder = Recorder()
    monkeypatch.setitem(sys.modules, "SampleData", SimpleNamespace(SampleDataLogic=recorder))
    register_samples()
    assert len(recorder.calls) == len(room.SAMPLES)


def test_the_blobs_of_the_self_test_are_one_shape_at_two_places(scene: Any) -> None:
    fixed, moving = blob_pair()
    arrays = [slicer.util.arrayFromVolume(node) for node in (fixed, moving)]
    assert not np.array_equal(*arrays)
    k, j, i = (int(s / step) for s, step in zip(SHIFT_MM, fixed.GetSpacing()[::-1], strict=True))
    assert np.array_equal(
        arrays[0][4:-4, 4:-4, 4:-4], np.roll(arrays[1], (-k, -j, -i), (0, 1, 2))[4:-4, 4:-4, 4:-4]
    )
    assert arrays[0].std() > 10
    assert {fixed.GetScene(), moving.GetScene()} == {scene}
