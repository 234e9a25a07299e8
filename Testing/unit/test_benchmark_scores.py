"""The benchmark's own scores, transforms, pairs and process accounting: the judges are judged first."""

from __future__ import annotations

import argparse
import dataclasses
import json
import stat
import sys
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "benchmarks"))

import peer_pair
import peer_runners
import peer_scores
import peer_tables
import peers


def hostile_image(values: np.ndarray | None = None, size: tuple[int, int, int] = (7, 9, 6)) -> sitk.Image:
    """Oblique, left-handed, anisotropic, off-centre."""
    image = sitk.Image(*size, sitk.sitkFloat32) if values is None else sitk.GetImageFromArray(values)
    turn = sitk.Euler3DTransform((0.0, 0.0, 0.0), 0.4, -0.3, 0.9)
    direction = np.reshape(turn.GetMatrix(), (3, 3)) @ np.diag([1.0, -1.0, 1.0])
    image.SetDirection(direction.ravel().tolist())
    image.SetSpacing((0.8, 1.5, 2.6))
    image.SetOrigin((-40.0, 13.0, 77.0))
    return image


def affine(seed: int, size: float = 0.15) -> sitk.AffineTransform:
    random = np.random.default_rng(seed)
    transform = sitk.AffineTransform(3)
    transform.SetMatrix((np.eye(3) + random.uniform(-size, size, (3, 3))).ravel().tolist())
    transform.SetCenter((11.0, -30.0, 50.0))
    transform.SetTranslation((3.0, -4.0, 5.0))
    return transform


def test_dice_of_known_overlaps_and_vanished_labels() -> None:
    fixed = np.array([1, 1, 1, 2, 2, 0, 3])
    moved = np.array([1, 1, 2, 2, 0, 0, 0])
    assert peer_scores.dice(fixed, moved, [1, 2, 3, 9]) == pytest.approx({1: 4 / 5, 2: 2 / 4, 3: 0.0, 9: 0.0})


@pytest.mark.parametrize(("axis", "expected_mm"), [(0, 3 * 2.0), (1, 3 * 1.0), (2, 3 * 0.5)])
def test_hd95_of_shifted_plates_is_the_shift(axis: int, expected_mm: float) -> None:
    fixed, moved = (np.zeros((12, 12, 12), dtype=np.int64) for _ in range(2))
    for image, place in ((fixed, 2), (moved, 5)):
        image[tuple(place if a == axis else slice(None) for a in range(3))] = 4
    assert peer_scores.hd95_mm(fixed, moved, 4, (2.0, 1.0, 0.5)) == pytest.approx(expected_mm)
    assert np.isnan(peer_scores.hd95_mm(fixed, np.zeros_like(fixed), 4, (2.0, 1.0, 0.5)))


def test_hd95_is_a_percentile_not_the_maximum() -> None:
    fixed = np.zeros((30, 30, 30), dtype=np.int64)
    fixed[2, 2:28, 2:28] = 1
    moved = fixed.copy()
    moved[28, 5, 5] = 1  # one stray voxel, 26 away
    assert peer_scores.hd95_mm(fixed, moved, 1, (1.0, 1.0, 1.0)) == 0.0


def slow_corner_folds(position: np.ndarray) -> np.ndarray:
    folded = np.zeros(position.shape[:3], dtype=bool)
    for voxel in np.ndindex(*folded.shape):
        for signs in product((1, -1), repeat=3):
            columns = []
            for axis, sign in enumerate(signs):
                other = list(voxel)
                other[axis] += sign
                if not 0 <= other[axis] < folded.shape[axis]:
                    break
                columns.append(sign * (position[tuple(other)] - position[voxel]))
            if len(columns) == 3 and np.linalg.det(np.array(columns)) <= 0:
                folded[voxel] = True
    return folded


def test_corner_folds_equal_the_definition_voxel_by_voxel() -> None:
    random = np.random.default_rng(1)
    position = np.moveaxis(np.indices((5, 6, 4)), 0, -1) + random.normal(0, 0.25, (5, 6, 4, 3))
    expected = slow_corner_folds(position)
    assert 0.05 < expected.mean() < 0.95
    np.testing.assert_array_equal(peer_scores.corner_folds(position), expected)


