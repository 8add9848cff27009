import pytest
from PIL import Image

from benchmarks import growth


def test_exponents_are_those_of_power_laws(tmp_path, monkeypatch):
    def compare(work, **_):
        return {n: {"wall_ms": 3.0 * int(n) ** 2, "cpu_ms": 5.0 * int(n), "peak_mb": 0.0} for n in work}

    monkeypatch.setattr(growth, "compare", compare)
    parts = {"side length": ((2, 4, 16), lambda n, device: list, lambda n: n**1.5)}
    report = growth.report("cpu", tmp_path / "plots", parts)
    found = report["exponents"]["side length"]
    assert found.pop("peak_mb") is None
    assert found == pytest.approx({"wall_ms": 2, "cpu_ms": 1, "arithmetic": 1.5})
    assert Image.open(tmp_path / "plots" / "side_length.png").width > 300
    assert report["side length"]["4"] == {"wall_ms": 48, "cpu_ms": 20, "peak_mb": 0}


@pytest.mark.parametrize(
    "name, size", [("image size", 64), ("queries", 5), ("targets", 3), ("categories", 4), ("tokens", 16)]
)
def test_every_part_runs(name, size, tiny, monkeypatch):
    monkeypatch.setattr(growth, "BASE", tiny)
    _, make, arithmetic = growth.PARTS[name]
    assert make(size, "cpu")() is not None
    assert arithmetic(2 * size) > arithmetic(size)


def test_what_the_arithmetic_says():
    # A layer with C channels and n tokens: 4 C^2 n for q, k, v and the output, 8 C^2 n for the MLP, and 2 C n^2 where it
    # attends globally; one layer does, two layers are there. Divided by C.
    assert growth.PARTS["image size"][2](512) == 2 * 12 * 256 * 1024 + 2 * 1024**2
    # 4 C^2 n for q, k, v and the output, 3 C F n for the gated MLP, and C n^2 where half of the places are seen.
    assert growth.PARTS["tokens"][2](1000) == 2 * (4 * 512 + 3 * 1408) * 1000 + 2 * 1000**2
