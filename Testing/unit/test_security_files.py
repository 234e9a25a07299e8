"""Files from strangers: what they claim is not believed, and nothing outside their folder is read."""

from __future__ import annotations

import gzip
import json
import struct
import time
import zipfile
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
import torch

from DiffeoRegLib.errors import FileFormatError, SettingsError, WeightsError
from DiffeoRegLib.exchange import RAW, unpack
from DiffeoRegLib.networks.checkpoints import read_state
from DiffeoRegLib.networks.weights import read_network
from DiffeoRegLib.training.checkpoint import write_checkpoint
from DiffeoRegLib.training.reading import read_yaml
from DiffeoRegLib.volumes import claims
from DiffeoRegLib.volumes.files import read_volume
from DiffeoRegLib.volumes.frames import read_frames
from DiffeoRegLib.volumes.series_files import read_series
from DiffeoRegLib.volumes.transform_files import read_transform

MANY = (10_000, 10_000, 10_000)
NRRD = (
    "NRRD0004\ntype: float\ndimension: 3\nspace: left-posterior-superior\nsizes: {}\n"
    "space directions: (1,0,0) (0,1,0) (0,0,1)\nkinds: domain domain domain\nendian: little\n"
    "encoding: raw\nspace origin: (0,0,0)\n{}\n"
)
META = (
    "ObjectType = Image\nNDims = 3\nBinaryData = True\nBinaryDataByteOrderMSB = False\n"
    "CompressedData = False\nTransformMatrix = 1 0 0 0 1 0 0 0 1\nOffset = 0 0 0\nElementSpacing = 1 1 1\n"
    "DimSize = {}\nElementType = MET_FLOAT\nElementDataFile = {}\n"
)
SECRET = np.arange(1000, dtype=np.float32).tobytes()


def nifti_header(shape: tuple[int, ...]) -> bytes:
    header = nib.Nifti1Header()
    header.set_data_dtype(np.float32)
    header.set_data_shape(shape)
    header["magic"], header["vox_offset"] = b"n+1", 352
    header.set_sform(np.eye(4), 1)
    return bytes(header.binaryblock) + bytes(4)


def lying_file(folder: Path, name: str) -> Path:
    """A file of some hundred bytes whose header promises 10^12 voxels."""
    path, size = folder / name, " ".join(map(str, MANY))
    if name.endswith(".nii.gz"):
        path.write_bytes(gzip.compress(nifti_header(MANY) + bytes(100)))
    elif name.endswith(".nii"):
        path.write_bytes(nifti_header(MANY) + bytes(100))
    else:
        text = META.format(size, "LOCAL") if name.endswith(".mha") else NRRD.format(size, "")
        path.write_bytes(text.encode() + bytes(100))
    return path


# --- headers that promise too much -------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["v.nii", "v.nii.gz", "v.nrrd", "v.mha"])
@pytest.mark.parametrize("read", [read_volume, read_frames])
def test_a_promise_of_a_million_millions_is_refused_before_memory_is_taken(tmp_path, name, read, monkeypatch):
    monkeypatch.setattr(claims, "main_memory_bytes", lambda: None)  # the file alone must give it away
    path = lying_file(tmp_path, name)
    started = time.monotonic()
    with pytest.raises(FileFormatError, match="promises 1000000000000 voxels") as caught:
        read(path)
    assert time.monotonic() - started < 5
    assert str(caught.value).count(".") <= 4  # the path, and at most two sentences


def test_series_and_fields_are_not_believed_either(tmp_path, monkeypatch):
    monkeypatch.setattr(claims, "main_memory_bytes", lambda: None)
    (tmp_path / "s.nii.gz").write_bytes(gzip.compress(nifti_header((9000, 9000, 9000, 9)) + bytes(100)))
    with pytest.raises(FileFormatError, match="promises"):
        read_series(tmp_path / "s.nii.gz")
    with pytest.raises(FileFormatError, match="promises"):
        read_transform(lying_file(tmp_path, "field.nrrd"))


def test_what_is_packed_truly_and_too_large_for_the_memory_is_refused_before_it_is_unpacked(
    tmp_path, monkeypatch
):
    image = nib.Nifti1Image(np.zeros((100, 100, 100), np.int16), np.eye(4))
    nib.save(image, tmp_path / "bomb.nii.gz")
    sitk.WriteImage(sitk.Image([3000, 3000], sitk.sitkUInt8), str(tmp_path / "bomb.png"), True)
    sitk.WriteImage(sitk.Image([100, 100, 100], sitk.sitkInt16), str(tmp_path / "bomb.nrrd"), True)
    files = sorted(tmp_path.iterdir())
    assert max(path.stat().st_size for path in files) < 50_000
    for path in files:
        assert read_volume(path).grid.voxel_count >= 1_000_000
    monkeypatch.setattr(claims, "main_memory_bytes", lambda: 5_000_000)
    for path in files:
        with pytest.raises(FileFormatError, match="this computer has 5 MB of memory left"):
            read_volume(path)


def test_a_stream_without_end_is_not_followed(tmp_path):
    """GIPL files do not say where they end: only what the header promises is unpacked."""
    sitk.WriteImage(sitk.Image([6, 7, 8], sitk.sitkUInt8), str(tmp_path / "v.gipl"))
    whole = (tmp_path / "v.gipl").read_bytes()
    path = tmp_path / "w.gipl.gz"
    path.write_bytes(gzip.compress(whole, 1) + gzip.compress(bytes(1 << 24), 1) * 400)  # 6.7 GB
    started = time.process_time()
    assert read_volume(path).grid.shape == (8, 7, 6)
    assert time.process_time() - started < 2


