"""Settings of the methods with kernels: what becomes of them, what is refused, what a run needs."""

from __future__ import annotations

import math

import numpy as np
import pytest

from DiffeoRegLib.catalog import CARDS, card
from DiffeoRegLib.errors import MemoryLimitError, SettingsError, UnknownNameError
from DiffeoRegLib.methods import METHODS
from DiffeoRegLib.methods.map_grid import Kernels, map_grid
from DiffeoRegLib.methods.memory import GRAPHS, flow_bytes, memory_of
from DiffeoRegLib.methods.options import REGIONAL_KERNELS, Options, options_from
from DiffeoRegLib.methods.rdmm import regional_options
from DiffeoRegLib.methods.unused import unused_settings
from DiffeoRegLib.settings import Settings
from DiffeoRegLib.space.grid import Grid
from DiffeoRegLib.stiffness import REGIONAL_PREWEIGHT_SIGMA, REGIONAL_SIGMAS
from DiffeoRegLib.volumes.working_grid import BASE_BYTES, fit_to_memory

NAMES = ("vsvf", "lddmm", "rdmm", "rdmm-regions")


def test_the_methods_are_offered():
    for name in NAMES:
        assert card(name).kernels
        assert card(name).method in METHODS
        assert card(name).geodesic == (name != "vsvf")
        assert card(name).needs_region_labels == (name == "rdmm-regions")
    assert not any(known.kernels for known in CARDS.values() if known.method in ("svf", "sitreg", "affine"))


def test_nothing_set_is_the_methods_own():
    for kind in ("vsvf", "lddmm", "rdmm"):
        assert options_from(Settings(), kind) == Options(kernels=Kernels(widened=True))
    assert regional_options(Settings(), given=True) == Options(kernels=REGIONAL_KERNELS)
    assert REGIONAL_KERNELS.sigmas == REGIONAL_SIGMAS
    assert REGIONAL_KERNELS.preweight_sigma == REGIONAL_PREWEIGHT_SIGMA


def test_what_is_set_is_taken():
    own = Options().kernels
    found = options_from(
        Settings(kernel_sigmas=(4.0, 9.0), kernel_units="mm", kinetic=0.0, integrator="dopri5")
    )
    relative = own.preweight_sigma / min(own.sigmas)
    assert found.kernels == Kernels((4.0, 9.0), (4.0, 9.0), 4.0 * relative, "mm")
    assert found.kinetic == 0.0
    assert found.integrator == "dopri5"
    weights = (1.0,) * len(own.sigmas)
    found = options_from(Settings(kernel_weights=weights, preweight_sigma=0.2))
    assert found.kernels == Kernels(own.sigmas, weights, 0.2, widened=True)
    extras = {
        "transport": 1,
        "common": 2.0,
        "precondition": 0.0,
        "tolerance": 1e-3,
        "order": 4,
        "walls": True,
    }
    found = options_from(Settings(extras=extras))
    assert {name: getattr(found, name) for name in extras} == extras


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"kernel_sigmas": ()}, "widths greater than 0"),
        ({"kernel_sigmas": (0.1, 0.0)}, "widths greater than 0"),
        ({"kernel_sigmas": (0.1, math.nan)}, "widths greater than 0"),
        ({"kernel_weights": (0.0, 0.0)}, "not all 0"),
        ({"kernel_weights": (1.0, -1.0, 3.0)}, "must not be negative"),
        ({"kernel_sigmas": (0.1, 0.2), "kernel_weights": (1.0,)}, "2 kernels need as many weights, not 1"),
        ({"kernel_units": "mm"}, "need their widths"),
        ({"preweight_sigma": 0.0}, "preweight_sigma must be greater than 0"),
        ({"kinetic": -1.0}, "kinetic must not be negative"),
        ({"kinetic": math.nan}, "kinetic must not be negative"),
    ],
)
def test_settings_that_make_no_sense_are_refused(changes, words):
    with pytest.raises(SettingsError, match=words):
        Settings(**changes)


@pytest.mark.parametrize(
    ("changes", "what"),
    [({"kernel_units": "cm"}, "unit of kernels"), ({"integrator": "euler"}, "integrator")],
)
def test_unknown_names_are_refused(changes, what):
    with pytest.raises(UnknownNameError, match=what):
        Settings(**changes)


