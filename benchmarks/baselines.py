"""Both sides of a comparison: the segmentor in X-SAM's shapes, and transformers' modules with the same weights."""

from collections.abc import Sequence
from contextlib import AbstractContextManager
from copy import deepcopy
from dataclasses import dataclass, replace
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn
from transformers import Mask2FormerConfig, SamVisionConfig
from transformers.models.mask2former import modeling_mask2former as mask2former
from transformers.models.sam.modeling_sam import SamVisionEncoder

from xsam.checkpoints.released import to_ours
from xsam.engine.estimate import assumed_batch
from xsam.models import connector, encoders, mask_decoder, mask_head, pixel_decoder
from xsam.models.criterion import Criterion
from xsam.models.xsam import ImageFeatures, XSamModel
from xsam.structures import Batch, Target

WEIGHTS = {"loss_cross_entropy": 2.0, "loss_mask": 5.0, "loss_dice": 5.0}  # of both sides


@dataclass(frozen=True, slots=True)
class Sizes:
    """Shapes of a comparison; the defaults are X-SAM's, with 4 of SAM-L's 24 layers, the first of which is global."""

    image: int = 1024
    channels: int = 1024  # of the encoder
    heads: int = 16
    depth: int = 4
    global_blocks: tuple[int, ...] = (0,)
    finest: int = 512  # channels of the pyramid's finest level; the others have two and four times as many
    width: int = 256  # of both decoders
    queries: int = 200
    classes: int = 133
    points: int = 12544
    llm: int = 512  # width of a small language model; of the real one the head:
    head: tuple[int, int] = (3072, 32064)
    supervised: tuple[int, int] = (102, 2048)  # how many of how many tokens


SIZES = Sizes()


def segmentor(sizes: Sizes) -> XSamModel:
    """Stage 1's model; every parameter has a random part, so that none hides an error."""
    torch.manual_seed(0)
    pyramid = [sizes.finest << level for level in range(3)]
    model = XSamModel(
        seg_encoder=encoders.SamEncoder(
            image_size=sizes.image, channels=sizes.channels, depth=sizes.depth, num_heads=sizes.heads,
            global_blocks=sizes.global_blocks,
        ),
        levels=[max(sizes.depth - back, 0) for back in (2, 1, 0)],
        connector=connector.Connector(sizes.channels, sizes.finest, pyramid),
        pixel_decoder=pixel_decoder.PixelDecoder(pyramid, sizes.width),
        mask_decoder=mask_decoder.MaskDecoder(sizes.width, sizes.queries),
        classifier=mask_head.ClosedSetClassifier(sizes.width, sizes.classes),
    )  # fmt: skip
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.02)
    return model


