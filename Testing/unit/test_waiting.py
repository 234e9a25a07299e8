"""Sleeping threads on a busy computer, spinning ones on an idle one, and the user's word above both."""

from __future__ import annotations

import pytest

from DiffeoRegLib import waiting


@pytest.fixture(autouse=True)
def _clean(monkeypatch):
    for name in waiting.CHOICES:
        monkeypatch.delenv(name, raising=False)


def statistics(folder, lines, monkeypatch):
    """A /proc/stat that changes from one line to the next at every sleep."""
    file = folder / "stat"
    rest = iter(lines)
    file.write_text(next(rest) + "\ncpu0 1 2 3\n", encoding="utf-8")
    monkeypatch.setattr(
        waiting.time, "sleep", lambda _: file.write_text(next(rest) + "\ncpu0 1 2 3\n", encoding="utf-8")
    )
    monkeypatch.setattr(waiting, "STATISTICS", file)
    return file


@pytest.mark.parametrize(
    ("after", "share"),
    [
        ("cpu 110 0 10 180 0 0 0 0 5 0", 0.2),
        ("cpu 100 0 10 200 0 0 0 0 0 0", 0.0),
        ("cpu 200 0 10 100 0 0 0 0", 1.0),
    ],
)
def test_share_of_time_in_use(tmp_path, monkeypatch, after, share):
    before = "cpu 100 0 10 100 0 0 0 0 0 0" if share in (0.0, 1.0) else "cpu 90 0 10 100 0 0 0 0 0 0"
    file = statistics(tmp_path, [before, after], monkeypatch)
    assert waiting.busy_share(0.1, file) == pytest.approx(share)


def test_unknown_where_the_system_does_not_tell(tmp_path):
    assert waiting.busy_share(0.0, tmp_path / "nothing") is None


@pytest.mark.parametrize(("busy", "expected"), [(0.9, "0"), (0.3, "0"), (0.2, None), (None, None)])
def test_threads_sleep_only_on_a_busy_computer(monkeypatch, busy, expected):
    monkeypatch.setattr(waiting, "busy_share", lambda _: busy)
    monkeypatch.setattr(waiting.os, "cpu_count", lambda: 2)
    monkeypatch.setenv("GOMP_SPINCOUNT", "x")  # so that the end of the test removes what is set
    monkeypatch.delenv("GOMP_SPINCOUNT")
    waiting.choose_waiting()
    assert waiting.os.environ.get("GOMP_SPINCOUNT") == expected


def test_the_user_decides(monkeypatch):
    monkeypatch.setattr(waiting, "busy_share", lambda _: 1.0)
    monkeypatch.setenv("OMP_WAIT_POLICY", "ACTIVE")
    waiting.choose_waiting()
    assert "GOMP_SPINCOUNT" not in waiting.os.environ