@pytest.mark.parametrize(
    ("extras", "words"),
    [
        ({"order": 3}, "order must be 2 or 4"),
        ({"order": 2.0}, "order must be 2 or 4"),
        ({"walls": 1}, "walls must be true or false"),
        ({"common": "much"}, "common must be a number"),
        ({"common": True}, "common must be a number"),
        ({"common": -1.0}, "must not be negative"),
        ({"commom": 1.0}, "Did you mean 'common'"),
        ({"search_radius_mm": 40.0}, "no extra setting"),
    ],
)
def test_extras_are_checked(extras, words):
    with pytest.raises(SettingsError, match=words):
        options_from(Settings(extras=extras))
    assert options_from(Settings(extras={"precision": "x"}), others=("precision",)).order == 2


def test_weights_of_another_number_of_kernels_are_refused():
    with pytest.raises(SettingsError, match="kernels need as many weights, not 1"):
        options_from(Settings(kernel_weights=(1.0,)))


def test_what_a_method_has_no_use_for_is_said():
    busy = Settings(kinetic=1.0, integrator="rk4", update_sigma=2.0, large_displacement=True)
    said = {name: unused_settings(card(name), busy) for name in ("svf", "vsvf", "lddmm")}
    assert said["svf"] == ["'svf' has no use for these settings: integrator, kinetic."]
    assert said["vsvf"] == [
        "'vsvf' has no use for these settings: integrator, update_sigma, large_displacement."
    ]
    assert said["lddmm"] == ["'lddmm' has no use for these settings: update_sigma, large_displacement."]
    assert all(unused_settings(known, Settings()) == [] for known in CARDS.values())


def grid_of(*shape):
    return Grid(shape, np.eye(4))


def test_memory_follows_the_map_and_the_kernels():
    assert memory_of(Settings()) is None
    assert memory_of(Settings(method="sitreg")) is None
    small, large = grid_of(48, 56, 48), grid_of(160, 192, 160)
    needed = {name: memory_of(Settings(method=name)) for name in NAMES}
    for grid in (small, large):
        assert needed["vsvf"](grid) < needed["rdmm"](grid)
        assert needed["lddmm"](grid) < needed["rdmm"](grid)
    assert needed["lddmm"](small) > BASE_BYTES
    assert memory_of(Settings(method="lddmm", steps=40))(large) > needed["lddmm"](large)
    narrow = Settings(method="rdmm", kernel_sigmas=(0.02, 0.1))
    wide = Settings(method="rdmm", kernel_sigmas=(0.1, 0.2))
    assert memory_of(narrow)(large) > 1.5 * memory_of(wide)(large)
    # Too narrow a kernel is refused later, by its own sentence; the estimate is that of its finest map.
    with pytest.raises(SettingsError):
        map_grid(small, Kernels((0.02, 0.1), (1.0, 1.0)))
    assert memory_of(narrow)(small) > BASE_BYTES


def test_the_estimate_is_near_what_was_measured():
    """Bytes a voxel of shooting five steps on 48 x 56 x 48, see `methods/memory.py`."""
    voxels = 48 * 56 * 48
    assert flow_bytes(voxels, 3, 0, 5) / voxels == pytest.approx(3300 - 210, rel=0.3)
    assert flow_bytes(voxels, 3, 4, 5) / voxels == pytest.approx(9020 - 210, rel=0.3)
    # Of very many voxels no more stages are kept than there is room for.
    assert flow_bytes(10**7, 3, 4, 5) < 10**7 * 2000 + GRAPHS * 2**30


def test_a_working_grid_is_coarsened_by_the_methods_own_estimate():
    grid, needed = grid_of(96, 96, 96), memory_of(Settings(method="rdmm"))
    assert fit_to_memory(grid, needed(grid), None, needed) == (grid, [])
    coarser, (note,) = fit_to_memory(grid, needed(grid) - 10_000_000, None, needed)
    assert needed(coarser) <= needed(grid) - 10_000_000
    assert "coarsened" in note
    with pytest.raises(MemoryLimitError):
        fit_to_memory(grid, BASE_BYTES + 1000, None, needed)


def test_own_kernels_are_refused_where_those_of_the_method_are_widened():
    small = grid_of(20, 34, 28)
    usual = map_grid(small, options_from(Settings()).kernels)
    assert usual.widened == pytest.approx(1.5 / (0.05 * 19))
    (note,) = usual.notes
    assert note.startswith("All kernels were made 1.58 times as wide")
    assert usual.sigmas[1] == pytest.approx(0.1 * usual.widened)
    assert map_grid(grid_of(64, 64, 64), options_from(Settings()).kernels).notes == ()
    with pytest.raises(SettingsError, match=r"0.95 voxels wide, it needs 1.5"):
        map_grid(small, options_from(Settings(kernel_sigmas=(0.05, 0.1))).kernels)
