"""`xsam data preview`: samples as the model will see them, as an HTML page with pictures."""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
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
from ..structures import IGNORE_INDEX, REGION_TOKEN, BadSample, Encoded, Sample, SegmentMap, UserError
from ..tasks.base import Task
from . import page
from .sources import Row, read
from .visualize import SIDE, Color, color, draw_segments

GROUP = 4  # samples that are collated together, as a mixture's contrast group is
GREY: Color = (205, 205, 205)  # of a phrase without a mask
INTRO = """Pictures are what the segmentation encoder gets, without the padding. The text is decoded from the tokens;
what the model has to say is shaded. Numbers count the phrases and the masks that are asked for; a phrase has the colour
of its masks, or grey if it has none. Dots are where the feature of a region is taken."""
Shown = tuple[np.ndarray, str, float]  # mask bool[H, W], name, score


def preview(target: str, out: Path, overrides: Sequence[str] = (), *, images: str = "", samples: int = 16) -> Path:
    """Write `out/index.html` with some samples of each row of `target` (see `sources.read`), drawn in training mode.

    The same samples are drawn each time. A sample that training would refuse is shown with the reason. Rows over the
    same data are shown once. Raises UserError where no row can be read."""
    found = read(target, overrides, images)
    rows: dict[str, Row] = {}
    for row in found.rows:
        rows.setdefault(json.dumps(row.node["data"], sort_keys=True), row)
    tasks: dict[str, Task] = {}
    problems = []
    for row in rows.values():
        try:
            tasks[row.name] = row.build(train=True)
        except UserError as error:
            problems.append(f"{row.name}: {error}")
    if not tasks:
        raise UserError(problems[0])
    processor: Processor = configs.build(found.processor)
    body = [f"<p class=bad>{escape(problem)}</p>" for problem in problems]
    for name, task in tasks.items():
        rng = np.random.default_rng(key("preview", name))
        chosen = np.sort(rng.permutation(len(task))[:samples]).tolist()
        body.append(f"<h2>{escape(name)}</h2><p class=small>{len(task):,} samples</p>")
        for start in tqdm(range(0, len(chosen), GROUP), desc=name, delay=2, leave=False):
            body += _cards(name, task, chosen[start : start + GROUP], processor)
    page.write(out / "index.html", f"Preview of {target}", INTRO, "\n".join(body))
    return out / "index.html"


def _cards(name: str, task: Task, indices: Sequence[int], processor: Processor) -> Iterator[str]:
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
    paths = list(dict.fromkeys(sample.image for sample in samples if sample.image))
    paths += [path for sample in samples for path in dict.fromkeys(region.image for region in sample.regions) if path]
    sizes = batch.seg_sizes.tolist()
    frames = [p[:, :h, :w].permute(1, 2, 0).numpy() for p, (h, w) in zip(batch.seg_pixel_values, sizes, strict=True)]
    images = list(zip(paths, frames, strict=True))
    regions = zip(batch.region_points.numpy(), batch.region_image.tolist(), strict=True)
    for row, own in zip(encoded, batch.image_index.tolist(), strict=True):
        prompts = list(islice(regions, int((row.input_ids == REGION_TOKEN).sum())))
        yield _card(row, images, own, prompts, processor)


def _card(
    encoded: Encoded, images: Sequence[tuple[str, np.ndarray]], own: int, prompts: Sequence[tuple[np.ndarray, int]],
    processor: Processor,
) -> str:  # fmt: skip
    """The HTML of a sample.

    Args:
        images: path and uint8[h, w, 3] of all images of its batch.
        own: which of them is the sample's, -1 = none.
        prompts: of every `<region>` its points float[P, 2] in [0, 1] of the frame, and which image they are on."""
    text = list(pieces(encoded, processor))
    colors = {label: color(rank) for rank, label in enumerate(np.unique(encoded.target_labels).tolist())}
    segments = targets(encoded, phrases("".join(piece for piece, _ in text)))
    spans = encoded.span_ids[encoded.input_ids == REGION_TOKEN].tolist()
    figures = ""
    for place in sorted({own, *(place for _, place in prompts)} - {-1}, key=lambda place: (place != own, place)):
        path, frame = images[place]
        picture = draw_segments(frame, segments if place == own else [])
        scale = picture.width / frame.shape[1]
        for number, ((points, where), span) in enumerate(zip(prompts, spans, strict=True)):
            if where == place:  # those that are nowhere fall outside
                dots = (points * encoded.target_ids.shape[-1] + 0.5) * scale
                _mark(picture, dots, str(number), colors.get(span, GREY))
        name = path.partition(",")[0] if path.startswith("data:") else path  # without the bytes of a picture
        figures += page.figure(picture, name if place == own else f"regions that are drawn on {name}")
    facts = [f"{len(encoded.input_ids):,} text tokens", f"{len(encoded.target_labels)} masks"]
    facts.append(f"image {encoded.image_size}, in the frame {encoded.seg_size}" if own >= 0 else "no image")
    if nowhere := [number for number, (points, _) in enumerate(prompts) if points.max() < 0]:
        facts.append(f"regions {nowhere} are nowhere: the group shows nothing that fits")
    return (
        f"<article><h3>{escape(encoded.id)}</h3>{figures}"
        f"<p class=text>{_html(text, colors) or 'no text: a closed set of classes'}</p>"
        f"<p class=small>{escape('; '.join(facts))}</p></article>"
    )


