"""How much the robustness suite tries: little and always the same by default, a lot when asked to.

DIFFEOREG_EXAMPLES=N: N examples a test, drawn anew every time.  DIFFEOREG_SEED: which ones, where a test
draws by itself.
"""

from __future__ import annotations

import os

from hypothesis import Phase, settings

EXAMPLES = int(os.environ.get("DIFFEOREG_EXAMPLES", "0"))
SEED = int(os.environ.get("DIFFEOREG_SEED", "0"))


def examples(few: int, most: int | None = None) -> settings:
    """So many examples of a property; most: of a slow one, in the large profile."""
    # A registration takes a second: making a failing example smaller would take an hour.
    phases = (Phase.explicit, Phase.reuse, Phase.generate)
    return settings(max_examples=times(few, most), derandomize=not EXAMPLES, deadline=None, phases=phases)


def times(few: int, most: int | None = None) -> int:
    """How often something is tried."""
    if not EXAMPLES:
        return few
    return EXAMPLES if most is None else max(few, min(EXAMPLES, most))


def quick_words(iterations: int) -> list[str]:
    """Flags of the command for the shortest run there is: one level, no alignment."""
    settings = {"effort": "fast", "init": "identity", "levels": 4, "iterations": iterations, "device": "cpu"}
    return [word for name, value in settings.items() for word in (f"--{name}", str(value))] + ["--quiet"]
