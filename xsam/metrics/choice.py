"""Exact matching of short answers: of words, of options, of yes and no. No judge but these rules."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from .base import Metric, percent

OPENING = re.compile(r"(?:(?:the|my|correct|right|best|answer|option|choice|is|it)\b:?\s*)*", re.I)
LETTER = re.compile(r"[(\[]?([a-z])\b([)\].:,\n]*)\s*(.*)", re.I | re.S)  # the letter, what marks it as one, the rest
MEASURES = ("accuracy", "circular", "F1")


def normalize_answer(text: str) -> str:
    """Lower case, without punctuation, articles and surplus blanks."""
    words = re.sub(r"[^\w\s]", " ", text.lower()).split()
    return " ".join(word for word in words if word not in ("a", "an", "the"))


def chosen(answer: str, options: Mapping[str, str]) -> str:
    """The letter of the option that an answer means; without options "yes" or "no"; "" where that is not clear.

    Yes or no: just one of these words is in the answer. An option, after words such as "the answer is", the first of:

    1. its letter, alone or before its own text: "B", "(b)", "B. red circle";
    2. its text, case, punctuation and articles apart, which no other option has: "a red circle";
    3. its letter before one of `.:,)` or the line's end, if what follows is neither the text nor has the letter of
       another option: "B, since it is round"."""
    if not options:
        said = {"yes", "no"} & set(re.findall(r"\w+", answer.lower()))
        return said.pop() if len(said) == 1 else ""
    answer = answer.strip(" *`\"'\n")
    short = OPENING.sub("", answer, count=1)
    match = LETTER.fullmatch(short)
    letter, mark, rest = (match[1].upper(), match[2], match[3]) if match else ("", "", "")
    meant = _with_text(rest, options)
    if letter in options and (not rest or letter in meant):
        return letter
    if named := _with_text(answer, options) or _with_text(short, options):
        return named[0] if len(named) == 1 else ""
    others = set(re.findall(r"\b(?!A [a-z])[A-Z]\b", rest)) & options.keys() - {letter}  # "A" may be an article
    return letter if letter in options and mark and not meant and not others else ""


def _with_text(text: str, options: Mapping[str, str]) -> list[str]:
    """The letters of the options that say just this."""
    plain = normalize_answer(text) or text.lower()  # "A" is a text, too
    return [letter for letter, option in options.items() if plain == (normalize_answer(option) or option.lower())]


@dataclass
class ChoiceScore(Metric):
    """Right choices in percent. Questions of a group (about one image, or rotations of one) count as one, too, which is
    right if all of them are.

    Args:
        measure: of what `compute` gives the share: "accuracy" of questions; "circular", of groups (MMBench, arXiv
            2307.06281); "F1" of the answer yes, besides the accuracy (POPE, arXiv 2305.10355).
        sums: `compute` gives these named sums over categories instead, of the share of questions and that of groups: a
            category is worth up to 200 (MME, arXiv 2306.13394)."""

    measure: str = "accuracy"
    sums: Mapping[str, Sequence[str]] = field(default_factory=dict)
    # int64[3] by category and group: questions, right ones, those of them with the answer yes
    groups: dict[tuple[str, str], np.ndarray] = field(default_factory=dict)

    def update(self, categories: Sequence[str], group: str, answer: str, expected: str) -> None:
        """Count a question in each of its categories, "" = of none; an option, or a text that has to be the same."""
        right = answer == expected
        counts = np.array([1, right, right and expected == "yes"])
        self.merge(ChoiceScore(groups={(category, group): counts for category in categories}))

    def merge(self, other: "ChoiceScore") -> None:
        for key, counts in other.groups.items():
            self.groups[key] = self.groups.get(key, 0) + counts

    def counted(self) -> dict[str, np.ndarray]:
        """int64[5] of each category: its counts, groups, and groups that are right; a group lies within one image."""
        counts: dict[str, np.ndarray] = {}
        for (category, _), group in self.groups.items():
            counts[category] = counts.get(category, 0) + np.array([*group, 1, group[0] == group[1]])
        return counts

    def figures(self, counted: Mapping[str, np.ndarray]) -> dict[str, float | None]:
        """`accuracy`; or `F1` and `accuracy`; or the named sums. None where no question was counted."""
        if not self.sums:
            return self._figures(sum(counted.values(), np.zeros(5)))
        worth = {name: 100 * (row[1] / row[0] + row[4] / row[3]) for name, row in counted.items() if row[0]}
        known = {title: [worth[name] for name in names if name in worth] for title, names in self.sums.items()}
        return {title: float(sum(values)) if values else None for title, values in known.items()}

    def per_category(self) -> dict[str, dict[str, float | None]]:
        """The same of each category; with `sums` the shares `accuracy` of questions and `accuracy+` of groups."""
        return {name: self._figures(counts) for name, counts in self.counted().items() if name}

    def headline(self) -> float | None:
        """The share of right answers."""
        asked, right, _ = sum(self.groups.values(), np.zeros(3)).tolist()
        return percent(right, asked)

    def _figures(self, counts: np.ndarray) -> dict[str, float | None]:
        asked, right, yes, groups, whole = counts.tolist()
        accuracy, together = percent(right, asked), percent(whole, groups)
        if self.sums:
            return {"accuracy": accuracy, "accuracy+": together}
        if self.measure == "F1":  # every wrong answer is a wrong yes or a missed one
            return {"F1": percent(2 * yes, 2 * yes + asked - right), "accuracy": accuracy}
        return {"accuracy": together if self.measure == "circular" else accuracy}
