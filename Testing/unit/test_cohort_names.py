"""Names of rows, plain and as of a BIDS derivative."""

from __future__ import annotations

from pathlib import Path

import pytest

from DiffeoRegLib.cohorts.names import bids_names, plain_names
from DiffeoRegLib.errors import InputError
from DiffeoRegLib.outputs import NAMES


def bids(fixed, moving, given=None, person=None):
    return bids_names(Path(fixed), Path(moving), given, person, NAMES)


def test_a_row_is_called_after_its_images_or_as_the_table_says():
    names = plain_names(Path("/a/fixed one.nii.gz"), Path("/b/moving.nrrd"), None)
    assert names.name == names.folder == "moving_to_fixed-one"
    assert names.files == {}
    assert plain_names(Path("a.nii"), Path("b.nii"), "visit-2").name == "visit-2"


@pytest.mark.parametrize("name", ["a/b", "..", ".hidden", "status", "Status", "a b", "end.", "x" * 151, "ü"])
def test_a_name_no_folder_can_have_is_refused(name):
    with pytest.raises(InputError):
        plain_names(Path("a.nii"), Path("b.nii"), name)


def test_a_subject_to_a_template():
    names = bids("MNI152.nii.gz", "sub-01/anat/sub-01_T1w.nii.gz")
    assert names.folder == "sub-01/from-T1w_to-MNI152"
    assert names.name == "sub-01_from-T1w_to-MNI152"
    assert names.files["transform"] == "sub-01_from-T1w_to-MNI152_mode-image_xfm.h5"
    assert names.files["inverse"] == "sub-01_from-MNI152_to-T1w_mode-image_xfm.h5"
    assert names.files["moved"] == "sub-01_space-MNI152_desc-registered_T1w.nii.gz"
    assert names.files["moved_seg"] == "sub-01_space-MNI152_desc-registered_dseg.nii.gz"
    assert names.files["sigma_moving"] == "sub-01_space-MNI152_desc-sigmamoving_T1w.nii.gz"
    assert names.files["page"] == "sub-01_from-T1w_to-MNI152_report.html"
    assert names.files["report"] == "sub-01_from-T1w_to-MNI152_report.json"
    assert names.files["geodesic"] == "sub-01_from-T1w_to-MNI152_geodesic.safetensors"


def test_every_kind_of_result_has_a_name_of_its_own():
    for given in (None, "fast run"):
        files = bids("MNI152.nii.gz", "sub-01_T1w.nii.gz", given).files
        assert set(files) == set(NAMES)
        assert len(set(files.values())) == len(NAMES)


def test_two_sessions_of_one_subject():
    names = bids("sub-01_ses-2_T1w.nii.gz", "sub-01_ses-1_acq-fast_T1w.nii.gz")
    assert names.folder == "sub-01/ses-1/from-ses1T1w_to-ses2T1w"
    assert names.files["transform"] == "sub-01_ses-1_from-ses1T1w_to-ses2T1w_mode-image_xfm.h5"


def test_two_runs_of_one_session_are_told_apart():
    names = bids("sub-01_run-2_bold.nii.gz", "sub-01_run-1_bold.nii.gz")
    assert names.name == "sub-01_from-sub01run1bold_to-sub01run2bold"


def test_two_subjects():
    names = bids("sub-02_T1w.nii.gz", "sub-01_T1w.nii.gz")
    assert names.name == "sub-01_from-T1w_to-sub02T1w"


def test_names_that_are_not_of_bids_and_what_the_table_says():
    names = bids("hippocampus_006.nii.gz", "hippocampus_138.nii.gz", "fast run", "sub-138")
    assert names.folder == "sub-138/from-hippocampus138_to-hippocampus006_desc-fastrun"
    assert names.files["transform"] == (
        "sub-138_from-hippocampus138_to-hippocampus006_mode-image_desc-fastrun_xfm.h5"
    )
    assert names.files["moved"] == "sub-138_space-hippocampus006_desc-fastrunRegistered_image.nii.gz"


def test_labels_that_cannot_be_made_are_refused():
    with pytest.raises(InputError, match="no letter or digit"):
        bids("a.nii", "---.nii")
    with pytest.raises(InputError, match="the same label"):
        bids("one/a-b.nii", "two/ab.nii")
