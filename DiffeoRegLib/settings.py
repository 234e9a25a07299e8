"""Everything a user can set for one registration, with presets. No torch here: the panel imports this."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from numbers import Real
from typing import Any, Literal

from DiffeoRegLib.errors import SettingsError, UnknownNameError

INITS = ("auto", "identity", "geometry", "mass", "rigid", "affine")
INIT_NETWORK = "network:"
"""Before the name of a model: a trained affine network finds the initial alignment."""
SIMILARITIES = ("lncc", "lncc-squared", "mk-lncc", "mse", "nmi", "mind")
EFFORTS = ("fast", "balanced", "accurate")
DEVICES = ("auto", "cpu", "cuda", "mps")
INTERPOLATIONS = ("linear", "cubic")
KERNEL_UNITS = ("box", "mm")
INTEGRATORS = ("rk4", "dopri5")
PATHOLOGY_EDGE_MM = 4.0
"""Soft edge around a marked pathology."""
POSITIVE = (
    "working_spacing_mm", "window_vox", "update_sigma", "regularity", "memory_limit_gb", "preweight_sigma",
)  # fmt: skip
NOT_NEGATIVE = ("velocity_sigma", "guidance_weight", "padding_mm", "taper_mm", "kinetic")
ALWAYS_NUMBERS = ("regularity", "guidance_weight", "padding_mm")
LISTS = ("levels_mm", "iterations", "kernel_sigmas", "kernel_weights")
TEXTS = (
    "method", "preset", "effort", "init", "device", "interpolation", "kernel_units", "similarity",
    "integrator",
)  # fmt: skip
MAY_BE_NONE = ("similarity", "integrator")


@dataclass(frozen=True)
class Settings:
    """One registration's settings; every field has a sensible default.

    method: name in the catalogue.  preset: what is registered (see PRESETS).
    effort: fast, balanced, accurate.
    init: how the images are brought together first; `auto` = affine unless an initial transform is given;
    `network:MODEL` = by a trained affine network of the catalogue.
    steps: time steps of the flow, or `auto` = the fewest that leave no fold.
    similarity, levels_mm, iterations ...: None = what preset and effort say.
    window_vox: side of the similarity's windows, in voxels of each level.
    dense_iterations: last steps at the finest level, whose velocity then has the resolution of the images;
    None = what preset and effort say, or none when `iterations` is given.
    update_sigma, velocity_sigma: Gaussian smoothing of every update (fluid) and of the velocity (elastic), in
    steps of each level's velocity grid; `regularity` multiplies both.
    kernel_sigmas: widths of the Gaussians of a regulariser made of kernels, in kernel_units: shares of the
    box of the images along each axis, or mm.  kernel_weights: their shares; None = in proportion to the
    widths when these are given.  preweight_sigma: smoothing of its regional weights, in the same unit.
    kinetic: weight of the energy of the motion.  integrator: of geodesics.  None = the method's own.
    weights: path of a weights file, for a trained method, instead of the one it comes with.
    accepted_licences: names of licences that were read and accepted, of weights that ask for it.
    """

    method: str = "svf"
    preset: str = "general"
    effort: str = "balanced"
    init: str = "auto"
    steps: int | Literal["auto"] = "auto"
    similarity: str | None = None
    large_displacement: bool | None = None
    working_spacing_mm: float | None = None
    levels_mm: tuple[float, ...] | None = None
    iterations: tuple[int, ...] | None = None
    dense_iterations: int | None = None
    window_vox: float | None = None
    update_sigma: float | None = None
    velocity_sigma: float | None = None
    regularity: float = 1.0
    guidance_weight: float = 1.0
    padding_mm: float = 0.0
    taper_mm: float | None = None
    interpolation: str = "linear"
    device: str = "auto"
    threads: int | None = None
    memory_limit_gb: float | None = None
    seed: int = 0
    kernel_sigmas: tuple[float, ...] | None = None
    kernel_weights: tuple[float, ...] | None = None
    kernel_units: str = "box"
    preweight_sigma: float | None = None
    kinetic: float | None = None
    integrator: str | None = None
    weights: str | None = None
    accepted_licences: tuple[str, ...] = ()
    extras: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._check_types()
        for what, name, known in (
            ("preset", self.preset, PRESETS),
            ("effort", self.effort, EFFORTS),
            ("initial alignment", "auto" if self.init_network else self.init, INITS),
            ("device", self.device.split(":")[0], DEVICES),
            ("interpolation", self.interpolation, INTERPOLATIONS),
            ("unit of kernels", self.kernel_units, KERNEL_UNITS),
            ("integrator", self.integrator or INTEGRATORS[0], INTEGRATORS),
        ):
            if name not in known:
                raise UnknownNameError(what, name, known)
        if self.similarity is not None and self.similarity not in SIMILARITIES:
            raise UnknownNameError("similarity", self.similarity, SIMILARITIES)
        if self.steps != "auto" and not _whole(self.steps, 1):
            raise SettingsError(f"Time steps must be 'auto' or a whole number from 1 up, not {self.steps!r}.")
        if self.dense_iterations is not None and not _whole(self.dense_iterations, 0):
            raise SettingsError(
                f"Dense iterations must be a whole number of at least 0, not {self.dense_iterations!r}."
            )
        if self.threads is not None and not _whole(self.threads, 1):
            raise SettingsError(f"threads must be a whole number of at least 1, not {self.threads!r}.")
        for name in POSITIVE:
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise SettingsError(f"{name} must be greater than 0, not {value!r}.")
        for name in NOT_NEGATIVE:
            value = getattr(self, name)
            if value is not None and not 0 <= value < math.inf:
                raise SettingsError(f"{name} must not be negative, got {value!r}.")
        self._check_kernels()
        self._check_weights()
        levels, counts = self.levels_mm, self.iterations
        if levels is not None and not (levels and all(0 < level < math.inf for level in levels)):
            raise SettingsError(f"Levels must be voxel sizes greater than 0 mm, not {levels}.")
        if counts is not None and not (counts and all(_whole(count, 0) for count in counts)):
            raise SettingsError(f"Iterations per level must be whole numbers of at least 0, not {counts}.")

    def _check_types(self) -> None:
        """Raises SettingsError for a value of another type: a program may send anything."""
        for name in TEXTS:
            value = getattr(self, name)
            if not (isinstance(value, str) or (value is None and name in MAY_BE_NONE)):
                raise SettingsError(f"{name} must be a name, not {value!r}.")
        for name in (*POSITIVE, *NOT_NEGATIVE):
            value = getattr(self, name)
            if not (_number(value) or (value is None and name not in ALWAYS_NUMBERS)):
                raise SettingsError(f"{name} must be a number, not {value!r}.")
        for name in LISTS:
            value = getattr(self, name)
            if value is not None and not (
                isinstance(value, tuple | list) and all(isinstance(v, Real) for v in value)
            ):
                raise SettingsError(f"{name} must be a list of numbers, not {value!r}.")
        if not (isinstance(self.seed, int) and -(2**63) <= self.seed < 2**63):
            raise SettingsError(f"seed must be a whole number of at most 63 bits, not {self.seed!r}.")
        if self.large_displacement not in (None, True, False):
            raise SettingsError(f"large_displacement must be true or false, not {self.large_displacement!r}.")
        if not isinstance(self.extras, Mapping):
            raise SettingsError(f"extras must hold settings by name, not {self.extras!r}.")

    def _check_kernels(self) -> None:
        sigmas, weights = self.kernel_sigmas, self.kernel_weights
        if sigmas is not None and not (sigmas and all(0 < sigma < math.inf for sigma in sigmas)):
            raise SettingsError(f"Kernels need widths greater than 0, not {sigmas}.")
        if weights is not None and not (
            all(0 <= weight < math.inf for weight in weights) and 0 < sum(weights) < math.inf
        ):
            raise SettingsError(f"Weights of kernels must not be negative, and not all 0: {weights}.")
        if sigmas is not None and weights is not None and len(sigmas) != len(weights):
            raise SettingsError(f"{len(sigmas)} kernels need as many weights, not {len(weights)}.")
        if self.kernel_units == "mm" and sigmas is None:
            raise SettingsError("Kernels in mm need their widths (kernel_sigmas).")

    def _check_weights(self) -> None:
        if self.weights is not None and not (isinstance(self.weights, str) and self.weights):
            raise SettingsError(f"Weights are named by the path of their file, not {self.weights!r}.")
        names = self.accepted_licences
        if not isinstance(names, tuple) or not all(isinstance(name, str) and name for name in names):
            raise SettingsError(f"Accepted licences are a tuple of names, not {names!r}.")

    @property
    def init_network(self) -> str | None:
        """The model of `init` where that names one."""
        name = self.init.removeprefix(INIT_NETWORK)
        return name if name and name != self.init else None

    def with_changes(self, **changes: Any) -> Settings:
        """A copy with some fields changed; raises SettingsError for bad values."""
        return dataclasses.replace(self, **changes)


def _number(value: object) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)


def _whole(value: object, least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


@dataclass(frozen=True)
class Preset:
    """What a kind of image needs.

    title, use: shown to the user.  The rest are defaults for the fields of the same name in Settings;
    `iterations` and `dense_iterations` are given per effort, coarse to fine, matching `levels_mm`.
    """

    title: str
    use: str
    similarity: str
    levels_mm: tuple[float, ...]
    iterations: Mapping[str, tuple[int, ...]]
    dense_iterations: Mapping[str, int]
    window_vox: float = 5.0
    update_sigma: float = 1.7
    velocity_sigma: float = 0.4
    large_displacement: bool = False
    working_spacing_mm: float = 1.0
    intensity_window: tuple[float, float] | None = None


_BRAIN = {"fast": (30, 30, 12, 6), "balanced": (30, 30, 25, 0), "accurate": (40, 40, 40, 10)}
_BRAIN_DENSE = {"fast": 0, "balanced": 3, "accurate": 12}
_BODY = {"fast": (40, 10), "balanced": (60, 30), "accurate": (100, 60)}
_MULTI = {"fast": (30, 30, 0), "balanced": (60, 60, 30), "accurate": (100, 100, 60)}
_MULTI_DENSE = {"fast": 0, "balanced": 0, "accurate": 0}
_BODY_DENSE = {"fast": 0, "balanced": 0, "accurate": 6}

MOMENTUM_LEVELS = (4, 2, 1)
"""Of the methods with kernels: voxel sizes the images are compared at, in voxels of the working grid."""
MOMENTUM_ITERATIONS: Mapping[str, tuple[int, ...]] = {
    "fast": (40, 20, 0),
    "balanced": (60, 50, 30),
    "accurate": (100, 100, 50),
}

PRESETS: dict[str, Preset] = {
    "general": Preset(
        "General", "Any two images of one modality.",
        "lncc-squared", (8.0, 4.0, 2.0, 1.0), _BRAIN, _BRAIN_DENSE,
    ),
    "brain-mr": Preset(
        "Brain MR", "Brains of one MR contrast, with or without skull.",
        "lncc-squared", (8.0, 4.0, 2.0, 1.0), _BRAIN, _BRAIN_DENSE,
    ),
    "lung-ct": Preset(
        "Lung CT", "Breathing states or visits, chest CT.", "lncc", (4.0, 2.0), _BODY, _BODY_DENSE,
        large_displacement=True, working_spacing_mm=1.5, intensity_window=(-1100.0, 600.0),
    ),
    "abdomen": Preset(
        "Abdomen", "Liver and abdomen, CT or MR, one modality.", "lncc", (4.0, 2.0), _BODY, _BODY_DENSE,
        large_displacement=True, working_spacing_mm=1.5,
    ),
    "multimodal": Preset(
        "Multi-modal", "Different contrasts or scanners: T1/T2, CT/MR, MR/ultrasound.",
        "mind", (8.0, 4.0, 2.0), _MULTI, _MULTI_DENSE,
        update_sigma=4.2, velocity_sigma=1.0, working_spacing_mm=1.5,
    ),
}  # fmt: skip
