"""Seconds of geodesic shooting beside plain forms, and its energy drift on a real size: run by hand.

    python Testing/benchmarks/shooting.py [--shape 80 96 80] [--steps 20] [--repeats 5] [--threads 1]

Process time over all threads, median of the repeats, the two forms in turn; float32.  Widths are those of the
unit box, .05 .1 .15 .2 as for brains and knees in the paper of RDMM.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from DiffeoRegLib.flows.momentum import MomentumMetric
from DiffeoRegLib.flows.regional import RegionalMetric
from DiffeoRegLib.flows.runge_kutta import State
from DiffeoRegLib.flows.shooting import Metric, Plan, shoot, trace
from DiffeoRegLib.space.field import compose, folded_percent
from DiffeoRegLib.space.fourier import GaussianKernels
from Testing.shooting_cases import disc, plain_rate, plain_shoot, push, unit_spacing

SIGMAS = (0.05, 0.1, 0.15, 0.2)
WEIGHTS = (0.1, 0.2, 0.3, 0.4)
PREWEIGHT_SIGMA = 0.05
CENTRE = (0.5, 0.4, 0.5)


def compared(first: Callable[[], object], second: Callable[[], object], repeats: int) -> tuple[float, float]:
    """Median seconds of two forms, run in turn after one unmeasured run each."""
    seconds: tuple[list[float], list[float]] = ([], [])
    for index in range(repeats + 1):
        for form, found in zip((first, second), seconds, strict=True):
            begin = time.process_time()
            form()
            if index:
                found.append(time.process_time() - begin)
    return statistics.median(seconds[0]), statistics.median(seconds[1])


def say(what: str, ours: float, plain: float) -> None:
    """One line of the table."""
    print(f"{what:42s} {1e3 * ours:9.1f} ms   plain {1e3 * plain:9.1f} ms   ratio {plain / ours:5.2f}")


def gradient_of(run: Callable[[State], State], start: State) -> tuple[Tensor, ...]:
    """Gradient of a sum of squares of the map."""
    leaves = tuple(part.detach().requires_grad_() for part in start)
    return torch.autograd.grad(run(leaves)[-1].square().sum(), leaves)


def by_autograd(metric: Metric, state: State) -> tuple[Tensor, ...]:
    """The adjoint of the plain form."""
    with torch.enable_grad():
        leaves = tuple(part.detach().requires_grad_() for part in state)
        return torch.autograd.grad(plain_rate(metric, leaves), leaves, state)


def cases(shape: Sequence[int], voxels: float) -> list[tuple[str, Metric, State]]:
    """LDDMM and RDMM with a motion of so many voxels."""
    spacing = unit_spacing(shape)
    lddmm = MomentumMetric(shape, spacing, SIGMAS, WEIGHTS)
    rdmm = RegionalMetric(shape, spacing, SIGMAS, PREWEIGHT_SIGMA)
    inside = disc(shape, CENTRE[: len(shape)], 0.3, 0.03, torch.float32)
    view = (1, -1, *[1] * len(shape))
    soft, stiff = (torch.tensor(row).view(view) for row in ((0.4, 0.3, 0.2, 0.1), WEIGHTS))
    h = (inside * soft + (1 - inside) * stiff).sqrt()

    def fastest(metric: Metric, starter: Callable[[Tensor], State]) -> State:
        return starter(
            push(lambda m: metric.sources(starter(m))[0], shape, CENTRE[: len(shape)], voxels, torch.float32)
        )

    return [
        ("LDDMM", lddmm, fastest(lddmm, lddmm.start)),
        ("RDMM", rdmm, fastest(rdmm, lambda m: rdmm.start(m, h))),
    ]


def kernels(shape: Sequence[int], repeats: int) -> None:
    """Both forms of every Gaussian, and of their sum."""
    spacing, x = unit_spacing(shape), torch.randn(1, len(shape), *shape)
    for sigmas in (*[(s,) for s in SIGMAS], SIGMAS):
        weights = [1 / len(sigmas)] * len(sigmas)
        forms = [GaussianKernels(shape, spacing, sigmas, form=f) for f in ("separable", "fourier")]
        ours, plain = compared(
            lambda f=forms[0], w=weights: f.mixed(x, w), lambda f=forms[1], w=weights: f.mixed(x, w), repeats
        )
        say(f"kernels {sigmas}, against padded FFT", ours, plain)


@torch.no_grad()
def right_hand_side(name: str, metric: Metric, start: State, repeats: int) -> None:
    """One evaluation, with the kernels and without."""
    state = (*start, torch.zeros_like(start[0]))
    sources = metric.sources(state)
    ours, plain = compared(
        lambda: metric.rate(state, metric.sources(state)), lambda: plain_rate(metric, state), repeats
    )
    say(f"{name} right-hand side", ours, plain)
    ours, plain = compared(
        lambda: metric.rate(state, sources), lambda: plain_rate(metric, state, sources), repeats
    )
    say(f"{name} without the velocity", ours, plain)
    ours, plain = compared(
        lambda: metric.adjoint(state, sources, state), lambda: by_autograd(metric, state), repeats
    )
    say(f"{name} adjoint, against graph and backward", ours, plain)


def gradients(name: str, metric: Metric, start: State, repeats: int) -> None:
    """Five steps there and back, against autograd with a checkpoint per step."""
    ours, plain = compared(
        lambda: gradient_of(lambda s: shoot(metric, s, Plan(5)), start),
        lambda: gradient_of(lambda s: plain_shoot(metric, s, 5, checkpoints=True), start),
        repeats,
    )
    say(f"{name} 5 steps, map and gradient", ours, plain)


def drift(name: str, metric: Metric, start: State, steps: int) -> None:
    """How well a whole geodesic keeps its energy, and whether phi undoes phi^-1."""
    path = trace(metric, start, Plan(steps))
    energies, end = path.energies(), path.at(1.0)
    worst = max(abs(e / energies[0] - 1) for e in energies)
    rest = compose(end.forward_vox, end.inverse_vox).square().sum(1).sqrt()
    print(
        f"{name} {steps} steps: energy drift {worst:.1e}, longest displacement "
        f"{float(end.inverse_vox.abs().max()):.1f} voxels, phi o phi^-1 off by {float(rest.mean()):.4f} "
        f"(at most {float(rest.max()):.3f}) voxels, folded {folded_percent(end.inverse_vox):.4f} %"
    )


def main() -> None:
    """Print everything."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shape", type=int, nargs="+", default=[80, 96, 80])
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--voxels", type=float, default=15.0)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    kernels(options.shape, options.repeats)
    for name, metric, start in cases(options.shape, options.voxels):
        right_hand_side(name, metric, start, options.repeats)
        drift(name, metric, start, options.steps)
    for name, metric, start in cases(options.shape, 8.0):
        gradients(name, metric, start, min(options.repeats, 3))


if __name__ == "__main__":
    main()
