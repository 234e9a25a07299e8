"""The device chooser: real probes, reasons kept, memory within container limits."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from DiffeoRegLib import device, main_memory
from DiffeoRegLib.device import choose_device, memory_bytes, probe, set_threads
from DiffeoRegLib.errors import DeviceError, UnknownNameError


def test_cpu_passes_its_own_probe():
    choice = choose_device("cpu")
    assert choice.device == torch.device("cpu")
    assert choice.name
    assert "passed" in choice.why


def test_auto_falls_back_to_the_cpu_and_keeps_the_reasons(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    choice = choose_device()
    assert choice.device.type == "cpu"
    assert [note.split()[0] for note in choice.notes] == ["cuda", "mps"]


def test_auto_prefers_the_first_device_that_works(monkeypatch):
    monkeypatch.setattr(device, "probe", lambda name: "it is broken." if name == "cuda" else "")
    choice = choose_device()
    assert choice.device.type == "mps"
    assert choice.notes == ("cuda is not used: it is broken.",)


@pytest.mark.parametrize("name", ["cuda", "cuda:7", "mps", "cpu:1", "cuda:x"])
def test_a_named_device_that_does_not_work_is_an_error(monkeypatch, name):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    with pytest.raises(DeviceError, match=name):
        choose_device(name)


def test_an_unknown_device_lists_the_right_names():
    with pytest.raises(UnknownNameError, match="auto, cpu, cuda, mps"):
        choose_device("gpu")


def test_the_probe_finds_wrong_results(monkeypatch):
    honest = device._work

    def wrong(where):
        convolved, sampled = honest(where)
        return (convolved, sampled) if where == "cpu" else (convolved, sampled + 0.05)

    assert probe("cpu") == ""
    monkeypatch.setattr(device, "_work", wrong)
    assert "differs from the CPU" in probe("cpu:0")


def test_the_probe_finds_nan(monkeypatch):
    honest = device._work

    def broken(where):
        convolved, sampled = honest("cpu")
        return (convolved, sampled) if where == "cpu" else (convolved, sampled * torch.nan)

    monkeypatch.setattr(device, "_work", broken)
    assert "differs" in probe("cpu:0")


def test_the_probe_survives_a_crash_of_the_device(monkeypatch):
    honest = device._work

    def crash(where):
        if where == "cpu":
            return honest(where)
        raise RuntimeError("no kernel image is available\nlong explanation")

    monkeypatch.setattr(device, "_work", crash)
    assert probe("cpu:0") == "the test computation failed (no kernel image is available)."


def test_free_memory_is_plausible():
    free = memory_bytes("cpu")
    assert free is not None
    assert 2**24 < free < 2**50


def test_meminfo_is_read_in_kibibytes():
    assert main_memory.meminfo_bytes("MemTotal: 9 kB\nMemAvailable:    2048 kB\n") == 2048 * 1024
    assert main_memory.meminfo_bytes("MemTotal: 9 kB\n") is None


def _cgroup(folder: Path, limit: str, used: str, cache: int) -> Path:
    (folder / "memory.max").write_text(f"{limit}\n", encoding="utf-8")
    (folder / "memory.current").write_text(f"{used}\n", encoding="utf-8")
    (folder / "memory.stat").write_text(f"anon 5\ninactive_file {cache}\n", encoding="utf-8")
    return folder


def test_a_container_limit_counts_and_its_file_cache_does_not(tmp_path):
    assert main_memory.cgroup_bytes(_cgroup(tmp_path, "1000", "700", 100)) == 400


def test_no_container_limit(tmp_path):
    assert main_memory.cgroup_bytes(_cgroup(tmp_path, "max", "700", 0)) is None
    assert main_memory.cgroup_bytes(tmp_path / "nothing") is None


def test_an_old_container_limit(tmp_path):
    folder = tmp_path / "memory"
    folder.mkdir()
    (folder / "memory.usage_in_bytes").write_text("300\n", encoding="utf-8")
    (folder / "memory.limit_in_bytes").write_text("9223372036854771712\n", encoding="utf-8")
    assert main_memory.cgroup_bytes(tmp_path) is None
    (folder / "memory.limit_in_bytes").write_text("1000\n", encoding="utf-8")
    assert main_memory.cgroup_bytes(tmp_path) == 700


def test_the_smaller_of_machine_and_container_counts(monkeypatch):
    monkeypatch.setattr(main_memory, "system_bytes", lambda: 5000)
    monkeypatch.setattr(main_memory, "cgroup_bytes", lambda: 300)
    assert memory_bytes("cpu") == 300
    monkeypatch.setattr(main_memory, "cgroup_bytes", lambda: None)
    assert memory_bytes("cpu") == 5000


def test_threads_are_set():
    before = torch.get_num_threads()
    try:
        assert set_threads(2) == 2
        assert set_threads(None) == 2
    finally:
        torch.set_num_threads(before)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_working_cuda_device_is_chosen():
    choice = choose_device()
    assert choice.device.type == "cuda"
    assert memory_bytes(choice.device)
