"""The command `train`: runs, starts from weights, and everything that goes wrong."""

from __future__ import annotations

import errno
import json
import os
import signal

import pytest
import torch

from DiffeoRegLib.cli.train import Stop, stop_after_the_step
from DiffeoRegLib.errors import Cancelled, SettingsError
from DiffeoRegLib.networks.weights import read_checkpoint, read_network
from DiffeoRegLib.training.config import as_plain, check_resumable, config_from
from DiffeoRegLib.training.start import prepared_run
from DiffeoRegLib.volumes.files import write_volume
from Testing.command import one_sentence, run
from Testing.fake_run import blobs, plane_grid
from Testing.train_command import CONFIG, rows, same_runs, written

pytestmark = pytest.mark.filterwarnings("ignore::EncodingWarning:matplotlib")  # its font cache, made once


@pytest.fixture(autouse=True)
def no_pictures(monkeypatch):
    """Curves are slow to draw, and drawn in other tests."""
    monkeypatch.setattr("DiffeoRegLib.training.run_folder.draw_curve", lambda folder: False)


@pytest.fixture
def images(tmp_path):
    """A folder of four planes."""
    folder = tmp_path / "images"
    folder.mkdir()
    for number in range(4):
        write_volume(blobs(plane_grid(), f"s{number}"), folder / f"s{number}.nii.gz")
    return folder


def of_images(**changes):
    """A data section that reads images as they are."""
    options = {"shape": [16, 16], "alignment": "identity", **changes.pop("options", {})}
    return {"source": "images", "validation": None, "options": options, **changes}


# ---------------------------------------------------------------- runs


def test_file_names_in_a_configuration_are_relative_to_it(tmp_path, images, monkeypatch):
    config = written(tmp_path / "a.yaml", data=of_images(options={"cache": "kept"}), steps=1, best="loss")
    monkeypatch.chdir(images)
    assert run("train", config, "-o", tmp_path / "run", "--quiet") == 0
    assert list((tmp_path / "kept").glob("*.safetensors"))


def test_a_run_tells_what_it_left_behind(tmp_path, capsys):
    assert run("train", written(tmp_path / "a.yaml"), "-o", tmp_path / "run", "--json") == 0
    events = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert {event["phase"] for event in events if event["event"] == "progress"} == {
        "preparing", "training", "validation",
    }  # fmt: skip
    result = events[-1]
    assert result["event"] == "result"
    assert (result["step"], result["finished"], result["best_metric"]) == (12, True, "dice")
    assert all(os.path.isfile(path) for path in result["files"].values())  # noqa: PTH113
    assert set(result["files"]) == {"best.safetensors", "last.safetensors"}


def test_a_run_stopped_in_time_goes_on_exactly(tmp_path, capsys):
    config = written(tmp_path / "a.yaml")
    words = ["train", config, "-o", tmp_path / "run", "--quiet", "--stop-after", 0]
    assert run(*words) == 0
    assert "Stopped in time after step 1 of 12; --resume goes on" in capsys.readouterr().out
    for _ in range(11):
        assert run(*words, "--resume") == 0
    assert "Trained 12 steps." in capsys.readouterr().out
    assert run("train", config, "-o", tmp_path / "whole", "--quiet") == 0
    assert same_runs(tmp_path / "run", tmp_path / "whole")


def test_a_folder_with_a_run_is_left_alone(tmp_path, capsys):
    config = written(tmp_path / "a.yaml", steps=2)
    words = ["train", config, "-o", tmp_path / "run", "--quiet"]
    assert run(*words) == 0
    before = (tmp_path / "run" / "state.safetensors").read_bytes()
    capsys.readouterr()
    assert run(*words) == 3
    assert "already holds a training run" in one_sentence(capsys)
    assert run(*words, "--resume", "--set", "seed=6") == 2
    assert "other settings (seed)" in one_sentence(capsys)
    assert (tmp_path / "run" / "state.safetensors").read_bytes() == before


def test_one_ctrl_c_asks_and_a_second_ends(monkeypatch):
    stop = Stop()
    before = signal.getsignal(signal.SIGINT)
    with stop_after_the_step(stop, alone=True):
        signal.raise_signal(signal.SIGINT)
        assert stop()
        signal.raise_signal(signal.SIGTERM)  # a polite kill waits
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is before
    with stop_after_the_step(stop, alone=False):
        signal.raise_signal(signal.SIGINT)  # torchrun passes it on again


