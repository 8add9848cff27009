"""The catalog against the shipped configs and against docs/datasets.md."""

from pathlib import Path

import pytest

from xsam import config
from xsam.apps.datasets import PREPARED
from xsam.data.catalog import DATASETS, fits

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    "published, least, most", [("200", 200, 200), ("≤10,834", 10_618, 10_834), ("≈5,000", 4_750, 5_250)]
)
def test_counts(published, least, most):
    assert [fits(published, n) for n in (least - 1, least, most, most + 1)] == [False, True, True, False]
    assert fits("?", most)


def paths(node) -> list[str]:
    if isinstance(node, dict):
        return [path for value in node.values() for path in paths(value)]
    return [node] if isinstance(node, str) and node.startswith("data/") else []


def shipped() -> tuple[dict, dict]:
    """Sources and benchmarks of the full-size configs."""
    sources = {}
    for stage in (1, 2, 3):
        sources |= config.load(ROOT / f"configs/xsam_phi3_stage{stage}.py")["mixture"]["sources"]
    benchmarks = {}
    for path in (ROOT / "configs/_base_/benchmarks").glob("*.py"):
        if path.stem != "shapes":
            benchmarks |= config.load(path).get("benchmarks", {})
    return sources, benchmarks


def documented() -> dict[str, list[str]]:
    """The cells of the table in docs/datasets.md by dataset."""
    lines = (ROOT / "docs/datasets.md").read_text(encoding="utf-8").splitlines()
    rows = [line.strip("| ").split(" | ") for line in lines if line.startswith("| `")]
    return {name.strip("`"): cells for name, *cells in rows}


def test_every_row_of_the_configs_belongs_to_one_dataset_whose_files_are_documented(monkeypatch):
    monkeypatch.delenv("XSAM_DATA", raising=False)
    sources, benchmarks = shipped()
    table = documented()
    for kind, rows in (("train", sources), ("benchmarks", benchmarks)):
        for name, node in rows.items():
            owners = [dataset for dataset in DATASETS if name in getattr(DATASETS[dataset], kind)]
            assert len(owners) == 1, f"{name} belongs to {owners}"
            listed = [f"data/{file}" for file in table[owners[0]][2].replace("`", "").split()]
            for path in paths(node):
                inside = any(f"{path}/".startswith(f"{file}/") or file.startswith(f"{path}/") for file in listed)
                assert inside, f"{owners[0]} does not list {path}"


def test_every_listed_row_is_in_the_configs():
    sources, benchmarks = shipped()
    assert {name for dataset in DATASETS.values() for name in dataset.train} <= sources.keys()
    assert {name for dataset in DATASETS.values() for name in dataset.benchmarks} <= benchmarks.keys()


def test_every_listed_preparation_exists():
    assert {dataset.prepare for dataset in DATASETS.values() if dataset.prepare} == PREPARED.keys()


def counts(rows) -> str:
    return ", ".join(f"{name} {count}" for name, count in rows.items()) or "-"


def test_the_documentation_has_the_same_table():
    table = documented()
    assert list(table) == list(DATASETS)
    for name, dataset in DATASETS.items():
        prepare = f"`{dataset.prepare}`" if dataset.prepare else "-"
        assert table[name][3:] == [dataset.get, prepare, counts(dataset.train), counts(dataset.benchmarks)]
