"""Prepared pairs in a repeatable order: on one grid, kept on the disk, from a configuration."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch

from DiffeoRegLib.errors import InputError, OutputError, SettingsError
from DiffeoRegLib.space.grid import Grid
from DiffeoRegLib.training import store as store_module
from DiffeoRegLib.training.config import DataConfig
from DiffeoRegLib.training.datasets import training_data
from DiffeoRegLib.training.pairs import PairDataset
from DiffeoRegLib.training.sources import subjects_from
from DiffeoRegLib.training.store import Preparation, Store
from DiffeoRegLib.training.subjects import Subject
from DiffeoRegLib.volumes.common_grid import common_grid
from DiffeoRegLib.volumes.files import write_volume
from DiffeoRegLib.volumes.point_files import write_points
from DiffeoRegLib.volumes.volume import Volume

SHAPE = (12, 14, 16)


def _write(path, text):
    path.write_text(text, encoding="utf-8")
    return path


def _subjects(*groups):
    return [Subject(f"s{i}", f"s{i}.nii", group=group) for i, group in enumerate(groups)]


def _ball(center, *, spacing=2.0, brightness=100.0, labels=False):
    """A bright ball with a brighter core in a volume whose axes are stored right, posterior, superior."""
    matrix = np.array([[0, 0, -1.0, 0], [0, -1.0, 0, 0], [1.0, 0, 0, 0], [0, 0, 0, 1]])
    matrix[:3, :3] *= spacing
    grid = Grid(SHAPE, matrix)
    matrix[:3, 3] = center - grid.center_mm
    grid = Grid(SHAPE, matrix)
    index = torch.stack(torch.meshgrid(*[torch.arange(n) - (n - 1) / 2 for n in SHAPE], indexing="ij"))
    index[2] -= 1.5  # off the grid's centre, to the left of the patient
    radius = index.square().sum(0).sqrt()
    ball = (radius < 4).to(torch.int32) + (radius < 2).to(torch.int32)
    if labels:  # far from each other: what interpolation invents shows
        ball = torch.tensor([0, 7, 90], dtype=torch.int32)[ball]
    return Volume(ball if labels else brightness * ball.float(), grid, "ball", labels)


@pytest.fixture
def four(tmp_path):
    """Four images of three persons, each at another place and brightness, with labels and a landmark."""
    folder = tmp_path / "data"
    folder.mkdir()
    for n, name in enumerate(("sub-01_ses-1", "sub-01_ses-2", "sub-02", "sub-03")):
        center = np.array([10.0 * n, -5.0 * n, 3.0 * n])
        write_volume(_ball(center, brightness=50.0 * (n + 1)), folder / f"{name}_t1.nii.gz")
        write_volume(_ball(center, labels=True), folder / f"{name}_seg.nii.gz")
        write_points(center[None] - np.array([3.0, 0, 0]), folder / f"{name}.csv")
    return folder


def _four(folder):
    return subjects_from(folder, images="{name}_t1.nii.gz", labels="{name}_seg.nii.gz", points="{name}.csv")


def _store(folder, cache=None, **options):
    settings = {"shape": (10, 11, 12), "spacing_mm": (2.0, 2.0, 2.0), "alignment": "mass"} | options
    return Store(Preparation(reference=folder / "sub-03_t1.nii.gz", **settings), cache)


# ---------------------------------------------------------------- order of pairs


class _Echo:
    """A store that gives back the subject's number as its image."""

    def load(self, subject):
        return {"image": torch.tensor(float(subject.name[1:]))}


def _order(data):
    return [(item["fixed"].item(), item["moving"].item()) for item in map(data.__getitem__, range(len(data)))]


def test_an_epoch_holds_every_ordered_pair_once_and_the_next_another_order():
    data = PairDataset(_subjects(*"abcde"), _Echo(), seed=2)
    first = _order(data)
    assert sorted(first) == [(i, j) for i in range(5) for j in range(5) if i != j]
    data.set_epoch(1)
    assert _order(data) != first
    data.set_epoch(0)
    assert _order(data) == first
    assert _order(PairDataset(_subjects(*"abcde"), _Echo(), seed=3)) != first


