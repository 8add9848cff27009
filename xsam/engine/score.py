"""`xsam score KIND`: predictions of any program against a ground truth, both as files in the public formats.

An id that the ground truth does not have, or one that comes twice, is the user's mistake; one that the predictions
lack counts as nothing predicted.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ..data.coco import read_coco
from ..data.masks import encode_rle, read_panoptic_png, segmentation_mask
from ..data.records import read_json
from ..metrics.detection import InstanceAP
from ..metrics.grounded_caption import GroundedCaptionScore
from ..metrics.iou import NOTHING_IGNORED, ReferringIoU
from ..metrics.panoptic import PanopticQuality
from ..metrics.semantic import SemanticIoU
from ..structures import RLE, UserError

Scores = tuple[int, list[Any], dict[str, float | None]]  # samples, missing ids, metrics in percent


def score(kind: str, gt: Path, pred: Path, num_classes: int = 0, similarity: str = "") -> dict[str, Any]:
    """The report of `xsam score`: kind, samples, missing ids, metrics in percent (None: nothing to measure)."""
    if kind == "semantic" and num_classes < 1:
        raise UserError("semantic scores need --num-classes, how many classes the labels may have")
    extra: dict[str, list[Any]] = {"semantic": [num_classes], "gcg": [similarity]}
    samples, missing, metrics = KINDS[kind](gt, pred, *extra.get(kind, []))
    return {"kind": kind, "samples": samples, "missing": missing, "metrics": metrics}


def table(report: dict[str, Any]) -> str:
    """The report as text."""
    lines = [
        f"{name:8}{'-' if value is None else format(value, '8.2f'):>8}" for name, value in report["metrics"].items()
    ]
    return "\n".join([f"{report['kind']}: {report['samples']} samples, {len(report['missing'])} missing", *lines])


def panoptic(gt: Path, pred: Path) -> Scores:
    """COCO panoptic `X.json` with the PNGs in the folder `X` beside it; categories are those of the ground truth."""
    truth, found = read_coco(gt, "images", "annotations", "categories"), read_coco(pred, "annotations")
    metric = PanopticQuality({c["id"]: bool(c["isthing"]) for c in truth["categories"]})
    answers = _by_id(found["annotations"], "image_id", pred)
    wanted = _by_id(truth["annotations"], "image_id", gt)
    missing = _missing(wanted, answers, pred)
    for name, annotation in wanted.items():
        expected = read_panoptic_png(gt.with_suffix("") / annotation["file_name"])
        segments = {s["id"]: s["category_id"] for s in annotation["segments_info"]}
        crowd = {s["id"] for s in annotation["segments_info"] if s.get("iscrowd")}
        painted, classes = np.zeros_like(expected), {}
        if name in answers:
            painted = read_panoptic_png(pred.with_suffix("") / answers[name]["file_name"])
            classes = {s["id"]: s["category_id"] for s in answers[name]["segments_info"]}
        with _Named(pred, name):
            metric.update(painted, classes, expected, segments, crowd)
    return len(wanted), missing, metric.compute()


def instance(gt: Path, pred: Path) -> Scores:
    """COCO instances against a COCO results list."""
    truth = read_coco(gt, "images", "annotations", "categories")
    rows = _rows(pred)
    images = _by_id(truth["images"], "id", gt)
    of_image: dict[int | str, tuple[list[Any], list[Any]]] = {name: ([], []) for name in images}
    for a in truth["annotations"]:
        if a["image_id"] not in images:
            raise UserError(f"{gt}: annotation {a['id']} is on image {a['image_id']}, which the file does not list")
        rle = _rle(a["segmentation"], images[a["image_id"]], gt, a["id"])
        of_image[a["image_id"]][0].append(
            {"category": a["category_id"], "rle": rle, "crowd": bool(a.get("iscrowd")), "area": a["area"]}
        )
    for row in rows:
        if row["image_id"] not in images:
            raise UserError(f"{pred}: image_id {row['image_id']} is not in {gt}; predict on the same images")
        rle = _rle(row["segmentation"], images[row["image_id"]], pred, row["image_id"])
        of_image[row["image_id"]][1].append({"category": row["category_id"], "rle": rle, "score": row["score"]})
    metric = InstanceAP()
    for name, (targets, answers) in of_image.items():
        metric.update(name, (images[name]["height"], images[name]["width"]), targets, answers)
    answered = {row["image_id"] for row in rows}
    return len(images), [name for name in images if name not in answered], metric.compute()


def semantic(gt: Path, pred: Path, num_classes: int) -> Scores:
    """Folders of label PNGs with the same stems; 255 in the ground truth does not count."""
    truth, found = ({file.stem: file for file in sorted(folder.glob("*.png"))} for folder in (gt, pred))
    if not truth:
        raise UserError(f"{gt}: no PNG in this folder; give the folder of the label maps")
    if missing := _missing(truth, found, pred):
        raise UserError(f"{pred}: has no map {missing[0]}.png ({len(missing)} missing); predict every image of {gt}")
    metric = SemanticIoU(num_classes)
    for name, file in truth.items():
        with _Named(pred, name):
            metric.update(_labels(found[name]), _labels(file))
    return len(truth), [], metric.compute()


def refer(gt: Path, pred: Path) -> Scores:
    """JSON lists of `{"id", "segmentation": RLE | null}`; null or an empty mask means no target, or nothing found."""
    truth, found = _by_id(_rows(gt), "id", gt), _by_id(_rows(pred), "id", pred)
    missing = _missing(truth, found, pred)
    metric = ReferringIoU()
    for name, row in truth.items():
        answer = found.get(name, {"segmentation": None})
        sizes = [m["size"] for m in (row["segmentation"], answer["segmentation"], row.get("ignore")) if m]
        size = {"height": sizes[0][0], "width": sizes[0][1]} if sizes else {"height": 1, "width": 1}
        ignore = _mask(row["ignore"], size, gt, name) if row.get("ignore") else NOTHING_IGNORED
        metric.update(
            _mask(answer["segmentation"], size, pred, name), _mask(row["segmentation"], size, gt, name), ignore
        )
    return len(truth), missing, metric.compute()


def gcg(gt: Path, pred: Path, similarity: str) -> Scores:
    """GLaMM's files: the folder with `*_gcg_coco_mask_gt.json` and `*_gcg_coco_caption_gt.json` against
    `{image_id: {"caption", "phrases", "pred_masks": [RLE]}}`."""
    masks, captions = (_only(gt, f"*_gcg_coco_{kind}_gt.json") for kind in ("mask", "caption"))
    truth, said = read_coco(masks, "images", "annotations"), read_coco(captions, "annotations")
    found = read_json(pred)
    if not isinstance(found, dict):
        raise UserError(f"{pred}: not an object of answers by image id")
    images = {str(name): image for name, image in _by_id(truth["images"], "id", masks).items()}
    missing = _missing(images, found, pred)
    metric = GroundedCaptionScore(similarity)
    for name, image in images.items():
        answer = found.get(name, {"caption": "", "phrases": [], "pred_masks": []})
        targets = [a["segmentation"] for a in truth["annotations"] if str(a["image_id"]) == name]
        notes = [a for a in said["annotations"] if str(a["image_id"]) == name]
        size = _size(image, [*targets, *answer["pred_masks"]])
        with _Named(pred, name):
            metric.update(
                image["id"], size, caption=answer["caption"], phrases=answer["phrases"], masks=answer["pred_masks"],
                true_captions=[note["caption"] for note in notes],
                true_phrases=[label for note in notes for label in note["labels"]], true_masks=targets,
            )  # fmt: skip
    return len(images), missing, metric.compute()


def _only(folder: Path, pattern: str) -> Path:
    files = sorted(folder.glob(pattern))
    if len(files) != 1:
        raise UserError(f"{folder}: holds {len(files)} files {pattern}, not one; give the folder of one split")
    return files[0]


def _size(image: dict[str, Any], rles: Sequence[RLE]) -> tuple[int, int]:
    if "height" in image:
        return image["height"], image["width"]
    return tuple(rles[0]["size"]) if rles else (1, 1)


def _rows(path: Path) -> list[dict[str, Any]]:
    rows = read_json(path)
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise UserError(f"{path}: not a list of objects; write one object per prediction")
    return rows


def _by_id(rows: Sequence[dict[str, Any]], key: str, path: Path) -> dict[Any, dict[str, Any]]:
    found: dict[Any, dict[str, Any]] = {}
    for row in rows:
        if not isinstance(row.get(key), int | str):
            raise UserError(f"{path}: a row has no {key}; write the id of what it is about")
        if row[key] in found:
            raise UserError(f"{path}: {key} {row[key]} comes twice; keep one")
        found[row[key]] = row
    return found


def _missing(truth: dict[Any, Any], found: dict[Any, Any], pred: Path) -> list[Any]:
    if unknown := [name for name in found if name not in truth]:
        raise UserError(f"{pred}: {unknown[0]} is not in the ground truth ({len(unknown)} such ids)")
    return [name for name in truth if name not in found]


def _rle(segmentation: Any, image: dict[str, Any], path: Path, name: Any) -> RLE:
    return encode_rle(_mask(segmentation, image, path, name))


def _mask(segmentation: Any, image: dict[str, Any], path: Path, name: Any) -> np.ndarray:
    """bool[H, W]; an absent segmentation is an empty mask."""
    if not segmentation:
        return np.zeros((image["height"], image["width"]), bool)
    try:
        return segmentation_mask(segmentation, image["height"], image["width"])
    except ValueError as error:
        raise UserError(f"{path}: {name}: {error}") from None


def _labels(path: Path) -> np.ndarray:
    """int[H, W] of a grey or palette PNG."""
    with Image.open(path) as image:
        if image.mode not in ("L", "P", "I", "I;16"):
            raise UserError(f"{path}: has the mode {image.mode}; a label map has one channel")
        return np.asarray(image).astype(np.int64)


class _Named:
    """Adds the file and the sample to what a metric complains about."""

    def __init__(self, path: Path, name: Any) -> None:
        self.prefix = f"{path}: {name}"

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: type | None, error: BaseException | None, trace: Any) -> None:
        if isinstance(error, UserError):
            raise UserError(f"{self.prefix}: {error}") from None


KINDS: dict[str, Callable[..., Scores]] = {
    "panoptic": panoptic, "instance": instance, "semantic": semantic, "refer": refer, "gcg": gcg,
}  # fmt: skip
