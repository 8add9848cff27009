"""Samples in pictures: the page of `xsam data preview`, the gallery of an evaluation, and pictures for TensorBoard."""

import base64
import io
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from html import escape
from itertools import count, groupby, islice
from pathlib import Path
from string import Template
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw
from scipy import ndimage
from torch import nn
from tqdm import tqdm

from .. import config as configs
from ..data.collate import collate, uncollate
from ..data.images import read_image
from ..data.masks import decode_rle, unpack
from ..data.mixture import Mixture, key
from ..data.postprocess import panoptic
from ..data.prompt import PLACEHOLDERS, Processor
from ..engine import results
from ..structures import IGNORE_INDEX, REGION_TOKEN, BadSample, Encoded, Prediction, Sample, SegmentMap, UserError
from ..tasks.base import Task, build
from ..visualize import SIDE, Color, color, draw_segments
from .datasets import read

GROUP = 4  # samples of the preview that are collated together, as a mixture's contrast group is
COUNT = 6  # of the worst samples in the gallery, and of those at random
SEGMENTS = 10  # of an answer, the best, that are drawn there
SMALL = 288  # small images are enlarged towards this there
GREY: Color = (205, 205, 205)  # of a phrase without a mask
INTRO = """Pictures are what the segmentation encoder gets, without the padding. The text is decoded from the tokens;
what the model has to say is shaded. Numbers count the phrases and the masks that are asked for; a phrase has the colour
of its masks, or grey if it has none. Dots are where the feature of a region is taken."""
Shown = tuple[np.ndarray, str, float]  # mask bool[H, W], name, score


def preview(target: str, out: Path, overrides: Sequence[str] = (), *, images: str = "", samples: int = 16) -> Path:
    """Write `out/index.html` with some samples of each row of `target` (see `datasets.read`), drawn in training mode.

    The same samples are drawn each time. A sample that training would refuse is shown with the reason. Rows over the
    same data are shown once. Raises UserError where no row can be read."""
    rows, node, _ = read(target, overrides, images)
    tasks: dict[str, Task] = {}
    shown, problems = list[Any](), list[str]()
    for name, row in rows.items():
        if row["data"] not in shown:
            shown.append(row["data"])
            try:
                tasks[name] = build(row, train=True)
            except UserError as error:
                problems.append(f"{name}: {error}")
    if not tasks:
        raise UserError(problems[0])
    processor: Processor = configs.build(node)
    body = [f"<p class=bad>{escape(problem)}</p>" for problem in problems]
    for name, task in tasks.items():
        rng = np.random.default_rng(key("preview", name))
        chosen = np.sort(rng.permutation(len(task))[:samples]).tolist()
        body.append(f"<h2>{escape(name)}</h2><p class=small>{len(task):,} samples</p>")
        for start in tqdm(range(0, len(chosen), GROUP), desc=name, delay=2, leave=False):
            body += _cards(name, task, chosen[start : start + GROUP], processor)
    _write(out / "index.html", f"Preview of {target}", INTRO, "\n".join(body))
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
    frames = zip(paths, batch.seg_pixel_values, batch.seg_sizes.tolist(), strict=True)
    images = [(path, pixels[:, :h, :w].permute(1, 2, 0).numpy()) for path, pixels, (h, w) in frames]
    regions = zip(batch.region_points.numpy(), batch.region_image.tolist(), strict=True)
    for row, own in zip(encoded, batch.image_index.tolist(), strict=True):
        prompts = list(islice(regions, int((row.input_ids == REGION_TOKEN).sum())))
        yield _sample_card(row, images, own, prompts, processor)


def _sample_card(
    encoded: Encoded, images: Sequence[tuple[str, np.ndarray]], own: int, prompts: Sequence[tuple[np.ndarray, int]],
    processor: Processor,
) -> str:  # fmt: skip
    """The HTML of a sample.

    Args:
        images: path and uint8[h, w, 3] of all images of its batch.
        own: which of them is the sample's, -1 = none.
        prompts: of every `<region>` its points float[P, 2] in [0, 1] of the frame, and which image they are on."""
    text = list(_pieces(encoded, processor))
    colors = {label: color(rank) for rank, label in enumerate(np.unique(encoded.target_labels).tolist())}
    segments = _targets(encoded, _phrases("".join(piece for piece, _ in text)))
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
        figures += _figure(picture, name if place == own else f"regions that are drawn on {name}")
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


