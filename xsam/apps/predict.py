"""`xsam predict`: pictures with their masks drawn, and the masks as COCO JSON."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..api import Result, XSam
from ..data.masks import encode_rle
from ..structures import UserError
from .visualize import draw_segments, draw_title


def predict(
    predictor: XSam,
    config: dict[str, Any],
    images: Sequence[str],
    task: str,
    prompt: str,
    score: float,
    out: Path,
) -> None:
    """Answer one question about every image; writes `out/STEM.png` and `out/STEM.json`.

    Args:
        config: gives the category names where `prompt` names none, from its first generic benchmark.
        prompt: "things, .. ; stuff, .." for panoptic, instance and semantic; an expression; a question.
    """
    if task in ("refer", "chat") and not prompt:
        raise UserError(f"--task {task} needs --prompt, the expression or question")
    things, stuff = _categories(config, prompt) if task not in ("refer", "chat") else ([], [])
    out.mkdir(parents=True, exist_ok=True)
    for image in images:
        if task == "refer":
            result = predictor.refer(image, prompt)
        elif task == "chat":
            result = predictor.chat(image, prompt)
        else:
            result = predictor.segment(image, things, stuff, task, score)
        path = out / Path(image).with_suffix(".png").name
        title = (prompt, result.text) if task in ("refer", "chat") else ()
        picture = draw_segments(result.image, [(f.mask, f.label, f.score) for f in result.found])
        (draw_title(picture, *title) if title else picture).save(path)
        path.with_suffix(".json").write_text(json.dumps(_coco(result, Path(image).name), indent=1))
        print(f"{path}: {len(result.found)} masks" + (f", {result.text!r}" if result.text else ""))


def _categories(config: dict[str, Any], prompt: str) -> tuple[list[str], list[str]]:
    if prompt:
        things, _, stuff = prompt.partition(";")
        return [w.strip() for w in things.split(",") if w.strip()], [w.strip() for w in stuff.split(",") if w.strip()]
    from .. import config as configs
    from ..data.coco import clean_name
    from ..tasks.generic import GenericSegmentation

    for row in config["benchmarks"].values():
        if row["type"].endswith(GenericSegmentation.__name__):
            categories = configs.build(row).categories
            return [clean_name(c.name) for c in categories if c.is_thing], [
                clean_name(c.name) for c in categories if not c.is_thing
            ]
    raise UserError(
        'the config has no generic benchmark to take categories from; give --prompt "things, ..; stuff, .."'
    )


def _coco(result: Result, name: str) -> dict[str, Any]:
    """Image, annotations and categories as COCO writes instances; text and scores beside them."""
    labels = sorted({found.label for found in result.found})
    height, width = result.image.shape[:2]
    return {
        "images": [{"id": 1, "file_name": name, "height": height, "width": width}],
        "annotations": [
            {
                "id": number,
                "image_id": 1,
                "category_id": labels.index(found.label) + 1,
                "segmentation": encode_rle(found.mask),
                "area": int(found.mask.sum()),
                "bbox": [
                    found.box[0],
                    found.box[1],
                    found.box[2] - found.box[0],
                    found.box[3] - found.box[1],
                ],
                "iscrowd": 0,
                "score": found.score,
            }
            for number, found in enumerate(result.found, start=1)
        ],
        "categories": [{"id": i, "name": label} for i, label in enumerate(labels, start=1)],
        "question": result.question,
        "text": result.text,
    }
