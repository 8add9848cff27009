"""`xsam score KIND`: predictions of any program against a ground truth, both as files in the public formats.

An id that the ground truth does not have, or one that comes twice, is the user's mistake; one that the predictions
lack counts as nothing predicted."""

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..data.coco import read_coco
from ..data.label_maps import read_values
from ..data.masks import encode_rle, read_panoptic_png
from ..data.records import read_json, read_mask
from ..metrics.base import Metric
from ..metrics.detection import InstanceAP
from ..metrics.grounded_caption import GroundedCaptionScore
from ..metrics.iou import ReferringIoU
from ..metrics.panoptic import PanopticQuality
from ..metrics.semantic import SemanticIoU
from ..structures import UserError

Rows = Mapping[Any, Any]  # by id
Comparison = tuple[Metric, Rows, Rows, Callable[[Any], None]]  # truth, predictions, and what counts a sample


def score(kind: str, gt: Path, pred: Path, num_classes: int = 0, similarity: str = "") -> dict[str, Any]:
    """The report of `xsam score`: kind, samples, missing ids, metrics in percent (None: nothing to measure)."""
    if kind == "semantic" and num_classes < 1:
        raise UserError("semantic scores need --num-classes, how many classes the labels may have")
    extra: dict[str, list[Any]] = {"semantic": [num_classes], "gcg": [similarity]}
    metric, truth, found, add = KINDS[kind](gt, pred, *extra.get(kind, []))
    if unknown := [name for name in found if name not in truth]:
        raise UserError(f"{pred}: {unknown[0]} is not in the ground truth ({len(unknown)} such ids)")
    for name in truth:
        try:
            add(name)
        except UserError as error:
            raise UserError(f"{pred}: {name}: {error}") from None
    missing = [name for name in truth if name not in found]
    return {"kind": kind, "samples": len(truth), "missing": missing, "metrics": metric.compute()}


def table(report: dict[str, Any]) -> str:
    """The report as text."""
    lines = [f"{report['kind']}: {report['samples']} samples, {len(report['missing'])} missing"]
    for name, value in report["metrics"].items():
        lines.append(f"{name:8}{'-' if value is None else format(value, '8.2f'):>8}")
    return "\n".join(lines)


def panoptic(gt: Path, pred: Path) -> Comparison:
    """COCO panoptic `X.json` with the PNGs in the folder `X` beside it; categories are those of the ground truth."""
    true, answered = read_coco(gt, "images", "annotations", "categories"), read_coco(pred, "annotations")
    truth, found = _by_id(true["annotations"], "image_id", gt), _by_id(answered["annotations"], "image_id", pred)
    metric = PanopticQuality({c["id"]: bool(c["isthing"]) for c in true["categories"]})

    def segments(path: Path, row: dict[str, Any]) -> tuple[np.ndarray, dict[int, int]]:
        ids = read_panoptic_png(path.with_suffix("") / row["file_name"])
        return ids, {segment["id"]: segment["category_id"] for segment in row["segments_info"]}

    def add(name: Any) -> None:
        ids, classes = segments(gt, truth[name])
        crowd = {segment["id"] for segment in truth[name]["segments_info"] if segment.get("iscrowd")}
        answer = segments(pred, found[name]) if name in found else (np.zeros_like(ids), {})
        metric.update(*answer, ids, classes, crowd)

    return metric, truth, found, add


def instance(gt: Path, pred: Path) -> Comparison:
    """COCO instances against a COCO results list."""
    true = read_coco(gt, "images", "annotations", "categories")
    images = _by_id(true["images"], "id", gt)
    truth, found = _by_image(true["annotations"]), _by_image(_rows(pred))
    for path, rows in ((gt, truth), (pred, found)):
        if stray := [image for image in rows if image not in images]:
            raise UserError(f"{path}: image_id {stray[0]} is not in the images of {gt}; keep to the same images")
    metric = InstanceAP()

    def entry(row: dict[str, Any], size: tuple[int, int], path: Path) -> dict[str, Any]:
        mask = _mask(row["segmentation"], size, path, row.get("id", row["image_id"]))
        return {"category": row["category_id"], "rle": encode_rle(mask)}

    def add(name: Any) -> None:
        size = images[name]["height"], images[name]["width"]
        targets = [
            entry(row, size, gt) | {"crowd": bool(row.get("iscrowd")), "area": row["area"]}
            for row in truth.get(name, ())
        ]
        answers = [entry(row, size, pred) | {"score": row["score"]} for row in found.get(name, ())]
        metric.update(name, size, targets, answers)

    return metric, images, found, add


