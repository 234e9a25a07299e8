#!/bin/sh
# Print the first Python that can run DiffeoReg (3.11 or newer, able to make virtual environments).
# Usage: find_python.sh [CANDIDATE...]   Exit status 1 and one explanation when there is none.
set -u

[ "$#" -gt 0 ] || set -- python3.11 python3.12 python3.13 python3 python
seen=""
without_venv=""

for candidate in "$@"; do
    # A name on the PATH may be a launcher for a version that is not installed: only running it tells.
    found=$("$candidate" -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null) || continue
    if ! "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
        seen="$seen $candidate ($found)"
    elif ! "$candidate" -c 'import venv, ensurepip' 2>/dev/null; then
        without_venv="$without_venv $candidate ($found)"
    else
        command -v "$candidate"
        exit 0
    fi
done

if [ -n "$without_venv" ]; then
    echo "error:$without_venv cannot make virtual environments (venv or ensurepip is missing)." \
        "On Debian and Ubuntu: sudo apt install python3-venv. Or name another one: make PYTHON=/path/to/python ..." >&2
else
    echo "error: DiffeoReg needs Python 3.11 or newer; found:${seen:- none}." \
        "Install one, or name it: make PYTHON=/path/to/python ..." >&2
fi
exit 1
