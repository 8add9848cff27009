import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from xsam.data import postprocess
from xsam.structures import ItemOutput

Size = tuple[int, int]
PARITY = Path(__file__).parents[2] / "../shared/parity"


def answer(
    masks: Tensor, classes: Tensor, frame: int = 8, seg_size: Size = (8, 8), image_size: Size = (8, 8)
) -> ItemOutput:
    """An item's logits; by default nothing is resized."""
    return ItemOutput(mask_logits=masks, class_logits=classes, frame=frame, seg_size=seg_size, image_size=image_size)


def queries(*rows: tuple[slice, int, float], classes: int = 4) -> ItemOutput:
    """Queries that each cover some columns of an 8 x 8 map, with a class and its probability."""
    masks = torch.full((len(rows), 8, 8), -20.0)
    probabilities = torch.full((len(rows), classes + 1), 1e-6)
    for query, (columns, label, probability) in enumerate(rows):
        masks[query, :, columns] = 20.0
        probabilities[query, label] = probability
        probabilities[query, -1] = 1 - probability
    return answer(masks, probabilities.log())


def test_restore_goes_through_the_whole_frame() -> None:
    logits = torch.randn(3, 8, 8, generator=torch.Generator().manual_seed(0))
    before = logits.clone()
    for frame, seg_size in ((32, (20, 32)), (32, (32, 5)), (30, (17, 30)), (32, (32, 32))):
        whole = F.interpolate(logits[None], (frame, frame), mode="bilinear", align_corners=False)
        part = whole[:, :, : seg_size[0], : seg_size[1]]
        expected = F.interpolate(part, (23, 41), mode="bilinear", align_corners=False)[0]
        output = answer(logits, torch.zeros(3, 2), frame, seg_size, (23, 41))
        torch.testing.assert_close(postprocess.restore(output, torch.arange(3)), expected, rtol=0, atol=0)
    assert torch.equal(logits, before)


def test_panoptic_never_uses_an_id_twice() -> None:
    output = queries((slice(0, 2), 3, 0.7), (slice(2, 4), 0, 0.9), (slice(4, 6), 3, 0.8), (slice(6, 8), 1, 0.9))
    ids, segments = postprocess.panoptic(output, stuff={2, 3})
    assert ids.dtype == torch.int32
    assert ids[0].tolist() == [1, 1, 2, 2, 1, 1, 3, 3]
    assert [segment[:2] for segment in segments] == [(1, 3), (2, 0), (3, 1)]
    assert [segment[2] for segment in segments] == pytest.approx([0.8, 0.9, 0.9], abs=1e-4)


def test_panoptic_thresholds() -> None:
    # The second query wins 4 of the 8 columns that it claims, the third is too improbable to reach `mask`.
    rows = (slice(0, 4), 0, 0.9), (slice(0, 8), 1, 0.8), (slice(4, 5), 2, 0.4)
    output = queries(*rows)
    ids, segments = postprocess.panoptic(output, stuff=())
    assert ids[0].tolist() == [1, 1, 1, 1, 0, 0, 0, 0]
    assert len(segments) == 1
    ids, segments = postprocess.panoptic(output, stuff=(), overlap=0.49)
    assert ids[0].tolist() == [1, 1, 1, 1, 2, 2, 2, 2]
    ids, segments = postprocess.panoptic(output, stuff=(), overlap=0.5)  # not more than half
    assert ids[0].tolist() == [1, 1, 1, 1, 0, 0, 0, 0]
    ids, segments = postprocess.panoptic(output, stuff=(), score=0.85)
    assert [segment[1] for segment in segments] == [0]
    ids, segments = postprocess.panoptic(output, stuff=(), score=0.95)
    assert (ids.tolist(), segments) == (torch.zeros(8, 8).tolist(), [])


def test_queries_that_cannot_be_segments_still_take_pixels() -> None:
    # The second query is below `mask`, so it is no segment; where the first is unsure it wins all the same.
    output = queries((slice(0, 6), 0, 0.9), (slice(4, 8), 1, 0.4))
    output.mask_logits[0, :, 5] = -1.0
    ids, segments = postprocess.panoptic(output, stuff=())
    assert ids[0].tolist() == [1, 1, 1, 1, 1, 0, 0, 0]
    assert [segment[:2] for segment in segments] == [(1, 0)]
    ids, _ = postprocess.panoptic(output, stuff=(), score=0.5)
    assert ids[0].tolist() == [1] * 8
    nothing = queries((slice(0, 6), 0, 0.4), (slice(4, 8), 1, 0.4))
    assert postprocess.panoptic(nothing, stuff=())[1] == []
    assert not postprocess.panoptic(nothing, stuff=())[0].any()


