"""`xsam score` on files: what other programs computed for the same files, and mistakes told in one line."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from xsam.cli import main
from xsam.data.masks import encode_rle, write_panoptic_png

REFDATA = Path(__file__).parents[2] / "../shared/refdata"
needs_refdata = pytest.mark.skipif(not REFDATA.is_dir(), reason="reference data are not here")


def run(capsys, kind, gt, pred, *options) -> dict:
    assert main(["score", kind, "--gt", str(gt), "--pred", str(pred), "--json", *options]) == 0
    return json.loads(capsys.readouterr().out)


def refused(capsys, kind, gt, pred, *options) -> str:
    assert main(["score", kind, "--gt", str(gt), "--pred", str(pred), *options]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    return error


def save(path: Path, content) -> Path:
    path.write_text(json.dumps(content))
    return path


def rle(*pixels: int) -> dict:
    return encode_rle(np.isin(np.arange(8).reshape(2, 4), pixels))


def test_refer(tmp_path, capsys):
    gt = save(tmp_path / "gt.json", [
        {"id": 1, "segmentation": rle(0, 1)}, {"id": 2, "segmentation": None},
        {"id": 3, "segmentation": rle(2, 3), "ignore": rle(7)}, {"id": 4, "segmentation": rle(4)},
    ])  # fmt: skip
    rows = [{"id": 1, "segmentation": rle(0)}, {"id": 2, "segmentation": None}, {"id": 3, "segmentation": rle(2, 3, 7)}]
    done = run(capsys, "refer", gt, save(tmp_path / "pred.json", rows))
    assert (done["kind"], done["samples"], done["missing"]) == ("refer", 4, [4])
    assert done["metrics"]["cIoU"] == pytest.approx(100 * 3 / 5)
    assert done["metrics"]["gIoU"] == pytest.approx(100 * (1 / 2 + 1 + 1 + 0) / 4)
    assert done["metrics"]["N_acc"] == 100
    pred = save(tmp_path / "a.json", [*rows, {"id": 9, "segmentation": None}])
    assert "a.json: 9 is not in the ground truth" in refused(capsys, "refer", gt, pred)
    assert "id 1 comes twice" in refused(capsys, "refer", gt, save(tmp_path / "b.json", [rows[0], *rows]))
    other = {"id": 1, "segmentation": {**rle(0), "size": [4, 4]}}
    assert "b.json: 1: the RLE has the size [4, 4]" in refused(capsys, "refer", gt, save(tmp_path / "b.json", [other]))
    (tmp_path / "c.json").write_text("{")
    assert "c.json: not valid JSON" in refused(capsys, "refer", gt, tmp_path / "c.json")


def test_semantic(tmp_path, capsys):
    for folder, rows in {"gt": ([0, 0, 1, 255], [2, 2, 2, 2]), "pred": ([0, 1, 1, 1], [2, 2, 0, 0])}.items():
        (tmp_path / folder).mkdir()
        for number, row in enumerate(rows):
            Image.fromarray(np.array([row], np.uint8)).save(tmp_path / folder / f"{number}.png")
    done = run(capsys, "semantic", tmp_path / "gt", tmp_path / "pred", "--num-classes", "4")
    assert done["metrics"]["mIoU"] == pytest.approx(100 * (1 / 4 + 1 / 2 + 2 / 4) / 3)
    assert done["metrics"]["pACC"] == pytest.approx(100 * 4 / 7)
    error = refused(capsys, "semantic", tmp_path / "gt", tmp_path / "pred", "--num-classes", "2")
    assert "1: the predicted map has label 2" in error
    (tmp_path / "pred/1.png").unlink()
    assert "has no map 1.png" in refused(capsys, "semantic", tmp_path / "gt", tmp_path / "pred", "--num-classes", "4")
    assert "--num-classes" in refused(capsys, "semantic", tmp_path / "gt", tmp_path / "pred")


def test_panoptic_and_instance(tmp_path, capsys):
    maps = {"gt": [[7, 7, 9, 0], [7, 7, 9, 0]], "pred": [[3, 3, 0, 5], [3, 3, 0, 5]]}
    categories = [{"id": 1, "name": "a", "isthing": 1}, {"id": 2, "name": "b", "isthing": 0}]
    ids = {"gt": {7: 1, 9: 2}, "pred": {3: 1, 5: 2}}
    for name, pixels in maps.items():
        (tmp_path / name).mkdir()
        write_panoptic_png(tmp_path / name / "x.png", np.array(pixels))
        segments = [{"id": i, "category_id": c, "area": 1} for i, c in ids[name].items()]
        annotation = {"image_id": 4, "file_name": "x.png", "segments_info": segments}
        images = [{"id": 4, "file_name": "x.jpg", "height": 2, "width": 4}]
        save(tmp_path / f"{name}.json", {"images": images, "annotations": [annotation], "categories": categories})
    done = run(capsys, "panoptic", tmp_path / "gt.json", tmp_path / "pred.json")
    assert done["metrics"]["PQ"] == 50  # one right, one missed; what lies on void is no error
    assert done["metrics"]["PQ_th"] == 100
    assert done["metrics"]["PQ_st"] == 0
    mask = rle(0, 1, 4, 5)
    truth = {"id": 1, "image_id": 4, "category_id": 1, "segmentation": mask, "area": 4, "iscrowd": 0}
    gt = save(tmp_path / "i.json", {"images": images, "annotations": [truth], "categories": categories})
    found = [{"image_id": 4, "category_id": 1, "segmentation": mask, "score": 0.5}]
    assert run(capsys, "instance", gt, save(tmp_path / "f.json", found))["metrics"]["AP"] == pytest.approx(100)
    found[0]["image_id"] = 5
    assert "image_id 5 is not in" in refused(capsys, "instance", gt, save(tmp_path / "f.json", found))


@needs_refdata
def test_files_that_other_programs_scored(tmp_path, capsys):
    instances = REFDATA / "coco_instance"
    done = run(
        capsys,
        "instance",
        instances / "instances_val2014_100.json",
        instances / "instances_val2014_fakesegm100_results.json",
    )
    assert done["metrics"]["AP"] == pytest.approx(31.954527585764, rel=1e-6)
    panoptic = REFDATA / "panoptic/coco"
    expected = json.loads((panoptic / "expected_pq.json").read_text())["cases"]["big_shift"]["All"]
    done = run(capsys, "panoptic", panoptic / "gt.json", panoptic / "pred/big_shift.json")
    assert done["metrics"]["PQ"] == pytest.approx(100 * expected["pq"], rel=1e-6)
    done = run(capsys, "gcg", REFDATA / "gcg", REFDATA / "gcg/predictions.json", "--similarity", "jaccard")
    expected = json.loads((REFDATA / "gcg/expected_gcg.json").read_text())["expected"]
    assert done["metrics"]["AP50"] == pytest.approx(100 * expected["AP_stats"][1], rel=1e-6)
    cases = json.loads((REFDATA / "refer/refseg_cases.json").read_text())
    files = [
        save(tmp_path / f"{key}.json", [{"id": i, "segmentation": s[key]} for i, s in enumerate(cases["samples"])])
        for key in ("gt", "pred")
    ]
    done = run(capsys, "refer", *files)
    wanted = cases["expected"]["grefcoco_like (all, pred_nt = empty prediction)"]["rela"]
    assert done["metrics"]["N_acc"] == pytest.approx(100 * wanted["N_acc"], rel=1e-6)
