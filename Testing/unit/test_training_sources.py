"""Data sets from folders, tables and Learn2Reg; splits by person."""

from __future__ import annotations

import json

import pytest

from DiffeoRegLib.errors import InputError, SettingsError, UnknownNameError
from DiffeoRegLib.training.sources import collection_from, subjects_from
from DiffeoRegLib.training.splits import divide, split
from DiffeoRegLib.training.subjects import Collection, Subject, person_of


def _touch(folder, *names):
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")


def _write(path, text):
    path.write_text(text, encoding="utf-8")
    return path


def _subjects(*groups):
    return [Subject(f"s{i}", f"s{i}.nii", group=group) for i, group in enumerate(groups)]


# ---------------------------------------------------------------- sources


def test_a_folder_gives_its_images_and_what_belongs_to_them(tmp_path):
    _touch(tmp_path, "b.nii.gz", "a.nrrd", "notes.txt", ".hidden.nii", "seg/a.nii.gz", "seg/b.nii.gz")
    found = subjects_from(tmp_path, labels="seg")
    assert [(s.name, s.image.name, s.labels) for s in found] == [
        ("a", "a.nrrd", tmp_path / "seg/a.nii.gz"),
        ("b", "b.nii.gz", tmp_path / "seg/b.nii.gz"),
    ]


def test_a_pattern_finds_names_in_subfolders_and_persons_in_names(tmp_path):
    _touch(tmp_path, *(f"{s}/anat/{s}_T1w.nii.gz" for s in ("sub-01_ses-1", "sub-01_ses-2", "sub-07")))
    _touch(tmp_path, "sub-07/anat/sub-08_T1w.nii.gz")
    found = subjects_from(tmp_path, images="{name}/anat/{name}_T1w.nii.gz")
    assert [(s.name, s.group) for s in found] == [
        ("sub-01_ses-1", "sub-01"),
        ("sub-01_ses-2", "sub-01"),
        ("sub-07", "sub-07"),
    ]


def test_persons_are_read_from_known_names_and_set_by_hand(tmp_path):
    assert person_of("OAS1_0001_MR2") == person_of("OAS1_0001_MR1") == "OAS1_0001"
    assert person_of("NLST_0003_0001") == "NLST_0003"
    assert person_of("1005") == "1005"
    _touch(tmp_path, *(f"{n}_SS.nii" for n in (1005, 1018, 1025)))
    by_hand = subjects_from(tmp_path, images="{name}_SS.nii", same_person=[["1025", "1005"]])
    assert [s.group for s in by_hand] == ["1005", "1018", "1005"]
    by_pattern = subjects_from(tmp_path, images="{name}.nii", person=r"^(\d\d)")
    assert {s.group for s in by_pattern} == {"10"}
    _touch(tmp_path, "x/pat.nii", "x/sub-1_a.nii", "x/sub-1_b.nii", "x/sub-3.nii")
    joined = subjects_from(tmp_path / "x", same_person=[["sub-1_a", "pat"]])
    assert [s.group for s in joined] == ["pat", "pat", "pat", "sub-3"]  # the other visit follows
    with pytest.raises(InputError, match="'1099'"):
        subjects_from(tmp_path, images="{name}_SS.nii", same_person=[["1005", "1099"]])
    with pytest.raises(InputError, match="no usable expression"):
        subjects_from(tmp_path, person="nogroup|.")
    with pytest.raises(InputError, match="finds no person"):
        subjects_from(tmp_path, person="^(sub)")


def test_a_table_of_pairs_shares_what_it_says_of_an_image(tmp_path):
    _touch(tmp_path, "x/a.nii", "y/a.nii", "c.nii", "seg.nii")
    table = _write(
        tmp_path / "pairs.csv",
        "fixed,moving,fixed_labels,moving_labels,fixed_person\nx/a.nii,y/a.nii,,,Ann\nc.nii,x/a.nii,,seg.nii,\n",
    )
    found = collection_from(table)
    names = [(fixed.name, moving.name) for fixed, moving in found.pairs]
    assert names == [("x/a", "y/a"), ("c", "x/a")]
    assert found.pairs[0][0] == found.pairs[1][1]
    assert found.pairs[0][0].labels == tmp_path / "seg.nii"
    assert [s.group for s in found.subjects] == ["Ann", "y/a", "c"]


