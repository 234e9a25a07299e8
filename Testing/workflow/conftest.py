"""Files of weights of small networks, and images, that several tests share."""

from __future__ import annotations

import pytest

from Testing import metaregnet_networks
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


@pytest.fixture(scope="module")
def changing(folder):
    """A MetaRegNet whose motion and change depend on the images."""
    path = folder / "changing.safetensors"
    return metaregnet_networks.network_file(path, metaregnet_networks.tiny(), [1.5, 1.5])


@pytest.fixture(scope="module")
def pictures():
    """A patient, an atlas, and marks on the patient."""
    return metaregnet_networks.pictures()
