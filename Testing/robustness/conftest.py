"""The panel's package, without a panel: the runner needs no Qt and no Slicer."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "DiffeoReg"))
