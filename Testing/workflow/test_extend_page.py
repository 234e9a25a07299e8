"""The code of the page on own methods works as it stands: it is taken from there and run."""

from __future__ import annotations

import re
import shlex
import sys
import types
from pathlib import Path

import pytest
import torch

from DiffeoRegLib import catalog, methods, settings
from DiffeoRegLib.cards import Card
from DiffeoRegLib.losses import forces
from DiffeoRegLib.methods import comparing
from DiffeoRegLib.methods.base import Progress
from DiffeoRegLib.pipeline import register
from DiffeoRegLib.settings import Settings
from DiffeoRegLib.training.config import read_config
from DiffeoRegLib.volumes.files import read_volume
from Testing import documents
from Testing.scenes import pair_of, texture
from tools import add_weights

PAGE = documents.DOCS / "extend.md"
MODULE = "DiffeoRegLib.methods.gradient_velocity"


def code(word: str) -> str:
    """The Python block of the page that holds a word."""
    (text,) = [block.text for block in documents.blocks(PAGE, "python") if word in block.text]
    return text


def run(text: str) -> dict[str, object]:
    """What a block of code defines."""
    scope: dict[str, object] = {"__name__": "extend_page"}
    exec(compile(text, str(PAGE), "exec"), scope)
    return scope


@pytest.fixture
def own_method(monkeypatch: pytest.MonkeyPatch) -> Card:
    """The method of the page, added as the page says."""
    module = types.ModuleType(MODULE)
    exec(compile(code("class GradientVelocity"), MODULE, "exec"), module.__dict__)
    monkeypatch.setitem(sys.modules, MODULE, module)
    card = run(code("Card("))["GRADIENT_VELOCITY"]
    assert isinstance(card, Card)
    monkeypatch.setitem(catalog.CARDS, card.name, card)
    added = run(code("METHODS ="))["METHODS"]
    assert isinstance(added, dict)
    for name, method in added.items():
        monkeypatch.setitem(methods.METHODS, name, method)
    return card


@pytest.fixture
def own_similarity(monkeypatch: pytest.MonkeyPatch) -> dict[str, object]:
    """The similarity of the page, added as the page says."""
    scope = run(code("def huber("))
    monkeypatch.setitem(comparing.PLAIN, "huber", scope["huber"])
    monkeypatch.setitem(forces.PLAIN, "huber", scope["huber_forces"])
    monkeypatch.setattr(settings, "SIMILARITIES", (*settings.SIMILARITIES, "huber"))
    return scope


def test_the_files_and_names_of_the_page_exist(repository: Path) -> None:
    text = PAGE.read_text(encoding="utf-8")
    named = re.findall(r"`((?:DiffeoRegLib|Testing|tools)/[\w/.]+\.py)`", text)
    assert len(named) > 6
    missing = {name for name in named if not (repository / name).is_file()}
    assert missing == {"DiffeoRegLib/methods/gradient_velocity.py"}  # the one the reader writes
    assert not hasattr(methods, "GradientVelocity")


def test_the_method_of_the_page_registers_a_pair_through_the_pipeline(
    own_method: Card, repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(repository)
    result = run(code('Settings(method="gradient-velocity"'))["result"]  # its own assertions are run, too
    report = result.report  # type: ignore[attr-defined]
    assert own_method.citation in report["citations"]
    assert report["similarity"]["final"]["ncc"] > report["similarity"]["initial"]["ncc"] + 0.02
    assert report["inverse_consistency_mm"]["mean"] < 0.1
    assert report["displacement_mm"]["deformation"]["max"] > 1


def test_the_method_of_the_page_can_be_stopped_and_left_out(own_method: Card, samples: Path) -> None:
    fixed, moving = (read_volume(samples / "brain_slices" / f"oasis2d_00{n}.nrrd") for n in ("01", "10"))
    plain = Settings(method=own_method.name, init="identity")
    still = register(fixed, moving, plain.with_changes(iterations=(0,)))
    assert still.report["displacement_mm"]["whole"]["max"] == 0

    class Stopped(Exception):
        pass

    def stop(step: Progress) -> None:
        if step.phase == "optimise":
            raise Stopped

    with pytest.raises(Stopped):
        register(fixed, moving, plain, progress=stop)


def test_both_forms_of_the_similarity_agree(own_similarity: dict[str, object]) -> None:
    shape = (1, 1, 9, 11)
    fixed, moving = (torch.rand(shape, dtype=torch.float64) for _ in range(2))
    mask = torch.rand(shape, dtype=torch.float64)
    assert float((fixed - moving).abs().max()) > 0.5  # both pieces of the function are met
    variable = moving.clone().requires_grad_()
    value = own_similarity["huber"](fixed, variable, mask=mask)  # type: ignore[operator]
    (slope,) = torch.autograd.grad(value, variable)
    found = own_similarity["huber_forces"](fixed, moving, mask[0, 0])  # type: ignore[operator]
    assert found.value == pytest.approx(value.item())
    torch.testing.assert_close(found.by_moving / found.factor, slope)
    torch.testing.assert_close(found.by_fixed, -found.by_moving)


def test_the_similarity_of_the_page_finds_a_shift(own_similarity: dict[str, object]) -> None:
    image = texture((48, 48), 0)
    pair = pair_of(image[..., 4:44, 4:44].contiguous(), image[..., 4:44, 2:42].contiguous())
    shifts = torch.zeros(4, 2, 40, 40)
    shifts[:, 1] = torch.tensor([0.0, 1, 2, 3]).view(-1, 1, 1)
    unlike = comparing.Comparison(pair, 1.0, pair.grid, "huber")
    values = [unlike.value(shift[None]).item() for shift in shifts]
    assert min(values) == values[2]
    chosen = Settings(similarity="huber", iterations=(30,), levels_mm=(1.0,))
    worker = methods.method_named("svf")
    motion = worker.refine(worker.predict(pair, chosen, lambda step: None), pair, chosen, lambda step: None)
    inner = motion.velocity_vox[0, 1, 5:-5, 5:-5]
    assert float(inner.median()) * motion.grid.spacing[1] == pytest.approx(2.0, abs=0.4)


def test_the_configuration_of_the_page_can_be_trained(tmp_path: Path) -> None:
    (block,) = documents.blocks(PAGE, "yaml")
    path = tmp_path / "mine.yaml"
    path.write_text(block.text, encoding="utf-8")
    config = read_config(path)
    assert (config.method, config.steps) == ("sitreg", 400)


def test_the_weights_of_the_page_can_be_added() -> None:
    (block,) = [b for b in documents.blocks(PAGE, "sh") if "add_weights" in b.text]
    words = shlex.split(block.text.replace("\\\n", " "))
    assert words[:2] == ["python", "tools/add_weights.py"]
    given = add_weights.parser().parse_args(words[2:])
    assert given.id == "shapes-4mm"
