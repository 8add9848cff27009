"""LLaVA's conversations: a JSON list of records, each about one image or none."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..structures import BadSample, Turn
from .index import SURROGATE, TAGS, bad_row, stream_json_list, take, unique
from .records import Records

IMAGE = "<image>"


@dataclass(frozen=True, slots=True)
class Conversation:
    """A record. `<image>` stands once, before the question that showed it; nowhere without an image."""

    id: str
    image: str  # path, "" = text only
    turns: tuple[Turn, ...]


class Conversations(Records):
    """A sequence of conversations, in the order of the file.

    Raises UserError when the file or the folder is missing or it is not a list of conversations; asking for a
    malformed record raises BadSample with its id and what is wrong.
    """

    def __init__(self, annotations: str | Path, images: str | Path) -> None:
        super().__init__([annotations], images, "conversations 1", lambda: _rows(annotations))

    @property
    def lengths(self) -> np.ndarray:
        """int64[N], how much text each record holds, in bytes."""
        return self._index.lengths

    def __getitem__(self, index: int) -> Conversation:
        record = self._index[index]
        what = f"conversation {record['id']}"
        turns = _turns(record["conversations"], what)
        if not turns:
            raise BadSample(f"{what}: no question with an answer")
        shown = [IMAGE in turn.question for turn in turns]
        if record["image"] is None and any(shown):
            raise BadSample(f"{what}: shows an image but names none")
        questions = [_plain(turn.question.replace(IMAGE, "")) for turn in turns]
        image = ""
        if record["image"] is not None:
            image = str(self._images / take(record, "image", str, what))
            first = shown.index(True) if any(shown) else 0
            questions[first] = f"{IMAGE}\n{questions[first]}"
        pairs = (Turn(question, _plain(turn.answer)) for question, turn in zip(questions, turns, strict=True))
        return Conversation(record["id"], image, tuple(pairs))


def _rows(annotations: str | Path) -> Iterator[dict[str, Any]]:
    seen: set[str] = set()
    for number, record in enumerate(stream_json_list(annotations)):
        try:
            messages = take(record, "conversations", list, f"record {number}")
        except BadSample as error:
            yield bad_row(str(error))
            continue
        name = unique(str(record.get("id", f"record {number}")), number, seen)
        yield {"id": name, "image": record.get("image") or None, "conversations": messages}


def _turns(messages: list[Any], what: str) -> list[Turn]:
    """Each question with the answer after it; an answer without a question is left out, as LLaVA does."""
    turns: list[Turn] = []
    question = ""
    for message in messages:
        speaker, text = take(message, "from", str, what), take(message, "value", str, what)
        if speaker not in ("human", "gpt"):
            raise BadSample(f"{what}: nobody is called {speaker!r}; there is human and gpt")
        if SURROGATE.search(text):
            raise BadSample(f"{what}: half a surrogate pair in {speaker!r}")
        if speaker == "human":
            question = text
        elif question:
            turns.append(Turn(question, text))
            question = ""
    return turns


def _plain(text: str) -> str:
    """Stripped text in which tags are only letters, as `<p>` is in a conversation about HTML."""
    return TAGS.sub(lambda tag: f"< {tag[0][1:]}", text.strip())
