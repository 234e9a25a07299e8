"""The training loop: it learns, it accumulates, it skips what is broken and says so, it measures."""

from __future__ import annotations

import csv
import sys
import types

import pytest
import torch
from torch import nn

from DiffeoRegLib.errors import Cancelled, InputError, OutputExistsError, SettingsError
from DiffeoRegLib.training.config import LossConfig
from DiffeoRegLib.training.curve import Table, columns_of, draw_curve
from DiffeoRegLib.training.objective import Objective
from DiffeoRegLib.training.validation import is_better, validate
from Testing.training_cases import SETTINGS, Blobs, Fields, Shifts, blob, same_weights, settings, trainer

pytestmark = pytest.mark.filterwarnings("ignore::EncodingWarning:matplotlib")  # its font cache, made once

MSE = [{"name": "mse"}]


def rows(path):
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


class OneShift(Blobs):
    """Pairs that all have the same motion: 2 voxels along axis 0."""

    def __getitem__(self, index):
        moving, fixed = blob((7.0, 6.0)), blob((5.0, 6.0))
        points = {
            "moving_points_vox": torch.tensor([[7.0, 6.0]]),
            "fixed_points_vox": torch.tensor([[5.0, 6.0]]),
        }
        return {"moving": moving, "fixed": fixed, "names": str(index), **points}


def test_a_known_motion_is_learned(tmp_path):
    config = settings(
        losses=MSE,
        steps=100,
        optimiser={"learning_rate": 0.2, "schedule": "cosine"},
        best="tre_mm",
        validate_every=50,
    )
    run = trainer(tmp_path, config, Shifts(), OneShift(), OneShift(2))
    outcome = run.run()
    assert run.network.shift.tolist() == pytest.approx([2.0, 0.0], abs=0.05)
    assert outcome.finished
    assert outcome.best < 0.05
    errors = [float(row["tre_mm"]) for row in rows(tmp_path / "validation.csv")]
    assert errors[0] == pytest.approx(2.0)
    assert (tmp_path / "curve.png").read_bytes().startswith(b"\x89PNG")


def test_accumulated_batches_are_one_large_batch(tmp_path):
    """Adam's first steps hide the size of a gradient: plain descent does not."""
    weights = []
    for batch, accumulation in ((6, 1), (1, 6), (2, 3)):
        config = settings(batch=batch, accumulation=accumulation, steps=2, losses=MSE, best="loss",
                          optimiser={"name": "sgd", "learning_rate": 0.5})  # fmt: skip
        run = trainer(tmp_path / str(batch), config)
        run.run()
        weights.append(torch.cat([p.detach().flatten() for p in run.network.parameters()]))
    assert torch.allclose(weights[0], weights[1], atol=1e-6)
    assert torch.allclose(weights[0], weights[2], atol=1e-6)
    torch.manual_seed(3)
    start = torch.cat([p.detach().flatten() for p in trainer(tmp_path / "new").network.parameters()])
    assert float((weights[0] - start).abs().max()) > 1e-3


@pytest.mark.parametrize("labels", [False, True])
def test_validation_measures_what_the_data_allow(labels):
    network = Shifts()
    found = validate(network, Blobs(3, labels=labels), Objective([LossConfig("mse")]))
    assert found["folded_percent"] == 0
    assert found["sd_log_jacobian"] == 0
    assert ("dice" in found) == labels
    assert "tre_mm" not in found
    assert network.training
    assert found == validate(network, Blobs(3, labels=labels), Objective([LossConfig("mse")]))


