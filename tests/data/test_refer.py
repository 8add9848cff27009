"""The readers of referring expressions: splits, sentences, masks, and pickles that want more than to be read."""

import json
import os
import pickle
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from xsam.data.masks import segmentation_mask
from xsam.data.refer import GRefCoco, RefCoco
from xsam.structures import BadSample, UserError

REFER = Path(__file__).parents[2] / "../shared/refdata/refer"


def ref(ann_id, split, *sentences, image_id, **extra):
    rows = [{"sent_id": i, "sent": text, "raw": text, "tokens": text.split()} for i, text in enumerate(sentences)]
    return {"ref_id": 7, "ann_id": ann_id, "image_id": image_id, "split": split, "sentences": rows} | extra


def annotation(ann_id, image_id, *polygon):
    return {"id": ann_id, "image_id": image_id, "category_id": 7, "segmentation": [list(polygon)], "area": 1}


@pytest.fixture
def folder(tmp_path):
    annotations = [
        annotation(1, 10, 0, 0, 3, 0, 3, 2, 0, 2),
        annotation(2, 10, 1, 1, 4, 1, 4, 4, 1, 4),
        annotation(3, 20, 0, 0, 5, 0, 5, 5, 0, 5),
    ]
    images = [{"id": i, "file_name": f"{i}.png", "height": 5, "width": 6} for i in (10, 20)]
    for i in (10, 20):
        Image.new("RGB", (6, 5)).save(tmp_path / f"{i}.png")
    write_instances(tmp_path, images=images, annotations=annotations)
    write_refs(
        tmp_path,
        ref(1, "train", "the Dog ", "left dog", "the dog", image_id=10),
        ref(3, "testA", "big dog", image_id=20, kind="attribute"),
        ref(2, "train", "right dog", image_id=10),
        ref(1, "train", "a dog", image_id=10),
    )
    write_grefs(
        tmp_path,
        ref([2, 1, 2], "train", "both dogs", image_id=10, no_target=False),
        ref([-1], "train", "the cat", "a cat", image_id=10, no_target=True),
        ref([3], "val", "the dog", image_id=20),
        ref([-1], "train", "no dog", image_id=20),
    )
    return tmp_path


def write_instances(folder, **content):
    (folder / "instances.json").write_text(json.dumps(content | {"categories": []}))


def write_refs(folder, *refs):
    (folder / "refs(unc).p").write_bytes(pickle.dumps(list(refs), protocol=0))


def write_grefs(folder, *refs):
    (folder / "grefs(unc).json").write_text(json.dumps(refs))


def read(folder, split="train"):
    return RefCoco(folder / "refs(unc).p", folder / "instances.json", folder, split)


def read_several(folder, split="train"):
    return GRefCoco(folder / "grefs(unc).json", folder / "instances.json", folder, split)


def test_expressions_of_a_split(folder):
    data = read(folder)
    (image,) = data
    assert (image.image, image.image_id, image.height, image.width) == (str(folder / "10.png"), "10", 5, 6)
    first, second = image.expressions
    assert (first.id, first.sentences, first.kinds) == ("1", ("a dog", "left dog", "the dog"), ("", "", ""))
    assert (second.id, second.sentences) == ("2", ("right dog",))
    expected = np.zeros((2, 5, 6), bool)
    expected[0, :2, :3] = expected[1, 1:4, 1:4] = True
    assert (np.concatenate([image.masks(first.objects), image.masks(second.objects)]) == expected).all()
    assert [image.expressions[0].kinds for image in read(folder, "testA")] == [("attribute",)]


def test_questions_and_their_names(folder):
    data = read(folder)
    assert data.questions().tolist() == [[0, 0, 0], [0, 0, 1], [0, 0, 2], [0, 1, 0]]
    assert [data.id(*row) for row in data.questions().tolist()] == ["1-0", "1-1", "1-2", "2-0"]
    assert data.id(0) == "10"


