"""`xsam data preview`: samples as the model will see them, as an HTML page with pictures."""

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape
from itertools import count, groupby, islice
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw
from scipy import ndimage
from tqdm import tqdm

from .. import config as configs
from ..data.collate import collate
from ..data.masks import unpack
from ..data.mixture import key
from ..data.prompt import PLACEHOLDERS, Processor
from ..structures import IGNORE_INDEX, BadSample, Encoded, Sample, SegmentMap, UserError
from ..tasks.base import Task
from . import page
from .sources import Row, read
from .visualize import SIDE, Color, color, draw_segments

GROUP = 4  # samples that are collated together, as a mixture's contrast group is
GREY: Color = (205, 205, 205)  # of a phrase without a mask
INTRO = """Pictures are what the segmentation encoder gets, without the padding. The text is decoded from the tokens;
what the model has to say is shaded. Numbers count the phrases and the masks that are asked for; a phrase has the colour
of its masks, or grey if it has none. Dots are where the feature of a region is taken."""


@dataclass(frozen=True, slots=True)
class Seen:
    """A sample, and where its visual prompts ended up in a batch."""

    encoded: Encoded
    prompts: tuple[tuple[np.ndarray, int], ...]  # per `<region>`: points (x, y) in the frame, image of the batch
    images: tuple[tuple[str, np.ndarray], ...]  # path and frame uint8[h, w, 3] of the images of the batch
    own: int  # which of them is the sample's, -1 = none


def preview(target: str, out: Path, overrides: Sequence[str] = (), *, images: str = "", samples: int = 16) -> Path:
    """Write `out/index.html` with some samples of each row of `target` (see `sources.read`), drawn in training mode.

    The same samples are drawn each time. A sample that training would refuse is shown with the reason. Rows over the
    same data are shown once. Raises UserError where no row can be read."""
    found = read(target, overrides, images)
    rows: dict[str, Row] = {}
    for row in found.rows:
        rows.setdefault(json.dumps(row.node["data"], sort_keys=True), row)
    tasks: list[tuple[str, Task]] = []
    problems = []
    for row in rows.values():
        try:
            tasks.append((row.name, row.build(train=True)))
        except UserError as error:
            problems.append(f"{row.name}: {error}")
    if not tasks:
        raise UserError(problems[0])
    processor: Processor = configs.build(found.processor)
    out.mkdir(parents=True, exist_ok=True)
    body = [f"<p class=bad>{escape(problem)}</p>" for problem in problems]
    for number, (name, task) in enumerate(tasks):
        rng = np.random.default_rng(key("preview", name))
        chosen = np.sort(rng.permutation(len(task))[:samples]).tolist()
        body.append(f"<h2>{escape(name)}</h2><p class=small>{len(task):,} samples</p>")
        for start in tqdm(range(0, len(chosen), GROUP), desc=name, delay=2, leave=False):
            for place, card in enumerate(_group(name, task, chosen[start : start + GROUP], processor)):
                stem = f"{number:02}-{start + place:04}"
                body.append(card if isinstance(card, str) else _card(card, processor, out, stem))
    page.write(out / "index.html", f"Preview of {target}", INTRO, "\n".join(body))
    return out / "index.html"


def _group(name: str, task: Task, indices: Sequence[int], processor: Processor) -> Iterator[Seen | str]:
    """The samples as one contrast group, after a note for each that is refused."""
    samples: list[Sample] = []
    encoded: list[Encoded] = []
    for index in indices:
        seed = key("preview", name, index)
        try:
            sample = task.sample(index, np.random.default_rng(seed))
            encoded.append(processor(sample, seed, shorten=True))
            samples.append(sample)
        except BadSample as bad:
            yield f"<article class=bad>{escape(name)}, sample {index} is refused: {escape(str(bad))}</article>"
    if not samples:
        return
    batch = collate(encoded, GROUP)
    paths = [sample.image for sample in samples if sample.image]
    paths += [path for sample in samples for path in dict.fromkeys(region.image for region in sample.regions) if path]
    sizes = batch.seg_sizes.tolist()
    frames = [p[:, :h, :w].permute(1, 2, 0).numpy() for p, (h, w) in zip(batch.seg_pixel_values, sizes, strict=True)]
    images = tuple(zip(paths, frames, strict=True))
    regions = zip(batch.region_points.numpy(), batch.region_image.tolist(), strict=True)
    for arrays, own in zip(encoded, batch.image_index.tolist(), strict=True):
        prompts = tuple(islice(regions, int((arrays.input_ids == PLACEHOLDERS["<region>"]).sum())))
        yield Seen(arrays, prompts, images, own)


