"""The embedded world on disk, in the formats of the real datasets, so that their readers read it."""

import json
import pickle
from collections import defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from scipy import ndimage
from tqdm import tqdm

from . import shapes
from .masks import encode_rle, mask_box, write_panoptic_png
from .mixture import key
from .regions import visual_prompts
from .shapes import CATEGORIES, KINDS, SHAPES, SPLITS, Scene

Json = dict[str, Any]
PROMPT_SCALE = 0.2  # of COCO's brush sizes: these images are a fifth as wide


def prepare(root: str | Path, *, train: int = 2500, val: int = 150, seed: int = 0, size: int = 96) -> None:
    """Write the world under `root`: images, COCO panoptic, instances and semantic maps, RefCOCO, gRefCOCO, ReasonSeg,
    GranD-f, COCO-VGD, COCO-Interactive and LLaVA files.

    Nothing is done when it is there already with the same arguments; an interrupted run is started over.
    """
    root = Path(root)
    stamp = root / "prepared.json"
    arguments = json.dumps({"version": 4, "train": train, "val": val, "seed": seed, "size": size})
    if stamp.exists() and stamp.read_text() == arguments:
        return
    stamp.unlink(missing_ok=True)
    refer: Json = {"images": [], "annotations": [], "refs": [], "grefs": []}
    for split, count in (("train", train), ("val", val)):
        for name, rows in _write_split(root, split, count, seed, size).items():
            refer[name] += rows
    _write_json(root / "refer/instances.json", _coco(refer["images"], refer["annotations"]))
    (root / "refer/refs(shapes).p").write_bytes(pickle.dumps(refer["refs"], protocol=2))
    _write_json(root / "refer/grefs(shapes).json", refer["grefs"])
    stamp.write_text(arguments)


def _write_json(path: Path, content: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))


def _coco(images: list[Json], annotations: list[Json], names: Iterable[str] = SHAPES) -> Json:
    categories = [
        {"id": CATEGORIES[name], "name": name}
        | {"isthing": int(name in SHAPES), "supercategory": "shape" if name in SHAPES else "background"}
        for name in names
    ]
    return {"info": {}, "images": images, "annotations": annotations, "categories": categories}