def test_landmark_errors_are_in_mm_and_dice_is_of_the_moved_labels():
    network = Shifts()
    pairs = OneShift(1)
    item = pairs[0]
    labels = {f"{role}_labels": (item[role] > 0.5).long() for role in ("moving", "fixed")}
    pairs.__class__ = type("Labelled", (OneShift,), {"__getitem__": lambda self, index: {**item, **labels}})
    objective = Objective([LossConfig("mse")], spacing=(1.5, 1.0))
    still = validate(network, pairs, objective)
    assert still["tre_mm"] == pytest.approx(3.0)
    with torch.no_grad():
        network.shift[0] = 2
    moved = validate(network, pairs, objective)
    assert moved["tre_mm"] == pytest.approx(0, abs=1e-5)
    assert moved["dice"] == 1
    assert still["dice"] < 0.7


def test_moved_labels_are_never_mixed():
    """Four tenths of a voxel change no label read by nearest neighbour; a mean of 1 and 3 would be 2."""
    labels = torch.ones(1, 12, 14, dtype=torch.long)
    labels[:, 6:] = 3
    pairs = Blobs(1)
    item = {**pairs[0], "moving_labels": labels, "fixed_labels": labels}
    pairs.__class__ = type("Labelled", (Blobs,), {"__getitem__": lambda self, index: item})
    network = Shifts()
    with torch.no_grad():
        network.shift[0] = -0.4
    # Row 0 is read outside by less than half a voxel and keeps its label, too.
    assert validate(network, pairs, Objective([LossConfig("mse")]))["dice"] == 1


def test_folds_are_counted():
    class Folding(nn.Module):
        def forward(self, moving, fixed):
            u_vox = torch.zeros(1, 2, 12, 14)
            u_vox[:, 0, 6:] = -3.0
            return Fields(u_vox, -u_vox)

    found = validate(Folding(), Blobs(1), Objective([LossConfig("mse")]))
    assert found["folded_percent"] == pytest.approx(100 / 11)


def test_better_is_a_matter_of_the_metric():
    assert is_better("dice", 0.6, 0.5)
    assert not is_better("dice", 0.5, 0.5)
    assert is_better("tre_mm", 0.5, 0.6)
    assert not is_better("tre_mm", 0.7, 0.6)
    assert is_better("loss", 3.0, None)
    assert not is_better("dice", float("nan"), None)


def test_a_metric_the_data_do_not_have_is_refused_before_training(tmp_path):
    run = trainer(tmp_path, settings(best="dice"), training=Blobs(), validation=Blobs(2))
    with pytest.raises(SettingsError, match=r"'dice'.*add labels"):
        run.run()
    assert not run.training.read


class Breaks(Shifts):
    """Gives NaN in chosen steps, for the rest the same as Shifts."""

    def __init__(self, when, how="loss"):
        super().__init__()
        self.when, self.how, self.calls = when, how, 0

    def forward(self, moving, fixed):
        maps = super().forward(moving, fixed)
        broken = self.training and self.calls in self.when
        self.calls += self.training
        if broken and self.how == "loss":
            return Fields(maps.u12 * float("nan"), maps.u21)
        if broken and self.how == "gradient":
            return Fields(maps.u12 + 0 * (self.shift - self.shift).sum().sqrt(), maps.u21)
        if broken:
            return Fields(maps.u12 + 1e6, maps.u21)
        return maps


@pytest.mark.parametrize("how", ["loss", "gradient", "lost"])
def test_a_step_that_is_not_finite_is_skipped_and_counted(tmp_path, how):
    config = settings(losses=MSE, steps=5, log_every=1, best="loss")
    run = trainer(tmp_path, config, Breaks({2}, how))
    outcome = run.run()
    assert outcome.finished
    assert outcome.skipped == 1
    assert bool(run.network.shift.isfinite().all())
    table = rows(tmp_path / "training.csv")
    assert [row["skipped"] for row in table] == ["0", "0", "1", "1", "1"]
    assert table[2]["loss"] == ""
    if how != "gradient":
        assert "moving" in rows(tmp_path / "problems.csv")[0]["problem"]


