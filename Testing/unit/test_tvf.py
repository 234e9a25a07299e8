"""TransMorph-TVF: parameters, units, steps in one convolution or many, maps, training, published weights."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn import functional

from DiffeoRegLib.errors import FileFormatError, SettingsError, ShapeError, UnknownNameError
from DiffeoRegLib.flows.time_varying import full_resolution, integrate_steps
from DiffeoRegLib.losses.overlap import one_hot, soft_dice
from DiffeoRegLib.losses.published import published_lncc
from DiffeoRegLib.networks.pyramid import parameter_count
from DiffeoRegLib.networks.transmorph import enlarged, normalised, sizes_of
from DiffeoRegLib.networks.tvf import TimeVaryingMaps, TransMorphTVF, TVFConfig, TVFOptions, halved
from DiffeoRegLib.networks.tvf_weights import import_published_tvf, read_published_tvf, with_window
from DiffeoRegLib.space.field import compose
from DiffeoRegLib.space.filters import gaussian_smooth
from DiffeoRegLib.space.sample import warp
from DiffeoRegLib.training.config import LossConfig
from DiffeoRegLib.training.objective import Batch, Objective
from Testing.sitreg_cases import pictures
from Testing.tvf_cases import SHAPE, STEPS, WINDOW, PublishedTVF

SIZES = {
    "embed": 4, "depths": (1, 2, 1, 1), "heads": (1, 1, 2, 2), "window": (3, 3), "mlp_ratio": 2,
    "steps": 3, "head_channels": 4, "drop_path": 0.0,
}  # fmt: skip


def small(spread=0.0, seed=0, options=None, **changes):
    """A 2D network with random weights; spread: of the heads' weights, which decides how far images move."""
    torch.manual_seed(seed)
    network = TransMorphTVF(TVFConfig(**{**SIZES, **changes}), options)
    with torch.no_grad():
        for step in network.steps:
            if spread:
                step.head.weight.normal_(std=spread)
    return network.eval()


@pytest.mark.parametrize(
    ("size", "steps", "count"),
    [
        ("base", 8, 47_067_192),
        ("base", 12, 47_359_236),
        ("large", 8, 108_611_336),
        ("large", 12, 108_989_780),
    ],
)
def test_parameters_of_the_published_sizes(size, steps, count):
    with torch.device("meta"):
        assert parameter_count(TransMorphTVF(TVFConfig(**sizes_of(size), steps=steps))) == count


def test_our_sizes():
    with torch.device("meta"):
        counts = [
            parameter_count(TransMorphTVF(TVFConfig(**sizes_of(size, dim))))
            for dim in (2, 3)
            for size in ("tiny", "small")
        ]
    assert counts == [2_012_974, 7_862_092, 3_155_994, 12_038_556]


@pytest.mark.parametrize("order", ["paper", "residual"])
def test_heads_that_say_nothing_leave_the_image_as_it_is(order):
    network = small(order=order)
    with torch.no_grad():
        for step in network.steps:
            step.head.weight.zero_()
    one, other = pictures((21, 18), batch=2)
    maps = network(one, other)
    assert not bool(maps.u12.any())
    assert not bool(maps.u21.any())
    torch.testing.assert_close(warp(one, maps.u12), one, rtol=0, atol=1e-6)


