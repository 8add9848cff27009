"""2,000 corrupted annotations and images over all readers, drawn with a fixed seed: every one is refused."""

import copy
import fnmatch
import io
import json
import pickle
import shutil
import signal
import struct
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from world.shapes import CATEGORIES
from xsam.data.coco import CocoInstances, CocoPanoptic
from xsam.data.conversations import Conversations
from xsam.data.gcg import GcgPairs, GrandF
from xsam.data.jsonl import JsonLines
from xsam.data.label_maps import LabelMaps
from xsam.data.masks import decode_rle
from xsam.data.mixture import Mixture, key
from xsam.data.prompt import Processor
from xsam.data.reasonseg import ReasonSeg
from xsam.data.refer import Expressions, GRefCoco, RefCoco
from xsam.data.region_records import CocoInteractive, CocoVgd
from xsam.data.regions import KINDS
from xsam.structures import BadSample, UserError
from xsam.tasks.base import Task
from xsam.tasks.chat import Chat
from xsam.tasks.generic import GenericSegmentation
from xsam.tasks.grounded_conversation import GroundedConversation
from xsam.tasks.interactive import InteractiveSegmentation
from xsam.tasks.reasoning import ReasoningSegmentation
from xsam.tasks.referring import ReferringSegmentation
from xsam.tasks.visual_grounding import VisualGrounding

CASES = 125  # of each format
RECORDS = 4  # images of each format; a case touches one record, with a repeated id two
SECONDS = 30  # a case takes some hundredths of a second; more is a hang
GONE = object()  # the key, or the file, is not there
NAN, INFINITY = float("nan"), float("inf")

Files = dict[str, Any]  # by path: bytes, or what a JSON file, a pickle, or JSON lines hold
Wrong = dict[str, list[Any]]  # what must be refused in the place of a value, by kind
Domain = Callable[[Any, np.random.Generator], Wrong]


# ---------------------------------------------------------------- what must be refused in the place of what


def other(*right: type) -> list[Any]:
    """JSON values of other types."""
    return [v for v in (None, True, 7, 0.5, "7", [], {}, [7], {"a": 7}) if type(v) not in right]


def only(*right: type, gone: bool = True) -> Domain:
    return lambda value, rng: {"type": [*other(*right), *[GONE] * gone]}


record, truth_value = only(dict, gone=False), only(bool, gone=False)
listing, mapping, string = only(list), only(dict), only(str)
whole_number, identifier = only(int), only(int, str)


def present(domain: Domain) -> Domain:
    """Without what has no known truth: an item of a list has no key, and some keys may be left out."""

    def wrong(value: Any, rng: np.random.Generator) -> Wrong:
        return {kind: [v for v in values if v is not GONE] for kind, values in domain(value, rng).items()}

    return wrong


def repeats(name: str, within: str = "") -> Domain:
    """A list of records, two of which have the same id; where that is allowed elsewhere, of the same owner."""

    def wrong(value: list[Any], rng: np.random.Generator) -> Wrong:
        pairs = [
            (i, j)
            for i, a in enumerate(value)
            for j, b in enumerate(value)
            if i != j and a.get(within) == b.get(within)
        ]
        if not pairs:
            return {}
        i, j = pairs[rng.integers(len(pairs))]
        return {"id": [[*value[:i], value[i] | {name: value[j][name]}, *value[i + 1 :]]]}

    return wrong


def both(*domains: Domain) -> Domain:
    def wrong(value: Any, rng: np.random.Generator) -> Wrong:
        found: Wrong = {}
        for domain in domains:
            for kind, values in domain(value, rng).items():
                found.setdefault(kind, []).extend(values)
        return found

    return wrong


def prompt_text(value: str, rng: np.random.Generator) -> Wrong:
    """Goes into a prompt, where tags mean something."""
    tags = [f"{value} <SEG>", f"<p>{value}", f"{value}</p>", f"<image>{value}", f"<region> {value}"]
    return string(value, rng) | {"encoding": [f"{value}\ud800", f"\udfff{value}"], "range": ["", " \n", *tags]}


def chat_text(value: str, rng: np.random.Generator) -> Wrong:
    """Tags are only letters in it."""
    return string(value, rng) | {"encoding": [f"{value}\ud800", f"\udfff{value}"]}


def speaker(value: str, rng: np.random.Generator) -> Wrong:
    return string(value, rng) | {"id": ["system", "", "Human"]}


def file_name(value: str, rng: np.random.Generator) -> Wrong:
    lost = [f"x{value}", "..", "", "a" * 300, f"/{value}"]
    return string(value, rng) | {"id": lost, "encoding": [f"\udc80{value}", f"\ud800{value}", f"a\0{value}"]}


def image_id(value: int, rng: np.random.Generator) -> Wrong:
    """Of an image: annotations ask for it."""
    return {"type": [*other(int), GONE], "id": [value + 10**9, -1]}


