"""`xsam benchmark growth`: how the cost of a part grows with what it is given, as the exponent of a power law."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure

from xsam.data.postprocess import semantic
from xsam.models.criterion import Criterion
from xsam.models.language import causal_lm
from xsam.structures import ItemOutput

from .baselines import Sizes, decoding, noise, our_loss, segmentor
from .measure import Run, compare, gradients, machine

BASE = Sizes(channels=256, heads=4, depth=2)


def encode(side: int, device: str) -> Run:
    """A global and a windowed layer of SAM's encoder."""
    model = segmentor(replace(BASE, image=side)).seg_encoder.to(device).eval()
    return torch.no_grad()(partial(model, noise(1, 3, side, side, device=device), [BASE.depth]))


def supervise(device: str, queries: int = 200, targets: int = 20) -> Run:
    """Forward and backward of masked decoder, matching and losses, one image."""
    sizes = replace(BASE, queries=queries)
    model, criterion = segmentor(sizes).to(device), Criterion(sizes.points)
    batch, features, leaves = decoding(model, sizes, device, 1, targets)
    return partial(gradients, partial(our_loss, model, criterion, batch, features), leaves)


def name_pixels(classes: int, device: str) -> Run:
    """A semantic map of 480 x 640."""
    masks, logits = noise(BASE.queries, 128, 128, device=device), noise(BASE.queries, classes + 1, device=device)
    item = ItemOutput(mask_logits=masks.detach(), class_logits=logits.detach(), frame=1024, seg_size=(768, 1024),
                      image_size=(480, 640))  # fmt: skip
    return partial(semantic, item)


def read(tokens: int, device: str) -> Run:
    """Two layers of a small Phi-3."""
    model = causal_lm(
        model_type="phi3", vocab_size=32, hidden_size=512, intermediate_size=1408, num_hidden_layers=2,
        num_attention_heads=8, num_key_value_heads=8, max_position_embeddings=8192, eos_token_id=2, pad_token_id=0,
        original_max_position_embeddings=8192,
    ).to(device).eval()  # fmt: skip
    return torch.no_grad()(partial(model.model, inputs_embeds=noise(1, tokens, 512, device=device), use_cache=False))


Part = tuple[tuple[int, ...], Callable[[int, str], Run], Callable[[int], float]]
PARTS: dict[str, Part] = {  # what is made larger: its sizes, what is run, and how many operations, up to a factor
    "image size": ((512, 768, 1024, 1536, 2048), encode, lambda n: 24 * (n / 16) ** 2 * 256 + 2 * (n / 16) ** 4),
    "queries": ((50, 100, 200, 400), lambda n, device: supervise(device, queries=n), float),
    "targets": ((5, 20, 50, 100, 200), lambda n, device: supervise(device, targets=n), float),
    "categories": ((10, 133, 400, 1200), name_pixels, float),
    "tokens": ((1024, 2048, 4096, 8192), read, lambda n: 2 * (4 * 512 + 3 * 1408) * n + 2 * n**2),
}


def report(device: str = "cpu", out: Path = Path("growth"), parts: Mapping[str, Part] = PARTS) -> dict[str, Any]:
    """`exponents` of wall time, CPU time and peak memory (least squares in the logarithms), and of the arithmetic; then
    the cost of each part by size. `out` gets a plot of each."""
    found: dict[str, Any] = {"machine": machine(device), "exponents": {}}
    out.mkdir(parents=True, exist_ok=True)
    for part, (sizes, make, arithmetic) in parts.items():
        rows = compare({str(n): make(n, device) for n in sizes}, device=device, rounds=3)
        costs = {column: [row[column] for row in rows.values()] for column in ("wall_ms", "cpu_ms", "peak_mb")}
        found[part] = {n: {name: values[i] for name, values in costs.items()} for i, n in enumerate(rows)}
        costs["arithmetic"] = [arithmetic(n) for n in sizes]
        figure = Figure()
        axes = figure.subplots()
        exponents = found["exponents"][part] = {}
        for name, values in costs.items():
            exponents[name] = np.polyfit(np.log(sizes), np.log(values), 1)[0] if all(values) else None
            if all(values):
                relative = np.array(values) / values[0]
                axes.loglog(sizes, relative, marker="o", label=f"{name}: exponent {exponents[name]:.2f}")
        axes.set(xlabel=part, ylabel="cost, first = 1")
        axes.legend()
        figure.savefig(out / f"{part.replace(' ', '_')}.png")
    return found
