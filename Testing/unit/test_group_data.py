"""Where the groups of a training come from: populations, persons, series; patches and variants of them."""

from __future__ import annotations

import csv
import random

import numpy as np
import pytest
import torch

from DiffeoRegLib.errors import InputError, SettingsError
from DiffeoRegLib.space.grid import Grid
from DiffeoRegLib.training.augment import AffineRange, Augmentation, vary_group
from DiffeoRegLib.training.config import DataConfig
from DiffeoRegLib.training.datasets import training_data
from DiffeoRegLib.training.draws import generator_for
from DiffeoRegLib.training.groups import GroupDataset, GroupOptions, cropped
from DiffeoRegLib.volumes.files import write_points, write_volume
from DiffeoRegLib.volumes.frames import read_frames
from DiffeoRegLib.volumes.nifti import nifti_image
from DiffeoRegLib.volumes.volume import Volume
from Testing.group_cases import SHAPE, Spots
from Testing.training_cases import blob


def test_groups_depend_on_the_seed_the_epoch_and_the_index_alone():
    options = GroupOptions(fewest=2, most=5, fixed_share=0.5, patch=(8, 12))
    one, other = (GroupDataset(Spots(), options, seed=seed) for seed in (3, 3))
    other.set_epoch(1)
    later = other[2]["images"]
    other.set_epoch(0)
    items = [one[k] for k in range(6)]
    assert all(torch.equal(item["images"], other[k]["images"]) for k, item in enumerate(items))
    assert later.shape != items[2]["images"].shape or not torch.equal(later, items[2]["images"])
    assert {len(item["images"]) for item in items} <= {2, 3, 4, 5}
    assert len({len(item["images"]) for item in items}) > 1
    assert {item["images"].shape[2:] for item in items} == {(8, 12)}
    fixed = [item.get("fixed") for item in items]
    assert None in fixed
    assert any(f is not None for f in fixed)
    held = GroupDataset(Spots(), GroupOptions(validation=4, fixed_share=1), validation=True)
    assert len(held) == 4
    assert held[0]["fixed"] == 0
    assert held[0]["images"].shape[2:] == SHAPE


def test_a_patch_is_cut_at_one_place():
    item = Spots().group(0, 3, random.Random(0))
    item["images"] = torch.arange(256.0).view(1, 1, 16, 16).repeat(3, 1, 1, 1)
    cut = cropped(item, (5, 30), random.Random(1))
    assert cut["images"].shape == cut["labels"].shape == (3, 1, 5, 16)
    assert bool((cut["images"] == cut["images"][:1]).all())
    assert "points" not in cut
    with pytest.raises(SettingsError, match="3 axes"):
        cropped(item, (5, 5, 5), random.Random(1))


def test_variants_of_a_group():
    """Together all images alike; apart each its own way, and landmarks go with their image."""
    spots = Spots().group(0, 3, random.Random(0))
    quiet = {
        "gamma": 1,
        "contrast": 1,
        "brightness": 0,
        "noise": 0,
        "flip_probability": 1,
        "affine_probability": 1,
    }
    same = {**spots, "images": spots["images"][:1].repeat(3, 1, 1, 1)}
    moves = AffineRange(10, 1.1, 0.05, 0.1)
    generator = generator_for("a")
    alike = vary_group(same, generator, Augmentation(together=moves, **quiet))
    assert torch.equal(alike["images"][0], alike["images"][2])
    assert not torch.equal(alike["images"], same["images"])
    apart = vary_group(spots, generator_for("b"), Augmentation(AffineRange(0, 1, 0, 0), moves, **quiet))
    for image, labels, points in zip(apart["images"], apart["labels"], apart["points"], strict=True):
        weights = image[0].double() ** 4
        index = torch.meshgrid(*[torch.arange(16.0).double()] * 2, indexing="ij")
        centre = torch.stack([(axis * weights).sum() / weights.sum() for axis in index])
        assert float((centre - points[0]).abs().max()) < 0.6
        assert bool(labels[0, int(points[0, 0].round()), int(points[0, 1].round())])
    assert not torch.equal(apart["images"][0], spots["images"][0].flip(-1))


@pytest.fixture
def folder(tmp_path):
    """Six visits of three persons and a series: files of planes with landmarks, and a 4D file."""
    grid = Grid(SHAPE, np.diag([1.0, 2.0, 1.0, 1.0])[:, [1, 0, 2, 3]])
    images = tmp_path / "images"
    images.mkdir()
    for number in range(6):
        centre = (7.0 + 0.3 * number, 8.0)
        image = Volume(100 * blob(centre, SHAPE, 3.0)[0], grid, "spot")
        write_volume(image, images / f"sub-{number // 2}_{number}.nii.gz")
        write_points(grid.world_from_index([centre]), images / f"{number}.csv")
    volumes = np.stack([100 * blob((7.0, 7.0 + t), SHAPE, 3.0)[0].numpy() for t in range(3)], -1)
    nifti = nifti_image(volumes[..., None, :].astype(np.float32), np.diag([2.0, 1.0, 3.0, 1.0]))
    import nibabel

    nibabel.save(nifti, tmp_path / "dynamic.nii.gz")
    with (tmp_path / "series.csv").open("w", encoding="utf-8", newline="") as file:
        table = csv.writer(file)
        table.writerow(["series", "image", "points", "person"])
        for number in range(4):
            image, series = f"images/sub-{number // 2}_{number}.nii.gz", number // 2
            table.writerow([f"s{series}", image, f"images/{number}.csv", f"p{series}"])
        table.writerow(["whole", "dynamic.nii.gz", "", "p9"])
    return tmp_path


