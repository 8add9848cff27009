"""Scores of kept predictions, their intervals, the two files of results, and runs side by side."""

import json

import numpy as np
import pytest
import torch

from xsam import config
from xsam.apps import pages
from xsam.data.masks import encode_rle
from xsam.engine import evaluator, results
from xsam.engine.score import score
from xsam.structures import Prediction, Segment, UserError


@pytest.fixture
def rows(world):
    text = json.dumps(config.load("configs/shapes/stage3.py")["benchmarks"])
    return json.loads(text.replace("data/shapes", str(world)))


def answered(row, folder, answer):
    """Predictions of a benchmark as `answer(sample)` gives them; the task and its indices."""
    task = config.build(row)
    answers = results.Answers(folder)
    for index in range(len(task)):
        sample = task.sample(index, np.random.default_rng(evaluator.key("evaluate", task.id(index))))
        answers.add([Prediction(id=sample.id, segments=answer(sample))])
    return task, range(len(task))


def right(share):
    """The true mask for a share of the samples, decided by their id, and nothing for the others."""

    def answer(sample):
        hit = np.random.default_rng(evaluator.key("hit", sample.id)).random() < share
        return (Segment(encode_rle(np.any(sample.masks.ids >= 0, axis=0))),) if hit else ()

    return answer


def test_intervals_and_scores_of_samples(rows, tmp_path):
    task, indices = answered(rows["shapes_refer"], tmp_path, right(0.5))
    row = results.score(task, indices, tmp_path)
    scores = json.loads((tmp_path / "scores.json").read_text())
    assert set(scores) == {task.id(index) for index in indices}
    assert set(scores.values()) == {0.0, 100.0}
    assert row["metrics"]["gIoU"] == pytest.approx(np.mean(list(scores.values())))
    low, high = row["ci95"]["gIoU"]
    assert 0 < low < row["metrics"]["gIoU"] < high < 100
    assert row["scored"] == row["samples"] == len(indices)
    assert all(0 <= low <= high <= 100 for low, high in row["ci95"].values())
    few, _ = answered(rows["shapes_refer"], tmp_path / "few", right(0.01))
    assert all(low >= 0 for low, _ in results.score(few, indices, tmp_path / "few")["ci95"].values())
    images = {task.sample(i, np.random.default_rng(0)).image for i in indices}
    by_image = [np.mean([scores[task.id(i)] for i in indices if task.sample(i, np.random.default_rng(0)).image == image])
                for image in images]  # fmt: skip
    spread = np.std(by_image) / len(images) ** 0.5  # of the mean over images, near to that of the ratio over samples
    assert (high - low) / (2 * 1.96) == pytest.approx(spread, rel=0.35)


def test_results_files(rows, tmp_path):
    task, indices = answered(rows["shapes_panoptic"], tmp_path / "predictions/shapes_panoptic", right(0))
    row = results.score(task, indices, tmp_path / "predictions/shapes_panoptic") | {"published": {"PQ": 12.0}}
    lost = {"error": "no file"}
    results.write(
        tmp_path, {"shapes_panoptic": row, "b": lost}, config_path="c", checkpoint="random", sha256="", protocol="paper",
        seconds=1.0,
    )  # fmt: skip
    found = results.read(tmp_path)
    assert found["schema"] == 1
    assert found["checkpoint"] == {"path": "random", "sha256": ""}
    assert found["benchmarks"]["shapes_panoptic"]["metrics"]["PQ"] == 0
    table = (tmp_path / "results.md").read_text()
    assert "| shapes_panoptic | PQ | 0.0 | 0.0 to 0.0 | 12.0 | -12.0 |" in table
    assert "| b | not run: no file |" in table
    assert "shapes_panoptic by category" in table
    assert "| sky | 0.0 |" in table
    with pytest.raises(UserError, match="no results; make them with"):
        results.read(tmp_path / "nowhere")


def test_two_runs_side_by_side(rows, tmp_path):
    """The same images: the interval of the difference is that of the paired differences, not of two runs."""
    for name, share in (("a", 0.5), ("b", 0.7)):  # what a answers rightly, b does too
        folder = tmp_path / name / "predictions/shapes_refer"
        task, indices = answered(rows["shapes_refer"], folder, right(share))
        row = results.score(task, indices, folder) | {"published": {}}
        results.write(
            tmp_path / name, {"shapes_refer": row}, config_path="c", checkpoint="x", sha256="", protocol="paper", seconds=1,
        )  # fmt: skip
    gains = [results.read(tmp_path / name)["benchmarks"]["shapes_refer"]["metrics"]["gIoU"] for name in "ab"]
    (line,) = [line for line in results.compare(tmp_path / "a", tmp_path / "b").splitlines() if "| gIoU |" in line]
    cells = [cell.strip() for cell in line.split("|")]
    assert cells[3:6] == [f"{gains[0]:.1f}", f"{gains[1]:.1f}", f"{gains[1] - gains[0]:+.1f}"]
    low, high = map(float, cells[6].split(" to "))
    assert 0 <= low < gains[1] - gains[0] < high  # b is never worse on an image, so no draw is below 0
    (tmp_path / "b/predictions/shapes_refer" / results.REPLICATES).unlink()
    assert "other images" in results.compare(tmp_path / "a", tmp_path / "b")


