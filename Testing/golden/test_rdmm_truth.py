"""What must hold of RDMM's flows, against scipy's solver on dense matrices and against the continuum."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.integrate import solve_ivp
from scipy.ndimage import gaussian_filter1d

from DiffeoRegLib.flows.exponential import exp
from DiffeoRegLib.flows.momentum import MomentumMetric
from DiffeoRegLib.flows.regional import RegionalMetric, preweights_from_regions, preweights_from_scores
from DiffeoRegLib.flows.runge_kutta import DOPRI5, RK4, visit
from DiffeoRegLib.flows.shooting import Plan, energy, shoot, trace
from DiffeoRegLib.losses.preweights import transport_energy
from DiffeoRegLib.losses.similarity import mk_lncc
from DiffeoRegLib.methods.lddmm import MomentumModel
from DiffeoRegLib.methods.vector_momentum import FIRST_STEP_VOX, StationaryModel
from DiffeoRegLib.space.field import compose
from DiffeoRegLib.space.sample import array_from_tensor, identity_vox, tensor_from_array, warp
from Testing.scenes import texture
from Testing.shooting_cases import (
    PREWEIGHT_SIGMA,
    SIGMAS,
    WEIGHTS,
    disc,
    lengths,
    push,
    unit_spacing,
    varied_preweights,
)

D = torch.float64
CENTRE = (0.5, 0.4)


class Literal:
    """The equations in units of the box, d = 2, every operator a dense matrix; for scipy."""

    def __init__(self, shape, sigmas, smoothing, order, walls):
        self.shape, self.walls = shape, np.ones(shape)
        steps = [1 / (n - 1) for n in shape]
        axes = list(zip(shape, steps, strict=True))
        self.kernels = [[self._gaussian(n, s, sigma) for n, s in axes] for sigma in sigmas]
        self.g = [gaussian_filter1d(np.eye(n), smoothing / s, 0, mode="reflect", truncate=9) for n, s in axes]
        even = [self._difference(n, order) for n in shape]
        self.d = [m / s for m, s in zip(even, steps, strict=True)]
        slopes = [m @ np.arange(len(m)) for m in even]
        # Order 2: the same as a ghost voxel that continues the map linearly.
        self.d_map = [m / slope[:, None] for m, slope in zip(self.d, slopes, strict=True)]
        if walls:
            for axis, n in enumerate(shape):
                box = np.zeros(n)
                box[4:-4] = 1
                smooth = gaussian_filter1d(box, 0.04 * (n - 1), mode="reflect", truncate=9) ** 2
                self.walls = self.walls * np.expand_dims(smooth, 1 - axis)

    @staticmethod
    def _gaussian(n, step, sigma):
        offsets = step * (np.arange(n)[:, None] - np.arange(n))
        return np.exp(-0.5 * (offsets / sigma) ** 2) * step / (sigma * np.sqrt(2 * np.pi))

    @staticmethod
    def _difference(n, order):
        """Central, mirrored at the faces of the border voxels."""
        matrix = np.zeros((n, n))
        for k, weight in enumerate({2: (0.5,), 4: (8 / 12, -1 / 12)}[order], 1):
            for row in range(n):
                for side in (1, -1):
                    column = row + side * k
                    column = -1 - column if column < 0 else 2 * n - 1 - column if column >= n else column
                    matrix[row, column] += side * weight
        return matrix

    @staticmethod
    def _along(matrix, f, axis):
        return matrix @ f if axis == 0 else f @ matrix.T

    def _both(self, matrices, f):
        return matrices[0] @ f @ matrices[1].T

    def velocity(self, m, h):
        w = [self._both(self.g, part) for part in h]
        masked = [self.walls * part for part in m]
        nu = [
            [self._both(kernel, weight * part) for part in masked]
            for kernel, weight in zip(self.kernels, w, strict=True)
        ]
        v = [self.walls * sum(w[i] * nu[i][a] for i in range(len(w))) for a in range(2)]
        return v, [self._both(self.g, sum(self.walls * m[a] * part[a] for a in range(2))) for part in nu]

    def rate(self, m, h, u):
        v, density = self.velocity(m, h)
        dm = []
        for j in range(2):
            flux = sum(self._along(-self.d[a].T, v[a] * m[j], a) for a in range(2))
            stretch = sum(m[k] * self._along(self.d[j], v[k], j) for k in range(2))
            source = sum(q * self._along(self.d[j], part, j) for q, part in zip(density, h, strict=True))
            dm.append(-flux - stretch + source)
        dh = [-sum(v[a] * self._along(self.d[a], part, a) for a in range(2)) for part in h]
        du = [-v[j] - sum(v[a] * self._along(self.d_map[a], u[j], a) for a in range(2)) for j in range(2)]
        return dm, dh, du

    def shoot(self, m, h):
        """Momentum, pre-weights and displacement at time 1."""
        cuts = np.cumsum([2, len(h)])

        def slope(_, y):
            parts = np.split(y.reshape(-1, *self.shape), cuts)
            return np.concatenate([np.ravel(r) for r in self.rate(*parts)])

        start = np.concatenate([np.ravel(m), np.ravel(h), np.zeros(2 * m[0].size)])
        end = solve_ivp(slope, (0, 1), start, "DOP853", rtol=1e-10, atol=1e-12).y[:, -1]
        return np.split(end.reshape(-1, *self.shape), cuts)


def regional_toy(shape, voxels=17.0, sigmas=SIGMAS, **options):
    """Metric, momentum, pre-weights of the toy: `voxels` at its fastest."""
    metric = RegionalMetric(shape, unit_spacing(shape), sigmas, PREWEIGHT_SIGMA, dtype=D, **options)
    h = varied_preweights(shape, CENTRE, D)
    momentum = push(lambda m: metric.sources(metric.start(m, h))[0], shape, CENTRE, voxels, D)
    return metric, momentum, h


@pytest.fixture(scope="module")
def toy():
    """96 x 96, 17 voxels, 20 steps."""
    metric, momentum, h = regional_toy((96, 96))
    return metric, momentum, h, trace(metric, metric.start(momentum, h), Plan(20))


@pytest.mark.parametrize("order", [2, 4])
@pytest.mark.parametrize(("walls", "constant"), [(False, False), (True, False), (False, True)])
def test_geodesics_are_those_of_scipy(order, walls, constant):
    shape, sigmas = (20, 17), (0.16, 0.25)
    scores = torch.tensor([0.3, 0.7], dtype=D).log().view(1, 2, 1, 1).expand(1, 2, *shape)
    if not constant:
        scores = scores + 2 * texture(shape, seed=5, sigma=2.0).to(D) * torch.tensor([1.0, -1.0]).view(
            1, 2, 1, 1
        )
    h = preweights_from_scores(scores)
    metric = RegionalMetric(shape, unit_spacing(shape), sigmas, 0.1, dtype=D, order=order, walls=walls)
    momentum = push(lambda m: metric.sources(metric.start(m, h))[0], shape, CENTRE, 3.0, D)
    literal = Literal(shape, sigmas, 0.1, order, walls)
    m, preweights, u = literal.shoot(array_from_tensor(momentum)[0], array_from_tensor(h)[0])
    size = torch.tensor([n - 1.0 for n in shape], dtype=D).view(1, 2, 1, 1)
    expected = [tensor_from_array(part)[None] for part in (m, preweights, u)]
    start = metric.start(momentum, h)
    ends = [shoot(metric, start, plan) for plan in (Plan(120), Plan(5, DOPRI5, tolerance=1e-9))]
    if constant:
        lddmm = MomentumMetric(
            shape, unit_spacing(shape), sigmas, (0.3, 0.7), dtype=D, order=order, walls=walls
        )
        end = shoot(lddmm, lddmm.start(momentum), Plan(120))
        ends.append((end[0], h, end[1]))
        v, _ = literal.velocity(array_from_tensor(momentum)[0], array_from_tensor(h)[0])
        total = 0.5 * float(
            sum((a * b).sum() for a, b in zip(v, array_from_tensor(momentum)[0], strict=True))
        )
        assert float(energy(lddmm, lddmm.start(momentum))) == pytest.approx(total / np.prod(shape), rel=1e-12)
    assert 1 < float((expected[2] * size).abs().max()) < 5
    for end in ends:
        assert float((end[2] - expected[2] * size).abs().max()) < 1e-7
        assert float((end[1] - expected[1]).abs().max()) < 1e-8
        assert float((metric.momentum_of(end) - expected[0]).norm() / expected[0].norm()) < 1e-7


@pytest.mark.parametrize("walls", [False, True])
def test_the_whole_kernel_is_a_symmetric_positive_matrix(walls):
    shape = (13, 12)
    n = 2 * 13 * 12
    units = torch.eye(n, dtype=D).view(n, 2, *shape)
    h = preweights_from_scores(torch.randn(1, 3, *shape, dtype=D)).expand(n, -1, -1, -1)
    sigmas = (0.14, 0.2, 0.5)
    for metric, more in (
        (RegionalMetric(shape, unit_spacing(shape), sigmas, 0.1, dtype=D, walls=walls), (h,)),
        (MomentumMetric(shape, unit_spacing(shape), sigmas, WEIGHTS, dtype=D, walls=walls), ()),
    ):
        matrix = metric.sources((units, *more))[0].reshape(n, n)
        assert float((matrix - matrix.T).abs().max()) < 1e-12 * float(matrix.abs().max())
        assert float(torch.linalg.eigvalsh(matrix).min()) > -1e-12 * float(matrix.abs().max())
        at_wall = metric.sources((torch.ones(1, 2, *shape, dtype=D), *[part[:1] for part in more]))[0]
        middle = float(at_wall[..., 6, 6].abs().max())
        assert (float(at_wall[..., 0, :].abs().max()) < 1e-3 * middle) == walls


@pytest.mark.parametrize("walls", [False, True])
def test_derivatives_of_whole_geodesics_are_exact(walls):
    shape, sigmas = (12, 12), (0.15, 0.2, 0.4)
    metric, momentum, h = regional_toy(shape, 3.0, sigmas, walls=walls)
    lddmm = MomentumMetric(shape, metric.spacing, sigmas, WEIGHTS, dtype=D, walls=walls)
    leaves = (momentum.requires_grad_(), (2 * h.log()).requires_grad_())

    def regional(m, scores):
        return shoot(metric, metric.start(m, preweights_from_scores(scores)), Plan(4, keep_bytes=0))

    def common(m):
        return shoot(lddmm, lddmm.start(m), Plan(4))

    assert torch.autograd.gradcheck(regional, leaves, rtol=1e-6, atol=1e-8, fast_mode=True)
    assert torch.autograd.gradcheck(common, leaves[:1], rtol=1e-6, atol=1e-8, fast_mode=True)


def test_single_precision_differs_by_the_papers_unit_from_lddmm_less_than_a_hundred_thousandth():
    shape, spacing = (96, 96), unit_spacing((96, 96))
    lddmm, rdmm = (
        MomentumMetric(shape, spacing, SIGMAS, WEIGHTS),
        RegionalMetric(shape, spacing, SIGMAS, PREWEIGHT_SIGMA),
    )
    momentum = push(lambda m: lddmm.sources(lddmm.start(m))[0], shape, CENTRE, 17.0, torch.float32)
    h = torch.tensor(WEIGHTS).sqrt().view(1, 3, 1, 1).expand(1, 3, *shape).contiguous()
    first = shoot(lddmm, lddmm.start(momentum), Plan(20))[-1]
    second = shoot(rdmm, rdmm.start(momentum, h), Plan(20))[-1]
    assert float((first - second).abs().max()) / 95 < 1e-5


def test_the_object_goes_with_its_momentum(toy):
    _, momentum, _, path = toy
    image = disc((96, 96), CENTRE, 0.12, 0.01, D)
    u = path.at(1.0).inverse_vox
    moved, along = warp(image, u), identity_vox((96, 96), D)[:, 1:]
    shift = float((moved * along).sum() / moved.sum() - (image * along).sum() / image.sum())
    pulled = float(-(moved * u[:, 1:]).sum() / moved.sum())
    assert float((momentum[:, 1:] * image).sum()) > 0
    assert 0.6 * pulled < shift < 1.1 * pulled
    assert pulled > 5


def test_phi_undoes_its_inverse_better_on_a_finer_grid(toy):
    errors = []
    for n in (48, 96):
        if n == 96:
            end = toy[3].at(1.0)
        else:
            metric, momentum, h = regional_toy((n, n), 17.0 * (n - 1) / 95)
            end = trace(metric, metric.start(momentum, h), Plan(20)).at(1.0)
        rest = lengths(compose(end.forward_vox, end.inverse_vox)) / (n - 1)
        errors.append((float(rest.max()), float(rest.mean())))
    assert errors[1][0] * 95 < 0.3
    assert errors[1][1] * 95 < 0.02
    assert errors[1][0] < errors[0][0] / 2
    assert errors[1][1] < errors[0][1] / 2


def test_images_and_preweights_are_carried_by_the_same_velocity_as_the_map(toy):
    """The image by numpy's differences, with the velocities of the stages."""
    metric, _, _, path = toy
    # An edge of scale 3 voxels: steeper ones show what these differences lose, not what the map does.
    image = disc((96, 96), CENTRE, 0.12, 0.03, D)
    carried = array_from_tensor(image[0, 0])
    for state, begin, end in zip(path.states, path.times, path.times[1:], strict=False):
        velocities = [array_from_tensor(s[0][0]) for s in visit(metric, state, end - begin, RK4).sources]
        slopes: list[np.ndarray] = []
        for share, v in zip((0, 0.5, 0.5, 1), velocities, strict=True):
            here = carried + share * (end - begin) * slopes[-1] if slopes else carried
            slopes.append(-sum(a * b for a, b in zip(v, np.gradient(here), strict=True)))
        total = slopes[0] + 2 * slopes[1] + 2 * slopes[2] + slopes[3]
        carried = carried + (end - begin) / 6 * total
    gap = (warp(image, path.at(1.0).inverse_vox)[0, 0] - tensor_from_array(carried)).abs()
    assert float(gap.mean()) < 2e-3
    assert float(gap.max()) < 0.1


