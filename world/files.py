"""The embedded world on disk, in the formats of the real datasets, so that their readers read it."""

import json
import pickle
import shutil
from collections import defaultdict
from collections.abc import Mapping
from functools import partial
from itertools import chain, product
from multiprocessing import Pool
from pathlib import Path
from signal import SIG_IGN, SIGINT, signal
from typing import Any

import numpy as np
from PIL import Image
from scipy import ndimage
from tqdm import tqdm

from xsam.data.coco import segment_row
from xsam.data.masks import encode_rle, write_panoptic_png
from xsam.data.region_records import drawn_prompts, vgd_record
from xsam.structures import RLE

from . import shapes
from .shapes import CATEGORIES, COLOURS, HELD_OUT, KINDS, SHAPES, SPLITS, Scene

Json = dict[str, Any]
Rows = defaultdict[str, list[Json]]
GRANDF = ("grandf", "refcocog", "flickr")  # layouts of its training files, in turn
THINGS = {name: CATEGORIES[name] for name in SHAPES}
STUFF = {name: id for name, id in CATEGORIES.items() if name not in SHAPES}
PAIRS = {pair: id for id, pair in enumerate(product(SHAPES, COLOURS), 101)}  # ids of the categories "red circle", ..
REASONING = 200  # training scenes with a question, about as few as ReasonSeg has
PROMPT_SCALE = 0.2  # of COCO's brush sizes: these images are a fifth as wide


def prepare(root: str | Path, *, train: int = 5000, val: int = 150, seed: int = 0, size: int = 96) -> None:
    """Write the world under `root`: images, COCO panoptic, instances and semantic maps, RefCOCO, gRefCOCO, ReasonSeg,
    GranD-f, COCO-VGD, COCO-Interactive and LLaVA files; of "novel", as many as of val, panoptic files alone. Does
    nothing where it is there with the same arguments; an interrupted run is started over."""
    root, stamp = Path(root), Path(root) / "prepared.json"
    arguments = json.dumps({"version": 9, "train": train, "val": val, "seed": seed, "size": size})
    if stamp.exists() and stamp.read_text() == arguments:
        return
    stamp.unlink(missing_ok=True)
    shutil.rmtree(root / "reason", ignore_errors=True)  # its reader takes whatever lies there
    refer: Json = {"images": [], "annotations": [], "refs": [], "relations": [], "grefs": []}
    for split, count in (("train", train), ("val", val), ("novel", val)):
        for name, rows in _write_split(root, split, count, seed, size).items():
            refer[name] += rows
    _write_json(root / "refer/instances.json", _coco(refer["images"], refer["annotations"], THINGS))
    (root / "refer/refs(shapes).p").write_bytes(pickle.dumps(refer["refs"], protocol=2))
    (root / "refer/refs(relations).p").write_bytes(pickle.dumps(refer["relations"], protocol=2))
    _write_json(root / "refer/grefs(shapes).json", refer["grefs"])
    stamp.write_text(arguments)


def _write_json(path: Path, content: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))


def _coco(images: list[Json], annotations: list[Json], names: Mapping[str, int]) -> Json:
    kinds = [(name, id, int(name not in STUFF)) for name, id in names.items()]
    about = ("background", "shape")
    categories = [{"id": id, "name": n, "isthing": thing, "supercategory": about[thing]} for n, id, thing in kinds]
    return {"info": {}, "images": images, "annotations": annotations, "categories": categories}


def _write_split(root: Path, split: str, count: int, seed: int, size: int) -> dict[str, list[Json]]:
    """Write one split, its scenes on all cores; returns its rows of the files that hold all splits."""
    rows: Rows = defaultdict(list)
    novel = split == "novel"
    for folder in (split, f"panoptic_{split}", *(() if novel else (f"semantic_{split}", f"reason/{split}"))):
        (root / folder).mkdir(parents=True, exist_ok=True)
    write = partial(_write_scene, root, split, count, seed, size)
    with Pool(initializer=signal, initargs=(SIGINT, SIG_IGN)) as pool:  # Ctrl-C is for this process
        scenes = pool.imap(write, range(count), chunksize=16)
        for found in tqdm(scenes, total=count, desc=f"{root}: {split}", unit="image"):
            for name, more in found.items():
                rows[name] += more
    for name, first in (("grounded", 0), ("masks", 1), ("flickr", 0)):
        for number, row in enumerate(rows[name], start=first):
            row["id"] = number
    images = rows["images"]
    pairs = {f"{colour} {shape}": id for (shape, colour), id in PAIRS.items() if ((shape, colour) in HELD_OUT) == novel}
    _write_json(root / f"annotations/panoptic_{split}.json", _coco(images, rows["panoptic"], CATEGORIES))
    _write_json(root / f"annotations/pairs_{split}.json", _coco(images, rows["pairs"], pairs | STUFF))
    if novel:
        return {}
    _write_json(root / f"annotations/instances_{split}.json", _coco(images, rows["annotations"], THINGS))
    for name in ("reason/explanatory", "captions", "conversations", "vgd", "interactive"):
        _write_json(root / f"{name}/{split}.json", rows[name])
    if split == "train":
        _write_json(root / "gcg/grandf_train.json", rows["grandf"])
        _write_json(root / "gcg/refcocog_train.json", rows["refcocog"])
        _write_json(root / "gcg/flickr_train.json", {"images": rows["flickr_images"], "annotations": rows["flickr"]})
    else:
        truth = {"images": images, "annotations": rows["masks"], "categories": [{"id": 1, "name": "object"}]}
        _write_json(root / "gcg/val_gcg_coco_mask_gt.json", truth)
        _write_json(root / "gcg/val_gcg_coco_caption_gt.json", {"images": images, "annotations": rows["grounded"]})
    images = [image | {"file_name": f"{split}/{image['file_name']}"} for image in images]
    return {"images": images} | {name: rows[name] for name in ("annotations", "refs", "relations", "grefs")}


