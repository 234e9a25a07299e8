"""The application's file manager: what slicer.util.loadX and saveX go through, on the real logics."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import slicer

from Testing.slicer.bench.core import Core

SCENE = "SceneFile"
TYPES = {
    "vtkMRMLSegmentationNode": "SegmentationFile",
    "vtkMRMLSequenceNode": "SequenceFile",
    "vtkMRMLTransformNode": "TransformFile",
    "vtkMRMLVolumeNode": "VolumeFile",
}


class IOManager:
    """Reads scenes, volumes, transforms, segmentations, sequences and markups; writes any node."""

    def __init__(self, core: Core) -> None:
        self._core = core
        self._readers: dict[str, Callable[[dict[str, Any]], Any]] = {
            SCENE: self._load_scene,
            "VolumeFile": self._load_volume,
            "TransformFile": self._load_transform,
            "SegmentationFile": self._load_segmentation,
            "SequenceFile": self._load_sequence,
            "MarkupsFile": self._load_markups,
        }

    def registeredFileReaderCount(self, kind: str) -> int:
        return int(kind in self._readers)

    def fileType(self, path: str) -> str:
        endings = {
            (".mrml", ".mrb"): SCENE,
            (".seg.nrrd", ".seg.nhdr"): "SegmentationFile",
            (".seq.nrrd", ".seq.mrb"): "SequenceFile",
            (".h5", ".tfm", ".txt"): "TransformFile",
            (".mrk.json", ".fcsv"): "MarkupsFile",
        }
        return next((kind for known, kind in endings.items() if path.endswith(known)), "VolumeFile")

    def fileWriterFileType(self, node: Any) -> str:
        return next((kind for name, kind in TYPES.items() if node.IsA(name)), "NodeFile")

    def loadNodes(self, kind: str, properties: dict[str, Any], loaded: Any, messages: Any) -> bool:
        """Read a file; what was read is added to `loaded`."""
        if kind not in self._readers:
            raise ValueError(f"the bench reads no {kind}")
        if not Path(properties["fileName"]).exists():
            return False
        node = self._readers[kind](properties)
        if node is None:
            return False
        if isinstance(node, slicer.vtkMRMLNode):
            if properties.get("name"):
                node.SetName(properties["name"])
            loaded.AddItem(node)
        return True

    def saveNodes(self, kind: str, properties: dict[str, Any], messages: Any) -> bool:
        """Write a node, or the scene."""
        path = str(properties["fileName"])
        if kind == SCENE:
            return self._save_scene(path)
        node = self._core.scene.GetNodeByID(properties["nodeID"])
        if node.GetStorageNode() is None and not node.AddDefaultStorageNode(path):
            return False
        storage = node.GetStorageNode()
        storage.SetFileName(path)
        return bool(storage.WriteData(node))

    def _save_scene(self, path: str) -> bool:
        if path.endswith(".mrb"):
            return bool(self._core.scene.WriteToMRB(path))
        if not path.endswith(".mrml"):
            raise ValueError("the bench saves .mrml and .mrb")
        self._core.scene.SetURL(path)
        self._core.scene.SetRootDirectory(str(Path(path).parent))
        return bool(self._core.scene.Commit(path))

    def _load_scene(self, properties: dict[str, Any]) -> Any:
        path, scene = str(Path(properties["fileName"]).resolve()), self._core.scene
        if path.endswith(".mrb"):
            return True if scene.ReadFromMRB(path, bool(properties.get("clear"))) else None
        scene.SetURL(path)
        read = scene.Connect() if properties.get("clear") else scene.Import()
        return True if read else None

    def _load_volume(self, properties: dict[str, Any]) -> Any:
        path = str(properties["fileName"])
        name = properties.get("name") or Path(path).name.split(".")[0]
        kind = 1 if properties.get("labelmap") else 0
        return self._core.logics["Volumes"].AddArchetypeVolume(path, name, kind)

    def _load_transform(self, properties: dict[str, Any]) -> Any:
        return self._core.logics["Transforms"].AddTransform(str(properties["fileName"]), self._core.scene)

    def _load_segmentation(self, properties: dict[str, Any]) -> Any:
        return self._core.logics["Segmentations"].LoadSegmentationFromFile(str(properties["fileName"]), True)

    def _load_sequence(self, properties: dict[str, Any]) -> Any:
        return self._core.logics["Sequences"].AddSequence(str(properties["fileName"]))

    def _load_markups(self, properties: dict[str, Any]) -> Any:
        path = str(properties["fileName"])
        node = self._core.scene.AddNewNodeByClass("vtkMRMLMarkupsFiducialNode", Path(path).name.split(".")[0])
        storage = slicer.vtkMRMLMarkupsJsonStorageNode()
        storage.SetFileName(path)
        if not storage.ReadData(node):
            self._core.scene.RemoveNode(node)
            return None
        return node