# --- headers that name other files -------------------------------------------------------------------------


def detached(folder: Path, name: str, where: str) -> Path:
    folder.mkdir(exist_ok=True)
    text = (
        META.format("10 10 10", where)
        if name.endswith(".mhd")
        else NRRD.format("10 10 10", f"data file: {where}\n")
    )
    (folder / name).write_text(text, encoding="utf-8")
    return folder / name


@pytest.mark.parametrize("name", ["v.mhd", "v.nhdr", "v.nrrd"])
def test_voxels_beside_the_header_are_read(tmp_path, name):
    (tmp_path / "raw").mkdir()
    (tmp_path / "raw" / "voxels.raw").write_bytes(SECRET)
    assert float(read_volume(detached(tmp_path, name, "raw/voxels.raw")).data.max()) == 999


@pytest.mark.parametrize("name", ["v.mhd", "v.nhdr", "v.nrrd"])
@pytest.mark.parametrize(
    "where",
    ["../secret.raw", "raw/../../secret.raw", "{}/secret.raw", "C:\\secret.raw", "\\\\server\\secret.raw",
     "..\\secret.raw", "%s%s%n.raw 1 2 1", "secret%03d.raw 1 2 1", "-"],
)  # fmt: skip
def test_voxels_from_elsewhere_are_refused(tmp_path, name, where):
    (tmp_path / "secret.raw").write_bytes(SECRET)
    path = detached(tmp_path / "data", name, where.format(tmp_path) if "{}" in where else where)
    for read in (read_volume, read_frames, read_series, read_transform):
        with pytest.raises(FileFormatError, match=r"beside the header|no transform file|no series"):
            read(path)


@pytest.mark.parametrize("name", ["v.mhd", "v.nhdr"])
def test_every_file_of_a_list_is_looked_at(tmp_path, name):
    (tmp_path / "secret.raw").write_bytes(SECRET)
    path = detached(tmp_path / "data", name, "LIST\na.raw\n../secret.raw")
    with pytest.raises(FileFormatError, match=r"'\.\./secret\.raw', outside its own folder"):
        read_volume(path)


# --- settings, exchange files, checkpoints -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a: !!python/object/apply:os.system ['echo owned > owned']", "not YAML"),
        ("a: !!python/name:os.system", "not YAML"),
        ("a: &a [1]\nb: [*a, *a]", "references"),
        ("a: &a [*a]", "references"),
        ("a: " + "[" * 2000, "nested too deeply|not YAML"),
    ],
)
def test_settings_are_plain_values(tmp_path, text, words, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run.yaml").write_text(text, encoding="utf-8")
    with pytest.raises(SettingsError, match=words):
        read_yaml(tmp_path / "run.yaml")
    assert not (tmp_path / "owned").exists()


@pytest.mark.parametrize("kind", ["O", "|O", "V8", "S4", "U2", "M8[s]", "(1,)f4", "complex64"])
def test_an_exchange_file_holds_numbers_only(tmp_path, kind):

    def write(kind):
        (tmp_path / "a.raw").write_bytes(bytes(np.dtype(kind).itemsize))
        image = {RAW: "a.raw", "dtype": kind, "shape": [1], "world_from_voxel": [], "name": ""}
        (tmp_path / "job.json").write_text(json.dumps({"x": image}), encoding="utf-8")

    write("float32")
    assert unpack(tmp_path, "job")["x"].array.tolist() == [0.0]
    write(kind)
    with pytest.raises(FileFormatError, match="cannot be read"):
        unpack(tmp_path, "job")


class Harm:
    """Runs when it is unpickled."""

    def __reduce__(self):
        return open, ("owned", "w")


def test_a_checkpoint_holds_numbers_that_are_in_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "net.pth"
    torch.save({"net": {"a": torch.arange(300.0)}}, path)
    assert read_state(path, "net", "some").keys() == {"a"}
    packed = tmp_path / "packed.pth"
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as new:
        for name in old.namelist():
            new.writestr(name, old.read(name))
    with pytest.raises(FileFormatError, match="packed again"):
        read_state(packed, "net", "some")
    torch.save({"net": {"a": torch.zeros(1).expand(10**6, 10**6)}}, path)
    assert path.stat().st_size < 5000
    with pytest.raises(FileFormatError, match="more numbers than it holds"):
        read_state(path, "net", "some")
    torch.save({"net": {"a": torch.zeros(2)}, "more": Harm()}, path)
    with pytest.raises(FileFormatError, match="never loaded"):
        read_state(path, "net", "some")
    assert not (tmp_path / "owned").exists()


def test_weights_of_an_immense_network_are_refused_before_it_is_made(tmp_path):
    sizes = {"encoder": [1 << 20, 1 << 20], "heads": [4, 4], "dim": 3}
    path = tmp_path / "net.safetensors"
    description = {"kind": "weights", "network": {"name": "sitreg", "sizes": sizes}}
    write_checkpoint(path, {"a": torch.zeros(1)}, description)
    assert path.stat().st_size < 2000
    with pytest.raises(WeightsError, match="weights of another network"):
        read_network(path)


def test_a_seal_is_not_trusted_for_its_length(tmp_path):
    """The header of a safetensors file may claim to be longer than the file."""
    from DiffeoRegLib.sealed_files import keys_of

    path = tmp_path / "g.safetensors"
    path.write_bytes(struct.pack("<Q", 1 << 60) + b"{}")
    assert keys_of(path) == set()