def _pieces(encoded: Encoded, processor: Processor) -> Iterator[tuple[str, bool]]:
    """The text of the tokens and whether it is supervised, in runs."""
    texts = {number: text for text, number in PLACEHOLDERS.items()}
    tokens = zip(encoded.input_ids.tolist(), (encoded.labels != IGNORE_INDEX).tolist(), strict=True)
    for (placeholder, said), run in groupby(tokens, lambda token: (texts.get(token[0], ""), token[1])):
        ids = [token for token, _ in run]
        assert processor.tokenizer is not None
        yield placeholder * len(ids) or processor.tokenizer.decode(ids), said


def _phrases(text: str) -> dict[int, str]:
    """The words of every `<p>..</p>` by number, where a `<region>` stands with its number."""
    regions = count()
    text = re.sub("<region>", lambda _: f"region {next(regions)}", text)
    return {number: words.strip() for number, words in enumerate(re.findall("<p>(.*?)</p>", text, re.DOTALL))}


def _targets(encoded: Encoded, names: Mapping[int, str]) -> list[Shown]:
    """`_asked` of the image in the frame."""
    height, width = encoded.seg_size
    masks = SegmentMap(encoded.target_ids[:, :height, :width], len(encoded.target_labels))
    return _asked(masks, encoded.target_labels, names)


def _asked(masks: SegmentMap, labels: np.ndarray, names: Mapping[int, str]) -> list[Shown]:
    """What `draw_segments` shows of targets with labels int64[N]: for each label all its masks as one, with a gap of a
    pixel where two of them touch, and its name."""
    dense, shown = unpack(masks), []
    for label in np.unique(labels).tolist():
        own = dense[labels == label]
        apart = np.sum([ndimage.binary_dilation(mask) for mask in own], axis=0) == 1
        shown.append((own.any(0) & apart, names.get(label, f"class {label}"), 1.0))
    return shown


def _html(text: Sequence[tuple[str, bool]], colors: Mapping[int, Color]) -> str:
    """`_pieces` as HTML: phrases and `<SEG>` numbered and coloured, what is supervised shaded."""
    numbers, segs, regions = count(), count(), count()

    def phrase(found: re.Match[str]) -> str:
        number = next(numbers)
        red, green, blue = colors.get(number, GREY)
        return f'<mark style="background: rgba({red}, {green}, {blue}, .55)"><sup>{number}</sup>{found[1]}</mark>'

    html = "".join(f"<span class=said>{escape(piece)}</span>" if said else escape(piece) for piece, said in text)
    html = re.sub("&lt;p&gt;(.*?)&lt;/p&gt;", phrase, html, flags=re.DOTALL)
    html = re.sub("&lt;region&gt;", lambda found: f"{found[0]}<sub>{next(regions)}</sub>", html)
    return re.sub("&lt;SEG&gt;", lambda found: f"<b>{found[0]}</b><sub>{next(segs)}</sub>", html)


def gallery(out: Path, rows: Mapping[str, dict[str, Any]]) -> None:
    """Write `out/gallery/<benchmark>.html` for each of the benchmarks `rows` that the evaluation in `out` scored."""
    for name, row in tqdm(rows.items(), "gallery", delay=2):
        folder = out / "predictions" / name
        if not (folder / "scores.json").is_file():
            continue
        task, answers = build(row), results.read_answers(folder)
        scores: dict[str, float | None] = json.loads((folder / "scores.json").read_text())
        ranked = sorted((id for id in scores if scores[id] is not None), key=lambda id: (scores[id], id))
        drawn = np.random.default_rng(key("gallery", name)).permutation(sorted(scores))[:COUNT].tolist()
        places = {task.id(index): index for index in range(len(task))}
        sections = []
        for title, chosen in (("The worst", ranked[:COUNT]), ("At random", drawn)):
            cards = [_answer_card(task, places[id], answers[id], scores[id]) for id in chosen]
            sections.append(f"<h2>{title}</h2>{''.join(cards)}")
        intro = f"{len(scores):,} samples were scored; a score is the benchmark's first figure for the sample alone."
        _write(out / "gallery" / f"{name}.html", name, intro, "".join(sections))