def _write_scene(root: Path, split: str, count: int, seed: int, size: int, index: int) -> Rows:
    """Write the images of a scene; returns its rows of the annotation files."""
    rows: Rows = defaultdict(list)
    scene, image_id = shapes.compose(seed, split, index, size), SPLITS[split] * 1_000_000 + index + 1
    name, photo = f"{image_id:07d}", f"{split}/{image_id:07d}.jpg"
    Image.fromarray(shapes.render(scene)).save(root / photo, quality=95, subsampling=0)
    names = [*(thing.shape for thing in scene.things), "sky", scene.ground]
    ids = 1 + 1_234_567 * np.arange(len(names))  # these use all three bytes of the PNG
    named = enumerate(zip(ids.tolist(), names, strict=True))
    segments = [segment_row(id, CATEGORIES[kind], scene.ids == number) for number, (id, kind) in named]
    write_panoptic_png(root / f"panoptic_{split}" / f"{name}.png", ids[scene.ids])
    image = {"id": image_id, "file_name": f"{name}.jpg", "height": size, "width": size}
    rows["images"].append(image)
    rows["panoptic"].append({"image_id": image_id, "file_name": f"{name}.png", "segments_info": segments})
    kinds = [PAIRS[thing.shape, thing.colour] for thing in scene.things] + [STUFF[name] for name in names[-2:]]
    paired = [s | {"category_id": kind} for s, kind in zip(segments, kinds, strict=True)]
    rows["pairs"].append(rows["panoptic"][-1] | {"segments_info": paired})
    if split == "novel":
        return rows
    places = np.array([list(CATEGORIES).index(kind) for kind in names], np.uint8)
    Image.fromarray(places[scene.ids]).save(root / f"semantic_{split}" / f"{name}.png")
    annotations = _instance_annotations(scene, image_id)
    looks = [{"colour": thing.colour, "texture": thing.texture, "size": thing.size} for thing in scene.things]
    rows["annotations"] += [a | {"attributes": look} for a, look in zip(annotations, looks, strict=True)]
    rows["refs"] += _refs(scene, annotations, split)
    rows["relations"] += _relations(scene, annotations) if split == "train" else []
    rows["grefs"] += _grefs(scene, annotations, split, photo)
    record = {"id": f"{split}-{name}", "image": photo}
    request, text, phrases = shapes.caption(scene)
    rows["captions"].append(record | {"conversations": _llava([(request, text), *shapes.descriptions(scene)])})
    rows["conversations"].append(record | {"conversations": _llava(shapes.questions(scene))})
    groundings = [(a, b, [encode_rle(scene.ids == n) for n in numbers]) for a, b, numbers in phrases]
    _add_grounded(rows, "val" if split == "val" else GRANDF[index % 3], image, text, groundings)
    if split == "val" or index % 3 == 0:  # prompts take the most time, and these are many
        prompted = [(a, drawn_prompts(scene.ids == n, a["id"], PROMPT_SCALE)) for n, a in enumerate(annotations)]
        info = {"file_name": f"{name}.jpg", "image_id": image_id, "height": size, "width": size}
        rows["vgd"].append(vgd_record(info, prompted))
        if split == "train" or index % max(count // 20, 1) == 0:  # every object is a question of each kind
            found = [a | {f"{k}_visual_prompt_mask": rle for k, rle in drawn.items()} for a, drawn in prompted]
            rows["interactive"].append({"image": f"{name}.jpg", "image_info": image, "anns": found})
    if split == "val" or index % max(count // REASONING, 1) == 0:
        rows["reason/explanatory"] += _write_reason(root / f"reason/{split}", scene, name)
    return rows


def _llava(turns: list[tuple[str, str]]) -> list[dict[str, str]]:
    first, *rest = chain(*turns)
    return [{"from": ("human", "gpt")[i % 2], "value": t} for i, t in enumerate(["<image>\n" + first, *rest])]


def _instance_annotations(scene: Scene, image_id: int) -> list[Json]:
    """COCO's annotations of the things."""
    rows = [(image_id * 10 + n, CATEGORIES[thing.shape], scene.ids == n) for n, thing in enumerate(scene.things)]
    first = [{"id": id, "image_id": image_id, "category_id": c, "segmentation": encode_rle(m)} for id, c, m in rows]
    return [about | segment_row(*row) for about, row in zip(first, rows, strict=True)]


def _sentences(first_id: int, texts: list[str]) -> list[Json]:
    return [{"sent_id": first_id + i, "sent": t, "raw": t, "tokens": t.split()} for i, t in enumerate(texts)]


def _refs(scene: Scene, annotations: list[Json], split: str) -> list[Json]:
    """RefCOCO's refs: one to three sentences of one `kind` (an extra key) for each thing that has any."""
    rng, refs = shapes.generator(scene.key, "refer"), []
    for annotation, found in zip(annotations, shapes.expressions(scene), strict=True):
        first = (0, 0, 1, 2)[rng.integers(4)]  # attributes half of the time
        kind = next((k for k in KINDS[first:] + KINDS[:first] if found[k]), "")
        if not kind:
            continue
        texts = rng.permutation(found[kind])[: rng.integers(1, 4)].tolist()
        refs.append(_ref(annotation, annotation["id"], split, kind, texts))
    return refs


def _relations(scene: Scene, annotations: list[Json]) -> list[Json]:
    """More of what takes comparing: a ref of up to three relations, and one of superlatives, for each thing."""
    rng, refs = shapes.generator(scene.key, "relations"), []
    for annotation, found in zip(annotations, shapes.expressions(scene), strict=True):
        for number, kind in enumerate(KINDS[1:], start=1):
            if texts := rng.permutation(found[kind])[:3].tolist():
                refs.append(_ref(annotation, annotation["id"] * 10 + number, "train", kind, texts))
    return refs


def _ref(annotation: Json, ref_id: int, split: str, kind: str, texts: list[str]) -> Json:
    sentences = _sentences(ref_id * 10, texts)
    return {
        "image_id": annotation["image_id"], "category_id": annotation["category_id"], "ref_id": ref_id,
        "ann_id": annotation["id"], "split": split, "kind": kind, "sentences": sentences,
        "sent_ids": [sentence["sent_id"] for sentence in sentences],
    }  # fmt: skip


def _grefs(scene: Scene, annotations: list[Json], split: str, file_name: str) -> list[Json]:
    """gRefCOCO's refs: several targets, one, and none (`ann_id` [-1])."""
    image_id, refs = annotations[0]["image_id"], []
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
    rng, able = shapes.generator(scene.key, "reasoning"), shapes.reasoning(scene)
    for i in rng.permutation(len(able)):
        number, short, long, reason = able[i]
        if points := _outline(scene.ids == number):
            break
    else:
        return []
    is_sentence = bool(rng.random() < 0.5)
    shape = {"label": "target", "labels": ["target"], "shape_type": "polygon", "points": points}
    text, size = long if is_sentence else short, len(scene.ids)
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
    path: list[list[int]] = []
    heading = 0
    while not path or (row, column) != start:
        path.append([int(column) - 1, int(row) - 1])
        turns = ((heading + 5 + turn) % 8 for turn in range(8))  # from behind on the left, clockwise
        heading = next((d for d in turns if padded[row + steps[d][0], column + steps[d][1]]), 0)
        row, column = row + steps[heading][0], column + steps[heading][1]
    return path


def _add_grounded(rows: Rows, kind: str, image: Json, text: str, phrases: list[tuple[int, int, list[RLE]]]) -> None:
    """A caption in a layout of GranD-f; a phrase is [begin, end) of the text with the RLE of each mask. Ids of
    rows are left to `_write_split`, which knows how many there are."""
    name, image_id, size = image["file_name"], image["id"], {"height": image["height"], "width": image["width"]}
    masks = [(a, b, rle) for a, b, rles in phrases for rle in rles]
    if kind == "val":
        about = {"id": 0, "image_id": image_id, "caption": text}
        rows["grounded"].append(about | {"labels": [text[a:b] for a, b, _ in phrases]})
        about = {"id": 0, "image_id": image_id, "category_id": 1}
        rows["masks"] += [about | {"segmentation": rle, "iscrowd": 0} for _, _, rle in masks]
    elif kind == "grandf":
        found = {text[a:b]: {"token_positives": [a, b], "rle_masks": rles} for a, b, rles in phrases}
        rows["grandf"].append({"file_name": name, **size, "image_id": image_id, "caption": text, "groundings": found})
    elif kind == "refcocog":
        refs = [{"sentence": text[a:b], "segmentation": rle} for a, b, rle in masks]
        about = {"img_file_name": name, "caption": text, "refs": refs, "image_id": image_id} | size
        rows["refcocog"].append({str(image_id): about})
    else:
        rows["flickr_images"].append(image | {"caption": text})
        about = {"id": 0, "image_id": image_id}
        rows["flickr"] += [about | {"tokens_positive": [[a, b]], "sam_mask": rle} for a, b, rle in masks]
