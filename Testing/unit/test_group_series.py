"""What the benchmark of dynamic series measures, writes down and draws, on a small made-up series."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from DiffeoRegLib.settings import Settings
from DiffeoRegLib.space.filters import gaussian_smooth
from DiffeoRegLib.space.grid import Grid
from DiffeoRegLib.space.transform import AffineTransform
from DiffeoRegLib.volumes.files import write_volume
from DiffeoRegLib.volumes.volume import Volume
from Testing.benchmarks import group_series, group_series_figure

pytestmark = pytest.mark.filterwarnings("ignore::EncodingWarning:matplotlib")  # its font cache, made once
SHIFT_MM = 3.0


def moved(along_mm: float) -> AffineTransform:
    """Points further along the first axis of the patient."""
    matrix = np.eye(4)
    matrix[0, 3] = along_mm
    return AffineTransform(matrix)


@pytest.fixture
def job(tmp_path):
    """Three frames of one texture, each 3 mm further than the one before; voxels of 1 mm; two landmarks."""
    texture = gaussian_smooth(torch.rand(1, 1, 30, 24, 24, generator=torch.Generator().manual_seed(0)), 1.5)
    texture = (texture - texture.min())[0, 0] * 1000
    grid = Grid((24, 24, 24), np.eye(4))  # world_from_voxel @ (k, j, i): the first axis is R
    frames = [Volume(texture[6 - 3 * k : 30 - 3 * k].clone(), grid, f"frame {k}") for k in range(3)]
    points = [np.array([[8.0 + SHIFT_MM * k, 8, 8], [10 + SHIFT_MM * k, 12, 9]]) for k in range(3)]
    return group_series.Job("made", frames, points, Settings(device="cpu"), tmp_path / "scratch", None, 60.0)


def test_every_method_is_judged_over_all_pairs_and_the_true_maps_are_perfect(job, monkeypatch):
    still = group_series.judged("none", job)
    assert still["tre_mm"] == pytest.approx((3 + 6 + 3) / 3)
    assert still["first_mm"] == pytest.approx((3 + 6) / 2)
    assert still["largest_mm"] == pytest.approx(6)
    assert still["pairs"]["0-2"]["inside_percent"] == 100
    true = {(i, j): moved(SHIFT_MM * (j - i)) for i, j in job.pairs}
    monkeypatch.setitem(group_series.METHODS, "true", lambda job: (true, {"cpu_seconds": 1.0}))
    right = group_series.judged("true", job)
    assert right["tre_mm"] == pytest.approx(0, abs=1e-9)
    assert right["rmse"] < 1e-3 * still["rmse"]
    assert right["nmi"] > 0.8 > 3 * still["nmi"]  # not 1: every frame has bins of its own
    assert right["nmi_parzen"] > 2 * still["nmi_parzen"]
    assert right["pairs"]["0-2"]["inside_percent"] == pytest.approx(100 * 18 / 24)
    assert right["folded_percent"] == [0, 0, 0]


def test_rows_without_weights_or_peer_say_so_and_the_table_holds_all(job):
    for name in group_series.NETWORKS:
        with pytest.raises(RuntimeError, match="no weights"):
            group_series.METHODS[name](job)
    with pytest.raises(RuntimeError, match="--peer-python"):
        group_series.METHODS["elastix pairwise"](job)
    row = group_series.judged("none", job)
    text = group_series.table([row, {"series": "made", "method": "voxelmorph", "failed": "no weights"}])
    widths = {line.count("|") for line in text.splitlines() if line.startswith("|")}
    assert widths == {len(group_series.COLUMNS) + 2}
    assert "| none | 0.0 | 0.0 |" in text
    assert "| 4.00 | 4.50 | 6.00 | 0.0000 |" in text
    assert "| voxelmorph | no weights |" in text


def test_weights_are_found_by_series_and_form(job, tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(
        group_series.group_networks, "predicted", lambda file, frames, pairs: asked.append(file) or {}
    )
    (tmp_path / "liver18-one-u.safetensors").touch()
    liver = group_series.Job(
        "liver-18", job.images, None, job.settings, tmp_path, None, 60.0, weights=tmp_path
    )
    group_series.METHODS["groupmorph to one"](liver)
    assert [file.name for file in asked] == ["liver18-one-u.safetensors"]
    with pytest.raises(RuntimeError, match="no weights"):
        group_series.METHODS["groupmorph to the middle"](liver)


def test_finished_rows_are_kept_and_a_failed_one_is_named(tmp_path, monkeypatch, capsys):
    file = tmp_path / "series.nii.gz"
    pictures = torch.rand(2, 8, 8, 8, generator=torch.Generator().manual_seed(1))
    frames = [Volume(picture, Grid((8, 8, 8), np.eye(4)), f"{k}") for k, picture in enumerate(pictures)]
    write_volume(frames[0], file)
    monkeypatch.setattr(group_series, "read_series", lambda path: frames)
    command = ["group_series.py", "-o", str(tmp_path / "out"), "--series", str(file), "--only"]
    monkeypatch.setattr("sys.argv", [*command, "none"])
    assert group_series.main() == 0
    (kept,) = (tmp_path / "out" / "rows").iterdir()
    row = json.loads(kept.read_text(encoding="utf-8"))
    kept.write_text(json.dumps({**row, "rmse": 77.0}), encoding="utf-8")
    assert group_series.main() == 0
    assert "| 77.00 |" in (tmp_path / "out" / "series.md").read_text(encoding="utf-8")
    monkeypatch.setattr("sys.argv", [*command, "elastix"])
    assert group_series.main() == 2
    assert "--peer-python" in capsys.readouterr().out
    monkeypatch.setattr("sys.argv", [*command, "magic"])
    assert group_series.main() == 1
    assert "Unknown: magic" in capsys.readouterr().out


def test_the_figure_shows_sharper_means_and_straight_lines(job, tmp_path):
    before = group_series_figure.scaled(job.images)
    after = before[:1].expand(3, -1, -1, -1)
    found = group_series_figure.facts(before, after)
    assert found["sharpness"][1] > 1.2 * found["sharpness"][0]
    assert found["deviation"][1] < 1e-6 < 0.01 < found["deviation"][0]
    cut, still = before[:, :, 12], after[:, :, 12]
    line = group_series_figure.streak(still, 5)
    assert line.shape == (24, 3 * group_series_figure.STRIP)
    assert torch.equal(line, line[:, :1].expand_as(line))
    jumps = group_series_figure.streak(cut, 5)
    assert not torch.equal(jumps[:, 0], jumps[:, -1])
    box = (slice(2, 20), slice(0, 24))
    group_series_figure.draw(cut, still, box, 5, (1.0, 1.0), tmp_path / "series.png")
    assert (tmp_path / "series.png").stat().st_size > 5000
