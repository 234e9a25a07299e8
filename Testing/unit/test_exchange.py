"""Volumes handed from one process to another come back as they were."""

from __future__ import annotations

import json

import numpy as np
import pytest

from DiffeoRegLib.errors import FileFormatError, OutputError
from DiffeoRegLib.exchange import RAW, Image, pack, unpack

MATRIX = np.array([[0.0, 0, 1.5, -3], [0, -2, 0, 4], [1, 0, 0, 5], [0, 0, 0, 1]])


@pytest.mark.parametrize("kind", ["u1", "<i2", ">i2", "<f4", ">f8", "?", "<u8"])
def test_voxels_of_every_type_come_back(tmp_path, kind):
    array = (np.arange(24).reshape(2, 3, 4) % 2).astype(kind)
    pack({"a": {"b": [Image(array, MATRIX, "T1 näher")]}}, tmp_path, "job")
    back = unpack(tmp_path, "job")["a"]["b"][0]
    assert back.array.dtype == np.dtype(kind)
    np.testing.assert_array_equal(back.array, array)
    np.testing.assert_array_equal(back.world_from_voxel, MATRIX)
    assert back.name == "T1 näher"


def test_views_that_are_not_contiguous_keep_their_order(tmp_path):
    array = np.arange(120, dtype=np.float32).reshape(2, 3, 4, 5)[::-1, :, ::2, :3]
    pack({"field": Image(array, MATRIX)}, tmp_path, "job")
    np.testing.assert_array_equal(unpack(tmp_path, "job")["field"].array, array)


def test_many_images_do_not_overwrite_each_other(tmp_path):
    images = [Image(np.full((1, 2, 3), k), MATRIX) for k in range(12)]
    pack({"images": images, "more": {"x": images[3]}}, tmp_path, "job")
    pack({"images": images[::-1]}, tmp_path, "result")
    back = unpack(tmp_path, "job")
    assert [int(image.array[0, 0, 0]) for image in back["images"]] == list(range(12))
    assert back["more"]["x"].array[0, 0, 0] == 3


def test_plain_values_come_back_as_json_has_them(tmp_path):
    pack({"n": np.float32(0.5), "t": (1, None), "m": np.eye(2), 3: True}, tmp_path, "job")
    assert unpack(tmp_path, "job") == {"n": 0.5, "t": [1, None], "m": [[1.0, 0.0], [0.0, 1.0]], "3": True}


def test_a_folder_that_is_not_there_is_said_in_a_sentence(tmp_path):
    with pytest.raises(OutputError, match="Free some space"):
        pack({"a": Image(np.zeros((2, 2, 2)), MATRIX)}, tmp_path / "none", "job")


def test_missing_and_damaged_files_are_format_errors(tmp_path):
    with pytest.raises(FileFormatError, match=r"job\.json"):
        unpack(tmp_path, "job")
    pack({"a": Image(np.zeros((2, 2, 2)), MATRIX)}, tmp_path, "job")
    (tmp_path / "job.0.raw").write_bytes(b"123")
    with pytest.raises(FileFormatError, match="holds"):
        unpack(tmp_path, "job")


def test_only_files_of_the_folder_are_read(tmp_path):
    (tmp_path / "secret").write_bytes(bytes(8))
    inner = tmp_path / "inner"
    inner.mkdir()
    entry = {RAW: "../secret", "dtype": "u1", "shape": [8], "world_from_voxel": MATRIX.tolist(), "name": ""}
    (inner / "job.json").write_text(json.dumps({"a": entry}), encoding="utf-8")
    with pytest.raises(FileFormatError):
        unpack(inner, "job")
