"""What all tests share: one thread, the same random numbers every time, the shipped images."""

from __future__ import annotations

import os

# Before torch and numpy are loaded: several test processes share the cores.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MPLBACKEND", "Agg")

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, settings

REPOSITORY = Path(__file__).resolve().parents[1]

# No deadline: shared machines pause. Derandomised: a red build can be repeated.
settings.register_profile(
    "diffeoreg",
    deadline=None,
    derandomize=True,
    max_examples=40,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("diffeoreg")
torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def same_random_numbers() -> None:
    """Every test draws the same numbers, alone or among others."""
    torch.manual_seed(0)
    np.random.seed(0)  # noqa: NPY002 - third parties still draw from the global generator


@pytest.fixture(scope="session")
def repository() -> Path:
    """Root of the repository."""
    return REPOSITORY


@pytest.fixture(scope="session")
def samples(repository: Path) -> Path:
    """The shipped demonstration images (see Resources/SampleData/README.md)."""
    return repository / "Resources" / "SampleData"
