"""Captions with masks, as GLaMM (arXiv 2311.03356) scores grounded conversation generation: every image counts."""

import functools
import itertools
import logging
import math
import re
import shutil
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from typing import Any

import numpy as np
import torch
from pycocotools import mask as coco_mask

from ..structures import RLE, UserError
from .base import Metric, percent
from .detection import InstanceAP

log = logging.getLogger("xsam")
MATCH = 0.5  # least IoU and least similarity of phrases of a pair that counts as recalled
Captions = Mapping[Any, tuple[str, Sequence[str]]]  # by image: what was said, what should have been


@dataclass
class GroundedCaptionScore(Metric):
    """`AP AP50 mIoU METEOR CIDEr recall` in percent.

    AP is COCO's, of one class, every mask with the score 1. mIoU is the mean over images of the mean IoU of the pairs
    that `pair` makes. recall is the share of the true phrases whose pair has an IoU and a similarity of phrases of 0.5
    or more; GLaMM takes pairs by falling IoU and ends the image with the first that has not."""

    similarity: str = ""  # of phrases, a name of `SIMILARITIES`; "" = no recall
    detections: InstanceAP = field(default_factory=InstanceAP)
    captions: dict[Any, tuple[str, list[str]]] = field(default_factory=dict)
    totals: np.ndarray = field(default_factory=lambda: np.zeros(4))  # images, mIoU, true phrases, recalled ones

    def __post_init__(self) -> None:
        if self.similarity and self.similarity not in SIMILARITIES:
            raise UserError(f"similarity={self.similarity!r} is unknown; there is: {', '.join(SIMILARITIES)}")

    def update(self, image_id: int | str, size: tuple[int, int], *, caption: str, phrases: Sequence[str],
               masks: Sequence[RLE], true_captions: Sequence[str], true_phrases: Sequence[str],
               true_masks: Sequence[RLE]) -> None:  # fmt: skip
        """Count one image of `size` (H, W), or one caption of it under an id of its own; a failed answer has an empty
        caption and no masks.

        phrases[i] names masks[i], true_phrases[i] true_masks[i]; GLaMM's files may have fewer phrases than masks.
        Raises UserError where a mask has another size."""
        for rle in (*masks, *true_masks):
            if tuple(rle["size"]) != tuple(size):
                sizes = f"a mask is {rle['size']}, the image {list(size)}"
                raise UserError(f"image {image_id}: {sizes}; sizes must be equal")
        truths = [{"category": 1, "rle": rle, "crowd": False} for rle in true_masks]
        self.detections.update(image_id, size, truths, [{"category": 1, "rle": rle, "score": 1.0} for rle in masks])
        self.captions[image_id] = caption, list(true_captions)
        ious = np.zeros((len(true_masks), len(masks)))
        if ious.size:
            ious = np.asarray(coco_mask.iou(list(masks), list(true_masks), [0] * len(true_masks))).T
        pairs = pair(ious)
        mean = float(np.mean([ious[i, j] for i, j in pairs])) if pairs else 0.0
        recalled = 0
        for i, j in pairs if self.similarity else ():
            named = i < len(true_phrases) and j < len(phrases)
            if not named or ious[i, j] < MATCH or SIMILARITIES[self.similarity](true_phrases[i], phrases[j]) < MATCH:
                break
            recalled += 1
        self.totals += [1, mean, len(true_phrases), recalled]

    def merge(self, other: "GroundedCaptionScore") -> None:
        self.detections.merge(other.detections)
        self.captions |= other.captions
        super().merge(other)

    def compute(self) -> dict[str, float | None]:
        """The scores; None where there was nothing to measure, METEOR also without Java or pycocoevalcap."""
        sums = np.append(self.totals, cider(self.captions).sum())
        return self._scores(self.detections.compute(), sums) | {"METEOR": meteor(self.captions)}

    def headline(self) -> float | None:
        images, mean, *_ = self.totals.tolist()
        return percent(mean, images)

    @classmethod
    def resample(cls, parts: Sequence["GroundedCaptionScore"], weights: np.ndarray) -> list[dict[str, float | None]]:
        """As `Metric.resample`, without METEOR; CIDEr keeps the document frequencies of the whole set."""
        whole = cls(parts[0].similarity)
        for part in parts:
            whole.merge(part)
        agreed = dict(zip(whole.captions, cider(whole.captions), strict=True))
        sums = [[*part.totals, sum(agreed[image] for image in part.captions)] for part in parts]
        found = InstanceAP.resample([part.detections for part in parts], weights)
        return [whole._scores(*row) for row in zip(found, weights @ np.array(sums), strict=True)]

    def _scores(self, found: Mapping[str, float | None], sums: np.ndarray) -> dict[str, float | None]:
        """All but METEOR; `sums` over images: `totals`, and CIDEr."""
        images, mean, phrases, recalled, agreed = sums.tolist()
        return {"AP": found["AP"], "AP50": found["AP50"], "mIoU": percent(mean, images), "METEOR": None,
                "CIDEr": agreed / images if images else None,
                "recall": percent(recalled, phrases if self.similarity else 0)}  # fmt: skip