def test_a_skipped_step_changes_nothing(tmp_path):
    runs = []
    for when in ({3, 4}, ()):
        config = settings(losses=MSE, steps=5 if when else 3, best="loss")
        runs.append(trainer(tmp_path / str(len(when)), config, Breaks(when)))
        runs[-1].run()
    assert same_weights(runs[0].network, runs[1].network)


def test_too_many_skipped_steps_stop_the_run_and_it_can_go_on(tmp_path):
    config = settings(losses=MSE, steps=9, nan_limit=3, best="loss")
    run = trainer(tmp_path, config, Breaks(range(1, 99)))
    with pytest.raises(InputError, match=r"3 steps gave no finite.*learning rate"):
        run.run()
    assert run.counters.step == 3
    outcome = trainer(tmp_path, settings(losses=MSE, steps=9, nan_limit=9, best="loss"), Shifts()).run(
        resume=True
    )
    assert outcome.step == 9
    assert outcome.skipped == 3


def test_an_unreadable_pair_is_named_and_stops_the_run(tmp_path):
    run = trainer(tmp_path, training=Blobs(unreadable={4}))
    with pytest.raises(InputError, match=r"Pair 4 could not be read: 'subject-4.nii.gz' is truncated"):
        run.run()
    outcome = trainer(tmp_path, training=Blobs()).run(resume=True)  # repaired
    assert outcome.finished


def test_an_unreadable_pair_is_named_and_skipped(tmp_path):
    config = settings(on_bad_data="skip", batch=2, best="loss")
    run = trainer(tmp_path, config, training=Blobs(unreadable={4}))
    outcome = run.run()
    assert outcome.finished
    assert outcome.skipped == 0
    found = rows(tmp_path / "problems.csv")
    assert found
    assert all("subject-4.nii.gz" in row["problem"] for row in found)


def test_nothing_but_unreadable_pairs_end_the_run(tmp_path):
    config = settings(on_bad_data="skip", nan_limit=4, best="loss")
    with pytest.raises(InputError, match="4 steps"):
        trainer(tmp_path, config, training=Blobs(unreadable=range(6))).run()


def test_an_unreadable_validation_pair_is_named(tmp_path):
    with pytest.raises(InputError, match="subject-1"):
        trainer(tmp_path, validation=Blobs(2, unreadable={1})).run()


def test_the_norm_of_a_gradient_is_limited(tmp_path):
    moves = []
    for clip in (None, 1e-3):
        config = settings(losses=MSE, steps=1, best="loss",
                          optimiser={"name": "sgd", "learning_rate": 1.0, "clip_norm": clip})  # fmt: skip
        run = trainer(tmp_path / str(clip), config, Shifts())
        run.run()
        moves.append(run.network.shift.norm().item())
    assert moves[0] > 2e-3
    assert moves[1] == pytest.approx(1e-3, rel=1e-4)


def test_the_learning_rate_follows_its_schedule(tmp_path):
    config = settings(losses=MSE, steps=4, log_every=1, best="loss",
                      optimiser={"name": "sgd", "learning_rate": 1.0, "schedule": "cosine"})  # fmt: skip
    run = trainer(tmp_path, config, Shifts())
    run.run()
    rates = [float(row["learning_rate"]) for row in rows(tmp_path / "training.csv")]
    assert rates == pytest.approx([1.0, 0.853553, 0.5, 0.146447], abs=1e-6)
    assert run.optimiser.param_groups[0]["lr"] == pytest.approx(0.146447, abs=1e-6)


def test_a_folder_with_a_run_is_not_overwritten(tmp_path):
    trainer(tmp_path).run()
    before = (tmp_path / "state.safetensors").read_bytes()
    with pytest.raises(OutputExistsError, match="resume it"):
        trainer(tmp_path).run()
    assert (tmp_path / "state.safetensors").read_bytes() == before
    with pytest.raises(InputError, match="no training run"):
        trainer(tmp_path / "new").run(resume=True)
    with pytest.raises(SettingsError, match="other settings"):
        trainer(tmp_path, settings(seed=9, best="loss")).run(resume=True)
    with pytest.raises(SettingsError, match="training pairs"):
        trainer(tmp_path, training=Blobs(5)).run(resume=True)