def test_frames_of_one_file(folder):
    frames = read_frames(folder / "dynamic.nii.gz")
    assert [frame.name for frame in frames] == ["dynamic-0", "dynamic-1", "dynamic-2"]
    assert {frame.grid.shape for frame in frames} == {(16, 16)}
    peaks = [np.unravel_index(int(frame.data.argmax()), (16, 16)) for frame in frames]
    assert [tuple(map(int, reversed(peak))) for peak in peaks] == [(7, 7), (7, 8), (7, 9)]
    (alone,) = read_frames(folder / "images" / "sub-0_0.nii.gz", name="one")
    assert alone.name == "one"


def data(folder, **groups):
    options = {"shape": [16, 16], "images": "{name}.nii.gz", "alignment": "identity", "groups": groups}
    return DataConfig(str(folder / "images"), None, (2.0, 1.0), options=options)


def test_groups_of_a_population_and_of_persons(folder):
    found = training_data(data(folder, fewest=3, most=3, fixed_share=0)).training
    assert len(found) == 6
    assert all(len(set(found[k]["names"])) == 3 for k in range(6))
    persons = training_data(data(folder, of="person", fewest=2, most=2)).training
    assert sorted(persons[k]["names"] for k in range(len(persons))) == [
        (f"sub-{p}_{2 * p}", f"sub-{p}_{2 * p + 1}") for p in range(3)
    ]
    with pytest.raises(InputError, match="no person has so many"):
        training_data(data(folder, of="person", fewest=3, most=3))
    with pytest.raises(InputError, match="7 images or more"):
        training_data(data(folder, fewest=7, most=7))


def series(folder, validation=None, table="series.csv", **others):
    options = {"shape": [8, 8], "groups": {"of": "series", "most": 3, "fixed_share": 0}, **others}
    source = str(folder / table)
    return training_data(DataConfig(source, source if validation else None, (1.0, 1.0), options=options))


def test_groups_of_series(folder):
    found = series(folder).training
    assert len(found) == 3
    items = {item["names"][0]: item for item in (found[k] for k in range(3))}
    visits = items["sub-0_0"]
    assert visits["images"].shape == (2, 1, 32, 16)  # the rows were 2 mm apart
    assert visits["times"] == (0, 1)
    assert float(visits["images"].min()) == 0
    assert float(visits["images"].max()) == 1
    first, second = visits["points"]
    assert first[0].tolist() == pytest.approx([2 * 7.0 + 0.5, 8.0], abs=1e-4)
    assert (second - first)[0].tolist() == pytest.approx([0.6, 0.0], abs=1e-4)
    peak = np.unravel_index(int(visits["images"][0].argmax()), (32, 16))
    assert abs(peak[0] - 14.5) <= 1
    whole = next(item for name, item in items.items() if name.startswith("dynamic"))
    assert "points" not in whole
    # What a drawn group leaves out is left out of the times, too.
    times = {
        item["times"] for epoch in range(9) for item in epoch_of(found, epoch) if len(item["names"]) == 2
    }
    assert {(0.0, 0.5), (0.5, 1.0)} & times


def epoch_of(groups, epoch):
    groups.set_epoch(epoch)
    return [groups[k] for k in range(len(groups))]


def test_series_are_divided_by_person(folder):
    both = series(folder, validation=True, held_out=["whole"])
    assert len(both.training) == 2
    (held,) = [both.validation[k] for k in range(len(both.validation))]
    assert held["names"] == ("dynamic-0", "dynamic-1", "dynamic-2")
    with pytest.raises(InputError, match="no series and no person"):
        series(folder, validation=True, held_out=["nobody"])
    with pytest.raises(InputError, match="No series is left"):
        series(folder, validation=True, held_out=["p0", "p1", "p9"])


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("series,image\na,missing.nii.gz\n", "Row 1 .* does not exist"),
        ("series,image\n,images/sub-0_0.nii.gz\n", "Row 1 .* no series"),
        ("name,image\na,b\n", "columns series, image"),
        ("series,image\n", "columns series, image"),
        ("series,image\na,images/sub-0_0.nii.gz\n", "one frame"),
    ],
)
def test_tables_of_series_that_are_not(folder, text, words):
    (folder / "bad.csv").write_text(text, encoding="utf-8")
    with pytest.raises(InputError, match=words):
        series(folder, table="bad.csv").training[0]
