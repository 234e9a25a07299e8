"""CPU seconds of the filters beside their alternatives, and of the field operations: run by hand.

    python Testing/benchmarks/filters.py [--threads 2] [--shape 80 96 80] [--repeats 3]

Process time over all threads and wall time, best of the repeats; on a busy machine read process time.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

from DiffeoRegLib.flows.exponential import exp
from DiffeoRegLib.flows.inversion import invert, invert_with_report
from DiffeoRegLib.space.field import (
    compose,
    downsample_field,
    folded_percent,
    jacobian_determinant,
    minimum_cell_bound,
    upsample_field,
)
from DiffeoRegLib.space.filters import box_sum, gaussian_smooth


def box_by_running_sum(x: Tensor, radius: int) -> Tensor:
    """Differences of cumulative sums along each axis."""
    for axis in range(2, x.dim()):
        n = x.shape[axis]
        total = functional.pad(x.movedim(axis, -1), (radius + 1, radius)).cumsum(-1)
        x = (total[..., 2 * radius + 1 :] - total[..., :n]).movedim(-1, axis)
    return x.contiguous()


def box_by_shifts(x: Tensor, radius: int) -> Tensor:
    """Shifted additions along each axis."""
    for axis in range(2, x.dim()):
        out = x.clone()
        n = x.shape[axis]
        for shift in range(1, radius + 1):
            out.narrow(axis, 0, n - shift).add_(x.narrow(axis, shift, n - shift))
            out.narrow(axis, shift, n - shift).add_(x.narrow(axis, 0, n - shift))
        x = out
    return x


def box_by_convolution(x: Tensor, radius: int) -> Tensor:
    """One conv3d with a 1-D kernel per axis."""
    out = x.view(-1, 1, *x.shape[2:])
    for axis in range(3):
        size, pad = [1, 1, 1], [0, 0, 0]
        size[axis], pad[axis] = 2 * radius + 1, radius
        out = functional.conv3d(out, x.new_ones(1, 1, *size), padding=pad)
    return out.view_as(x)


def box_by_dense_matrix(x: Tensor, radius: int) -> Tensor:
    """The banded product without its blocks: n x n along each axis."""
    for axis in range(2, x.dim()):
        n = x.shape[axis]
        ones = x.new_ones(n, n).tril(radius).triu(-radius)
        x = torch.matmul(x.movedim(axis, -1), ones).movedim(-1, axis)
    return x.contiguous()


def measure(name: str, work: Callable[[], object], repeats: int) -> None:
    """Print the best process and wall time."""
    work()
    cpu, wall = [], []
    for _ in range(repeats):
        began, clock = time.process_time(), time.perf_counter()
        work()
        cpu.append(time.process_time() - began)
        wall.append(time.perf_counter() - clock)
    print(f"{name:32s} {min(cpu):9.4f} CPU s {min(wall):9.4f} s")


def main() -> None:
    """Measure everything once."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--shape", type=int, nargs=3, default=[80, 96, 80])
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    shape, repeats = tuple(options.shape), options.repeats
    v = gaussian_smooth(torch.randn(1, 3, *shape), 4.0)
    v *= 5 / v.abs().max()
    with torch.no_grad():
        reference = box_sum(v, 3)
        for work in (box_by_running_sum, box_by_shifts, box_by_convolution, box_by_dense_matrix):
            assert torch.allclose(work(v, 3), reference, atol=1e-2), work
            measure(work.__name__, lambda work=work: work(v, 3), repeats)
        measure("box_sum radius 3", lambda: box_sum(v, 3), repeats)
        measure("gaussian_smooth sigma 2", lambda: gaussian_smooth(v, 2.0), repeats)
        u = exp(v, 6)
        coarse = downsample_field(u, (2, 2, 2))
        measure("compose", lambda: compose(u, v), repeats)
        measure("exp 6 squarings", lambda: exp(v, 6), repeats)
        measure("exp 4 squarings, first_step 2", lambda: exp(v, 4, first_step=2), repeats)
        measure("downsample_field 2", lambda: downsample_field(u, (2, 2, 2)), repeats)
        measure("upsample_field 2", lambda: upsample_field(coarse, (2, 2, 2), shape), repeats)
        measure("jacobian_determinant central", lambda: jacobian_determinant(u), repeats)
        measure("folded_percent", lambda: folded_percent(u), repeats)
        measure("minimum_cell_bound", lambda: minimum_cell_bound(u), 1)
        for method in ("mixed", "newton"):
            measure(f"invert {method} 1e-3", lambda method=method: invert(u, method), repeats)
            print(f"    {invert_with_report(u, method)[1]}")


if __name__ == "__main__":
    main()
