"""Damaged files of every format: a sentence or the right result, never a crash, a hang or a wrong image.

What no check sum covers cannot be noticed: see `formats.Sample` for what is asked of which format.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from Testing.robustness.formats import SAMPLES
from Testing.robustness.profile import SEED, times

COUNT = times(9)
pytestmark = pytest.mark.skipif(
    sys.platform == "win32", reason="the reading process limits its memory as POSIX does"
)


@pytest.fixture(scope="module")
def outcomes(repository, tmp_path_factory):
    """What reading damaged files of every format ended in, by format; one process for all of them."""
    folder = tmp_path_factory.mktemp("damaged")
    command = [
        sys.executable,
        "-m",
        "Testing.robustness.reading",
        str(folder),
        str(COUNT),
        str(SEED),
        *SAMPLES,
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        command, capture_output=True, encoding="utf-8", cwd=repository, env=environment, check=False
    )
    found: dict[str, list[dict]] = {name: [] for name in SAMPLES}
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    for line in lines:
        if "problem" in line:
            found[line["format"]].append(line)
    assert done.returncode == 0, f"It crashed or hung at {lines[-1:]}: {done.stderr[-2000:]}"
    return found


@pytest.mark.parametrize("name", SAMPLES)
def test_damage_is_refused_or_harmless(outcomes, name):
    assert len(outcomes[name]) == COUNT
    problems = [
        f"{line['number']} ({line['kind']}): {line['problem']}" for line in outcomes[name] if line["problem"]
    ]
    assert not problems, "\n".join(problems[:3])
