"""Walls: nothing moves at the border, the geodesic stays one, and its derivatives stay exact."""

from __future__ import annotations

import pytest
import torch

from DiffeoRegLib.errors import SettingsError
from DiffeoRegLib.flows.momentum import MomentumMetric
from DiffeoRegLib.flows.regional import RegionalMetric
from DiffeoRegLib.flows.shooting import Plan, energy, shoot, trace
from DiffeoRegLib.flows.walls import wall_mask
from DiffeoRegLib.methods.lddmm import LDDMM
from DiffeoRegLib.methods.rdmm import RDMM
from DiffeoRegLib.settings import Settings
from Testing.scenes import pair_of
from Testing.shooting_cases import (
    PREWEIGHT_SIGMA,
    SIGMAS,
    WEIGHTS,
    drift,
    lengths,
    plain_shoot,
    push,
    unit_spacing,
    varied_preweights,
)

D = torch.float64
CPU = torch.device("cpu")
AT_BORDER = (0.5, 0.08, 0.5)


def _start(
    kind, shape, voxels, *, walls, sigmas=SIGMAS, preweight_sigma=PREWEIGHT_SIGMA, make=None, **options
):
    """Metric and start of a push near the border."""
    spacing = unit_spacing(shape)
    h = varied_preweights(shape, AT_BORDER[: len(shape)], D)
    if kind == "lddmm":
        metric = (make or MomentumMetric)(shape, spacing, sigmas, WEIGHTS, dtype=D, walls=walls, **options)
        more = ()
    else:
        metric = (make or RegionalMetric)(
            shape, spacing, sigmas, preweight_sigma, dtype=D, walls=walls, **options
        )
        more = (h,)
    momentum = push(
        lambda m: metric.sources(metric.start(m, *more))[0], shape, AT_BORDER[: len(shape)], voxels, D
    )
    return metric, metric.start(momentum, *more)


@pytest.mark.parametrize("shape", [(40, 33), (21, 16, 26)])
def test_the_mask_is_a_smooth_box(shape):
    mask = wall_mask(shape, D, CPU)
    assert mask.shape == (1, 1, *shape)
    assert float(mask.max()) == pytest.approx(1, abs=1e-6)
    assert float(mask.min()) >= 0
    for axis, n in enumerate(shape):
        assert float((mask - mask.flip(2 + axis)).abs().max()) < 1e-14
        middle = [0, 0, *[m // 2 for m in shape]]
        middle[2 + axis] = slice(None)
        profile = mask[tuple(middle)]
        assert float(profile[0]) < 1e-3
        # The smoothed box passes one half between the last voxel outside and the first inside.
        assert float(profile[3]) < 0.25 < float(profile[4])
        assert bool((profile[: n // 2].diff() > -1e-12).all())


@pytest.mark.parametrize("kind", ["lddmm", "rdmm"])
def test_next_to_nothing_moves_at_the_border(kind):
    moved = []
    for walls in (True, False):
        metric, start = _start(kind, (48, 48), 6.0, walls=walls)
        end = trace(metric, start, Plan(10)).at(1.0)
        faces = [
            lengths(u).squeeze(0)[index]
            for u in (end.inverse_vox, end.forward_vox)
            for index in (0, -1, (slice(None), 0), (slice(None), -1))
        ]
        moved.append(max(float(face.max()) for face in faces))
        assert float(end.inverse_vox.abs().max()) > 3
    assert moved[0] < 0.05
    assert moved[1] > 1


@pytest.mark.parametrize("order", [2, 4])
@pytest.mark.parametrize("kind", ["lddmm", "rdmm"])
def test_energy_is_kept_to_the_error_of_the_steps(kind, order):
    metric, start = _start(kind, (96, 96), 17.0, walls=True, order=order)
    drifts = [drift(trace(metric, start, Plan(steps))) for steps in (20, 40)]
    assert drifts[0] < 5e-5
    assert drifts[1] < drifts[0] / 15


def test_a_mask_on_the_velocity_alone_loses_energy():
    class Published(MomentumMetric):
        """v = M K m."""

        def sources(self, state):
            free = MomentumMetric(self.stencil.shape, self.spacing, SIGMAS, WEIGHTS, dtype=D)
            return (free.sources(state)[0] * wall_mask(self.stencil.shape, D, CPU),)

    metric, start = _start("lddmm", (96, 96), 17.0, walls=True, make=Published)
    assert drift(trace(metric, start, Plan(40))) > 1e-2


@pytest.mark.parametrize("kind", ["lddmm", "rdmm"])
@pytest.mark.parametrize("shape", [(13, 12), (12, 12, 14)])
def test_map_and_gradient_are_those_of_the_plain_form(kind, shape):
    sizes = {"sigmas": (0.15, 0.2, 0.4), "preweight_sigma": 0.1}
    metric, start = _start(kind, shape, 1.5, walls=True, **sizes)
    results = []
    for run in (lambda s: shoot(metric, s, Plan(3, keep_bytes=0)), lambda s: plain_shoot(metric, s, 3)):
        leaves = tuple(part.clone().requires_grad_() for part in start)
        state = run(leaves)
        value = sum((k + 1) * part.square().sum() for k, part in enumerate(state))
        value = value + energy(metric, leaves).sum()
        results.append((*state, *torch.autograd.grad(value, leaves)))
    for ours, plain in zip(*results, strict=True):
        scale = float(plain.detach().abs().max().clamp(min=1))
        assert float((ours - plain).detach().abs().max()) < 1e-12 * scale


@pytest.mark.parametrize("walls", [False, True])
@pytest.mark.parametrize("method", [LDDMM, RDMM])
def test_methods_build_walls_when_the_settings_ask(method, walls):
    blank = torch.zeros(1, 1, 40, 44)
    settings = Settings(kernel_sigmas=(0.1, 0.2), extras={"walls": True} if walls else {})
    motion = method().predict(pair_of(blank, blank), settings, lambda _: None)
    assert motion.geodesics[0].metric.walls == walls


def test_a_grid_that_is_all_margin_is_refused():
    with pytest.raises(SettingsError, match=r"12 voxels per axis, not \(11, 30\)"):
        MomentumMetric((11, 30), (1.0, 1.0), (2.0,), (1.0,), walls=True)
