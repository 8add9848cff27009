"""Names of the released X-SAM checkpoints <-> ours: one table, read in both directions."""

import json
import re
from collections.abc import Collection
from pathlib import Path

# `names`: official to ours; the first that a name begins with decides, `{}` stands for a number. `aliases`: what the
# official main branch calls some; read, never written. `dead`: stored officially, but nothing reads their output: SAM's
# neck, a buffer of SAM's prompts, SigLIP's end.
_DATA = json.loads(Path(__file__).with_suffix(".json").read_text())
TABLE, ALIASES, DEAD = tuple(_DATA["names"].items()), tuple(_DATA["aliases"].items()), tuple(_DATA["dead"])
PARTS = tuple(dict.fromkeys(ours.split(".")[0] for _, ours in TABLE))  # modules of `XSamModel` that have weights


def part_of(name: str) -> str:
    return name.split(".")[0]


def to_ours(name: str) -> str | None:
    """Our name of an official tensor, None if no module of ours has it (but see `translate`), another name as it is."""
    return None if (name := canonical(name)).startswith(DEAD) else _rename(name, TABLE)


def canonical(name: str) -> str:
    """An official name of either branch as the archive branch has it."""
    return _rename(name, ALIASES)


def to_official(name: str) -> str:
    """The official name (archive branch) of one of our tensors; another name comes back as it is."""
    return _rename(name, tuple((ours, official) for official, ours in TABLE))


def translate(names: Collection[str]) -> dict[str, str | None]:
    """`to_ours` of all names; None for SigLIP's last layer too, dead in a full tower, which its final norm tells."""
    ours, layer_of = {name: to_ours(name) for name in names}, r"vision_encoder\.encoder\.layers\.(\d+)\."
    if any("vision_model.post_layernorm." in name for name in names):
        layers = {name: int(m[1]) for name, new in ours.items() if new and (m := re.match(layer_of, new))}
        ours |= {name: None for name, layer in layers.items() if layer == max(layers.values())}
    return ours


def is_official(names: Collection[str]) -> bool:
    """Whether a checkpoint carries official names: some tensor has another name with us."""
    return any(to_ours(name) != name for name in names)


def _rename(name: str, rows: tuple[tuple[str, str], ...]) -> str:
    for before, after in rows:
        if match := re.match(re.escape(before).replace(r"\{\}", r"(\d+)"), name):
            return after.format(*match.groups()) + name[match.end() :]
    return name
