"""L-BFGS: how low and how fast beside scipy's, what it pays for, and what it does where there is no value."""

from __future__ import annotations

import gc
import itertools
import math
import weakref

import pytest
import torch
from scipy.optimize import minimize

from DiffeoRegLib.errors import InputError
from DiffeoRegLib.methods.lbfgs import LBFGS, Search, Watch, minimise
from DiffeoRegLib.space.sample import array_from_tensor, tensor_from_array

D = torch.float64


class Overflow(Exception):
    """A place without a value."""


def rosenbrock(parts):
    x = torch.cat([part.flatten() for part in parts])
    return (100 * (x[1:] - x[:-1].square()).square() + (1 - x[:-1]).square()).sum()


def quadratic(condition, n=40):
    weights = torch.logspace(0, math.log10(condition), n, dtype=D)

    def value(parts):
        return 0.5 * (weights * (parts[0] - 1).square()).sum()

    return value, weights


def by_scipy(objective, start, iterations):
    def both(x):
        leaf = tensor_from_array(x).requires_grad_()
        value = objective([leaf])
        return float(value.detach()), array_from_tensor(torch.autograd.grad(value, leaf)[0])

    options = {"maxcor": 5, "maxiter": iterations, "ftol": 1e-14, "gtol": 1e-8, "maxfun": 5000}
    return minimize(both, array_from_tensor(start), jac=True, method="L-BFGS-B", options=options)


@pytest.mark.parametrize(
    ("objective", "start", "iterations"),
    [
        (rosenbrock, torch.tensor([-1.2, 1.0], dtype=D), 200),
        (rosenbrock, torch.full((10,), -1.0, dtype=D), 300),
        (quadratic(1e2)[0], torch.zeros(40, dtype=D), 300),
    ],
)
def test_as_low_as_scipy_at_comparable_cost(objective, start, iterations):
    found = minimise(objective, [start], iterations, tolerance=1e-12)
    theirs = by_scipy(objective, start, iterations)
    assert found.converged
    assert found.value < 1e-12
    assert theirs.fun < 1e-10
    assert found.gradients == found.iterations + 1
    # Theirs ends at its own tolerance, before ours; scipy carries every evaluation back, we do not.
    assert found.evaluations < 2.5 * theirs.nfev
    assert torch.allclose(found.point[0], torch.ones_like(start), atol=1e-5)


def test_in_equal_iterations_an_ill_conditioned_quadratic_falls_as_far_as_with_scipy():
    objective, _ = quadratic(1e4)
    start = torch.zeros(40, dtype=D)
    found, theirs = minimise(objective, [start], 300, tolerance=0), by_scipy(objective, start, 300)
    assert found.value < 10 * theirs.fun
    assert found.evaluations < 1.2 * theirs.nfev


def test_the_inverse_as_preconditioner_needs_next_to_no_iterations():
    objective, weights = quadratic(1e4)
    found = minimise(
        objective, [torch.zeros(40, dtype=D)], 50, tolerance=1e-9, precondition=lambda g: [g[0] / weights]
    )
    assert found.value < 1e-12
    assert found.iterations <= 6


def test_several_tensors_are_one_vector():
    whole = minimise(rosenbrock, [torch.full((10,), -1.0, dtype=D)], 60)
    parts = minimise(rosenbrock, [torch.full(shape, -1.0, dtype=D) for shape in ((4,), (2, 2), (2,))], 60)
    assert parts.value == pytest.approx(whole.value, rel=1e-6)
    assert parts.evaluations == whole.evaluations
    assert [p.shape for p in parts.point] == [(4,), (2, 2), (2,)]


def test_rejected_trials_cost_no_gradient_and_values_are_never_computed_twice():
    class Counted(torch.autograd.Function):
        backwards = 0

        @staticmethod
        def forward(ctx, x):
            return x.clone()

        @staticmethod
        def backward(ctx, g):
            Counted.backwards += 1
            return g

    places = []

    def objective(parts):
        places.append(tuple(parts[0].tolist()))
        return rosenbrock([Counted.apply(parts[0])])

    found = minimise(objective, [torch.tensor([-1.2, 1.0], dtype=D)], 30)
    assert found.evaluations == len(places) == len(set(places))
    assert Counted.backwards == found.gradients == found.iterations + 1
    assert found.evaluations > found.gradients  # some trial was rejected, else nothing is shown


def test_every_iteration_lowers_the_value_and_leaves_the_start_alone():
    start = torch.full((6,), -1.5, dtype=D)
    kept = start.clone()
    descent = LBFGS(rosenbrock, [start])
    values = [descent.value]
    for _ in range(40):
        assert descent.step()
        values.append(descent.value)
        assert descent.value == float(rosenbrock(descent.point))
    assert all(b < a for a, b in itertools.pairwise(values))
    assert torch.equal(start, kept)


def test_the_same_start_takes_the_same_way():
    ways = [minimise(rosenbrock, [torch.full((10,), -1.0, dtype=D)], 25) for _ in range(2)]
    assert torch.equal(ways[0].point[0], ways[1].point[0])


