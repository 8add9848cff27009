"""LLaVA's conversations: a JSON list of records, each about one image or none."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..structures import BadSample, Turn, UserError
from .coco import read_json, require_folder

IMAGE = "<image>"


@dataclass(frozen=True, slots=True)
class Conversation:
    """A record. `<image>` stands once, before the question that showed it; nowhere without an image."""

    id: str
    image: str  # path, "" = text only
    turns: tuple[Turn, ...]


class Conversations:
    """A sequence of conversations, in the order of the file.

    Raises UserError when the file or the folder is missing or it is not a list; asking for a malformed record
    raises BadSample with its id and what is wrong.
    """

    def __init__(self, annotations: str | Path, images: str | Path) -> None:
        self._records: list[dict[str, Any]] = read_json(annotations)
        if not isinstance(self._records, list):
            raise UserError(f"{annotations}: not a list of conversations; it is another kind of file")
        self._images = require_folder(images)

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: int) -> Conversation:
        record = self._records[index]
        name = str(record.get("id", index))
        turns = _turns(record.get("conversations", []))
        if not turns:
            raise BadSample(f"conversation {name}: no question with an answer")
        shown = [IMAGE in turn.question for turn in turns]
        if not record.get("image"):
            if any(shown):
                raise BadSample(f"conversation {name}: shows an image but names none")
            return Conversation(name, "", tuple(turns))
        first = shown.index(True) if any(shown) else 0
        questions = [turn.question.replace(IMAGE, "").strip() for turn in turns]
        questions[first] = f"{IMAGE}\n{questions[first]}"
        pairs = (Turn(question, turn.answer) for question, turn in zip(questions, turns, strict=True))
        return Conversation(name, str(self._images / record["image"]), tuple(pairs))


def _turns(messages: list[dict[str, str]]) -> list[Turn]:
    """Each question with the answer after it; an answer without a question is left out, as LLaVA does."""
    turns: list[Turn] = []
    question = ""
    for message in messages:
        if message["from"] == "human":
            question = message["value"]
        elif question:
            turns.append(Turn(question.strip(), message["value"].strip()))
            question = ""
    return turns