def test_sharp_regions_are_carried_too():
    shape = (96, 96)
    regions = (disc(shape, CENTRE, 0.2, 0.001, D) > 0.5).long()
    metric = RegionalMetric(shape, unit_spacing(shape), SIGMAS, PREWEIGHT_SIGMA, dtype=D)
    h = preweights_from_regions(regions, [(0.0, 0.2, 0.8), (0.4, 0.4, 0.2)], metric.spacing, 0.02, dtype=D)
    momentum = push(lambda m: metric.sources(metric.start(m, h))[0], shape, CENTRE, 17.0, D)
    path = trace(metric, metric.start(momentum, h), Plan(20))
    end = path.at(1.0)
    assert float((end.state[1] - h).abs().mean()) > 0.01
    assert float((end.state[1] - warp(h, end.inverse_vox)).abs().mean()) < 2e-3
    energies = path.energies()
    assert max(abs(e / energies[0] - 1) for e in energies) < 5e-5


def test_the_stationary_velocity_begins_with_less_than_a_tenth_of_a_voxel():
    metric = MomentumMetric((96, 96), unit_spacing((96, 96)), SIGMAS, WEIGHTS, dtype=D)
    momentum = push(lambda m: metric.sources(metric.start(m))[0], (96, 96), CENTRE, 17.0, D)
    start = MomentumModel(metric, "rk4").start([momentum])
    v = metric.sources(start)[0]
    squarings = StationaryModel(metric, "rk4").steps(start)
    assert float(v.abs().max()) / 2**squarings <= FIRST_STEP_VOX == 0.1
    rest = lengths(compose(exp(v, squarings), exp(-v, squarings)))
    assert float(rest.max()) < 0.4
    assert float(rest.mean()) < 0.015