def test_corner_folds_see_a_checkerboard_that_central_differences_miss() -> None:
    index = np.moveaxis(np.indices((6, 6, 6)), 0, -1).astype(float)
    index[..., 2] += 0.6 * (-1.0) ** index[..., 2]
    assert peer_scores.corner_folds(index).all()
    assert peer_scores.sd_log_jacobian(index, np.pad(np.ones((4, 4, 4), bool), 1)) == pytest.approx(0.0)


def test_linear_maps_on_a_hostile_grid_fold_nowhere_or_everywhere() -> None:
    grid = hostile_image()
    mirror = sitk.AffineTransform(3)
    mirror.SetMatrix([-1.0, 0, 0, 0, 1, 0, 0, 0, 1])
    for transform, expected in ((affine(3), 0.0), (mirror, 1.0)):
        position = peer_scores.index_positions(peer_scores.field_mm(transform, grid), grid)
        assert peer_scores.corner_folds(position).mean() == expected
    position = peer_scores.index_positions(peer_scores.field_mm(affine(3), grid), grid)
    index = np.moveaxis(np.indices(position.shape[:3]), 0, -1)[2, 3, 4]
    point = grid.TransformIndexToPhysicalPoint([int(i) for i in index[::-1]])
    expected_index = grid.TransformPhysicalPointToContinuousIndex(affine(3).TransformPoint(point))[::-1]
    np.testing.assert_allclose(position[2, 3, 4], expected_index, atol=1e-9)


def test_sd_log_jacobian_of_a_quadratic_map() -> None:
    index = np.moveaxis(np.indices((12, 5, 5)), 0, -1).astype(float)
    position = index.copy()
    position[..., 0] = 0.05 * (index[..., 0] + 3) ** 2
    inside = np.zeros((12, 5, 5), bool)
    inside[1:-1, 1:-1, 1:-1] = True
    expected = np.log(0.1 * (np.arange(1, 11) + 3)).std()
    assert peer_scores.sd_log_jacobian(position, inside) == pytest.approx(expected, rel=1e-9)


def test_nmi_is_two_for_equal_images_one_for_unrelated_ones_and_blind_to_contrast() -> None:
    random = np.random.default_rng(2)
    a, b = random.uniform(0, 1, (2, 60, 60, 60))
    where = np.ones(a.shape, bool)
    assert peer_scores.nmi(a, a, where) == pytest.approx(2.0)
    assert peer_scores.nmi(a, 5 - 3 * a, where) > 1.9
    assert peer_scores.nmi(a, b, where) == pytest.approx(1.0, abs=0.01)
    where[30:] = False
    mixed = np.where(where, a, b)
    assert peer_scores.nmi(a, mixed, where) == pytest.approx(2.0)


def test_total_field_is_split_into_start_and_rest(tmp_path: Path) -> None:
    grid, start, rest = hostile_image(size=(12, 11, 10)), affine(5), affine(6, 0.02)
    rest.SetCenter((0.0, 0.0, 0.0))
    rest.SetTranslation((0.5, 0.2, -0.3))
    whole = sitk.CompositeTransform([start, rest])  # start(rest(x))
    field = sitk.GetImageFromArray(peer_scores.field_mm(whole, grid), isVector=True)
    field.CopyInformation(grid)
    sitk.WriteImage(field, str(tmp_path / "total.mha"))
    sitk.WriteTransform(start, str(tmp_path / "start.tfm"))
    read = peer_scores.read_transform([{"total": str(tmp_path / "total.mha")}], tmp_path / "start.tfm")
    inside = grid.TransformContinuousIndexToPhysicalPoint((4.3, 5.6, 3.2))
    np.testing.assert_allclose(read.TransformPoint(inside), whole.TransformPoint(inside), atol=1e-6)
    outside = (500.0, 500.0, 500.0)
    np.testing.assert_allclose(read.TransformPoint(outside), start.TransformPoint(outside), atol=1e-6)
    there_and_back = peer_scores.read_transform(
        [{"inverse_of": str(tmp_path / "start.tfm")}, str(tmp_path / "start.tfm")], tmp_path / "start.tfm"
    )
    np.testing.assert_allclose(there_and_back.TransformPoint(inside), inside, atol=1e-9)


