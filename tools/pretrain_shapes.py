"""Make the tiny model's base weights again (data/shapes/base): about 40 minutes on one core.

    python tools/pretrain_shapes.py configs/shapes/stage3.py data/shapes/base

As the paper starts from SAM, SigLIP2 and a language model. Both encoders learn dense targets of the embedded world
(what is here: class, colour, texture, and where its centre is) under a head that is thrown away; the language model
learns the world's sentences. Three independent trainings.
"""

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn
from tqdm import tqdm
from transformers import AutoTokenizer

from xsam import config as configs
from xsam.data.mixture import key
from xsam.data.shapes import CATEGORIES, COLOURS, SHAPES, TEXTURES, compose, corpus, render, train_tokenizer
from xsam.models.encoders import Encoder, SamEncoder
from xsam.models.xsam import normalize
from xsam.structures import IGNORE_INDEX

STRIDE = 2  # pixels per cell of the dense targets
PARTS = {"class": len(CATEGORIES), "colour": len(COLOURS), "texture": len(TEXTURES), "offset": 2}


def pretrain(
    config_path: str, out: Path, *, scenes: int = 8000, steps: int = 6000, text_steps: int = 2000, seed: int = 0
) -> None:
    """Write tokenizer and `model.safetensors` (fp16: seg_encoder, vision_encoder, llm) to `out`.

    Args:
        config_path: a config with the tiny model's `seg_encoder`, `vision_encoder` and `llm`.
        scenes: images the encoders see, again and again, mirrored or not.
        steps, text_steps: of 16 images, and of 32 lines of text.
    """
    train_tokenizer(out)
    torch.manual_seed(seed)
    model = configs.build(configs.load(config_path)["model"])
    images, targets = _dense_data(scenes, seed)
    _train_encoder(model.seg_encoder, images, targets, steps, seed)
    _train_encoder(model.vision_encoder, images, targets, steps, seed)
    _train_language(model.llm, AutoTokenizer.from_pretrained(out), text_steps, seed)
    parts = ("seg_encoder", "vision_encoder", "llm")
    tied = {"llm.lm_head.weight"} if model.llm.config.tie_word_embeddings else set()
    state = {n: t.half().contiguous() for n, t in model.state_dict().items() if n.startswith(parts) and n not in tied}
    save_file(state, out / "model.safetensors")


def _dense_data(scenes: int, seed: int) -> tuple[Tensor, dict[str, Tensor]]:
    """Images uint8[n, 3, S, S] and targets at STRIDE: classes int64 with IGNORE_INDEX, offsets float[n, 2, h, w]."""
    images, targets = [], {name: [] for name in PARTS}  # type: tuple[list[Any], dict[str, list[Any]]]
    for index in tqdm(range(scenes), desc="scenes"):
        scene = compose(seed, "corpus", index)
        ids = scene.ids[STRIDE // 2 :: STRIDE, STRIDE // 2 :: STRIDE]
        things = scene.things
        names = list(CATEGORIES)
        classes = [names.index(t.shape) for t in things] + [names.index("sky"), names.index(scene.ground)]
        unknown = [IGNORE_INDEX, IGNORE_INDEX]  # stuff has neither a colour of its own nor a centre
        images.append(render(scene).transpose(2, 0, 1))
        targets["class"].append(np.array(classes)[ids])
        targets["colour"].append(np.array([list(COLOURS).index(t.colour) for t in things] + unknown)[ids])
        targets["texture"].append(np.array([TEXTURES.index(t.texture) for t in things] + unknown)[ids])
        centres = np.array([t.centre for t in things] + [(np.nan, np.nan)] * 2)[ids]  # [h, w, 2]
        y, x = np.mgrid[: ids.shape[0], : ids.shape[1]] * STRIDE + STRIDE / 2
        targets["offset"].append(((centres - np.stack([x, y], -1)) / 10).transpose(2, 0, 1).astype(np.float32))
    return torch.from_numpy(np.stack(images)), {name: torch.from_numpy(np.stack(t)) for name, t in targets.items()}


def _train_encoder(encoder: Encoder, images: Tensor, targets: dict[str, Tensor], steps: int, seed: int) -> None:
    torch.manual_seed(seed)
    side = images.shape[-1]
    with torch.no_grad():
        _, width, grid, _ = _features(encoder, torch.zeros(1, 3, side, side)).shape
    cells = side // STRIDE // grid  # target cells along a feature cell
    head = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, cells**2 * sum(PARTS.values())))
    parameters = [*encoder.parameters(), *head.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=1.5e-3, betas=(0.9, 0.98), weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1.5e-3, steps, pct_start=0.05)
    rng = np.random.default_rng(key(seed, type(encoder).__name__))
    bar = tqdm(range(steps), desc=type(encoder).__name__)
    for _ in bar:
        rows = torch.from_numpy(rng.integers(0, len(images), 16))
        mirrored = bool(rng.random() < 0.5)
        pixels = normalize(images[rows].flip(-1) if mirrored else images[rows], encoder)
        features = head(_features(encoder, pixels).permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        predicted = F.pixel_shuffle(features, cells).split(list(PARTS.values()), dim=1)
        loss = torch.zeros(())
        for (name, target), logits in zip(targets.items(), predicted, strict=True):
            wanted = target[rows].flip(-1) if mirrored else target[rows]
            if name == "offset":
                wanted = wanted * torch.tensor([-1.0 if mirrored else 1.0, 1.0])[:, None, None]
                known = ~wanted.isnan()
                loss = loss + F.smooth_l1_loss(logits[known], wanted[known], beta=0.1)
            else:
                weight = torch.tensor([1.0 if n in SHAPES else 0.3 for n in CATEGORIES]) if name == "class" else None
                loss = loss + F.cross_entropy(logits, wanted, weight)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        schedule.step()
        bar.set_postfix(loss=f"{loss.item():.3f}")


def _features(encoder: Encoder, pixels: Tensor) -> Tensor:
    """The last features of either kind of encoder as a map float[B, C, g, g]."""
    if isinstance(encoder, SamEncoder):
        (features,) = encoder(pixels, [len(encoder.layers)])
        return features.permute(0, 3, 1, 2)
    tokens = encoder(pixels)
    side = int(tokens.shape[1] ** 0.5)
    return tokens.transpose(1, 2).unflatten(2, (side, side))


def _train_language(llm: nn.Module, tokenizer: Any, steps: int, seed: int) -> None:
    lines = [tokenizer(line + tokenizer.eos_token).input_ids for line in corpus(3000)]
    rng = np.random.default_rng(key(seed, "language"))
    optimizer = torch.optim.AdamW(llm.parameters(), lr=2e-3, betas=(0.9, 0.98), weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, steps, pct_start=0.05)
    bar = tqdm(range(steps), desc="language model")
    for _ in bar:
        # Rows of 64 tokens, packed from several lines; each begins with the first line's own beginning.
        rows = [np.concatenate([lines[i] for i in rng.integers(0, len(lines), 24)])[:64] for _ in range(32)]
        ids = torch.from_numpy(np.stack([np.resize(row, 64) for row in rows]))
        loss = llm(input_ids=ids, labels=ids, use_cache=False).loss
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(llm.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        bar.set_postfix(loss=f"{loss.item():.3f}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", help="a config with the tiny model's encoders and language model")
    parser.add_argument("out", type=Path, help="folder for the tokenizer and model.safetensors")
    options = parser.parse_args()
    pretrain(options.config, options.out)