def test_an_epoch_resumes_where_it_stopped():
    data = PairDataset(_subjects(*"abcde"), _Echo(), pairs_per_epoch=9)
    data.set_epoch(3)
    whole = _order(data)
    data.set_epoch(3, position=4)
    assert len(data) == 5
    assert _order(data) == whole[4:]
    with pytest.raises(IndexError):
        data[5]
    with pytest.raises(SettingsError, match="no position 10"):
        data.set_epoch(3, position=10)


def test_more_pairs_than_there_are_go_round_evenly():
    data = PairDataset(_subjects(*"abc"), _Echo(), pairs_per_epoch=15)
    counts = Counter(_order(data))
    assert len(counts) == 6
    assert sorted(counts.values()) == [2, 2, 2, 3, 3, 3]
    assert _order(data)[:6] != _order(data)[6:12]


def test_given_pairs_keep_their_direction():
    subjects = _subjects(*"abcd")
    pairs = [(subjects[0], subjects[1]), (subjects[2], subjects[3])]
    data = PairDataset([], _Echo(), pairs=pairs)
    assert sorted(_order(data)) == [(0, 1), (2, 3)]
    with pytest.raises(InputError, match="one image"):
        PairDataset(subjects[:1], _Echo())
    with pytest.raises(SettingsError, match="at least one pair"):
        PairDataset(subjects, _Echo(), pairs_per_epoch=0)


# ---------------------------------------------------------------- preparation


def test_prepared_images_stand_on_one_grid_aligned_and_in_range(four):
    data = PairDataset(_four(four), _store(four))
    for index in range(len(data)):
        item = data[index]
        assert item["fixed"].shape == item["fixed_labels"].shape == (1, 10, 11, 12)
        assert item["fixed_labels"].dtype == torch.int64
        assert item["fixed"].min() == 0
        assert item["fixed"].max() == 1
        # Different places and brightness in the files, the same here: aligned, scaled.
        torch.testing.assert_close(item["fixed"], item["moving"], atol=2e-3, rtol=0)
        assert (item["fixed_labels"] == item["moving_labels"]).float().mean() > 0.995
        torch.testing.assert_close(item["fixed_points_vox"], item["moving_points_vox"], atol=0.02, rtol=0)
        # The landmark is the ball's centre; the grid is centred on the ball to half a block of 4 mm.
        torch.testing.assert_close(
            item["fixed_points_vox"], torch.tensor([[4.5, 5.0, 5.5]]), atol=0.55, rtol=0
        )
        assert item["fixed_labels"][0, 4, 5, 5] == 90
        assert item["fixed_labels"].unique().tolist() == [0, 7, 90]


def test_without_alignment_images_stay_where_they_are(four):
    data = PairDataset(_four(four)[2:], _store(four, alignment="geometry"))
    torch.testing.assert_close(data[0]["fixed"], data[0]["moving"], atol=1e-3, rtol=0)
    apart = PairDataset(_four(four)[2:], _store(four, alignment="identity"))[0]
    step = apart["moving_points_vox"] - apart["fixed_points_vox"]
    sign = 1 if apart["names"] == "sub-03 to sub-02" else -1
    # Ten mm to the right, five to the back, three up; axes S, A, R of 2 mm.
    torch.testing.assert_close(sign * step, torch.tensor([[1.5, -2.5, 5.0]]), atol=1e-3, rtol=0)


def test_the_reference_itself_is_not_searched_for(four, monkeypatch):
    monkeypatch.delattr(store_module, "initial_alignment")
    store = _store(four, alignment="affine")
    assert torch.equal(store.load(_four(four)[3])["moving_from_common"], torch.eye(4, dtype=torch.float64))


def test_the_working_grid_points_up_forward_right():
    grid = common_grid(_ball(np.array([7.0, 8.0, 9.0])), (10, 11, 12), (1.0, 2.0, 3.0))
    np.testing.assert_allclose(grid.world_from_voxel[:3, :3], [[0, 0, 3], [0, 2, 0], [1, 0, 0]])
    # The ball lies 3 mm to the left of its volume's centre, within a voxel of 2 mm.
    np.testing.assert_allclose(grid.center_mm, [4.0, 8.0, 9.0], atol=1.01)