def pair(ious: np.ndarray) -> list[tuple[int, int]]:
    """Rows and columns of float[N, M] one to one, the greatest first, as long as it is above 0."""
    left, pairs = ious.copy(), []
    while left.size and left.max() > 0:
        row, column = divmod(int(left.argmax()), left.shape[1])
        pairs.append((row, column))
        left[row], left[:, column] = 0, 0
    return pairs


def cider(captions: Captions) -> np.ndarray:
    """CIDEr-D (arXiv 1411.5726) of each image as the COCO caption evaluation has it, float[N] in percent, its factor
    of 10 included.

    TF-IDF of n-grams up to 4, frequencies of the document taken from the references of all images, so that one image
    alone has 0; clipped cosine; a Gaussian penalty (sigma 6) of the difference of lengths, counted in bigrams."""
    said = [_ngrams(caption) for caption, _ in captions.values()]
    references = [[_ngrams(text) for text in texts] for _, texts in captions.values()]
    frequency = Counter(gram for texts in references for gram in set().union(*itertools.chain(*texts)))

    def weights(grams: Counter[tuple[str, ...]]) -> dict[tuple[str, ...], float]:
        return {gram: n * math.log(len(captions) / max(1, frequency[gram])) for gram, n in grams.items()}

    scores = np.zeros(len(captions))
    for number, (grams, texts) in enumerate(zip(said, references, strict=True)):
        mine = [weights(some) for some in grams]
        for text in texts:
            penalty = math.exp(-((grams[1].total() - text[1].total()) ** 2) / (2 * 6.0**2))
            scores[number] += penalty * sum(map(_cosine, mine, map(weights, text))) / 4 / len(texts)
    return 100 * 10 * scores


def _ngrams(caption: str) -> list[Counter[tuple[str, ...]]]:
    """Those of one word, of two, three and four."""
    words = tokenize(caption).split()
    return [Counter(tuple(words[i : i + n]) for i in range(len(words) - n + 1)) for n in range(1, 5)]


def _cosine(mine: Mapping[Any, float], theirs: Mapping[Any, float]) -> float:
    """Clipped: no n-gram earns more for being said more often than in the reference."""
    norm = math.sqrt(sum(w * w for w in mine.values())) * math.sqrt(sum(w * w for w in theirs.values()))
    product = sum(min(weight, theirs[gram]) * theirs[gram] for gram, weight in mine.items() if gram in theirs)
    return product / norm if norm else 0.0


