"""From a sample to arrays: chat template, token ids, supervised labels, spans, both images, targets in the frame."""

import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from ..structures import IGNORE_INDEX, IMAGE_TOKEN, REGION_TOKEN, BadSample, Encoded, Sample, Turn, UserError
from .images import fit_frame, read_image, vision_image
from .masks import decode_rle, pad_ids, resize_ids, select
from .regions import sample_points

SPECIAL_TOKENS = ("<SEG>", "<p>", "</p>")  # added to every tokenizer, in this order
PLACEHOLDERS = {"<image>": IMAGE_TOKEN, "<region>": REGION_TOKEN}


@dataclass(frozen=True, slots=True)
class ChatTemplate:
    """How one conversation is written for a language model. Supervised: the answer and `end`."""

    user: str  # around the question, up to where the answer begins
    end: str  # closes an answer
    bos: bool  # whether the conversation begins with the tokenizer's bos token


_QWEN3 = ChatTemplate(user="<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n", end="<|im_end|>", bos=False)
TEMPLATES = {
    "phi3": ChatTemplate(user="<|user|>\n{}<|end|>\n<|assistant|>\n", end="<|end|>", bos=True),
    "qwen3": _QWEN3,
    "qwen3_no_thinking": replace(_QWEN3, user=_QWEN3.user + "<think>\n\n</think>\n\n"),
}


class Processor:
    """Everything between a `Sample` and the model's arrays; the same in training, evaluation and prediction.

    Args:
        seg_size, vision_size: sides of the segmentation frame (S) and the vision encoder's image (0 without an LLM).
        tokenizer: folder or hub name of a transformers tokenizer; "" without a language model.
        max_length: most text tokens of a conversation, an image or region counting as one.
        vision_geometry, vision_resample: "pad" with grey or "squash" (released stage 3), "bilinear" or "bicubic"."""

    def __init__(
        self, *, seg_size: int, vision_size: int = 0, tokenizer: str = "", template: str = "phi3",
        max_length: int = 2319, vision_geometry: str = "pad", vision_resample: str = "bilinear",
    ) -> None:  # fmt: skip
        if template not in TEMPLATES:
            raise UserError(f"processor.template={template!r} is unknown; there is: {', '.join(TEMPLATES)}")
        self.seg_size, self.vision_size, self.max_length = seg_size, vision_size, max_length
        self.vision_geometry, self.vision_resample = vision_geometry, vision_resample
        self.template = TEMPLATES[template]
        self.tokenizer: Any = load_tokenizer(tokenizer) if tokenizer else None
        if self.tokenizer is not None:
            self.seg_id, self.open_id, self.close_id = self.tokenizer.convert_tokens_to_ids(list(SPECIAL_TOKENS))
            self.tag_ids = (self.seg_id, self.open_id, self.close_id)
            end = self.tokenizer.convert_tokens_to_ids(self.template.end)
            self.stop_ids = tuple({end, self.tokenizer.eos_token_id} - {None})

    def __call__(self, sample: Sample, key: int, *, shorten: bool = False) -> Encoded:
        """Encode a sample; `key` seeds the region points and, later, the criterion's points.

        With `shorten` (training), a conversation that is too long loses its last turns and what they ask for. Raises
        BadSample where the text is longer than `max_length`, a tag is unbalanced, a prompt region is empty, `<region>`
        and prompts are not as many, or an image cannot be read."""
        turns = [self.tokenize(number, turn) for number, turn in enumerate(sample.turns)]
        if shorten:
            fit = int(np.searchsorted(np.cumsum([len(ids) for ids, _ in turns]), self.max_length, side="right"))
            turns = turns[: max(1, fit)]
            sample = first_turns(sample, len(turns))
        return self._encode(sample, key, turns)

    def prompt(self, sample: Sample, key: int) -> Encoded:
        """Encode all turns up to where the last answer begins, for generation."""
        turns = [*sample.turns[:-1], replace(sample.turns[-1], answer="")]
        ids = [id for number, turn in enumerate(turns) for id in self.tokenize(number, turn)[0]]
        ids = ids[: len(ids) - len(self._ids(self.template.end))]
        return self._encode(sample, key, [(ids, [IGNORE_INDEX] * len(ids))])

    def answered(self, prompt: Encoded, answer: list[int]) -> Encoded:
        """A prompt followed by a generated answer. Raises BadSample where a tag is unbalanced."""
        ids = np.append(prompt.input_ids, np.array(answer, np.int64))
        spans, segs = self._spans(ids, prompt.id)
        return replace(prompt, input_ids=ids, labels=np.full_like(ids, IGNORE_INDEX), span_ids=spans, seg_ids=segs)

    def tokenize(self, number: int, turn: Turn) -> tuple[list[int], list[int]]:
        """Token ids and labels of the number-th turn; text around placeholders is tokenised piece by piece."""
        assert self.tokenizer is not None, "text needs processor.tokenizer"
        question = self._ids("\n") if number else [self.tokenizer.bos_token_id] * self.template.bos
        for piece in re.split("(<image>|<region>)", self.template.user.format(turn.question)):
            question += [PLACEHOLDERS[piece]] if piece in PLACEHOLDERS else self._ids(piece)
        answer = self._ids(turn.answer + self.template.end)
        return question + answer, [IGNORE_INDEX] * len(question) + answer

    def text(self, ids: list[int]) -> str:
        """Generated ids as text, with the tags kept."""
        return self.tokenizer.decode([i for i in ids if i not in self.stop_ids]).strip()

    def _ids(self, text: str) -> list[int]:
        return self.tokenizer(text, add_special_tokens=False).input_ids if text else []

    def _encode(self, sample: Sample, key: int, turns: list[tuple[list[int], list[int]]]) -> Encoded:
        input_ids = np.array([i for ids, _ in turns for i in ids], np.int64)
        if len(input_ids) > self.max_length:
            raise BadSample(f"{sample.id}: {len(input_ids)} text tokens, more than max_length={self.max_length}")
        asked, given = int((input_ids == REGION_TOKEN).sum()), len(sample.slots) or len(sample.regions)
        if asked != given:
            raise BadSample(f"{sample.id}: {asked} <region> in the text, {given} visual prompts")
        span_ids, seg_ids = self._spans(input_ids, sample.id) if len(input_ids) else (input_ids, input_ids)
        pixels, frame, seg_size, image_size = self._image(sample.image)
        shown = dict.fromkeys(region.image for region in sample.regions)
        references = {name: self._image(name)[:3] for name in shown if name}
        sizes = {"": seg_size} | {name: size for name, (_, _, size) in references.items()}
        targets = np.full((1, self.seg_size, self.seg_size), -1, np.int16)
        if sample.masks.ids.size and sample.masks.ids.shape[1:] != image_size:  # also where there is no mask
            raise BadSample(f"{sample.id}: masks are {sample.masks.ids.shape[1:]}, the image is {image_size}")
        if sample.masks.count:
            targets = pad_ids(resize_ids(sample.masks.ids, *seg_size), self.seg_size)
        rng = np.random.default_rng(key)
        drawn = (resize_ids(decode_rle(r.mask)[None] - np.int16(1), *sizes[r.image]) for r in sample.regions)  # 0 or -1
        points = [sample_points(pad_ids(ids, self.seg_size)[0] == 0, rng) for ids in drawn]
        return Encoded(
            id=sample.id, image=sample.image, key=key, input_ids=input_ids, span_ids=span_ids, seg_ids=seg_ids,
            labels=np.array([label for _, labels in turns for label in labels], np.int64),
            pixel_values=pixels, seg_pixel_values=frame, seg_size=seg_size, image_size=image_size, target_ids=targets,
            target_labels=sample.labels, target_segs=sample.mask_segs, shared_candidates=sample.shared_candidates,
            region_points=np.stack(points) if points else np.zeros((0, 256, 2), np.float32),
            region_labels=np.array([r.label for r in sample.regions], np.int64),
            region_images=np.array([list(sizes).index(r.image) - 1 for r in sample.regions], np.int64),
            slots=sample.slots, references=tuple(references.values()),
        )  # fmt: skip

    def _image(self, path: str) -> tuple[np.ndarray, np.ndarray, tuple[int, int], tuple[int, int]]:
        """Pixels for the vision encoder, pixels in the frame, the (h, w) that they cover there, and (H, W)."""
        pixels = np.zeros((3, 0, 0), np.uint8)
        if not path:
            return pixels, pixels, (0, 0), (0, 0)
        image = read_image(path)
        frame, seg_size = fit_frame(image, self.seg_size)
        if self.vision_size:
            pixels = vision_image(image, self.vision_size, self.vision_geometry, self.vision_resample)
        return pixels, frame, seg_size, (image.shape[0], image.shape[1])

    def _spans(self, ids: np.ndarray, name: str) -> tuple[np.ndarray, np.ndarray]:
        """Number of the `<p>..</p>` span of every token, tags included, and number of every `<SEG>`; -1 elsewhere."""
        opened, closed = ids == self.open_id, ids == self.close_id
        depth = opened.cumsum() - closed.cumsum()
        if depth.min() < 0 or depth.max() > 1 or depth[-1]:
            raise BadSample(f"{name}: <p> and </p> are not balanced")
        seg = ids == self.seg_id
        return np.where((depth == 1) | closed, opened.cumsum() - 1, -1), np.where(seg, seg.cumsum() - 1, -1)