KINDS = {
    "shapes_panoptic": "panoptic", "shapes_instance": "instance", "shapes_semantic": "semantic", "shapes_refer": "refer",
    "shapes_gcg": "gcg",
}  # fmt: skip


@pytest.mark.parametrize("name", KINDS)
def test_the_official_formats_score_the_same(name, rows, world, tmp_path):
    """What `--official` writes, `xsam score` reads, and finds what the evaluation found."""
    loaded = json.loads(json.dumps(config.load("configs/shapes/stage3.py")).replace("data/shapes", str(world)))
    torch.manual_seed(0)
    model, processor = config.build(loaded["model"]).eval(), config.build(loaded["processor"])
    if name == "shapes_gcg":
        said = "a picture with <p>a thing</p> and <p>sky</p> . <SEG>."
        ids = processor.tokenizer(said, add_special_tokens=False).input_ids
        type(model).generate, kept = (lambda self, batch, *_: ([ids] * len(batch.ids), None)), type(model).generate
    try:
        found = evaluator.evaluate(model, processor, {name: rows[name]}, tmp_path, official=True)[name]
    finally:
        if name == "shapes_gcg":
            type(model).generate = kept
    pred = tmp_path / f"official/{name}.json"
    if name == "shapes_panoptic":  # the PNGs stand beside the file
        gt = tmp_path / "panoptic_val.json"
        gt.symlink_to(world / "annotations/panoptic_val.json")
        gt.with_suffix("").symlink_to(world / "panoptic_val")
    elif name == "shapes_instance":
        gt = world / "annotations/instances_val.json"
    elif name == "shapes_semantic":
        gt, pred = tmp_path / "labels.json", pred.with_suffix("")
        task = config.build(rows[name])
        truths = [task.sample(i, np.random.default_rng(0)) for i in range(len(task))]
        perfect = [
            (Prediction(id=s.id, segments=tuple(
                Segment(encode_rle((s.masks.ids == n).any(0)), s.truth["shown"].category_ids[n]) for n in range(s.masks.count)
            )), s)
            for s in truths
        ]  # fmt: skip
        task.export(perfect, gt)
        gt = gt.with_suffix("")
    elif name == "shapes_refer":
        gt = tmp_path / "refer.json"
        task = config.build(rows[name])
        truths = [task.sample(i, np.random.default_rng(0)) for i in range(len(task))]
        gt.write_text(json.dumps([{"id": s.id, "segmentation": encode_rle((s.masks.ids >= 0).any(0))} for s in truths]))
    elif name == "shapes_gcg":
        gt = tmp_path / "gcg"
        gt.mkdir()
        for kind in ("mask", "caption"):
            (gt / f"val_gcg_coco_{kind}_gt.json").symlink_to(world / f"gcg/val_gcg_coco_{kind}_gt.json")
    count = len(config.build(rows[name]).categories) if name == "shapes_semantic" else 0
    report = score(KINDS[name], gt, pred, count)
    assert report["missing"] == [] or name == "shapes_instance"  # an image without any result is no row there
    for metric, value in report["metrics"].items():
        expected = found["metrics"].get(metric)
        assert value == (None if expected is None else pytest.approx(expected, rel=1e-9)), metric


def test_the_gallery_shows_the_worst(rows, tmp_path):
    folder = tmp_path / "predictions/shapes_refer"
    task, indices = answered(rows["shapes_refer"], folder, right(0.9))
    results.score(task, indices, folder)
    pages.gallery(tmp_path, {"shapes_refer": rows["shapes_refer"], "shapes_chat": rows["shapes_chat"]})
    page = (tmp_path / "gallery/shapes_refer.html").read_text()
    worst = page[page.index("The worst") : page.index("At random")]
    scores = json.loads((folder / "scores.json").read_text())
    bad = sorted(id for id, value in scores.items() if value == 0)[: pages.COUNT]
    assert bad
    assert all(f"<h3>{id}: 0.0</h3>" in worst for id in bad)
    assert worst.count("data:image/jpeg") == 2 * pages.COUNT
    assert not (tmp_path / "gallery/shapes_chat.html").exists()  # was not answered
