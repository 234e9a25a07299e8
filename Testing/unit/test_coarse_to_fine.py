"""The picture of a network's levels: each row is what the network had found by then."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from PIL import Image

from DiffeoRegLib.errors import SettingsError
from DiffeoRegLib.space.sample import warp
from DiffeoRegLib.volumes.files import write_volume
from Testing.benchmarks.coarse_to_fine import main, stages, up_to
from Testing.command import run
from Testing.fake_run import blobs, plane_grid
from Testing.sitreg_cases import moving_network, pictures
from Testing.train_command import CONFIG, written


@pytest.mark.parametrize("fast", [False, True])
def test_the_rows_go_from_the_images_to_what_the_network_returns(fast):
    network = moving_network(2, strength=0.3, fast=fast)
    moving, fixed = pictures((24, 28))
    found = stages(network, moving, fixed)
    assert len(found) == 1 + len(network.levels)
    assert torch.equal(found[0].moving, moving)
    assert torch.equal(found[0].fixed, fixed)
    assert not found[0].u_vox.any()
    with torch.no_grad():
        last = network(moving, fixed, mode="complete").halfway()
    assert torch.equal(found[-1].moving, warp(moving, last[0]))
    assert torch.equal(found[-1].fixed, warp(fixed, last[1]))
    steps = [float((b.u_vox - a.u_vox).abs().max()) for a, b in pairwise(found)]
    assert min(steps) > 0.01  # every level adds its share
    assert found[0].difference == pytest.approx(float((moving - fixed).square().mean().sqrt()))


def test_the_maps_of_a_level_are_those_of_a_network_whose_finer_heads_say_nothing():
    network = moving_network(2, strength=0.3)
    moving, fixed = pictures((24, 28))
    with torch.no_grad():
        early = up_to(network(moving, fixed, mode="complete"), 1).halfway()
        for head in network.pyramid.heads[:-1]:
            head.last.weight.zero_()
            if head.last.bias is not None:
                head.last.bias.zero_()
        alone = network(moving, fixed, mode="complete").halfway()
    for one, other in zip(early, alone, strict=True):
        assert torch.allclose(one, other, atol=1e-5)


def test_weights_and_a_pair_of_files_become_a_picture(tmp_path):
    """The weights of a training that has hardly begun."""
    data = {**CONFIG["data"], "validation": None, "options": {**CONFIG["data"]["options"], "shape": [16, 20]}}
    config = written(tmp_path / "a.yaml", data=data, best="loss")
    assert run("train", config, "-o", tmp_path / "run", "--quiet", "--stop-after", 0) == 0
    for name in ("fixed", "moving"):
        write_volume(blobs(plane_grid(), name), tmp_path / f"{name}.nii.gz")
    words = [tmp_path / "run" / "last.safetensors", tmp_path / "fixed.nii.gz", tmp_path / "moving.nii.gz"]
    main([*map(str, words), "-o", str(tmp_path / "levels.png")])
    with Image.open(tmp_path / "levels.png") as picture:
        width, height = picture.size
        colours = len(set(picture.convert("RGB").resize((200, 200)).tobytes()))
    assert width > 800
    assert height > 600
    assert colours > 50


def test_other_networks_have_no_levels_to_show(tmp_path, monkeypatch):
    monkeypatch.setattr(
        "Testing.benchmarks.coarse_to_fine.read_network", lambda path: (torch.nn.Flatten(), {})
    )
    with pytest.raises(SettingsError, match="no SITReg network"):
        main(["w", "a", "b", "-o", str(tmp_path / "x.png")])