def first_turns(sample: Sample, count: int) -> Sample:
    """The sample without all but its first `count` turns, and without the masks and regions that the others ask for.
    Raises BadSample where a mask that stays is labelled with a phrase of a turn that does not."""
    if count >= len(sample.turns):
        return sample
    text = "".join(turn.question + turn.answer for turn in sample.turns[:count])
    kept = np.flatnonzero(sample.mask_segs < text.count("<SEG>"))
    if sample.labels[kept].max(initial=-1) >= text.count("<p>"):
        raise BadSample(f"{sample.id}: the text is too long, and its first turns need phrases of later ones")
    regions = text.count("<region>")
    return replace(
        sample, turns=sample.turns[:count], masks=select(sample.masks, kept),
        labels=sample.labels[kept], mask_segs=sample.mask_segs[kept], slots=sample.slots[:regions],
        regions=sample.regions if len(sample.slots) else sample.regions[:regions],
    )  # fmt: skip


def load_tokenizer(name: str) -> Any:
    """A transformers tokenizer with X-SAM's three special tokens at its end. UserError where it is not to be had."""
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=False)  # nor is the user asked
    except (OSError, ValueError) as error:
        hint = "" if Path(name).exists() else "; give a local folder as processor.tokenizer=..., or allow the hub"
        raise UserError(f"tokenizer {name!r} cannot be loaded ({str(error).splitlines()[0]}){hint}") from None
    tokenizer.add_special_tokens({"additional_special_tokens": [*SPECIAL_TOKENS]}, replace_extra_special_tokens=False)
    return tokenizer
