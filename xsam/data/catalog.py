"""The datasets of `catalog.json`: where they come from, how many records their rows should have. docs/datasets.md says
the same."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Dataset:
    """Its files, and how many records each of its rows should have: exact, or with "≤" (repeats are left out) or "≈"
    (not verified by us) before it; "?" = not published."""

    get: str  # where its files come from
    prepare: str = ""  # NAME of `xsam data prepare` that makes or checks some of them
    train: Mapping[str, str] = field(default_factory=dict)  # training samples by source of a mixture
    benchmarks: Mapping[str, str] = field(default_factory=dict)  # evaluation samples
    configs: str = "configs/xsam_phi3_stage"  # whose rows these are; with none named, all of them

    @property
    def rows(self) -> dict[str, str]:
        """All counts, by row as an override names it."""
        sources = {f"mixture.sources.{name}": count for name, count in self.train.items()}
        return sources | {f"benchmarks.{name}": count for name, count in self.benchmarks.items()}

    @property
    def remedy(self) -> str:
        """What to do where a file is missing."""
        made = f"then run `xsam data prepare {self.prepare}`; " if self.prepare else ""
        return f"get it from {self.get}; {made}see docs/datasets.md"


def fits(published: str, records: int) -> bool:
    """A wrong file or split is far off; the slack is for repeats (2 %) and for rounded totals (5 %)."""
    low, high = {"≤": (0.98, 1), "≈": (0.95, 1.05)}.get(published[0], (1, 1))
    number = published.lstrip("≤≈").replace(",", "")
    return published == "?" or low * int(number) <= records <= high * int(number)


TABLE = Path(__file__).with_suffix(".json")
DATASETS = {name: Dataset(**row) for name, row in json.loads(TABLE.read_text(encoding="utf-8")).items()}
