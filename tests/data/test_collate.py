from dataclasses import replace

import numpy as np

from xsam.data.collate import collate
from xsam.structures import IGNORE_INDEX, Encoded


def encoded(
    name: str,
    spans: list[int],
    segs: list[int],
    labels: list[int],
    target_segs: list[int],
    image: bool = True,
    shared: bool = False,
):
    """A row whose tokens carry these span and <SEG> numbers; masks are the cells 0, 1, .. of a 4 x 4 map."""
    T = len(spans)
    ids = np.full((1, 4, 4), -1, np.int16)
    ids.flat[: len(labels)] = np.arange(len(labels))
    side = 4 if image else 0
    return Encoded(
        id=name, key=100, input_ids=np.arange(1, T + 1), labels=np.full(T, 5), span_ids=np.array(spans, np.int64),
        seg_ids=np.array(segs, np.int64), pixel_values=np.zeros((3, side, side), np.uint8), seg_pixel_values=np.zeros((3, side, side), np.uint8),
        seg_size=(side, side), image_size=(side, side), target_ids=ids, target_labels=np.array(labels, np.int64),
        target_segs=np.array(target_segs, np.int64), shared_candidates=shared, region_points=np.zeros((0, 256, 2), np.float32), region_labels=np.zeros(0, np.int64), region_images=np.zeros(0, np.int64),
    )  # fmt: skip


def test_own_candidates_and_padding():
    a = encoded("a", [-1, 0, 1, 2, -1], [-1, -1, -1, -1, 0], [2, 0], [0, 0])
    chat = encoded("b", [-1, -1], [-1, -1], [], [], image=False)
    c = encoded("c", [0, -1, -1], [-1, -1, 0], [0], [0])
    batch = collate([a, chat, c])
    assert batch.ids == ("a", "b", "c")
    assert batch.image_index.tolist() == [0, -1, 1]  # a text-only row takes no image from the rows behind it
    assert len(batch.seg_pixel_values) == 2
    assert batch.lengths.tolist() == [5, 2, 3]
    assert batch.labels[1].tolist() == [5, 5] + [IGNORE_INDEX] * 3
    items = batch.items
    assert items.sample.tolist() == [0, 2]
    assert items.image.tolist() == [0, 1]
    assert items.candidates.tolist() == [[0, 1, 2], [3, -1, -1]]  # flat span numbers
    assert [t.labels.tolist() for t in items.targets] == [[2, 0], [0]]


def test_shared_candidates_are_those_of_the_contrast_group():
    two_turns = encoded("a", [0, -1, 1, -1], [-1, 0, -1, 1], [0, 1], [0, 1], shared=True)
    one_turn = encoded("b", [0, -1], [-1, 0], [0], [0], shared=True)
    batch = collate([two_turns, one_turn, replace(one_turn, id="c")], contrast=2)
    items = batch.items
    assert items.candidates.tolist() == [[0, 1, 2], [0, 1, 2], [0, 1, 2], [3, -1, -1]]
    assert [t.labels.tolist() for t in items.targets] == [[0], [1], [2], [0]]
    assert [t.index.tolist() for t in items.targets] == [[0], [1], [0], [0]]
    assert len(set(items.keys[:2])) == 2  # each item draws its own points


def test_a_sample_that_stands_twice_is_no_contrast_to_itself():
    a, b = (encoded(name, [0, -1], [-1, 0], [0], [0], shared=True) for name in "ab")
    items = collate([a, b, a]).items
    assert items.candidates.tolist() == [[0, 1, -1], [0, 1, 2], [1, 2, -1]]
    assert [t.labels.tolist() for t in items.targets] == [[0], [1], [1]]


def test_closed_set_has_one_item_without_text():
    batch = collate([encoded("a", [], [], [7, 3], [0, 0])])
    assert batch.items.seg.tolist() == [-1]
    assert batch.items.candidates.shape == (1, 0)
    assert batch.items.targets[0].labels.tolist() == [7, 3]
    assert batch.input_ids.shape == (1, 0)


def test_one_seg_without_masks_is_an_item_without_targets():
    batch = collate([encoded("a", [0, -1], [-1, 0], [], [])])
    assert len(batch.items) == 1
    assert batch.items.targets[0].index.tolist() == []


def offering(name: str, labels: list[int], slots: list[int], key: int = 100):
    """A row whose regions of these labels stand at the points label + 0.01 of each axis, on an image of its own."""
    row = replace(encoded(name, [0] * len(slots), [-1] * len(slots), [], []), key=key, slots=np.array(slots, np.int64))
    points = np.stack([np.full((256, 2), label + len(name) / 100, np.float32) for label in labels])
    return replace(row, region_points=points, region_labels=np.array(labels), region_images=np.full(len(labels), -1))


def test_slots_take_regions_of_their_label_from_the_contrast_group():
    a, b = offering("a", [1, 2], [1, 3, 2]), offering("bb", [3, 1], [3])
    seen = set()
    for key in range(20):
        batch = collate([replace(a, key=key), b, offering("ccc", [1, 2, 3, 4], [1])], contrast=2)
        labels = [round(float(p), 2) for p in batch.region_points[:, 0, 0]]
        images = batch.region_image.tolist()
        assert labels[1:3] == [3.02, 2.01]  # 3 is shown on the second image only, 2 on the first only
        assert images[1:3] == [1, 0]
        assert (labels[0], images[0]) in ((1.01, 0), (1.02, 1))
        seen.add(images[0])
    assert seen == {0, 1}  # the prompt comes from the own image, or from another that shows the same


def test_a_slot_of_something_that_nobody_shows_takes_what_the_row_does_not_show():
    a, b = offering("a", [1], [1, 9]), offering("bb", [1, 5], [1])
    batch = collate([a, b])
    assert batch.region_points[1, 0].tolist() == [np.float32(5.02)] * 2
    alone = collate([a])
    assert (alone.region_points[1] == -1).all()  # nothing else to show: outside of the image, all features zero


def test_reference_images_stand_behind_those_of_the_rows():
    a = offering("a", [7], [])
    reference = (a.pixel_values + 1, a.seg_pixel_values + 2, (3, 4))
    a = replace(a, region_images=np.array([0]), references=(reference,))
    batch = collate([a, encoded("b", [0, -1], [-1, 0], [0], [0])])
    assert len(batch.seg_pixel_values) == len(batch.pixel_values) == 3
    assert batch.image_index.tolist() == [0, 1]
    assert batch.region_image.tolist() == [2]
    assert batch.seg_sizes[2].tolist() == [3, 4]
    assert (batch.seg_pixel_values[2] == 2).all()
