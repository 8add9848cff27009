"""The tiny model in bf16 on a CPU: every part runs, and says what it says in fp32 but for rounding."""

import copy

import numpy as np
import pytest
import torch

from xsam import config
from xsam.data.collate import collate, uncollate
from xsam.data.postprocess import best_mask, instances, panoptic, semantic
from xsam.models.sampling import sample_levels
from xsam.structures import IGNORE_INDEX, IMAGE_TOKEN, REGION_TOKEN, Encoded

SEG, OPEN, CLOSE = 637, 638, 639


def sample() -> Encoded:
    ids = np.array([1, IMAGE_TOKEN, 30, OPEN, 31, CLOSE, 20, OPEN, REGION_TOKEN, CLOSE, 5, SEG])
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 255, (3, 96, 96)).astype(np.uint8)
    opened, closed = ids == OPEN, ids == CLOSE
    inside = (opened.cumsum() - closed.cumsum() == 1) | closed
    return Encoded(
        id="a", key=0, input_ids=ids, labels=np.where(ids == SEG, ids, IGNORE_INDEX), span_ids=np.where(inside, opened.cumsum() - 1, -1),
        seg_ids=np.where(ids == SEG, 0, -1), pixel_values=pixels, seg_pixel_values=pixels, seg_size=(96, 96), image_size=(48, 48),
        target_ids=np.full((1, 96, 96), -1, np.int16), target_labels=np.zeros(0, np.int64), target_segs=np.zeros(0, np.int64),
        shared_candidates=False, region_points=rng.random((1, 256, 2)).astype(np.float32), region_labels=np.array([-1]), region_images=np.array([-1]),
    )  # fmt: skip


@torch.no_grad()
@pytest.mark.parametrize("name", ["xsam_tiny", "xsam_tiny_qwen3"])
def test_the_whole_path_in_bf16_is_close_to_fp32(name: str) -> None:
    torch.manual_seed(0)
    precise = config.build(config.load(f"configs/_base_/models/{name}.py")["model"]).eval()
    rounded = copy.deepcopy(precise).bfloat16()
    encoded = sample()
    batch = collate([encoded])
    expected, found = precise(batch), rounded(batch)
    assert found.mask_features.dtype == torch.bfloat16
    assert found.class_logits.dtype == torch.float32  # cosines and their scale
    for field in ("text_logits", "mask_embeds", "mask_features", "class_logits"):
        ours, theirs = getattr(found, field).float(), getattr(expected, field)
        assert (ours - theirs).norm() < 0.03 * theirs.norm(), field  # a mask that flips at its threshold weighs little
    (((item,),), ((reference,),)) = (uncollate(output, batch, [encoded]) for output in (found, expected))
    assert item.mask_logits.dtype == torch.float32
    same = (semantic(item) == semantic(reference)).float().mean()
    assert same > 0.9
    panoptic(item, stuff=[])
    instances(item)
    assert best_mask(item)[0].shape == (48, 48)
    assert len(rounded.generate(batch, 3, stop_ids=())[0][0]) == 3


def test_deformable_samples_are_summed_in_float32() -> None:
    """Both ways of sampling, with the float32 places that bf16 weights get."""
    torch.manual_seed(0)
    shapes = [(4, 5), (2, 3)]
    value, weights = torch.randn(1, 26, 2, 8), torch.randn(1, 26, 2, 2, 4)
    places = torch.rand(1, 26, 2, 2, 4, 2)
    expected = sample_levels(value, places, weights, shapes, False)
    for with_bags in (False, True):
        found = sample_levels(value.bfloat16(), places, weights.bfloat16(), shapes, with_bags)
        assert found.dtype == torch.bfloat16
        assert (found.float() - expected).abs().max() < 0.03 * expected.abs().max()


def test_casts_leave_the_rotary_frequencies_alone() -> None:
    model = config.build(config.load("configs/_base_/models/xsam_tiny.py")["model"])
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    wrapped = torch.nn.ModuleDict({"model": model}).bfloat16()  # as DeepSpeed does
    assert {p.dtype for p in wrapped.parameters()} == {torch.bfloat16}
    assert "llm.model.rotary_emb.inv_freq" in before
    assert all(torch.equal(buffer, before[name]) for name, buffer in model.named_buffers())
    assert model.to("meta").llm.model.rotary_emb.inv_freq.is_meta
