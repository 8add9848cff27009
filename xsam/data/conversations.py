"""LLaVA's conversations: a JSON list, or JSON lines, of records, each about one image or none."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..structures import BadSample, Turn
from .index import SURROGATE, TAGS, json_lines, parse_line, stream_json_list, take
from .records import Records, usable

IMAGE = "<image>"


@dataclass(frozen=True, slots=True)
class Conversation:
    """`<image>` stands once in it, before the question that showed it; nowhere without an image."""

    id: str
    image: str  # path, "" = text only
    turns: tuple[Turn, ...]


class Conversations(Records):
    """A sequence of conversations, in the order of the file."""

    def __init__(self, annotations: str | Path, images: str | Path) -> None:
        path = Path(annotations)
        super().__init__([path], images, "conversations 3", lambda: _rows(path))

    @property
    def lengths(self) -> np.ndarray:
        """int64[N], how much text each record holds, in bytes."""
        return self._index.lengths

    def __getitem__(self, index: int) -> Conversation:
        record, id = self._index[index], self.id(index)
        what = f"conversation {id}"
        if not (pairs := _pairs(record["conversations"], what)):
            raise BadSample(f"{what}: no question with an answer")
        shown = [number for number, (question, _) in enumerate(pairs) if IMAGE in question]
        if shown and record["image"] is None:
            raise BadSample(f"{what}: shows an image but names none")
        turns = [Turn(_plain(question.replace(IMAGE, "")), _plain(answer)) for question, answer in pairs]
        if record["image"] is None:
            return Conversation(id, "", tuple(turns))
        first = min(shown, default=0)
        turns[first] = Turn(f"{IMAGE}\n{turns[first].question}", turns[first].answer)
        return Conversation(id, str(self.images / take(record, "image", str, what)), tuple(turns))


def _rows(path: Path) -> Iterator[tuple[str, Any]]:
    if path.suffix == ".jsonl":
        return usable(json_lines(path), lambda line, what: _row(parse_line(line, what), what))
    return usable(((f"record {number}", record) for number, record in enumerate(stream_json_list(path))), _row)


def _row(record: Any, what: str) -> dict[str, Any]:
    talk, image = take(record, "conversations", list, what), record.get("image") or None
    return {"id": record.get("id", what), "conversations": talk, "image": image}


def _pairs(messages: list[Any], what: str) -> list[tuple[str, str]]:
    """Each question with the answer after it; an answer without a question is left out, as LLaVA does."""
    pairs, question = [], ""
    for message in messages:
        speaker, text = take(message, "from", str, what), take(message, "value", str, what)
        if speaker not in ("human", "gpt"):
            raise BadSample(f"{what}: nobody is called {speaker!r}; there is human and gpt")
        if SURROGATE.search(text):
            raise BadSample(f"{what}: half a surrogate pair in {speaker!r}")
        if speaker == "human":
            question = text
        elif question:
            pairs.append((question, text))
            question = ""
    return pairs


def _plain(text: str) -> str:
    """Stripped text in which tags are only letters, as `<p>` is in a conversation about HTML."""
    return TAGS.sub(lambda tag: f"< {tag[0][1:]}", text.strip())
