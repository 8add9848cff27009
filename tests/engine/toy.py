"""A model, a criterion and a loader that are small but real: unequal token counts, images without masks, a
tensor large enough that ZeRO-3 scatters it.
"""

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import xsam  # noqa: F401
from xsam.models.criterion import Counts
from xsam.structures import IGNORE_INDEX, Batch, DecoderItems, ModelOutput

VOCABULARY, TOKENS, SAMPLES = 7, 3, 8  # SAMPLES = the global batch


class ScaledLinear(nn.Linear):
    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs)
        self.scale = nn.Parameter(torch.ones(1))

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * self.scale


class Toy(nn.Module):
    num_queries = 2

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Linear(3 * 8 * 8, 640)
        self.neck = nn.Sequential(nn.Linear(640, 16), nn.LayerNorm(16))
        self.head = ScaledLinear(16, TOKENS * VOCABULARY)

    def forward(self, batch: Batch) -> ModelOutput:
        hidden = self.neck(self.encoder(batch.pixel_values.flatten(1).to(self.head.weight.dtype)).tanh())
        logits = self.head(hidden).view(-1, TOKENS, VOCABULARY)
        supervised = batch.labels != IGNORE_INDEX
        return ModelOutput(
            text_logits=logits[supervised],
            text_targets=batch.labels[supervised],
            mask_embeds=hidden[batch.items.image][None, :, None],
            mask_features=hidden[..., None, None],
            class_logits=hidden.new_zeros(0),
            item_image=batch.items.image,
            idle=hidden.new_zeros(()),
        )


class ToyCriterion:
    def count(self, batch: Batch, num_queries: int) -> Counts:
        tokens = (batch.labels != IGNORE_INDEX).sum()
        return Counts(float(tokens), float(len(batch.items)), float(num_queries * len(batch.items)))

    def __call__(self, output: ModelOutput, batch: Batch, counts: Counts) -> dict[str, Tensor]:
        text = F.cross_entropy(output.text_logits.float(), output.text_targets, reduction="sum")
        losses = {"text": text / counts.tokens}
        if len(batch.items):  # a rank without masks lacks the term
            losses["mask"] = (output.mask_embeds.float() - 1).square().sum() / counts.masks
        return losses


def samples(step: int, start: int, count: int) -> Batch:
    """Samples `start` .. of the global batch of a step; the last ones have no mask; they differ in tokens."""
    generator = torch.Generator().manual_seed(step)
    pixels = torch.randn(SAMPLES, 3, 8, 8, generator=generator)
    labels = torch.randint(VOCABULARY, (SAMPLES, TOKENS), generator=generator)
    labels[torch.arange(TOKENS) > torch.arange(SAMPLES)[:, None] % TOKENS] = IGNORE_INDEX
    own = slice(start, start + count)
    masked = torch.tensor([i for i in range(count) if start + i < SAMPLES // 2 + 1], dtype=torch.int64)
    fields = dict.fromkeys((field.name for field in dataclasses.fields(Batch)), torch.zeros(0))
    fields |= {
        "ids": tuple(f"{step}/{i}" for i in range(start, start + count)),
        "labels": labels[own],
        "pixel_values": pixels[own],
        "items": DecoderItems(image=masked, sample=masked, seg=masked, candidates=masked[:, None]),
    }
    return Batch(**fields)


def loader(
    *, batch_size: int, accumulation: int, rank: int, world_size: int, start_step: int, steps: int, workers: int
) -> Iterator[tuple[str, list[Batch]]]:
    assert batch_size == SAMPLES
    count = SAMPLES // world_size // accumulation
    for step in range(start_step, steps):
        yield "toy", [samples(step, (micro * world_size + rank) * count, count) for micro in range(accumulation)]


def build() -> Toy:
    torch.manual_seed(0)
    return Toy()


def losses(work_dir: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (work_dir / "log.jsonl").read_text().splitlines()]