def test_transport_is_at_its_ends_only_for_one_kernel_alone():
    sigmas = (0.02, 0.04, 0.06, 0.08)
    h = preweights_from_scores(4 * torch.randn(1, 4, 6, 7, dtype=D))
    assert 0 < float(transport_energy(h, sigmas)) < 1
    for kernel, expected in ((3, 0.0), (0, 1.0)):
        alone = torch.zeros(1, 4, 6, 7, dtype=D)
        alone[:, kernel] = 1
        assert float(transport_energy(alone, sigmas)) == expected
        alone[0, kernel, 2, 3], alone[0, 1, 2, 3] = 0.99**0.5, 0.1
        assert 1e-5 < abs(float(transport_energy(alone, sigmas)) - expected) < 1e-3


@pytest.mark.parametrize("shape", [(40, 48, 44), (72, 80), (140, 132)])
@pytest.mark.parametrize("squared", [True, False])
def test_correlation_of_an_image_with_itself_and_with_another_contrast(shape, squared):
    image = texture(shape, seed=2, sigma=1.5).to(D)
    other = (image + 0.5 * texture(shape, seed=3, sigma=1.5).to(D)) / 1.5
    assert 0 <= float(mk_lncc(image, image, squared=squared)) < 1e-5
    value = float(mk_lncc(image, other, squared=squared))
    assert value > 0.05
    for a, b in ((0.3, 0.5), (2.0, -0.7), (1.0, 100.0)):
        assert abs(float(mk_lncc(image, a * other + b, squared=squared)) - value) < 1e-4