def test_start_matrix_reads_the_centre_too(tmp_path: Path) -> None:
    transform = affine(8)
    sitk.WriteTransform(transform, str(tmp_path / "a.tfm"))
    matrix = peer_runners.start_matrix(str(tmp_path / "a.tfm"))
    point = (1.0, -2.0, 33.0)
    np.testing.assert_allclose((matrix @ [*point, 1.0])[:3], transform.TransformPoint(point), atol=1e-9)


def test_landmark_and_inverse_errors_in_mm() -> None:
    transform = affine(9)
    fixed = np.random.default_rng(0).uniform(-50, 50, (6, 3))
    moving = np.array([transform.TransformPoint(p) for p in fixed.tolist()])
    assert peer_scores.landmark_errors_mm(transform, fixed, moving).max() < 1e-9
    moving[:, 1] += 2.0
    np.testing.assert_allclose(peer_scores.landmark_errors_mm(transform, fixed, moving), 2.0)

    grid = hostile_image()
    shift = sitk.TranslationTransform(3, (0.3, 0.0, 0.0))
    off = sitk.CompositeTransform([shift, transform.GetInverse()])
    moving_image = sitk.Image(200, 200, 200, sitk.sitkUInt8)
    moving_image.SetOrigin((-100.0, -100.0, 0.0))
    everywhere = np.ones(grid.GetSize()[::-1], bool)
    mean, largest = peer_scores.inverse_error_mm(transform, off, grid, moving_image, everywhere)
    assert (mean, largest) == pytest.approx((0.3, 0.3))
    moving_image.SetOrigin((9000.0, 0.0, 0.0))
    assert np.isnan(peer_scores.inverse_error_mm(transform, off, grid, moving_image, everywhere)[0])


