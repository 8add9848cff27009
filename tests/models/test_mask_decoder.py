"""The masked decoder: its attention against torch's, and items that share images."""

import pytest
import torch
from torch import nn

from xsam.models.mask_decoder import MaskDecoder, MaskedCrossAttention


def test_masked_attention_equals_torchs() -> None:
    torch.manual_seed(0)
    ours, theirs = MaskedCrossAttention(32, 4), nn.MultiheadAttention(32, 4, batch_first=True)
    nn.init.normal_(ours.in_proj_bias)
    theirs.load_state_dict(ours.state_dict())
    x, keys, values = torch.randn(2, 5, 32), torch.randn(2, 9, 32), torch.randn(2, 9, 32)
    bias = torch.zeros(2, 1, 5, 9).masked_fill_(torch.rand(2, 1, 5, 9) < 0.5, -torch.inf)
    expected, _ = theirs(x, keys, values, attn_mask=bias[:, 0].repeat_interleave(4, 0))
    torch.testing.assert_close(ours(x, keys, values, lambda t: t, bias), expected)


@pytest.mark.parametrize("item_image", [[0, 1], [1, 0], [0, 0, 1, 1], [0, 0, 1], [1, 1], [1]])
def test_an_item_does_not_depend_on_the_others(item_image: list[int]) -> None:
    """Whether the items of an image stand together, or its keys are copied: each answers as if it were alone."""
    torch.manual_seed(0)
    decoder = MaskDecoder(16, num_queries=5, depth=4, num_heads=2, feedforward=16, num_levels=2)
    levels, features = [torch.randn(2, 16, n, n) for n in (2, 4)], torch.randn(2, 16, 8, 8)
    seg_embeds = torch.randn(len(item_image), 16)
    together = decoder(levels, features, torch.tensor(item_image), seg_embeds)
    for item, image in enumerate(item_image):
        own = slice(image, image + 1)
        alone = decoder([level[own] for level in levels], features[own], torch.tensor([0]), seg_embeds[item, None])
        for found, expected in zip(together, alone, strict=True):
            torch.testing.assert_close(found[:, item], expected[:, 0])