def test_semantic_sums_over_queries() -> None:
    # Two improbable queries of class 2 together outweigh one of class 1.
    output = queries((slice(0, 8), 1, 0.5), (slice(4, 8), 2, 0.3), (slice(4, 8), 2, 0.3))
    labels = postprocess.semantic(output)
    assert labels.dtype == torch.int64
    assert labels[0].tolist() == [1, 1, 1, 1, 2, 2, 2, 2]


def test_instances_rank_pairs_and_drop_empty_masks() -> None:
    output = queries((slice(1, 3), 0, 0.6), (slice(0, 0), 1, 0.9), (slice(5, 8), 1, 0.3))
    output.class_logits[0, [2, 4]] = torch.tensor([0.35, 0.05]).log()  # the first query stands for two classes
    found, labels, scores, boxes = postprocess.instances(output)
    order = scores.argsort(descending=True)
    assert labels[order].tolist() == [0, 2]  # three pairs are taken, that of the empty mask falls out
    assert boxes[order].tolist() == [[1, 0, 3, 8], [1, 0, 3, 8]]
    assert found.dtype == torch.bool
    assert found[0, 0].tolist() == [False, True, True, False, False, False, False, False]
    assert len(postprocess.instances(output, top=4)[1]) == 3
    assert postprocess.instances(output, top=4, score=0.5)[1].tolist() == [0]
    # Stuff takes no place: of three pairs without class 0, one is of the empty mask.
    assert sorted(postprocess.instances(output, without=[0])[1].tolist()) == [1, 2]
    assert postprocess.instances(output, without=range(4))[1].tolist() == []
    nothing = postprocess.instances(output, score=1.0)
    assert [tuple(part.shape) for part in nothing] == [(0, 8, 8), (0,), (0,), (0, 4)]


def test_instance_score_is_probability_times_mean_sigmoid() -> None:
    output = queries((slice(0, 2), 0, 0.5))
    output.mask_logits[0, :, :2] = torch.tensor([1.0, 3.0])
    probability = output.class_logits.softmax(-1)[0, 0]
    _, _, scores, _ = postprocess.instances(output)
    torch.testing.assert_close(scores[0], probability * torch.tensor([1.0, 3.0]).sigmoid().mean())


def test_best_mask_of_a_column() -> None:
    output = queries((slice(0, 3), 0, 0.6), (slice(3, 8), 1, 0.7))
    mask, score = postprocess.best_mask(output)
    assert (mask[0].tolist(), score) == ([True] * 3 + [False] * 5, pytest.approx(0.6, abs=1e-4))
    mask, score = postprocess.best_mask(output, column=1)
    assert (mask[0].tolist(), score) == ([False] * 3 + [True] * 5, pytest.approx(0.7, abs=1e-4))