def semantic(gt: Path, pred: Path, num_classes: int) -> Comparison:
    """Folders of label PNGs with the same stems; 255 in the ground truth does not count."""
    truth, found = ({file.stem: file for file in sorted(folder.glob("*.png"))} for folder in (gt, pred))
    if not truth:
        raise UserError(f"{gt}: no PNG in this folder; give the folder of the label maps")
    if missing := [name for name in truth if name not in found]:
        raise UserError(f"{pred}: has no map {missing[0]}.png ({len(missing)} missing); predict every image of {gt}")
    metric = SemanticIoU(num_classes)
    return metric, truth, found, lambda name: metric.update(read_values(found[name]), read_values(truth[name]))


def refer(gt: Path, pred: Path) -> Comparison:
    """JSON lists of `{"id", "segmentation": RLE | null}`; null or an empty mask means no target, or nothing found."""
    truth, found = _by_id(_rows(gt), "id", gt), _by_id(_rows(pred), "id", pred)
    metric = ReferringIoU()

    def add(name: Any) -> None:
        true, ignore = truth[name]["segmentation"], truth[name].get("ignore")
        answer = found[name]["segmentation"] if name in found else None
        size = next((rle["size"] for rle in (true, answer, ignore) if rle), (1, 1))
        metric.update(_mask(answer, size, pred, name), *(_mask(mask, size, gt, name) for mask in (true, ignore)))

    return metric, truth, found, add


def gcg(gt: Path, pred: Path, similarity: str) -> Comparison:
    """GLaMM's files: the folder with `*_gcg_coco_mask_gt.json` and `*_gcg_coco_caption_gt.json` against
    `{image_id: {"caption", "phrases", "pred_masks": [RLE]}}`."""
    masks, captions = (_only(gt, f"*_gcg_coco_{kind}_gt.json") for kind in ("mask", "caption"))
    true, said = read_coco(masks, "images", "annotations"), read_coco(captions, "annotations")
    targets, notes = ({str(id): rows for id, rows in _by_image(side["annotations"]).items()} for side in (true, said))
    found = read_json(pred)
    if not isinstance(found, dict):
        raise UserError(f"{pred}: not an object of answers by image id")
    metric = GroundedCaptionScore(similarity)
    images = {str(id): image for id, image in _by_id(true["images"], "id", masks).items()}

    def add(name: str) -> None:
        image, answer = images[name], found.get(name, {"caption": "", "phrases": [], "pred_masks": []})
        true_masks = [target["segmentation"] for target in targets.get(name, ())]
        size = next((rle["size"] for rle in (*true_masks, *answer["pred_masks"])), (1, 1))
        metric.update(
            image["id"], (image["height"], image["width"]) if "height" in image else size,
            caption=answer["caption"], phrases=answer["phrases"], masks=answer["pred_masks"], true_masks=true_masks,
            true_captions=[note["caption"] for note in notes.get(name, ())],
            true_phrases=[label for note in notes.get(name, ()) for label in note["labels"]],
        )  # fmt: skip

    return metric, images, found, add


def _only(folder: Path, pattern: str) -> Path:
    files = sorted(folder.glob(pattern))
    if len(files) != 1:
        raise UserError(f"{folder}: holds {len(files)} files {pattern}, not one; give the folder of one split")
    return files[0]


def _rows(path: Path) -> list[dict[str, Any]]:
    rows = read_json(path)
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise UserError(f"{path}: not a list of objects; write one object per prediction")
    return rows


def _by_id(rows: Sequence[dict[str, Any]], key: str, path: Path) -> Rows:
    found: dict[Any, dict[str, Any]] = {}
    for row in rows:
        if not isinstance(row.get(key), int | str):
            raise UserError(f"{path}: a row has no {key}; write the id of what it is about")
        if row[key] in found:
            raise UserError(f"{path}: {key} {row[key]} comes twice; keep one")
        found[row[key]] = row
    return found


def _by_image(rows: Sequence[dict[str, Any]]) -> Rows:
    """Lists of rows by image id."""
    found: dict[Any, list[dict[str, Any]]] = defaultdict(list)
    for row in rows:
        found[row["image_id"]].append(row)
    return found


def _mask(segmentation: Any, size: tuple[int, int], path: Path, name: Any) -> np.ndarray:
    """bool[H, W]; an absent segmentation is an empty mask."""
    return read_mask(segmentation, *size, f"{path}: {name}", empty=True) if segmentation else np.zeros(size, bool)


KINDS: dict[str, Callable[..., Comparison]] = {
    "panoptic": panoptic, "instance": instance, "semantic": semantic, "refer": refer, "gcg": gcg,
}  # fmt: skip
