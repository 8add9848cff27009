"""Readers of grounded captions, on small files in each of the real layouts."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from xsam.data.gcg import GcgPairs, GrandF
from xsam.data.masks import decode_rle, encode_rle
from xsam.structures import BadSample, UserError

REFDATA = Path(__file__).parents[2] / "../shared/refdata"
CAPTION = 'A dog and a Dog house, near "the dog".'


def left(width: int) -> dict:
    """RLE of the first columns of a 2 x 4 image."""
    mask = np.zeros((2, 4), bool)
    mask[:, :width] = True
    return encode_rle(mask)


def read(folder: Path, layout: str, content) -> GrandF:
    path = folder / f"{layout}.json"
    path.write_text(json.dumps(content))
    return GrandF(path, folder, layout)


def grandf(folder: Path, *, caption: str = CAPTION, groundings: dict, **more) -> GrandF:
    size = {"height": 2, "width": 4}
    return read(
        folder, "grandf", [size | {"file_name": "a/1.jpg", "caption": caption, "groundings": groundings} | more]
    )


def at(begin: int, end: int, *masks: dict) -> dict:
    return {"token_positives": [begin, end], "rle_masks": list(masks)}


def phrases(record) -> list[str]:
    return [record.caption[begin:end] for begin, end in record.spans]


def test_grandf(tmp_path):
    data = grandf(tmp_path, groundings={"the dog": at(29, 36, left(3), left(1)), "a dog": at(0, 5, left(2))})
    (record,) = data
    assert (record.image, record.image_id, record.height, record.width) == (str(tmp_path / "a/1.jpg"), "1", 2, 4)
    assert phrases(record) == ["A dog", "the dog"]  # in the order of the caption, in its case
    assert (record.owners, record.labels) == ((0, 1, 1), ("A dog", "the dog", "the dog"))
    assert record.masks()[:, 0].sum(1).tolist() == [2, 3, 1]
    assert data.id(0) == "0"


def test_a_phrase_stands_where_the_file_says_or_at_its_nearest_words(tmp_path):
    places = {"dog": 31, " dog ": 16, "DOG": 3}  # stated rightly, beside the second, inside a word before the first
    for phrase, begin in places.items():
        (record,) = grandf(tmp_path, groundings={phrase: at(begin, begin + 3, left(1))})
        assert record.spans == {31: ((33, 36),), 16: ((12, 15),), 3: ((2, 5),)}[begin]
    (record,) = grandf(tmp_path, groundings={"og": at(3, 5, left(1)), "ear": at(0, 3, left(1))})
    assert phrases(record) == ["og"]  # half a word only where the file says so


def test_places_that_overlap(tmp_path):
    groundings = {
        "dog": at(2, 5, left(1)),  # begins inside the next one
        "A dog": at(0, 5, left(2)),  # begins with the next one, shorter
        "A dog and": at(0, 9, left(3)),
        " a Dog house": at(9, 21, left(4)),
        "a cat": at(0, 5, left(4)),  # is not there
        "near": at(23, 27),  # has no mask
    }
    (record,) = grandf(tmp_path, groundings=groundings)
    assert phrases(record) == ["A dog and", "a Dog house"]
    assert record.masks()[:, 0].sum(1).tolist() == [3, 4]


def test_refcocog(tmp_path):
    refs = [{"sentence": "dog house", "segmentation": [[0, 0, 2, 0, 2, 2, 0, 2]]}]
    refs += [{"sentence": "A DOG", "segmentation": left(n)} for n in (3, 4)] + [
        {"sentence": "cat", "segmentation": left(1)}
    ]
    Image.new("RGB", (4, 2)).save(tmp_path / "x.png")
    (record,) = read(tmp_path, "refcocog", [{"17": {"img_file_name": "x.png", "caption": CAPTION, "refs": refs}}])
    assert phrases(record) == ["A dog", "Dog house"]
    assert record.owners == (0, 0, 1)
    assert record.height == 0  # not in the file: the image says it
    assert record.masks()[:, 0].sum(1).tolist() == [3, 4, 2]


def test_flickr(tmp_path):
    images = [{"id": n, "file_name": f"{n}.jpg", "caption": CAPTION, "height": 2, "width": 4} for n in (1, 2, 3)]
    rows = [(3, [[0, 5]], 1), (1, [[33, 36], [2, 5]], 2), (3, [[0, 5]], 4)]
    annotations = [
        {"id": n, "image_id": image, "tokens_positive": places, "sam_mask": left(width)}
        for n, (image, places, width) in enumerate(rows)
    ]
    data = read(tmp_path, "flickr", {"images": images, "annotations": annotations})
    first, second = data  # image 2 has no annotation
    assert (first.image_id, phrases(first), first.owners) == ("1", ["dog", "dog"], (0, 1))  # every mention
    assert (second.image_id, phrases(second), second.owners) == ("3", ["A dog"], (0, 0))
    assert second.masks()[:, 0].sum(1).tolist() == [1, 4]


def pairs(folder: Path, annotations: list, captions: list, images: list | None = None) -> GcgPairs:
    images = images or [{"id": "sa_1", "height": 2, "width": 4}, {"id": "sa_2"}]
    (folder / "m.json").write_text(json.dumps({"images": images, "annotations": annotations}))
    (folder / "c.json").write_text(json.dumps({"images": images, "annotations": captions}))
    return GcgPairs(folder / "m.json", folder / "c.json", folder)


def mask_row(image: str, width: int) -> dict:
    return {"image_id": image, "category_id": 1, "segmentation": left(width)}


def caption_row(image: str, *labels: str) -> dict:
    return {"image_id": image, "caption": CAPTION, "labels": labels}


def test_val_pairs(tmp_path):
    masks = [mask_row("sa_2", 1), mask_row("sa_1", 2), mask_row("sa_2", 3)]
    data = pairs(tmp_path, masks, [caption_row("sa_2", "a", "b"), caption_row("sa_1", "c")])
    first, second = data
    assert (first.image, first.caption, first.labels) == (str(tmp_path / "sa_1.jpg"), CAPTION, ("c",))
    assert (second.labels, second.spans, second.height) == (("a", "b"), (), 0)
    assert [data.id(0), data.id(1)] == ["sa_1", "sa_2"]
    assert first.masks()[0, 0].sum() == 2


def test_a_val_image_without_its_caption_is_named(tmp_path):
    data = pairs(tmp_path, [mask_row("sa_1", 1), mask_row("sa_2", 1)], [caption_row("sa_1", "a")])
    assert data.id(1) == "record 1"
    with pytest.raises(BadSample, match="m.json, image sa_2: has 0 captions and 1 masks"):
        data[1]


GOOD = {"A dog": at(0, 5, left(2))}


@pytest.mark.parametrize(
    "change, problem",
    [
        ({"caption": 5}, "record 1: 'caption' is 5"),
        ({"file_name": None}, "record 1: 'file_name' is None"),
        ({"height": 0}, "record 1: 'height' is 0"),
        ({"width": "4"}, "record 1: 'width' is '4'"),
        ({"groundings": []}, "record 1: 'groundings' is \\[\\]"),
        ({"groundings": {"A dog": {"rle_masks": []}}}, "record 1: has no 'token_positives'"),
        ({"groundings": {"A dog": at(0, "5", left(2))}}, "record 1: the place of a phrase is \\[0, '5'\\]"),
        ({"groundings": {"A cat": at(0, 5, left(2))}}, "record 1: no phrase with a mask stands in the caption"),
        ({"groundings": {"A dog": at(0, 5, left(0))}}, "image 1, mask 0: the mask is empty"),
        ({"groundings": {"A dog": at(0, 5, left(2) | {"size": [4, 2]})}}, "image 1, mask 0: the RLE has the size"),
    ],
)
def test_a_bad_record_is_named(tmp_path, change, problem):
    record = {"file_name": "1.jpg", "height": 2, "width": 4, "caption": CAPTION, "groundings": GOOD}
    data = read(tmp_path, "grandf", [record, record | change])
    assert data[0].masks().any()
    with pytest.raises(BadSample, match=problem):
        data[1].masks()


def test_a_foreign_file_is_refused(tmp_path):
    with pytest.raises(UserError, match="not a JSON list"):
        read(tmp_path, "refcocog", {"17": {}})
    with pytest.raises(UserError, match="has no list images, annotations"):
        read(tmp_path, "flickr", {})
    with pytest.raises(UserError, match="layout='psg' is unknown; GranD-f has grandf, refcocog, flickr"):
        GrandF(tmp_path / "none.json", tmp_path, "psg")
    with pytest.raises(UserError, match="cannot be read"):
        GrandF(tmp_path / "none.json", tmp_path, "grandf")
    with pytest.raises(UserError, match="annotation 0: image sa_9 is not among the images"):
        pairs(tmp_path, [mask_row("sa_9", 1)], [])
    with pytest.raises(UserError, match="image 1: its id sa_1 is repeated"):
        pairs(tmp_path, [], [], [{"id": "sa_1"}, {"id": "sa_1"}])


@pytest.mark.skipif(not REFDATA.is_dir(), reason="reference data are not here")
def test_reference_files():
    folder = REFDATA / "gcg"
    rows = json.loads((folder / "grandf_layout.json").read_text())
    for record, row in zip(GrandF(folder / "grandf_layout.json", folder, "grandf"), rows, strict=True):
        places = {name: grounding["token_positives"] for name, grounding in row["groundings"].items()}
        assert {record.caption[b:e]: [b, e] for b, e in record.spans} == places
        masks = [rle for grounding in row["groundings"].values() for rle in grounding["rle_masks"]]
        assert (record.masks() == np.stack([decode_rle(rle) for rle in masks])).all()
    truth = json.loads((folder / "val_gcg_coco_mask_gt.json").read_text())
    data = GcgPairs(folder / "val_gcg_coco_mask_gt.json", folder / "val_gcg_coco_caption_gt.json", folder)
    assert [record.image_id for record in data] == [image["id"] for image in truth["images"]]
    assert sum(record.masks().sum() for record in data) == sum(row["area"] for row in truth["annotations"])
    assert all(len(record.labels) == len(record.segmentations) for record in data)
