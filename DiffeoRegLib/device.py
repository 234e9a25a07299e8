"""Which processor to compute on, found by trying it, and how much memory it has left."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch.nn import functional

from DiffeoRegLib.errors import DeviceError, UnknownNameError
from DiffeoRegLib.main_memory import main_memory_bytes
from DiffeoRegLib.settings import DEVICES
from DiffeoRegLib.space.sample import sample

PROBE_TOLERANCE = 5e-3  # TF32 convolutions round at 1e-3; a broken kernel is wrong by 0.1 and more


@dataclass(frozen=True)
class DeviceChoice:
    """A device that has passed the probe.

    name: of the hardware.  why: one sentence.  notes: why better devices were passed over, one sentence each.
    """

    device: torch.device
    name: str
    why: str
    notes: tuple[str, ...] = ()


def choose_device(wanted: str = "auto") -> DeviceChoice:
    """The device to compute on: cuda, then mps, then cpu for `auto`, each by a real probe.

    Raises DeviceError when a device is asked for by name and does not work, UnknownNameError for other words.
    """
    kind = wanted.split(":")[0]
    if kind not in DEVICES:
        raise UnknownNameError("device", wanted, DEVICES)
    if wanted != "auto":
        problem = probe(wanted)
        if problem:
            raise DeviceError(f"Device '{wanted}' cannot be used: {problem} Use 'auto' to take what works.")
        return _choice(wanted, "It was asked for by name and passed the test computation.", ())
    notes: list[str] = []
    for candidate in ("cuda", "mps"):
        problem = probe(candidate)
        if not problem:
            why = f"The fastest device that passed the test computation is {candidate}."
            return _choice(candidate, why, notes)
        notes.append(f"{candidate} is not used: {problem}")
    return _choice("cpu", "No graphics processor passed the test computation, so the CPU is used.", notes)


def probe(name: str) -> str:
    """Empty when the device allocates, convolves and samples like the CPU; otherwise a sentence why not."""
    missing = _missing(name)
    if missing:
        return missing
    try:
        device = torch.device(name)
        pairs = zip(_work("cpu"), _work(device), strict=True)
        # torch's maximum hands on a NaN, Python's would drop it
        error = float(torch.stack([(expected - got.cpu()).abs().max() for expected, got in pairs]).max())
    except (RuntimeError, NotImplementedError, AssertionError, ValueError) as problem:
        return f"the test computation failed ({str(problem).strip().splitlines()[0]})."
    if not error <= PROBE_TOLERANCE:  # also true for NaN
        return f"the test computation differs from the CPU by {error:.2g}."
    return ""


def memory_bytes(device: torch.device | str = "cpu") -> int | None:
    """Bytes still free on a device; for cpu and mps the available main memory within container limits.

    None when the operating system does not say.
    """
    device = torch.device(device)
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    return main_memory_bytes()


def native_bfloat16(device: torch.device | str) -> bool:
    """True if a device multiplies bfloat16 in hardware: CUDA from 8.0, x86 with AVX512-BF16 or AMX."""
    device = torch.device(device)
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    if device.type != "cpu":
        return False
    abilities = [getattr(torch.cpu, name, None) for name in ("_is_avx512_bf16_supported",
                                                             "_is_amx_tile_supported")]  # fmt: skip
    return any(bool(ability()) for ability in abilities if ability is not None)


def set_threads(threads: int | None) -> int:
    """Use so many CPU threads (None: leave it to torch); returns how many are used."""
    if threads is not None:
        torch.set_num_threads(threads)
    return torch.get_num_threads()


def _choice(name: str, why: str, notes: list[str] | tuple[str, ...]) -> DeviceChoice:
    return DeviceChoice(torch.device(name), _hardware_name(name), why, tuple(notes))


def _missing(name: str) -> str:
    """Why a device cannot even be tried, or empty."""
    kind, _, index = name.partition(":")
    if index and not index.isdigit():
        return f"'{index}' is not a device number."
    if kind == "cuda":
        if not torch.cuda.is_available():
            built = torch.version.cuda is not None or getattr(torch.version, "hip", None) is not None
            return "no working CUDA device is present." if built else "this PyTorch is built without CUDA."
        if index and int(index) >= torch.cuda.device_count():
            return f"there are only {torch.cuda.device_count()} CUDA devices, counted from 0."
    if kind == "mps" and not torch.backends.mps.is_available():
        return "no Apple graphics processor is available to this PyTorch."
    if kind == "cpu" and index not in ("", "0"):
        return "there is only one cpu."
    return ""


def _work(device: torch.device | str) -> tuple[torch.Tensor, torch.Tensor]:
    """A small convolution and a small resampling in fp32, brought back from the device."""
    generator = torch.Generator().manual_seed(0)
    image = torch.rand(1, 2, 9, 10, 11, generator=generator).to(device)
    kernel = (torch.rand(2, 2, 3, 3, 3, generator=generator) / 54).to(device)
    position = (torch.rand(1, 3, 7, 8, 9, generator=generator) * 12 - 1).to(device)
    return functional.conv3d(image, kernel, padding=1), sample(image, position)


def _hardware_name(name: str) -> str:
    if name.startswith("cuda"):
        return torch.cuda.get_device_name(torch.device(name))
    return "Apple graphics processor" if name.startswith("mps") else cpu_name()


def cpu_name() -> str:
    """What the processor calls itself, or its architecture."""
    listing = Path("/proc/cpuinfo")
    if listing.is_file():
        for line in listing.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.lower().startswith("model name"):
                return line.partition(":")[2].strip()
    import platform

    return platform.processor() or platform.machine() or "CPU"
