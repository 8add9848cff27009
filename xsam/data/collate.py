"""Encoded samples become a batch, and the model's output samples again. What each `<SEG>` must choose from is decided
here, as data."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from ..structures import IGNORE_INDEX, Batch, DecoderItems, Encoded, ItemOutput, ModelOutput, Target


def collate(samples: Sequence[Encoded], contrast: int = 0) -> Batch:
    """Pad, stack, and list the decoder items. Rows that show the same image share it, so it is encoded once. Rows with
    `shared_candidates` share their spans inside groups of `contrast` consecutive rows; 0 = the batch is one group."""
    names = [s.image or row for row, s in enumerate(samples) if s.seg_pixel_values.size]
    places = {name: place for place, name in enumerate(dict.fromkeys(names))}
    image_index = np.array([places.get(s.image or row, -1) for row, s in enumerate(samples)], np.int64)
    shown = [samples[row] for row in np.unique(image_index, return_index=True)[1] if image_index[row] >= 0]
    images = [(s.pixel_values, s.seg_pixel_values, s.seg_size) for s in shown]
    images += [reference for s in samples for reference in s.references]
    region_points, region_image = _regions(samples, image_index, contrast or len(samples))
    return Batch(
        ids=tuple(s.id for s in samples), lengths=torch.tensor([len(s.input_ids) for s in samples]),
        input_ids=_pad([s.input_ids for s in samples], 0), labels=_pad([s.labels for s in samples], IGNORE_INDEX),
        span_ids=_pad([s.span_ids for s in samples], -1), seg_ids=_pad([s.seg_ids for s in samples], -1),
        image_index=torch.from_numpy(image_index), seg_sizes=torch.tensor([size for _, _, size in images]).view(-1, 2),
        pixel_values=_stack([pixels for pixels, _, _ in images]),
        seg_pixel_values=_stack([frame for _, frame, _ in images]),
        region_points=torch.from_numpy(region_points), region_image=torch.from_numpy(region_image),
        items=_items(samples, image_index, contrast or len(samples)),
    )  # fmt: skip


def uncollate(output: ModelOutput, batch: Batch, samples: Sequence[Encoded]) -> list[list[ItemOutput]]:
    """The decoder's answers of each sample, one per `<SEG>`, without the columns that pad an item to the widest one."""
    split: list[list[ItemOutput]] = [[] for _ in samples]
    for item, row in enumerate(batch.items.sample.tolist()):
        logits = output.class_logits[-1, item]
        if batch.items.candidates.shape[1]:  # a closed set has none
            logits = logits[:, torch.nn.functional.pad(batch.items.candidates[item] >= 0, (0, 1), value=True)]
        sample = samples[row]
        split[row].append(ItemOutput(
            mask_logits=output.mask_logits(item).float(), class_logits=logits,
            frame=sample.seg_pixel_values.shape[-1], seg_size=sample.seg_size, image_size=sample.image_size,
        ))  # fmt: skip
    return split


def _regions(samples: Sequence[Encoded], image_index: np.ndarray, contrast: int) -> tuple[np.ndarray, np.ndarray]:
    """Points float32[R, P, 2] and image int64[R] of every `<region>` of the batch, in reading order.

    A row with slots draws each from its contrast group: a region of the wanted label, else one of a label that the row
    does not show and no slot of it wants, else nowhere (points outside of the frame, where all features are zero)."""
    first = image_index.max(initial=-1) + 1 + np.cumsum([0, *(len(s.references) for s in samples)])  # of the references
    places = [np.where(s.region_images < 0, image_index[b], first[b] + s.region_images) for b, s in enumerate(samples)]
    chosen: list[tuple[int, int]] = []  # row that lends each and its number there, -1 = nowhere
    for b, sample in enumerate(samples):
        if not len(sample.slots):
            chosen += [(b, r) for r in range(len(sample.region_points))]
            continue
        group = range(len(samples))[b - b % contrast :][:contrast]
        pool = [(g, r) for g in group for r in range(len(samples[g].region_labels))]
        pool = [pool[i] for i in np.random.default_rng(sample.key).permutation(len(pool))]
        taboo = {*sample.region_labels.tolist(), *sample.slots.tolist()}
        for label in sample.slots:
            wanted = [(g, r) for g, r in pool if samples[g].region_labels[r] == label]
            foreign = [(g, r) for g, r in pool if int(samples[g].region_labels[r]) not in taboo]
            chosen += (wanted or foreign or [(b, -1)])[:1]
            pool = [pair for pair in pool if pair != chosen[-1]]
    points = [samples[g].region_points[r] if r >= 0 else np.full((256, 2), -1, np.float32) for g, r in chosen]
    images = [places[g][r] if r >= 0 else image_index[g] for g, r in chosen]
    return np.array(points, np.float32).reshape(-1, 256, 2), np.array(images, np.int64)


def _items(samples: Sequence[Encoded], image_index: np.ndarray, contrast: int) -> DecoderItems:
    spans = np.array([s.span_ids.max(initial=-1) + 1 for s in samples])
    first = spans.cumsum() - spans  # flat number of each row's first span
    rows: list[tuple[int, int, int]] = []  # image, sample, number of the <SEG>
    candidates, targets, keys = [], [], []
    for b, sample in enumerate(samples):
        group = [b]
        if sample.shared_candidates:  # an image that stands twice in a group is no contrast to itself
            near = range(len(samples))[b - b % contrast :][:contrast]
            group = [g for g in near if g == b or samples[g].id != sample.id]
        own = np.concatenate([first[g] + np.arange(spans[g]) for g in group]).astype(np.int64)
        offset = sum(int(spans[g]) for g in group if g < b)
        ids = torch.from_numpy(sample.target_ids)
        closed_set = len(sample.input_ids) == 0
        for seg in [-1] if closed_set else range(sample.seg_ids.max(initial=-1) + 1):
            index = np.arange(len(sample.target_labels)) if closed_set else np.flatnonzero(sample.target_segs == seg)
            rows.append((int(image_index[b]), b, seg))
            candidates.append(own)
            targets.append(Target(ids, torch.from_numpy(index), torch.from_numpy(sample.target_labels[index] + offset)))
            keys.append((sample.key + seg + 1) % 2**63)
    image, row, seg_number = torch.tensor(rows, dtype=torch.long).view(-1, 3).unbind(1)
    return DecoderItems(image, row, seg_number, _pad(candidates, -1), tuple(targets), tuple(keys))


def _pad(rows: Sequence[np.ndarray], value: int) -> Tensor:
    if not rows:
        return torch.zeros((0, 0), dtype=torch.long)
    return torch.nn.utils.rnn.pad_sequence([torch.from_numpy(r) for r in rows], batch_first=True, padding_value=value)


def _stack(images: Sequence[np.ndarray]) -> Tensor:
    return torch.from_numpy(np.stack(images)) if images else torch.zeros((0, 3, 0, 0), dtype=torch.uint8)
