"""What `xsam data` works on: a dataset of the catalog, the rows of a config, or a file of one's own."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .. import config as configs
from ..data.catalog import DATASETS, Dataset
from ..structures import UserError
from ..tasks.base import Task, build

PUBLISHED = {row: count for dataset in DATASETS.values() for row, count in dataset.rows.items()}


@dataclass(frozen=True, slots=True)
class Row:
    """One source or benchmark."""

    name: str  # as an override names it, or the file
    node: dict[str, Any]  # what `config.build` makes the task of
    published: str = "?"  # how many records it should have, see `Dataset`

    def build(self, **changes: Any) -> Task:
        """The task. Raises UserError where its files are missing or foreign."""
        return build(self.node, **changes)


@dataclass(frozen=True, slots=True)
class Target:
    """Rows, and the processor that they are for."""

    rows: tuple[Row, ...]
    processor: dict[str, Any]
    dataset: Dataset | None = None


def read(target: str, overrides: Sequence[str] = (), images: str = "") -> Target:
    """Find out what `target` is. Raises UserError where it is nothing, or its config does not load.

    Args:
        target: a name of the catalog; a config (`.py`, or a run folder); a COCO `.json` (instances, or panoptic with
            its PNGs in the folder of the same name), or a `.jsonl`.
        overrides: of the config, or of the base config where `target` is none.
        images: folder of a file's images; default: the file's own."""
    path = Path(target)
    if target in DATASETS:
        return _of_dataset(DATASETS[target], overrides)
    if path.suffix == ".py" or path.is_dir() or path.name == "config.json":
        config = configs.load(path, overrides)
        rows = _rows(config)
        if not rows or "processor" not in config:
            raise UserError(f"{path}: has no sources or benchmarks; give the config of a stage")
        return Target(tuple(rows.values()), config["processor"])
    if path.suffix not in (".json", ".jsonl"):
        names = ", ".join(DATASETS)
        raise UserError(f"{target}: neither a config, nor a .json or .jsonl file, nor a dataset; those are: {names}")
    if not path.is_file():
        raise UserError(f"{path}: no such file")
    processor = configs.load("configs/xsam_phi3_stage3.py", overrides)["processor"]
    return Target((Row(target, _file_node(path, images or str(path.parent))),), processor)


def _of_dataset(dataset: Dataset, overrides: Sequence[str]) -> Target:
    base = configs.load(f"{dataset.configs}3.py", overrides)
    paths = sorted(Path("configs/_base_/benchmarks").glob("*.py")) if dataset.rows else []
    found: dict[str, Row] = {}
    for path in (*paths, Path(f"{dataset.configs}1.py"), Path(f"{dataset.configs}2.py")):
        found |= _rows(configs.load(path))
    found |= _rows(base)
    return Target(tuple(found[name] for name in dataset.rows or found), base["processor"], dataset)


def _rows(config: dict[str, Any]) -> dict[str, Row]:
    nodes = {f"mixture.sources.{name}": node for name, node in config.get("mixture", {}).get("sources", {}).items()}
    nodes |= {f"benchmarks.{name}": node for name, node in config.get("benchmarks", {}).items()}
    for name, node in nodes.items():
        if not isinstance(node, dict) or not {"type", "data"} <= node.keys():
            raise UserError(f"{name}: needs a task as `type` and its reader as `data`")
    return {name: Row(name, node, PUBLISHED.get(name, "?")) for name, node in nodes.items()}


def _file_node(path: Path, images: str) -> dict[str, Any]:
    task, data = "generic.GenericSegmentation", {"annotations": str(path), "images": images}
    if path.suffix == ".jsonl":
        task, data["type"] = "referring.ReferringSegmentation", "xsam.data.jsonl.JsonLines"
    elif b'"segments_info"' in path.read_bytes():
        data |= {"type": "xsam.data.coco.CocoPanoptic", "segments": str(path.with_suffix(""))}
    else:
        data["type"] = "xsam.data.coco.CocoInstances"
    return {"type": f"xsam.tasks.{task}", "data": data, "train": True}
