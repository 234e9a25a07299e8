"""Windows of tokens: whole, kept apart where they must be, at any size; the transformer made of them."""

from __future__ import annotations

import itertools

import pytest
import torch

from DiffeoRegLib.errors import SettingsError, ShapeError, UnknownNameError
from DiffeoRegLib.networks.pyramid import parameter_count
from DiffeoRegLib.networks.swin import Attention, Swin, SwinConfig
from DiffeoRegLib.networks.transmorph import TransMorph, TransMorphConfig, TransMorphOptions, sizes_of
from DiffeoRegLib.networks.windows import resized_table, windows_of

CPU = torch.device("cpu")
GRIDS = [
    ((6, 8), (3, 4)), ((7, 8), (3, 4)), ((6, 9), (3, 4)), ((2, 9), (3, 4)), ((3, 4), (3, 4)),
    ((1, 1), (3, 4)),
    ((4, 4, 6), (2, 2, 3)), ((5, 4, 6), (2, 2, 3)), ((4, 5, 6), (2, 2, 3)), ((4, 4, 7), (2, 2, 3)),
    ((3, 5, 7), (2, 3, 4)), ((1, 5, 2), (2, 3, 4)),
]  # fmt: skip
SMALL = {"embed": 8, "depths": (2, 2), "heads": (2, 2), "window": (3, 4), "channels_in": 1, "mlp_ratio": 2}


