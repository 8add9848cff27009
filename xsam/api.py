"""The public door: a trained folder in, words and clicks in, masks and text out.

model = XSam.from_pretrained("runs/shapes/stage3")
result = model.refer("picture.png", "the small green ring")"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from hashlib import blake2b
from pathlib import Path
from typing import Any, Literal, overload

import numpy as np
import torch
from torch.utils._pytree import tree_map

from . import config as configs
from .checkpoints.loading import load_model
from .checkpoints.pretrained import RANDOM, fetch
from .data.collate import collate, uncollate
from .data.images import read_image
from .data.masks import mask_box
from .data.mixture import key
from .data.postprocess import best_mask
from .data.prompt import Processor
from .engine.distributed import say
from .engine.stages import compile_parts
from .models import lora
from .models.language import decode, quantize
from .models.xsam import ImageFeatures, XSamModel
from .structures import Batch, Encoded, ItemOutput, Sample, Turn, UserError
from .tasks import generic, referring

KEPT = 8  # images whose features are kept: about 36 MB each in bf16 at full size


@dataclass(frozen=True, slots=True)
class Found:
    """One mask and what it is."""

    mask: np.ndarray  # bool[H, W]
    label: str
    score: float

    @property
    def box(self) -> tuple[int, int, int, int]:
        """(x0, y0, x1, y1) in pixels, maximum exclusive."""
        return mask_box(self.mask)


@dataclass(frozen=True, slots=True)
class Result:
    """The answer to one question about one image."""

    image: np.ndarray  # uint8[H, W, 3]
    question: str
    text: str
    found: tuple[Found, ...] = ()


def load(
    checkpoint: str, config_path: str = "", overrides: Sequence[str] = (), device: str = "", new: Sequence[str] = (),
    dtype: torch.dtype | None = None, bits: int = 0, compile: Sequence[str] = (),
) -> tuple[XSamModel, Processor, dict[str, Any]]:  # fmt: skip
    """Build and load a model, its processor and its config. Raises UserError where there is no config, no weights, or
    weights that do not fit the model or the tokenizer.

    Args:
        checkpoint: a run folder, another file of weights, or a hub name; "random" asks for random weights.
        config_path, overrides: the config to build, by default that of the checkpoint's folder, and its changes.
        new: patterns of what may be missing in the checkpoint, and is random then.
        dtype, bits: of the weights, by default as they are; of the language model's alone, 8 or 4 (`quantize`).
        compile: modules for torch.compile."""
    folder = Path(checkpoint) if checkpoint == RANDOM else fetch(checkpoint)
    stored = folder / "config.json"
    if not config_path and (checkpoint == RANDOM or not stored.is_file()):
        raise UserError(f"checkpoint {checkpoint} holds no config.json; give the config of the model as well")
    config = configs.load(config_path or stored, overrides)
    if "model" not in config or "processor" not in config:
        raise UserError(f"{config_path or stored}: describes no model of X-SAM; give the config of the model")
    chosen = config_path or any(override.startswith("processor.tokenizer=") for override in overrides)
    if not chosen and (folder / "tokenizer_config.json").is_file():
        config["processor"]["tokenizer"] = str(folder)  # a run folder needs nothing else
    processor = configs.build(config["processor"])
    torch.manual_seed(0)  # random weights, where they are asked for, are the same each time
    if checkpoint == RANDOM:
        model = configs.build(config["model"])
    else:
        model, report = load_model(
            config["model"], [checkpoint], new, vocabulary=len(processor.tokenizer or ()),
            adapters=lora.of_config(configs.load(stored)) if stored.is_file() else None,
        )  # fmt: skip
        say(str(report))
    model.to(dtype=dtype)
    if bits and model.llm is not None:
        quantize(model.llm, bits)
    compile_parts(model, compile)
    return model.to(device or ("cuda" if torch.cuda.is_available() else "cpu")).eval(), processor, config


class XSam:
    """A model that answers questions about images. What its encoders know of the last `KEPT` images is kept, so the
    next question about one of them is answered faster."""

    def __init__(self, model: XSamModel, processor: Processor) -> None:
        self.model, self.processor = model, processor
        self._kept: dict[bytes, ImageFeatures] = {}  # by content, of one image each; the last used stands last

    @classmethod
    def from_pretrained(cls, checkpoint: str, **options: Any) -> "XSam":
        """From a run folder (weights, config, tokenizer); options as in `load`."""
        return cls(*load(checkpoint, **options)[:2])

    def segment(
        self, image: str | Path, things: Sequence[str], stuff: Sequence[str] = (), kind: str = "panoptic",
        score: float = 0.5,
    ) -> Result:  # fmt: skip
        """Every thing and all stuff of the named categories: "panoptic", "instance" or "semantic". `score` is the least
        class probability of what is returned."""
        names = [*things, *stuff]
        question = generic.QUESTIONS[0].format(categories=", ".join(f"<p>{name}</p>" for name in names))
        (output,) = self._forced(image, question, generic.ANSWERS[0])
        if (known := output.class_logits.shape[1] - 1) != len(names):
            raise UserError(f"the model knows a closed set of {known} classes, {len(names)} were named")
        rows = generic.segments(output, kind, [True] * len(things) + [False] * len(stuff), score)
        found = (Found(mask.cpu().numpy(), names[column], value) for mask, column, value in rows)
        return Result(read_image(image), question, "", tuple(found))

    def refer(self, image: str | Path, phrase: str) -> Result:
        """The one thing an expression means."""
        question = referring.QUESTIONS[0].format(phrase=f"<p>{phrase}</p>")
        (output,) = self._forced(image, question, referring.ANSWERS[0])
        mask, score = best_mask(output)
        return Result(read_image(image), phrase, "", (Found(mask.cpu().numpy(), phrase, score),))

    @overload
    def chat(self, image: str | Path, question: str, max_new_tokens: int = 128) -> Result: ...
    @overload
    def chat(
        self, image: str | Path, question: str, max_new_tokens: int = 128, *, stream: Literal[True]
    ) -> Iterator[str]: ...
    def chat(
        self, image: str | Path, question: str, max_new_tokens: int = 128, *, stream: bool = False
    ) -> Result | Iterator[str]:
        """A free answer in words; with `stream` piece by piece, while it is made."""
        pieces = self._pieces(image, question, max_new_tokens)
        return pieces if stream else Result(read_image(image), question, "".join(pieces))

    @torch.no_grad()
    def ask(self, samples: Sequence[Sample]) -> list[list[ItemOutput]]:
        """What the decoder gives for every `<SEG>` of samples whose answers are given, in one pass."""
        encoded = [self.processor(sample, key("predict")) for sample in samples]
        batch, features = self._seen(encoded)
        return uncollate(self.model(batch, features), batch, encoded)

    def _forced(self, image: str | Path, question: str, answer: str) -> list[ItemOutput]:
        turns = (Turn(f"<image>\n{question}", answer),) if self.model.llm is not None else ()
        return self.ask([Sample(id="", image=str(image), turns=turns)])[0]

    @torch.no_grad()
    def _pieces(self, image: str | Path, question: str, max_new_tokens: int) -> Iterator[str]:
        """A generated answer, piece by piece; a character that takes several tokens comes with its last."""
        sample = Sample(id="", image=str(image), turns=(Turn(f"<image>\n{question}", ""),))
        batch, features = self._seen([self.processor.prompt(sample, 0)])
        assert self.model.llm is not None, "this model has no language model"
        spliced = self.model.splice(batch, features)
        answer, text, told = list[int](), "", 0
        for token, _ in decode(self.model.llm, spliced, max_new_tokens, self.processor.stop_ids):
            answer += token.tolist()
            text = self.processor.text(answer)
            if len(text) > told and not text.endswith("\ufffd"):
                yield text[told:]
                told = len(text)
        yield text[told:]

    def _seen(self, encoded: Sequence[Encoded]) -> tuple[Batch, ImageFeatures]:
        """A batch on the model's device, and the features of its images. Those that are not known are encoded."""
        batch = collate(encoded, 1)
        images = zip(batch.pixel_values, batch.seg_pixel_values, batch.seg_sizes, strict=True)
        keys = [blake2b(b"".join(part.numpy() for part in image)).digest() for image in images]
        batch = batch.to(next(self.model.parameters()).device)
        for place, name in enumerate(keys):
            if name not in self._kept:
                own = {n: getattr(batch, n)[[place]] for n in ("pixel_values", "seg_pixel_values", "seg_sizes")}
                self._kept[name] = self.model.decode_pixels(self.model.encode(replace(batch, **own)))
            self._kept[name] = self._kept.pop(name)
        parts = [self._kept[name] for name in keys] or [self.model.encode(batch)]
        self._kept = dict([*self._kept.items()][-KEPT:])
        return batch, tree_map(lambda *each: torch.cat(each), *parts)