def test_several_targets_and_none(folder):
    first, second = read_several(folder)
    assert (first.image_id, second.image_id) == ("10", "20")
    both, absent = first.expressions
    assert (both.sentences, both.objects) == (("both dogs",), (1, 0))
    assert first.masks(both.objects).sum((1, 2)).tolist() == [9, 6]
    assert (absent.sentences, absent.objects) == (("a cat", "the cat"), ())
    assert first.masks(absent.objects).shape == (0, 5, 6)
    names = [data.id(*row) for data in [read_several(folder)] for row in data.questions().tolist()]
    assert names == ["0-0", "1-0", "1-1", "3-0"]  # the number of the ref in the file


def test_an_unknown_split_names_those_there_are(folder):
    with pytest.raises(UserError, match=r"refs\(unc\)\.p: has no split 'val'; there is: testA, train"):
        read(folder, "val")
    with pytest.raises(UserError, match=r"grefs\(unc\)\.json: has no split 'test'; there is: train, val"):
        read_several(folder, "test")


class Command:
    def __reduce__(self):
        return os.system, ("exit 1",)


@pytest.mark.parametrize("content", [[Command()], OrderedDict(), {1, 2}, Command])
def test_a_pickle_of_more_than_plain_data_is_refused(folder, content):
    (folder / "refs(unc).p").write_bytes(pickle.dumps(content, protocol=2))
    with pytest.raises(UserError, match=r"refs\(unc\)\.p: refused: it asks for"):
        read(folder)


@pytest.mark.parametrize("content", [b"", b"garbage", pickle.dumps([1]), pickle.dumps("text"), b"\x80\x04]\x94("])
def test_a_damaged_pickle_is_named(folder, content):
    (folder / "refs(unc).p").write_bytes(content)
    with pytest.raises(UserError, match=r"refs\(unc\)\.p: "):
        read(folder)


GOOD = ref(2, "train", "good dog", image_id=10)


@pytest.mark.parametrize(
    "bad, problem",
    [
        (ref(99, "train", "a dog", image_id=10), "do not have annotation 99 exactly once"),
        (ref(1, "train", "a dog", image_id=30), "do not have image 30 exactly once"),
        (ref(1, "train", "a dog", image_id=20), "annotation 1 is on image 10, not 20"),
        (ref("1", "train", "a dog", image_id=10), "'ann_id' is '1'"),
        (ref(1, "train", "a <SEG>", image_id=10), "'sent' is 'a <SEG>'"),
        (ref(1, "train", " ", image_id=10), "'sent' is ''"),
        (ref(1, "train", image_id=10), "has no sentence"),
        (ref(1, "train", image_id=10, sentences="a dog"), "'sentences' is 'a dog'"),
        (ref(1, None, "a dog", image_id=10), "'split' is None"),
        ("a dog", "is 'a dog', not an object"),
    ],
)
def test_a_ref_that_cannot_be_used_is_named_and_leaves_the_others(folder, bad, problem):
    write_refs(folder, GOOD, bad)
    data = read(folder)
    refused = [i for i in range(len(data)) if data.id(i).startswith("record")]
    assert refused == [0]
    with pytest.raises(BadSample, match=rf"ref 1 of refs\(unc\)\.p: .*{problem}"):
        data[0]
    assert data[1].expressions[0].sentences == ("good dog",)
    assert data.questions().tolist() == [[0, 0, 0], [1, 0, 0]]  # it is counted
    assert data.id(0, 0, 0) == "record 0"
    write_refs(folder, bad)
    with pytest.raises(UserError, match="none of its 1 records can be used|has no split"):
        read(folder)


