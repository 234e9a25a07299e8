"""The harness of the results page: rows that stay or fail, the time told, the page; and its own rows."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "benchmarks"))

import peer_pair
import peers
import results
import results_choose
import results_page
import results_rows
import results_ways
from results_rows import Row, Store


def row_of(**changes: Any) -> Row:
    row: Row = {
        "set": "brain", "pair": "p1", "method": "svf", "setting": "balanced", "device": "cpu", "peer": False,
        "diffeomorphic": True, "status": "ok", "dice": 0.6, "folded_percent": 0.0,
        "folded_whole_percent": 0.0, "sd_log_jacobian": 0.4,
        "inverse_mean_mm": 0.03, "inverse_max_mm": 1.0, "cpu_seconds": 30.0,
        "wall_seconds": 31.0, "judging_seconds": 10.0, "peak_mb": 2000.0, "report": {"folded_percent": 0.0},
        "code": "c", "settings": "s", "threads": 1, "date": "2026-11-22", "commit": "abc", "machine": "a "
            "machine",
    }  # fmt: skip
    return row | changes


def start_of(pair: str = "p1", **changes: Any) -> Row:
    return row_of(method="start", setting="start", pair=pair, dice=0.4) | changes


# ---------------------------------------------------------------- rows on disk


def test_a_row_stands_only_for_the_same_question_and_code() -> None:
    row = row_of()
    calm = {"old_code": False, "retry": False}
    assert results_rows.kept(row, "c", "s", **calm)
    assert not results_rows.kept(None, "c", "s", **calm)
    assert not results_rows.kept(row, "other", "s", **calm)
    assert results_rows.kept(row, "other", "s", old_code=True, retry=False)
    assert not results_rows.kept(row, "c", "other", old_code=True, retry=False)
    failed = row_of(status="crashed (1): no")
    assert results_rows.kept(failed, "c", "s", **calm)
    assert not results_rows.kept(failed, "c", "s", old_code=False, retry=True)
    assert not results_rows.kept(row_of(status="not installed"), "c", "s", **calm)


def test_a_row_that_was_cut_short_counts_as_missing(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.write("brain", "p1", "svf--fast", row_of())
    assert store.read("brain", "p1", "svf--fast") == row_of()
    assert [path.name for path in tmp_path.rglob("*.*")] == ["p1--svf--fast.json"]
    path = store.path("brain", "p1", "svf--fast")
    path.write_text(path.read_text(encoding="utf-8")[:40], encoding="utf-8")
    assert store.read("brain", "p1", "svf--fast") is None
    assert store.rows() == []


def test_the_code_of_a_row_changes_with_the_engine_and_not_with_what_does_not_register(
    tmp_path: Path,
) -> None:
    library = tmp_path / "DiffeoRegLib"
    for name in ("methods", "training"):
        (library / name).mkdir(parents=True)
        (library / name / "a.py").write_text("one", encoding="utf-8")
    found = [results_rows.code_of_ours.__wrapped__(tmp_path)]
    for name in ("training", "methods"):
        (library / name / "a.py").write_text("two", encoding="utf-8")
        found.append(results_rows.code_of_ours.__wrapped__(tmp_path))
    assert found[0] == found[1] != found[2]


def test_the_time_is_that_of_the_same_set_then_of_any_then_a_guess() -> None:
    known = [row_of(), row_of(pair="p2", cpu_seconds=50.0), row_of(set="lung", cpu_seconds=5.0)]
    assert results_rows.expected_seconds(known, "brain", "svf", "balanced") == (50.0, False)
    assert results_rows.expected_seconds(known, "lung", "svf", "balanced") == (15.0, False)
    assert results_rows.expected_seconds(known[:1], "liver", "svf", "balanced") == (40.0, False)
    assert results_rows.expected_seconds(known, "brain", "greedy", "default") == (
        results_rows.UNKNOWN_SECONDS, True,
    )  # fmt: skip
    words = [results_rows.words_of_seconds(seconds) for seconds in (42.0, 125.0, 3900.0)]
    assert words == ["42 s", "2 min", "1 h 5 min"]


# ---------------------------------------------------------------- running


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> argparse.Namespace:
    """One synthetic pair, three ways: one works, one crashes, one is not installed; programs are played."""
    ways = [
        results_ways.Way("svf", "fast", flags=("--method", "svf")),
        results_ways.Way("greedy", "default", peer=True),
        results_ways.Way("elastix", "default", peer=True),
        results_ways.Way("lddmm", "balanced", reason="takes too long here"),
    ]
    monkeypatch.setattr(results_ways, "ways_of", lambda *_, **__: ways)
    monkeypatch.setattr(results, "cuda_here", lambda: False)
    calls: list[str] = []

    def ours(name: str, pair: Any, start: Path, out: Path, _: Any) -> Row:
        calls.append(name)
        (out / "ours").mkdir(parents=True, exist_ok=True)
        report = {"folds": {"folded_percent": 0.0, "other": 3}, "notes": ["smoothed"]}
        (out / "ours" / "report.json").write_text(json.dumps(report), encoding="utf-8")
        (out / "ours" / "transform.h5").write_bytes(b"large")
        return {"status": "ok", "cpu_seconds": 2.0, "wall_seconds": 3.0, "peak_mb": 1.0, "command": "secret",
                "forward": [str(start)], "inverse": [{"inverse_of": str(start)}]}  # fmt: skip

    def peer(name: str, *_: Any) -> Row:
        calls.append(name)
        return {
            "status": "not installed" if name == "elastix" else "crashed (7): out of luck",
            "cpu_seconds": 1.0,
        }

    monkeypatch.setattr(peers, "run_ours", ours)
    monkeypatch.setattr(peers, "run_peer", peer)
    words = [
        "--data",
        str(tmp_path),
        "--out",
        str(tmp_path / "out"),
        "--set",
        "quick",
        "--docs",
        str(tmp_path / "docs"),
    ]
    arguments = argparse.Namespace(words=words, calls=calls, rows=tmp_path / "out" / "rows" / "quick")
    monkeypatch.setattr(results_rows, "code_of_ours", lambda: arguments.code)
    monkeypatch.setattr(results_rows, "code_of_peers", lambda _: "peers")
    arguments.code = "one"
    return arguments


def test_a_failing_program_is_a_row_and_the_rest_goes_on(
    bench: argparse.Namespace, capsys: pytest.CaptureFixture[str]
) -> None:
    assert results.main(bench.words) == 2
    said = capsys.readouterr().out
    assert said.startswith("4 rows, 0 kept, 4 to run: about 6 min of one core (3 of them never timed")
    found = {path.name: json.loads(path.read_text(encoding="utf-8")) for path in bench.rows.glob("*")}
    assert set(found) == {f"quick--{way}.json" for way in
                          ("start--start", "svf--fast", "greedy--default", "elastix--default")}  # fmt: skip
    ours = found["quick--svf--fast.json"]
    assert ours["status"] == "ok"
    assert ours["report"] == {"folded_percent": 0.0, "minimum_determinant": None}
    assert ours["dice"] == found["quick--start--start.json"]["dice"]
    assert ours["inverse_max_mm"] < 1e-6
    assert "secret" not in json.dumps(found)
    assert str(bench.rows.parent) not in json.dumps(found)
    assert not list(bench.rows.parents[1].rglob("*.h5"))
    assert found["quick--greedy--default.json"]["status"] == "crashed (7): out of luck"


def test_a_run_that_was_killed_goes_on_where_it_was(
    bench: argparse.Namespace, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(*_: Any) -> Row:
        raise KeyboardInterrupt

    works = peers.run_peer
    monkeypatch.setattr(peers, "run_peer", killed)
    with pytest.raises(KeyboardInterrupt):
        results.main(bench.words)
    assert bench.calls == ["svf--fast"]
    monkeypatch.setattr(peers, "run_peer", works)
    assert results.main(bench.words) == 2
    assert bench.calls == ["svf--fast", "greedy", "elastix"]
    assert "4 rows, 2 kept, 2 to run" in capsys.readouterr().out
    results.main(bench.words)  # what failed stays failed, what was not installed is looked for again
    assert bench.calls[3:] == ["elastix"]
    results.main([*bench.words, "--retry"])
    assert bench.calls[4:] == ["greedy", "elastix"]
    bench.code = "two"
    results.main([*bench.words, "--keep"])
    assert bench.calls[6:] == ["elastix"]
    results.main(bench.words)
    assert bench.calls[7:] == ["svf--fast", "elastix"]


def test_the_plan_runs_nothing(bench: argparse.Namespace, capsys: pytest.CaptureFixture[str]) -> None:
    assert results.main([*bench.words, "--plan"]) == 0
    assert bench.calls == []
    assert not bench.rows.exists()
    assert "4 to run" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "said"),
    [(["--set", "brain"], "Name the folder"), (["--page", "--set", "brian"], "There is no set brian"),
     (["--page", "--weights", "sitreg"], "METHOD=FILE")],
)  # fmt: skip
def test_a_wrong_command_says_what_is_wrong(
    words: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        results.parse(words)
    assert said in capsys.readouterr().err


def test_scores_outside_a_lesion_do_not_look_inside(tmp_path: Path) -> None:
    import numpy as np
    import peer_scores
    import SimpleITK as sitk

    labels = np.ones((6, 7, 8), dtype=np.uint8)
    other = labels.copy()
    other[2:4] = 2
    lesion = (other == 2).astype(np.uint8)
    for name, values in (("image", labels * 9), ("labels", labels), ("other", other), ("lesion", lesion)):
        sitk.WriteImage(sitk.GetImageFromArray(values), str(tmp_path / f"{name}.nii.gz"))
    files = {name: tmp_path / f"{name}.nii.gz" for name in ("image", "labels", "other", "lesion")}
    start = tmp_path / "start.tfm"
    sitk.WriteTransform(sitk.AffineTransform(3), str(start))
    for mark, expected in ((None, 2 * 224 / (224 + 336)), (files["lesion"], 1.0)):
        pair = peer_pair.Pair("tumour", "t", files["image"], files["image"], files["other"], files["labels"],
                              fixed_lesion=mark)  # fmt: skip
        scores = peer_scores.Truth(pair, start).scores([str(start)], None, hd95=False)
        assert scores["dice"] == pytest.approx(expected)


# ---------------------------------------------------------------- what is compared


def test_every_method_of_the_catalogue_is_on_the_page_with_each_of_its_settings() -> None:
    from DiffeoRegLib.catalog import CARDS

    ways = [way for way in results_ways.ways_of("brain", cuda=False) if way.device == "cpu"]
    assert {way.method for way in ways} == {*CARDS, *results_ways.PEERS}
    settings = {name: {way.setting for way in ways if way.method == name} for name in CARDS}
    assert settings["sitreg-brain-t1"] == {"network", "refined"}
    assert settings["affine"] == {"from the headers"}
    assert settings["lddmm"] == {"balanced"}
    reasons = {way.method: way.reason for way in ways}
    assert reasons["svf"] == reasons["greedy"] == ""
    assert "weights of your own" in reasons["voxelmorph"]
    assert "groups" in reasons["groupmorph"]
    assert "slices" in reasons["metaregnet-brain-2d"]
    given = results_ways.ways_of("brain", cuda=False, weights={"voxelmorph": Path("w.safetensors")})
    assert any(way.method == "voxelmorph" and not way.reason and "--weights" in way.flags for way in given)


def test_every_flag_of_ours_is_understood() -> None:
    from DiffeoRegLib.cli.arguments import build_parser

    for where in results_ways.PAIR_SETS:
        for way in results_ways.ways_of(where, cuda=True):
            if not way.peer:
                read = build_parser().parse_args(["register", "a", "b", "-o", "c", *way.flags])
                assert read.method == way.method


def test_a_gpu_that_is_not_there_is_a_reason() -> None:
    for cuda in (False, True):
        way = next(w for w in results_ways.ways_of("lung", cuda=cuda) if (w.name == "svf--balanced--cuda"))
        assert ("no CUDA" in way.reason) is not cuda


# ---------------------------------------------------------------- the page


def test_the_page_tells_means_pairs_failures_and_what_was_not_run() -> None:
    rows = [start_of(), start_of("p2", dice=0.5), row_of(), row_of(pair="p2", dice=0.7),
            row_of(setting="fast", dice=0.55), row_of(method="greedy", setting="default", peer=True,
            folded_percent=0.01, folded_whole_percent=0.02, report=None),
            row_of(method="elastix", setting="default", peer=True, status="crashed (1): a | b")]  # fmt: skip
    rows += [row | {"pair": "p2"} for row in rows[-2:]]
    text = results_page.page(rows, [])
    lines = text.splitlines()
    svf = next(line for line in lines if 'id="brain-svf-balanced"' in line)
    assert "**.650** (.600 / .700)" in svf
    assert "| 0 | .40 | .030 (1.0) | 30 | 31 | 2000 |" in svf
    fast = next(line for line in lines if 'id="brain-svf-fast"' in line)
    assert "fast (1 of 2 pairs)" in fast
    assert "**" not in fast
    assert ".550 / -" in fast
    assert "| 0.01; 0.02 |" in next(line for line in lines if "brain-greedy" in line)
    assert "Not with everything" not in text
    assert "crashed (1): a / b" in next(line for line in lines if "brain-elastix" in line)
    assert "`lddmm`" in text or "`lddmm (balanced)`" in text
    assert "On a GPU: not run" in text
    assert "needs weights of your own" in text
    heads = next(line for line in lines if line.startswith("| method | setting | Dice"))
    assert all(line.count("|") == heads.count("|") for line in lines if '<a id="brain-' in line)


def test_a_pair_that_few_were_run_on_spoils_no_mean() -> None:
    rows = [start_of(), row_of(), row_of(setting="fast", dice=0.55), start_of("p2", dice=0.5),
            row_of(pair="p2", dice=0.7)]  # fmt: skip
    text = results_page.page(rows, [])
    assert "svf | balanced | .600 |" in text
    assert "not in the means: `p2`: start .500; svf (balanced) .700." in text
    assert "[.600, 30 s]" in results_choose.chosen(rows, results_choose.ADVICE[0])["best"]


def test_folds_without_a_word_in_the_report_are_counted() -> None:
    rows = [
        row_of(folded_whole_percent=0.5, report={"folded_percent": 0.4}),
        row_of(pair="p2", folded_whole_percent=0.1),
    ]
    text = "\n".join(results_page.folds_text(rows))
    assert (
        "Rows of ours: 2; with a folded corner anywhere: 2; of these without a word of it in the report of "
        "the run: 1" in text
    )


def test_choosing_goes_by_the_rows() -> None:
    rows = [start_of(), row_of(), row_of(setting="fast", dice=0.595, cpu_seconds=9.0),
            row_of(method="tvf-brain-t1", setting="network", dice=0.51, cpu_seconds=4.0),
            row_of(method="affine", setting="from the headers", dice=0.41, cpu_seconds=2.0),
            row_of(method="greedy", setting="default", peer=True, dice=0.59)]  # fmt: skip
    found = results_choose.chosen(rows, results_choose.ADVICE[0])
    assert found["best"] == "`svf` [.600, 30 s](results-table.md#brain-svf-balanced)"
    assert "`svf, fast`" in found["quick"]
    assert "tvf-brain-t1" in found["first"]
    assert "greedy" in found["peer"]
    page = results_choose.choose_page(rows, [])
    table = results_page.page(rows, [])
    for link in {part.split(")")[0] for part in page.split("results-table.md#")[1:]} - {"folds"}:
        assert f'id="{link}"' in table


def test_a_row_not_run_does_not_replace_one_that_was() -> None:
    old, new = row_of(), row_of(status="not installed")
    assert results.merged([old], [new]) == [old]
    assert results.merged([old], [row_of(dice=0.7)]) == [row_of(dice=0.7)]


def test_the_page_and_its_plots_are_written_and_small(tmp_path: Path) -> None:
    rows = [start_of(), row_of(), row_of(method="greedy", setting="default", peer=True)]
    series = tmp_path / "series"
    series.mkdir()
    one = {"series": "liver-18", "method": "svf pairwise", "tre_mm": 1.84, "first_mm": 2.0, "largest_mm": 9.0,
           "rmse": 3.0, "nmi": 0.3, "folded_percent": [0.0], "cpu_seconds": 30.0,
           "pairs": {"0-1": {}}}  # fmt: skip
    (series / "a.json").write_text(json.dumps(one), encoding="utf-8")
    results_page.write_page(rows, series, tmp_path)
    names = {path.name for path in tmp_path.glob("*.*")}
    assert names == {
        "results-table.md",
        "results-table.json",
        "choose-a-model.md",
        "results-accuracy.png",
        "results-folds.png",
    }
    assert all(path.stat().st_size < 150_000 for path in tmp_path.glob("*.*"))
    assert "1.84" in (tmp_path / "results-table.md").read_text(encoding="utf-8")
    assert results.published(tmp_path) == sorted(rows, key=lambda row: row["method"])
    results_page.write_page(results.published(tmp_path), None, tmp_path)  # without data: the same page again
    assert "svf pairwise" in (tmp_path / "results-table.md").read_text(encoding="utf-8")
