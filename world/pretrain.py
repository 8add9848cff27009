"""Make the tiny model's base weights again (data/shapes/base): about an hour on one core.

    python -m world.pretrain configs/shapes/stage3.py data/shapes/base

As the paper starts from SAM, SigLIP2 and a language model. Both encoders learn dense targets of the embedded world
(what is here: class, colour, texture, and where its centre is) under a head that is thrown away. The language model
learns the world's sentences, and to talk about scenes whose picture is told in words: one that cannot look anything up
in what it is given does not learn it beside an image either (docs/shapes.md). It never sees `<SEG>` or `<p>`.
Independent trainings: `--parts llm` makes one again and keeps the others.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from tqdm import tqdm

from xsam import config as configs
from xsam.data.mixture import key
from xsam.data.prompt import Processor
from xsam.models.encoders import Encoder, SamEncoder
from xsam.models.language import splice, supervised_logits
from xsam.models.xsam import normalize
from xsam.structures import IGNORE_INDEX, Turn

from .shapes import (
    CATEGORIES,
    COLOURS,
    SHAPES,
    SIZES,
    TEXTURES,
    Scene,
    caption,
    compose,
    corpus,
    descriptions,
    generator,
    questions,
    render,
    train_tokenizer,
)

MODULES = ("seg_encoder", "vision_encoder", "llm")
GRID = 6  # cells of a picture in words along a side, as many as the model's image tokens
STRIDE = 2  # pixels per cell of the dense targets
TARGETS = {"class": len(CATEGORIES), "colour": len(COLOURS), "texture": len(TEXTURES), "offset": 2}


def pretrain(
    config_path: str, out: Path, parts: Sequence[str] = MODULES, *, scenes: int = 8000, steps: int = 6000,
    text_steps: int = 6000, seed: int = 0,
) -> None:  # fmt: skip
    """Write tokenizer and `model.safetensors` (fp16: seg_encoder, vision_encoder, llm) to `out`.

    Args:
        config_path: a config with the tiny model's encoders and language model, and its processor.
        parts: what is trained; the others stay as they are in `out`.
        scenes: images the encoders see, again and again, mirrored or not; the language model reads as many.
        steps, text_steps: of 16 images, and of 8 conversations or 32 lines of text.
    """
    path = out / "model.safetensors"
    state = load_file(path) if path.exists() else {}
    config = configs.load(config_path, [f"processor.tokenizer={out}"])
    torch.manual_seed(seed)
    model = configs.build(config["model"])
    if encoders := [name for name in parts if name != "llm"]:
        images, targets = _dense_data(scenes, seed)
    for name in encoders:
        _train_encoder(getattr(model, name), images, targets, steps, seed)
    if "llm" in parts:
        train_tokenizer(out)
        _train_language(model.llm, configs.build(config["processor"]), scenes, text_steps, seed)
    tied = {"llm.lm_head.weight"} if model.llm.config.tie_word_embeddings else set()
    made = {
        n: t.half().contiguous() for n, t in model.state_dict().items() if n.startswith(tuple(parts)) and n not in tied
    }
    save_file({name: tensor for name, tensor in state.items() if not name.startswith(tuple(parts))} | made, path)


def _dense_data(scenes: int, seed: int) -> tuple[Tensor, dict[str, Tensor]]:
    """Images uint8[n, 3, S, S] and targets at STRIDE: classes int64 with IGNORE_INDEX, offsets float[n, 2, h, w]."""
    images, targets = [], {name: [] for name in TARGETS}  # type: tuple[list[Any], dict[str, list[Any]]]
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
    head = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, cells**2 * sum(TARGETS.values())))
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
        predicted = F.pixel_shuffle(features, cells).split(list(TARGETS.values()), dim=1)
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


def _in_words(scene: Scene, words: dict[str, int]) -> Tensor:
    """The picture of a scene as an ideal pair of encoders and projectors would tell it: of every cell how much of each
    word it has, float[GRID * GRID, vocabulary]. Its row, its column and what it shows; and where a thing has its centre
    "!" and the rows and columns that are nearest to that, the nearer the more."""
    side = len(scene.ids) // GRID
    cells = scene.ids.reshape(GRID, side, GRID, side).swapaxes(1, 2).reshape(GRID * GRID, -1)
    told = torch.zeros(GRID * GRID, max(words.values()) + 1)
    looks = [[t.size, t.colour, t.texture, t.shape] for t in scene.things] + [["sky"], [scene.ground]]
    for number, names in enumerate(looks):
        share = torch.from_numpy((cells == number).mean(1)).float()
        for name in names:
            told[:, words[name]] += share if number < len(scene.things) else share / 2
    for cell in range(GRID * GRID):
        row, column = divmod(cell, GRID)
        told[cell, words[f"row {row}"]] = told[cell, words[f"column {column}"]] = 0.5
    for thing in scene.things:
        column, row = (int(place) // side for place in thing.centre)
        cell = row * GRID + column
        told[cell, words["centre"]] += 1
        for axis, place in zip(("column", "row"), thing.centre, strict=True):
            for number in range(GRID):
                nearness = max(0.0, 1 - abs(place / side - 0.5 - number))
                told[cell, words[f"{axis} {number}"]] += nearness
    return told


def _vocabulary(tokenizer: Any) -> dict[str, int]:
    """The token of each word that a picture is told in."""
    names = {name: f" {name}" for name in (*CATEGORIES, *COLOURS, *TEXTURES, *SIZES)} | {"centre": "!"}
    for number, word in enumerate((" one", " two", " three", " four", " five", " six")):
        names |= {f"row {number}": word, f"column {number}": str(number + 1)}
    return {name: tokenizer(text, add_special_tokens=False).input_ids[0] for name, text in names.items()}


def _conversations(scenes: int, seed: int, processor: Processor) -> list[tuple[Tensor, Tensor, Tensor]]:
    """Pictures in words, token ids and labels of all that is asked about each scene, in random order."""
    found, words = [], _vocabulary(processor.tokenizer)
    for index in tqdm(range(scenes), desc="conversations"):
        scene = compose(seed, "corpus", index)
        pairs = [caption(scene)[:2], *questions(scene), *descriptions(scene)]
        order = generator(scene.key, "turns").permutation(len(pairs))
        turns = [
            processor.tokenize(n, Turn("<image>\n" * (n == 0) + pairs[i][0], pairs[i][1])) for n, i in enumerate(order)
        ]
        ids, labels = (torch.tensor([token for turn in turns for token in turn[side]]) for side in (0, 1))
        found.append((_in_words(scene, words).to_sparse(), ids, labels))
    return found


def _train_language(llm: Any, processor: Processor, scenes: int, steps: int, seed: int) -> None:
    told, tokenizer = _conversations(scenes, seed, processor), processor.tokenizer
    lines = [tokenizer(line + tokenizer.eos_token).input_ids for line in corpus(3000)]
    rng = np.random.default_rng(key(seed, "language"))
    optimizer = torch.optim.AdamW(llm.parameters(), lr=2e-3, betas=(0.9, 0.98), weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, steps, pct_start=0.05)
    table = llm.get_input_embeddings()
    image_words = table.weight  # a cell is a sum of rows of it
    bar = tqdm(range(steps), desc="language model")
    for step in bar:
        if step % 4 == 0:
            # Rows of 64 tokens, packed from several lines; each begins with the first line's own beginning.
            rows = [np.concatenate([lines[i] for i in rng.integers(0, len(lines), 24)])[:64] for _ in range(32)]
            ids = torch.from_numpy(np.stack([np.resize(row, 64) for row in rows]))
            loss = llm(input_ids=ids, labels=ids, use_cache=False).loss
        else:
            pictures, texts, wanted = zip(*(told[i] for i in rng.integers(0, len(told), 8)), strict=True)
            ids, labels = pad_sequence(list(texts), True, 0), pad_sequence(list(wanted), True, IGNORE_INDEX)
            lengths, no_regions = torch.tensor([len(text) for text in texts]), image_words[:0]
            image = torch.stack([picture.to_dense() @ image_words[: picture.shape[1]] for picture in pictures])
            image = torch.cat([image, image], dim=1)  # for the tokens of either encoder
            spliced = splice(table, ids, lengths, image, torch.arange(len(ids)), no_regions)
            hidden = llm.model(inputs_embeds=spliced.embeds, use_cache=False).last_hidden_state
            loss = F.cross_entropy(*supervised_logits(llm, hidden, spliced, labels))
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(llm.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if step % 50 == 1:
            bar.set_postfix(loss=f"{loss.item():.3f}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", help="a config with the tiny model's encoders and language model")
    parser.add_argument("out", type=Path, help="folder for the tokenizer and model.safetensors")
    parser.add_argument("--parts", nargs="+", choices=MODULES, default=MODULES, help="what to make again")
    options = parser.parse_args()
    pretrain(options.config, options.out, options.parts)
