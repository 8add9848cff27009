"""The full stage-3 mixture on synthetic annotation files of the real sizes: what building its index takes, and having it."""

import json
import os
import pickle
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

IMAGES, INSTANCES, TALKS, CAPTIONS = 118_287, 860_001, 665_298, 53_500

PROGRAM = """
import json, resource, sys
from pathlib import Path
from xsam import config
import xsam.data.mixture, xsam.tasks.chat, xsam.tasks.generic, xsam.tasks.referring, xsam.tasks.reasoning
import xsam.tasks.grounded_conversation, xsam.tasks.visual_grounding
def rss():
    return {row.split(":")[0]: int(row.split()[1]) / 2**20 for row in open("/proc/self/status") if row[:2] in ("Rs", "Vm")}
before = rss()
mixture = config.build(json.loads(Path(sys.argv[1]).read_text()))
mixture.epoch(0, 0, 64)
after = rss()
print(json.dumps([after["VmRSS"] - before["VmRSS"], after["VmHWM"] - before["VmRSS"], sum(map(len, mixture.sources.values()))]))
"""


def write_list(path: Path, rows: Iterable[Any]) -> None:
    """A JSON list, row by row: the whole would not fit."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        for number, row in enumerate(rows):
            file.write(("[" if number == 0 else ",\n") + json.dumps(row))
        file.write("]")


def write_dict(path: Path, **lists: Iterable[Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        for number, (name, rows) in enumerate(lists.items()):
            file.write(("{" if number == 0 else ",\n") + f'"{name}": [')
            for i, row in enumerate(rows):
                file.write(("," if i else "") + json.dumps(row))
            file.write("]")
        file.write("}")


def images(count: int) -> list[dict[str, Any]]:
    return [{"id": i, "file_name": f"{i:012}.jpg", "height": 480, "width": 640, "license": 1} for i in range(count)]


def polygon(rng: np.random.Generator) -> list[list[float]]:
    return [np.round(rng.uniform(0, 480, 44), 2).tolist()]  # COCO's mean


def instances(count: int, of: int) -> Iterable[dict[str, Any]]:
    rng = np.random.default_rng(0)
    for i in range(count):
        keys = {"id": i, "image_id": i % of, "category_id": i % 80 + 1, "iscrowd": 0, "area": 900.5}
        yield keys | {"segmentation": polygon(rng), "bbox": [1.5, 2.5, 30.5, 30.5]}


RLE = {"size": [480, 640], "counts": "n_T31m>0O2N100O100O2N100O10001N101O1N2O1O2M2O1O1N3N1O1N2O2N1N2O1O1N3N1O" * 2}
CATEGORIES = [{"id": i, "name": f"thing {i}", "isthing": 1, "supercategory": "x"} for i in range(1, 134)]


def write_all(data: Path) -> None:
    """All sources of the paper's third stage, ReasonSeg's folder apart, with as many records as the public files have."""
    for folder in (
        "coco/train2017",
        "coco/train2014",
        "coco/annotations/panoptic_train2017",
        "llava/images",
        "reasonseg/train",
    ):
        (data / folder).mkdir(parents=True)
    for folder in ("GranDf_HA_images/train", "flickr30k/images/train"):
        (data / "grandf/images" / folder).mkdir(parents=True)
    segments = [
        {"id": 1000 + n, "category_id": n + 1, "area": 100, "bbox": [0, 0, 9, 9], "iscrowd": 0} for n in range(11)
    ]
    panoptic = ({"image_id": i, "file_name": f"{i:012}.png", "segments_info": segments} for i in range(IMAGES))
    coco = data / "coco/annotations"
    write_dict(coco / "panoptic_train2017.json", images=images(IMAGES), annotations=panoptic, categories=CATEGORIES)
    kinds = ("point", "scribble", "box", "mask")
    prompts = {"visual_prompts": {f"{kind}_visual_prompt": RLE for kind in kinds}, "bbox_mode": 1}
    found = instances(INSTANCES, INSTANCES)
    write_list(coco / "coco_vgdseg_train.json", (
        {"image_file": f"{i:012}.jpg", "image_id": i, "image_size": [480, 640], "image_info": images(1)[0] | {"image_id": i},
         "annotations": [next(found) | prompts | {"image_id": i} for _ in range(7)]} for i in range(117_266)
    ))  # fmt: skip
    for name, by, shown, objects, sentences in (
        ("refcoco", "unc", 19_994, 42_404, 3), ("refcoco+", "unc", 19_992, 42_278, 3), ("refcocog", "umd", 25_799, 42_226, 2),
    ):  # fmt: skip
        folder = data / "refer" / name
        write_dict(
            folder / "instances.json",
            images=images(shown),
            annotations=instances(196_771, shown),
            categories=CATEGORIES,
        )
        said = [{"sent": f"the thing on side {n}", "sent_id": n, "tokens": [], "raw": ""} for n in range(sentences)]
        refs = [
            {"ref_id": i, "ann_id": i, "image_id": i % shown, "category_id": 1, "split": "train", "sentences": said}
            for i in range(objects)
        ]
        (folder / f"refs({by}).p").write_bytes(pickle.dumps(refs, protocol=2))
    caption = "a man in a red jacket stands beside two dogs on the green grass under a cloudy sky"
    grounded = {
        phrase: {"token_positives": [caption.index(phrase), caption.index(phrase) + len(phrase)], "rle_masks": [RLE]}
        for phrase in ("a man", "a red jacket", "two dogs", "the green grass")
    }
    train = data / "grandf/annotations/train"
    for file, count in (("GranDf_HA_GCG_train", 1000), ("OpenPsgGCG_train", CAPTIONS)):
        write_list(train / f"{file}.json", (
            {"file_name": f"train2017/{i}.jpg", "height": 480, "width": 640, "image_id": i, "caption": caption, "groundings": grounded} for i in range(count)
        ))  # fmt: skip
    refs = [{"sentence": phrase, "segmentation": RLE} for phrase in grounded]
    write_list(
        train / "RefCOCOg_GCG_train.json",
        (
            {
                str(i): {
                    "img_file_name": f"{i}.jpg",
                    "caption": caption,
                    "refs": refs,
                    "height": 480,
                    "width": 640,
                    "image_id": i,
                }
            }
            for i in range(21_899)
        ),
    )
    flickr = (
        {"id": i, "image_id": i % 148_915, "tokens_positive": [[0, 5]], "sam_mask": RLE} for i in range(4 * 148_915)
    )
    write_dict(
        train / "flickr_mergedGT_GCG_train.json",
        images=(image | {"caption": caption} for image in images(148_915)),
        annotations=flickr,
    )
    talk = [
        {"from": who, "value": "a sentence of some twenty words, as people write them when they ask for things " * n}
        for who, n in (("human", 1), ("gpt", 3)) * 3
    ]
    write_list(
        data / "llava/LLaVA-Instruct-150K/llava_v1_5_mix665k.json",
        ({"id": str(i), "image": f"coco/{i}.jpg", "conversations": talk} for i in range(TALKS)),
    )
    (data / "reasonseg/train/a.json").write_text(json.dumps({"text": ["a"], "is_sentence": False, "shapes": []}))
    write_list(data / "reasonseg/explanatory/train.json", [{"image": "a.jpg", "query": "a", "outputs": "b"}])


@pytest.mark.slow
def test_memory_of_the_full_mixture(tmp_path: Path) -> None:
    from xsam import config

    write_all(tmp_path / "data")
    text = json.dumps(config.load("configs/xsam_phi3_stage3.py")["mixture"]).replace('"data/', f'"{tmp_path}/data/')
    (tmp_path / "mixture.json").write_text(text)
    measured = []
    for _ in ("build", "open"):
        command = [sys.executable, "-c", PROGRAM, str(tmp_path / "mixture.json")]
        environment = {**os.environ, "XSAM_CACHE": str(tmp_path / "cache")}
        done = subprocess.run(command, capture_output=True, text=True, env=environment, check=True)
        measured.append(json.loads(done.stdout))
    (_, peak, count), (kept, _, _) = measured
    print(f"{count} records: built with {peak:.2f} GB at most, {kept:.2f} GB in every process after that")
    assert count > 1_150_000  # a sample of the referring sources is an image, not a sentence
    assert peak <= 6
    assert kept <= 0.8
