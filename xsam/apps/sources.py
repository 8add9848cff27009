"""What `xsam data` works on: a dataset of the catalog, the rows of a config, or a file of one's own."""

import mmap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .. import config as configs
from ..data.catalog import DATASETS, UNKNOWN, Count, Dataset, find
from ..structures import UserError
from ..tasks.base import Task

BASE = "configs/xsam_phi3_stage3.py"  # whose processor a file is seen through
BENCHMARKS = "configs/_base_/benchmarks"


@dataclass(frozen=True, slots=True)
class Row:
    """One source or benchmark."""

    name: str  # as an override names it, or the file
    node: dict[str, Any]  # what `config.build` makes the task of
    published: Count = UNKNOWN

    def build(self, **changes: Any) -> Task:
        """The task. Raises UserError where its files are missing or foreign."""
        node = {key: value for key, value in self.node.items() if key != "published"} | changes
        task: Task = configs.build(node)
        return task


@dataclass(frozen=True, slots=True)
class Target:
    """Rows, and the processor that they are for."""

    rows: tuple[Row, ...]
    processor: dict[str, Any]
    dataset: Dataset | None = None


def read(target: str, overrides: Sequence[str] = (), images: str = "") -> Target:
    """Find out what TARGET is.

    Args:
        target: a name of the catalog; a config (`.py`, or a run folder); a COCO `.json` (instances, or panoptic with
            its PNGs in the folder of the same name), or a `.jsonl`.
        overrides: of the config, or of the base config where `target` is none.
        images: folder of a file's images; default: the file's own.

    Raises:
        UserError: it is none of these, or the config does not load.
    """
    path = Path(target)
    if target in DATASETS:
        return _of_dataset(find(target), overrides)
    if path.suffix == ".py" or path.is_dir() or path.name == "config.json":
        return _of_config(path, overrides)
    if path.suffix not in (".json", ".jsonl"):
        names = ", ".join(DATASETS)
        raise UserError(f"{target}: neither a config, nor a .json or .jsonl file, nor a dataset; those are: {names}")
    if not path.is_file():
        raise UserError(f"{path}: no such file")
    row = Row(str(path), _file_node(path, images or str(path.parent)))
    return Target((row,), configs.load(BASE, overrides)["processor"])


def _of_config(path: Path, overrides: Sequence[str]) -> Target:
    config = configs.load(path, overrides)
    rows = _rows(config)
    if not rows or "processor" not in config:
        raise UserError(f"{path}: has no sources or benchmarks; give the config of a stage")
    return Target(rows, config["processor"])


def _of_dataset(dataset: Dataset, overrides: Sequence[str]) -> Target:
    base = configs.load(f"{dataset.configs}3.py", overrides)
    loaded = [base, *(configs.load(f"{dataset.configs}{stage}.py") for stage in (2, 1))]
    wanted = [f"mixture.sources.{name}" for name in dataset.train]
    wanted += [f"benchmarks.{name}" for name in dataset.benchmarks]
    if wanted:
        loaded += [configs.load(path) for path in sorted(Path(BENCHMARKS).glob("*.py"))]
    found = {
        row.name: row for config in reversed(loaded) for row in _rows(config)
    }  # the base's rows come last, and stay
    return Target(tuple(found[name] for name in wanted or found if name in found), base["processor"], dataset)


def _rows(config: dict[str, Any]) -> tuple[Row, ...]:
    train = {name: count for dataset in DATASETS.values() for name, count in dataset.train.items()}
    scored = {name: count for dataset in DATASETS.values() for name, count in dataset.benchmarks.items()}
    sources = config.get("mixture", {}).get("sources", {})
    rows = [Row(f"mixture.sources.{name}", node, train.get(name, UNKNOWN)) for name, node in sources.items()]
    benchmarks = config.get("benchmarks", {})
    rows += [Row(f"benchmarks.{name}", node, scored.get(name, UNKNOWN)) for name, node in benchmarks.items()]
    for row in rows:
        if not isinstance(row.node, dict) or not {"type", "data"} <= row.node.keys():
            raise UserError(f"{row.name}: needs a task as `type` and its reader as `data`")
    return tuple(rows)


def _file_node(path: Path, images: str) -> dict[str, Any]:
    data = {"annotations": str(path), "images": images}
    if path.suffix == ".jsonl":
        return {
            "type": "xsam.tasks.referring.ReferringSegmentation",
            "data": {"type": "xsam.data.jsonl.JsonLines", **data},
            "train": True,
        }
    reader = {"type": "xsam.data.coco.CocoInstances", **data}
    if _holds(path, b'"segments_info"'):
        reader = {"type": "xsam.data.coco.CocoPanoptic", **data, "segments": str(path.with_suffix(""))}
    return {"type": "xsam.tasks.generic.GenericSegmentation", "data": reader, "train": True}


def _holds(path: Path, text: bytes) -> bool:
    with path.open("rb") as file:
        if not path.stat().st_size:
            return False
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            return content.find(text) >= 0
