"""Random numbers that depend on a key only, not on what was drawn before: the base of exact resuming."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence

import torch
from torch import Tensor


def generator_for(*key: object) -> torch.Generator:
    """A CPU generator whose seed is a hash of the key, e.g. (seed, epoch, index); alike on every machine."""
    digest = hashlib.sha256("/".join(str(part) for part in key).encode("utf-8")).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:7], "little"))


def uniform(generator: torch.Generator, low: float, high: float, shape: Sequence[int]) -> Tensor:
    """Uniform numbers in [low, high), float32, on the generator's device."""
    return low + (high - low) * torch.rand(*shape, generator=generator, device=generator.device)


def number(generator: torch.Generator, low: float, high: float) -> float:
    """One uniform number in [low, high)."""
    return float(uniform(generator, low, high, (1,)))


def whole(generator: torch.Generator, low: int, high: int) -> int:
    """One whole number in low ... high, both included."""
    return int(torch.randint(low, high + 1, (1,), generator=generator, device=generator.device))


def normal(generator: torch.Generator, shape: Sequence[int]) -> Tensor:
    """Standard normal numbers, float32, on the generator's device."""
    return torch.randn(*shape, generator=generator, device=generator.device)


def log_uniform(generator: torch.Generator, factor: float, shape: Sequence[int]) -> Tensor:
    """Numbers between 1/factor and factor, evenly spread on a logarithmic scale."""
    return uniform(generator, -math.log(factor), math.log(factor), shape).exp()
