"""Two real COCO scenes, learnt by heart from the tiny base weights: real sizes, 133 classes, crowds, small things."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from xsam.cli import main

ROOT = Path(__file__).parents[1]
BASE = ROOT / "data/shapes/base"
PANOPTIC, PHOTOS = ROOT / "../shared/refdata/panoptic", ROOT / "../shared/refdata/photos"
SIDE = 384
CAPTIONS = {
    "000000039769.png": "Two cats are lying on a couch, a remote beside each.",
    "000000142238.jpg": "People play with a ball on the grass in front of trees.",
}

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not PANOPTIC.is_dir(), reason="no reference images"),
    pytest.mark.skipif(not (BASE / "model.safetensors").is_file(), reason="no base weights"),
]


def write_dataset(out: Path) -> None:
    """`coco.json`, `hf_39769.json` and `both.json` in COCO's panoptic layout, with `segments/` and `images/`; captions."""
    coco = json.loads((PANOPTIC / "coco/gt.json").read_text())
    cats = {  # the file has the list of `segments_info` alone
        "images": [{"id": 39769, "file_name": "000000039769.png", "height": 480, "width": 640}],
        "annotations": [
            {
                "image_id": 39769,
                "file_name": "000000039769.png",
                "segments_info": json.loads((PANOPTIC / "hf_39769/coco_panoptic_annotations.txt").read_text()),
            }
        ],
        "categories": json.loads((PANOPTIC / "panoptic_coco_categories.json").read_text()),
    }
    both = coco | {key: coco[key] + cats[key] for key in ("images", "annotations")}
    for name, content in {"coco": coco, "hf_39769": cats, "both": both}.items():
        (out / f"{name}.json").write_text(json.dumps(content))
    for folder, files in {
        "images": ["coco/000000142238.jpg", "hf_39769/000000039769.png"],
        "segments": ["coco/gt/000000142238.png", "hf_39769/coco_panoptic/000000039769.png"],
    }.items():
        (out / folder).mkdir()
        for file in files:
            shutil.copy(PANOPTIC / file, out / folder)
    question = {"from": "human", "value": "<image>\nDescribe the image."}
    records = [
        {"id": name, "image": name, "conversations": [question, {"from": "gpt", "value": caption}]}
        for name, caption in CAPTIONS.items()
    ]
    (out / "captions.json").write_text(json.dumps(records))


def rows(data: Path, **options: Any) -> dict[str, dict[str, Any]]:
    """A row of generic segmentation for each of the three files."""
    kind = "xsam.tasks.generic.GenericSegmentation"
    return {
        name: dict(
            type=kind,
            data={
                "type": "xsam.data.coco.CocoPanoptic",
                "annotations": f"{data}/{name}.json",
                "segments": f"{data}/segments",
                "images": f"{data}/images",
            },
            **options,
        )
        for name in ("both", "coco", "hf_39769")
    }


def train(stage: int, run: Path, sources: dict[str, Any], *overrides: str) -> list[dict[str, Any]]:
    """Train a stage of the embedded world's recipe on other data at SIDE pixels; returns its log."""
    config = ROOT / f"configs/shapes/stage{stage}.py"
    size = [f"model.seg_encoder.image_size={SIDE}", f"processor.seg_size={SIDE}"]
    mixture = {"type": "xsam.data.mixture.Mixture", "sources": sources}
    arguments = [f"mixture={mixture}", "stage.batch_size=2", *size, *overrides]
    assert main(["train", str(config), *arguments, "--work-dir", str(run)]) == 0
    return [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]


def test_two_scenes_through_all_stages(tmp_path: Path) -> None:
    data, runs = tmp_path / "data", [tmp_path / f"stage{n}" for n in (1, 2, 3)]
    data.mkdir()
    write_dataset(data)
    decoder = [
        "model.mask_decoder.num_queries=40", "model.pixel_decoder.depth=1", "criterion.num_points=8192",
        "stage.frozen=['*_encoder']", "stage.lr_scale={}",
    ]  # fmt: skip
    text = [
        f"processor.tokenizer={BASE}", "processor.max_length=3000",
        "model.llm.max_position_embeddings=4096", "model.llm.sliding_window=4096",
    ]  # fmt: skip

    train(
        1, runs[0], {"both": rows(data, closed_set=True, train=True)["both"]}, *decoder,
        f"benchmarks={rows(data, closed_set=True)}", f"stage.init_from=['{BASE}']", "stage.lr=2e-3",
        "stage.steps=400", "model.classifier.num_classes=133",
    )  # fmt: skip
    assert main(["evaluate", "--checkpoint", str(runs[0]), "--out", str(runs[0])]) == 0
    scores = json.loads((runs[0] / "results.json").read_text())["benchmarks"]
    assert scores["hf_39769"]["metrics"]["PQ"] >= 80
    assert scores["coco"]["metrics"]["PQ"] >= 70

    reader = {"type": "xsam.data.conversations.Conversations", "annotations": f"{data}/captions.json"}
    captions = {"type": "xsam.tasks.chat.Chat", "data": reader | {"images": f"{data}/images"}}
    log = train(
        2, runs[1], {"captions": captions | {"train": True}}, *text, f"stage.init_from=['{BASE}', '{runs[0]}']",
        "stage.steps=40",
    )  # fmt: skip
    assert log[-1]["loss"] < log[0]["loss"]

    log = train(
        3, runs[2], {"both": rows(data, train=True)["both"]}, *decoder, *text, f"benchmarks={rows(data)}",
        f"stage.init_from=['{runs[0]}', '{runs[1]}']", "stage.steps=60",
    )  # fmt: skip
    assert log[-1]["loss"] < log[0]["loss"]
    assert main(["evaluate", "--checkpoint", str(runs[2]), "--benchmarks", "both", "--out", str(runs[2])]) == 0

    images = [*sorted((data / "images").iterdir()), PHOTOS / "sam_truck.jpg", PHOTOS / "skimage_chelsea.png"]
    prompt = ["--prompt", "person, cat, remote, couch, sports ball; tree, grass, sky, blanket"]
    for run, asked in ((runs[0], []), (runs[2], prompt)):
        arguments = ["--checkpoint", str(run), "--image", *map(str, images), "--out", str(run / "pictures"), *asked]
        assert main(["predict", *arguments]) == 0
        assert {path.stem for path in (run / "pictures").glob("*.png")} == {path.stem for path in images}
