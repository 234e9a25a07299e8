"""What the tests of one level's optimisation run with."""

from __future__ import annotations

import dataclasses

from DiffeoRegLib.optimise import Plan

PLAN = Plan(
    level_mm=1.0,
    iterations=30,
    similarity="lncc-squared",
    window_vox=5.0,
    update_sigma=1.7,
    velocity_sigma=0.4,
    fine=True,
)
COARSE = dataclasses.replace(PLAN, fine=False)