@pytest.mark.parametrize(("question", "step", "validated"), [(2, 0, []), (2 + 4 + 2, 4, ["0"])])
def test_ctrl_c_while_validating_comes_back_to_the_validation(tmp_path, question, step, validated):
    """The step is done and its validation is not: the resumed run makes up for it.

    question: at which the answer is yes; asked before both validation pairs and in every step.
    """
    config = config_from(CONFIG)
    asked = []

    def stop_wanted():
        asked.append(1)
        return len(asked) == question

    first, _ = prepared_run(config, tmp_path / "run", base=tmp_path, stop_wanted=stop_wanted)
    with pytest.raises(Cancelled, match="validating"):
        first.run()
    assert read_checkpoint(tmp_path / "run" / "state.safetensors").description["step"] == step
    assert [row["step"] for row in rows(tmp_path / "run" / "validation.csv")] == validated
    prepared_run(config, tmp_path / "run", base=tmp_path, resume=True)[0].run(resume=True)
    prepared_run(config, tmp_path / "whole", base=tmp_path)[0].run()
    assert same_runs(tmp_path / "run", tmp_path / "whole")


# ---------------------------------------------------------------- starts from weights


def test_a_run_starts_from_the_weights_of_another(tmp_path, capsys):
    first, second = tmp_path / "first", tmp_path / "second"
    config = written(tmp_path / "a.yaml")
    assert run("train", config, "-o", first, "--quiet") == 0
    weights = first / "last.safetensors"
    words = ["train", config, "-o", second, "--quiet", "--set", "network.options.samples_per_control=2"]
    words += ["--set", "optimiser.learning_rate=1e-30", "--stop-after", 0]
    assert run(*words, "--start-from", weights) == 0
    start, moved = (read_checkpoint(run_ / "last.safetensors").tensors for run_ in (first, second))
    assert all(torch.allclose(moved[name], value, atol=1e-12) for name, value in start.items())
    description = read_network(second / "last.safetensors")[1]
    recorded = description["config"]["start_from"]
    assert recorded["file"] == str(weights)
    assert len(recorded["sha256"]) == 64
    assert as_plain(config_from(description["config"]))["start_from"] == recorded

    words += ["--resume"]
    assert run(*words) == 0  # without the flag: the start it had
    moved_file = tmp_path / "elsewhere.safetensors"
    moved_file.write_bytes(weights.read_bytes())
    assert run(*words, "--start-from", moved_file) == 0  # the same weights
    capsys.readouterr()
    assert run(*words, "--start-from", first / "best.safetensors") == 2
    assert "was started from" in one_sentence(capsys)


def test_weights_to_start_from_are_known_by_their_content():
    before, moved, other = (
        config_from({**CONFIG, "start_from": {"file": file, "sha256": digest}})
        for file, digest in (("a", "12"), ("b", "12"), ("a", "34"))
    )
    check_resumable(before, moved)
    for wanted in (other, config_from(CONFIG)):
        with pytest.raises(SettingsError, match="start_from"):
            check_resumable(before, wanted)


def test_a_run_that_started_at_random_is_not_resumed_from_weights(tmp_path, capsys):
    config = written(tmp_path / "a.yaml")
    assert run("train", config, "-o", tmp_path / "run", "--quiet", "--stop-after", 0) == 0
    weights = tmp_path / "run" / "last.safetensors"
    capsys.readouterr()
    assert run("train", config, "-o", tmp_path / "run", "--resume", "--quiet", "--start-from", weights) == 2
    assert "started from random weights" in one_sentence(capsys)


@pytest.mark.parametrize(
    ("damage", "words"),
    [("sizes", "weights of another network"), ("cut", "damaged"), ("state", "state of a training run")],
)
def test_weights_that_do_not_fit_are_no_start(tmp_path, capsys, damage, words):
    config = written(tmp_path / "a.yaml", steps=1)
    assert run("train", config, "-o", tmp_path / "run", "--quiet") == 0
    weights = tmp_path / "run" / ("state.safetensors" if damage == "state" else "last.safetensors")
    change = "network.sizes.heads=[4, 4]" if damage == "sizes" else "seed=1"
    if damage == "cut":
        weights.write_bytes(weights.read_bytes()[:-9])
    capsys.readouterr()
    assert run(
        "train", config, "-o", tmp_path / "new", "--quiet", "--start-from", weights, "--set", change
    ) == 2  # fmt: skip
    assert words in one_sentence(capsys)


# ---------------------------------------------------------------- bad data, full disk, no finite loss


