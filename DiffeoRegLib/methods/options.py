"""What the methods with kernels can be told, and what they do by themselves, per kind of image."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from DiffeoRegLib.catalog import card
from DiffeoRegLib.errors import SettingsError, UnknownNameError
from DiffeoRegLib.flows.runge_kutta import scheme_named
from DiffeoRegLib.methods.lbfgs import Search
from DiffeoRegLib.methods.map_grid import Kernels
from DiffeoRegLib.settings import MOMENTUM_ITERATIONS, Settings
from DiffeoRegLib.space.stencils import COEFFICIENTS
from DiffeoRegLib.stiffness import REGIONAL_PREWEIGHT_SIGMA, REGIONAL_SIGMAS, REST, STIFFNESS

Kind = Literal["vsvf", "lddmm", "rdmm", "rdmm-regions"]


@dataclass(frozen=True)
class Options:
    """What LDDMM, RDMM and the stationary velocity in momentum form share.

    kinetic: kappa, of sum m.v (not half of it), per squared side of the box, or per mm^2 where kernels are
    in mm.  precondition: floor of the spectral preconditioner, 0 for none.  tolerance: three iterations that
    gain less than this share end a level.  integrator: rk4 or dopri5.  order: of the differences, 2 or 4.
    walls: next to nothing moves at the border of the grid.
    transport, common: weights of the two energies of optimised pre-weights.
    similarity: None = that of the preset, mk-lncc in place of a correlation.  iterations: per effort,
    matching MOMENTUM_LEVELS.  blocks: windows of lncc and lncc-squared are made of blocks of voxels, see
    `methods/blockwise.py`.  coarse_maps: coarse images are compared on a coarser map grid, too.
    begin: iterations of `svf` at the levels of the preset whose velocity the search starts from; None = rest.
    Raises SettingsError for negative weights, UnknownNameError for an unknown integrator.
    """

    kernels: Kernels = field(default_factory=Kernels)
    kinetic: float = 10.0
    transport: float = 0.1
    common: float = 10.0
    precondition: float = 0.1
    tolerance: float = 1e-4
    integrator: str = "rk4"
    order: int = 2
    walls: bool = False
    search: Search = field(default_factory=Search)
    similarity: str | None = None
    iterations: Mapping[str, tuple[int, ...]] = field(default_factory=lambda: MOMENTUM_ITERATIONS)
    blocks: bool = False
    coarse_maps: bool = False
    begin: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        numbers = (self.kinetic, self.transport, self.common, self.precondition, self.tolerance)
        if not min(numbers) >= 0:
            raise SettingsError(f"Weights and the tolerance must not be negative: {numbers}.")
        scheme_named(self.integrator)


REGIONAL_KERNELS = Kernels(REGIONAL_SIGMAS, STIFFNESS[REST], REGIONAL_PREWEIGHT_SIGMA, widened=True)
"""Where regions are given."""
_KERNELS = Kernels(widened=True)
_PAPER: Mapping[Kind, Options] = {
    "vsvf": Options(kernels=_KERNELS),
    "lddmm": Options(kernels=_KERNELS),
    "rdmm": Options(kernels=_KERNELS),
    "rdmm-regions": Options(kernels=REGIONAL_KERNELS),
}
KINETIC_PER_SQUARE_MM = 0.0015
"""Where a user gives kernels in mm."""
_BRAIN = Options(
    kernels=Kernels((4.0, 8.0, 16.0, 32.0), (1.0, 1.0, 1.0, 1.0), 8.0, "mm", widened=True),
    kinetic=KINETIC_PER_SQUARE_MM,
    precondition=0.005,
    similarity="lncc-squared",
    iterations={"fast": (8, 12, 0), "balanced": (8, 15, 15), "accurate": (15, 30, 30)},
    blocks=True,
    coarse_maps=True,
    # Gyri far from where they belong, as at the vertex, are found by those wide and cheap steps alone.
    begin=(30, 30, 0, 0),
)
RECIPES: Mapping[str, Mapping[Kind, Options]] = {
    "brain-mr": {
        "vsvf": replace(_BRAIN, kinetic=0.0005),
        "lddmm": _BRAIN,
        # An iteration costs two to three times that of LDDMM.
        "rdmm": replace(
            _BRAIN, iterations={"fast": (8, 10, 0), "balanced": (8, 12, 10), "accurate": (15, 30, 30)}
        ),
        # The velocity of `svf` knows nothing of regions: there the search starts at rest.
        "rdmm-regions": replace(
            _BRAIN,
            kernels=REGIONAL_KERNELS,
            kinetic=50.0,
            begin=None,
            iterations={"fast": (25, 12, 0), "balanced": (25, 15, 15), "accurate": (40, 30, 30)},
        ),
    }
}
"""Chosen on parts of the pairs 1001/1006 and 1009/1013 and on 1101/1110 of the data of results.md; other
presets do as the paper does."""
EXTRAS = ("transport", "common", "precondition", "tolerance", "order", "walls")
"""Options that are set by Settings.extras alone."""


def options_from(settings: Settings, kind: Kind = "lddmm", *, others: Collection[str] = ()) -> Options:
    """What the settings say; the rest is the method's own for the preset.

    Widths alone get weights in proportion to them, and a smoothing of pre-weights that is as wide as the
    method's own in shares of the narrowest kernel; in another unit than the method's, also the kinetic weight
    usual there.  others: further names in settings.extras that somebody else reads.
    Raises SettingsError like `Kernels` and `Options`, and for extras of a wrong type or name.
    """
    own = RECIPES.get(settings.preset, _PAPER)[kind]
    kernels, sigmas = own.kernels, settings.kernel_sigmas
    chosen: dict[str, Any] = {}
    given: dict[str, Any] = {}
    if sigmas is not None:
        relative = kernels.preweight_sigma / min(kernels.sigmas)
        given |= {"sigmas": sigmas, "weights": sigmas, "preweight_sigma": relative * min(sigmas)}
        given |= {"units": settings.kernel_units, "widened": False}
        if settings.kernel_units != kernels.units:
            box = settings.kernel_units == "box"
            chosen["kinetic"] = _PAPER[kind].kinetic if box else KINETIC_PER_SQUARE_MM
    if settings.kernel_weights is not None:
        given["weights"] = settings.kernel_weights
    if settings.preweight_sigma is not None:
        given["preweight_sigma"] = settings.preweight_sigma
    chosen["kernels"] = replace(kernels, **given)
    for name in ("kinetic", "integrator"):
        if getattr(settings, name) is not None:
            chosen[name] = getattr(settings, name)
    for name, value in settings.extras.items():
        if name in EXTRAS:
            chosen[name] = _extra(name, value)
        elif name not in others:
            raise UnknownNameError("extra setting of this method", str(name), [*EXTRAS, *others])
    return replace(own, **chosen)


def start_sources(options: Options, settings: Settings) -> list[str]:
    """The citation of what the search starts from, where that is not rest."""
    return [card("svf").citation] if options.begin and settings.steps == "auto" else []


def _extra(name: str, value: Any) -> Any:
    """The value, of the type that its option has; raises SettingsError."""
    wanted = {"order": int, "walls": bool}.get(name, float)
    if wanted is bool:
        fits = isinstance(value, bool)
    else:
        fits = isinstance(value, (int, wanted)) and not isinstance(value, bool)
    if not fits or (name == "order" and value not in COEFFICIENTS):
        known = {"order": "2 or 4", "walls": "true or false"}.get(name, "a number")
        raise SettingsError(f"{name} must be {known}, not {value!r}.")
    return value