def test_a_speck_beside_the_object_does_not_move_the_grid():
    ball = torch.zeros(60, 60, 60)
    ball[5:45, 5:45, 5:45] = 100.0
    plain = Volume(ball, Grid(tuple(ball.shape), np.eye(4)), "plain")
    ball = ball.clone()
    ball[56:58, 56:58, 56:58] = 100.0
    specked = Volume(ball, plain.grid, "specked")
    centers = [common_grid(image, (8, 8, 8), (1.0, 1.0, 1.0)).center_mm for image in (plain, specked)]
    np.testing.assert_allclose(centers[0], [24.5] * 3, atol=2.0)
    np.testing.assert_allclose(centers[1], centers[0], atol=0.5)


def test_kept_files_are_used_until_something_they_were_made_of_changes(four, tmp_path, monkeypatch):
    cache = tmp_path / "cache"
    subject = _four(four)[0]
    first = _store(four, cache).load(subject)
    assert len(list(cache.iterdir())) == 1

    def forbidden(*arguments):
        raise AssertionError("made again")

    with monkeypatch.context() as patch:
        patch.setattr(store_module, "prepare_subject", forbidden)
        again = _store(four, cache).load(subject)
        assert again.keys() == first.keys()
        for key in first:
            assert torch.equal(first[key], again[key])
        for options in ({"spacing_mm": (2.0, 2.0, 2.1)}, {"alignment": "geometry"}, {"window": (0.0, 1.0)}):
            with pytest.raises(AssertionError, match="made again"):
                _store(four, cache, **options).load(subject)
    write_volume(_ball(np.zeros(3), brightness=1.0, labels=True), subject.labels, overwrite=True)
    (four / "sub-01_ses-1.csv").write_bytes((four / "sub-02.csv").read_bytes())
    changed = _store(four, cache).load(subject)
    assert not torch.equal(changed["points_vox"], first["points_vox"])
    assert len(list(cache.iterdir())) == 2


@pytest.mark.parametrize("damage", [lambda content: content[:40], lambda content: b""])
def test_a_damaged_kept_file_is_made_again(four, tmp_path, damage):
    store = _store(four, tmp_path / "cache")
    subject = _four(four)[0]
    first = store.load(subject)
    path = store.path_of(subject)
    path.write_bytes(damage(path.read_bytes()))
    assert torch.equal(store.load(subject)["image"], first["image"])
    assert path.stat().st_size > 1000


def test_a_failed_write_leaves_nothing_and_is_no_fault_of_the_image(four, tmp_path, monkeypatch):
    def full(tensors, path):
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(store_module, "save_file", full)
    store = _store(four, tmp_path / "cache")
    with pytest.raises(OutputError, match="No space left"):
        store.load(_four(four)[0])
    assert list((tmp_path / "cache").iterdir()) == []


def test_memory_gives_copies_and_forgets_the_oldest(four, monkeypatch):
    store = _store(four)
    store.in_memory = 1
    one, other = _four(four)[:2]
    first = store.load(one)
    original = first["image"].clone()
    first["image"].zero_()
    calls = []
    make = store_module.prepare_subject
    monkeypatch.setattr(store_module, "prepare_subject", lambda *a: calls.append(a[0].name) or make(*a))
    assert torch.equal(store.load(one)["image"], original)
    assert calls == []
    store.load(other)
    store.load(one)
    assert calls == [other.name, one.name]


def test_an_unreadable_image_is_named(four, tmp_path):
    subjects = _four(four)
    data = PairDataset(subjects, _store(four, tmp_path / "cache"))
    subjects[1].image.write_bytes(subjects[1].image.read_bytes()[:60])
    bad = next(i for i in range(len(data)) if subjects[1] in data.pair(i))
    good = next(i for i in range(len(data)) if subjects[1] not in data.pair(i))
    with pytest.raises(InputError, match=r"Subject 'sub-01_ses-2'.*could not be read"):
        data[bad]
    assert data[good]["fixed"].isfinite().all()
    subjects[1].image.unlink()
    with pytest.raises(InputError, match=r"sub-01_ses-2_t1.* cannot be read"):
        data[bad]