@pytest.mark.parametrize("shape", [(45, 50, 61), (9, 33, 5)])
def test_any_size_in_three_dimensions(shape):
    network = small(window=(2, 3, 4), steps=2, depths=(1, 1, 1, 1))
    maps = network(*pictures(shape))
    assert tuple(maps.u12.shape) == (1, 3, *shape)
    assert [tuple(v.shape) for v in maps.velocities_vox] == [(1, 3, *[-(-n // 2) for n in shape])] * 2
    assert 0 < float(maps.u12.detach().abs().max()) < 1e-2


@torch.no_grad()
def test_one_convolution_for_all_steps_is_that_of_every_step():
    """The plain form: features enlarged and put beside the images in every step."""
    network = small(2.0).double()
    one, other = pictures((34, 27), dtype=torch.float64)
    maps = network(one, other)
    features = network.backbone(torch.cat([one, other], 1))
    halves = halved(torch.cat([one, other], 1), "paper")
    u_vox, moved = None, halves[:, :1]
    for step, velocity in zip(network.steps, maps.velocities_vox, strict=True):
        context = normalised(step.context(torch.cat([moved, halves[:, 1:]], 1)))
        both = torch.cat([enlarged(features, halves.shape[2:]), context], 1)
        plain = step.head(normalised(step.second(normalised(step.first(both)))))
        torch.testing.assert_close(velocity, plain, rtol=1e-9, atol=1e-9)
        u_vox = plain if u_vox is None else compose(plain, u_vox)
        moved = warp(halves[:, :1], u_vox)
    assert float(u_vox.abs().max()) > 0.3
    torch.testing.assert_close(maps.u12, full_resolution(u_vox, (34, 27)), rtol=1e-8, atol=1e-8)


def test_every_step_sees_what_the_steps_before_did():
    network, (one, other) = small(2.0), pictures((32, 32))
    before = network(one, other).velocities_vox
    with torch.no_grad():
        network.steps[0].head.bias += 1.0
    after = network(one, other).velocities_vox
    torch.testing.assert_close(after[0], before[0] + 1)
    assert float((after[1] - before[1]).detach().abs().max()) > 1e-3


def test_the_maps():
    maps = small(0.1)(*pictures((40, 44)))
    assert 0.5 < float(maps.u12.detach().abs().max()) < 8
    path = list(maps.path())
    assert len(path) == 3
    torch.testing.assert_close(path[-1], maps.u12)
    torch.testing.assert_close(maps.at(1.0), maps.u12)
    assert not bool(maps.at(0.0).any())
    torch.testing.assert_close(maps.at(1 / 3), path[0])
    torch.testing.assert_close(maps.u12, full_resolution(integrate_steps(maps.velocities_vox), (40, 44)))
    assert torch.equal(maps.deformable("21"), maps.u21)
    with pytest.raises(UnknownNameError, match="way"):
        maps.deformable("13")


def test_the_inverse_is_one():
    noise = torch.randn(3, 2, 25, 27, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    smooth = gaussian_smooth(noise, 3.0)
    maps = TimeVaryingMaps(tuple((smooth * (1.0 / smooth.abs().max())).split(1)), (50, 54))
    inside = (slice(None), slice(None), slice(8, -8), slice(8, -8))
    assert float(maps.u12[inside].abs().max()) > 1
    worst = {}
    for kind in ("global", "per-step", "negated"):
        gap = compose(maps.u12, maps.inverse(kind))[inside]
        worst[kind] = float(gap.norm(dim=1).max())
    assert worst["global"] < 2e-3
    assert worst["global"] < worst["per-step"] < worst["negated"]


def test_substeps_change_the_map_and_not_the_velocities():
    one, other = pictures((32, 36))
    maps = [small(0.1, options=TVFOptions(substeps=k))(one, other) for k in (1, 2, 16, 32)]
    for other_maps in maps[1:]:
        torch.testing.assert_close(other_maps.velocities_vox, maps[0].velocities_vox)
    gaps = [float((m.u12 - maps[3].u12).detach().abs().mean()) for m in maps]
    assert gaps[0] > 1.5 * gaps[1] > 6 * gaps[2] > 0


def test_precision_and_checkpoints():
    one, other = pictures((32, 32))
    plain, rounded = (
        small(1.0, options=TVFOptions(p))(one, other).u12.detach() for p in ("float32", "bfloat16")
    )
    assert rounded.dtype == torch.float32
    assert 0 < float((plain - rounded).abs().mean()) < 0.1 * float(plain.abs().mean())
    found = []
    for checkpointing in (False, True):
        network = small(0.3, options=TVFOptions(checkpointing=checkpointing), drop_path=0.2).train()
        torch.manual_seed(1)
        network(one, other).u12.square().mean().backward()
        found.append([p.grad for p in network.parameters()])
    torch.testing.assert_close(found[0], found[1])


def test_the_gradient_reaches_every_step_and_the_encoder():
    network, (one, other) = small(0.1).train(), pictures((40, 48))
    losses = [LossConfig("lncc-published", 1.0, {"window": 9}), LossConfig("gradient", 1.0)]
    maps = network(one, other)
    for velocity in maps.velocities_vox:
        velocity.retain_grad()
    loss, terms = Objective(losses, symmetric=True)(maps, Batch(one, other))
    assert set(terms) == {"lncc-published", "gradient"}
    loss.backward()
    for velocity in maps.velocities_vox:
        assert float(velocity.grad.abs().max()) > 0
    for name, parameter in network.named_parameters():
        assert bool(parameter.grad.isfinite().all()), name
        assert float(parameter.grad.abs().max()) > 0, name


def test_training_makes_images_alike():
    network = small(embed=8, seed=1).train()
    one = pictures((40, 40))[0]
    moving, fixed = one[:, :, 3:35, 4:36], one[:, :, 4:36, 3:35]
    objective = Objective([LossConfig("mse", 1.0), LossConfig("gradient", 0.01)], symmetric=False)
    optimiser = torch.optim.Adam(network.parameters(), 3e-3)
    found = []
    for _ in range(25):
        optimiser.zero_grad()
        loss = objective(network(moving, fixed), Batch(moving, fixed))[0]
        loss.backward()
        optimiser.step()
        found.append(float(loss.detach()))
    assert found[-1] < 0.5 * found[0]


def test_the_losses_of_the_paper_at_their_best():
    labels = torch.randint(0, 5, (1, 1, 9, 8, 7), generator=torch.Generator().manual_seed(0))
    maps = one_hot(labels, range(5))
    assert float(soft_dice(maps, maps)) == pytest.approx(0, abs=1e-6)
    texture = torch.rand(1, 1, 12, 12, 12, generator=torch.Generator().manual_seed(0))
    assert float(published_lncc(texture, texture, 9)) == pytest.approx(-1, abs=1e-4)


def test_pairs_that_do_not_fit():
    network = small()
    cases = [
        ("one shape", torch.rand(1, 1, 8, 9), torch.rand(1, 1, 8, 8)),
        ("takes images", *torch.rand(2, 1, 2, 8, 9)),
        ("takes images", *torch.rand(2, 1, 1, 8, 9, 9)),
        ("too small", *torch.rand(2, 1, 1, 3, 40)),
    ]
    for sentence, one, other in cases:
        with pytest.raises(ShapeError, match=sentence):
            network(one, other)
    with pytest.raises(SettingsError, match="1 to 32 velocity fields"):
        TVFConfig(**{**SIZES, "steps": 0})
    with pytest.raises(UnknownNameError, match="order of composition"):
        TVFConfig(**{**SIZES, "order": "reversed"})
    with pytest.raises(SettingsError, match="parts, not 0"):
        TVFOptions(substeps=0)
    with pytest.raises(UnknownNameError, match="precision"):
        TVFOptions("float16")


@pytest.fixture(scope="module")
def published():
    return PublishedTVF()


@torch.no_grad()
def test_published_weights_compute_what_they_did(published):
    network = import_published_tvf(published.state, window=WINDOW)
    assert not network.training
    assert (network.config.order, network.config.steps) == ("official", STEPS)
    one, other = pictures(SHAPE)
    maps = network(one, other)
    velocities, u_vox = published.velocities(one, other)
    for mine, theirs in zip(maps.velocities_vox, velocities, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-3, atol=1e-4)
    assert float(u_vox.abs().max()) > 0.3
    torch.testing.assert_close(maps.u12, u_vox, rtol=1e-3, atol=1e-3)


def test_a_published_file_may_hold_single_numpy_numbers(published, tmp_path):
    """As the authors' do: the learning rate of the optimiser."""
    content = {
        "epoch": 3, "best_dsc": 0.8, "state_dict": published.state,
        "optimizer": {"param_groups": [{"lr": np.round(1e-4 * np.power(0.5, 0.9), 8)}]},
    }  # fmt: skip
    torch.save(content, tmp_path / "dsc.pth.tar")
    network = read_published_tvf(tmp_path / "dsc.pth.tar", window=WINDOW, order="paper")
    assert network.config.order == "paper"


def test_files_that_are_no_checkpoint(published, tmp_path):
    (tmp_path / "text").write_text("weights", encoding="utf-8")
    torch.save({"network": {}}, tmp_path / "other")
    for name, sentence in (
        ("text", "cannot be read"),
        ("none", "cannot be read"),
        ("other", "not a checkpoint"),
    ):
        with pytest.raises(FileFormatError, match=sentence):
            read_published_tvf(tmp_path / name)


def test_published_weights_are_whole_or_refused(published):
    index = "transformer.layers.0.blocks.0.attn.relative_position_index"
    cases = {
        "lack 'cs.1.0.weight'": lambda s: s.pop("cs.1.0.weight"),
        "which no TransMorph-TVF": lambda s: s.update({"extra.weight": torch.zeros(1)}),
        "in the TransMorph-TVF network their": lambda s: s.update(
            {"up0.conv2.0.weight": torch.zeros(1, 1, 3, 3, 3)}
        ),
        "not finite": lambda s: s["reg_heads.0.0.bias"].fill_(float("nan")),
        "relative_position_index": lambda s: s.update({index: s[index] + 1}),
        "spatial_trans.grid": lambda s: s.update({"spatial_trans.grid": s["spatial_trans.grid"] + 0.5}),
        "no stages or no heads": lambda s: [s.pop(n) for n in list(s) if n.startswith("reg_heads")],
        "not of a TransMorph-TVF network: A TransMorph": lambda s: [
            s.pop(n) for n in list(s) if ".layers.3" in n
        ],
    }
    for sentence, change in cases.items():
        state = {name: value.clone() for name, value in published.state.items()}
        change(state)
        with pytest.raises(FileFormatError, match=sentence):
            import_published_tvf(state, window=WINDOW)
    with pytest.raises(FileFormatError, match=r"TransMorph-TVF network (with|their)"):
        import_published_tvf(published.state)
    with pytest.raises(FileFormatError, match="for 3 axes, the windows for 2"):
        import_published_tvf(published.state, window=(2, 2))


@torch.no_grad()
def test_weights_for_other_windows():
    """Interpolated tables of constant bias are the same tables; the network runs with them."""
    narrow, wide = small(1.0, window=(3, 3)), small(1.0, window=(5, 4), seed=5)
    wide.load_state_dict(with_window(narrow.state_dict(), (3, 3), (5, 4)))
    table = wide.backbone.swin.stages[0][0].attention.table.view(9, 7, -1)
    old = narrow.backbone.swin.stages[0][0].attention.table.view(5, 5, -1)
    torch.testing.assert_close(table[4, 3], old[2, 2])
    torch.testing.assert_close(table[0, 0], old[0, 0])
    fields = [network(*pictures((40, 44))).u12 for network in (narrow, wide)]
    assert functional.cosine_similarity(fields[0].flatten(), fields[1].flatten(), 0) > 0.5
