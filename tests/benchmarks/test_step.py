import json
from types import SimpleNamespace

import pytest
from torch import nn

from benchmarks import step
from xsam import config as configs
from xsam.cli import main
from xsam.engine import estimate


def test_a_step_is_the_same_with_transformers(tiny):
    report = step.beside_transformers("cpu", tiny, rounds=2)
    ((ours, theirs),) = [rows.values() for rows in report.values() if isinstance(rows, dict)]
    assert theirs["faster"] == 1
    assert ours["rms"] < 1e-4  # the loss and every gradient


def test_a_step_updates_but_leaves_the_weights():
    layer = nn.Linear(2, 1)
    parameters = list(layer.parameters())
    before = [p.detach().clone() for p in parameters]
    run = step.update(lambda: layer.weight.square().sum() + 3 * layer.bias.sum(), parameters)
    for _ in range(2):
        loss, by_weight, by_bias = run()
        assert loss.item() == pytest.approx((before[0].square().sum() + 3 * before[1].sum()).item())
        assert by_bias.tolist() == [3]
        assert by_weight.tolist() == (2 * before[0]).tolist()
    assert all(p.grad is None and (p == old).all() for p, old in zip(parameters, before, strict=True))


@pytest.mark.parametrize("number", [1, 2, 3])
def test_the_step_of_a_stage(number, tiny, capsys):
    path, small = f"configs/shapes/stage{number}.py", ["stage.batch_size=2", "stage.peak_tflops=0.5"]
    assert main(["benchmark", "step", path, "--json", *small]) == 0
    report = json.loads(capsys.readouterr().out)  # what trains is said elsewhere
    seconds = report["step"]["step"]["wall_ms"] / 1e3
    assert report["samples"] == 2
    assert report["images_per_second"] == pytest.approx(2 / seconds)
    assert (report["tokens_per_second"] > 0) == (number > 1)
    tflop = estimate.estimate(configs.load(path, small), 1).flops / 1e12
    assert report["tflop_per_image"] == pytest.approx(tflop / 2)
    assert report["mfu_percent"] == pytest.approx(100 * tflop / seconds / 0.5)
    assert 0.1 < report["memory_gb"] < 20
    largest = list(report["largest"].values())
    assert len(largest) == 3
    assert 100 > largest[0]["percent"] >= largest[1]["percent"] >= largest[2]["percent"] > 0


def test_the_peak_may_be_unknown(tiny):
    report = step.of_stage("configs/shapes/stage1.py", ["stage.micro_batch=1"], rounds=1)
    assert (report["samples"], report["mfu_percent"]) == (1, None)


def test_kernels_of_a_gpu():
    def event(key, kind, device, cpu):
        return SimpleNamespace(
            key=key, device_type=SimpleNamespace(name=kind), self_device_time_total=device, self_cpu_time_total=cpu
        )

    events = [
        event("aten::mm", "CPU", 900, 50),
        event("gemm", "CUDA", 600, 0),
        event("flash", "CUDA", 200, 0),
        event("copy", "CPU", 0, 150),
    ]
    recording = SimpleNamespace(key_averages=lambda: events)
    assert step.largest(recording, "cuda") == {"gemm": {"ms": 0.6, "percent": 75}, "flash": {"ms": 0.2, "percent": 25}}
    assert list(step.largest(recording, "cpu")) == ["copy", "aten::mm"]