def test_numbered_weights_are_kept_as_asked(tmp_path):
    trainer(tmp_path, settings(keep=2, validate_every=2, best="loss"), validation=Blobs(1)).run()
    assert sorted(p.name for p in tmp_path.glob("step-*")) == [
        "step-00000006.safetensors", "step-00000008.safetensors",
    ]  # fmt: skip


def test_a_cancelled_run_can_go_on(tmp_path):
    def cancel(progress):
        raise Cancelled(progress.message)

    with pytest.raises(Cancelled, match="step 3 of 8, loss"):
        trainer(tmp_path, report=cancel).run()
    run = trainer(tmp_path)
    run.run(resume=True)
    whole = trainer(tmp_path / "whole")
    whole.run()
    assert same_weights(run.network, whole.network)


def test_too_few_pairs_for_a_batch_are_refused(tmp_path):
    with pytest.raises(SettingsError, match="fewer than one batch of 7"):
        trainer(tmp_path, settings(batch=7, best="loss"))


def test_a_sentence_of_the_dataset_is_recorded(tmp_path):
    class Replaces(Blobs):
        def __getitem__(self, index):
            return {**super().__getitem__(index), "skipped": ["'x.nii' is empty."]}

    trainer(tmp_path, training=Replaces()).run()
    assert rows(tmp_path / "problems.csv")[0]["problem"] == "'x.nii' is empty."


def test_a_table_survives_a_kill_in_the_middle_of_a_row(tmp_path):
    table = Table(tmp_path / "t.csv", ("loss", "dice"))
    table.start(0)
    for step in (1, 2, 3):
        table.add(step, {"loss": step / 2, "dice": 0.5})
    with table.path.open("a", encoding="utf-8") as file:
        file.write("4,0.")
    table.start(2)
    assert [row["step"] for row in table.read()] == ["1", "2"]
    table.add(3, {"loss": "nan"})
    assert columns_of(table.path) == {"loss": ([1, 2], [0.5, 1.0]), "dice": ([1, 2], [0.5, 0.5])}


def test_without_matplotlib_there_is_no_picture(tmp_path, monkeypatch):
    monkeypatch.setattr("DiffeoRegLib.training.curve.find_spec", lambda name: None)
    assert draw_curve(tmp_path) is False
    trainer(tmp_path, validation=Blobs(1)).run()
    assert not (tmp_path / "curve.png").exists()


def test_the_numbers_go_to_tensorboard_where_it_is(tmp_path, monkeypatch):
    seen = []

    class Writer:
        def __init__(self, folder, purge_step):
            seen.append((folder, purge_step))

        def add_scalar(self, name, value, step):
            seen.append((name, step))

        def close(self):
            seen.append("closed")

    board = types.ModuleType("torch.utils.tensorboard")
    board.SummaryWriter = Writer
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", board)
    monkeypatch.setattr("DiffeoRegLib.training.curve.find_spec", lambda name: name == "tensorboard")
    trainer(tmp_path, validation=Blobs(1)).run()
    assert seen[0] == (str(tmp_path / "tensorboard"), 1)
    assert ("training/loss", 8) in seen
    assert ("validation/loss", 0) in seen
    assert seen[-1] == "closed"


def test_half_precision_trains_the_same_network(tmp_path):
    finals = []
    for precision in ("fp32", "bf16"):
        run = trainer(tmp_path / precision, settings(precision=precision, steps=3, best="loss"))
        run.run()
        assert all(p.dtype == torch.float32 for p in run.network.parameters())
        finals.append(torch.cat([p.detach().flatten() for p in run.network.parameters()]))
    assert 0 < float((finals[0] - finals[1]).abs().max()) < 0.05
    assert SETTINGS["optimiser"]["learning_rate"] * 3 < 0.05