@pytest.mark.parametrize("wrap", [lambda rows: rows, lambda rows: {"subjects": rows}])
def test_a_json_table_of_images(tmp_path, wrap):
    _touch(tmp_path, "a.nii", "b.nii", "m.nii")
    rows = [{"image": "a.nii", "mask": "m.nii", "person": 7}, {"image": "b.nii", "name": "B"}]
    found = subjects_from(_write(tmp_path / "t.json", json.dumps(wrap(rows))))
    assert [(s.name, s.group, s.mask) for s in found] == [("a", "7", tmp_path / "m.nii"), ("B", "B", None)]


def test_learn2reg_keeps_validation_persons_out_of_training(tmp_path):
    images = [f"imagesTr/L_{n:04d}_{m:04d}.nii.gz" for n in (1, 2, 3) for m in (0, 1)]
    _touch(tmp_path, *images, "labelsTr/L_0001_0001.nii.gz", "masksTr/L_0003_0000.nii.gz")
    content = {
        "training": [{"image": f"./{image}", "keypoints": "k.csv"} for image in images],
        "training_paired_images": [
            {"fixed": images[0], "moving": images[1]},
            {"fixed": images[2], "moving": images[3]},
        ],
        "registration_val": [{"fixed": images[4], "moving": images[5]}],
    }
    _write(tmp_path / "dataset.json", json.dumps(content))
    found = collection_from(tmp_path)
    assert [s.name for s in found.subjects] == ["L_0001_0000", "L_0001_0001", "L_0002_0000", "L_0002_0001"]
    assert [(f.name, m.name) for f, m in found.validation_pairs] == [("L_0003_0000", "L_0003_0001")]
    assert len(found.pairs) == 2
    assert found.subjects[1].labels == tmp_path / "labelsTr/L_0001_0001.nii.gz"
    assert found.subjects[0].labels is None
    assert found.validation[0].mask == tmp_path / "masksTr/L_0003_0000.nii.gz"
    assert "2 images are of persons" in found.notes[0]
    assert "not landmarks in mm" in found.notes[1]
    assert divide(found, 0.5) is found


def test_learn2reg_entries_may_be_plain_file_names(tmp_path):
    _touch(tmp_path, "imagesTr/a.nii.gz", "imagesTr/b.nii.gz")
    content = {"training": ["imagesTr/a.nii.gz", "imagesTr/b.nii.gz"], "validation": []}
    found = subjects_from(_write(tmp_path / "set.json", json.dumps(content)))
    assert [s.name for s in found] == ["a", "b"]
    _write(tmp_path / "set.json", json.dumps({"training": [{"label": "x"}]}))
    with pytest.raises(InputError, match="names no image"):
        subjects_from(tmp_path / "set.json")


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("t.csv", "image\na.nii\n", "one image to train on"),
        ("t.csv", "image\na.nii\nlost.nii\n", r"do not exist: '.*lost\.nii'"),
        ("t.csv", "image\na.nii\na.nii\n", "more than one image 'a'"),
        ("t.csv", "image,lables\na.nii,b.nii\n", "lables"),
        ("t.csv", "name\na\n", "has the columns name"),
        ("t.csv", "image\n", "no rows"),
        ("t.csv", "fixed,moving\na.nii,\n", "Row 1 .* has no 'moving'"),
        ("t.csv", "fixed,moving\na.nii,a.nii\n", "with itself"),
        (
            "t.csv",
            "fixed,moving,fixed_labels\na.nii,b.nii,s.nii\na.nii,b.nii,t.nii\n",
            "two different labels",
        ),
        ("t.csv", "fixed,moving,fixed_person\na.nii,b.nii,x\na.nii,b.nii,y\n", "two persons: x and y"),
        ("t.json", "{", "could not be read as a JSON"),
        ("t.json", '{"pictures": []}', "should hold a list of objects"),
        ("t.json", '[{"image": ["a.nii"]}]', "should be a text"),
        ("t.txt", "a", "is no data set"),
    ],
)
def test_tables_that_cannot_be_used_say_why(tmp_path, name, text, message):
    _touch(tmp_path, "a.nii", "b.nii", "s.nii", "t.nii")
    with pytest.raises(InputError, match=message):
        subjects_from(_write(tmp_path / name, text))


