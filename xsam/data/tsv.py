"""Questions about images in a table of tab-separated columns, as VLMEvalKit distributes its benchmarks."""

import csv
from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np

from ..structures import BadSample, UserError
from .index import take_text
from .records import Records

COLUMNS = ("index", "image", "question", "answer")  # that a table must have
LONGEST = 1 << 27  # characters of a cell; images of benchmarks are far smaller
SHORT = 64  # characters; a shorter `image` cell is no image but the index of a row with the same one
DIGITS = 6  # of an index; MMBench's table has copies of question 241, options rotated, as 1000241, 2000241, ..


@dataclass(frozen=True, slots=True)
class Question:
    """A row of the table."""

    id: str
    image: str  # data URI
    picture: int  # the same for all questions about an image
    question: str
    hint: str
    options: dict[str, str]  # text by letter; empty where the answer is yes or no
    answer: str  # a letter of the options, or "yes" or "no"
    categories: tuple[str, ...]  # POPE's questions have up to three


class TsvQuestions(Records):
    """The questions of a table, in its order; all of it stays on disk until a question is asked for.

    Columns: `index`, `image` (base64), `question`, `answer`, and where there are any `A`, `B`, .. (options), `hint`,
    `category` (several separated by commas). Copies of a question with its options rotated are left out. Raises
    UserError when the file is missing, damaged or another kind of file, BadSample where a row cannot be used."""

    _pictures: np.ndarray  # int64[N], row that holds the image of each question, -1 = none
    options: np.ndarray  # int64[N], how many each question has

    def __init__(self, table: str | Path) -> None:
        super().__init__([Path(table)], Path(table).parent, "tsv 2", lambda: _rows(Path(table)))
        self._pictures, self.options = np.array(self._index.known, np.int64).reshape(2, -1)

    def __getitem__(self, index: int) -> Question:
        picture, row, what = int(self._pictures[index]), self._index[index], f"question {self.id(index)}"
        if picture < 0:
            raise BadSample(f"{what}: its image should be that of {row['image']!r}, a row that has none")
        options = {letter: take_text(row, letter, what) for letter in _letters(row)}
        answer = row["answer"].upper() if options else row["answer"].lower()
        if answer not in (options or ("yes", "no")):
            raise BadSample(f"{what}: the answer is {row['answer'][:40]!r}, not {' or '.join(options) or 'yes or no'}")
        image = f"data:image/jpeg;base64,{self._index[picture]['image'] if picture != index else row['image']}"
        question, hint = take_text(row, "question", what), take_text(row, "hint", what) if row.get("hint") else ""
        categories = tuple(name.strip() for name in row.get("category", "").split(","))
        return Question(self.id(index), image, picture, question, hint, options, answer, categories)


def _rows(path: Path) -> Iterator[tuple[str | None, Any]]:
    """The cells of each question; at last all `_pictures` and `options`."""
    options = list[int]()
    shown: list[int | str] = []  # by question: the row that holds its image, or the index of one that shows it
    asked: dict[str, str] = {}  # question by index
    looks, holders = dict[bytes, int](), dict[str, int]()  # row with the image: by its digest, by index
    for cells in _cells(path):
        index, image, number = cells["index"], cells["image"], len(options)
        if len(index) > DIGITS and cells["question"] == asked.get(index[-DIGITS:].lstrip("0") or "0"):
            continue
        asked[index] = cells["question"]
        shown.append(image or -1)
        if len(image) >= SHORT:
            shown[-1] = holders[index] = looks.setdefault(blake2b(image.encode()).digest(), number)
        options.append(len(_letters(cells)))
        yield index, cells | {"image": image if shown[-1] in (number, image) else ""}  # each image once
    if not holders:
        raise UserError(f"{path}: holds no question with an image; fetch the file anew")
    yield None, [[row if isinstance(row, int) else holders.get(row, -1) for row in shown], options]


def _letters(cells: dict[str, str]) -> list[str]:
    """The columns of a row's options."""
    return sorted(name for name in cells if len(name) == 1 and name.isupper() and cells[name])


def _cells(path: Path) -> Iterator[dict[str, str]]:
    """The stripped cells of each row by column."""
    csv.field_size_limit(LONGEST)
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file, delimiter="\t", strict=True)
            header = next(reader, [])
            if missing := [name for name in COLUMNS if name not in header]:
                raise UserError(f"{path}: has no column {', '.join(missing)}; give a table as VLMEvalKit makes it")
            for row in filter(None, reader):
                if len(row) != len(header):
                    raise csv.Error(f"{len(row)} cells under {len(header)} columns")
                yield {name: cell.strip() for name, cell in zip(header, row, strict=True)}
    except (csv.Error, UnicodeDecodeError) as error:
        raise UserError(f"{path}: damaged near line {reader.line_num} ({error}); fetch the file anew") from None
