"""The embedded world: coloured shapes on grass, sand or water under a sky, and all that can be said about them. A scene
is a function of (seed, split, index) alone; `world.files` writes the world to disk."""

import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import chain, combinations, cycle
from pathlib import Path
from typing import Any

import numpy as np

SHAPES = ("circle", "square", "triangle", "ring", "star", "cross")
COLOURS = {
    "red": (208, 36, 36), "green": (24, 140, 52), "blue": (36, 64, 208),
    "yellow": (244, 220, 32), "purple": (140, 44, 176), "orange": (244, 128, 20),
}  # fmt: skip
TEXTURES = ("plain", "striped", "dotted")
SIZES = {"small": (8.0, 10.0), "large": (13.0, 17.0)}  # radius, in pixels of a 96 x 96 image
GROUNDS = {"grass": (152, 178, 120), "sand": (222, 206, 164), "water": (124, 164, 178)}
SKY = (188, 218, 244)
# things 1-6 and stuff 11-14: ids with a hole, as COCO's have, so that nobody takes an id for an index
CATEGORIES = {name: i for i, name in enumerate(SHAPES, 1)}
CATEGORIES |= {name: i for i, name in enumerate(("sky", *GROUNDS), 11)}
SPLITS = {"train": 0, "val": 1, "corpus": 2, "novel": 3}
# Of each shape two colours, and of each colour two shapes, that nothing but the things of "novel" has.
HELD_OUT = {(s, c) for i, s in enumerate(SHAPES) for j, c in enumerate(COLOURS) if (j - i) % len(COLOURS) < 2}
VISIBLE = 0.6  # at least this share of every thing is not occluded
DUPLICATES = 0.4  # share of scenes with several things of one shape
MARGIN = 0.06  # of the image: centres must be this far apart to be told left from right
_REACH = {"circle": 1.0, "square": 1.21, "triangle": 1.35, "ring": 1.06, "star": 1.3, "cross": 1.12}  # farthest point


@dataclass(frozen=True, slots=True)
class Thing:
    """One shape of a scene. Lengths in pixels; `centre` and `area` are those of its visible part."""

    shape: str
    colour: str
    texture: str
    size: str
    position: tuple[float, float]  # (x, y) of the whole shape
    radius: float
    angle: float  # radians
    centre: tuple[float, float] = (0.0, 0.0)
    area: int = 0


@dataclass(frozen=True, slots=True, eq=False)
class Scene:
    """Things from back to front before a background of two kinds of stuff."""

    key: tuple[int, int, int]  # (seed, split, index)
    things: tuple[Thing, ...]
    ground: str
    sky: np.ndarray  # bool[S, S], also behind the things
    ids: np.ndarray  # int64[S, S]: number of the thing; len(things) is the sky, one more the ground


def generator(key: tuple[int, int, int], purpose: str) -> np.random.Generator:
    """The draws of a scene for one purpose."""
    return np.random.default_rng([*key, *purpose.encode()])


def _pick(rng: np.random.Generator, options: Any) -> Any:
    return options[rng.integers(len(options))]