def test_a_measure_that_the_images_lack_is_said_before_the_first_step(tmp_path, images, capsys):
    data = of_images(source=str(images), validation=str(images), options={"share": 0.5})
    for best, left in (("dice", 2), ("tre_mm", 2), ("loss", 0)):
        config = written(tmp_path / "a.yaml", data=data, best=best)
        folder = tmp_path / best
        assert run("train", config, "-o", folder, "--quiet") == left
        assert folder.exists() == (left == 0)
        if left:
            assert f"chosen by '{best}'" in one_sentence(capsys)


def test_one_image_makes_no_pair(tmp_path, images, capsys):
    for path in sorted(images.iterdir())[1:]:
        path.unlink()
    config = written(tmp_path / "a.yaml", data=of_images(), best="loss")
    assert run("train", config, "-o", tmp_path / "run", "--quiet") == 2
    said = one_sentence(capsys)
    assert "one image to train on ('s0')" in said
    assert "synthetic" in said


def test_an_unreadable_image_stops_the_run_which_goes_on_when_it_is_repaired(tmp_path, images, capsys):
    intact = (images / "s2.nii.gz").read_bytes()
    (images / "s2.nii.gz").write_bytes(intact[:200])
    config = written(tmp_path / "a.yaml", data=of_images(), best="loss")
    words = ["train", config, "-o", tmp_path / "run", "--quiet"]
    assert run(*words) == 2
    said = one_sentence(capsys)
    assert "s2" in said
    assert "on_bad_data: skip" in said
    (images / "s2.nii.gz").write_bytes(intact)
    assert run(*words, "--resume") == 0
    assert run("train", config, "-o", tmp_path / "whole", "--quiet") == 0
    assert same_runs_without_best(tmp_path / "run", tmp_path / "whole")


def same_runs_without_best(one, other):
    """As same_runs, for runs without validation."""
    first, second = (read_checkpoint(run_ / "state.safetensors").tensors for run_ in (one, other))
    return all(torch.equal(value, second[name]) for name, value in first.items())


def test_an_unreadable_image_is_skipped_and_named_where_that_is_wanted(tmp_path, images, capsys):
    (images / "s2.nii.gz").write_bytes((images / "s2.nii.gz").read_bytes()[:200])
    config = written(tmp_path / "a.yaml", data=of_images(), best="loss", on_bad_data="skip", batch=3)
    assert run("train", config, "-o", tmp_path / "run", "--quiet") == 0
    found = rows(tmp_path / "run" / "problems.csv")
    assert found
    assert all("s2" in row["problem"] for row in found)
    assert rows(tmp_path / "run" / "training.csv")[-1]["step"] == "12"


def test_a_full_disk_leaves_the_state_before_and_the_run_goes_on(tmp_path, monkeypatch, capsys):
    config = written(tmp_path / "a.yaml")
    words = ["train", config, "-o", tmp_path / "run", "--quiet"]
    flush, states = os.fsync, []

    def fill(descriptor):
        if "state" in os.readlink(f"/proc/self/fd/{descriptor}"):  # noqa: PTH115
            states.append(descriptor)
        if len(states) == 4:  # steps 0, 3 and 6 are written
            raise OSError(errno.ENOSPC, "No space left on device")
        flush(descriptor)

    if not os.path.isdir("/proc/self/fd"):  # noqa: PTH112
        pytest.skip("the name of an open file is known on Linux only")
    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", fill)
        assert run(*words) == 3
    said = one_sentence(capsys)
    assert "No space left" in said
    assert "the one written before is intact" in said
    assert read_checkpoint(tmp_path / "run" / "state.safetensors").description["step"] == 6
    assert not list((tmp_path / "run").glob(".*"))
    assert run(*words, "--resume") == 0
    assert run("train", config, "-o", tmp_path / "whole", "--quiet") == 0
    assert same_runs(tmp_path / "run", tmp_path / "whole")


def test_losses_that_are_no_number_are_counted_and_end_the_run(tmp_path, capsys):
    """The first step throws the weights so far that everything after it is NaN."""
    changes = {"optimiser": {"name": "sgd", "learning_rate": 1e38}, "nan_limit": 5, "steps": 40}
    config = written(tmp_path / "a.yaml", **changes, best="loss", data={**CONFIG["data"], "validation": None})
    assert run("train", config, "-o", tmp_path / "run", "--quiet") == 2
    said = one_sentence(capsys)
    assert "5 steps gave no finite loss" in said
    assert "learning rate" in said
    table = rows(tmp_path / "run" / "training.csv")
    assert table[-1]["skipped"] == "4"  # the fifth ended it
    assert len(rows(tmp_path / "run" / "problems.csv")) == 5
