"""Geodesics for tests and benchmarks: toys in the unit box, and the equations in plain form."""

from __future__ import annotations

import torch
from torch.utils.checkpoint import checkpoint

from DiffeoRegLib.flows.regional import preweights_from_scores
from DiffeoRegLib.space.sample import identity_vox

SIGMAS = (0.04, 0.08, 0.16)
WEIGHTS = (0.2, 0.5, 0.3)
PREWEIGHT_SIGMA = 0.05


def unit_spacing(shape):
    """Grid steps of the box of length 1 along every axis."""
    return tuple(1 / (n - 1) for n in shape)


def places(shape, dtype):
    """Coordinates (1, d, *shape) in the unit box."""
    step = torch.tensor(unit_spacing(shape), dtype=dtype).view(1, -1, *[1] * len(shape))
    return identity_vox(shape, dtype) * step


def bump(shape, centre, width, dtype):
    """A Gaussian of height 1, (1, 1, *shape)."""
    offset = places(shape, dtype) - torch.tensor(centre, dtype=dtype).view(1, -1, *[1] * len(shape))
    return torch.exp(-0.5 * (offset / width).square().sum(1, keepdim=True))


def disc(shape, centre, radius, edge, dtype):
    """A soft disc or ball, 1 inside, (1, 1, *shape)."""
    offset = places(shape, dtype) - torch.tensor(centre, dtype=dtype).view(1, -1, *[1] * len(shape))
    return torch.sigmoid((radius - offset.square().sum(1, keepdim=True).sqrt()) / edge)


def push(metric_velocity, shape, centre, voxels, dtype):
    """A momentum along the second axis, with a little along the first, whose fastest speed is `voxels`."""
    direction = torch.tensor([0.25, 1.0, 0.1][: len(shape)], dtype=dtype).view(1, -1, *[1] * len(shape))
    second = tuple(c + 0.15 * (-1) ** a for a, c in enumerate(centre))
    momentum = bump(shape, centre, 0.08, dtype) * direction
    momentum = momentum - 0.3 * bump(shape, second, 0.06, dtype) * direction.flip(1)
    speed = metric_velocity(momentum).square().sum(1).sqrt().max()
    return momentum * (voxels / speed)


def varied_preweights(shape, centre, dtype):
    """Soft inside a ball, stiff outside."""
    inside = disc(shape, centre, 0.3, 0.03, dtype)
    soft = torch.tensor([0.4, 0.4, 0.2], dtype=dtype).log()
    stiff = torch.tensor([0.1, 0.3, 0.6], dtype=dtype).log()
    view = (1, -1, *[1] * len(shape))
    return preweights_from_scores(inside * soft.view(view) + (1 - inside) * stiff.view(view))


def drift(path):
    """Largest relative change of the energy along a path."""
    energies = path.energies()
    return max(abs(e / energies[0] - 1) for e in energies)


def lengths(u):
    """Lengths of the vectors of a field."""
    return u.square().sum(1).sqrt()


def _ghosts(f, axis, sign):
    n = f.shape[axis]
    return torch.cat([sign * f.narrow(axis, 0, 1), f, sign * f.narrow(axis, n - 1, 1)], axis)


def gradient(f, axis):
    """Central difference along a spatial axis, border repeated."""
    n, axis = f.shape[2 + axis], 2 + axis
    g = _ghosts(f, axis, 1.0)
    return 0.5 * (g.narrow(axis, 2, n) - g.narrow(axis, 0, n))


def divergence(f, axis):
    """Central difference, nothing flows through the wall."""
    n, axis = f.shape[2 + axis], 2 + axis
    g = _ghosts(f, axis, -1.0)
    return 0.5 * (g.narrow(axis, 2, n) - g.narrow(axis, 0, n))


def map_gradient(f, axis):
    """Central difference, going on linearly past the border."""
    n, axis = f.shape[2 + axis], 2 + axis
    first = 2 * f.narrow(axis, 0, 1) - f.narrow(axis, 1, 1)
    last = 2 * f.narrow(axis, n - 1, 1) - f.narrow(axis, n - 2, 1)
    g = torch.cat([first, f, last], axis)
    return 0.5 * (g.narrow(axis, 2, n) - g.narrow(axis, 0, n))


def plain_rate(metric, state, sources=None):
    """The right-hand side, term by term, with a graph; the kernels are the metric's own."""
    sources = metric.sources(state) if sources is None else sources
    m, u, v = state[0], state[-1], sources[0]
    dim = m.shape[1]
    dm = -sum(divergence(v[:, d : d + 1] * m, d) for d in range(dim))
    stretch = [sum(m[:, k : k + 1] * gradient(v[:, k : k + 1], a) for k in range(dim)) for a in range(dim)]
    dm = dm - torch.cat(stretch, 1)
    du = -v - sum(v[:, d : d + 1] * map_gradient(u, d) for d in range(dim))
    if len(state) == 2:
        return dm, du
    h = state[1]
    density = metric.density(m, sources[1])
    source = [(density * gradient(h, a)).sum(1, keepdim=True) for a in range(dim)]
    return dm + torch.cat(source, 1), -sum(v[:, d : d + 1] * gradient(h, d) for d in range(dim)), du


def _plain_step(metric, h, *state):
    def moved(rates, weight):
        return tuple(y + h * weight * k for y, k in zip(state, rates, strict=True))

    first = plain_rate(metric, state)
    second = plain_rate(metric, moved(first, 0.5))
    third = plain_rate(metric, moved(second, 0.5))
    fourth = plain_rate(metric, moved(third, 1.0))
    return tuple(
        y + h / 6 * (a + 2 * b + 2 * c + d)
        for y, a, b, c, d in zip(state, first, second, third, fourth, strict=True)
    )


def plain_shoot(metric, start, steps, *, checkpoints=False):
    """`shoot` with rk4 by autograd."""
    state = (*start, torch.zeros_like(start[0]))
    for _ in range(steps):
        if checkpoints:
            state = checkpoint(_plain_step, metric, 1 / steps, *state, use_reentrant=False)
        else:
            state = _plain_step(metric, 1 / steps, *state)
    return state
