"""Visual prompts drawn from an object, and the points of a drawn region at which its feature is taken."""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from scipy import ndimage

from ..structures import RLE, BadSample, UserError
from .images import read_image
from .masks import encode_rle, mask_box

KINDS = ("point", "scribble", "box", "mask")
BRUSH = {"point": 10.0, "scribble": 5.0}  # radius in pixels of COCO's images (X-SAM and PSALM alike)
TRIES = 100  # draws of a place that has to fit, all made at once, before the fallback

Part = tuple[np.ndarray, tuple[int, int]]  # a connected component: bool[h, w] cut to its box, and the box's (y0, x0)


def prompt_kinds(prompt: str, train: bool) -> tuple[str, ...]:
    """The kinds of visual prompts that a task draws from; "" = any, in training only."""
    if prompt not in (*KINDS, *([""] if train else [])):
        raise UserError(f"prompt={prompt!r} is unknown; there is {', '.join(KINDS)}")
    return (prompt,) if prompt else KINDS


def visual_prompts(
    mask: np.ndarray, rng: np.random.Generator, kinds: Sequence[str] = KINDS, scale: float = 1.0
) -> dict[str, np.ndarray]:
    """What a user might draw to show an object, as X-SAM draws it (arXiv 2508.04655) for every connected component:
    bool[H, W], never empty, by kind. Raises BadSample for an object without a pixel. `scale` is that of the brushes,
    the waves of a scribble and the blur of a mask (1 fits COCO's images). `rng` is a fresh one: each kind has a random
    stream of its own, and is drawn alone as it is among the others."""
    if not mask.any():
        raise BadSample("an object without a pixel has no visual prompt")
    streams = dict(zip(KINDS, rng.spawn(len(KINDS)), strict=True))
    parts, prompts = _components(mask), {}
    for kind in kinds:
        prompt = np.zeros_like(mask)
        for part in parts:
            if kind == "box":
                prompt[_box(part, streams[kind])] = True
            elif kind == "point":
                prompt[_point(part, streams[kind])] = True
            elif kind == "scribble":
                _draw_scribble(prompt, part, streams[kind], scale)
        prompts[kind] = _blurred(mask, 2 * scale) if kind == "mask" else dilate(prompt, BRUSH.get(kind, 0) * scale)
    return prompts


def typed_prompt(given: Mapping[str, Any], height: int, width: int) -> RLE:
    """What a user points at, never empty.

    given: exactly one of `point` (x, y), `points` [(x, y), ..], `box` (x0, y0, x1, y1), `scribble` [(x, y), ..] (a line
    through them), in pixels, and `mask`, bool[H, W] or an image file that is not black there. Brushes are those of
    `visual_prompts` with the scale min(H, W) / 480, 1 for COCO's usual size. Raises UserError for anything else, a
    place outside of the image, an empty prompt."""
    if len(given) != 1 or not given.keys() <= {"points", *KINDS}:
        raise UserError(f"a visual prompt is one of points, {', '.join(KINDS)}; here is {[*given] or 'none'}")
    ((name, value),) = given.items()
    kind, prompt, size = name.removesuffix("s"), np.zeros((height, width), bool), np.array([width, height])
    what = f"{kind}={str(value)[:60]}"
    if kind == "mask" and isinstance(value, str | Path):
        value = read_image(value).any(2)
    try:
        places: Any = np.asarray(value, np.float64)
        if kind != "mask":
            places = places.reshape({"point": (1, 2), "box": (2, 2)}.get(name, (-1, 2)))
    except (TypeError, ValueError, OverflowError):
        raise UserError(f"{what}: does not have the numbers of a {name}") from None
    if kind == "mask":
        prompt = places > 0
        if prompt.shape != (height, width):
            raise UserError(f"{what}: is {prompt.shape}, the image {(height, width)}")
    elif not ((places >= 0) & (places < size + (kind == "box"))).all():  # a box ends behind its last pixel
        raise UserError(f"{what}: leaves the image, which has {width} x {height} pixels")
    elif kind == "box":
        (x0, y0), (x1, y1) = np.floor(places[0]).astype(int), np.ceil(places[1]).astype(int)
        prompt[y0:y1, x0:x1] = True
    elif len(places):
        lines = [np.linspace(a, b, int(2 * np.abs(b - a).max()) + 2) for a, b in pairwise(places) if kind == "scribble"]
        prompt[tuple(np.concatenate([places, *lines]).astype(int).T[::-1])] = True
    if not prompt.any():
        raise UserError(f"{what}: is empty")
    return encode_rle(dilate(prompt, BRUSH.get(kind, 0) * min(height, width) / 480))


def dilate(mask: np.ndarray, radius: float) -> np.ndarray:
    """bool[H, W] -> every pixel at most `radius` from one of the mask."""
    if radius <= 0 or not mask.any():
        return mask
    window, grown = _window(mask, int(radius) + 1), np.zeros_like(mask)
    grown[window] = ndimage.distance_transform_edt(~mask[window]) <= radius
    return grown