def _write_split(root: Path, split: str, count: int, seed: int, size: int) -> dict[str, list[Json]]:
    """Write one split; returns its rows of the files that hold all splits."""
    for folder in (split, f"panoptic_{split}", f"semantic_{split}", f"reason/{split}"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    rows: defaultdict[str, list[Json]] = defaultdict(list)
    grounded: list[Grounded] = []
    for index in tqdm(range(count), desc=f"{root}: {split}", unit="image"):
        scene = shapes.compose(seed, split, index, size)
        image_id = SPLITS[split] * 1_000_000 + index + 1
        name = f"{image_id:07d}"
        Image.fromarray(shapes.render(scene)).save(root / split / f"{name}.jpg", quality=95, subsampling=0)
        segments, ids, classes = _panoptic_segments(scene)
        write_panoptic_png(root / f"panoptic_{split}" / f"{name}.png", ids)
        Image.fromarray(classes).save(root / f"semantic_{split}" / f"{name}.png")
        image = {"id": image_id, "file_name": f"{name}.jpg", "height": size, "width": size}
        rows["images"].append(image)
        rows["panoptic"].append({"image_id": image_id, "file_name": f"{name}.png", "segments_info": segments})
        annotations = _instance_annotations(scene, image_id)
        rows["annotations"] += annotations
        rows["refs"] += _refs(scene, annotations, split)
        rows["grefs"] += _grefs(scene, annotations, split, f"{split}/{name}.jpg")
        record = {"id": f"{split}-{name}", "image": f"{split}/{name}.jpg"}
        request, text, phrases = shapes.caption(scene)
        rows["captions"].append(record | {"conversations": _llava([(request, text)])})
        rows["conversations"].append(record | {"conversations": _llava(shapes.questions(scene)[:3])})
        groundings = [(a, b, [encode_rle(scene.ids == n) for n in numbers]) for a, b, numbers in phrases]
        grounded.append((image, text, groundings))
        if split == "val" or index % 3 == 0:  # prompts take the most time, and these are many
            prompted = [_prompted(scene, annotation, number) for number, annotation in enumerate(annotations)]
            rows["vgd"].append(_vgd_record(image, prompted))
            if split == "train" or index % max(count // 20, 1) == 0:  # every object is a question of each kind
                rows["interactive"].append(_psalm_record(image, prompted))
        if split == "val" or index % 5 == 0:
            rows["explanatory"] += _write_reason(root / f"reason/{split}", scene, name)
    _write_gcg(root, split, grounded)
    _write_json(root / f"annotations/panoptic_{split}.json", _coco(rows["images"], rows["panoptic"], CATEGORIES))
    _write_json(root / f"annotations/instances_{split}.json", _coco(rows["images"], rows["annotations"]))
    for name in ("captions", "conversations", "vgd", "interactive"):
        _write_json(root / f"{name}/{split}.json", rows[name])
    _write_json(root / f"reason/explanatory/{split}.json", rows["explanatory"])
    images = [image | {"file_name": f"{split}/{image['file_name']}"} for image in rows["images"]]
    return {"images": images} | {name: rows[name] for name in ("annotations", "refs", "grefs")}


def _llava(turns: list[tuple[str, str]]) -> list[dict[str, str]]:
    texts = [text for turn in turns for text in turn]
    texts[0] = "<image>\n" + texts[0]
    return [{"from": ("human", "gpt")[i % 2], "value": text} for i, text in enumerate(texts)]


def _box(mask: np.ndarray) -> list[int]:
    x0, y0, x1, y1 = mask_box(mask)
    return [x0, y0, x1 - x0, y1 - y0]


def _panoptic_segments(scene: Scene) -> tuple[list[Json], np.ndarray, np.ndarray]:
    """COCO's segments_info, the map of its ids, int64[S, S], which use all three bytes of the PNG, and the map of
    places in the list of categories, uint8[S, S]."""
    names = [*(thing.shape for thing in scene.things), "sky", scene.ground]
    ids = 1 + 1_234_567 * np.arange(len(names))
    masks = [scene.ids == number for number in range(len(names))]
    segments = [
        {"id": i, "category_id": CATEGORIES[name], "area": int(mask.sum()), "bbox": _box(mask), "iscrowd": 0}
        for i, name, mask in zip(ids.tolist(), names, masks, strict=True)
    ]
    places = np.array([list(CATEGORIES).index(name) for name in names], np.uint8)
    return segments, ids[scene.ids], places[scene.ids]


def _instance_annotations(scene: Scene, image_id: int) -> list[Json]:
    """COCO's annotations of the things; `attributes` is an extra key that says what each looks like."""
    annotations = []
    for number, thing in enumerate(scene.things):
        mask = scene.ids == number
        annotations.append({
            "id": image_id * 10 + number, "image_id": image_id, "category_id": CATEGORIES[thing.shape],
            "segmentation": encode_rle(mask), "area": thing.area, "bbox": _box(mask), "iscrowd": 0,
            "attributes": {"colour": thing.colour, "texture": thing.texture, "size": thing.size},
        })  # fmt: skip
    return annotations


def _sentences(first_id: int, texts: list[str]) -> list[Json]:
    return [{"sent_id": first_id + i, "sent": t, "raw": t, "tokens": t.split()} for i, t in enumerate(texts)]


def _refs(scene: Scene, annotations: list[Json], split: str) -> list[Json]:
    """RefCOCO's refs: one to three sentences of one `kind` (an extra key) for each thing that has any."""
    rng = shapes.generator(scene.key, "refer")
    refs = []
    for annotation, found in zip(annotations, shapes.expressions(scene), strict=True):
        first = (0, 0, 1, 2)[rng.integers(4)]  # attributes half of the time
        kind = next((k for k in KINDS[first:] + KINDS[:first] if found[k]), "")
        if not kind:
            continue
        chosen = rng.permutation(found[kind])[: rng.integers(1, 4)].tolist()
        sentences = _sentences(annotation["id"] * 10, chosen)
        refs.append({
            "image_id": annotation["image_id"], "category_id": annotation["category_id"], "ref_id": annotation["id"],
            "ann_id": annotation["id"], "split": split, "kind": kind, "sentences": sentences,
            "sent_ids": [sentence["sent_id"] for sentence in sentences],
        })  # fmt: skip
    return refs


def _grefs(scene: Scene, annotations: list[Json], split: str, file_name: str) -> list[Json]:
    """gRefCOCO's refs: several targets, one, and none (`ann_id` [-1])."""
    image_id = annotations[0]["image_id"]
    refs = []
    for ref_id, (words, meant) in enumerate(shapes.generalised(scene), image_id * 10):
        (sentence,) = _sentences(ref_id, [words])
        refs.append({
            "image_id": image_id, "split": split, "sentences": [sentence | {"exist": bool(meant)}],
            "file_name": file_name, "category_id": [annotations[i]["category_id"] for i in meant] or [-1],
            "ann_id": [annotations[i]["id"] for i in meant] or [-1], "sent_ids": [ref_id], "ref_id": ref_id,
            "no_target": not meant,
        })  # fmt: skip
    return refs


def _write_reason(folder: Path, scene: Scene, name: str) -> list[Json]:
    """ReasonSeg's pair of files for one thing that a rule singles out, if a polygon can say its mask; returns the
    record of `explanatory`."""
    rng = shapes.generator(scene.key, "reasoning")
    able = shapes.reasoning(scene)
    chosen = next((able[i] for i in rng.permutation(len(able)) if _outline(scene.ids == able[i][0])), None)
    if chosen is None:
        return []
    number, short, long, reason = chosen
    is_sentence = bool(rng.random() < 0.5)
    shape = {"label": "target", "labels": ["target"], "shape_type": "polygon", "points": _outline(scene.ids == number)}
    text = long if is_sentence else short
    size = len(scene.ids)
    record = {"text": [text], "is_sentence": is_sentence, "shapes": [shape]}
    _write_json(folder / f"{name}.json", record | {"imagePath": f"{name}.jpg", "imageHeight": size, "imageWidth": size})
    (folder / f"{name}.jpg").write_bytes((folder.parents[1] / folder.name / f"{name}.jpg").read_bytes())
    return [{"image": f"{name}.jpg", "query": text, "outputs": f"{reason}."}]


def _outline(mask: np.ndarray) -> list[list[int]]:
    """The pixels (x, y) around a mask in one piece without holes, in order; drawn and filled, they are the mask again.
    Empty for another mask."""
    if ndimage.label(mask, np.ones((3, 3)))[1] != 1 or (ndimage.binary_fill_holes(mask) & ~mask).any():
        return []
    padded = np.pad(mask, 1)
    steps = [(0, 1), (1, 1), (1, 0), (1, -1), (0, -1), (-1, -1), (-1, 0), (-1, 1)]  # (row, column), clockwise
    row, column = start = tuple(np.argwhere(padded)[0])
    path, heading = [], 0
    for _ in range(4 * int(mask.sum()) + 4):
        path.append([int(column) - 1, int(row) - 1])
        turns = ((heading + 5 + turn) % 8 for turn in range(8))  # from behind on the left, clockwise
        heading = next((d for d in turns if padded[row + steps[d][0], column + steps[d][1]]), 0)
        row, column = row + steps[heading][0], column + steps[heading][1]
        if (row, column) == start:
            break
    return path


def _prompted(scene: Scene, annotation: Json, number: int) -> tuple[Json, Json]:
    """An annotation without its attributes, and the RLE of each visual prompt that is drawn from it."""
    rng = np.random.default_rng(key("prompt", annotation["id"]))
    prompts = visual_prompts(scene.ids == number, rng, scale=PROMPT_SCALE)
    plain = {name: value for name, value in annotation.items() if name != "attributes"}
    return plain, {kind: encode_rle(prompt) for kind, prompt in prompts.items()}


def _vgd_record(image: Json, prompted: list[tuple[Json, Json]]) -> Json:
    name, size = image["file_name"], {"height": image["height"], "width": image["width"]}
    annotations = [
        plain | {"bbox_mode": 1, "visual_prompts": {f"{kind}_visual_prompt": rle for kind, rle in prompts.items()}}
        for plain, prompts in prompted  # mode 1: x, y, width, height
    ]
    info = {"file_name": name, "image_id": image["id"]} | size
    record = {"image_file": name, "image_id": image["id"], "image_info": info, "image_size": list(size.values())}
    return record | {"annotations": annotations}


def _psalm_record(image: Json, prompted: list[tuple[Json, Json]]) -> Json:
    annotations = [
        plain | {f"{kind}_visual_prompt_mask": rle for kind, rle in prompts.items()} for plain, prompts in prompted
    ]
    return {"image": image["file_name"], "image_info": image, "anns": annotations}


Grounded = tuple[Json, str, list[tuple[int, int, list[Json]]]]  # image, caption, (begin, end, RLE of each mask)


def _write_gcg(root: Path, split: str, found: list[Grounded]) -> None:
    """The training scenes dealt out to the layouts of GranD-f; the val scenes in the layout of its val split."""
    if split == "val":
        _write_json(root / "gcg/val_gcg_coco_mask_gt.json", _mask_truth(found))
        captions = [
            {"id": n, "image_id": image["id"], "caption": text, "labels": [text[a:b] for a, b, _ in phrases]}
            for n, (image, text, phrases) in enumerate(found)
        ]
        truth = {"images": [image for image, *_ in found], "annotations": captions}
        _write_json(root / "gcg/val_gcg_coco_caption_gt.json", truth)
        return
    _write_json(root / "gcg/grandf_train.json", list(_grandf(found[0::3])))
    _write_json(root / "gcg/refcocog_train.json", list(_refcocog(found[1::3])))
    _write_json(root / "gcg/flickr_train.json", _flickr(found[2::3]))


def _mask_truth(found: list[Grounded]) -> Json:
    pairs = [(image, rle) for image, _, phrases in found for _, _, rles in phrases for rle in rles]
    annotations = [
        {"id": n, "image_id": image["id"], "category_id": 1, "segmentation": rle, "iscrowd": 0}
        for n, (image, rle) in enumerate(pairs, start=1)
    ]
    categories = [{"id": 1, "name": "object"}]
    return {"images": [image for image, *_ in found], "annotations": annotations, "categories": categories}


def _grandf(found: list[Grounded]) -> Iterator[Json]:
    for image, text, phrases in found:
        groundings = {text[a:b]: {"token_positives": [a, b], "rle_masks": rles} for a, b, rles in phrases}
        record = {"file_name": image["file_name"], "height": image["height"], "width": image["width"]}
        yield record | {"image_id": image["id"], "caption": text, "groundings": groundings}


def _refcocog(found: list[Grounded]) -> Iterator[Json]:
    for image, text, phrases in found:
        refs = [{"sentence": text[a:b], "segmentation": rle} for a, b, rles in phrases for rle in rles]
        record = {"img_file_name": image["file_name"], "caption": text, "refs": refs, "image_id": image["id"]}
        yield {str(image["id"]): record | {"height": image["height"], "width": image["width"]}}


def _flickr(found: list[Grounded]) -> Json:
    rows = [(image, [a, b], rle) for image, _, phrases in found for a, b, rles in phrases for rle in rles]
    annotations = [
        {"id": n, "image_id": image["id"], "tokens_positive": [span], "sam_mask": rle}
        for n, (image, span, rle) in enumerate(rows)
    ]
    return {"images": [image | {"caption": text} for image, text, _ in found], "annotations": annotations}
