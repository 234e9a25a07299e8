"""Settings that a method has no use for: said in the report, so that nobody believes they did something."""

from __future__ import annotations

import dataclasses

from DiffeoRegLib.catalog import Card
from DiffeoRegLib.settings import Settings

KERNELS = ("kernel_sigmas", "kernel_weights", "preweight_sigma", "kinetic")
SMOOTHING = ("update_sigma", "velocity_sigma", "dense_iterations", "large_displacement")
_DEFAULTS = {field.name: field.default for field in dataclasses.fields(Settings)}


def unused_settings(chosen: Card, settings: Settings) -> list[str]:
    """One sentence that names the settings which were changed to no effect, if there are any."""
    without: tuple[str, ...] = ()
    if not chosen.geodesic:
        without += ("integrator",)
    without += SMOOTHING if chosen.time_varying or (chosen.kernels and not chosen.trained) else ()
    without += () if chosen.kernels else KERNELS
    found = [name for name in without if getattr(settings, name) != _DEFAULTS[name]]
    return [f"'{chosen.name}' has no use for these settings: {', '.join(found)}."] if found else []