def signed_distance(shape: str, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Distance to the outline of a shape of radius 1 at the origin, negative inside; exact near its edges."""
    if shape == "circle":
        return np.hypot(x, y) - 1
    if shape == "square":
        return np.maximum(abs(x), abs(y)) - 0.85
    if shape == "triangle":
        return np.maximum(y, np.sqrt(0.75) * abs(x) - y / 2) - 0.675
    if shape == "ring":
        return abs(np.hypot(x, y) - 0.8) - 0.26
    if shape == "cross":
        x, y = abs(x), abs(y)
        return np.minimum(np.maximum(x - 1.05, y - 0.38), np.maximum(x - 0.38, y - 1.05))
    # star: fold the plane into one tenth, where the outline is the line from an outer to an inner corner
    outer, inner, tenth = 1.3, 0.6, np.pi / 5
    angle = abs((np.arctan2(x, -y) + tenth) % (2 * tenth) - tenth)
    normal = np.array([inner * np.sin(tenth), outer - inner * np.cos(tenth)])
    normal /= np.hypot(*normal)
    distance = np.hypot(x, y)
    return (distance * np.cos(angle) - outer) * normal[0] + distance * np.sin(angle) * normal[1]


def _window(thing: Thing) -> tuple[slice, slice]:
    """The rows and columns that a thing may touch."""
    x, y, reach = *thing.position, thing.radius * _REACH[thing.shape] + 1
    return slice(max(0, int(y - reach)), int(y + reach) + 1), slice(max(0, int(x - reach)), int(x + reach) + 1)


def _local(thing: Thing, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Pixel centres of a thing's window in its own, turned frame: x, y float[h, w] in units of its radius."""
    rows, columns = _window(thing)
    y = (np.arange(size)[rows, None] + 0.5 - thing.position[1]) / thing.radius
    x = (np.arange(size)[None, columns] + 0.5 - thing.position[0]) / thing.radius
    cos, sin = np.cos(thing.angle), np.sin(thing.angle)
    return cos * x + sin * y, cos * y - sin * x


def compose(seed: int, split: str, index: int, size: int = 96) -> Scene:
    """Choose and place 4 to 6 things on a background; `render` paints them. Colours and shapes go together as in
    `HELD_OUT` in all things of the split "novel", in no thing of another."""
    rng = generator(key := (seed, SPLITS[split], index), "layout")
    across = np.arange(size) / size
    while True:
        count, ground = int(rng.integers(4, 7)), _pick(rng, list(GROUNDS))
        level, slope, height, phase = rng.uniform([0.25, -0.15, 0, 0], [0.6, 0.15, 0.03, 2 * np.pi])
        horizon = level + slope * (across - 0.5) + height * np.sin(4 * np.pi * across + phase)  # slanted and wavy
        sky = np.arange(size)[:, None] < horizon * size
        ids = np.where(sky, count, count + 1)
        things = _place(rng, count, ids, split == "novel")
        areas = np.bincount(ids.ravel(), minlength=count + 2)
        if len(things) == count and areas[count:].min() > 0.02 * size**2:
            break
    y, x = np.mgrid[:size, :size] + 0.5
    centre_x, centre_y = (np.bincount(ids.ravel(), axis.ravel()) / areas for axis in (x, y))
    seen = zip(things, centre_x.tolist(), centre_y.tolist(), areas.tolist(), strict=False)
    return Scene(key, tuple(replace(t, centre=(x, y), area=area) for t, x, y, area in seen), ground, sky, ids)


def _place(rng: np.random.Generator, count: int, ids: np.ndarray, novel: bool) -> list[Thing]:
    """Things from back to front, written into `ids`; fewer than `count` when the next finds no room."""
    size, shapes = len(ids), rng.permutation(len(SHAPES))[:count]
    if rng.random() < DUPLICATES:
        shapes[1 : rng.integers(2, count - 1)] = shapes[0]
    things, areas = [], np.zeros(count)  # of the whole shapes
    for number, shape in enumerate(rng.permutation(shapes)):
        colours = [c for c in COLOURS if ((SHAPES[shape], c) in HELD_OUT) == novel]
        texture, colour, kind = (_pick(rng, list(a)) for a in (TEXTURES, colours, SIZES))
        radius = rng.uniform(*SIZES[kind]) * size / 96
        margin = radius * _REACH[SHAPES[shape]]
        for _ in range(30):
            x, y, angle = rng.uniform([margin, margin, -0.35], [size - margin, size - margin, 0.35]).tolist()
            thing = Thing(SHAPES[shape], colour, texture, kind, (x, y), radius, angle)
            mask = signed_distance(thing.shape, *_local(thing, size)) <= 0
            covered = ids.copy()
            covered[_window(thing)][mask] = number
            visible = np.bincount(covered.ravel(), minlength=count)[:number]
            if (visible >= VISIBLE * areas[:number]).all():
                ids[:] = covered
                things.append(thing)
                areas[number] = mask.sum()
                break
        else:
            break
    return things


def render(scene: Scene) -> np.ndarray:
    """Paint a scene, uint8[S, S, 3]: shaded things with smooth edges, a little noise, varying light."""
    rng, size = generator(scene.key, "pixels"), len(scene.ids)
    sky = np.array(SKY, np.float32) + np.linspace(-20, 20, size, dtype=np.float32)[:, None, None]
    if scene.ground == "grass":  # blades
        pattern = 9 * rng.standard_normal((size // 3 + 1, size)).repeat(3, axis=0)[:size]
    elif scene.ground == "sand":  # grains
        pattern = 8 * rng.standard_normal((size, size))
    else:  # waves
        y, x = np.mgrid[:size, :size]
        pattern = 9 * np.sin(y + 2 * np.sin(x / 7) + rng.uniform(0, 6))
    ground = (np.array(GROUNDS[scene.ground]) + pattern[..., None]).astype(np.float32)
    image = np.where(scene.sky[..., None], sky, ground)
    for thing in scene.things:
        patch, (x, y) = image[_window(thing)], _local(thing, size)
        distance = thing.radius * signed_distance(thing.shape, x, y)[..., None]
        surface = np.array(COLOURS[thing.colour], float)
        across, down = x * thing.radius * 96 / size, y * thing.radius * 96 / size
        if thing.texture == "striped":
            surface = np.where((np.sin(2 * np.pi * across / 4.5) > 0)[..., None], 0.4 * surface, surface)
        elif thing.texture == "dotted":
            dots = np.cos(2 * np.pi * across / 5) + np.cos(2 * np.pi * down / 5) > 0.7
            surface = np.where(dots[..., None], 217 + 0.15 * surface, surface)
        surface = surface * np.where(distance > -1, 0.6, 1.02 - 0.1 * y[..., None])  # an outline, or shading
        patch += np.clip(0.5 - distance, 0, 1) * (surface - patch)
    image = image * rng.uniform(0.92, 1.08) + 4 * rng.standard_normal(image.shape, np.float32)
    return image.clip(0, 255).astype(np.uint8)


_ORDER = ("size", "colour", "texture", "shape")
_ATTRIBUTES = [names for n in range(5) for names in combinations(_ORDER, n)]
_SUPERLATIVES = {  # axis (none: of area), sign
    "largest": (None, -1), "smallest": (None, 1), "leftmost": (0, 1),
    "rightmost": (0, -1), "topmost": (1, 1), "lowest": (1, -1),
}  # fmt: skip
_RELATIONS = {"left of": (0, -1), "right of": (0, 1), "above": (1, -1), "below": (1, 1)}  # axis, sign
_NUMBERS = ("no", "one", "two", "three", "four", "five", "six")
KINDS = ("attribute", "relation", "superlative")


def phrase(thing: Thing, names: tuple[str, ...] = _ORDER) -> str:
    """The thing by some of its attributes: "small red ring", or "small red shape" without "shape"."""
    words = [getattr(thing, name) for name in names]
    return " ".join(words if "shape" in names else [*words, "shape"])


@lru_cache(maxsize=1)
def fits(scene: Scene) -> dict[str, list[int]]:
    """Every phrase that fits something in the scene, and the numbers of what it fits; short phrases first."""
    found: dict[str, list[int]] = {}
    for names in _ATTRIBUTES:
        for number, thing in enumerate(scene.things):
            found.setdefault(phrase(thing, names), []).append(number)
    return found


def _holds(scene: Scene, number: int, relation: str, other: int) -> bool:
    axis, sign = _RELATIONS[relation]
    return sign * (scene.things[number].centre[axis] - scene.things[other].centre[axis]) > MARGIN * len(scene.ids)


def _superlative(scene: Scene, numbers: list[int], word: str) -> int | None:
    """The thing that the word picks out, unless it is a close call."""
    axis, sign = _SUPERLATIVES[word]
    values = [thing.area if axis is None else thing.centre[axis] for thing in scene.things]
    (first, a), (_, b) = sorted(((n, values[n]) for n in numbers), key=lambda pair: sign * pair[1])[:2]
    clear = max(a, b) >= 1.25 * min(a, b) if axis is None else sign * (b - a) > MARGIN * len(scene.ids)
    return first if clear else None


@lru_cache(maxsize=1)
def expressions(scene: Scene) -> list[dict[str, list[str]]]:
    """All expressions that fit one thing and no other, for each thing of a scene, by kind. "attribute": its own looks
    suffice. "relation", "superlative": its looks fit other things, too."""
    found: list[dict[str, list[str]]] = [{kind: [] for kind in KINDS} for _ in scene.things]
    fitting = fits(scene)
    landmarks: dict[int, str] = {}  # the shortest phrase for a thing, where it is the only one that fits
    for words, numbers in fitting.items():
        if len(numbers) == 1:
            found[numbers[0]]["attribute"].append(f"the {words}")
            landmarks.setdefault(numbers[0], words)
        elif not words.startswith(tuple(SIZES)):
            for word in _SUPERLATIVES:
                if (best := _superlative(scene, numbers, word)) is not None:
                    found[best]["superlative"].append(f"the {word} {words}")
    for words, numbers in fitting.items():
        for anchor, landmark in landmarks.items():
            rivals = [number for number in numbers if number != anchor]
            for relation in _RELATIONS if len(rivals) > 1 else ():
                there = [number for number in rivals if _holds(scene, number, relation, anchor)]
                elsewhere = [number for number in rivals if _holds(scene, anchor, relation, number)]
                if len(there) == 1 and len(elsewhere) == len(rivals) - 1:
                    found[there[0]]["relation"].append(f"the {words} {relation} the {landmark}")
    return found


def _plural(words: str) -> str:
    return words + ("es" if words.endswith("s") else "s")


def _several(words: str, numbers: list[int]) -> str:
    return f"{_NUMBERS[len(numbers)]} {_plural(words)}"


def _article(words: str) -> str:
    return f"{'an' if words[0] in 'aeiou' else 'a'} {words}"


CAPTION_PROMPTS = ("Describe the image.", "What is in this picture?", "Give a caption.", "What do you see?")
_CAPTIONS = (
    "{things} on {ground} under the sky", "on the {ground} there are {things}", "a picture of {things}",
    "{count} shapes: {things}",
)  # fmt: skip


def caption(scene: Scene) -> tuple[str, str, list[tuple[int, int, list[int]]]]:
    """A request, a description of the scene, things from left to right and equal ones together, and its phrases in
    text order: where each begins and ends, and the numbers in `scene.ids` it means."""
    rng = generator(scene.key, "caption")
    names = _pick(rng, [names for names in _ATTRIBUTES if "shape" in names])
    alike: dict[str, list[int]] = {}
    for number, thing in sorted(enumerate(scene.things), key=lambda pair: pair[1].centre[0]):
        alike.setdefault(phrase(thing, names), []).append(number)
    parts = {_article(words) if len(same) == 1 else _several(words, same): same for words, same in alike.items()}
    *others, last = parts
    things, count = f"{', '.join(others)} and {last}" if others else last, _NUMBERS[len(scene.things)]
    text = _pick(rng, _CAPTIONS).format(things=things, ground=scene.ground, count=count)
    parts |= {scene.ground: [len(scene.things) + 1], "the sky": [len(scene.things)]}
    places = ((re.search(rf"\b{words}\b", text), numbers) for words, numbers in parts.items())
    phrases = [(*found.span(), numbers) for found, numbers in places if found]
    return _pick(rng, CAPTION_PROMPTS), text, sorted(phrases)


def descriptions(scene: Scene) -> list[tuple[str, str]]:
    """For each thing, in random order, an expression of any kind as a question, and as the answer all its looks and its
    place: "small red plain ring, top left"."""
    rng, asked = generator(scene.key, "describe"), []
    for thing, found in zip(scene.things, expressions(scene), strict=True):
        if options := [texts for texts in found.values() if texts]:
            x, y = (int(3 * place / len(scene.ids)) for place in thing.centre)
            where = f"{('top', 'middle', 'bottom')[y]} {('left', 'centre', 'right')[x]}"
            asked.append((f"Which one is {_pick(rng, _pick(rng, options))}?", f"{phrase(thing)}, {where}"))
    return [asked[i] for i in rng.permutation(len(asked))]


def questions(scene: Scene) -> list[tuple[str, str]]:
    """Questions about a scene with answers of one word, one of each sort, in random order."""
    rng = generator(scene.key, "chat")
    fitting = fits(scene)
    alone = {words: numbers[0] for words, numbers in fitting.items() if len(numbers) == 1}
    stranger = _stranger(rng, fitting)
    by_count = {0: [stranger]}
    for words, numbers in fitting.items():
        by_count.setdefault(len(numbers), []).append(words)
    count = _pick(rng, list(by_count))  # first the number, or most answers would be "1"
    many = _plural(_pick(rng, by_count[count]))
    pairs = [(f"How many {many} are there?", str(count)), ("What is the ground?", scene.ground)]
    # the first of what fits is "shape", which always does
    asked, told = (_pick(rng, list(fitting)[1:]), "yes") if rng.random() < 0.5 else (stranger, "no")
    pairs.append((f"Is there {_article(asked)}?", told))
    sorts = (
        ("What colour is the {}?", "colour", tuple(COLOURS)),
        ("Is the {} plain, striped or dotted?", "texture", TEXTURES), ("What is the {}?", "shape", SHAPES),
    )  # fmt: skip
    for question, name, values in sorts:
        if hidden := [words for words in alone if not set(words.split()) & set(values)]:
            words = _pick(rng, hidden)
            pairs.append((question.format(words), getattr(scene.things[alone[words]], name)))
    if alone:
        first, second, relation = (_pick(rng, list(options)) for options in (alone, alone, _RELATIONS))
        is_so = _holds(scene, alone[first], relation, alone[second])
        if is_so or _holds(scene, alone[second], relation, alone[first]):
            pairs.append((f"Is the {first} {relation} the {second}?", "yes" if is_so else "no"))
    return [pairs[i] for i in rng.permutation(len(pairs))]


def _stranger(rng: np.random.Generator, fitting: Collection[str]) -> str:
    """A phrase that fits nothing in the scene."""
    while True:
        shape, colour, texture, size = (_pick(rng, list(a)) for a in (SHAPES, COLOURS, TEXTURES, SIZES))
        words = phrase(Thing(shape, colour, texture, size, (0, 0), 0, 0), _pick(rng, _ATTRIBUTES[1:]))
        if words not in fitting and (shape, colour) not in HELD_OUT:
            return words


def generalised(scene: Scene) -> list[tuple[str, list[int]]]:
    """Expressions with the numbers of all things that they mean: one, several ("the two red shapes") and none."""
    rng = generator(scene.key, "generalised")
    meant = dict(list(fits(scene).items())[1:])
    found = []
    for several in (True, False):
        if options := [words for words, numbers in meant.items() if (len(numbers) > 1) == several]:
            words = _pick(rng, options)
            found.append((f"the {_several(words, meant[words]) if several else words}", meant[words]))
    return [*found, (f"the {_stranger(rng, meant)}", [])]


_RULES = {  # a shape by what it could do: a short and a long question, and the reason
    "circle": ("the shape that could roll away", "What would roll down a hill?", "It is round"),
    "star": ("the shape that belongs to the night sky", "What is seen in the sky at night?", "Stars shine at night"),
    "cross": ("the shape that means plus", "What is used to add two numbers?", "A cross is the sign for plus"),
    "square": ("the shape with four equal sides", "What could be a tile of a floor?", "Its four sides are equal"),
    "triangle": ("the shape with three corners", "What has the fewest corners?", "It has only three corners"),
}


def reasoning(scene: Scene) -> list[tuple[int, str, str, str]]:
    """Things that a rule singles out: number, short question, long question, explanation. Rings are left out, they
    would roll as circles do."""
    shapes = [thing.shape for thing in scene.things]
    rules = {shape: rule for shape, rule in _RULES.items() if shape != "circle" or "ring" not in shapes}
    return [(i, *rules[shape]) for i, shape in enumerate(shapes) if shape in rules and shapes.count(shape) == 1]


SPECIAL_TOKENS = (
    *("<unk>", "<s>", "</s>", "<|user|>", "<|assistant|>", "<|end|>"),
    *("<|im_start|>", "<|im_end|>", "<|endoftext|>", "<think>", "</think>"),
)
SEGMENTATION_TOKENS = ("<SEG>", "<p>", "</p>")
_WORDINGS = (  # everyday language of requests and answers, so that it is cheap to encode
    "Please segment the {0} in this image. Sure, the segmentation result is here.",
    "Can you find the {0}? Please output its segmentation mask. Sure, it is this one.",
    "Could you identify the following categories: {1}? Please respond with the segmentation masks.",
    "Describe the picture briefly, with the masks of the phrases in your answer. The image shows {1}.",
    "Where is the {0}? Explain why and highlight it. It is the one that is not striped.",
    "Which region belongs to the {0}? Here are all objects of the same category as the marked region.",
    "Segment every object like the ones marked by a point, scribble, box or mask. Here are the results.",
    "Nothing in the photo fits this sentence, so the answer is empty. Think about which thing would roll.",
    "I want to see what is on the left, on the right, at the top, at the bottom or in the middle centre. Yes. No.",
)


def corpus(scenes: int = 1000) -> Iterator[str]:
    """The world's language without its pictures: names, phrases, captions, questions, answers, requests."""
    yield from CATEGORIES
    for index, wording in zip(range(scenes), cycle(_WORDINGS), strict=False):
        scene = compose(0, "corpus", index)
        yield from ("sky", scene.ground, " ".join(caption(scene)[:2]))
        yield wording.format(phrase(scene.things[0]), ", ".join(thing.shape for thing in scene.things))
        yield from chain(*questions(scene))
        for sentences in chain(*(found.values() for found in expressions(scene))):
            yield from sentences[index % 3 :: 3][:3]
        for words in list(fits(scene))[index % 3 :: 3]:
            yield from (words, words.split()[0])


def train_tokenizer(root: str | Path, size: int = 640) -> None:
    """Train a byte-level BPE of `size` entries on the corpus and save it as a transformers folder. Special tokens come
    first, with `<unk>` as padding at 0, those of segmentation last. Any text encodes without `<unk>`, and back."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size - len(SEGMENTATION_TOKENS), special_tokens=list(SPECIAL_TOKENS), show_progress=False,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
    )  # fmt: skip
    tokenizer.train_from_iterator(corpus(), trainer)
    tokenizer.add_special_tokens(list(SEGMENTATION_TOKENS))
    roles = {"unk_token": "<unk>", "pad_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"}
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, **roles, clean_up_tokenization_spaces=False)
    fast.save_pretrained(root)
