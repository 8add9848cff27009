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
        target_segs=np.array(target_segs, np.int64), shared_candidates=shared, region_points=np.zeros((0, 256, 2), np.float32),
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
    batch = collate([two_turns, one_turn, one_turn], contrast=2)
    items = batch.items
    assert items.candidates.tolist() == [[0, 1, 2], [0, 1, 2], [0, 1, 2], [3, -1, -1]]
    assert [t.labels.tolist() for t in items.targets] == [[0], [1], [2], [0]]
    assert [t.index.tolist() for t in items.targets] == [[0], [1], [0], [0]]
    assert len(set(items.keys[:2])) == 2  # each item draws its own points


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
