"""`import qt` gives the bench's."""

from __future__ import annotations

import sys

from Testing.slicer.bench import qt

sys.modules[__name__] = qt