def test_points_of_both_formats(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("point\n2\n1 2 3\n4 5.5 -6\n", encoding="utf-8")
    (tmp_path / "a.vtk").write_text(
        "# vtk\nx\nASCII\nDATASET POLYDATA\nPOINTS 2 float\n1 2 3 4\n5.5 -6\nVERTICES 1 2\n", encoding="utf-8"
    )
    for name in ("a.txt", "a.vtk"):
        np.testing.assert_array_equal(peer_pair.read_points(tmp_path / name), [[1, 2, 3], [4, 5.5, -6]])
    (tmp_path / "b.txt").write_text("index\n1\n1 2 3\n", encoding="utf-8")
    with pytest.raises(ValueError, match="physical points"):
        peer_pair.read_points(tmp_path / "b.txt")


@pytest.fixture(scope="module")
def known(tmp_path_factory: pytest.TempPathFactory) -> peer_pair.Pair:
    folder = tmp_path_factory.mktemp("known")
    grid = np.stack(np.meshgrid(*(np.linspace(-1, 1, n) for n in (30, 40, 36)), indexing="ij"))
    blob = 100 * np.exp(-2 * (grid**2).sum(axis=0)) * (1.2 + np.sin(3 * grid[0] - 2 * grid[1] + grid[2]))
    path = folder / "fixed.nii.gz"
    sitk.WriteImage(hostile_image(blob.astype(np.float32)), str(path))
    return peer_pair.synthetic_pair(
        "known", "known", path, path, folder, amplitude_mm=5, cell_mm=25, noise=0.0
    )


def test_known_motion_landmarks_see_the_same_intensity(known: peer_pair.Pair) -> None:
    assert known.fixed_points_mm is not None
    assert known.moving_points_mm is not None
    assert len(known.fixed_points_mm) == 500
    values = []
    for path, points in ((known.fixed, known.fixed_points_mm), (known.moving, known.moving_points_mm)):
        image = sitk.ReadImage(str(path), sitk.sitkFloat32)
        values.append([image.EvaluateAtPhysicalPoint(point) for point in points.tolist()])
    assert np.abs(np.subtract(*values)).mean() < 0.01 * np.ptp(values[0])
    assert np.linalg.norm(known.fixed_points_mm - known.moving_points_mm, axis=1).mean() > 5.0


def test_truth_prefers_the_right_transform(known: peer_pair.Pair, tmp_path: Path) -> None:
    start = peer_pair.start_of(known, tmp_path)
    truth = peer_scores.Truth(known, start)
    sitk.WriteTransform(sitk.AffineTransform(3), str(tmp_path / "nothing.tfm"))
    before = truth.scores([str(tmp_path / "nothing.tfm")], None, hd95=False)
    after = truth.scores([str(start)], [{"inverse_of": str(start)}], hd95=False)
    assert after["tre_mm"] < 0.5 * before["tre_mm"]
    assert after["nmi"] > before["nmi"]
    assert after["folded_percent"] == 0.0
    assert after["sd_log_jacobian"] == pytest.approx(0.0, abs=1e-6)
    assert after["inverse_mean_mm"] < 1e-6
    assert "inverse_mean_mm" not in before


def script(path: Path, text: str) -> str:
    path.write_text("#!/bin/sh\n" + text, encoding="utf-8")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return str(path)


def run_python(code: str, tmp_path: Path, limit: float = 30.0) -> peers.Ran:
    command = [sys.executable, "-c", code]
    return peers.run_process(command, tmp_path / "log", threads=1, limit_seconds=limit, cwd=tmp_path)


def test_process_accounting(tmp_path: Path) -> None:
    hog = np.ones(60_000_000)  # our own memory must not be counted as the child's
    ran = run_python("x = bytearray(b'1') * 150_000_000; sum(range(4_000_000))", tmp_path)
    assert hog.nbytes > 400e6
    assert ran.code == 0
    assert 140 < ran.peak_mb < 350
    assert 0.03 < ran.cpu_seconds <= ran.wall_seconds + 0.1
    slept = run_python("import time; time.sleep(0.6)", tmp_path)
    assert slept.wall_seconds >= 0.6
    assert slept.cpu_seconds < 0.5
    assert run_python("raise SystemExit(5)", tmp_path).code == 5
    late = run_python("import time; time.sleep(60)", tmp_path, limit=0.3)
    assert late.code is None
    assert late.wall_seconds < 20


@pytest.mark.parametrize(
    ("text", "status"),
    [
        ("exit 3\n", "not installed"),
        ("echo one modality only; exit 4\n", "one modality only"),
        ("echo boom; exit 7\n", "crashed (7): boom"),
        ("exec sleep 60\n", "time limit 1 s"),
    ],
)
def test_no_method_is_dropped_silently(known: peer_pair.Pair, tmp_path: Path, text: str, status: str) -> None:
    fake = script(tmp_path / "python", text)
    args = argparse.Namespace(threads=1, masks=False, peer_python=fake, limit=1.0)
    row = peers.run_peer("greedy", known, tmp_path / "start.tfm", tmp_path, args)
    assert row["status"] == status
    row |= {"set": "known", "pair": "known", "method": "greedy"}
    assert status in peer_tables.markdown([row], "ours")
    assert status in peer_tables.one_line(row)


@pytest.mark.parametrize("method", sorted(peers.OURS))
def test_our_own_flags_are_understood(known: peer_pair.Pair, tmp_path: Path, method: str) -> None:
    from DiffeoRegLib.cli.arguments import build_parser
    from DiffeoRegLib.settings import PRESETS

    assert {*peers.PRESETS.values(), "general", "multimodal"} <= set(PRESETS)
    masked = dataclasses.replace(known, fixed_mask=known.fixed, moving_mask=known.moving, group="lung")
    args = argparse.Namespace(masks=True, ours_args="--seed 4")
    command = peers.ours_command(method, masked, tmp_path / "start.tfm", tmp_path, args)
    read = build_parser().parse_args(command)
    assert (read.fixed, read.moving, read.seed) == (str(known.fixed), str(known.moving), 4)
    assert (read.init, read.fixed_mask) == (str(tmp_path / "start.tfm"), str(known.fixed))
    assert (read.preset, read.effort, read.method) == (
        "lung-ct",
        _after(method, "--effort"),
        _after(method, "--method"),
    )


def _after(method: str, flag: str) -> str:
    """The word after a flag among a method's words."""
    words = peers.OURS[method]
    return words[words.index(flag) + 1]


def test_our_row_counts_only_registering(
    known: peer_pair.Pair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    phases = dict(reading=1.0, align=2.0, refine=4.0, resample=8.0, measure=16.0, writing=32.0, total=63.0)
    (tmp_path / "ours").mkdir()
    (tmp_path / "ours" / "report.json").write_text(json.dumps({"seconds": phases}), encoding="utf-8")
    args = argparse.Namespace(masks=False, ours_args="", threads=1, limit=20.0)
    for text, status in (("exit 0\n", "ok"), ("echo sorry; exit 2\n", "crashed (2): sorry")):
        monkeypatch.setattr(peers.sys, "executable", script(tmp_path / "python", text))
        result = peers.run_ours("ours", known, tmp_path / "start.tfm", tmp_path, args)
        assert result["status"] == status
        assert result.get("register_seconds") == (6.0 if status == "ok" else None)


def test_a_missing_package_is_told_apart_from_a_crash(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def misfit(job: dict[str, Any]) -> dict[str, Any]:
        raise peer_runners.NotForThisPairError("no")

    job = {"threads": 1, "out": str(tmp_path)}
    table = {
        "a": ("no_such_package_here", misfit),
        "b": ("json", misfit),
        "c": ("json", lambda job: {"fine": 1}),
    }
    monkeypatch.setattr(peer_runners, "RUNNERS", table)
    codes = {}
    for method in table:
        (tmp_path / "job.json").write_text(json.dumps(job | {"method": method}), encoding="utf-8")
        monkeypatch.setattr(sys, "argv", ["x", str(tmp_path / "job.json")])
        codes[method] = peer_runners.main()
    assert codes == {"a": 3, "b": 4, "c": 0}
    assert json.loads((tmp_path / "answer.json").read_text(encoding="utf-8")) == {"fine": 1}


def row(pair: str, method: str, dice: float, cpu: float) -> dict[str, Any]:
    return {
        "set": "s", "pair": pair, "method": method, "status": "ok", "dice": dice, "cpu_seconds": cpu,
        "register_seconds": cpu / 2,
    }  # fmt: skip


def test_table_ratios_and_merging(tmp_path: Path) -> None:
    old = [row("p", "ours", 0.1, 9.0), row("p", "greedy", 0.5, 40.0), row("q", "greedy", 0.7, 60.0)]
    new = [row("p", "ours", 0.6, 20.0), row("q", "ours", 0.8, 30.0)]
    rows = peer_tables.merge([old, new])
    means = {mean["method"]: mean for mean in peer_tables.means(rows, "s")}
    assert means["ours"]["dice"] == pytest.approx(0.7)
    table = peer_tables.markdown(rows, "ours")
    greedy = next(line for line in table.splitlines() if line.startswith("| greedy"))
    assert "-0.1000" in greedy
    assert greedy.count("2.00x") == 2
    peer_tables.save(rows, tmp_path / "a.json", "ours")
    assert json.loads((tmp_path / "a.json").read_text(encoding="utf-8"))["rows"] == rows
    partial = peer_tables.markdown([r for r in rows if (r["pair"], r["method"]) != ("q", "greedy")], "ours")
    line = next(line for line in partial.splitlines() if line.startswith("| greedy"))
    assert line.endswith("| - | - | - | - |")  # means over other pairs are not compared


def test_quick_run_through_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--quick", "--methods", "demons-fast", "--threads", "1", "--scratch", str(tmp_path)]
    code = peers.main([*arguments, "--out", str(tmp_path / "r.json"), "--reference", "start"])
    printed = capsys.readouterr().out
    rows = {r["method"]: r for r in json.loads((tmp_path / "r.json").read_text(encoding="utf-8"))["rows"]}
    assert code == 0, printed
    assert rows["demons-fast"]["dice"] > rows["start"]["dice"] + 0.03
    assert rows["demons-fast"]["register_seconds"] < rows["demons-fast"]["wall_seconds"]
    assert "demons-fast" in printed
    assert peers.main(["--quick", "--methods", "gready"]) == 1
    assert "gready" in capsys.readouterr().out