def test_folders_that_cannot_be_used_say_why(tmp_path):
    with pytest.raises(InputError, match="There is no data set"):
        subjects_from(tmp_path / "nowhere")
    with pytest.raises(InputError, match=r"No image in .*: it is empty.*--images"):
        subjects_from(tmp_path)
    _touch(tmp_path, "a_1.nii", "b_1.nii", "a_seg.nii", "x/a.nii", "x/a.nrrd")
    with pytest.raises(InputError, match=r"1 of 2 images .* no labels .*: b"):
        subjects_from(tmp_path, images="{name}_1.nii", labels="{name}_seg.nii")
    with pytest.raises(InputError, match=r"it holds a_1.nii, a_seg.nii, b_1.nii \.\.\."):
        subjects_from(tmp_path, images="{name}_t1.nii")
    with pytest.raises(InputError, match=r"no folder .*segs"):
        subjects_from(tmp_path, labels="segs")
    with pytest.raises(InputError, match=r"needs \{name\}"):
        subjects_from(tmp_path, images="*.nii")
    with pytest.raises(InputError, match="two files for 'a'"):
        subjects_from(tmp_path, images="x/{name}.n*")
    table = _write(tmp_path / "t.csv", "image\na_1.nii\nb_1.nii\n")
    with pytest.raises(InputError, match="go with a folder"):
        subjects_from(table, labels="seg")


# ---------------------------------------------------------------- splits


def test_a_person_is_on_one_side_only_whatever_the_order():
    subjects = _subjects(*"aabbccddeeffgghhii")
    training, held_out = split(subjects, 0.2, seed=4)
    assert {s.group for s in training}.isdisjoint(s.group for s in held_out)
    assert len(training) + len(held_out) == len(subjects)
    assert len(held_out) == 4
    again, _ = split(subjects[::-1], 0.2, seed=4)
    assert {s.name for s in again} == {s.name for s in training}
    others = [frozenset(s.group for s in split(subjects, 0.2, seed=n)[1]) for n in range(12)]
    assert len(set(others)) > 4


def test_named_validation_takes_all_images_of_the_person():
    subjects = _subjects("a", "a", "b", "c", "c")
    training, held_out = split(subjects, ["s1"])
    assert [s.name for s in held_out] == ["s0", "s1"]
    assert [s.name for s in training] == ["s2", "s3", "s4"]
    assert split(subjects, ["c"])[1] == subjects[3:]
    assert split(subjects, 0)[1] == []
    with pytest.raises(UnknownNameError, match="s9"):
        split(subjects, ["s9"])


def test_splits_that_leave_no_pair_are_refused():
    with pytest.raises(InputError, match=r"3 images of 3 persons .* 1 would be left"):
        split(_subjects(*"abc"), 0.3)
    with pytest.raises(InputError, match="0 would be left"):
        split(_subjects(*"aaaa"), 0.3)
    with pytest.raises(InputError, match="one image to train on"):
        split(_subjects("a"), 0)
    with pytest.raises(SettingsError, match="below 1"):
        split(_subjects(*"abcd"), 1.0)
    with pytest.raises(SettingsError, match="list of names"):
        split(_subjects(*"abcd"), "s0")


def test_given_pairs_follow_their_images():
    subjects = tuple(_subjects(*"aabbcc"))
    inside = tuple((subjects[i], subjects[i + 1]) for i in (0, 2, 4))
    divided = divide(Collection(subjects, (*inside, (subjects[1], subjects[2]))), ["a"])
    assert divided.pairs == inside[1:]
    assert divided.validation_pairs == inside[:1]
    assert "1 of 4 given pairs" in divided.notes[0]
    with pytest.raises(InputError, match="No given pair"):
        divide(Collection(subjects, inside[:1]), ["a"])
