"""The catalog against the shipped configs and against docs/datasets.md."""

from pathlib import Path

import pytest

from xsam import config
from xsam.apps.prepare import PREPARED
from xsam.data.catalog import DATASETS, Count, Dataset, data_root, find
from xsam.structures import UserError

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    "sign, number, least, most",
    [("=", 200, 200, 200), ("≤", 10_834, 10_618, 10_834), ("≈", 5_000, 4_750, 5_250)],
)
def test_counts(sign, number, least, most):
    count = Count(sign, number)
    assert [count.fits(n) for n in (least - 1, least, most, most + 1)] == [False, True, True, False]


def test_the_data_root(monkeypatch):
    monkeypatch.delenv("XSAM_DATA", raising=False)
    assert data_root() == Path("data")
    monkeypatch.setenv("XSAM_DATA", "/disk")
    assert data_root() == Path("/disk")


def test_an_unknown_name():
    with pytest.raises(UserError, match="no dataset 'cocoo'; there is: shapes, coco, "):
        find("cocoo")


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


def test_every_row_of_the_configs_belongs_to_one_dataset(monkeypatch):
    monkeypatch.delenv("XSAM_DATA", raising=False)
    sources, benchmarks = shipped()
    for kind, rows in (("train", sources), ("benchmarks", benchmarks)):
        for name, node in rows.items():
            owners = [dataset for dataset in DATASETS.values() if name in getattr(dataset, kind)]
            assert len(owners) == 1, f"{name} belongs to {owners}"
            for path in paths(node):
                listed = [f"data/{file}" for file in owners[0].files]
                inside = any(f"{path}/".startswith(f"{file}/") or file.startswith(f"{path}/") for file in listed)
                assert inside, f"{owners[0].name} does not list {path}"


def test_every_listed_row_is_in_the_configs():
    sources, benchmarks = shipped()
    assert {name for dataset in DATASETS.values() for name in dataset.train} <= sources.keys()
    assert {name for dataset in DATASETS.values() for name in dataset.benchmarks} <= benchmarks.keys()


def test_every_listed_preparation_exists():
    assert {dataset.prepare for dataset in DATASETS.values() if dataset.prepare} == PREPARED.keys()


def counts(rows) -> str:
    return ", ".join(f"{name} {count if count.number else '?'}" for name, count in rows.items()) or "-"


def documented(dataset: Dataset) -> str:
    files = " ".join(f"`{file}`" for file in dataset.files)
    prepare = f"`{dataset.prepare}`" if dataset.prepare else "-"
    cells = (f"`{dataset.name}`", dataset.stages, dataset.task, files, dataset.get, prepare)
    return "| " + " | ".join((*cells, counts(dataset.train), counts(dataset.benchmarks))) + " |"


def test_the_documentation_has_the_same_table():
    lines = (ROOT / "docs/datasets.md").read_text(encoding="utf-8").splitlines()
    for dataset in DATASETS.values():
        assert documented(dataset) in lines
    assert sum(line.startswith("| `") for line in lines) == len(DATASETS)
