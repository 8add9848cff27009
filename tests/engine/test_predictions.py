"""Predictions on disk: appended, read again after a kill, and taken for no one else's."""

import pytest

from xsam.engine import results
from xsam.structures import Prediction, Segment, UserError

SEGMENT = Segment({"size": [2, 2], "counts": "04"}, "red", 0.5)


def test_a_line_that_a_kill_cut_off_is_asked_again(tmp_path):
    answers = results.Answers(tmp_path)
    answers.add([Prediction(id="a", segments=(SEGMENT,)), Prediction(id="b", text="ü\n")])
    part = tmp_path / "part-0.jsonl"
    whole = part.read_bytes()
    assert whole.count(b"\n") == 2
    for cut in range(len(whole)):
        part.write_bytes(whole[:cut])
        known = set(results.read_answers(tmp_path))
        assert known == {"a", "b"} if cut == len(whole) - 1 else known <= {"a"}
        again = results.Answers(tmp_path)
        assert again.done == known
        again.add([Prediction(id="a", segments=(SEGMENT,)), Prediction(id="b", text="ü\n")])
        assert results.read_answers(tmp_path) == {
            "a": Prediction(id="a", segments=(SEGMENT,)), "b": Prediction(id="b", text="ü\n"),
        }  # fmt: skip
        assert part.read_bytes().startswith(whole[:cut])  # nothing that was written is changed


def test_predictions_of_others_are_not_taken_for_these(tmp_path):
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(b"one")
    config = {"model": {"a": 1}, "processor": {"tokenizer": "here", "seg_size": 64}}
    rows = {"refer": {"type": "T", "split": "val", "metric": "m"}}

    def claim(protocol="paper", config=config, rows=rows):
        return results.claim(tmp_path / "out", str(weights), protocol, config, rows)

    sha = claim()
    assert sha == "7692c3ad3540bb803c020b3aee66cd8887123234ea0c6e7143c0add73ff431ed"  # sha256sum of "one"
    moved = {**config, "processor": {**config["processor"], "tokenizer": "there"}}
    assert claim(config=moved) == sha  # continuing, from another folder
    claim(rows={"refer": {**rows["refer"], "metric": "other", "published": {"cIoU": 1.0}}, "new": {"type": "U"}})
    with pytest.raises(UserError, match="of other protocol; give another --out"):
        claim("strict")
    with pytest.raises(UserError, match="of other model"):
        claim(config={**config, "model": {"a": 2}})
    with pytest.raises(UserError, match="of other questions of refer"):
        claim(rows={"refer": {**rows["refer"], "split": "test"}})
    weights.write_bytes(b"two")
    with pytest.raises(UserError, match="of other weights"):
        claim()