def _mark(picture: Image.Image, points: np.ndarray, text: str, ink: Color) -> None:
    """Dots at float[P, 2], in pixels of the picture, and a text in their middle."""
    draw, radius = ImageDraw.Draw(picture), max(1.5, max(picture.size) / SIDE)
    for x, y in points:
        draw.ellipse((x - radius, y - radius, x + radius, y + radius), ink, "black" if radius > 2 else None)
    draw.text(tuple(points.mean(0)), text, "white", anchor="mm", stroke_width=2, stroke_fill="black")


def pieces(encoded: Encoded, processor: Processor) -> Iterator[tuple[str, bool]]:
    """The text of the tokens and whether it is supervised, in runs."""
    texts = {number: text for text, number in PLACEHOLDERS.items()}
    tokens = zip(encoded.input_ids.tolist(), (encoded.labels != IGNORE_INDEX).tolist(), strict=True)
    for (placeholder, said), run in groupby(tokens, lambda token: (texts.get(token[0], ""), token[1])):
        ids = [token for token, _ in run]
        assert processor.tokenizer is not None
        yield placeholder * len(ids) or processor.tokenizer.decode(ids), said


def phrases(text: str) -> dict[int, str]:
    """The words of every `<p>..</p>` by number, where a `<region>` stands with its number."""
    regions = count()
    text = re.sub("<region>", lambda _: f"region {next(regions)}", text)
    return {number: words.strip() for number, words in enumerate(re.findall("<p>(.*?)</p>", text, re.DOTALL))}


def targets(encoded: Encoded, names: Mapping[int, str]) -> list[Shown]:
    """`asked` of the image in the frame."""
    height, width = encoded.seg_size
    masks = SegmentMap(encoded.target_ids[:, :height, :width], len(encoded.target_labels))
    return asked(masks, encoded.target_labels, names)


def asked(masks: SegmentMap, labels: np.ndarray, names: Mapping[int, str]) -> list[Shown]:
    """What `draw_segments` shows of targets with labels int64[N]: for each label all its masks as one, with a gap of a
    pixel where two of them touch, and its name."""
    dense, shown = unpack(masks), []
    for label in np.unique(labels).tolist():
        own = dense[labels == label]
        apart = np.sum([ndimage.binary_dilation(mask) for mask in own], axis=0) == 1
        shown.append((own.any(0) & apart, names.get(label, f"class {label}"), 1.0))
    return shown


def _html(text: Sequence[tuple[str, bool]], colors: Mapping[int, Color]) -> str:
    """`pieces` as HTML: phrases and `<SEG>` numbered and coloured, what is supervised shaded."""
    numbers, segs, regions = count(), count(), count()

    def phrase(found: re.Match[str]) -> str:
        number = next(numbers)
        red, green, blue = colors.get(number, GREY)
        return f'<mark style="background: rgba({red}, {green}, {blue}, .55)"><sup>{number}</sup>{found[1]}</mark>'

    html = "".join(f"<span class=said>{escape(piece)}</span>" if said else escape(piece) for piece, said in text)
    html = re.sub("&lt;p&gt;(.*?)&lt;/p&gt;", phrase, html, flags=re.DOTALL)
    html = re.sub("&lt;region&gt;", lambda found: f"{found[0]}<sub>{next(regions)}</sub>", html)
    return re.sub("&lt;SEG&gt;", lambda found: f"<b>{found[0]}</b><sub>{next(segs)}</sub>", html)
