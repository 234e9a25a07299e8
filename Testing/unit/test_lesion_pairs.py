"""Pairs of healthy and pathological images: lesions drawn into the fixed image, or read from files."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from DiffeoRegLib.errors import InputError, SettingsError
from DiffeoRegLib.space.grid import Grid
from DiffeoRegLib.space.sample import sample, warp
from DiffeoRegLib.training.augment import Augmentation, augment
from DiffeoRegLib.training.batches import SeededPairs, collate
from DiffeoRegLib.training.config import DataConfig
from DiffeoRegLib.training.datasets import data_options, training_data
from DiffeoRegLib.training.draws import generator_for
from DiffeoRegLib.training.lesion_pairs import LesionPairs, known_pair
from DiffeoRegLib.training.lesions import LesionOptions, organ_of
from DiffeoRegLib.training.pairs import PairDataset
from DiffeoRegLib.training.shapes import ShapeOptions
from DiffeoRegLib.training.sources import collection_from
from DiffeoRegLib.training.store import Preparation, Store
from DiffeoRegLib.training.subjects import Subject
from DiffeoRegLib.volumes.files import write_volume
from DiffeoRegLib.volumes.volume import Volume
from Testing.lesion_cases import brain, disc

SHAPE = (64, 56)
OPTIONS = LesionOptions(radius_vox=(6, 10), reaches_vox=(8, 16), oedema=0)


class Healthy:
    """Pairs of healthy images, with all that may belong to them."""

    def __init__(self, **more):
        self.more, self.epoch = more, 0

    def __len__(self):
        return 3

    def set_epoch(self, epoch):
        self.epoch = epoch

    def __getitem__(self, index):
        item = {"names": f"pair {index}"}
        for side, seed in (("moving", 10 + index), ("fixed", index)):
            image = brain(SHAPE, seed)[0]
            item[side] = image
            item[f"{side}_labels"] = (image > 0.6).long() + (image > 0).long()
        return item | self.more


def test_lesions_lie_in_the_fixed_image_and_depend_on_seed_epoch_and_index_alone():
    pairs = LesionPairs(Healthy(), OPTIONS, seed=3)
    first, again = pairs[1], pairs[1]
    healthy = Healthy()[1]
    assert torch.equal(first["moving"], healthy["moving"])
    assert not torch.equal(first["fixed"], healthy["fixed"])
    assert first["pathology"].shape == (1, *SHAPE)
    assert bool(first["pathology"].any())
    assert torch.equal(first["fixed"], again["fixed"])
    pairs.set_epoch(1)
    assert pairs.pairs.epoch == 1
    assert not torch.equal(pairs[1]["pathology"], first["pathology"])
    assert not torch.equal(LesionPairs(Healthy(), OPTIONS, seed=4)[1]["pathology"], first["pathology"])


def test_what_belongs_to_the_fixed_image_goes_with_its_tissue():
    points = torch.tensor([[20.0, 20.0], [31.0, 27.0], [45.5, 30.25]])
    mask = disc(SHAPE, (32, 28), 20)[0]
    healthy = Healthy(fixed_points_vox=points, fixed_mask=mask)
    item = LesionPairs(healthy, OPTIONS, seed=1)[0]
    # Known again from the same draw.
    twin = known_pair(healthy[0]["fixed"][None], generator_for("lesions", 1, 0, 0), OPTIONS)[1]
    assert torch.equal(twin.image[0], item["fixed"])
    back = sample(twin.u_vox, item["fixed_points_vox"].T[None])[0].T
    assert torch.allclose(item["fixed_points_vox"] + back, points, atol=1e-4)
    assert torch.equal(item["fixed_mask"], warp(mask[None], twin.u_vox, outside="zeros")[0])
    assert torch.equal(item["fixed_labels"], twin.labels(healthy[0]["fixed_labels"][None])[0])
    assert not bool(item["fixed_labels"][item["pathology"] > 0].any())


def test_a_pathology_of_its_own_stays_and_an_empty_one_gets_a_lesion():
    own = disc(SHAPE, (30, 30), 6)[0].round()
    item = LesionPairs(Healthy(pathology=own), OPTIONS)[0]
    assert torch.equal(item["pathology"], own)
    assert torch.equal(item["fixed"], Healthy()[0]["fixed"])
    item = LesionPairs(Healthy(pathology=0 * own), OPTIONS)[0]
    assert bool(item["pathology"].any())


def test_a_pair_without_room_for_a_lesion_is_named():
    dark = Healthy(fixed=torch.zeros(1, *SHAPE))
    with pytest.raises(InputError, match=r"pair 2: .*no organ"):
        LesionPairs(dark, OPTIONS)[2]


def test_the_truth_of_a_known_pair_leads_to_the_same_tissue():
    healthy = brain(SHAPE, 5)
    moving, patient, truth = known_pair(healthy, generator_for(1), OPTIONS, ShapeOptions(motion_vox=3.0))
    assert float((moving - healthy).abs().max()) > 0.1
    inside = (patient.pathology == 0) & (organ_of(patient.image) > 0)
    read = warp(moving, truth)
    still = warp(moving, patient.u_vox)
    assert float((read - patient.image)[inside].abs().mean()) < 0.02
    assert float((read - patient.image)[inside].abs().mean()) < 0.3 * float(
        (still - patient.image)[inside].abs().mean()
    )
    same, twin, growth = known_pair(healthy, generator_for(1), OPTIONS)
    assert torch.equal(same, healthy)
    assert torch.equal(growth, twin.u_vox)
    assert torch.equal(twin.u_vox, patient.u_vox)


def test_batches_carry_the_pathology():
    drawn = SeededPairs(LesionPairs(Healthy(), OPTIONS), 0, 0)
    batch = collate([drawn[0].item, drawn[2].item])
    assert batch.pathology.shape == (2, 1, *SHAPE)
    assert torch.equal(batch.pathology[1], drawn[2].item["pathology"])


def test_augmentation_moves_the_pathology_like_the_fixed_image():
    lesion = disc(SHAPE, (20, 40), 6)
    image = brain(SHAPE, 0)
    batch = {
        "moving": image,
        "fixed": image,
        "pathology": lesion,
        "fixed_mask": lesion,
        "moving_mask": lesion,
    }
    options = Augmentation(affine_probability=1, flip_probability=1)
    options = replace(options, apart=options.together)
    found = augment(batch, generator_for(0), options)
    assert torch.equal(found["pathology"], found["fixed_mask"])
    assert not torch.allclose(found["pathology"], found["moving_mask"], atol=0.1)
    assert not torch.allclose(found["pathology"], lesion, atol=0.1)


# ---------------------------------------------------------------- files


@pytest.fixture
def folder(tmp_path):
    """Two healthy persons and two patients, 2D."""
    for name, seed in (("h1", 1), ("h2", 2), ("p1", 3), ("p2", 4)):
        image = brain(SHAPE, seed)
        _write(tmp_path / f"{name}.nii.gz", image)
        if name[0] == "p":
            _write(tmp_path / f"{name}_lesion.nii.gz", 3 * disc(SHAPE, (30, 20 + 4 * seed), 5).round(), True)
    _write(tmp_path / "ramp.nii.gz", torch.linspace(0, 1, SHAPE[0])[:, None].expand(1, 1, *SHAPE))
    rows = ["image,pathology", "h1.nii.gz,", "h2.nii.gz,", "p1.nii.gz,p1_lesion.nii.gz",
            "p2.nii.gz,p2_lesion.nii.gz"]  # fmt: skip
    (tmp_path / "all.csv").write_text("\n".join(rows), encoding="utf-8")
    return tmp_path


def _write(path, image, labels=False):
    data = image[0, 0].contiguous()
    write_volume(Volume(data.int() if labels else data.float(), Grid(SHAPE, np.eye(4)), path.stem), path)


def _store(folder, cache=None):
    preparation = Preparation(SHAPE, (1.0, 1.0), folder / "ramp.nii.gz", "identity", (0.0, 1.0))
    return Store(preparation, cache)


def test_healthy_images_are_moved_onto_patients(folder):
    subjects = collection_from(folder / "all.csv").subjects
    data = PairDataset(subjects, _store(folder))
    items = [data[i] for i in range(len(data))]
    assert {item["names"] for item in items} == {f"h{h} to p{p}" for h in (1, 2) for p in (1, 2)}
    item = next(item for item in items if item["names"] == "h1 to p2")
    # Every class of the label map is pathology; the ramp's grid is the images' own.
    assert torch.equal(item["pathology"], disc(SHAPE, (30, 36), 5)[0].round())
    assert torch.allclose(item["fixed"], brain(SHAPE, 4)[0], atol=1e-4)


def test_given_pairs_with_a_healthy_fixed_image_have_an_empty_pathology(folder):
    rows = ["fixed,fixed_pathology,moving", "p1.nii.gz,p1_lesion.nii.gz,h1.nii.gz", "h2.nii.gz,,h1.nii.gz"]
    (folder / "pairs.csv").write_text("\n".join(rows), encoding="utf-8")
    found = collection_from(folder / "pairs.csv")
    data = PairDataset(found.subjects, _store(folder), pairs=found.pairs)
    lesions = {item["names"]: bool(item["pathology"].any()) for item in (data[0], data[1])}
    assert lesions == {"h1 to p1": True, "h1 to h2": False}


def test_pathological_moving_images_are_refused(folder):
    (folder / "bad.csv").write_text("fixed,moving,moving_pathology\n", encoding="utf-8")
    with (folder / "bad.csv").open("a", encoding="utf-8") as file:
        file.write("h1.nii.gz,p1.nii.gz,p1_lesion.nii.gz\n")
    with pytest.raises(InputError, match="moving_pathology"):
        collection_from(folder / "bad.csv")
    subjects = {one.name: one for one in collection_from(folder / "all.csv").subjects}
    with pytest.raises(InputError, match="'p1' has a pathology and is the moving image"):
        PairDataset((), _store(folder), pairs=[(subjects["h1"], subjects["p1"])])
    with pytest.raises(InputError, match="Every image has a pathology"):
        PairDataset((subjects["p1"], subjects["p2"]), _store(folder))


def test_a_folder_of_patients_names_its_lesions_by_a_pattern(folder):
    found = collection_from(folder, images="{name}_lesion.nii.gz", pathologies="{name}_lesion.nii.gz")
    assert {one.name: one.pathology.name for one in found.subjects} == {
        "p1": "p1_lesion.nii.gz", "p2": "p2_lesion.nii.gz",
    }  # fmt: skip
    with pytest.raises(InputError, match="have no pathology"):
        collection_from(folder, images="{name}.nii.gz", pathologies="{name}_lesion.nii.gz")


def test_a_pathology_is_part_of_what_a_kept_file_was_made_of(folder):
    store = _store(folder, folder / "cache")
    ill = Subject("p1", folder / "p1.nii.gz", pathology=folder / "p1_lesion.nii.gz")
    well = replace(ill, pathology=None)
    assert store.path_of(ill) != store.path_of(well)
    assert "pathology" in store.load(ill)
    assert "pathology" not in store.load(well)
    assert set(store.load(ill)["pathology"].unique().tolist()) == {0.0, 1.0}


def test_a_configuration_puts_lesions_into_training_and_validation(folder):
    options = {"shape": list(SHAPE), "reference": "ramp.nii.gz", "alignment": "identity", "window": [0, 1],
               "lesions": {"radius_vox": [6, 10], "healthy": 0.0}}  # fmt: skip
    rows = ["image", "h1.nii.gz", "h2.nii.gz", "p1.nii.gz", "p2.nii.gz"]
    (folder / "healthy.csv").write_text("\n".join(rows), encoding="utf-8")
    config = DataConfig("healthy.csv", "healthy.csv", options={**options, "held_out": ["p1", "p2"]})
    data = training_data(config, base=folder)
    assert bool(data.training[0]["pathology"].any())
    assert bool(data.validation[0]["pathology"].any())
    config = DataConfig("healthy.csv", options={**options, "lesions": None})
    assert "pathology" not in training_data(config, base=folder).training[0]
    wrong = DataConfig("healthy.csv", options={**options, "lesions": {"growth": [0.9, 0.1]}})
    with pytest.raises(SettingsError, match="growth"):
        data_options(wrong)


def test_validation_on_real_patients_counts_every_pair_once(folder):
    options = {"shape": list(SHAPE), "reference": "ramp.nii.gz", "alignment": "identity", "window": [0, 1]}
    (folder / "train.csv").write_text("image\nt1.nii.gz\nt2.nii.gz\n", encoding="utf-8")
    for name, seed in (("t1", 7), ("t2", 8)):
        _write(folder / f"{name}.nii.gz", brain(SHAPE, seed))
    data = training_data(DataConfig("train.csv", "all.csv", options=options), base=folder)
    names = [data.validation[i]["names"] for i in range(len(data.validation))]
    assert len(names) == 4 == len(set(names))