def _card(seen: Seen, processor: Processor, out: Path, stem: str) -> str:
    """The HTML of a sample; its pictures are written beside the page."""
    encoded = seen.encoded
    labels = sorted(set(encoded.target_labels.tolist()))
    colors = {label: color(rank) for rank, label in enumerate(labels)}
    pieces = list(_pieces(encoded, processor))
    names = _phrases(pieces)
    masks = zip(_masks(encoded, labels), labels, strict=True)
    segments = [(mask, names.get(label, f"class {label}"), 1.0) for mask, label in masks]
    figures = ""
    others = sorted({image for _, image in seen.prompts} - {seen.own})
    for image in [seen.own, *others] if seen.own >= 0 else others:
        path, frame = seen.images[image]
        picture = draw_segments(frame, segments if image == seen.own else [])
        _dots(picture, seen, image, colors)
        picture.save(out / f"{stem}-{image}.png")
        caption = escape(path if image == seen.own else f"regions that are drawn on {path}")
        figures += f'<figure><img src="{stem}-{image}.png" alt=""><figcaption>{caption}</figcaption></figure>'
    facts = [f"{len(encoded.input_ids):,} text tokens", f"{len(encoded.target_labels)} masks"]
    facts.append(f"image {encoded.image_size}, in the frame {encoded.seg_size}" if seen.own >= 0 else "no image")
    if nowhere := [number for number, (points, _) in enumerate(seen.prompts) if points.max(initial=0) < 0]:
        facts.append(f"regions {nowhere} are nowhere: the group shows nothing that fits")
    text = _text(pieces, colors) or "no text: a closed set of classes"
    return (
        f"<article><h3>{escape(encoded.id)}</h3>{figures}<p class=text>{text}</p>"
        f"<p class=small>{escape('; '.join(facts))}</p></article>"
    )


def _masks(encoded: Encoded, labels: Sequence[int]) -> Iterator[np.ndarray]:
    """bool[h, w] for each label: its masks, with a gap of a pixel where two of them touch."""
    height, width = encoded.seg_size
    masks = unpack(SegmentMap(encoded.target_ids[:, :height, :width], len(encoded.target_labels)))
    for label in labels:
        own = masks[encoded.target_labels == label]
        yield own.any(0) & (np.sum([ndimage.binary_dilation(mask) for mask in own], axis=0) == 1)


def _dots(picture: Image.Image, seen: Seen, image: int, colors: dict[int, Color]) -> None:
    """The points of the visual prompts on an image, in the colours of their phrases, with the number of the region."""
    draw = ImageDraw.Draw(picture)
    scale = picture.width / seen.images[image][1].shape[1]
    side = seen.encoded.seg_pixel_values.shape[-1] * scale
    radius = max(1.5, max(picture.size) / SIDE)
    spans = seen.encoded.span_ids[seen.encoded.input_ids == PLACEHOLDERS["<region>"]].tolist()
    for number, ((points, place), span) in enumerate(zip(seen.prompts, spans, strict=True)):
        if place != image or points.max(initial=0) < 0:
            continue
        for x, y in points * side + scale / 2:
            box = (x - radius, y - radius, x + radius, y + radius)
            draw.ellipse(box, colors.get(span, GREY), "black" if radius > 2 else None)
        x, y = points.mean(0) * side
        draw.text((x, y), str(number), "white", anchor="mm", stroke_width=2, stroke_fill="black")


def _pieces(encoded: Encoded, processor: Processor) -> Iterator[tuple[str, bool]]:
    """The text of the tokens and whether it is supervised, in runs."""
    texts = {number: text for text, number in PLACEHOLDERS.items()}
    tokens = zip(encoded.input_ids.tolist(), (encoded.labels != IGNORE_INDEX).tolist(), strict=True)
    for (placeholder, said), run in groupby(tokens, lambda token: (texts.get(token[0], ""), token[1])):
        ids = [token for token, _ in run]
        assert processor.tokenizer is not None
        yield placeholder * len(ids) or processor.tokenizer.decode(ids), said


def _phrases(pieces: Sequence[tuple[str, bool]]) -> dict[int, str]:
    """The words of every `<p>..</p>`, or the number of its region, by number."""
    regions = count()
    text = "".join(f"region {next(regions)}" if piece == "<region>" else piece for piece, _ in pieces)
    return {number: words.strip() for number, words in enumerate(re.findall("<p>(.*?)</p>", text, re.DOTALL))}


def _text(pieces: Sequence[tuple[str, bool]], colors: dict[int, Color]) -> str:
    """The text as HTML: phrases and `<SEG>` numbered and coloured, what is supervised shaded."""
    phrases, segs, regions = count(), count(), count()

    def phrase(found: re.Match[str]) -> str:
        number = next(phrases)
        red, green, blue = colors.get(number, GREY)
        return f'<mark style="background: rgba({red}, {green}, {blue}, .55)"><sup>{number}</sup>{found[1]}</mark>'

    text = "".join(f"<span class=said>{escape(piece)}</span>" if said else escape(piece) for piece, said in pieces)
    text = re.sub("&lt;p&gt;(.*?)&lt;/p&gt;", phrase, text, flags=re.DOTALL)
    text = re.sub("&lt;region&gt;", lambda found: f"{found[0]}<sub>{next(regions)}</sub>", text)
    return re.sub("&lt;SEG&gt;", lambda found: f"<b>{found[0]}</b><sub>{next(segs)}</sub>", text)
