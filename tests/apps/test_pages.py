"""The preview page: what it shows is what the arrays hold, and nothing of the data is taken for HTML."""

import base64
import io
import json
import re

import numpy as np
import pytest
from PIL import Image

from xsam.apps.pages import preview
from xsam.cli import main
from xsam.data.masks import encode_rle
from xsam.visualize import OPACITY, color

NAME = '<script>alert("x")</script> & co'


def pictures(page: str) -> list[np.ndarray]:
    codes = re.findall(r'<img src="data:image/jpeg;base64,([^"]+)"', page)
    return [np.asarray(Image.open(io.BytesIO(base64.b64decode(code))), float) for code in codes]


@pytest.fixture
def options(world) -> list[str]:
    return [f"processor.tokenizer={world}/base", "processor.seg_size=96", "processor.vision_size=96"]


@pytest.fixture
def own(tmp_path):
    """A picture of 24 x 48 with two touching halves of one class and nothing of another, and one without its file."""
    Image.new("RGB", (48, 24), "grey").save(tmp_path / "a.png")
    left = np.zeros((24, 48), bool)
    left[:, :20] = True
    right = np.zeros((24, 48), bool)
    right[:, 20:40] = True
    rles = [encode_rle(mask) for mask in (left, right, left)]
    content = {
        "images": [{"id": n, "file_name": f, "height": 24, "width": 48} for n, f in ((1, "a.png"), (2, "gone.png"))],
        "annotations": [
            {"id": n, "image_id": 1 + n // 3, "category_id": 1, "segmentation": rle, "area": 480}
            for n, rle in enumerate(rles, start=1)
        ],
        "categories": [{"id": 1, "name": "cat"}, {"id": 2, "name": NAME}],
    }
    path = tmp_path / "own.json"
    path.write_text(json.dumps(content))
    return path


def test_a_file_of_ones_own(own, options, tmp_path, capsys):
    out = tmp_path / "page"
    for seed in "ABCDEFGH":  # names are drawn: some row lists the second class
        own = own.rename(tmp_path / f"{seed}.json")
        page = preview(str(own), out, options).read_text()
        if "script" in page:
            break
    assert "<script" not in page
    assert "&lt;script&gt;alert(&quot;x&quot;)&lt;/script&gt; &amp; co" in page
    assert not re.search(r"https?://|src=\"/", page)
    assert "sample 1 is refused" in page
    assert "gone.png: cannot be read as an image" in page
    assert "2 masks; image (24, 48), in the frame (48, 96)" in page
    assert page.count("<b>&lt;SEG&gt;</b><sub>0</sub>") == 1
    assert [path.name for path in out.iterdir()] == ["index.html"]

    (drawn,) = pictures(page)
    scale = drawn.shape[1] // 96
    assert drawn.shape == (48 * scale, 96 * scale, 3)
    grey = np.asarray(Image.open(tmp_path / "a.png"), float)[0, 0]
    inside = (1 - OPACITY) * grey + OPACITY * np.array(color(0))
    for x in (10, 70):  # both halves have the colour of their phrase
        assert np.abs(drawn[40 * scale, x * scale] - inside).max() <= 2
    assert np.abs(drawn[40 * scale, 90 * scale] - grey).max() <= 2
    middle = drawn[40 * scale, 36 * scale : 44 * scale]
    assert (np.abs(middle - inside).max(-1) > 20).any()  # with a line between them


@pytest.fixture
def config(world, tmp_path):
    """Three sources of the embedded world, one of them without pictures of its own."""
    prompted = {
        "type": "xsam.data.region_records.CocoVgd",
        "annotations": str(world / "annotations/instances_val.json"),
        "images": str(world / "val"),
    }
    talk = {
        "type": "xsam.data.conversations.Conversations",
        "annotations": str(world / "conversations/val.json"),
        "images": str(world),
    }
    sources = {
        "boxes": {"type": "xsam.tasks.interactive.InteractiveSegmentation", "data": prompted, "prompt": "box"},
        "regions": {"type": "xsam.tasks.visual_grounding.VisualGrounding", "data": {**prompted, "scale": 0.2}},
        "chat": {"type": "xsam.tasks.chat.Chat", "data": talk},
    }
    for node in sources.values():
        node["train"] = True
    processor = {"type": "xsam.data.prompt.Processor", "tokenizer": f"{world}/base", "seg_size": 96, "vision_size": 96}
    same = {"again": {**sources["boxes"], "published": {"mIoU": 1.0}}}
    path = tmp_path / "config.json"
    path.write_text(json.dumps({"mixture": {"sources": sources}, "benchmarks": same, "processor": processor}))
    return path


def test_the_same_samples_each_time(config, tmp_path):
    for name in ("one", "two"):
        assert main(["data", "preview", str(config), "--count", "3", "--out", str(tmp_path / name)]) == 0
    page = (tmp_path / "one/index.html").read_text()
    assert page == (tmp_path / "two/index.html").read_text()
    names = [f"mixture.sources.{name}" for name in ("boxes", "regions", "chat")]
    assert re.findall("<h2>(.*?)</h2>", page) == names  # the benchmark has the data of the boxes
    assert page.count("<article>") == 9
    assert page.count("class=said") >= 9
    assert len(pictures(page)) >= 6
    assert "regions that are drawn on" in page  # of another sample of the group


def test_visual_prompts_are_drawn(config, tmp_path):
    page = preview(str(config), tmp_path / "page", samples=1).read_text()
    assert "&lt;region&gt;<sub>0</sub>" in page
    # 256 dots of some pixels each, in the colour of the phrase; the thin line around the mask alone has less than 600
    assert (np.abs(pictures(page)[0] - np.array(color(0))).max(-1) <= 10).sum() > 1200


def test_samples_that_share_a_picture_or_hold_one(world, tmp_path):
    image = next((world / "val").iterdir())
    said = [{"from": "human", "value": "<image>What is it?"}, {"from": "gpt", "value": "A shape."}]
    records = [{"id": name, "image": image.name, "conversations": said} for name in "ab"]
    (tmp_path / "talk.json").write_text(json.dumps(records))
    row = ("1", base64.b64encode(image.read_bytes()).decode(), "Is it round?", "Yes")
    (tmp_path / "t.tsv").write_text("\t".join(("index", "image", "question", "answer")) + "\n" + "\t".join(row) + "\n")
    data = {"annotations": str(tmp_path / "talk.json"), "images": str(image.parent)}
    rows = {
        "talk": ("chat.Chat", {"type": "xsam.data.conversations.Conversations", **data}),
        "table": (
            "multiple_choice.MultipleChoice",
            {"type": "xsam.data.tsv.TsvQuestions", "table": str(tmp_path / "t.tsv")},
        ),
    }
    sources = {
        name: {"type": f"xsam.tasks.{task}", "data": reader, "train": True} for name, (task, reader) in rows.items()
    }
    processor = {"type": "xsam.data.prompt.Processor", "tokenizer": f"{world}/base", "seg_size": 96, "vision_size": 96}
    config = tmp_path / "config.json"
    config.write_text(json.dumps({"mixture": {"sources": sources}, "processor": processor}))
    page = preview(str(config), tmp_path / "page").read_text()
    captions = re.findall("<figcaption>(.*?)</figcaption>", page)
    assert captions == [str(image), str(image), "data:image/jpeg;base64"]
    assert len(pictures(page)) == 3


def test_mistakes_are_one_line(options, tmp_path, capsys):
    assert main(["data", "preview", str(tmp_path / "no.json"), "--out", str(tmp_path / "x"), *options]) == 2
    assert "no.json: no such file" in capsys.readouterr().err
