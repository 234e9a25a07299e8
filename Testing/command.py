"""Running the command inside the tests."""

from __future__ import annotations

from DiffeoRegLib.cli import main

PRINTED = "a library that prints"
RESULTS = {"transform.h5", "inverse.h5", "moved.nii.gz", "report.json", "report.html"}


def run(*words):
    return main([str(word) for word in words])


def register_words(pair_files, out, *more):
    return ["register", pair_files / "fixed.nii.gz", pair_files / "moving.nii.gz", "-o", out, *more]


def one_sentence(capsys):
    """What was said on the error stream, which must be one line without a traceback."""
    said = [line for line in capsys.readouterr().err.strip().splitlines() if line != PRINTED]
    assert len(said) == 1, said
    assert said[0].startswith("diffeoreg: ")
    return said[0]
