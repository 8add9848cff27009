"""Tables of several seeds, and the blind level of relations."""

import json
import pickle

import pytest

from world import report, shapes


def write(folder, **metrics):
    folder.mkdir()
    row = {"metrics": metrics, "baselines": {"whole image": {"Pr@0.5_relation": 3.0}}}
    (folder / "results.json").write_text(json.dumps({"benchmarks": {"shapes_refer": row}}))
    return str(folder)


@pytest.fixture
def scene(tmp_path, monkeypatch):
    """A data folder with two expressions about the first val scene that has three things of one look."""
    monkeypatch.setenv("XSAM_DATA", str(tmp_path))
    index, scene = next(
        (i, s) for i in range(99) if 3 in map(len, shapes.fits(s := shapes.compose(0, "val", i)).values())
    )
    words = next(words for words, numbers in shapes.fits(scene).items() if len(numbers) == 3)
    anchor = next(
        w for w, numbers in shapes.fits(scene).items() if len(numbers) == 1 and numbers[0] in shapes.fits(scene)[words]
    )
    rows = [("relation", f"the {words} left of the {anchor}"), ("superlative", f"the lowest {words}")]
    refs = [{"split": "val", "kind": k, "image_id": 1_000_001 + index, "sentences": [{"sent": s}]} for k, s in rows]
    (tmp_path / "shapes/refer").mkdir(parents=True)
    (tmp_path / "shapes/refer/refs(shapes).p").write_bytes(pickle.dumps(refs))


def test_described_is_a_guess_among_what_fits_but_the_landmark(scene):
    assert report.described("relation") == 50
    assert report.described("superlative") == pytest.approx(100 / 3)


def test_a_table_has_mean_and_half_of_the_range(scene, tmp_path):
    runs = [write(tmp_path / str(n), **{"cIoU": 10.0 * n, "Pr@0.5_relation": 60.0}) for n in (1, 2)]
    lines = report.table({"full": runs, "quick": runs[:1]}).splitlines()
    assert lines[0] == "| val split | full | quick | blind |"
    assert "| referring cIoU | 15.0 ± 5.0 | 10.0 |  |" in lines
    assert "| referring accuracy, relations | 60.0 ± 0.0 | 60.0 | 3; 50 |" in lines
    assert "| panoptic PQ |  |  |  |" in lines


def test_curves_are_drawn(tmp_path):
    (tmp_path / "curve").mkdir()
    write(tmp_path / "curve/step_5", cIoU=1.0)
    lines = [{"step": step, "sources": {"refer": 1 / step}} for step in (1, 5, 10)]
    (tmp_path / "log.jsonl").write_text("\n".join(map(json.dumps, lines)))
    report.curves(str(tmp_path / "plot.png"), str(tmp_path))
    assert (tmp_path / "plot.png").stat().st_size > 1000
