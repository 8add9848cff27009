"""`xsam predict`: pictures with their masks drawn, and the masks as COCO JSON."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..api import Result, XSam
from ..data.coco import clean_name, segment_row
from ..data.masks import encode_rle
from ..structures import UserError
from ..tasks.base import build
from .visualize import draw_segments, draw_title


def predict(
    predictor: XSam, config: dict[str, Any], images: Sequence[str], task: str, prompt: str, score: float, out: Path
) -> None:
    """Answer one question about every image; writes `out/STEM.png` and `out/STEM.json`.

    Args:
        config: gives the category names where `prompt` names none, from its first generic benchmark.
        prompt: "things, .. ; stuff, .." for panoptic, instance and semantic; an expression; a question."""
    in_words = task in ("refer", "chat")
    if in_words and not prompt:
        raise UserError(f"--task {task} needs --prompt, the expression or question")
    things, stuff = ([], []) if in_words else _categories(config, prompt)
    out.mkdir(parents=True, exist_ok=True)
    for image in images:
        if task == "refer":
            result = predictor.refer(image, prompt)
        elif task == "chat":
            result = predictor.chat(image, prompt)
        else:
            result = predictor.segment(image, things, stuff, task, score)
        path = out / Path(image).with_suffix(".png").name
        picture = draw_segments(result.image, [(found.mask, found.label, found.score) for found in result.found])
        (draw_title(picture, prompt, result.text) if in_words else picture).save(path)
        path.with_suffix(".json").write_text(json.dumps(_coco(result, Path(image).name), indent=1))
        print(f"{path}: {len(result.found)} masks" + (f", {result.text!r}" if result.text else ""))


def _categories(config: dict[str, Any], prompt: str) -> list[list[str]]:
    """Names of things, and of stuff."""
    if prompt:
        things, _, stuff = prompt.partition(";")
        return [[name.strip() for name in part.split(",") if name.strip()] for part in (things, stuff)]
    for node in config["benchmarks"].values():
        if node["type"].endswith(".GenericSegmentation"):
            task: Any = build(node)
            return [[clean_name(c.name) for c in task.categories if c.is_thing == kind] for kind in (True, False)]
    raise UserError('the config has no generic benchmark with categories; give --prompt "things, ..; stuff, .."')


def _coco(result: Result, name: str) -> dict[str, Any]:
    """Image, annotations and categories as COCO writes instances; text and scores beside them."""
    labels = sorted({found.label for found in result.found})
    height, width = result.image.shape[:2]
    annotations = []
    for number, found in enumerate(result.found, start=1):
        row = segment_row(number, labels.index(found.label) + 1, found.mask)
        annotations.append(row | {"image_id": 1, "segmentation": encode_rle(found.mask), "score": found.score})
    return {
        "images": [{"id": 1, "file_name": name, "height": height, "width": width}],
        "annotations": annotations,
        "categories": [{"id": i, "name": label} for i, label in enumerate(labels, start=1)],
        "question": result.question,
        "text": result.text,
    }
