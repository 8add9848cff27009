"""The RefCOCO reader: splits, sentences, masks, and pickles that want more than to be read."""

import json
import os
import pickle
from collections import OrderedDict

import pytest

from xsam.data.refer import RefCoco
from xsam.structures import UserError


def ref(ann_id, split, *sentences, **extra):
    rows = [{"sent_id": i, "sent": text, "raw": text, "tokens": text.split()} for i, text in enumerate(sentences)]
    return {"ref_id": ann_id, "ann_id": ann_id, "split": split, "sentences": rows} | extra


@pytest.fixture
def folder(tmp_path):
    boxes = {
        1: (10, [0, 0, 3, 0, 3, 2, 0, 2]),
        2: (10, [1, 1, 4, 1, 4, 4, 1, 4]),
        3: (20, [0, 0, 5, 0, 5, 5, 0, 5]),
    }
    annotations = [
        {"id": i, "image_id": image, "category_id": 7, "segmentation": [box], "area": 1, "iscrowd": 0}
        for i, (image, box) in boxes.items()
    ]
    images = [{"id": i, "file_name": f"{i}.jpg", "height": 5, "width": 6} for i in (10, 20)]
    content = {"images": images, "annotations": annotations, "categories": [{"id": 7, "name": "dog"}]}
    (tmp_path / "instances.json").write_text(json.dumps(content))
    refs = [
        ref(1, "train", "the Dog ", "left dog", "the dog", image_id=10),
        ref(3, "testA", "big dog", image_id=20, kind="attribute"),
        ref(2, "train", "right dog", image_id=10),
    ]
    (tmp_path / "refs(unc).p").write_bytes(pickle.dumps(refs, protocol=0))
    return tmp_path


def read(folder, split="train"):
    return RefCoco(folder / "refs(unc).p", folder / "instances.json", folder, split)


def test_objects_of_a_split(folder):
    data = read(folder)
    assert len(data) == 2
    first = data[0]
    assert (first.image, first.image_id, first.instance.id) == (str(folder / "10.jpg"), "10", 1)
    assert first.sentences == ("left dog", "the dog")
    assert first.mask().shape == (5, 6)
    assert first.mask().sum() == 6
    assert data.by_image == [(0, 1)]
    assert first.kinds == ("", "")
    assert data[1].sentences == ("right dog",)
    assert [item.kinds for item in read(folder, "testA")] == [("attribute",)]


def test_an_unknown_split_names_those_there_are(folder):
    with pytest.raises(UserError, match=r"refs\(unc\)\.p: has no split 'val'; there is: testA, train"):
        read(folder, "val")


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


def test_a_ref_without_its_annotation_is_named(folder):
    (folder / "refs(unc).p").write_bytes(pickle.dumps([ref(99, "train", "a dog", image_id=10)]))
    with pytest.raises(UserError, match=r"instances\.json: lacks annotation 99"):
        read(folder)


def test_a_missing_file_is_named(folder):
    (folder / "refs(unc).p").unlink()
    with pytest.raises(UserError, match=r"refs\(unc\)\.p: cannot be read \(No such file"):
        read(folder)
