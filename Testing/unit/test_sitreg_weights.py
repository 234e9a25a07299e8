"""Published weights: both layouts give the numbers of the published order of operations, or an error."""

from __future__ import annotations

import pytest
import torch

from DiffeoRegLib.errors import FileFormatError
from DiffeoRegLib.networks.sitreg_options import SITRegOptions
from DiffeoRegLib.networks.sitreg_weights import import_published, read_published
from Testing.published_cases import LEVELS, Published


@torch.no_grad()
@pytest.mark.parametrize("dim", [2, 3])
@pytest.mark.parametrize(("recent", "head_groups"), [(False, 0), (True, 0), (True, 2)])
def test_imported_weights_compute_what_they_did(recent, dim, head_groups):
    published = Published(recent, dim, head_groups=head_groups)
    network = import_published(published.state, head_groups=head_groups)
    one, other = torch.rand(2, 1, 1, *[8] * dim)
    features = [published.features(image) for image in (one, other)]
    for mine, theirs in zip(network.pyramid.encoder(one), features[0], strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-5)
    for level, head in enumerate(network.pyramid.heads):
        z1, z2 = (of_image[level] for of_image in features)
        expected = published.controls(level, z1, z2), published.controls(level, z2, z1)
        torch.testing.assert_close(head(z1, z2), expected, rtol=1e-4, atol=1e-4)
    z1, z2 = (torch.rand(1, 8, *[1] * dim) for _ in range(2))
    expected = published.affine(z1, z2), published.affine(z2, z1)
    torch.testing.assert_close(network.pyramid.affine(z1, z2), expected, rtol=1e-4, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("recent", [False, True])
def test_a_checkpoint_file(recent, tmp_path):
    state = Published(recent, affine=False).state
    torch.save({"registration_network": state, "optimizer": {"state": {}}}, tmp_path / "published.pt")
    network = read_published(tmp_path / "published.pt", options=SITRegOptions(fast=True))
    assert not network.training
    assert network.options.fast
    assert network.config.order == ("conv-norm-act" if recent else "conv-act-norm")
    maps = network(*torch.rand(2, 1, 1, 12, 11, 13))
    assert bool(maps.u12.isfinite().all())


def test_files_that_are_no_checkpoint(tmp_path):
    whole = tmp_path / "whole.pt"
    torch.save({"registration_network": Published(True).state}, whole)
    (tmp_path / "cut.pt").write_bytes(whole.read_bytes()[:2000])
    (tmp_path / "text.pt").write_text("weights", encoding="utf-8")
    torch.save({"network": {}}, tmp_path / "other.pt")
    torch.save([1, 2], tmp_path / "list.pt")
    for name, sentence in (
        ("cut", "cannot be read"), ("text", "cannot be read"), ("none", "cannot be read"),
        ("other", "not a checkpoint"), ("list", "not a checkpoint"),
    ):  # fmt: skip
        with pytest.raises(FileFormatError, match=sentence):
            read_published(tmp_path / f"{name}.pt")


def altered(recent, change):
    state = dict(Published(recent).state)
    change(state)
    return state


@pytest.mark.parametrize("recent", [False, True])
def test_nothing_may_be_missing_left_over_or_altered(recent):
    last = f"{LEVELS}.1.{'final_convolution.conv' if recent else '_final_conv'}"
    down = f"_feature_extractor.downsampling_blocks.0.downsampling{'.conv' if recent else ''}"
    cases = {
        "lack 'extra": lambda s: s.pop(f"{last}.bias"),
        "which no SITReg network": lambda s: s.update({"extra.weight": torch.zeros(1)}),
        "SITReg network their other": lambda s: s.update({f"{down}.weight": torch.zeros(6, 4, 3, 3, 3)}),
        "not finite": lambda s: s.update({f"{last}.bias": torch.full((3,), float("nan"))}),
        "no convolution": lambda s: s.pop("_feature_extractor.initial_projection.weight"),
        "at 0 of 3 levels": lambda s: [s.pop(name) for name in list(s) if name.startswith(LEVELS)],
    }
    for sentence, change in cases.items():
        with pytest.raises(FileFormatError, match=sentence.replace("'extra", f"'{last}")):
            import_published(altered(recent, change))


def test_heads_of_2023_are_not_normalised():
    with pytest.raises(FileFormatError, match="heads of 2023"):
        import_published(Published(False).state, head_groups=2)


def test_other_constants_are_another_network():
    kernel = f"{LEVELS}.1._upsampler.upsampling_kernels.0"
    with pytest.raises(FileFormatError, match="upsampling_kernels"):
        import_published(altered(False, lambda s: s.update({kernel: s[kernel] * 1.01})))
    marker = "_image_coordinate_system._indicator"
    with pytest.raises(FileFormatError, match="_indicator"):
        import_published(altered(True, lambda s: s.update({marker: torch.zeros(3)})))