def seen_by_rule(grid, window, shifted, shift_lone=False):
    """Which token sees which, from the rule per axis: one window after the roll, not across the seam."""
    per_axis = []
    for n, whole in zip(grid, window, strict=True):
        w = min(n, whole)
        shift = w // 2 if shifted and (n > w or (shift_lone and w == whole)) else 0
        full = -(-n // w) * w
        rolled = [(i - shift) % full for i in range(n)]
        label = [(p // w, p >= full - shift) for p in rolled]
        per_axis.append([[a == b for b in label] for a in label])
    tokens = list(itertools.product(*[range(n) for n in grid]))
    rows = [
        [all(axis[i][j] for axis, i, j in zip(per_axis, a, b, strict=True)) for b in tokens] for a in tokens
    ]
    return torch.tensor(rows)


def seen_by_windows(windows):
    """The same as the groups and masks say it."""
    tokens = len(windows.back)
    place = torch.full((len(windows.order),), -1)
    place[windows.back] = torch.arange(tokens)
    seen = torch.zeros(tokens, tokens, dtype=torch.bool)
    first = 0
    for count, mask in windows.groups:
        for _ in range(count):
            inside = place[first : first + windows.size]
            kept = (inside >= 0).nonzero().flatten()
            allowed = torch.ones(windows.size, windows.size) if mask is None else mask == 0
            seen[inside[kept][:, None], inside[kept]] = allowed[kept][:, kept].bool()
            first += windows.size
    return seen


@pytest.mark.parametrize(("grid", "window"), GRIDS)
@pytest.mark.parametrize("shifted", [False, True])
def test_windows_lose_no_token_and_keep_apart_what_is_no_neighbour(grid, window, shifted):
    windows = windows_of(grid, window, shifted, False, CPU)
    x = torch.rand(2, len(windows.back), 3)
    assert torch.equal(x[:, windows.order][:, windows.back], x)
    assert sum(count for count, _ in windows.groups) * windows.size == len(windows.order)
    assert torch.equal(seen_by_windows(windows), seen_by_rule(grid, window, shifted))


def test_a_lone_window_moves_only_if_asked():
    apart = windows_of((3, 4), (3, 4), True, True, CPU)
    assert torch.equal(seen_by_windows(apart), seen_by_rule((3, 4), (3, 4), True, True))
    assert not bool(seen_by_windows(apart).all())
    assert bool(seen_by_windows(windows_of((3, 4), (3, 4), True, False, CPU)).all())


def test_windows_of_one_size_are_made_once():
    assert windows_of((6, 8), (3, 4), True, False, CPU) is windows_of((6, 8), (3, 4), True, False, CPU)
    windows = windows_of((6, 8), (3, 4), False, False, CPU)
    assert [(count, mask) for count, mask in windows.groups] == [(4, None)]
    with pytest.raises(ShapeError, match="Windows of 2 axes"):
        windows_of((6, 8, 9), (3, 4), True, False, CPU)


def dense(attention, x, grid, window, seen):
    """The same attention over the whole grid at once, offsets looked up in the table one by one."""
    tokens = torch.tensor(list(itertools.product(*[range(n) for n in grid])))
    row = torch.zeros(len(tokens), len(tokens), dtype=torch.long)
    for axis, w in enumerate(window):
        offset = tokens[:, None, axis] - tokens[None, :, axis]
        row = row * (2 * w - 1) + (offset + w - 1).clamp(0, 2 * w - 2)
    heads, channels = attention.heads, x.shape[-1]
    q, k, v = attention.qkv(x).view(*x.shape[:2], 3, heads, -1).permute(2, 0, 3, 1, 4)
    scores = q @ k.transpose(-1, -2) / (channels // heads) ** 0.5 + attention.table[row].permute(2, 0, 1)
    weights = scores.masked_fill(~seen, float("-inf")).softmax(-1)
    return attention.proj((weights @ v).transpose(1, 2).reshape(x.shape))


@torch.no_grad()
@pytest.mark.parametrize(("grid", "window"), GRIDS)
@pytest.mark.parametrize("shifted", [False, True])
def test_attention_in_windows_is_attention_with_a_mask(grid, window, shifted):
    torch.manual_seed(0)
    attention = Attention(8, 2, window).double()
    attention.table.normal_()
    windows = windows_of(grid, window, shifted, False, CPU)
    x = torch.randn(2, len(windows.back), 8, dtype=torch.float64)
    expected = dense(attention, x, grid, window, seen_by_rule(grid, window, shifted))
    torch.testing.assert_close(attention(x, windows), expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(("grid", "window"), GRIDS)
@pytest.mark.parametrize("shifted", [False, True])
def test_gradients_of_attention_in_windows(grid, window, shifted):
    """With a gradient attention goes another way than without one, and reads its gradients back."""
    torch.manual_seed(0)
    attention = Attention(8, 2, window).double()
    with torch.no_grad():
        attention.table.normal_()
    windows = windows_of(grid, window, shifted, False, CPU)
    x = torch.randn(2, len(windows.back), 8, dtype=torch.float64, requires_grad=True)
    wanted = [x, *attention.parameters()]
    seen = seen_by_rule(grid, window, shifted)
    ways = [attention(x, windows), dense(attention, x, grid, window, seen)]
    back = torch.randn_like(x)
    torch.testing.assert_close(ways[0], ways[1], rtol=1e-10, atol=1e-12)
    found, expected = (torch.autograd.grad(way, wanted, back) for way in ways)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-11)
    with torch.no_grad():
        torch.testing.assert_close(attention(x, windows), ways[0].detach(), rtol=1e-10, atol=1e-12)


def test_nothing_at_all_passes_a_mask():
    torch.manual_seed(0)
    grid, window = (5, 6), (3, 4)
    attention = Attention(4, 1, window).double()
    windows = windows_of(grid, window, True, False, CPU)
    x = torch.randn(1, 30, 4, dtype=torch.float64, requires_grad=True)
    out = attention(x, windows)
    seen = seen_by_rule(grid, window, True)
    for token in (0, 7, 29):
        (grad,) = torch.autograd.grad(out[0, token].sum(), x, retain_graph=True)
        assert torch.equal(grad[0].abs().sum(1) > 0, seen[token])


def test_tables_for_other_windows():
    table = torch.randn(5 * 7, 2, generator=torch.Generator().manual_seed(0))
    assert torch.equal(resized_table(table, (3, 4), (3, 4)), table)
    wide = resized_table(table, (3, 4), (5, 6)).view(9, 11, 2)
    old = table.view(5, 7, 2)
    torch.testing.assert_close(wide[4, 5], old[2, 3])
    torch.testing.assert_close(wide[[0, -1]][:, [0, -1]], old[[0, -1]][:, [0, -1]])
    torch.testing.assert_close(wide[1, 5], (old[0, 3] + old[1, 3]) / 2)
    alone = resized_table(table, (3, 4), (1, 4)).view(1, 7, 2)
    torch.testing.assert_close(alone[0], old[2])
    torch.testing.assert_close(resized_table(alone.view(7, 2), (1, 4), (2, 4)).view(3, 7, 2)[1], old[2])
    with pytest.raises(ShapeError, match="35 rows"):
        resized_table(table, (3, 3), (5, 6))


@pytest.mark.parametrize(("shape", "window"), [((16, 24), (3, 4)), ((16, 8, 16), (2, 3, 2))])
def test_features_of_every_stage(shape, window):
    torch.manual_seed(0)
    network = Swin(SwinConfig(**{**SMALL, "window": window})).eval()
    features = network(torch.rand(2, 1, *shape))
    assert [tuple(f.shape) for f in features] == [
        (2, 8, *[n // 4 for n in shape]), (2, 16, *[n // 8 for n in shape]),
    ]  # fmt: skip
    for feature in features:  # normalised over the channels
        torch.testing.assert_close(feature.mean(1), torch.zeros_like(feature[:, 0]), rtol=0, atol=1e-5)


def test_blocks_are_left_out_in_training_only_and_the_mean_stays():
    torch.manual_seed(0)
    network = Swin(SwinConfig(**{**SMALL, "drop_path": 0.5}))
    block = network.stages[1][1]
    assert [b.drop_path for stage in network.stages for b in stage] == pytest.approx([0, 1 / 6, 1 / 3, 1 / 2])
    x, windows = torch.rand(1000, 4, 16), windows_of((2, 2), (3, 4), False, False, CPU)
    changes = (block.train()._kept(x) / x).flatten(1)
    assert torch.equal(changes.amin(1), changes.amax(1))
    assert sorted(set(changes[:, 0].tolist())) == [0.0, 2.0]
    assert float(changes.mean()) == pytest.approx(1, abs=0.1)
    with torch.no_grad():
        assert torch.equal(block.eval()(x, windows), block(x, windows))


def test_checkpoints_change_no_gradient():
    found = []
    image = torch.rand(1, 1, 16, 24, generator=torch.Generator().manual_seed(1))
    for checkpointing in (False, True):
        torch.manual_seed(0)
        network = Swin(SwinConfig(**SMALL), checkpointing).train()
        torch.manual_seed(1)
        sum(f.square().mean() for f in network(image)).backward()
        found.append([p.grad.clone() for p in network.parameters() if p.grad is not None])
    assert len(found[0]) == len(list(network.parameters()))
    torch.testing.assert_close(found[0], found[1])


def test_the_parameters_of_the_published_single_step_network():
    with torch.device("meta"):
        assert parameter_count(TransMorph(TransMorphConfig(**sizes_of("base")))) == 46_771_251


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_the_single_step_network_at_any_size(precision):
    torch.manual_seed(0)
    sizes = {"embed": 4, "depths": (1, 1, 1, 1), "heads": (1, 1, 1, 1), "window": (3, 3), "mlp_ratio": 2}
    network = TransMorph(TransMorphConfig(**sizes), TransMorphOptions(precision, checkpointing=True)).eval()
    one, other = torch.rand(2, 2, 1, 21, 18).unbind(0)
    maps = network(one, other)
    u_vox = maps.u12
    assert tuple(u_vox.shape) == (2, 2, 21, 18)
    with pytest.raises(SettingsError, match="one direction only"):
        _ = maps.u21
    assert u_vox.dtype == torch.float32
    assert 0 < float(u_vox.detach().abs().max()) < 0.01
    u_vox.square().sum().backward()
    assert float(network.backbone.swin.embed.weight.grad.abs().max()) > 0


def test_sizes_that_do_not_fit():
    cases = [
        ({"window": (3,)}, "2 or 3 sides"), ({"heads": (2, 2, 2)}, "its blocks and heads"),
        ({"heads": (3, 2)}, "8 channels do not split into 3"), ({"drop_path": 1.0}, r"share in \[0, 1\)"),
        ({"embed": 0}, "at least one channel"),
    ]  # fmt: skip
    for change, sentence in cases:
        with pytest.raises(SettingsError, match=sentence):
            SwinConfig(**{**SMALL, **change})
    for change, sentence in (
        ({"depths": (1, 1), "heads": (1, 1)}, "4 stages"),
        ({"channels_in": 3}, "two images"),
    ):
        with pytest.raises(SettingsError, match=sentence):
            TransMorphConfig(**{**sizes_of("tiny"), **change})
    with pytest.raises(UnknownNameError, match="size"):
        sizes_of("huge")
    with pytest.raises(SettingsError, match="2 or 3 dimensions"):
        sizes_of("tiny", 4)
    network = Swin(SwinConfig(**SMALL))
    with pytest.raises(ShapeError, match="takes"):
        network(torch.rand(1, 2, 16, 16))
    with pytest.raises(ShapeError, match="multiples of 8"):
        network(torch.rand(1, 1, 16, 18))
