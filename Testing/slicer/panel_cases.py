"""A panel on the bench with everything behind it replaced: the logic, the run, what is installed."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from DiffeoRegLib.catalog import CARDS, Card, WeightFile

UI = Path(__file__).resolve().parents[2] / "DiffeoReg" / "Resources" / "UI" / "DiffeoReg.ui"

REPORT = {
    "folds": {"folded_percent": 0.0, "minimum_determinant": 0.41, "maximum_determinant": 2.2},
    "inverse_consistency_mm": {"mean": 0.0123, "max": 0.2},
    "similarity": {"given": {"ncc": 0.412}, "initial": {"ncc": 0.8}, "final": {"ncc": 0.957}},
    "labels": {"mean": {"given": {"dice": 0.5}, "final": {"dice": 0.88}}, "per_label": {"1": {}}},
    "landmarks": {"count": 3, "given": {"mean": 8.0}, "final": {"mean": 1.25}},
    "device": {"device": "cpu", "why": "the only one"},
}
CHECK = "Slicer shows what was computed."


def card_with(name: str, **changes: Any) -> Card:
    """A card as a later method may have it."""
    return Card(name=name, title=f"Method {name}", use="For tests.", citation="Nobody, 2026.", **changes)


WEIGHT = WeightFile("net.safetensors", "https://example.org/net", "0" * 64, 1_000_000, "CC-BY-NC-4.0", False)
MORE_CARDS = {
    "pathological": card_with("pathological", needs_pathology_mask=True),
    "regional": card_with("regional", needs_region_labels=True, kernels=True, geodesic=True),
    "kernels": card_with("kernels", kernels=True),
    "direct": card_with("direct", time_steps=False, refinable=False, weights=(WEIGHT,)),
    "group": card_with("group", needs_group=True),
    "varying": card_with("varying", steps_range=(1, 32), trained_steps=8, time_varying=True),
    "counted": card_with("counted", steps_range=(2, 16), steps_default=4, time_varying=True),
    "single": card_with("single", steps_range=(12, 12), steps_default=12),
    "shipped": card_with(
        "shipped",
        weights=(replace(WEIGHT, url=None),),
        halfway=True,
        training_data="ten spheres",
        training_licence="CC0-1.0",
    ),
}


def add_cards(monkeypatch: Any) -> dict[str, Card]:
    """All cards there are, and some with needs that no method has yet."""
    for name, card in MORE_CARDS.items():
        monkeypatch.setitem(CARDS, name, card)
    return CARDS


@dataclass
class FakeSetup:
    """Stands for install.Setup."""

    ok: bool = True
    sentence: str = "Ready: PyTorch 2.9, build CPU."
    log: str = "installed"
    manual_command: str = "PythonSlicer -m pip install torch"
    probes: list[Any] = field(default_factory=list)
    asked: list[str] = field(default_factory=list)
    error: Exception | None = None

    def state(self) -> Any:
        return SimpleNamespace(ok=self.ok, sentence=self.sentence, details=("torch: 2.9",))

    def install(self, confirm: Any, progress: Any) -> None:
        progress("Installing")
        if self.error is not None:
            raise self.error
        if confirm("Continue?"):
            self.ok, self.sentence = True, "Ready."

    def record_probe(self, found: Any) -> None:
        self.probes.append(found)


@dataclass
class FakeWeights:
    """Stands for weights.Weights."""

    kind: str = "present"
    machine: Any = None
    done: list[str] = field(default_factory=list)

    def state(self, card: Card) -> Any:
        if not card.weights:
            return SimpleNamespace(ok=True, kind="not needed", sentence="This method needs no weights.")
        return SimpleNamespace(
            ok=self.kind == "present", kind=self.kind, sentence=f"Weights are {self.kind}."
        )

    def licences_to_accept(self, card: Card) -> tuple[str, ...]:
        return tuple(x for x in card.licences_to_accept if x not in self.machine.accepted)

    def download(self, card: Card, progress: Any = None) -> None:
        progress("Downloading")
        self.done.append(f"download {card.name}")
        self.kind = "present"

    def clear(self, card: Card) -> int:
        self.kind = "missing"
        return 1_000_000


class FakeMachine:
    """Stands for machine.Machine."""

    def __init__(self) -> None:
        self.device, self.threads, self.temporary_folder = "auto", None, None
        self.models_folder, self.accepted = Path("models"), set()

    def accept_licence(self, name: str) -> None:
        self.accepted.add(name)


def event(kind: str, message: str = "", fraction: float | None = None, **more: Any) -> Any:
    """An event as the runner makes it."""
    named = {"phase": "", "eta_seconds": None, "error_kind": None, "result": None} | more
    return SimpleNamespace(kind=kind, message=message, fraction=fraction, **named)


class FakeRegistration:
    """A run whose events the test gives."""

    def __init__(self, request: Any) -> None:
        self.request, self.result, self.error = request, None, None
        self.log, self.events, self.cancelled = "worker says hello", [], False

    @property
    def finished(self) -> bool:
        return self.result is not None or self.error is not None

    def cancel(self) -> None:
        self.cancelled = True

    def poll(self) -> list[Any]:
        events, self.events = self.events, []
        for one in events:
            if isinstance(one, Exception):
                raise one
        return events


class FakePath:
    """The way along the flow, without computing anything."""

    def __init__(self) -> None:
        self.asked: list[float] = []
        self.busy, self.closed, self.events = False, False, []

    def set(self, fraction: float) -> None:
        self.asked.append(fraction)

    def poll(self) -> list[Any]:
        events, self.events = self.events, []
        return events

    def close(self) -> None:
        self.closed = True


class FakeLogic:
    """Stands for DiffeoRegLogic; parameters in the real scene."""

    def __init__(self) -> None:
        self.runs: list[FakeRegistration] = []
        self.paths: list[FakePath] = []
        self.closed, self.refuse = 0, None
        self.probe = SimpleNamespace(poll=lambda: [], finished=False)
        self.runner = SimpleNamespace(start=lambda job: self.probe)

    def getParameterNode(self) -> Any:
        import slicer

        from DiffeoRegPanel.parameters import DiffeoRegParameterNode

        node = slicer.mrmlScene.GetSingletonNode("DiffeoReg", "vtkMRMLScriptedModuleNode")
        if node is None:
            node = slicer.vtkMRMLScriptedModuleNode()
            node.SetSingletonTag("DiffeoReg")
            node = slicer.mrmlScene.AddNode(node)
        return DiffeoRegParameterNode(node)

    def start(self, request: Any) -> FakeRegistration:
        if self.refuse is not None:
            raise self.refuse
        self.runs.append(FakeRegistration(request))
        return self.runs[-1]

    def startGroup(self, request: Any) -> FakeRegistration:
        return self.start(request)

    def path(self, _velocity: Any) -> FakePath:
        self.paths.append(FakePath())
        return self.paths[-1]

    def close(self) -> None:
        self.closed += 1


def make_panel(**changes: Any) -> Any:
    """A panel that has been set up and entered; `panel.services` and `panel.logic` are fakes."""
    import qt

    from DiffeoRegPanel.panel_setup import Services
    from DiffeoRegPanel.widget import Panel

    machine = FakeMachine()
    given = {
        "setup": FakeSetup(), "weights": FakeWeights(machine=machine), "machine": machine,
        "estimate": lambda *_a, **_k: SimpleNamespace(sentence="About 20 s.", transform_mb=2.4),
        "script_for": lambda request: f"register {request.fixed.GetName()}",
        "confirm": lambda _question: True,
    }  # fmt: skip
    holder = qt.QWidget()
    layout = qt.QVBoxLayout(holder)
    widget = SimpleNamespace(holder=holder, layout=layout, resourcePath=lambda _name: str(UI))
    panel = Panel(widget, FakeLogic(), Services(**(given | changes)))
    panel.setup()
    panel.enter()
    return panel


def add_volume(name: str, seed: int = 0, shape: tuple[int, int, int] = (8, 10, 12)) -> Any:
    """A small volume in the scene."""
    import slicer

    array = np.random.default_rng(seed).normal(100, 20, shape).astype(np.float32)
    return slicer.util.addVolumeFromArray(array, name=name)


def add_segmentation(name: str, segments: tuple[str, ...]) -> Any:
    """A segmentation with empty segments; their IDs are S1, S2 ..."""
    import slicer

    node = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSegmentationNode", name)
    for number, title in enumerate(segments, 1):
        node.GetSegmentation().AddEmptySegment(f"S{number}", title)
    return node


def choose_pair(panel: Any) -> tuple[Any, Any]:
    """Two volumes, chosen as fixed and moving."""
    fixed, moving = add_volume("CT", 1), add_volume("MR", 2)
    panel.ui.fixedSelector.setCurrentNode(fixed)
    panel.ui.movingSelector.setCurrentNode(moving)
    return fixed, moving


def result_nodes(fixed: Any, moving: Any) -> Any:
    """What a run leaves behind."""
    import slicer

    scene = slicer.mrmlScene
    velocity = add_volume("velocity", 3)
    return SimpleNamespace(
        outputTransform=scene.AddNewNodeByClass("vtkMRMLTransformNode", "MR -> CT"),
        inverseTransform=scene.AddNewNodeByClass("vtkMRMLTransformNode", "CT -> MR"),
        movedVolume=add_volume("MR on CT", 4), velocity=velocity, way=velocity,
        jacobianVolume=add_volume("Jacobian", 5), appearanceChange=None, metamorphicVolume=None,
        healthyVolume=None,
        reportTable=scene.AddNewNodeByClass("vtkMRMLTableNode", "Report"), report=REPORT,
        selfCheck=SimpleNamespace(sentence=CHECK, ok=True), segmentations=[], markups=[], models=[],
    )  # fmt: skip