def noise(*shape: int, device: str) -> Tensor:
    """The same normal numbers for every way; a leaf that wants a gradient."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(device).requires_grad_()


def made_up(model: XSamModel, sizes: Sizes, samples: int, targets: int) -> Batch:
    """Noise, in which the nearest of `targets` random points says which mask a cell of 8 x 8 pixels belongs to."""
    batch, generator, side = assumed_batch(model, {}, samples), torch.Generator().manual_seed(0), sizes.image // 8
    cells, wanted = torch.cartesian_prod(*[torch.arange(side) / side] * 2), []
    for _ in range(samples):
        near = torch.cdist(cells, torch.rand(targets, 2, generator=generator)).argmin(1).to(torch.int16)
        labels = torch.randint(sizes.classes, (targets,), generator=generator)
        ids = near.view(1, side, side).repeat_interleave(8, 1).repeat_interleave(8, 2)
        wanted.append(Target(ids, torch.arange(targets), labels))
    pixels = torch.randint(256, batch.seg_pixel_values.shape, dtype=torch.uint8, generator=generator)
    return replace(batch, seg_pixel_values=pixels, items=replace(batch.items, targets=tuple(wanted)))


def decoding(
    model: XSamModel, sizes: Sizes, device: str, samples: int, targets: int
) -> tuple[Batch, ImageFeatures, list[Tensor]]:
    """What the mask decoder gets: a batch with targets, features, and the leaves of these, mask features first."""
    side = sizes.image // 8
    leaves = [noise(samples, sizes.width, side >> n, side >> n, device=device) for n in (0, 2, 1, 0)]
    none = torch.zeros(samples, 0, 0, device=device)
    features = ImageFeatures(none, none, maps=(), pixels=tuple(leaves))
    return made_up(model, sizes, samples, targets).to(device), features, leaves


def our_loss(model: XSamModel, criterion: Criterion, batch: Batch, features: ImageFeatures | None = None) -> Tensor:
    """Of all outputs; without `features` from the images on."""
    losses = criterion(model(batch, features), batch, criterion.count(batch, model.num_queries))
    return torch.stack(list(losses.values())).sum()


class Usual(nn.Module):
    """The segmentor composed of transformers' modules, with our weights: SAM's encoder with "eager" or "sdpa" attention
    (without its neck, as ours), and all of Mask2FormerForUniversalSegmentation beside its backbone. The connector,
    which transformers lacks, is ours."""

    def __init__(self, sizes: Sizes, ours: XSamModel, attention: str = "eager") -> None:
        super().__init__()
        self.levels = ours.levels
        self.encoder = SamVisionEncoder(SamVisionConfig(
            hidden_size=sizes.channels, mlp_dim=4 * sizes.channels, num_hidden_layers=sizes.depth,
            num_attention_heads=sizes.heads, image_size=sizes.image, global_attn_indexes=list(sizes.global_blocks),
            attn_implementation=attention,
        ))  # fmt: skip
        self.encoder.neck, self.connector = nn.Identity(), deepcopy(ours.get_submodule("connector"))
        config = Mask2FormerConfig(
            feature_size=sizes.width, mask_feature_size=sizes.width, hidden_dim=sizes.width, num_queries=sizes.queries,
            num_labels=sizes.classes, train_num_points=sizes.points, feature_strides=(8, 16, 32),
        )  # fmt: skip
        self.pixel_decoder = mask2former.Mask2FormerPixelDecoder(config, [sizes.finest << level for level in range(3)])
        self.decoder = mask2former.Mask2FormerTransformerModule(sizes.width, config)
        self.class_predictor = nn.Linear(sizes.width, sizes.classes + 1)
        self.criterion = mask2former.Mask2FormerLoss(config, WEIGHTS)
        with torch.no_grad():
            for mine, parameter in zip(*self.pairs(ours), strict=True):
                parameter.copy_(mine)

    def pairs(self, ours: XSamModel, *parts: str) -> tuple[list[Tensor], list[Tensor]]:
        """Parameters of ours and of these modules (`parts` of them), the same weights at the same places."""
        own = {name: p for name, p in self.named_parameters() if not parts or name.startswith(parts)}
        names = [(to_ours(f"segmentor.{name}") or "").removeprefix("segmentor.") for name in own]
        return [ours.get_parameter(name) for name in names], list(own.values())

    def forward(self, images: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """From normalised images float[B, 3, S, S] to what `decode` says."""
        states = self.encoder(images, output_hidden_states=True).hidden_states
        return self.decode(*self.pixels(self.connector([states[level] for level in self.levels])))

    def pixels(self, pyramid: Sequence[Tensor]) -> tuple[Tensor, Sequence[Tensor]]:
        """Mask features and levels, as those of our pixel decoder."""
        found = self.pixel_decoder(pyramid)
        return found.mask_features, found.multi_scale_features

    def decode(self, mask_features: Tensor, levels: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """Mask logits float[B, Q, h, w] and class logits float[B, Q, K + 1] of every output."""
        found = self.decoder(levels, mask_features)
        classes = [self.class_predictor(state.transpose(0, 1)) for state in found.intermediate_hidden_states]
        return list(found.masks_queries_logits), classes

    def loss(self, said: tuple[list[Tensor], list[Tensor]], masks: list[Tensor], labels: list[Tensor]) -> Tensor:
        """Of all outputs, with their own random points. masks: float[N, S, S] of every image."""
        outputs = [{"masks_queries_logits": m, "class_queries_logits": c} for m, c in zip(*said, strict=True)]
        losses = self.criterion(*outputs[-1].values(), masks, labels, outputs[:-1])
        return sum(WEIGHTS[kind] * loss for name, loss in losses.items() for kind in WEIGHTS if name.startswith(kind))


def dense(batch: Batch) -> tuple[list[Tensor], list[Tensor]]:
    """The targets as transformers wants them: masks float[N, S, S] and labels int64[N] of every image."""
    masks = [(target.ids == target.index[:, None, None]).float() for target in batch.items.targets]
    return masks, [target.labels for target in batch.items.targets]


def same_points() -> AbstractContextManager[Any]:
    """Inside, losses look at the same random points for every mask of every output, however they ask for them."""

    def rand(*shape: int, device: Any = None, **_: Any) -> Tensor:
        points = torch.empty(shape[-2:]).uniform_(generator=torch.Generator().manual_seed(0))
        return points.expand(shape).to(device).contiguous()

    return patch.object(torch, "rand", rand)
