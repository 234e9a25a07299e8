"""The command `train`: how settings come from files, flags and shipped configurations."""

from __future__ import annotations

import os
from argparse import Namespace

import pytest

from DiffeoRegLib.cli.train import configured
from DiffeoRegLib.errors import SettingsError
from DiffeoRegLib.networks.build import build_network
from DiffeoRegLib.networks.sitreg import SITReg
from DiffeoRegLib.training.changes import changed
from DiffeoRegLib.training.datasets import ImageOptions, data_options
from DiffeoRegLib.training.objective import objective_of
from DiffeoRegLib.training.start import shipped_configs
from DiffeoRegLib.training.validation import require_metric
from Testing.command import one_sentence, run
from Testing.train_command import SIZES, written


@pytest.mark.parametrize("name", SIZES)
def test_a_shipped_configuration_is_whole(name):
    """Parsed, its network built, its loss made, its data options checked, its comment says what it costs."""
    path = shipped_configs()[name]
    data = None if name == "sitreg-any-contrast" else "here"
    config = configured(Namespace(**flags_of(name, data=data)), path.parent)[0]
    options = data_options(config.data)
    terms = objective_of(config).names
    network = build_network(config.network, config.precision)
    assert sum(p.numel() for p in network.parameters()) == SIZES[name]
    assert terms == tuple(loss.name for loss in config.losses)
    assert len(options.shape) == len(config.data.spacing_mm)
    if isinstance(network, SITReg):
        assert min(options.shape) >= network.smallest_size
    # The best weights are chosen by what validation gives: of images without labels no Dice.
    unlabelled = isinstance(options, ImageOptions) and options.labels is None
    require_metric(config.best, ["loss"] if unlabelled else ["dice"])
    head = path.read_text(encoding="utf-8").split("method:")[0]
    assert "Cost" in head
    assert f"diffeoreg train {name}" in head
    assert f"{SIZES[name]:,}" in head


def test_all_shipped_configurations_are_tested():
    assert set(shipped_configs()) == set(SIZES)


def flags_of(config, **given):
    """What the command line gives for a configuration."""
    nothing = {"set": [], "data": None, "images": None, "labels": None, "start_from": None}
    return {"config": config, **nothing, **given}


def test_images_of_other_names_and_persons_fit_a_shipped_configuration(tmp_path):
    own = {"images": "{name}_t1.nii", "labels": "{name}/seg.nii"}
    flags = flags_of("sitreg-brain-t1", data=str(tmp_path), **own)
    options = configured(Namespace(**flags), tmp_path)[0].data.options
    assert (options["images"], options["labels"]) == ("{name}_t1.nii", "{name}/seg.nii")
    assert options["held_out"] == options["same_person"] == []
    assert configured(Namespace(**flags), tmp_path)[0].best == "dice"
    share = ["data.options.share=0.5"]
    flags = flags_of("sitreg-brain-t1", data=str(tmp_path), images="{name}.nii", set=share)
    config = configured(Namespace(**flags), tmp_path)[0]
    options = config.data.options
    assert options["labels"] is None
    assert config.best == "loss"  # no labels, no Dice
    assert options["share"] == 0.5


def test_a_table_replaces_the_patterns_of_a_shipped_configuration(tmp_path):
    table = tmp_path / "t.csv"
    table.write_text("image\na.nii\nb.nii\n", encoding="utf-8")
    flags = flags_of("sitreg-brain-t1", data=str(table))
    options = configured(Namespace(**flags), tmp_path)[0].data.options
    assert (options["images"], options["labels"], options["held_out"]) == (None, None, [])
    meant = flags_of("voxelmorph-brain-2d", data=str(table))  # this one has a table in mind: its persons stay
    assert configured(Namespace(**meant), tmp_path)[0].data.options["held_out"]
    with pytest.raises(SettingsError, match="--images and --labels go with a folder"):
        configured(Namespace(**(flags | {"labels": "{name}.nii"})), tmp_path)


def test_a_shipped_configuration_needs_data_and_takes_changes(tmp_path):
    flags = flags_of("sitreg-brain-t1")
    with pytest.raises(SettingsError, match="--data FOLDER"):
        configured(Namespace(**flags), tmp_path)
    flags |= {"data": "it's here", "start_from": "w.safetensors", "set": ["steps=7", "losses.1.weight=1e-1"]}
    config, base = configured(Namespace(**flags), tmp_path)
    assert config.data.source == config.data.validation == os.path.abspath("it's here")  # noqa: PTH100
    assert config.start_from.file == os.path.abspath("w.safetensors")  # noqa: PTH100
    assert (config.steps, config.losses[1].weight) == (7, 0.1)
    assert base == tmp_path  # the cache of a shipped configuration lies with the run


def test_a_changed_source_leaves_another_validation_set_alone():
    content = changed({"data": {"source": "a", "validation": "b"}}, ["data.source=synthetic"])
    assert content == {"data": {"source": "synthetic", "validation": "b"}}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("steps", "write key=value"),
        ("=3", "write key=value"),
        ("steps=[1", "not YAML"),
        ("stepz=3", "Did you mean 'steps'"),
        ("steps=many", "a whole number"),
        ("losses.7.weight=1", "one of 2 items"),
        ("losses.first.weight=1", "one of 2 items"),
        ("steps.now=1", "no setting 'steps.now'"),
        ("steps.now.then=1", "no setting 'steps.now.then'"),
        ("data.options.shapes.labelz=[1, 2]", "Did you mean 'labels'"),
        ("data.options.shape=[4, 4]", "8 or more voxels"),
        ("data.validation=else", "validated on synthetic pairs"),
        ("losses.0.options.window=3", "option"),
        ("network.sizes.encoder=[3, 5]", "groups"),
        ("best=dicee", "Did you mean 'dice'"),
        ("nan_limit=0", "at least 1"),
        ("start_from.file=none.safetensors", "cannot be read"),
    ],
)
def test_a_wrong_change_is_one_sentence_and_nothing_is_computed(tmp_path, monkeypatch, capsys, change, words):
    monkeypatch.setattr("DiffeoRegLib.training.start.training_data", lambda *a, **k: pytest.fail("too late"))
    config = written(tmp_path / "a.yaml")
    assert run("train", config, "-o", tmp_path / "run", "--quiet", "--set", change) == 2
    assert words in one_sentence(capsys)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["sitreg-brain"], "Did you mean 'sitreg-brain-t1'"),
        (["missing.yaml"], "cannot be read"),
        (["{config}", "--stop-after", "-1"], "minutes"),
        (["{config}", "--threads", "0"], "from 1 up"),
        (["{config}", "--device", "abacus"], "no device"),
        (["{config}", "--resume"], "no training run to resume"),
    ],
)
def test_a_wrong_flag_is_one_sentence(tmp_path, capsys, words, said):
    config = written(tmp_path / "a.yaml")
    words = [word.replace("{config}", str(config)) for word in words]
    assert run("train", *words, "-o", tmp_path / "run", "--quiet") == 2
    assert said in one_sentence(capsys)