@pytest.mark.parametrize("beyond", ["error", math.nan, math.inf, -math.inf])
def test_a_place_without_value_shortens_the_step(beyond):
    """Lowest at 1, no value from 0 down; the first step asked for goes far beyond."""
    beyond_the_wall = []

    def walled(parts):
        x = parts[0]
        if float(x.detach().min()) <= 0:
            beyond_the_wall.append(x.detach())
            if beyond == "error":
                raise Overflow
            return x.sum() * 0 + beyond
        return (x - x.log()).sum()

    start = torch.tensor([5.0, 3.0], dtype=D)
    descent = LBFGS(walled, [start], first_step=lambda _: 50.0, infinite=Overflow)
    for _ in range(20):
        descent.step()
    assert beyond_the_wall
    assert torch.allclose(descent.point[0], torch.ones(2, dtype=D), atol=1e-6)


def test_an_error_nobody_announced_passes_on():
    def broken(parts):
        if float(parts[0].detach().sum()) > 0:
            raise Overflow
        return rosenbrock(parts)

    with pytest.raises(Overflow):
        minimise(broken, [torch.tensor([-1.2, 1.0], dtype=D)], 50)


def test_a_start_without_value_is_an_error():
    with pytest.raises(InputError):
        LBFGS(lambda p: p[0].sum() * math.nan, [torch.ones(3)])

    def never(_):
        raise Overflow

    with pytest.raises(Overflow):
        LBFGS(never, [torch.ones(3)], infinite=Overflow)


def test_at_the_lowest_place_there_is_no_step():
    descent = LBFGS(rosenbrock, [torch.ones(4, dtype=D)])
    assert not descent.step()
    assert descent.evaluations == 1


def test_the_first_step_finds_its_scale():
    for size in (1e-6, 1e6):
        descent = LBFGS(lambda p, s=size: s * (p[0] - 3).square().sum(), [torch.zeros(5, dtype=D)])
        assert descent.step()
        assert float((descent.point[0] - 3).abs().max()) < 2.3  # a step of length 1 leaves 2.6
        assert descent.step()
        assert float((descent.point[0] - 3).abs().max()) < 0.3
        assert descent.evaluations < 25


def test_a_given_first_step_is_tried_first():
    lengths = []

    def scale(direction):
        lengths.append(float(direction[0].norm()))
        return 0.5 / lengths[-1]

    tried = []

    def objective(parts):
        tried.append(parts[0].detach().clone())
        return rosenbrock(parts)

    start = torch.tensor([-1.2, 1.0], dtype=D)
    LBFGS(objective, [start], first_step=scale).step()
    assert len(lengths) == 1
    assert float((tried[1] - start).norm()) == pytest.approx(0.5)


def test_memory_is_bounded():
    made = []

    class Kept(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            held = x.clone()
            made.append(weakref.ref(held))
            ctx.held = held
            return x.clone()

        @staticmethod
        def backward(ctx, g):
            return g

    descent = LBFGS(lambda p: rosenbrock([Kept.apply(p[0])]), [torch.full((6,), -1.0, dtype=D)], Search(3))
    most = 0
    for _ in range(20):
        descent.step()
        gc.collect()
        most = max(most, sum(ref() is not None for ref in made))
    assert len(descent._pairs) == 3
    assert most == 0  # no graph outlives its step


def test_a_changed_objective_is_evaluated_again():
    shift = [0.0]
    descent = LBFGS(lambda p: (p[0] - shift[0]).square().sum(), [torch.ones(3, dtype=D)])
    descent.step()
    shift[0] = 5.0
    descent.restart()
    assert descent.value == float((descent.point[0] - 5).square().sum())
    for _ in range(5):
        descent.step()
    assert torch.allclose(descent.point[0], torch.full((3,), 5.0, dtype=D), atol=1e-6)


def test_negative_curvature_is_not_remembered():
    descent = LBFGS(lambda p: -p[0].square().sum(), [torch.ones(3, dtype=D)])
    assert descent.step()
    assert not descent._pairs


def test_what_rounding_hides_is_not_searched_for():
    descent = LBFGS(lambda p: 1 + 1e-9 * (p[0] - 1).square().sum(), [torch.zeros(3)])
    assert not descent.step()
    assert descent.evaluations == 2


def test_the_start_is_copied():
    start = torch.zeros(3, dtype=D)
    descent = LBFGS(lambda p: (p[0] - 1).square().sum(), [start])
    start += 100
    descent.restart()
    assert descent.value == 3


def test_single_precision_stops_at_its_own_limit():
    found = minimise(rosenbrock, [torch.tensor([-1.2, 1.0])], 500, tolerance=0)
    assert found.converged
    assert found.value < 1e-8
    assert found.evaluations < 300


def test_a_watch_wants_several_idle_iterations_in_a_row():
    watch = Watch(0.1)
    assert [watch.idle(1.0, b) for b in (0.99, 0.95, 0.5, 0.99, 0.95, 0.92)] == [False] * 5 + [True]
