"""VoxelMorph and its probabilistic form: units, inverses, draws, what training sees of them."""

from __future__ import annotations

import math

import pytest
import torch

from DiffeoRegLib.errors import SettingsError, ShapeError, UnknownNameError
from DiffeoRegLib.losses.regularity import diffusion
from DiffeoRegLib.losses.velocity_prior import graph_laplacian_kl
from DiffeoRegLib.networks.build import NetworkConfig, build_network
from DiffeoRegLib.networks.pyramid import parameter_count
from DiffeoRegLib.networks.voxelmorph import DisplacementMaps, VelocityMaps, VoxelMorphDiffOptions
from DiffeoRegLib.space.field import compose
from DiffeoRegLib.space.filters import gaussian_smooth
from DiffeoRegLib.training.config import LossConfig, config_from, read_config
from DiffeoRegLib.training.objective import Batch, Objective
from Testing.sitreg_cases import pictures
from Testing.training_cases import SETTINGS, Blobs, same_weights, trainer

SIZES = {"encoder": [4, 8], "decoder": [8, 8], "final": [4], "dim": 2}
KL = [{"name": "mse"}, {"name": "kl", "weight": 0.01, "options": {"smoothness": 5.0}}]


def small(name="voxelmorph-diff", precision="fp32", seed=0, **changes):
    """A 2D network with random weights."""
    torch.manual_seed(seed)
    sizes = {**SIZES, **({} if name.endswith("diff") else {"decoder": [8, 8, 8]})}
    return build_network(NetworkConfig(name, {**sizes, **changes}), precision)


def lively(network, spread=0.3):
    """The same with a head that moves images by some voxels."""
    head = network.mean if hasattr(network, "mean") else network.head
    with torch.no_grad():
        head.weight.normal_(std=spread, generator=torch.Generator().manual_seed(1))
    return network.eval()


def velocity_maps(velocity_vox, shape, stride=2):
    return VelocityMaps(velocity_vox, velocity_vox, torch.zeros_like(velocity_vox), shape, stride, 7)


def test_parameters_of_the_published_networks():
    """Their U-Nets (test_unet.py) and one convolution per head, from 16 channels to 3."""
    head = 27 * 16 * 3 + 3
    layers = [(2, 16), (16, 32), (32, 32), (32, 32), (32, 32), (64, 32), (64, 32), (48, 32)]
    shared = sum(27 * a * b + b for a, b in layers)
    diff = build_network(NetworkConfig("voxelmorph-diff"))
    assert parameter_count(diff) == shared + (27 * 32 * 16 + 16) + 2 * head == 266374
    plain = build_network(NetworkConfig("voxelmorph"))
    full = (27 * 34 * 32 + 32) + (27 * 32 * 16 + 16) + (27 * 16 * 16 + 16)
    assert parameter_count(plain) == shared + full + head == 301411