def reference(value: int, rng: np.random.Generator) -> Wrong:
    """To an image or an annotation."""
    return {"type": [*other(int), float(value) + 0.5, str(value), GONE], "id": [value + 10**9, -value, 10**30]}


def references(value: list[int], rng: np.random.Generator) -> Wrong:
    wrong: list[Any] = [[*value, v] for v in other(int)]
    return {"type": [*other(list), *wrong, GONE], "id": [[*value, 10**9], [-1, *value, -1], [-2]]}


def category(value: int, rng: np.random.Generator) -> Wrong:
    return {"type": [*other(int), GONE], "id": [value + 1000, -1, 10**30]}


def side(value: int, rng: np.random.Generator) -> Wrong:
    """Height or width."""
    far = [0, -value, NAN, INFINITY, 10**9, 10**30]
    return {"type": [*other(int), str(value), GONE], "size": [value + 1, value - 1, 2 * value, 1], "range": far}


def area(value: float, rng: np.random.Generator) -> Wrong:
    return {"type": [*other(int, float), GONE], "range": [-1, NAN, INFINITY, -INFINITY, 10**9, 10**400]}


def flag(value: int, rng: np.random.Generator) -> Wrong:
    return {"type": [v for v in other() if v not in (True, 7)], "range": [7, -1, NAN, 10**30]}


def absence(value: bool, rng: np.random.Generator) -> Wrong:
    return {"type": other(bool), "id": [not value]}


def interval(value: list[int], rng: np.random.Generator) -> Wrong:
    """A place [begin, end) in a caption of less than 10^4 characters."""
    a, b = value
    types = [*other(list), [], [a], [a, b, b], [str(a), b], [a, None], [a + 0.5, b], {"begin": a, "end": b}]
    return {"type": types, "range": [[10**4, 10**4 + b], [10**30, 10**30 + 1]]}


def placed(value: list[list[int]], rng: np.random.Generator) -> Wrong:
    """Intervals that alone say what a phrase is."""
    ((a, b),) = value
    inner = interval([a, b], rng)
    far = [*inner["range"], [-b - 1, -1], [b, a], [a, a], [a, 10**4]]
    return {"type": [*other(list), GONE, *([v] for v in inner["type"])], "range": [[v] for v in far]}


def drawn(value: Any, rng: np.random.Generator) -> Wrong:
    """An RLE, compressed or not, or polygons, that stand for one object."""
    missing = {"type": [*other(list, dict), GONE], "range": [[], {}]}
    more = _rle(value, rng) if isinstance(value, dict) else _polygons(value, rng)
    return {kind: missing.get(kind, []) + more.get(kind, []) for kind in (*missing, *more)}


def segmentation(value: Any, rng: np.random.Generator) -> Wrong:
    """The same of an object that has to have a pixel."""
    found = drawn(value, rng)
    if isinstance(value, list):
        found["range"].append([value[0][:2] * 3])
    elif isinstance(value["counts"], list):
        found["range"].append(value | {"counts": [value["size"][0] * value["size"][1]]})
    return found


def absent_or_segmentation(value: Any, rng: np.random.Generator) -> Wrong:
    """Where null says that nothing fits."""
    if value is None:
        return {"type": [*other(list, dict, type(None)), GONE], "range": [[], {}]}
    found = segmentation(value, rng)
    return found | {"type": [v for v in found["type"] if v is not None]}


def stored_prompt(value: dict[str, Any], rng: np.random.Generator) -> Wrong:
    """A compressed RLE; null is an object without such a prompt."""
    found = _rle(value, rng)
    return found | {"type": [*found["type"], *other(dict, type(None)), {}, GONE]}


