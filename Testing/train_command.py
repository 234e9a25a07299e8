"""Small trainings as the command runs them."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys

import torch
import yaml

from DiffeoRegLib.networks.weights import read_checkpoint

SIZES = {
    "affine-network-brain-t1": 176_212,
    "groupmorph-dynamic": 320_884,
    "groupmorph-hippocampus": 277_334,
    "lddmm-hippocampus": 1_480_211,
    "metaregnet-brain-2d": 80_014,
    "metaregnet-brain-t1": 240_744,
    "rdmm-hippocampus": 1_930_213,
    "sitreg-any-contrast": 641_004,
    "sitreg-brain-t1": 641_004,
    "sitreg-published": 1_196_820,
    "transmorph-brain-t1": 2_998_077,
    "transmorph-slices": 1_961_336,
    "tvf-brain-t1": 3_155_994,
    "tvf-lddmm-brain-t1": 3_155_994,
    "tvf-lddmm-slices": 2_012_974,
    "tvf-published": 108_611_336,
    "tvf-slices": 2_012_974,
    "voxelmorph-brain-2d": 100_530,
    "voxelmorph-diff-brain-t1": 266_374,
    "voxelmorph-cfm-brain-2d": 88_676,
    "voxelmorph-cfm-brain-t1": 266_374,
    "vsvf-hippocampus": 1_480_211,
}
"""Parameters of the shipped configurations."""
CONFIG = {
    "method": "sitreg",
    "network": {"name": "sitreg", "sizes": {"encoder": [2, 4], "heads": [2, 4], "dim": 2}},
    "data": {
        "source": "synthetic",
        "validation": "synthetic",
        "options": {
            "shape": [16, 16],
            "shapes": {"labels": [2, 4], "scales_vox": [8, 4], "motion_scales_vox": [8]},
            "pairs_per_epoch": 7,
            "validation_pairs": 2,
        },
    },
    "losses": [{"name": "mse"}, {"name": "gradient", "weight": 0.1}],
    "optimiser": {"learning_rate": 5e-3},
    "steps": 12,
    "validate_every": 4,
    "checkpoint_every": 3,
    "log_every": 1,
    "seed": 5,
}
QUIET = {"PYTHONWARNDEFAULTENCODING": ""}
"""What other packages' files say of encodings would stand among the sentences that are read here."""
COMMAND = [sys.executable, "-m", "DiffeoRegLib"]


def written(path, **changes):
    """A configuration file with some top entries changed."""
    path.write_text(yaml.safe_dump({**CONFIG, **changes}), encoding="utf-8")
    return path


def started(words, repository, before=()):
    """The command in a process of its own, started outside the repository's folder."""
    return subprocess.Popen(
        [*(before or COMMAND), *map(str, words)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, encoding="utf-8",
        env={**os.environ, **QUIET, "PYTHONPATH": str(repository), "OMP_NUM_THREADS": "1"},
    )  # fmt: skip


def wait_for_step(process, step):
    """Reads a child's progress until a step is done; raises AssertionError if the child ends before."""
    for line in process.stdout:
        said = json.loads(line).get("message", "").split()
        if said[:1] == ["step"] and int(said[1]) >= step:
            return
    raise AssertionError(process.stderr.read())


def rows(path):
    """A table of a run without the time it took."""
    with path.open(encoding="utf-8", newline="") as file:
        return [{k: v for k, v in row.items() if k != "seconds"} for row in csv.DictReader(file)]


def same_runs(one, other):
    """True where two finished runs left the same weights, optimisers and tables, to the last bit."""
    for name in ("state", "best", "last"):
        first, second = (read_checkpoint(run / f"{name}.safetensors").tensors for run in (one, other))
        if first.keys() != second.keys() or not all(torch.equal(v, second[k]) for k, v in first.items()):
            return False
    return all(rows(one / name) == rows(other / name) for name in ("training.csv", "validation.csv"))