@pytest.mark.parametrize("shape", [(12, 14), (11, 13), (9, 10, 8)])
def test_a_constant_velocity_moves_by_twice_its_half_resolution_voxels(shape):
    dim = len(shape)
    step = torch.tensor([1.5, -0.5, 0.25][:dim], dtype=torch.float64).reshape(1, dim, *[1] * dim)
    maps = velocity_maps(step.expand(1, dim, *[-(-n // 2) for n in shape]), shape)
    assert tuple(maps.u12.shape) == (1, dim, *shape)
    torch.testing.assert_close(maps.u12, (2 * step).expand_as(maps.u12), rtol=1e-12, atol=0)
    torch.testing.assert_close(maps.u21, -maps.u12, rtol=1e-12, atol=0)


@pytest.mark.parametrize("shape", [(32, 40), (20, 24, 22)])
def test_the_two_ways_undo_each_other(shape):
    generator = torch.Generator().manual_seed(0)
    half = [n // 2 for n in shape]
    noise = torch.randn(1, len(shape), *half, dtype=torch.float64, generator=generator)
    smooth = gaussian_smooth(noise, 2.5)
    maps = velocity_maps(smooth * (2.5 / smooth.abs().max()), shape)
    inner = (slice(None), slice(None), *[slice(4, -4)] * len(shape))
    assert float(maps.u12[inner].abs().max()) > 1.5
    error = compose(maps.u12, maps.u21)[inner].abs()
    assert float(error.max()) < 0.1
    assert float(error.mean()) < 0.01


def displacement_of(bias, shape, **changes):
    """What a network that moves everything alike predicts, voxels of its head."""
    network = small("voxelmorph", dim=len(shape), **changes)
    with torch.no_grad():
        network.head.weight.zero_()
        network.head.bias.copy_(torch.tensor(bias))
    return network(*pictures(shape)).u12.detach()


@pytest.mark.parametrize("shape", [(21, 18), (11, 13), (9, 10, 8)])
def test_a_constant_displacement_counts_in_voxels_of_its_head(shape):
    """At full resolution as it is; a head on every second voxel moves twice as far."""
    dim = len(shape)
    step = torch.tensor([1.5, -0.5, 0.25][:dim]).reshape(1, dim, *[1] * dim)
    for stride, decoder in ((1, [8, 8, 8]), (2, [8, 8])):
        u_vox = displacement_of(step.flatten().tolist(), shape, decoder=decoder, stride=stride)
        assert tuple(u_vox.shape) == (1, dim, *shape)
        torch.testing.assert_close(u_vox, (stride * step).expand_as(u_vox))


def test_a_displacement_without_folds_has_its_inverse():
    noise = torch.randn(1, 2, 32, 36, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    smooth = gaussian_smooth(noise, 3.0)
    maps = DisplacementMaps(smooth * (3.0 / smooth.abs().max()))
    inner = (slice(None), slice(None), slice(4, -4), slice(4, -4))
    assert float(maps.u12[inner].abs().max()) > 1.0
    assert float(compose(maps.u12, maps.u21)[inner].abs().max()) < 2e-3
    assert torch.equal(maps.deformable("12"), maps.u12)
    assert torch.equal(maps.deformable("21"), maps.u21)
    with pytest.raises(UnknownNameError):
        maps.deformable("13")


@pytest.mark.parametrize("name", ["voxelmorph", "voxelmorph-diff"])
@pytest.mark.parametrize("shape", [(21, 18), (16, 9)])
def test_both_networks_start_from_next_to_no_motion_at_any_size(name, shape):
    maps = small(name).eval()(*pictures(shape, batch=2))
    assert tuple(maps.u12.shape) == (2, 2, *shape)
    assert 0 < float(maps.u12.detach().abs().max()) < 1e-3


def test_three_dimensions_and_half_precision():
    one, other = pictures((12, 10, 9))
    fields = [lively(small(precision=p, dim=3))(one, other).u12.detach() for p in ("fp32", "bf16")]
    assert all(u.dtype == torch.float32 for u in fields)
    assert float(fields[0].abs().max()) > 0.3
    assert 0 < float((fields[0] - fields[1]).abs().max()) < 0.05 * float(fields[0].abs().max())


@pytest.mark.parametrize("name", ["voxelmorph", "voxelmorph-diff"])
def test_both_images_are_seen_and_each_has_its_place(name):
    network = lively(small(name))
    one, other = pictures((16, 18))
    fields = [network(*pair).u12 for pair in ((one, other), (one, one), (other, other), (other, one))]
    for i, first in enumerate(fields):
        for second in fields[:i]:
            assert float((first - second).detach().abs().max()) > 1e-3


@pytest.mark.parametrize("name", ["voxelmorph", "voxelmorph-diff"])
def test_a_network_that_trains_on_one_pair_finds_its_shift(name):
    network = small(name, encoder=[8, 16, 16], decoder=[16] * (3 if name.endswith("diff") else 4)).train()
    texture = gaussian_smooth(torch.rand(1, 1, 44, 48, generator=torch.Generator().manual_seed(4)), 1.5)
    texture = (texture - texture.min()) / (texture.max() - texture.min())
    moving, fixed = texture[:, :, 2:34, 4:40], texture[:, :, 4:36, 3:39]  # moving(x + (2, -1)) = fixed(x)
    losses = [LossConfig("lncc", 1.0, {"window": 7}), LossConfig("gradient", 0.5)]
    if name.endswith("diff"):
        losses[1] = LossConfig("kl", 0.025)
    objective = Objective(losses, symmetric=name.endswith("diff"))
    optimiser = torch.optim.Adam(network.parameters(), 5e-3)
    for _ in range(100):
        optimiser.zero_grad()
        objective(network(moving, fixed), Batch(moving, fixed))[0].backward()
        optimiser.step()
    with torch.no_grad():
        u_vox = network.eval()(moving, fixed).u12[:, :, 6:-6, 6:-6]
    error = (u_vox - torch.tensor([2.0, -1.0]).reshape(1, 2, 1, 1)).abs()
    assert float(error.max()) < 0.5
    assert float(error.mean()) < 0.1


def test_training_draws_and_evaluation_does_not():
    network = lively(small())
    with torch.no_grad():
        network.log_variance.bias.fill_(-4.0)
    one, other = pictures((16, 18))
    still = [network(one, other) for _ in range(2)]
    assert torch.equal(still[0].u12, still[1].u12)
    assert torch.equal(still[0].velocity_vox, still[0].mean)
    network.train()
    drawn = []
    for seed in (5, 5, 6):
        torch.manual_seed(seed)
        drawn.append(network(one, other))
    assert torch.equal(drawn[0].u12, drawn[1].u12)
    assert not torch.equal(drawn[0].u12, drawn[2].u12)
    assert torch.equal(drawn[0].mean, still[0].mean)


def test_draws_have_the_predicted_mean_and_variance():
    network = small().train()
    with torch.no_grad():
        network.log_variance.bias.copy_(torch.tensor([-2.0, 0.0]))
    one, other = pictures((128, 128))
    torch.manual_seed(0)
    maps = network(one, other)
    noise = (maps.velocity_vox - maps.mean).detach()[0].flatten(1)
    assert noise.mean(1).tolist() == pytest.approx([0, 0], abs=0.05)
    assert noise.var(1).tolist() == pytest.approx([0.1353, 1.0], rel=0.08)


def test_the_divergence_counts_once_and_the_penalty_is_of_the_velocity():
    network = lively(small())
    one, other = pictures((16, 18))
    maps = network(one, other)
    losses = [LossConfig("mse"), LossConfig("kl", 0.5, {"smoothness": 3.0}), LossConfig("gradient", 2.0)]
    batch = Batch(one, other)
    for symmetric in (True, False):
        total, terms = Objective(losses, symmetric=symmetric)(maps, batch)
        assert terms["kl"] == graph_laplacian_kl(maps.mean, maps.log_variance, smoothness=3.0)
        expected = float(diffusion(maps.velocity_vox.detach(), (1.0, 1.0)) / 4)
        assert float(terms["gradient"]) == pytest.approx(expected, rel=1e-6)
        together = float(terms["mse"] + 0.5 * terms["kl"] + 2 * terms["gradient"])
        assert float(total.detach()) == pytest.approx(together, rel=1e-6)
    assert torch.equal(maps.deformable("21"), -maps.velocity_vox)
    with pytest.raises(UnknownNameError):
        maps.deformable("13")


def test_the_smoothness_of_the_divergence_is_a_multiple_of_the_gradient_penalty():
    """1/2 smoothness d^2 times: on a large grid means over voxels and over differences are alike."""
    generator = torch.Generator().manual_seed(0)
    mean = gaussian_smooth(torch.randn(1, 3, 30, 30, 30, generator=generator), 2.0)
    flat = torch.zeros_like(mean)
    smooth = graph_laplacian_kl(mean, flat, smoothness=10.0) - graph_laplacian_kl(flat, flat, smoothness=10.0)
    assert float(smooth) == pytest.approx(45 * float(diffusion(mean, (1.0,) * 3)) / 9, rel=0.05)


def test_maps_without_a_gaussian_are_refused():
    one, other = pictures((16, 18))
    maps = small("voxelmorph")(one, other)
    with pytest.raises(SettingsError, match="voxelmorph-diff"):
        Objective([LossConfig("mse"), LossConfig("kl")], symmetric=False)(maps, Batch(one, other))


def test_the_penalty_of_a_displacement_is_of_the_displacement():
    """One way, and both ways through its inverse."""
    network = lively(small("voxelmorph"), spread=0.02)
    one, other = pictures((16, 18))
    maps = network(one, other)
    losses = [LossConfig("mse"), LossConfig("gradient", 2.0)]
    roughness = [float(diffusion(u.detach(), (1.0, 1.0)) / 4) for u in (maps.u12, maps.u21)]
    assert roughness[0] > 1e-6
    assert abs(roughness[0] - roughness[1]) > 1e-3 * roughness[0]
    _, terms = Objective(losses, symmetric=False)(maps, Batch(one, other))
    assert float(terms["gradient"]) == pytest.approx(roughness[0], rel=1e-5)
    total, terms = Objective(losses)(maps, Batch(one, other))
    assert float(terms["gradient"]) == pytest.approx(sum(roughness) / 2, rel=1e-5)
    total.backward()
    assert float(network.head.weight.grad.abs().max()) > 0


def test_settings_that_do_not_fit_are_refused():
    with pytest.raises(SettingsError, match="Did you mean 'smoothness'"):
        Objective([LossConfig("kl", 1.0, {"smoothnes": 1.0})])
    with pytest.raises(SettingsError, match="no option of kl 'mean'"):
        Objective([LossConfig("kl", 1.0, {"mean": 1.0})])
    with pytest.raises(SettingsError, match="compares images or labels"):
        config_from({**SETTINGS, "losses": [{"name": "kl"}]})
    with pytest.raises(SettingsError, match="decoder has 3 levels"):
        small(decoder=[8, 8, 8, 8, 8], encoder=[4, 8, 8, 8], stride=4)
    with pytest.raises(SettingsError, match="not an option"):
        build_network(NetworkConfig("voxelmorph-diff", SIZES, {"precision": "bfloat16"}))
    with pytest.raises(SettingsError, match="squarings"):
        VoxelMorphDiffOptions(squarings=-1)
    with pytest.raises(SettingsError, match="finite"):
        VoxelMorphDiffOptions(first_log_variance=float("nan"))
    with pytest.raises(ShapeError, match="one shape"):
        small()(torch.rand(1, 1, 8, 8), torch.rand(1, 1, 8, 9))


@pytest.mark.filterwarnings("ignore::EncodingWarning:matplotlib")
def test_a_resumed_run_draws_what_one_without_a_break_draws(tmp_path):
    # A Gaussian wide enough for its draws to matter.
    network = {"name": "voxelmorph-diff", "sizes": SIZES, "options": {"first_log_variance": -2.0}}
    config = config_from({**SETTINGS, "network": network, "losses": KL, "best": "loss"})
    whole = trainer(tmp_path / "whole", config, validation=Blobs(2))
    start = [p.detach().clone() for p in whole.network.parameters()]
    assert whole.run().finished
    half = config_from({**SETTINGS, "network": network, "losses": KL, "best": "loss", "steps": 3})
    assert trainer(tmp_path / "parts", half, validation=Blobs(2)).run().step == 3
    torch.manual_seed(77)
    resumed = trainer(tmp_path / "parts", config, validation=Blobs(2))
    assert resumed.run(resume=True).finished
    assert same_weights(whole.network, resumed.network)
    after = list(whole.network.parameters())
    assert all(not torch.equal(a, b) for a, b in zip(start, after, strict=True))


def test_the_settings_that_come_with_it_build_the_published_network(repository):
    folder = repository / "DiffeoRegLib" / "Resources" / "Training"
    config = read_config(folder / "voxelmorph-diff-brain-t1.yaml")
    assert parameter_count(build_network(config.network, config.precision)) == 266374
    assert Objective(config.losses).names == ("lncc-squared", "kl")
    other = read_config(folder / "sitreg-brain-t1.yaml")
    assert config.data == other.data
    assert config.losses[0] == other.losses[0]
    plain = read_config(folder / "voxelmorph-brain-2d.yaml")
    assert parameter_count(build_network(plain.network, plain.precision)) == 100530
    masking = read_config(folder / "voxelmorph-cfm-brain-2d.yaml")
    assert (plain.data, plain.steps, plain.batch) == (masking.data, masking.steps, masking.batch)
    assert (plain.leave_out_pathology, masking.leave_out_pathology) == (False, True)
    # The first variance is the best one of the prior, up to its last digit.
    smoothness = config.losses[1].options["smoothness"]
    assert config.network.options["first_log_variance"] == pytest.approx(-math.log(6 * smoothness), abs=0.05)