def _rle(value: dict[str, Any], rng: np.random.Generator) -> Wrong:
    (height, width), counts = value["size"], value["counts"]
    sizes = [[height + 1, width], [height, width - 1], [1, height * width], [2 * height, width // 2], [-height, -width]]
    size_types = [*other(list), [], [height], [height, width, 1], [str(height), str(width)], [None, None]]
    found: Wrong = {
        "size": [value | {"size": size} for size in sizes],
        "type": [value | {"size": size} for size in [*size_types, [float(height), float(width)], [NAN, NAN]]]
        + [value | {"counts": wrong} for wrong in other(list, str)]
        + [{"size": value["size"]}, {"counts": counts}],
    }
    cut = int(rng.integers(len(counts)))
    found["truncated"] = [value | {"counts": counts[:cut]}, value | {"counts": counts[: len(counts) - 1]}]
    if isinstance(counts, list):
        place = int(rng.integers(len(counts)))
        wrong = [-1, NAN, INFINITY, 10**12, 10**30, counts[place] + 1]
        found["range"] = [value | {"counts": [*counts[:place], w, *counts[place + 1 :]]} for w in wrong]
        found["type"] += [value | {"counts": [*counts[:place], w, *counts[place + 1 :]]} for w in other(int)]
        return found
    place = int(rng.integers(len(counts) + 1))
    letters = ("\x7f", "é", "\ud800", "\0", " ", "~", "\n", "中")
    found["encoding"] = [value | {"counts": counts[:place] + letter + counts[place:]} for letter in letters]
    found["range"] = [value | {"counts": wrong} for wrong in ("o" * 40, "P" * 40, counts * 2, f"{counts}0o", "")]
    return found


def _polygons(value: list[list[float]], rng: np.random.Generator) -> Wrong:
    polygon = value[0]
    place = int(rng.integers(len(polygon)))

    def put(wrong: Any) -> list[Any]:
        return [[*polygon[:place], wrong, *polygon[place + 1 :]]]

    short = [[polygon[:-1]], [polygon[:4]], [polygon[:5]], [[]], [polygon, polygon[:2]], [polygon, []]]
    far = [NAN, INFINITY, -INFINITY, 10**9, -(10**9), 1e308, 10**30, 10**400]
    return {
        "type": [put(wrong) for wrong in other(int, float)] + [[wrong] for wrong in other(list)] + [polygon],
        "size": short,
        "range": [put(wrong) for wrong in far],
    }


def points(value: list[list[int]], rng: np.random.Generator) -> Wrong:
    """ReasonSeg's corners [x, y]."""
    place = int(rng.integers(len(value)))

    def put(wrong: Any) -> list[Any]:
        return [*value[:place], wrong, *value[place + 1 :]]

    types = [*other(list), GONE, *(put(v) for v in other()), *(put([v, 5]) for v in other(int, float))]
    far = [NAN, INFINITY, -INFINITY, 10**6, -(10**6), 10**30, 1e308, 10**400]
    return {
        "type": types,
        "size": [[], put([]), put([5]), put([5, 5, 5]), put([5, 5, 5, 5]), [x for point in value for x in point]],
        "range": [put([5, wrong]) for wrong in far],
    }


# ---------------------------------------------------------------- whole files


def _cut(data: bytes, rng: np.random.Generator) -> list[bytes]:
    return [b"", *(data[: int(k)] for k in rng.integers(1, len(data), 3))]


def document(data: bytes, rng: np.random.Generator) -> Wrong:
    """A JSON file. A byte 0x81 is neither UTF-8 nor cp1252."""
    place = int(rng.integers(len(data)))
    return {
        "truncated": _cut(data, rng),
        "encoding": [data[:place] + b"\x81" + data[place:], b"\xff\xfe" + data],
        "type": [b"null", b"7", b'"text"', b"[]", b"{}", b"[7]", b"[[]]", b"[" * 10**5, b"\x80\x04]\x94.", b"\xff\xd8"],
        "range": [b"[" + b"9" * 5000 + b"]", data + b"]", data[:-1] + b"," + data[-1:] + b"}"],
    }


def required(data: bytes, rng: np.random.Generator) -> Wrong:
    """A JSON file that others do not stand in for."""
    return document(data, rng) | {"id": [GONE]}


def explanations(data: bytes, rng: np.random.Generator) -> Wrong:
    """A JSON list that may be empty."""
    found = required(data, rng)
    return found | {"type": [v for v in found["type"] if v != b"[]"]}


def lines(data: bytes, rng: np.random.Generator) -> Wrong:
    """JSON lines: a whole one may be missing, not a part."""
    ends = [k for k in range(1, len(data)) if data[k - 1 : k] != b"\n" and data[k : k + 1] != b"\n"]
    found = required(data, rng) | {"truncated": [b"", *(data[: ends[k]] for k in rng.integers(len(ends), size=3))]}
    return found | {"range": [b"[" + b"9" * 5000 + b"]", data.replace(b"\n", b"", 1)]}


def pickled(data: bytes, rng: np.random.Generator) -> Wrong:
    return {
        "truncated": _cut(data, rng),
        "encoding": [data.replace(b"train", b"tr\x81in", 1)],
        "type": [b"null", b"[]", *(pickle.dumps(v) for v in [None, {}, [], [7], [None], np.float64(7), Path("x")])],
        "id": [GONE],
    }


def name_list(data: bytes, rng: np.random.Generator) -> Wrong:
    """The classes of label maps."""
    return {
        "truncated": [b""],
        "encoding": [data.replace(b"a", b"\x81", 1), data.replace(b"\n", b"<SEG>\n", 1)],
        "range": [data.replace(b"\n", b"\n\n", 1), b"*\n" + data, b"-other\n" + data],
        "id": [GONE],
    }


def image_list(data: bytes, rng: np.random.Generator) -> Wrong:
    return {
        "truncated": [b"", data.rstrip()[:-1]],
        "encoding": [b"\x81" + data, b"a\0" + data],
        "id": [GONE, data + b"\n9999999"],
    }


def _bomb() -> bytes:
    """A PNG that claims to have 3.6 thousand million pixels."""
    header = b"IHDR" + struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + header + struct.pack(">I", zlib.crc32(header))


def picture(data: bytes, rng: np.random.Generator) -> Wrong:
    cut = [data[: int(k)] for k in rng.integers(1, int(0.8 * len(data)), 4)]
    return {"truncated": [b"", *cut], "type": [b"This is no image.\n", b"{}"], "id": [GONE], "range": [_bomb()]}


def _saved(image: Image.Image, like: bytes) -> bytes:
    file = io.BytesIO()
    image.save(file, Image.open(io.BytesIO(like)).format)
    return file.getvalue()


def sized_picture(data: bytes, rng: np.random.Generator) -> Wrong:
    """An image that masks are drawn on."""
    image = Image.open(io.BytesIO(data))
    (width, height), by = image.size, int(rng.integers(1, 9))
    sizes = [(width + by, height), (width, height - by), (1, height), (2 * width, 2 * height)]
    return picture(data, rng) | {"size": [_saved(image.resize(size, 0), data) for size in sizes]}


def segment_png(data: bytes, rng: np.random.Generator) -> Wrong:
    """Of COCO: its colours are the ids of segments."""
    image = Image.open(io.BytesIO(data))
    place = tuple(rng.integers(0, image.size).tolist())
    drawn = image.copy()
    drawn.putpixel(place, (1, 2, 3))
    found = sized_picture(data, rng)
    return found | {"type": [*found["type"], _saved(image.convert("L"), data)], "id": [GONE, _saved(drawn, data)]}


def class_png(data: bytes, rng: np.random.Generator) -> Wrong:
    """A label map of fewer than 100 classes."""
    image = Image.open(io.BytesIO(data))
    place = tuple(rng.integers(0, image.size).tolist())
    found = sized_picture(data, rng)
    for value in (100, 254):
        drawn = image.copy()
        drawn.putpixel(place, value)
        found["range"].append(_saved(drawn, data))
    return found | {"type": [*found["type"], _saved(image.convert("RGB"), data), _saved(image.convert("1"), data)]}


# ---------------------------------------------------------------- the formats


@dataclass(frozen=True)
class Format:
    """A small data set, how it is read, and what of it may be corrupted."""

    files: Callable[[Path], Files]  # from the embedded world
    task: Callable[[Path, str], Task]
    fields: "dict[str, Fields]"  # by pattern of the file, by pattern of the place in it; "" = the file
    prompts: tuple[str, ...] = ("",)  # kinds of prompts, a task each


def _json(world: Path, name: str) -> Any:
    return json.loads((world / name).read_bytes())


def _pictures(world: Path, *names: str) -> Files:
    return {name: (world / name).read_bytes() for name in names}


def _varied(annotations: list[dict[str, Any]], what: str = "segmentation") -> None:
    """Every second mask as polygons, some as run lengths."""
    for number, annotation in enumerate(annotations):
        rle = annotation[what]
        if number % 2 == 0:
            x, y, w, h = annotation["bbox"]
            annotation[what] = [[x, y, x + w, y, x + w, y + h, x, y + h]]
        elif number % 4 == 1:
            flat = decode_rle(rle).T.ravel()
            edges = np.flatnonzero(np.diff(flat, prepend=False))
            annotation[what] = {"size": rle["size"], "counts": np.diff(edges, prepend=0, append=flat.size).tolist()}


def _coco(world: Path, name: str) -> dict[str, Any]:
    """A file of COCO's layout with its first images only."""
    content = _json(world, name)
    content["images"] = content["images"][:RECORDS]
    ids = {image["id"] for image in content["images"]}
    return content | {"annotations": [a for a in content["annotations"] if a["image_id"] in ids]}


def _photos(world: Path, folder: str, content: dict[str, Any]) -> Files:
    return _pictures(world, *(f"{folder}{image['file_name']}" for image in content["images"]))


def _panoptic(world: Path) -> Files:
    content = _coco(world, "annotations/panoptic_train.json")
    pngs = _pictures(world, *(f"panoptic_train/{a['file_name']}" for a in content["annotations"]))
    return {"panoptic.json": content} | _photos(world, "train/", content) | pngs


def _instances(world: Path) -> Files:
    content = _coco(world, "annotations/instances_train.json")
    _varied(content["annotations"])
    return {"instances.json": content} | _photos(world, "train/", content)


def _label_maps(world: Path) -> Files:
    """The last map shows no class."""
    photos = _photos(world, "train/", _coco(world, "annotations/panoptic_train.json"))
    names = [Path(name).stem for name in photos]
    maps = _pictures(world, *(f"semantic_train/{name}.png" for name in names))
    last, data = maps.popitem()
    maps[last] = _saved(Image.new("L", Image.open(io.BytesIO(data)).size, 255), data)
    return photos | maps | {"names.txt": "\n".join(CATEGORIES).encode(), "split.txt": "\n".join(names).encode()}


def _refer(world: Path, refs: list[dict[str, Any]], meant: Callable[[dict[str, Any]], list[int]]) -> tuple[Files, list]:
    """`instances.json` with nothing but what is referred to, images, and the refs to them."""
    content = _coco(world, "refer/instances.json")
    ids = {image["id"] for image in content["images"]}
    refs = [ref for ref in refs if ref["image_id"] in ids]
    wanted = {id for ref in refs for id in meant(ref)}
    content["annotations"] = [a for a in content["annotations"] if a["id"] in wanted]
    _varied(content["annotations"])
    return {"instances.json": content} | _photos(world, "", content), refs


def _refcoco(world: Path) -> Files:
    refs = pickle.loads((world / "refer/refs(shapes).p").read_bytes())
    files, refs = _refer(world, refs, lambda ref: [ref["ann_id"]])
    return files | {"refs.p": refs}


def _grefcoco(world: Path) -> Files:
    files, refs = _refer(world, _json(world, "refer/grefs(shapes).json"), lambda ref: ref["ann_id"])
    return files | {"grefs.json": refs}


def _jsonl(world: Path) -> Files:
    content = _instances(world).pop("instances.json")
    names = {image["id"]: f"train/{image['file_name']}" for image in content["images"]}
    rows = [
        {"image": names[a["image_id"]], "text": f"thing {a['id']}", "segmentation": a["segmentation"]}
        for a in content["annotations"]
    ]
    rows += [{"image": name, "text": "a cat", "segmentation": None} for name in names.values()]
    return {"own.jsonl": rows} | _photos(world, "train/", content)


def _reasonseg(world: Path) -> Files:
    names = sorted(path.stem for path in (world / "reason/train").glob("*.json"))[:RECORDS]
    files: Files = {f"reason/{name}.json": _json(world, f"reason/train/{name}.json") for name in names}
    files |= {f"reason/{name}.jpg": (world / f"reason/train/{name}.jpg").read_bytes() for name in names}
    rows = _json(world, "reason/explanatory/train.json")
    return files | {"explained.json": [row for row in rows if Path(row["image"]).stem in names]}


def _grandf(world: Path) -> Files:
    rows = _json(world, "gcg/grandf_train.json")[:RECORDS]
    return {"grandf.json": rows} | _pictures(world, *(f"train/{row['file_name']}" for row in rows))


def _refcocog(world: Path) -> Files:
    rows = _json(world, "gcg/refcocog_train.json")[:RECORDS]
    names = [f"train/{inner['img_file_name']}" for row in rows for inner in row.values()]
    return {"refcocog.json": rows} | _pictures(world, *names)


def _flickr(world: Path) -> Files:
    content = _coco(world, "gcg/flickr_train.json")
    return {"flickr.json": content} | _photos(world, "train/", content)


def _gcg_pairs(world: Path) -> Files:
    masks, captions = (_coco(world, f"gcg/val_gcg_coco_{name}_gt.json") for name in ("mask", "caption"))
    return {"masks.json": masks, "captions.json": captions} | _photos(world, "val/", masks)


def _vgd(world: Path) -> Files:
    """One object of each class, so that every one is asked for."""
    rows = _json(world, "vgd/train.json")[:RECORDS]
    for row in rows:
        row["annotations"] = list({a["category_id"]: a for a in row["annotations"]}.values())
        _varied(row["annotations"])
    return {"vgd.json": rows} | _pictures(world, *(f"train/{row['image_file']}" for row in rows))


def _interactive(world: Path) -> Files:
    rows = _json(world, "interactive/train.json")[:RECORDS]
    for number, row in enumerate(rows):
        row["anns"] = row["anns"][:1]
        _varied(row["anns"] if number % 2 else [])
    return {"interactive.json": rows} | _pictures(world, *(f"train/{row['image']}" for row in rows))


def _conversations(world: Path) -> Files:
    rows = _json(world, "conversations/train.json")[:RECORDS]
    return {"chat.json": rows} | _pictures(world, *(row["image"] for row in rows))


Fields = dict[str, Domain]  # by place; `*` is every key
COCO_IMAGES: Fields = {
    "": required, "images": both(listing, repeats("id")), "images.*": record, "images.*.id": image_id,
    "images.*.file_name": file_name, "images.*.height": side, "images.*.width": side, "annotations": listing,
}  # fmt: skip
COCO_HEAD: Fields = COCO_IMAGES | {
    "categories": both(listing, repeats("id")), "categories.*": record, "categories.*.id": whole_number,
    "categories.*.name": prompt_text, "categories.*.isthing": flag, "annotations.*": record,
}  # fmt: skip
OBJECT: Fields = {"id": whole_number, "category_id": category, "area": area, "iscrowd": flag}
OWNED: Fields = {
    "annotations.*.id": whole_number, "annotations.*.image_id": reference, "annotations.*.segmentation": segmentation,
}  # fmt: skip
REFERRED: Fields = COCO_IMAGES | OWNED | {
    "annotations": both(listing, repeats("id")), "annotations.*": record, "annotations.*.id": reference,
}  # fmt: skip
REF: Fields = {
    "*": record, "*.split": string, "*.image_id": reference, "*.sentences": listing, "*.sentences.*": record,
    "*.sentences.*.sent": prompt_text,
}  # fmt: skip
CAPTION_FIELDS: Fields = {"": record, "caption": prompt_text, "height": side, "width": side}
PHOTOS: dict[str, Fields] = {"*.jpg": {"": sized_picture}}


def _under(place: str, fields: Fields) -> Fields:
    return {f"{place}.{name}".rstrip("."): domain for name, domain in fields.items()}


INSTANCES = COCO_HEAD | OWNED | _under("annotations.*", OBJECT)
INSTANCES["annotations"] = both(listing, repeats("id", within="image_id"))
CAPTION: Fields = {"": required} | _under("*", CAPTION_FIELDS)


def _prompted(instances: str, image: str) -> Fields:
    """COCO-VGD's and COCO-Interactive's fields, which differ in two names."""
    info: Fields = {"": mapping, "file_name": file_name, "height": side, "width": side, image: identifier}
    found: Fields = {"id": whole_number, "iscrowd": flag, "category_id": whole_number, "segmentation": segmentation}
    return {"": required, "*": record, f"*.{instances}": both(listing, repeats("id"))} | {
        **_under("*.image_info", info), **_under(f"*.{instances}.*", {"": record} | found)
    }  # fmt: skip


def _generic(root: Path, kind: str) -> Task:
    return GenericSegmentation(data=CocoInstances(root / "instances.json", root / "train"), train=True)


def _captions(root: Path, kind: str, layout: str) -> Task:
    return GroundedConversation(data=GrandF(root / f"{layout}.json", root / "train", layout), train=True)


def _referring(data: Expressions, several: bool = False) -> Task:
    return ReferringSegmentation(data=data, train=True, several=several, max_turns=99)


def _coco_panoptic(root: Path) -> CocoPanoptic:
    return CocoPanoptic(root / "panoptic.json", root / "panoptic_train", root / "train")


# fmt: off
FORMATS = {
    "coco_panoptic": Format(
        _panoptic, lambda root, kind: GenericSegmentation(data=_coco_panoptic(root), train=True),
        PHOTOS | {"*.png": {"": segment_png}, "*.json": COCO_HEAD | {
            "annotations": both(listing, repeats("image_id")), "annotations.*.image_id": reference,
            "annotations.*.file_name": file_name, "annotations.*.segments_info": both(listing, repeats("id")),
            "annotations.*.segments_info.*": record,
        } | _under("annotations.*.segments_info.*", OBJECT | {"id": reference})},
    ),
    "coco_instances": Format(_instances, _generic, PHOTOS | {"*.json": INSTANCES}),
    "instances_beside_panoptic": Format(
        lambda world: _panoptic(world) | _instances(world),
        lambda root, kind: GenericSegmentation(
            data=_coco_panoptic(root), instances=_generic(root, kind).data, metric="instance"
        ),
        {"instances.json": INSTANCES | {"images.*.file_name": string, "annotations.*.segmentation": drawn}},
    ),
    "label_maps": Format(
        _label_maps,
        lambda root, kind: GenericSegmentation(train=True, data=LabelMaps(
            root / "train", root / "semantic_train", root / "names.txt", split=root / "split.txt"
        )),
        PHOTOS | {"*.png": {"": class_png}, "names.txt": {"": name_list}, "split.txt": {"": image_list}},
    ),
    "refcoco": Format(
        _refcoco, lambda root, kind: _referring(RefCoco(root / "refs.p", root / "instances.json", root, "train")),
        PHOTOS | {"*.json": REFERRED, "*.p": REF | {"": pickled, "*.ann_id": reference}},
    ),
    "grefcoco": Format(
        _grefcoco,
        lambda root, kind: _referring(GRefCoco(root / "grefs.json", root / "instances.json", root, "train"), True),
        PHOTOS | {"instances.json": REFERRED, "grefs.json": REF | {
            "": required, "*.ann_id": references, "*.no_target": absence,
        }},
    ),
    "json_lines": Format(
        _jsonl, lambda root, kind: _referring(JsonLines(root / "own.jsonl"), True),
        PHOTOS | {"*.jsonl": {
            "": lines, "*": record, "*.image": file_name, "*.text": prompt_text,
            "*.segmentation": absent_or_segmentation,
        }},
    ),
    "reasonseg": Format(
        _reasonseg,
        lambda root, kind: ReasoningSegmentation(data=ReasonSeg(root / "reason", root / "explained.json"), train=True),
        {"*.jpg": {"": picture}, "reason/*.json": {
            "": document, "text": listing, "text.*": present(prompt_text), "is_sentence": truth_value,
            "shapes": listing, "shapes.*": record, "shapes.*.label": string, "shapes.*.points": points,
        }, "explained.json": {"": explanations, "*": record, "*.image": string, "*.outputs": prompt_text}},
    ),
    "grandf": Format(
        _grandf, partial(_captions, layout="grandf"),
        PHOTOS | {"*.json": CAPTION | {
            "*.file_name": file_name, "*.groundings": mapping, "*.groundings.*": present(mapping),
            "*.groundings.*.token_positives": interval, "*.groundings.*.rle_masks": listing,
            "*.groundings.*.rle_masks.*": present(segmentation),
        }},
    ),
    "refcocog": Format(
        _refcocog, partial(_captions, layout="refcocog"),
        PHOTOS | {"*.json": {"": required, "*": record} | _under("*.*", CAPTION_FIELDS | {
            "img_file_name": file_name, "refs": listing, "refs.*": record, "refs.*.sentence": string,
            "refs.*.segmentation": segmentation,
        })},
    ),
    "flickr": Format(
        _flickr, partial(_captions, layout="flickr"),
        PHOTOS | {"*.json": COCO_IMAGES | {
            "images.*.caption": prompt_text, "annotations.*": record, "annotations.*.image_id": reference,
            "annotations.*.tokens_positive": placed, "annotations.*.sam_mask": stored_prompt,
        }},
    ),
    "gcg_pairs": Format(
        _gcg_pairs,
        lambda root, kind: GroundedConversation(
            data=GcgPairs(root / "masks.json", root / "captions.json", root / "val")
        ),
        PHOTOS | {"masks.json": COCO_IMAGES | {
            "annotations.*": record, "annotations.*.image_id": reference, "annotations.*.segmentation": segmentation,
            "images.*.file_name": present(file_name),
        }, "captions.json": {
            "": required, "annotations": listing, "annotations.*": record, "annotations.*.image_id": reference,
            "annotations.*.caption": prompt_text, "annotations.*.labels": listing,
            "annotations.*.labels.*": lambda value, rng: {"type": other(str)},
        }},
    ),
    "coco_vgd": Format(
        _vgd,
        lambda root, kind: VisualGrounding(data=CocoVgd(root / "vgd.json", root / "train"), prompt=kind, train=True),
        PHOTOS | {"*.json": _prompted("annotations", "image_id")
                  | {"*.annotations.*.visual_prompts": present(mapping)}
                  | {f"*.annotations.*.visual_prompts.{kind}_visual_prompt": stored_prompt for kind in KINDS}},
        KINDS,
    ),
    "coco_vgd_drawn": Format(
        _instances,
        lambda root, kind: VisualGrounding(
            data=CocoVgd(root / "instances.json", root / "train", scale=0.2), prompt=kind, train=True
        ),
        PHOTOS | {"*.json": INSTANCES}, KINDS,
    ),
    "coco_interactive": Format(
        _interactive,
        lambda root, kind: InteractiveSegmentation(
            data=CocoInteractive(root / "interactive.json", root / "train", scale=0), prompt=kind, train=True
        ),
        PHOTOS | {"*.json": _prompted("anns", "id")
                  | {f"*.anns.*.{kind}_visual_prompt_mask": stored_prompt for kind in KINDS}},
        KINDS,
    ),
    "conversations": Format(
        _conversations, lambda root, kind: Chat(data=Conversations(root / "chat.json", root), train=True),
        {"*.jpg": {"": picture}, "*.json": {
            "": required, "*": record, "*.image": file_name, "*.conversations": listing,
            "*.conversations.*": record, "*.conversations.*.from": speaker, "*.conversations.*.value": chat_text,
        }},
    ),
}
# fmt: on


# ---------------------------------------------------------------- cases


@dataclass(frozen=True)
class Case:
    """One value that is replaced."""

    kind: str
    file: str
    place: tuple[Any, ...]  # keys down to the value; () = the file's bytes
    value: Any

    def __str__(self) -> str:
        return f"{self.kind}: {self.file} {'.'.join(map(str, self.place))} = {str(self.value)[:100]!r}"


def _bytes(name: str, content: Any) -> bytes:
    if isinstance(content, bytes):
        return content
    if name.endswith(".p"):
        return pickle.dumps(content, protocol=2)
    if name.endswith(".jsonl"):
        return b"".join(json.dumps(row).encode() + b"\n" for row in content)
    return json.dumps(content).encode()


def _places(content: Any, pattern: list[str]) -> Iterator[tuple[Any, ...]]:
    """The places that a pattern means; `*` is every key."""
    if not pattern:
        yield ()
        return
    keys = range(len(content)) if isinstance(content, list) else content
    for name in [pattern[0]] if pattern[0] != "*" else keys:
        yield from ((name, *rest) for rest in _places(content[name], pattern[1:]))


def cases(name: str, files: Files) -> Iterator[Case]:
    """Endless; a kind first, then what may have it, so that all kinds and places have their share."""
    rng = np.random.default_rng(key("fuzz", name))
    places: list[tuple[str, Domain, list[tuple[Any, ...]]]] = [
        (file, domain, list(_places(files[file], pattern.split("."))) if pattern else [()])
        for glob, fields in FORMATS[name].fields.items()
        for file in files
        if fnmatch.fnmatch(file, glob)
        for pattern, domain in fields.items()
    ]
    kinds = ["type", "size", "id", "encoding", "range", "truncated"]
    while True:
        kind = kinds[rng.integers(len(kinds))]
        for number in rng.permutation(len(places)):
            file, domain, found = places[number]
            place = found[rng.integers(len(found))]
            values = domain(_at(files[file], place) if place else _bytes(file, files[file]), rng).get(kind)
            if values:
                yield Case(kind, file, place, values[rng.integers(len(values))])
                break


def _at(content: Any, place: tuple[Any, ...]) -> Any:
    for name in place:
        content = content[name]
    return content


def write(root: Path, files: Files, case: Case | None = None) -> None:
    """The files of a format, one of them corrupted."""
    for name, content in files.items():
        if case and case.file == name:
            if case.place:
                content = copy.deepcopy(content)
                parent = _at(content, case.place[:-1])
                if case.value is GONE:
                    del parent[case.place[-1]]
                else:
                    parent[case.place[-1]] = case.value
            else:
                content = case.value
        if content is not GONE:
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (root / name).write_bytes(_bytes(name, content))


def served(name: str, root: Path, kind: str, processor: Processor) -> tuple[int, list[Exception]]:
    """How many samples of a task can be used, and how the others, or all of it, were refused."""
    try:
        task = FORMATS[name].task(root, kind)
        Mixture(sources={"fuzz": task})
    except UserError as error:
        return 0, [error]
    good, refused = 0, []
    for index in range(len(task)):
        task.id(index)
        try:
            processor(task.sample(index, np.random.default_rng(index)), index, shorten=True)
            good += 1
        except BadSample as error:
            refused.append(error)
    return good, refused


def problem(name: str, files: Files, case: Case, root: Path, processor: Processor) -> str:
    """What is wrong with the way in which a case is refused."""
    write(root, files, case)
    accepted = True
    for kind in FORMATS[name].prompts:
        good, refused = served(name, root, kind, processor)
        accepted &= not refused
        if any("\n" in str(error) for error in refused):
            return f"{case}: a message of several lines: {refused}"
        if case.place and good < RECORDS - 2 and not any(isinstance(error, UserError) for error in refused):
            return f"{case}: other records are lost: {refused}"
    return f"{case}: accepted" if accepted else ""


@pytest.fixture
def processor(world):
    return Processor(seg_size=96, vision_size=16, tokenizer=str(world / "base"), template="qwen3")


@pytest.fixture
def no_hang():
    def hangs(*_: Any) -> None:
        pytest.fail(f"no answer after {SECONDS} seconds")

    before = signal.signal(signal.SIGALRM, hangs)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


@pytest.mark.parametrize("name", FORMATS)
def test_whatever_is_corrupted_is_refused(name, world, tmp_path, monkeypatch, processor, no_hang):
    files, root = FORMATS[name].files(world), tmp_path / "case"
    write(tmp_path / "whole", files)
    for kind in FORMATS[name].prompts:
        assert served(name, tmp_path / "whole", kind, processor) == (RECORDS, [])
    problems = []
    monkeypatch.setenv("XSAM_CACHE", str(root / "cache"))
    for case in islice(cases(name, files), CASES):
        signal.alarm(SECONDS)
        try:
            problems.append(problem(name, files, case, root, processor))
        except Exception as error:
            error.add_note(str(case))
            raise
        shutil.rmtree(root)
    assert not list(filter(None, problems))


BOX = ("annotations", 0, "visual_prompts", "box_visual_prompt", "counts")


@pytest.mark.parametrize("name, file, place, value", [
    ("coco_vgd", "vgd.json", (0, *BOX), "P" * 40),  # pycocotools wrote beyond its memory
    ("coco_vgd_drawn", "instances.json", ("images", 0, "file_name"), "/none.jpg"),
    ("refcocog", "refcocog.json", (0, "2", "refs", 0, "segmentation", "size"), [96.0, 96.0]),
    ("reasonseg", "explained.json", (0, "image"), None),
    ("reasonseg", "reason/0000001.json", ("shapes", 0, "points", 0), ["7", 5]),
    ("reasonseg", "reason/0000001.json", ("shapes", 0, "points", 0), [10**400, 5]),
    ("instances_beside_panoptic", "instances.json", ("annotations", 0, "image_id"), 10**9),
])  # fmt: skip
def test_what_was_not_refused_once(name, file, place, value, world, tmp_path, processor):
    assert not problem(name, FORMATS[name].files(world), Case("", file, place, value), tmp_path, processor)