def test_a_mask_is_the_share_of_a_voxel_inside(four):
    masked = [replace(subject, mask=subject.labels) for subject in _four(four)]
    item = PairDataset(masked, _store(four))[0]
    assert 0.02 < item["fixed_mask"].mean() < 0.5
    assert item["fixed_mask"].amax() == 1
    torch.testing.assert_close(item["fixed_mask"], item["moving_mask"], atol=2e-3, rtol=0)
    flat = _flat_labels(four)
    with pytest.raises(InputError, match=r"Subject 'sub-02'.* is 2D but its image is 3D"):
        _store(four).load(replace(masked[2], mask=flat))


def _flat_labels(folder):
    path = folder / "flat.nii.gz"
    write_volume(Volume(torch.ones(5, 6, dtype=torch.int32), Grid((5, 6), np.eye(4)), "f", True), path)
    return path


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"shape": (8, 8)}, "two or three"),
        ({"shape": (3, 8, 8)}, "4 or more"),
        ({"spacing_mm": (1.0, 0.0, 1.0)}, "above 0"),
        ({"alignment": "auto"}, "not 'auto'"),
        ({"alignment": "afine"}, "affine"),
        ({"window": (5.0, 5.0)}, "rises"),
        ({"shape": (8, 8), "spacing_mm": (2.0, 2.0)}, "is 3D"),
    ],
)
def test_preparations_that_make_no_sense_are_refused(four, options, message):
    with pytest.raises(InputError, match=message):
        _store(four, **options)


# ---------------------------------------------------------------- from a configuration


def _options(**more):
    files = {"images": "{name}_t1.nii.gz", "labels": "{name}_seg.nii.gz"}
    return {"shape": [10, 11, 12], "alignment": "mass"} | files | more


def test_a_configuration_gives_training_and_held_out_pairs(four):
    options = _options(
        held_out=["sub-01"], cache="kept", reference="data/sub-03_t1.nii.gz", augmentation={"flip_axis": 2}
    )
    config = DataConfig("data", "data", spacing_mm=(2.0, 2.0, 2.0), options=options)
    data = training_data(config, seed=1, base=four.parent)
    assert len(data.training) == len(data.validation) == 2
    assert {data.training[i]["names"] for i in range(2)} == {"sub-02 to sub-03", "sub-03 to sub-02"}
    assert "sub-01_ses-1" in data.validation[0]["names"]
    assert data.training[0]["fixed_labels"].shape == (1, 10, 11, 12)
    plain = data.training.pairs[0]
    assert not torch.equal(data.training[0]["fixed"], plain["fixed"])
    assert len(list((four.parent / "kept").iterdir())) == 4
    alone = training_data(DataConfig("data", options=_options()), base=four.parent)
    assert alone.validation is None
    assert len(alone.training) == 12


def test_nobody_trains_and_validates(four):
    listed = "image\ndata/sub-02_t1.nii.gz\ndata/sub-03_t1.nii.gz\n"
    _write(four.parent / "val.csv", listed)
    _write(four.parent / "train.csv", listed.replace("sub-02", "sub-01_ses-1"))
    options = {"shape": [10, 11, 12], "alignment": "mass"}
    with pytest.raises(InputError, match="'sub-03_t1' is in the training and in the validation"):
        training_data(DataConfig("train.csv", "val.csv", options=options), base=four.parent)
    _write(four.parent / "train.csv", listed.replace("sub-02", "sub-01_ses-1").replace("03", "01_ses-2"))
    data = training_data(
        DataConfig("train.csv", "val.csv", options=options | {"validation_pairs": 1}), base=four.parent
    )
    assert (len(data.training), len(data.validation)) == (2, 1)


def test_a_configuration_of_synthetic_pairs_validates_on_others():
    options = {"shape": [16, 16], "pairs_per_epoch": 4, "validation_pairs": 2, "shapes": {"labels": [3, 4]}}
    data = training_data(DataConfig("synthetic", "synthetic", options=options), seed=3)
    assert (len(data.training), len(data.validation)) == (4, 2)
    assert not torch.equal(data.training[0]["fixed"], data.validation[0]["fixed"])
    with pytest.raises(SettingsError, match="validated on synthetic"):
        training_data(DataConfig("synthetic", "data", options=options))
    with pytest.raises(SettingsError, match=r"data\.options.*alinement"):
        training_data(DataConfig("data", options={"shape": [8, 8], "alinement": "mass"}))
