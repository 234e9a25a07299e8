"""`python -m DiffeoRegLib` is the same as the command `diffeoreg`."""

import sys

from DiffeoRegLib.cli import main

if __name__ == "__main__":
    sys.exit(main())
