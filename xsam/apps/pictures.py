"""What the model sees in the same few samples while it learns: pictures for TensorBoard."""

from dataclasses import replace

import numpy as np
import torch
from torch import nn

from ..data.collate import collate, uncollate
from ..data.mixture import Mixture, key
from ..data.postprocess import panoptic
from ..data.prompt import Processor
from ..structures import Encoded, ItemOutput
from .preview import phrases, pieces, targets
from .visualize import draw_segments


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
            images[name] = self._picture(row, outputs)
        model.train()
        return images

    def _picture(self, encoded: Encoded, outputs: list[ItemOutput]) -> np.ndarray:
        names = phrases("".join(piece for piece, _ in pieces(encoded, self.processor)))
        found = []
        for output in outputs:
            ids, segments = panoptic(replace(output, image_size=encoded.seg_size), stuff=(), score=0.5)
            for number, label, score in segments:
                found.append(((ids == number).cpu().numpy(), names.get(label, f"class {label}"), score))
        height, width = encoded.seg_size
        frame = encoded.seg_pixel_values[:, :height, :width].transpose(1, 2, 0)
        sides = [draw_segments(frame, shown) for shown in (targets(encoded, names), found)]
        return np.concatenate([np.asarray(side) for side in sides], axis=1)
