"""The public door: a trained folder in, words and clicks in, masks and text out.

model = XSam.from_pretrained("runs/shapes/stage3")
result = model.refer("picture.png", "the small green ring")"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

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
from .models import lora
from .models.xsam import XSamModel
from .structures import ItemOutput, Sample, Turn, UserError
from .tasks import generic, referring


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
    checkpoint: str, config_path: str = "", overrides: Sequence[str] = (), device: str = "", new: Sequence[str] = ()
) -> tuple[XSamModel, Processor, dict[str, Any]]:
    """Build and load a model (in the checkpoint's precision), its processor and its config. Raises UserError where
    there is no config, no weights, or weights that do not fit the model or the tokenizer.

    Args:
        checkpoint: a run folder, another file of weights, or a hub name; "random" asks for random weights.
        config_path, overrides: the config to build, by default that of the checkpoint's folder, and its changes.
        new: patterns of what may be missing in the checkpoint, and is random then."""
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
    return model.to(device or ("cuda" if torch.cuda.is_available() else "cpu")).eval(), processor, config


class XSam:
    """A model that answers questions about images."""

    def __init__(self, model: XSamModel, processor: Processor) -> None:
        self.model, self.processor = model, processor

    @classmethod
    def from_pretrained(cls, checkpoint: str, device: str = "") -> "XSam":
        """From a run folder (weights, config, tokenizer)."""
        return cls(*load(checkpoint, device=device)[:2])

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

    @torch.no_grad()
    def chat(self, image: str | Path, question: str, max_new_tokens: int = 128) -> Result:
        """A free answer in words."""
        sample = Sample(id="", image=str(image), turns=(Turn(f"<image>\n{question}", ""),))
        batch = collate([self.processor.prompt(sample, 0)]).to(next(self.model.parameters()).device)
        (answer,) = self.model.generate(batch, max_new_tokens, self.processor.stop_ids)
        return Result(read_image(image), question, self.processor.text(answer))

    @torch.no_grad()
    def _forced(self, image: str | Path, question: str, answer: str) -> list[ItemOutput]:
        turns = (Turn(f"<image>\n{question}", answer),) if self.model.llm is not None else ()
        encoded = self.processor(Sample(id="", image=str(image), turns=turns), key("predict"))
        batch = collate([encoded]).to(next(self.model.parameters()).device)
        return uncollate(self.model(batch), batch, [encoded])[0]
