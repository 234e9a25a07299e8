"""`python -m DiffeoRegLib.worker`: started by the Slicer module, never by hand."""

from __future__ import annotations

from DiffeoRegLib.worker.serve import main

if __name__ == "__main__":
    main()
