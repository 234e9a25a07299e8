"""The script that looks for system libraries finds, installs, or says in one sentence what to do."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from tools import system_packages

EGL = {"libEGL.so.1": "libegl1"}


@pytest.mark.skipif(sys.platform != "linux", reason="needs the loader of Linux")
def test_a_library_is_tried_and_not_guessed() -> None:
    assert system_packages.can_load("libc.so.6")
    assert not system_packages.can_load("libNoSuchLibrary.so.1")


def test_a_font_is_looked_for_in_folders(tmp_path: Path) -> None:
    assert not system_packages.has_font([str(tmp_path), str(tmp_path / "absent")])
    (tmp_path / "truetype").mkdir()
    (tmp_path / "truetype" / "README").touch()
    assert not system_packages.has_font([str(tmp_path)])
    (tmp_path / "truetype" / "DejaVuSans.TTF").touch()
    assert system_packages.has_font([str(tmp_path)])


def test_every_missing_thing_is_named_with_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(system_packages, "can_load", lambda library: library != "libEGL.so.1")
    monkeypatch.setattr(system_packages, "has_font", lambda: False)
    assert system_packages.missing_packages() == {**EGL, "a font": "fonts-dejavu-core"}


@pytest.mark.parametrize("platform", ["darwin", "win32"])
def test_other_systems_need_nothing(monkeypatch: pytest.MonkeyPatch, platform: str) -> None:
    monkeypatch.setattr(sys, "platform", platform)
    monkeypatch.setattr(system_packages, "can_load", lambda library: False)
    assert system_packages.missing_packages() == {}


def answer(
    before: dict[str, str], after: dict[str, str], *, root: bool, works: bool = True
) -> tuple[int, list[str]]:
    """Exit status, and the commands that were run."""
    commands: list[str] = []
    found = iter([before, after])

    def do(command: Sequence[str]) -> bool:
        commands.append(" ".join(command))
        return works

    status = system_packages.main(lambda: next(found), lambda: root, do)
    return status, commands


def test_nothing_missing_does_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    assert answer({}, {}, root=True) == (0, [])
    assert capsys.readouterr() == ("", "")


def test_root_installs_what_is_missing() -> None:
    status, commands = answer(EGL, {}, root=True)
    assert status == 0
    assert commands[0].startswith("apt-get update")
    assert commands[1].endswith("--no-install-recommends libegl1")


@pytest.mark.parametrize(("root", "works"), [(False, True), (True, False), (True, True)])
def test_what_stays_missing_is_said_in_one_sentence(
    capsys: pytest.CaptureFixture[str], root: bool, works: bool
) -> None:
    status, commands = answer(EGL, EGL, root=root, works=works)
    assert status == 1
    assert bool(commands) is root
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "libEGL.so.1" in said
    assert said.rstrip().endswith("sudo apt-get install --yes libegl1")
