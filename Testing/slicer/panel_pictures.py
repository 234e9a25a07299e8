"""Pictures of the panel in its states, and a registration by the panel's own buttons."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import slicer
from PIL import Image

from DiffeoRegLib.catalog import CARDS
from Testing.slicer import conftest  # noqa: F401 - makes qt, ctk and the panel importable
from Testing.slicer.bench import core
from Testing.slicer.bench.slicerbench import Bench
from Testing.slicer.group_pictures import group_pictures
from Testing.slicer.lesion_pictures import lesion_pictures
from Testing.slicer.pictures import Pair, Result, saved
from Testing.slicer.tutorial_pictures import step

WIDTH = 430  # as wide as a module panel usually is
HEIGHT = 2200  # more than the longest panel needs; what is empty is cut off
PATIENCE_SECONDS = 600.0  # on a busy machine, too
METHODS = ("affine", "svf", "lddmm", "rdmm-regions", "tvf-brain-t1")
"""One of every kind of panel; a trained model is shown where the catalogue has it."""
OPENED = {"rdmm-regions": ["masksSection"], "lddmm": ["advancedSection"]}
"""Where a kind of panel has controls of its own."""
SECTIONS = ("setupSection", "masksSection", "advancedSection", "logSection", "resultSection")


def panel_pictures(booted: core.Core, pair: Pair, folder: Path, settings: Path) -> Result:
    """One picture for each kind of method, the masks, a run and its result; what the run left.

    settings: an empty folder for what the bench keeps of the application.
    """
    bench = Bench(booted, settings)
    add_launcher(Path(bench.app.slicerHome))
    try:
        module = bench.load()
        panel = module.enter().panel
        show_states(bench, module.panel, panel, pair, folder)
        result = run(bench, module.panel, panel, folder)
        lesion_pictures(bench, module.panel, panel, folder, PATIENCE_SECONDS)
        group_pictures(bench, module.panel, panel, folder, PATIENCE_SECONDS)
        return result
    finally:
        bench.close()


def add_launcher(home: Path) -> None:
    """What Slicer has as bin/PythonSlicer: a program that starts the interpreter as another process."""
    launcher = home / "bin" / "PythonSlicer"
    launcher.parent.mkdir(parents=True)
    launcher.write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n', encoding="utf-8")
    launcher.chmod(0o755)


def show_states(bench: Bench, widget: Any, panel: Any, pair: Pair, folder: Path) -> None:
    """The panel before a run: as it opens, with each kind of method, with masks and segmentations."""
    fold(panel, "setupSection")
    picture(bench, widget, folder / "panel-opened.png")
    step(bench, widget, panel, "setup", folder)
    panel.ui.fixedSelector.setCurrentNode(pair.fixed)
    panel.ui.movingSelector.setCurrentNode(pair.moving)
    panel.parameters.model.preset = "brain-mr"
    fold(panel)
    panel.parameters.regions.node = pair.moving_labels
    for name in (name for name in METHODS if name in CARDS):
        panel.parameters.model.method = name
        fold(panel, *OPENED.get(name, ()))
        picture(bench, widget, folder / f"panel-{name}.png")
    panel.parameters.regions.node = None
    panel.parameters.model.method = "svf"
    panel.parameters.segmentations = [pair.moving_labels]
    panel.parameters.evaluation.fixed.node = pair.fixed_labels
    panel.parameters.evaluation.moving.node = pair.moving_labels
    fold(panel, "masksSection")
    picture(bench, widget, folder / "panel-masks.png")
    step(bench, widget, panel, "inputs", folder)
    step(bench, widget, panel, "masks", folder)


def run(bench: Bench, widget: Any, panel: Any, folder: Path) -> Result:
    """Press Apply, look at the panel half way and at the end."""
    before = set(segmentations())
    fold(panel)
    bench.click(panel.ui.applyButton)
    half_way = lambda: panel.ui.progressBar.value >= 40 or not panel.run.running  # noqa: E731
    bench.wait(half_way, PATIENCE_SECONDS, "the middle of the run")
    picture(bench, widget, folder / "panel-running.png")
    step(bench, widget, panel, "running", folder)
    bench.wait(lambda: not panel.run.running, PATIENCE_SECONDS, "the end of the run")
    if not panel.parameters.report:
        raise RuntimeError(f"{panel.ui.statusLabel.text}\n{panel.ui.logText.toPlainText()}")
    fold(panel, "resultSection")
    picture(bench, widget, folder / "panel-result.png")
    step(bench, widget, panel, "result", folder)
    (moved_labels,) = set(segmentations()) - before
    outputs = panel.parameters.outputs
    return Result(outputs.volume, slicer.mrmlScene.GetNodeByID(moved_labels), outputs.transform)


def segmentations() -> list[str]:
    """IDs of the segmentation nodes of the scene."""
    return [node.GetID() for node in slicer.util.getNodesByClass("vtkMRMLSegmentationNode")]


def fold(panel: Any, *opened: str) -> None:
    """Close the sections that are not always open, but for those named."""
    for name in SECTIONS:
        getattr(panel.ui, name).collapsed = name not in opened


def picture(bench: Bench, widget: Any, file: Path) -> None:
    """Write the panel as PNG, without the empty space below its last control."""
    bench.grab(widget, file, WIDTH, HEIGHT)
    with Image.open(file) as image:
        pixels = np.asarray(image.convert("RGB"))
    empty = (pixels == pixels[-1, 0]).all(axis=(1, 2))
    last = len(empty) - int(np.argmin(empty[::-1]))
    saved(Image.fromarray(pixels[: last + 12]), file, few_colours=True)
