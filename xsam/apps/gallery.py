"""The gallery of an evaluation: of every benchmark the worst answers and some at random, beside the truth."""

import json
from collections.abc import Mapping
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from ..data.images import read_image
from ..data.masks import decode_rle
from ..data.mixture import key
from ..engine import predictions
from ..structures import BadSample, Prediction, Sample
from ..tasks.base import Task, build
from . import page
from .preview import asked, phrases
from .visualize import draw_segments

COUNT = 6  # of the worst, and of those at random
SEGMENTS = 10  # of an answer, the best, that are drawn
SIDE = 288  # small images are enlarged towards this


def write(out: Path, rows: Mapping[str, dict[str, Any]]) -> None:
    """`out/gallery/<benchmark>.html` for every benchmark that was scored.

    Args:
        out: folder of an evaluation.
        rows: its benchmark configs by name."""
    for name, row in tqdm(rows.items(), "gallery", delay=2):
        folder = out / "predictions" / name
        if not (folder / "scores.json").is_file():
            continue
        task, answers = build(row), predictions.read(folder)
        scores: dict[str, float | None] = json.loads((folder / "scores.json").read_text())
        ranked = sorted((id for id in scores if scores[id] is not None), key=lambda id: (scores[id], id))
        drawn = np.random.default_rng(key("gallery", name)).permutation(sorted(scores))[:COUNT].tolist()
        places = {task.id(index): index for index in range(len(task))}
        sections = []
        for title, chosen in (("The worst", ranked[:COUNT]), ("At random", drawn)):
            cards = [_card(task, places[id], answers[id], scores[id]) for id in chosen]
            sections.append(f"<h2>{title}</h2>{''.join(cards)}")
        intro = f"{len(scores):,} samples were scored; a score is the benchmark's first figure for the sample alone."
        page.write(out / "gallery" / f"{name}.html", name, intro, "".join(sections))


def _card(task: Task, index: int, answer: Prediction, score: float | None) -> str:
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
    truth = asked(sample.masks, sample.labels, phrases("".join(turn.question + turn.answer for turn in sample.turns)))
    pictures = [(image, found, "answer"), (image, truth, "truth")]
    for path in dict.fromkeys(region.image for region in sample.regions):
        marks = [(decode_rle(r.mask), f"region {n}", 1.0) for n, r in enumerate(sample.regions) if r.image == path]
        pictures.append((read_image(path) if path else image, marks, "what was shown"))
    return "".join(page.figure(draw_segments(pixels, drawn, SIDE), caption) for pixels, drawn, caption in pictures)