def meteor(captions: Captions) -> float | None:
    """METEOR 1.5 for English (Denkowski and Lavie, Meteor Universal, 2014) in percent, by its Java program, which
    pycocoevalcap brings; None, and a line in the log, without these. None for no captions."""
    if not captions:
        return None
    if not find_spec("pycocoevalcap") or not shutil.which("java"):
        log.warning("METEOR is not computed: it needs Java and the package pycocoevalcap")
        return None
    from pycocoevalcap.meteor.meteor import Meteor

    said = {image: [tokenize(caption)] for image, (caption, _) in captions.items()}
    true = {image: list(map(tokenize, references)) for image, (_, references) in captions.items()}
    return 100 * Meteor().compute_score(true, said)[0]


_QUOTES = str.maketrans("\u2018\u2019\u201c\u201d", "''\"\"")  # curly to straight
_BRACKETS = {"(": "-lrb-", ")": "-rrb-", "[": "-lsb-", "]": "-rsb-", "{": "-lcb-", "}": "-rcb-"}
_TOKEN = re.compile(
    r"""
    (?:mr|mrs|ms|dr|prof|st|ave|blvd|jr|sr|co|inc|ltd|corp|vs|etc|mt|ft|ph\.d)\.(?![\w.])  # abbreviations
    | (?:[a-z]\.){2,} | (?<!\w)[a-z]\.(?=\s+\w)                          # u.s.a., p.m., initials
    | can(?=not\b) | (?:gon|wan)(?=na\b) | got(?=ta\b) | lem(?=me\b)     # in two
    | \w+?(?=n't\b) | n't\b | '(?:s|m|d|ll|re|ve)\b | '\d\ds?\b          # is n't, dog 's, '90s
    | \d+(?:[.,:]\d+)*(?:\ \d+/\d+)?(?![\w/:-]) | \d+:\d+                # 1,000; 3:30; 22 3/4 is one
    | \w+(?:(?:[-/.@]|'(?!(?:s|m|d|ll|re|ve)\b))\w+)*                    # two-story, and/or, o'clock
    | \S
    """,
    re.VERBOSE,
)
_PUNCTUATION = frozenset("'\"`.?!,:;-\u2013\u2014\u2026")  # the last: dashes and the ellipsis


def tokenize(caption: str) -> str:
    """Lower-case tokens joined by blanks, without punctuation: those of the PTB tokenizer of the COCO caption
    evaluation for English prose, computed without Java so that a score does not depend on it."""
    tokens = _TOKEN.findall(caption.lower().translate(_QUOTES))
    kept = (_BRACKETS.get(token, token) for token in tokens if token not in _PUNCTUATION)
    return " ".join(token.replace(" ", "\N{NO-BREAK SPACE}") for token in kept)


def jaccard(first: str, second: str) -> float:
    """Shared words over all words, in lower case."""
    a, b = set(first.lower().split()), set(second.lower().split())
    return len(a & b) / len(a | b) if a | b else 0.0


def bert(first: str, second: str) -> float:
    """Cosine of the mean last hidden states of bert-base-uncased, GLaMM's measure. Raises UserError where it is not
    on this machine."""
    a, b = _embedding(first), _embedding(second)
    return float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))


@functools.cache
def _bert() -> tuple[Any, Any]:
    from transformers import AutoModel, AutoTokenizer

    name = "bert-base-uncased"
    try:
        tokenizer = AutoTokenizer.from_pretrained(name, local_files_only=True)
        return tokenizer, AutoModel.from_pretrained(name, local_files_only=True).eval()
    except (OSError, ValueError):
        raise UserError(f"{name} is not on this machine; fetch it, or compare phrases by jaccard") from None


@functools.lru_cache(maxsize=1 << 16)
@torch.no_grad()
def _embedding(text: str) -> np.ndarray:
    tokenizer, model = _bert()
    return model(**tokenizer(text, return_tensors="pt")).last_hidden_state[0].mean(0).numpy()


SIMILARITIES: dict[str, Callable[[str, str], float]] = {"jaccard": jaccard, "bert": bert}
