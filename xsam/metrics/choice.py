"""Exact matching of short answers."""

import re
from dataclasses import dataclass


def normalize_answer(text: str) -> str:
    """Lower case, without punctuation, articles and surplus blanks."""
    words = re.sub(r"[^\w\s]", " ", text.lower()).split()
    return " ".join(word for word in words if word not in ("a", "an", "the"))


@dataclass
class ExactMatch:
    """Share of answers that equal the expected one after normalisation, in percent."""

    right: int = 0
    total: int = 0

    def update(self, answer: str, expected: str) -> None:
        self.right += normalize_answer(answer) == normalize_answer(expected)
        self.total += 1

    def merge(self, other: "ExactMatch") -> None:
        self.right += other.right
        self.total += other.total

    def compute(self) -> dict[str, float | None]:
        return {"accuracy": 100 * self.right / self.total if self.total else None}
