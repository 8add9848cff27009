import json

from xsam.engine.log import Log


def write(work_dir, first, last, every=2):
    log = Log(work_dir, first=first, last=last, batch_size=4, every=every)
    for step in range(first, last):
        losses = {"text": step + 1.0, "mask": 0.5, "mask_0": 0.25}
        log.step(step, losses, lr=0.1, grad_norm=2.0, waited=0.0)
    log.close()
    return [json.loads(line) for line in (work_dir / "log.jsonl").read_text().splitlines()]


def test_lines_are_means_since_the_line_before(tmp_path, capsys):
    first, second, third, last = write(tmp_path, 0, 5)
    assert [line["step"] for line in (first, second, third, last)] == [1, 2, 4, 5]
    assert third["losses"] == {"text": 3.5, "mask": 0.5, "mask_0": 0.25}
    assert third["loss"] == 4.25
    assert third["grad_norm"] == 2.0
    assert third["samples_per_second"] > 0
    text = capsys.readouterr().err.splitlines()[-1]
    assert text.startswith("step 5/5 loss 5.7500 (text 5.000 mask 0.500) lr 1.00e-01")
    assert any((tmp_path / "tensorboard").iterdir())


def test_a_resumed_run_replaces_what_it_repeats(tmp_path):
    write(tmp_path, 0, 6)
    with (tmp_path / "log.jsonl").open("a") as file:
        file.write('{"step": 7, "lo')  # killed while writing
    assert [line["step"] for line in write(tmp_path, 4, 8)] == [1, 2, 4, 5, 6, 8]
