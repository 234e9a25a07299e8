"""The rules of the house hold, and each rule is seen to catch what it forbids."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path, PurePosixPath

import pytest

from tools import lint_architecture as lint

NO = False  # spelled out in snippets, so that a plain text search of the repository finds only real uses
YES = True


def rules_broken(path: str, text: str) -> set[str]:
    return {finding.rule for finding in lint.check_source(PurePosixPath(path), text)}


def test_the_repository_keeps_every_rule(repository: Path) -> None:
    findings = lint.check_tree(repository)
    assert not findings, "\n".join(map(str, findings))


def test_the_whole_engine_is_looked_at(repository: Path) -> None:
    seen = set(lint.python_files(repository))
    on_disk = {PurePosixPath(p.relative_to(repository)) for p in (repository / "DiffeoRegLib").rglob("*.py")}
    assert on_disk <= seen
    assert lint.ONE_DOOR in seen
    assert PurePosixPath("Testing/unit/test_architecture.py") in seen


BAD = [
    # imports that point up, sideways, or nowhere
    ("import_direction", "DiffeoRegLib/space/grid.py", "from DiffeoRegLib.flows.velocity import Velocity"),
    ("import_direction", "DiffeoRegLib/space/grid.py", "from DiffeoRegLib import methods"),
    ("import_direction", "DiffeoRegLib/space/grid.py", "import DiffeoRegLib.pipeline"),
    ("import_direction", "DiffeoRegLib/space/grid.py", "from ..losses import similarity"),
    ("import_direction", "DiffeoRegLib/space/grid.py", "from .. import losses"),
    ("import_direction", "DiffeoRegLib/space/grid.py", "def f():\n    from DiffeoRegLib.cli import main"),
    ("import_direction", "DiffeoRegLib/flows/svf.py", "from DiffeoRegLib.losses.similarity import mse"),
    ("import_direction", "DiffeoRegLib/errors.py", "from DiffeoRegLib.settings import Settings"),
    (
        "import_direction",
        "DiffeoRegLib/methods/svf.py",
        "import importlib\nimportlib.import_module('DiffeoRegLib.cli')",
    ),
    ("import_direction", "DiffeoRegLib/helpers.py", "x = 1"),
    ("import_direction", "DiffeoRegLib/cli.py", "from DiffeoRegLib.helpers import x"),
    ("import_direction", "DiffeoRegLib/__init__.py", "from DiffeoRegLib.pipeline import register"),
    # what the panel loads inside Slicer
    ("torch_free", "DiffeoRegLib/settings.py", "import torch"),
    ("torch_free", "DiffeoRegLib/catalog.py", "from torch.nn import Module"),
    ("torch_free", "DiffeoRegLib/errors.py", "def f():\n    import torch.cuda"),
    ("torch_free", "DiffeoRegLib/__init__.py", "import torch"),
    ("panel_without_torch", "DiffeoReg/DiffeoRegPanel/nodes.py", "import torch"),
    ("no_slicer", "DiffeoRegLib/volumes/files.py", "import slicer"),
    ("no_slicer", "DiffeoRegLib/report.py", "from vtk.util import numpy_support"),
    ("no_slicer", "DiffeoRegLib/cli.py", "import qt"),
    # one door
    ("one_door", "DiffeoRegLib/flows/exponential.py", "import torch\ntorch.nn.functional.grid_sample(a, b)"),
    ("one_door", "DiffeoRegLib/flows/exponential.py", "from torch.nn.functional import grid_sample as g"),
    ("one_door", "DiffeoRegLib/methods/affine.py", "import torch.nn.functional as F\nF.affine_grid(t, s)"),
    ("one_door", "DiffeoRegLib/methods/affine.py", "warp = F.grid_sample"),
    ("one_door", "DiffeoRegLib/volumes/files.py", "import torch\nt = torch.from_numpy(a)"),
    ("one_door", "DiffeoRegLib/metrics.py", "a = t.detach().cpu().numpy()"),
    ("no_print", "DiffeoRegLib/pipeline.py", "def f():\n    print('here')"),
    # everywhere
    ("nothing_unsafe", "DiffeoRegLib/networks/build.py", "import pickle"),
    ("nothing_unsafe", "tools/export.py", "from joblib import load"),
    ("nothing_unsafe", "DiffeoRegLib/networks/build.py", f"net.load_state_dict(weights, strict={NO})"),
    (
        "nothing_unsafe",
        "DiffeoRegLib/networks/build.py",
        f"import torch\ntorch.load(path, weights_only={NO})",
    ),
    ("nothing_unsafe", "Testing/unit/test_x.py", "import torch\ntorch.load(path)"),
    ("nothing_unsafe", "DiffeoRegLib/training/data.py", f"np.load(path, allow_pickle={YES})"),
    ("nothing_swallowed", "DiffeoRegLib/cli.py", "try:\n    f()\nexcept OSError:\n    pass"),
    ("nothing_swallowed", "Testing/unit/test_x.py", "try:\n    f()\nexcept Exception:\n    ..."),
    (
        "nothing_unfinished",
        "DiffeoRegLib/methods/svf.py",
        "def f():\n    raise NotImplemented" + "Error('soon')",
    ),
    ("nothing_runs", "DiffeoRegLib/methods/svf.py", "eval(text)"),
    ("nothing_runs", "DiffeoReg/DiffeoRegPanel/script.py", "exec(text)"),
    ("nothing_runs", "DiffeoRegLib/cli/train.py", "import subprocess\nsubprocess.run(text, shell=True)"),
    ("nothing_runs", "DiffeoRegLib/training/reading.py", "yaml.load(text, yaml.UnsafeLoader)"),
    ("nothing_runs", "DiffeoRegLib/training/reading.py", "yaml.unsafe_load(text)"),
    ("nothing_runs", "DiffeoRegLib/networks/build.py", "import torch\ntorch.hub.load('owner/name', 'net')"),
    ("nothing_runs", "DiffeoRegLib/training/checkpoint.py", "import torch\ntorch.save(state, path)"),
    ("nothing_sent", "DiffeoRegLib/catalog.py", "import urllib.request"),
    ("nothing_sent", "DiffeoRegLib/catalog.py", "from urllib import request"),
    ("nothing_sent", "DiffeoReg/DiffeoRegPanel/weights.py", "def f():\n    import requests"),
    ("nothing_sent", "DiffeoRegLib/cohorts/attempt.py", "from socket import gethostname"),
    ("nothing_sent", "DiffeoRegLib/cohorts/runner.py", "from distributed import Client"),
    ("short_files", "DiffeoRegLib/methods/svf.py", "x = 1\n" * (lint.MAX_LINES + 1)),
    ("syntax", "DiffeoRegLib/methods/svf.py", "def f(:"),
]


@pytest.mark.parametrize(("rule", "path", "text"), BAD)
def test_a_broken_rule_is_found(rule: str, path: str, text: str) -> None:
    assert rules_broken(path, text) == {rule}


GOOD = [
    ("DiffeoRegLib/cli.py", "from DiffeoRegLib.pipeline import register\nprint(register)"),
    ("DiffeoRegLib/__main__.py", "from DiffeoRegLib.cli import main\nmain()"),
    (
        "DiffeoRegLib/pipeline.py",
        "from DiffeoRegLib import __version__, metrics\nimport DiffeoRegLib.methods.svf",
    ),
    (
        "DiffeoRegLib/space/field.py",
        "from DiffeoRegLib.space.grid import Grid\nfrom . import sample\nfrom ..errors import ShapeError",
    ),
    (
        "DiffeoRegLib/space/sample.py",
        "import torch.nn.functional as F\nF.grid_sample(a, g)\nt.numpy()\nt.from_numpy(a)",
    ),
    ("DiffeoRegLib/metrics.py", "import numpy\nfrom numpy.typing import NDArray\nnumpy.zeros(3)"),
    (
        "DiffeoRegLib/networks/build.py",
        f"import torch\ntorch.load(p, weights_only={YES})\nzip(a, b, strict={YES})",
    ),
    ("DiffeoRegLib/methods/base.py", "class Method(Protocol):\n    def predict(self) -> None: ..."),
    ("DiffeoRegLib/space/grid.py", "def __eq__(self, o):\n    return NotImplemented"),
    (
        "DiffeoRegLib/report.py",
        "try:\n    f()\nexcept OSError as error:\n    raise OutputError(str(error)) from error",
    ),
    ("DiffeoReg/DiffeoReg.py", "import slicer, vtk\nprint('panel')"),
    ("DiffeoReg/DiffeoRegPanel/download.py", "import urllib.request"),
    ("DiffeoRegLib/cohorts/page.py", "from urllib.parse import quote"),
    ("DiffeoRegLib/networks/build.py", "import re\nnetwork.eval()\nre.compile(text)"),
    ("Testing/benchmarks/peers.py", "import torch\nprint(torch.from_numpy(a).numpy())"),
    ("DiffeoRegLib/methods/svf.py", "x = 1\n" * lint.MAX_LINES),
]


@pytest.mark.parametrize(("path", "text"), GOOD)
def test_what_is_allowed_passes(path: str, text: str) -> None:
    assert rules_broken(path, text) == set()


def test_layers_name_each_room_once() -> None:
    rooms = [room for layer in lint.LAYERS for room in layer]
    assert len(rooms) == len(set(rooms))
    assert lint.HEIGHT["cli"] > lint.HEIGHT["pipeline"] > lint.HEIGHT["methods"] > lint.HEIGHT["report"]
    assert lint.HEIGHT["report"] > lint.HEIGHT["metrics"] > lint.HEIGHT["networks"]
    assert lint.HEIGHT["networks"] > lint.HEIGHT["losses"] > lint.HEIGHT["space"] > lint.HEIGHT["catalog"]
    assert lint.HEIGHT["catalog"] > lint.HEIGHT["errors"]


@pytest.mark.parametrize("module", lint.TORCH_FREE)
def test_the_panel_can_import_it_where_torch_is_missing(module: str, repository: Path) -> None:
    blocked = "import sys; sys.modules['torch'] = None; import DiffeoRegLib." + module
    run = subprocess.run(
        [sys.executable, "-c", blocked], cwd=repository, capture_output=True, encoding="utf-8", check=False
    )
    assert run.returncode == 0, run.stderr


def test_the_block_on_torch_works(repository: Path) -> None:
    blocked = "import sys; sys.modules['torch'] = None; import DiffeoRegLib.space.sample"
    run = subprocess.run(
        [sys.executable, "-c", blocked], cwd=repository, capture_output=True, encoding="utf-8", check=False
    )
    assert run.returncode != 0
    assert "torch" in run.stderr


def test_command_tells_file_line_and_rule(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    room = tmp_path / "DiffeoRegLib" / "space"
    room.mkdir(parents=True)
    (room / "grid.py").write_text("x = 1\nimport slicer\n", encoding="utf-8")
    assert lint.main([str(tmp_path)]) == 1
    assert capsys.readouterr().out.startswith("DiffeoRegLib/space/grid.py:2: no_slicer: ")
    (room / "grid.py").write_text("x = 1\n", encoding="utf-8")
    assert lint.main([str(tmp_path)]) == 0
    assert capsys.readouterr().out == ""
