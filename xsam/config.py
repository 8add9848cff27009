"""Load, override, build. The only file that knows mmengine.

A config is a Python file of data: `KEYS` at the top, composed with mmengine's `read_base`. `type=` holds an imported
class or function of this package, or of one that `$XSAM_PACKAGES` names; nothing is called before `build`."""

import ast
import importlib
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from .data import own
from .data.records import read_json
from .structures import UserError

KEYS = ("model", "processor", "criterion", "mixture", "benchmarks", "categories", "stage")


def data_root() -> Path:
    """The folder that `data/` of the configs stands for: `$XSAM_DATA` where it is set."""
    return Path(os.environ.get("XSAM_DATA", "data"))


def load(path: str | Path, overrides: Iterable[str] = ()) -> dict[str, Any]:
    """Read a config (`.py`, or the `config.json` of a checkpoint) and apply `a.b.c=value` overrides. Returns plain
    dicts with classes as dotted names, so the result can be stored, compared and built anywhere. The overrides
    `data=FILE` and `val=FILE` stand for the source and the benchmark `own`: one's own data, see `own.row`. Raises
    UserError for a missing file, a config that does not load, or an override of a key that is not there."""
    path = Path(path, "config.json") if Path(path).is_dir() else Path(path)
    if not path.is_file():
        raise UserError(f"{path}: no such config; the shipped ones are under configs/")
    if path.suffix == ".json":
        config = read_json(path)
    else:
        from mmengine.config import Config

        try:
            config = Config.fromfile(path, lazy_import=True).to_dict()
        except (ImportError, AttributeError, SyntaxError, RuntimeError) as error:
            raise UserError(f"{path}: the config does not load: {type(error).__name__}: {error}") from None
    config = {key: _plain(config[key], data_root()) for key in KEYS if key in config}
    for override in overrides:
        _override(config, override, path)
    return config


def _plain(value: Any, root: Path) -> Any:
    """Lists and dicts all the way down, as JSON will have them; paths below `data/` are below `root`."""
    if isinstance(value, dict):
        return {key: _plain(item, root) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item, root) for item in value]
    below = isinstance(value, str) and value.startswith("data/")
    return str(root / value.removeprefix("data/")) if below else value


def _override(config: dict[str, Any], override: str, path: Path) -> None:
    name, _, text = override.partition("=")
    try:
        value = _plain(ast.literal_eval(text), Path("data"))
    except (ValueError, SyntaxError):
        value = text  # a bare word is a string
    rows = {"data": config.get("mixture", {}).get("sources"), "val": config.get("benchmarks")}.get(name)
    if rows is not None:
        rows["own"] = own.row(text, train=name == "data")
        return
    *parents, last = name.split(".")
    node: Any = config
    for depth, part in enumerate(parents, start=1):
        node = node[_key(node, part, f"{path}: unknown config key {'.'.join(parents[:depth])!r}")]
    # What a constructor or the stage takes may be left out of a config; either refuses a name it does not know.
    optional = isinstance(node, dict) and ("type" in node or parents == ["stage"])
    node[last if optional else _key(node, last, f"{path}: unknown config key {name!r}")] = value


def _key(node: Any, part: str, unknown: str) -> str | int:
    """What `node` holds `part` under. Raises UserError where it has no such part."""
    if isinstance(node, list) and part.isdigit() and int(part) < len(node):
        return int(part)
    if isinstance(node, dict) and part in node:
        return part
    known = ", ".join(sorted(node)) if isinstance(node, dict) else f"a {type(node).__name__}"
    raise UserError(f"{unknown}; there is: {known}")


def resolve(name: str) -> Any:
    """The class or function behind a dotted name. A config may come from a stranger: only this package's, and those of
    the packages that the user trusts, named with spaces between in `$XSAM_PACKAGES`."""
    module, _, attribute = name.rpartition(".")
    if (package := module.split(".")[0]) not in ("xsam", *os.environ.get("XSAM_PACKAGES", "").split()):
        raise UserError(
            f"config type {name!r} is not part of xsam; XSAM_PACKAGES={package} lets it in, if you trust it"
        )
    try:
        return getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise UserError(f"config type {name!r} does not exist: {error}") from None


def build(node: Any, **extra: Any) -> Any:
    """Construct every `dict(type=..., ...)`, innermost first; `extra` goes to the outermost constructor."""
    if not isinstance(node, dict):
        return [build(item) for item in node] if isinstance(node, list) else node
    arguments = {key: build(value) for key, value in node.items() if key != "type"} | extra
    if "type" not in node:
        return arguments
    factory = resolve(node["type"]) if isinstance(node["type"], str) else node["type"]
    try:
        return factory(**arguments)
    except TypeError as error:  # an argument the constructor does not know, by its own words
        raise UserError(f"config of {node['type']}: {error}") from error
