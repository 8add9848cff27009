"""One's own data: the task and the reader that the content of a file or folder asks for."""

from itertools import islice
from pathlib import Path
from typing import Any

from ..structures import UserError
from .index import json_lines

LAYOUTS = (  # folders of images, classes and object numbers, names of the classes, the value that does not count
    ("images", "masks", "objects", "classes.txt", -1),
    ("JPEGImages", "SegmentationClass", "SegmentationObject", "class_names.txt", 255),  # VOC's, which labelme writes
    ("JPEGImages", "SegmentationClassPNG", "SegmentationObjectPNG", "class_names.txt", 255),
)
GENERIC = "generic.GenericSegmentation"


def row(target: str | Path, images: str = "", *, train: bool = True) -> dict[str, Any]:
    """A row of a mixture or of the benchmarks for a `.json` of COCO or LLaVA, a `.jsonl` of expressions or of
    conversations, or a folder of one of the `LAYOUTS` or of ReasonSeg's. `images`: folder of its images, by default its
    own. Raises UserError where it is nothing of these."""
    path, data = Path(target), {"annotations": str(target), "images": images or str(Path(target).parent)}
    if path.is_dir():
        task, reader, data = _of_folder(path, images)
    elif not path.is_file() or path.suffix not in (".json", ".jsonl"):
        problem = "neither .json nor .jsonl" if path.exists() else "no such file or folder"
        raise UserError(f"{path}: {problem}; docs/datasets.md says what one's own data can be")
    elif path.suffix == ".jsonl" and not _of_talk(path):
        task, reader = "referring.ReferringSegmentation", "jsonl.JsonLines"
    elif path.suffix == ".jsonl" or (content := path.read_bytes().lstrip()).startswith(b"["):
        task, reader = "chat.Chat", "conversations.Conversations"
    elif b'"segments_info"' in content:
        task, reader, data["segments"] = GENERIC, "coco.CocoPanoptic", str(path.with_suffix(""))
    else:
        task, reader = GENERIC, "coco.CocoInstances"
    several = {"several": True} if reader == "jsonl.JsonLines" else {}  # a phrase may mean many things, or none
    return {"type": f"xsam.tasks.{task}", "data": {"type": f"xsam.data.{reader}"} | data, "train": train} | several


def _of_talk(path: Path) -> bool:
    return any(b'"conversations"' in line for _, line in islice(json_lines(path), 1))


def _of_folder(path: Path, images: str) -> tuple[str, str, dict[str, Any]]:
    for shown, classes, objects, names, ignore in LAYOUTS:
        if (path / classes).is_dir():
            data = {"images": images or str(path / shown), "labels": str(path / classes), "names": str(path / names)}
            numbers = {"objects": str(path / objects)} if (path / objects).is_dir() else {}
            return GENERIC, "label_maps.LabelMaps", data | numbers | {"image_suffix": "", "ignore": ignore}
    if any(file.with_suffix(".jpg").is_file() for file in path.glob("*.json")):
        return "reasoning.ReasoningSegmentation", "reasonseg.ReasonSeg", {"folder": str(path)}
    raise UserError(f"{path}: has no masks/, SegmentationClass/ or X.json with X.jpg; of COCO give the .json itself")
