"""Files of weights of small networks that several tests of SITReg share."""

from __future__ import annotations

import pytest

from Testing.halfway_cases import network_file


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("weights")


@pytest.fixture(scope="module")
def strong(folder):
    """Motion near the network's bound: several voxels."""
    return network_file(folder / "strong.safetensors")


@pytest.fixture(scope="module")
def weak(folder):
    return network_file(folder / "weak.safetensors", strength=1.0)


@pytest.fixture(scope="module")
def flat(folder):
    return network_file(folder / "flat.safetensors", dim=2)