def smooth(queries: int, classes: int, side: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(2)
    coarse = 10 * torch.randn(1, queries, 6, 6, generator=generator) - 4
    logits = 4 * torch.randn(queries, classes + 1, generator=generator)
    return F.interpolate(coarse, (side, side), mode="bicubic")[0], logits


def test_against_transformers() -> None:
    """Mask2Former's functions, whose frame is 384 x 384; what is resized after it they resize otherwise."""
    from transformers import Mask2FormerImageProcessor

    theirs = Mask2FormerImageProcessor()
    masks, classes = smooth(30, 7, 96)
    raw = SimpleNamespace(masks_queries_logits=masks[None], class_queries_logits=classes[None])
    output = answer(masks, classes, 384, (384, 384), (384, 384))
    for threshold in (0.5, 0.8):
        ids, segments = postprocess.panoptic(output, stuff=(), score=threshold, overlap=0.2)
        (expected,) = theirs.post_process_panoptic_segmentation(raw, threshold, 0.5, 0.2, label_ids_to_fuse=set())
        assert len(segments) > 3
        assert torch.equal(ids, expected["segmentation"])
        rows = [(row["id"], row["label_id"], row["score"]) for row in expected["segments_info"]]
        assert [(id, label, round(score, 6)) for id, label, score in segments] == rows

    found, labels, scores, _ = postprocess.instances(output, score=0.05)
    (expected,) = theirs.post_process_instance_segmentation(raw, 0.05, return_binary_maps=True)
    assert labels.tolist() == [row["label_id"] for row in expected["segments_info"]]
    assert scores.tolist() == pytest.approx([row["score"] for row in expected["segments_info"]], abs=2e-6)
    assert torch.equal(found.float(), expected["segmentation"])

    for size in ((384, 384), (200, 300), (480, 640)):  # the same, smaller and larger than the frame
        labels = postprocess.semantic(answer(masks, classes, 384, (384, 384), size))
        (expected,) = theirs.post_process_semantic_segmentation(raw, [size])
        assert (labels != expected).float().mean() < 1e-4  # sums in another order


def test_chunks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(1)
    masks = torch.randn(11, 8, 8, generator=generator) * 4
    classes = torch.randn(11, 6, generator=generator) * 3
    output = answer(masks, classes, 32, (24, 32), (40, 50))
    results = []
    for chunk in (2, 100):
        monkeypatch.setattr(postprocess, "CHUNK", chunk)
        ids, segments = postprocess.panoptic(output, stuff={0}, mask=0.2, overlap=0.2)
        results.append((ids, segments, postprocess.semantic(output), postprocess.instances(output)))
    (ids, segments, labels, found), (ids2, segments2, labels2, found2) = results
    assert len(segments) > 1
    assert segments == segments2
    assert torch.equal(ids, ids2)
    assert torch.equal(labels, labels2)
    assert all(torch.equal(a, b) for a, b in zip(found, found2, strict=True))


def same_regions(ids: Tensor, expected: Tensor) -> float:
    """Share of pixels where two maps differ after the best renaming of each id of the second; 0 stays 0."""
    different = (ids == 0) != (expected == 0)
    for id in expected.unique().tolist():
        region = expected == id
        different |= region & (ids != ids[region].mode().values)
    return different.float().mean().item()


@pytest.mark.skipif(not PARITY.is_dir(), reason="recorded tensors are not here")
@pytest.mark.parametrize("case", ["s1.eval", "s3.genseg.predict"])
def test_recorded_official_results(case: str) -> None:
    from safetensors.torch import load_file

    entry = json.loads((PARITY / "goldens.json").read_text())["goldens"][case]
    tensors = load_file(PARITY / entry["file"])
    settings = entry["postprocess"]
    for image, size in enumerate(tensors["in.image_sizes"].tolist()):
        masks, classes = (tensors[f"decoder.{name}_logits_per_layer.3"][image] for name in ("mask", "class"))
        output = answer(masks, classes, 256, tuple(tensors["in.scaled_sizes"][image].tolist()), tuple(size))

        panoptic = settings["panoptic"]
        for thresholds in panoptic if isinstance(panoptic, list) else [panoptic]:
            name = f"pan@{thresholds['score']}" if isinstance(panoptic, list) else "pan"
            ids, segments = postprocess.panoptic(output, **thresholds)
            assert same_regions(ids, tensors[f"post.{name}.{image}.segmentation_i16"]) <= 0.0005
            recorded = entry["segments_info"][name][image]
            assert {label for _, label, _ in segments} == {item["category_id"] for item in recorded}
            best = max(item["score"] for item in recorded)
            assert max(score for _, _, score in segments) == pytest.approx(best, abs=1e-5)

        labels = postprocess.semantic(output)
        assert (labels != tensors[f"post.sem.{image}.segmentation_i16"]).float().mean() <= 0.0005

        found, labels, scores, boxes = postprocess.instances(output, score=settings["instance"]["score"])
        expected = {name: tensors[f"post.ins.{image}.{name}"] for name in ("classes", "scores", "boxes", "mask_areas")}
        ours, theirs = scores.argsort(), expected["scores"].argsort()
        torch.testing.assert_close(scores[ours], expected["scores"][theirs], rtol=1e-5, atol=1e-6)
        assert torch.equal(labels[ours], expected["classes"][theirs])
        torch.testing.assert_close(boxes[ours], expected["boxes"][theirs], rtol=0, atol=1)
        difference = (found[ours].flatten(1).sum(1) - expected["mask_areas"][theirs]).abs()
        assert (difference <= 0.0005 * size[0] * size[1]).all()


def test_above_background_is_the_union_of_all_that_is_likelier_than_nothing() -> None:
    rows = (slice(0, 2), 0, 0.6), (slice(1, 4), 0, 0.9), (slice(5, 6), 0, 0.4), (slice(6, 8), 1, 0.9)
    output = queries(*rows, classes=2)
    mask, score = postprocess.above_background(output)
    assert mask[0].tolist() == [True] * 4 + [False] * 4
    assert score == pytest.approx(0.9, abs=1e-4)
    mask, score = postprocess.above_background(output, column=1)
    assert mask[3].tolist() == [False] * 6 + [True] * 2
    nothing, score = postprocess.above_background(queries((slice(0, 8), 0, 0.3), classes=1))
    assert (nothing.shape, bool(nothing.any()), score) == ((8, 8), False, 0)
