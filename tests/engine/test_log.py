import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from xsam.engine.log import Log, note_start
from xsam.engine.stages import Stage


def stage(every, **values):
    return Stage(name="log", lr=0.1, batch_size=4, log_every=every, **values)


def write(work_dir, first, last, every=2):
    log = Log(work_dir, stage(every), first=first, last=last)
    for step in range(first, last):
        losses = {"text": step + 1.0, "mask": 0.5, "mask_0": 0.25}
        log.step(step, "a", losses, lr=0.1, grad_norm=2.0, waited=0.0)
    log.close()
    return [json.loads(line) for line in (work_dir / "log.jsonl").read_text().splitlines()]


def test_lines_are_means_since_the_line_before(tmp_path, capsys):
    first, second, third, last = write(tmp_path, 0, 5)
    assert [line["step"] for line in (first, second, third, last)] == [1, 2, 4, 5]
    assert third["losses"] == {"text": 3.5, "mask": 0.5, "mask_0": 0.25}
    assert third["loss"] == 4.25
    assert third["grad_norm"] == 2.0
    assert third["samples_per_second"] > 0
    assert third["mfu_percent"] is None  # the peak is not known
    text = capsys.readouterr().err.splitlines()[-1]
    assert text.startswith("step 5/5 loss 5.7500 (text 5.000 mask 0.500) lr 1.00e-01")
    assert any((tmp_path / "tensorboard").iterdir())


def test_a_resumed_run_replaces_what_it_repeats(tmp_path):
    write(tmp_path, 0, 6)
    with (tmp_path / "log.jsonl").open("a") as file:
        file.write('{"step": 7, "lo')  # killed while writing
    assert [line["step"] for line in write(tmp_path, 4, 8)] == [1, 2, 4, 5, 6, 8]


def test_sources_rates_and_skipped_steps(tmp_path, monkeypatch):
    now = [100.0]
    monkeypatch.setattr("time.perf_counter", lambda: now[0])
    (tmp_path / "skipped" / "step_1").mkdir(parents=True)
    (tmp_path / "skipped" / "step_7").mkdir()  # of a step that will be repeated
    log = Log(tmp_path, stage(4), first=3, last=8)
    now[0] += 0.5
    log.step(3, "a", {"text": 1.0}, lr=0.1, grad_norm=1.0, waited=0.0)
    for step, source, losses, norm in (
        (4, "a", {"text": 2.0}, 1.0),
        (5, "b", {"text": 4.0, "mask": 3.0}, 5.0),
        (6, "a", {"text": float("nan")}, float("inf")),
        (7, "a", {"text": 3.0}, 3.0),
    ):
        now[0] += 0.5
        log.step(step, source, losses, lr=0.1, grad_norm=norm, waited=0.125, images=6, text_tokens=100)
    log.pictures(8, {"pictures/a": np.zeros((4, 6, 3), np.uint8)})
    log.close()
    first, line = (json.loads(text) for text in (tmp_path / "log.jsonl").read_text().splitlines())
    assert first["step"] == 4
    assert first["skipped"] == 1
    assert line["losses"] == {"text": 3.0, "mask": 1.0}
    assert line["loss"] == 4.0
    assert line["sources"] == {"a": 2.5, "b": 7.0}
    assert line["grad_norm"] == 3.0
    assert line["skipped"] == 2
    rates = {name: line[f"{name}_per_second"] for name in ("samples", "images", "tokens")}
    assert rates == {"samples": 8.0, "images": 12.0, "tokens": 200.0}
    assert line["data_wait_percent"] == 25.0
    assert 0 < line["memory_gb"] < 64
    board = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert board.Tags()["images"] == ["pictures/a"]
    assert [event.value for event in board.Scalars("sources/b")] == [7.0]


def test_nothing_but_skipped_steps(tmp_path):
    log = Log(tmp_path, stage(1), first=0, last=1)
    log.step(0, "a", {"text": float("nan")}, lr=0.1, grad_norm=float("inf"), waited=0.0)
    log.close()
    line = json.loads((tmp_path / "log.jsonl").read_text(), parse_constant=pytest.fail)
    assert (line["loss"], line["grad_norm"], line["losses"], line["sources"]) == (None, None, {}, {})


def test_mfu_is_the_counted_share_of_the_peak(tmp_path, monkeypatch):
    now = [0.0]
    monkeypatch.setattr("time.perf_counter", lambda: now[0])
    log = Log(tmp_path, stage(4, peak_tflops=1e-6), first=0, last=4)
    weight = torch.randn(10, 20, requires_grad=True)
    for step, rows in enumerate((5, 5, 50, 5)):  # of each source the first step counts for all
        with log.counting("ab"[step % 2]):
            (torch.randn(rows, 10) @ weight).sum().backward()
        now[0] += 0.5
        log.step(step, "ab"[step % 2], {"text": 1.0}, lr=0.1, grad_norm=1.0, waited=0.0)
    log.close()
    flops = 2 * 5 * 10 * 20 * 2  # the product, and of its gradient the part of the weight
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [line["mfu_percent"] for line in lines] == pytest.approx([100 * flops / 0.5 / 1e6, 100 * flops / 0.5 / 1e6])


def test_every_start_is_noted(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["xsam", "train", "a b.py"])
    note_start(tmp_path, 7, 2)
    monkeypatch.setattr(subprocess, "getstatusoutput", lambda command: (128, "fatal: not a git repository"))
    note_start(tmp_path, 7, 4)
    first, second = (json.loads(line) for line in (tmp_path / "environment.jsonl").read_text().splitlines())
    assert first["command"] == "xsam train 'a b.py'"
    assert (first["seed"], first["world_size"], second["world_size"]) == (7, 2, 4)
    assert first["packages"]["torch"].split("+")[0] == torch.__version__.split("+")[0]
    assert first["git"] is None or first["git"]["dirty"] in (True, False)
    assert second["git"] is None