@pytest.mark.parametrize(
    "bad, problem",
    [
        (ref([1], "train", "a dog", image_id=10, no_target=True), "'no_target' is True, 'ann_id' is"),
        (ref([-1], "train", "a dog", image_id=10, no_target=False), "'no_target' is False, 'ann_id' is"),
        (ref([], "train", "a dog", image_id=10), "'no_target' is False, 'ann_id' is"),
        (ref([1, 3], "train", "a dog", image_id=10), "annotation 3 is on image 20"),
        (ref([[1]], "train", "a dog", image_id=10), r"do not have annotation \[1\]"),
        (ref(1, "train", "a dog", image_id=10), "'ann_id' is 1"),
    ],
)
def test_a_gref_that_contradicts_itself_is_named(folder, bad, problem):
    write_grefs(folder, ref([2], "train", "good dog", image_id=10), bad)
    with pytest.raises(BadSample, match=rf"ref 1 of grefs\(unc\)\.json: .*{problem}"):
        read_several(folder)[0]


def test_ids_that_occur_twice_are_not_guessed(folder):
    content = json.loads((folder / "instances.json").read_text())
    content["annotations"].append(annotation(1, 10, 0, 0, 1, 0, 1, 1))
    write_instances(folder, images=content["images"], annotations=content["annotations"])
    with pytest.raises(BadSample, match="annotation 1 exactly once"):
        read(folder)[0]


@pytest.mark.parametrize(
    "segmentation, problem",
    [
        ([[0, 0, 1]], "a polygon needs three points"),
        ({"size": [5, 5], "counts": [25]}, r"the RLE has the size \[5, 5\]"),
        ({"size": [5, 6], "counts": [30]}, "the mask is empty"),
        (None, "the segmentation is empty or not a list"),
    ],
)
def test_a_bad_mask_is_named(folder, segmentation, problem):
    content = json.loads((folder / "instances.json").read_text())
    content["annotations"][0]["segmentation"] = segmentation
    write_instances(folder, images=content["images"], annotations=content["annotations"])
    (image,) = read(folder)
    with pytest.raises(BadSample, match=f"annotation 1: {problem}"):
        image.masks(image.expressions[0].objects)
    assert image.masks(image.expressions[1].objects).any()


def test_an_image_of_another_size_is_named(folder):
    Image.new("RGB", (7, 5)).save(folder / "10.png")
    with pytest.raises(BadSample, match=r"image 10: .*10\.png is \(5, 7\), its annotations say \(5, 6\)"):
        read(folder)[0]
    (folder / "10.png").unlink()
    with pytest.raises(BadSample, match=r"10\.png: cannot be read"):
        read(folder)[0]


def test_a_missing_file_is_named(folder):
    (folder / "refs(unc).p").unlink()
    with pytest.raises(UserError, match=r"refs\(unc\)\.p: cannot be read \(No such file"):
        read(folder)


@pytest.mark.skipif(not REFER.is_dir(), reason="reference data are not here")
def test_grefcoco_layout(tmp_path):
    """The same expressions as PSALM's builder makes of the files: sentences, and the union of the masks."""
    rows = json.loads((REFER / "grefcoco_val_psalm.json").read_text())
    expected = {}
    for row in rows:
        height, width = row["image_info"]["height"], row["image_info"]["width"]
        masks = [segmentation_mask(a["segmentation"], height, width) for a in row["anns"]]
        (sentence,) = [sentence["sent"] for sentence in row["instruction"]]
        expected[str(row["new_img_id"])] = sentence, len(masks), np.sum(masks, axis=0).astype(bool)
        Image.new("1", (width, height)).save(tmp_path / row["image_info"]["file_name"], "PNG")
    data = GRefCoco(REFER / "grefs_layout.json", REFER / "instances_layout.json", tmp_path, "val")
    found = {}
    for image in data:
        for expression in image.expressions:
            (sentence,) = expression.sentences
            found[expression.id] = sentence, len(expression.objects), image.masks(expression.objects).any(0)
    assert found.keys() == expected.keys()
    assert len(found) == len(data.questions()) == 54
    for name, (sentence, count, mask) in expected.items():
        assert found[name][:2] == (sentence, count)
        assert (found[name][2] == mask).all()