def _window(mask: np.ndarray, margin: int) -> tuple[slice, slice]:
    x0, y0, x1, y1 = mask_box(mask)
    return slice(max(y0 - margin, 0), y1 + margin), slice(max(x0 - margin, 0), x1 + margin)


def _components(mask: np.ndarray) -> list[Part]:
    """The connected components (8 neighbours) of more than 5 pixels, or the largest where all are smaller."""
    window = _window(mask, 0)
    labels, _ = ndimage.label(mask[window], np.ones((3, 3)))
    areas = np.bincount(labels.ravel())[1:]
    kept = np.flatnonzero(areas > 5) if areas.max() > 5 else [areas.argmax()]
    boxes, y0, x0 = ndimage.find_objects(labels), window[0].start, window[1].start
    return [(labels[boxes[i]] == i + 1, (y0 + boxes[i][0].start, x0 + boxes[i][1].start)) for i in kept]


def _point(part: Part, rng: np.random.Generator) -> tuple[int, int]:
    """(y, x) of a pixel of the component at most half of its shorter side from the centroid, or of any."""
    pixels = np.argwhere(part[0])
    angle, reach = rng.uniform(0, 2 * np.pi, TRIES), rng.uniform(0, min(part[0].shape) / 2, TRIES)
    places = np.rint(pixels.mean(0) + reach[:, None] * np.stack([np.sin(angle), np.cos(angle)], 1)).astype(int)
    places = places[((places >= 0) & (places < part[0].shape)).all(1)]
    places = places[part[0][tuple(places.T)]]
    y, x = places[0] if len(places) else pixels[rng.integers(len(pixels))]
    return int(y) + part[1][0], int(x) + part[1][1]


def _box(part: Part, rng: np.random.Generator) -> tuple[slice, slice]:
    """The box of a component, each side scaled by U(0.9, 1.1) around its centre."""
    sides = np.array(part[0].shape)
    centre, half = part[1] + sides / 2, sides * rng.uniform(0.9, 1.1, 2) / 2
    y0, x0 = np.rint(centre - half).astype(int).clip(0)
    y1, x1 = np.maximum(np.rint(centre + half).astype(int), (y0 + 1, x0 + 1))
    return slice(y0, y1), slice(x0, x1)


def _draw_scribble(prompt: np.ndarray, part: Part, rng: np.random.Generator, scale: float) -> None:
    """A diagonal of a box around the centroid that overlaps the component's by half or more, waved like a sine."""
    sides, low = np.array(part[0].shape), np.array(part[1])
    size = np.concatenate([rng.uniform(0.5, 1.2, (TRIES, 2)) * sides, sides[None]])
    corner = np.argwhere(part[0]).mean(0) + 0.5 + low - size / 2
    corner[-1] = low  # the last resort is the component's own box
    overlap = (np.minimum(corner + size, low + sides) - np.maximum(corner, low)).clip(0).prod(1)
    first = int((overlap / (size.prod(1) + sides.prod() - overlap) >= 0.5).argmax())
    (height, width), (y, x) = size[first], corner[first]
    # No wave higher than a quarter of the box: a scribble over a small object should stay on it.
    wave = min(rng.uniform(10, 20) * scale, height / 4), rng.uniform(0.2, 1), rng.uniform(0, 2 * np.pi)
    t = np.linspace(0, 1, int(4 * (height + width)) + 2)  # dense enough that neighbours touch
    ys = y + height * (t if rng.random() < 0.5 else 1 - t) + wave[0] * np.sin(2 * np.pi * wave[1] * t + wave[2])
    xs = x + width * t
    prompt[ys.astype(int).clip(0, prompt.shape[0] - 1), xs.astype(int).clip(0, prompt.shape[1] - 1)] = True


def _blurred(mask: np.ndarray, sigma: float) -> np.ndarray:
    """The mask after a Gaussian blur, where it is above its mean over the image."""
    window = _window(mask, int(4 * sigma) + 2)  # the filter ends after 4 sigma
    soft, prompt = ndimage.gaussian_filter(mask[window].astype(np.float32), sigma), np.zeros_like(mask)
    prompt[window] = soft > soft.sum(dtype=np.float64) / mask.size
    return prompt if prompt.any() else mask  # a mask of the whole image is its own mean


def sample_points(mask: np.ndarray, rng: np.random.Generator, count: int = 256) -> np.ndarray:
    """Places inside a region bool[S, S] of the segmentation frame, for the region sampler: float32[count, 2], (x, y) of
    pixels over S, without a half-pixel offset; a random subset of the pixels, or all of them and random repeats where
    they are too few. Raises BadSample for an empty region."""
    ys, xs = mask.nonzero()
    if not (n := len(ys)):
        raise BadSample("a visual prompt covers no pixel of the image")
    chosen = rng.permutation(n)[:count] if n > count else np.append(np.arange(n), rng.integers(0, n, count - n))
    return np.stack([xs[chosen] / mask.shape[1], ys[chosen] / mask.shape[0]], axis=1).astype(np.float32)
