"""The panel and the network: one door, only https, only the file that was meant; names stay names."""

from __future__ import annotations

import ast
import hashlib
import io
import urllib.request
from email.message import Message
from pathlib import Path
from typing import Any
from urllib.error import URLError
from urllib.response import addinfourl
from xml.etree import ElementTree

import pytest

from DiffeoRegLib.errors import OutputError, SettingsError
from DiffeoRegLib.settings import Settings
from DiffeoRegPanel.download import OnlyHttps, fetch
from DiffeoRegPanel.request import Marks, Region, Request
from DiffeoRegPanel.script import script_for

CONTENT = b"weights " * 1000
SHA256 = hashlib.sha256(CONTENT).hexdigest()
URL = "https://example.org/net.safetensors"


class Server(urllib.request.HTTPSHandler):
    """Answers by address: bytes, another address to go to, or an error."""

    def __init__(self, answers: dict[str, Any]) -> None:
        super().__init__()
        self.answers, self.asked = answers, list[str]()

    def https_open(self, req: urllib.request.Request) -> Any:
        self.asked.append(req.full_url)
        answer, headers = self.answers[req.full_url], Message()
        if isinstance(answer, Exception):
            raise answer
        code = 200
        if isinstance(answer, str):
            headers["Location"], code, answer = answer, 302, b""
        response = addinfourl(io.BytesIO(answer), headers, req.full_url, code)
        response.msg = "answer"  # type: ignore[attr-defined]
        return response


def got(folder: Path, answers: dict[str, Any], url: str = URL) -> Path:
    opener = urllib.request.build_opener(OnlyHttps, Server(answers))
    path = folder / "net.safetensors"
    fetch(url, path, SHA256, len(CONTENT), opener=opener)
    return path


def test_the_file_that_was_meant_arrives(tmp_path: Path) -> None:
    assert got(tmp_path, {URL: CONTENT}).read_bytes() == CONTENT


def test_another_https_address_is_followed(tmp_path: Path) -> None:
    other = "https://example.com/elsewhere"
    assert got(tmp_path, {URL: other, other: CONTENT}).read_bytes() == CONTENT


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (CONTENT[:-1], "not the file that was meant"),
        (CONTENT[:-1] + b"?", "not the file that was meant"),
        (CONTENT + b"more", "not the file that was meant"),
        (b"", "not the file that was meant"),
        ("http://example.org/net.safetensors", "only https"),
        ("ftp://example.org/net.safetensors", "only https"),
        ("file:///etc/passwd", "not allowed"),
        (URLError("no route"), "no route"),
        (ConnectionResetError(104, "reset"), "reset"),
    ],
)
def test_anything_else_is_refused_and_leaves_nothing(tmp_path: Path, answer: Any, words: str) -> None:
    with pytest.raises(OutputError, match=words):
        got(tmp_path, {URL: answer})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("url", ["http://example.org/a", "ftp://a/b", "file:///etc/passwd", "example.org/a"])
def test_other_addresses_are_not_even_asked(tmp_path: Path, url: str) -> None:
    with pytest.raises(OutputError, match="only https"):
        got(tmp_path, {}, url)


def test_a_stream_without_end_is_left(tmp_path: Path) -> None:
    class Endless(io.RawIOBase):
        taken = 0

        def read(self, size: int = -1) -> bytes:
            Endless.taken += size
            assert Endless.taken < 1 << 24, "it is followed for ever"
            return bytes(size)

    class Opener(urllib.request.OpenerDirector):
        def open(self, *_: Any, **__: Any) -> Any:
            return addinfourl(Endless(), Message(), URL, 200)

    with pytest.raises(OutputError, match="check sum or size"):
        fetch(URL, tmp_path / "net", SHA256, len(CONTENT), opener=Opener())
    assert list(tmp_path.iterdir()) == []


def test_a_file_in_the_way_is_not_written_over(tmp_path: Path) -> None:
    (tmp_path / "net.safetensors").write_bytes(b"mine")
    with pytest.raises(OutputError):
        got(tmp_path, {URL: CONTENT})


def test_fetching_is_called_by_buttons_only(repository: Path) -> None:
    """`download` is called once, by what the button is connected to, and `fetch` by that alone."""
    callers = set()
    for path in (repository / "DiffeoReg").rglob("*.py"):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for function in (n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef)):
            called = {ast.unparse(n.func) for n in ast.walk(function) if isinstance(n, ast.Call)}
            if any(
                name.split(".")[-1] in ("download", "_download", "fetch", "downloadFile") for name in called
            ):
                callers.add((path.name, function.name))
    assert callers == {("weights.py", "download"), ("panel_setup.py", "_download")}
    text = (repository / "DiffeoReg/DiffeoRegPanel/panel_setup.py").read_text(encoding="utf-8")
    assert text.count("self._download") == 1
    assert "(ui.downloadWeightsButton, self._download)" in text


# --- names of nodes -----------------------------------------------------------------------------------------

EVIL = "x'); import os; os.system('owned') #\n\"\"\"{0.__class__} %s ../../x"


def test_a_copied_script_holds_names_as_text_only(scene: Any) -> None:
    nodes = [scene.AddNewNodeByClass("vtkMRMLScalarVolumeNode", f"{EVIL}{n}") for n in range(2)]
    script = script_for(Request(*nodes, Settings()))
    calls = [ast.unparse(n.func) for n in ast.walk(ast.parse(script)) if isinstance(n, ast.Call)]
    known = {"slicer.util.getNode", "DiffeoRegLogic", "logic.register", "logic.close"}
    assert set(calls) == known


def test_labels_from_a_scene_are_numbers_or_refused(scene: Any) -> None:
    nodes = [scene.AddNewNodeByClass("vtkMRMLScalarVolumeNode", f"volume {n}") for n in range(2)]
    marks = scene.AddNewNodeByClass("vtkMRMLLabelMapVolumeNode", "marks")

    def script(*labels: str) -> str:
        known = Marks(Region(marks, classes=labels))
        return script_for(Request(*nodes, Settings(method="metamorphosis"), pathology=known))

    assert "[1, 2]" in script("1", "2")
    with pytest.raises(SettingsError, match="is no label"):
        script("1]); evil(", "2")


def test_labels_of_the_panel_show_names_as_text(repository: Path) -> None:
    """A name may hold HTML, which Qt would draw, and look for pictures in other places for it."""
    tree = ElementTree.parse(repository / "DiffeoReg" / "Resources" / "UI" / "DiffeoReg.ui")
    for label in (w for w in tree.iter("widget") if w.get("class") == "QLabel"):
        values = {p.get("name"): "".join(p.itertext()) for p in label.findall("property")}
        if not values.get("text"):
            assert values.get("textFormat") == "Qt::PlainText", label.get("name")
