"""Load, override, build. The only file that knows mmengine.

A config is a Python file of data: `model`, `processor`, `criterion`, `mixture`, `benchmarks` and `stage` at the top,
composed with mmengine's `read_base`. `type=` holds an imported class or function of this package; nothing is called
before `build`.
"""

import ast
import importlib
import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from .structures import UserError

KEYS = ("model", "processor", "criterion", "mixture", "benchmarks", "stage")


def load(path: str | Path, overrides: Iterable[str] = ()) -> dict[str, Any]:
    """Read a config (`.py`, or the `config.json` of a checkpoint) and apply `a.b.c=value` overrides.

    `$XSAM_DATA`, where it is set, stands for the folder `data` of the configs.
    Returns plain dicts with classes as dotted names, so the result can be stored, compared and built anywhere.
    Raises UserError for a missing file, a config that does not load, or an override of a key that is not there.
    """
    path = Path(path)
    if path.is_dir():
        path = path / "config.json"
    if not path.is_file():
        raise UserError(f"{path}: no such config; the shipped ones are under configs/")
    if path.suffix == ".json":
        try:
            config = json.loads(path.read_text())
        except json.JSONDecodeError as error:
            raise UserError(f"{path}: not valid JSON ({error}); the file is damaged") from None
    else:
        from mmengine.config import Config

        try:
            config = Config.fromfile(path, lazy_import=True).to_dict()
        except (ImportError, AttributeError, SyntaxError, RuntimeError) as error:
            raise UserError(f"{path}: the config does not load: {type(error).__name__}: {error}") from None
    config = {key: _plain(config[key]) for key in KEYS if key in config}
    if "XSAM_DATA" in os.environ:
        config = _moved(config, os.environ["XSAM_DATA"])
    for override in overrides:
        _override(config, override, path)
    return config


def _plain(value: Any) -> Any:
    """Lists and dicts all the way down; tuples become lists, as JSON will have them."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value


def _moved(value: Any, root: str) -> Any:
    """Paths under `data/` under another root."""
    if isinstance(value, dict):
        return {key: _moved(item, root) for key, item in value.items()}
    if isinstance(value, list):
        return [_moved(item, root) for item in value]
    inside = isinstance(value, str) and value.startswith("data/")
    return str(Path(root, value.removeprefix("data/"))) if inside else value


def _override(config: dict[str, Any], override: str, path: Path) -> None:
    name, _, text = override.partition("=")
    try:
        value = _plain(ast.literal_eval(text))
    except (ValueError, SyntaxError):
        value = text  # a bare word is a string
    *parents, last = name.split(".")
    node: Any = config
    for depth, part in enumerate(parents, start=1):
        if not _has(node, part):
            raise UserError(_unknown(path, ".".join(parents[:depth]), node))
        node = node[int(part)] if isinstance(node, list) else node[part]
    # What a constructor or the stage takes may be left out of a config; either refuses a name it does not know.
    optional = isinstance(node, dict) and ("type" in node or parents == ["stage"])
    if not optional and not _has(node, last):
        raise UserError(_unknown(path, name, node))
    node[int(last) if isinstance(node, list) else last] = value


def _has(node: Any, part: str) -> bool:
    if isinstance(node, list):
        return part.isdigit() and int(part) < len(node)
    return isinstance(node, dict) and part in node


def _unknown(path: Path, name: str, node: Any) -> str:
    known = ", ".join(sorted(node)) if isinstance(node, dict) else f"a {type(node).__name__}"
    return f"{path}: unknown config key {name!r}; there is: {known}"


def resolve(name: str) -> Any:
    """The class or function behind a dotted name. Only this package's: a config may come from a stranger."""
    module, _, attribute = name.rpartition(".")
    if module.split(".")[0] != "xsam":
        raise UserError(f"config type {name!r} is not part of xsam; give an xsam.* class")
    try:
        return getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise UserError(f"config type {name!r} does not exist: {error}") from None


def build(node: Any, **extra: Any) -> Any:
    """Construct every `dict(type=..., ...)`, innermost first; `extra` goes to the outermost constructor."""
    if isinstance(node, list):
        return [build(item) for item in node]
    if not isinstance(node, dict):
        return node
    arguments = {key: build(value) for key, value in node.items() if key != "type"} | extra
    if "type" not in node:
        return arguments
    factory = resolve(node["type"]) if isinstance(node["type"], str) else node["type"]
    try:
        return factory(**arguments)
    except TypeError as error:  # an argument the constructor does not know, by its own words
        raise UserError(f"config of {node['type']}: {error}") from error
