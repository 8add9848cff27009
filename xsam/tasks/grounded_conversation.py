"""Grounded conversation generation: a caption that the model writes, with a mask for every phrase that it marks."""

import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from ..data import submission
from ..data.gcg import GcgPairs, GrandF, GroundedCaption
from ..data.masks import encode_rle, pack, unpack
from ..data.postprocess import best_mask
from ..metrics.grounded_caption import GroundedCaptionScore
from ..structures import ItemOutput, Prediction, Sample, Segment
from .base import Task

QUESTIONS = ("Describe this image briefly and give the masks of what you mention, phrase by phrase.",
             "What is in this image? Mark the things in your description and segment them.",
             "Write a short caption whose phrases are tied to masks.",
             "Please tell me what you see, with a segmentation mask for each phrase that names it.")  # fmt: skip
ANSWERS = ("{caption} <SEG>.", "{caption} Here they are: <SEG>.", "{caption} The masks are <SEG>.",
           "{caption} It looks like this: <SEG>.")  # fmt: skip


class GroundedConversation(Task):
    """Captions with marked phrases; one `<SEG>` at the end asks for the masks of all of them.

    The candidates are the spans of the answer itself. In evaluation the model writes the answer in every protocol.
    `similarity` is that of `GroundedCaptionScore`."""

    name = "grounded_conversation"
    generates = True
    data: GrandF | GcgPairs

    def __init__(self, *, data: GrandF | GcgPairs, train: bool = False, max_new_tokens: int = 512, similarity: str = "",
                 questions: Sequence[str] = QUESTIONS, answers: Sequence[str] = ANSWERS) -> None:  # fmt: skip
        self.data, self.train, self.max_new_tokens, self.similarity = data, train, max_new_tokens, similarity
        self.questions, self.answers = questions, answers

    def sample(self, index: int, rng: np.random.Generator) -> Sample:
        record = self.data[index]
        masks = record.masks()
        truth = {"image_id": record.image_id, "caption": record.caption, "labels": record.labels}
        return Sample(id=self.id(index), image=record.image, turns=(self.turn(rng, caption=marked(record)),),
                      masks=pack(masks), labels=np.array(record.owners or range(len(masks)), np.int64),
                      mask_segs=np.zeros(len(masks), np.int64), truth={} if self.train else truth)  # fmt: skip

    def postprocess(self, outputs: Sequence[ItemOutput], text: str, sample: Sample) -> Prediction:
        found = shown(outputs[0], text) if len(outputs) == 1 else ()
        segments = tuple(Segment(encode_rle(mask.cpu().numpy()), phrase, score) for mask, phrase, score, _ in found)
        return Prediction(id=sample.id, text=text, segments=segments, failed=not segments)

    def metric(self) -> GroundedCaptionScore:
        return GroundedCaptionScore(similarity=self.similarity)

    def export(self, answered: submission.Answered, path: Path) -> None:
        """GLaMM's predictions: `{image_id: {"caption", "phrases", "pred_masks"}}`."""
        answers = {sample.truth["image_id"]: _said(prediction) for prediction, sample in answered}
        for answer in answers.values():
            answer["pred_masks"] = answer.pop("masks")
        path.write_text(json.dumps(answers))

    def score(self, metric: Any, prediction: Prediction, sample: Sample) -> None:
        metric.update(sample.id, sample.masks.ids.shape[1:], **_said(prediction),
                      true_captions=[sample.truth["caption"]], true_phrases=sample.truth["labels"],
                      true_masks=[encode_rle(mask) for mask in unpack(sample.masks)])  # fmt: skip


def shown(output: ItemOutput, answer: str) -> Iterator[tuple[Tensor, str, float, tuple[int, int]]]:
    """The mask bool[H, W] of every phrase of an answer, the phrase, its probability, and where it stands in the
    `caption`, begin and end; (0, 0) in a sentence that was left out. Nothing where the answer cannot be used."""
    said, phrases = parse(answer) or ("", ())
    if output.class_logits.shape[1] != len(phrases) + 1:
        return
    place = 0
    for column, phrase in enumerate(phrases):
        mask, score = best_mask(output, column=column)
        words = untagged(phrase)
        begin = said.find(words, place)
        place = begin + len(words) if begin >= 0 else place
        yield mask, phrase, score, (begin, place) if begin >= 0 else (0, 0)


def caption(answer: str) -> str:
    """The words of an answer: the caption, or all that there is."""
    return (parse(answer) or (untagged(answer),))[0]


def _said(prediction: Prediction) -> dict[str, Any]:
    """Caption, phrases and masks of an answer."""
    parsed = None if prediction.failed else parse(prediction.text)
    return {"caption": parsed[0] if parsed else "", "phrases": [str(segment.label) for segment in prediction.segments],
            "masks": [segment.segmentation for segment in prediction.segments]}  # fmt: skip


def marked(record: GroundedCaption) -> str:
    """The caption as an answer has it: in lower case, phrases as `<p>phrase</p> `, closed by a full stop."""
    pieces, place = [], 0
    for begin, end in record.spans:
        pieces += [record.caption[place:begin], f"<p>{record.caption[begin:end]}</p> "]
        place = end
    rest = record.caption[place:].rstrip(' "')
    text = "".join([*pieces, rest if rest.endswith((".", "!", "?")) else f"{rest}."])
    return re.sub(r"\s+", " ", text).lstrip(' "').lower()


def parse(answer: str) -> tuple[str, tuple[str, ...]] | None:
    """The caption without tags, and the phrases between them in order, of an answer with one `<SEG>`.

    The sentence of the `<SEG>` is no part of the caption, unless it has a phrase: then it is what went before that was
    left without a full stop, and only the `<SEG>` goes. None when there is not exactly one `<SEG>`, or tags are nested
    or unbalanced."""
    tags = re.findall(r"</?p>", answer)
    if answer.count("<SEG>") != 1 or tags != ["<p>", "</p>"] * (len(tags) // 2):
        return None
    phrases = re.findall(r"<p>(.*?)</p>", answer, re.DOTALL)
    kept = [part for part in re.split(r"(?<=[.!?])\s+", answer) if "<SEG>" not in part or "p>" in part]
    return untagged(" ".join(kept)), tuple(phrase.strip() for phrase in phrases)


def untagged(answer: str) -> str:
    """The words of an answer, without tags."""
    words = re.sub(r"\s+", " ", re.sub(r"</?p>|<SEG>\W*", " ", answer))
    return re.sub(r"\s+([.,;:!?])", r"\1", words).strip()