def _answer_card(task: Task, index: int, answer: Prediction, score: float | None) -> str:
    """One sample: its pictures, question, answer and score."""
    try:
        sample = task.sample(index, np.random.default_rng(key("evaluate", answer.id)))
        figures = _figures(task, sample, answer) if sample.image else ""
    except BadSample as bad:
        return f"<article class=bad>{escape(str(bad))}</article>"
    turn = sample.turns[0] if sample.turns else None
    lines = [f"Question: {turn.question}", f"Expected: {turn.answer}"] if turn else []
    lines += [f"Answer: {answer.text}" + (" (failed)" if answer.failed else "")]
    figure = "none" if score is None else f"{score:.1f}"
    text = escape("\n".join(lines))
    return f"<article><h3>{escape(answer.id)}: {figure}</h3>{figures}<p class=text>{text}</p></article>"


def _figures(task: Task, sample: Sample, answer: Prediction) -> str:
    image = read_image(sample.image)
    best = sorted(answer.segments, key=lambda segment: -segment.score)[:SEGMENTS]
    found = [(decode_rle(s.segmentation), task.category(s.label), s.score) for s in best]
    truth = _asked(sample.masks, sample.labels, _phrases("".join(turn.question + turn.answer for turn in sample.turns)))
    pictures = [(image, found, "answer"), (image, truth, "truth")]
    for path in dict.fromkeys(region.image for region in sample.regions):
        marks = [(decode_rle(r.mask), f"region {n}", 1.0) for n, r in enumerate(sample.regions) if r.image == path]
        pictures.append((read_image(path) if path else image, marks, "what was shown"))
    return "".join(_figure(draw_segments(pixels, drawn, SMALL), caption) for pixels, drawn, caption in pictures)


class Pictures:
    """Truth and prediction side by side, for one sample with masks of each of the first eight sources that have any."""

    def __init__(self, mixture: Mixture, processor: Processor) -> None:
        indices = {name: key("pictures", name) % len(mixture.sources[name]) for name in mixture.names}
        drawn = [(name, row) for name, i in indices.items() for row in mixture.draw(name, i, (0,), processor)[0]]
        self.shown = dict([(f"pictures/{name}", row) for name, row in drawn if len(row.target_labels)][:8])
        self.processor = processor

    @torch.no_grad()
    def __call__(self, model: nn.Module) -> dict[str, np.ndarray]:
        """Images uint8[H, W, 3] by name. The questions and answers are given, as in training."""
        model.eval()
        images = {}
        for name, row in self.shown.items():
            batch = collate([row], 1).to(next(model.parameters()).device)
            (outputs,) = uncollate(model(batch), batch, [row])
            names = _phrases("".join(piece for piece, _ in _pieces(row, self.processor)))
            found, (height, width) = list[Shown](), row.seg_size
            for output in outputs:
                ids, segments = panoptic(replace(output, image_size=row.seg_size), stuff=(), score=0.5)
                for number, label, score in segments:
                    found.append(((ids == number).cpu().numpy(), names.get(label, f"class {label}"), score))
            frame = row.seg_pixel_values[:, :height, :width].transpose(1, 2, 0)
            sides = [draw_segments(frame, shown) for shown in (_targets(row, names), found)]
            images[name] = np.concatenate([np.asarray(side) for side in sides], axis=1)
        model.train()
        return images


def _write(path: Path, title: str, intro: str, body: str) -> None:
    """Write a page; `intro` and `body` are HTML."""
    template = Template(Path(__file__).with_name("page.html").read_text(encoding="utf-8"))
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(template.substitute(title=escape(title), intro=intro, body=body), encoding="utf-8")


def _figure(picture: Image.Image, caption: str) -> str:
    """A picture inside the page, as JPEG, with its caption."""
    data = io.BytesIO()
    picture.save(data, "JPEG", quality=85, subsampling=0)  # thin lines keep their colours
    source = f"data:image/jpeg;base64,{base64.b64encode(data.getvalue()).decode()}"
    text = escape(caption)
    return f'<figure><img src="{source}" alt="{text}"><figcaption>{text}</figcaption></figure>'
