"""`import ctk` gives the bench's."""

from __future__ import annotations

import sys

from Testing.slicer.bench import ctk

sys.modules[__name__] = ctk
