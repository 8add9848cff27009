import xsam  # noqa: F401  first: it repairs torchvision, which timm and transformers import

# isort: split
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import SamVisionConfig, SiglipVisionConfig, SiglipVisionModel
from transformers.models.sam.modeling_sam import SamVisionEncoder

from xsam.models import encoders
from xsam.models.connector import Connector
from xsam.models.encoders import (
    ResidualStem,
    SamAttention,
    SamEncoder,
    SiglipEncoder,
    TimmSegEncoder,
    TimmVisionEncoder,
    resize_positions,
)
from xsam.models.projector import Projector
from xsam.structures import UserError

SHARED = Path(__file__).parents[2] / "../shared"
MODULES, PARITY = SHARED / "refdata/modules", SHARED / "parity"
needs_modules = pytest.mark.skipif(not MODULES.is_dir(), reason="no reference data")
needs_parity = pytest.mark.skipif(not PARITY.is_dir(), reason="no recorded tensors")

SAM = {
    "image_size": 40,
    "patch_size": 8,
    "channels": 16,
    "depth": 3,
    "num_heads": 2,
    "window_size": 3,
    "global_blocks": (1,),
}
SIGLIP = {"image_size": 30, "patch_size": 7, "channels": 16, "depth": 3, "num_heads": 2, "mlp_channels": 24}


def randomise(module: nn.Module, scale: float = 0.2) -> None:
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * scale)


def below(prefix: str, state: dict[str, Any], without: tuple[str, ...]) -> dict[str, Any]:
    state = {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
    return {name: value for name, value in state.items() if not name.startswith(without)}


def official(prefix: str, *without: str) -> dict[str, Tensor]:
    return below(prefix, load_file(PARITY / "s3.state_dict.safetensors"), without)


def close(a: Tensor, b: Tensor) -> None:
    """The tolerance of the recorded tensors."""
    assert (a - b).abs().max() <= 1e-4 * max(1.0, b.abs().max().item())


def eager(attention: SamAttention, x: Tensor) -> Tensor:
    """The definition for one window, score by score, with loops over rows and columns."""
    b, s, _, c = x.shape
    q, k, v = attention.qkv(x).view(b, s * s, 3, attention.num_attention_heads, -1).permute(2, 0, 3, 1, 4)
    scores = (q @ k.transpose(-1, -2)) / q.shape[-1] ** 0.5
    bias = torch.zeros_like(scores)
    for i in range(s * s):
        for j in range(s * s):
            h = attention.rel_pos_h[i // s - j // s + s - 1]
            w = attention.rel_pos_w[i % s - j % s + s - 1]
            bias[..., i, j] = q[..., i, :] @ (h + w)
    out = (scores + bias).softmax(-1) @ v
    return attention.proj(out.transpose(1, 2).reshape(b, s, s, c))


@pytest.mark.parametrize("scores", [512, 1], ids=["at once", "line by line"])
@pytest.mark.parametrize("dtype, tolerance", [(torch.float64, 1e-12), (torch.float32, 2e-6)])
def test_attention_by_head_and_folded_are_the_eager_one(
    dtype: torch.dtype, tolerance: float, scores: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(encoders.SCORES, True, scores)
    attention = SamAttention(SamVisionConfig(hidden_size=8, num_attention_heads=2), 4)
    randomise(attention, 0.5)
    attention.to(dtype)
    x = torch.randn(2, 4, 4, 8, dtype=dtype, requires_grad=True, generator=torch.Generator().manual_seed(1))
    wanted = [x, *attention.parameters()]
    outputs = [eager(attention, x), attention(attention.qkv(x))]
    monkeypatch.setattr(encoders, "on_cpu", lambda _: False)
    outputs.append(attention(attention.qkv(x)))
    weights = torch.randn(outputs[0].shape, dtype=dtype, generator=torch.Generator().manual_seed(2))
    expected, *gradients = [torch.autograd.grad((out * weights).sum(), wanted) for out in outputs]
    for output, gradient in zip(outputs[1:], gradients, strict=True):
        torch.testing.assert_close(output, outputs[0], atol=tolerance, rtol=tolerance)
        for ours, theirs in zip(gradient, expected, strict=True):
            torch.testing.assert_close(ours, theirs, atol=10 * tolerance, rtol=10 * tolerance)


def sam_pair() -> tuple[SamEncoder, SamVisionEncoder]:
    theirs = SamVisionEncoder(
        SamVisionConfig(
            hidden_size=16,
            output_channels=8,
            num_hidden_layers=3,
            num_attention_heads=2,
            image_size=40,
            patch_size=8,
            window_size=3,
            global_attn_indexes=[1],
            mlp_dim=64,
            attn_implementation="eager",
        )
    ).eval()
    randomise(theirs)
    ours = SamEncoder(**SAM)
    ours.load_state_dict({k: v for k, v in theirs.state_dict().items() if not k.startswith("neck.")})
    return ours, theirs


def test_sam_is_the_one_of_transformers() -> None:
    ours, theirs = sam_pair()
    images = torch.randn(2, 3, 40, 40, generator=torch.Generator().manual_seed(3))
    expected = theirs(images, output_hidden_states=True).hidden_states
    states = ours(images, [3, 0, 2, 1])  # a 5 x 5 grid: windows of 3 are padded
    for index, state in zip([3, 0, 2, 1], states, strict=True):
        torch.testing.assert_close(state, expected[index], atol=1e-5, rtol=1e-5)


def test_sam_stops_after_the_last_index_needed() -> None:
    encoder = SamEncoder(**SAM)
    seen: list[int] = []
    for i, layer in enumerate(encoder.layers):
        layer.register_forward_hook(lambda *_, i=i: seen.append(i))
    states = encoder(torch.randn(1, 3, 40, 40), [2, 1, 2])
    assert seen == [0, 1]
    assert torch.equal(states[0], states[2])
    assert not torch.equal(states[0], states[1])


def shapes(module: nn.Module) -> dict[str, list[int]]:
    return {name: list(value.shape) for name, value in module.state_dict().items()}


def test_sam_l_tables_of_windowed_and_global_blocks() -> None:
    with torch.device("meta"):
        sam = shapes(SamEncoder())
    assert len(sam) == 3 + 24 * 14
    assert sam["layers.5.attn.rel_pos_h"] == [127, 64]
    assert sam["layers.6.attn.rel_pos_w"] == [27, 64]


@needs_parity
def test_defaults_have_the_released_names_and_shapes() -> None:
    saved = json.loads((PARITY / "keys_s3.json").read_text())["saved"]

    def released(prefix: str, *without: str) -> dict[str, list[int]]:
        return {name: value["shape"] for name, value in below(prefix, saved, without).items()}

    with torch.device("meta"):
        assert shapes(SamEncoder()) == released("segmentor.encoder.", "neck.")
        dead = ("encoder.layers.26.", "post_layernorm.", "head.")
        assert shapes(SiglipEncoder()) == released("visual_encoder.vision_model.", *dead)
        connector = released("seg_connector.model.")
        assert shapes(Connector(1024)) == {f"branches.{k.replace('.model', '')}": v for k, v in connector.items()}
        projector = released("seg_projector.model.")
        assert shapes(Projector(1024, 3072, unshuffle=True)) == {f"layers.{k}": v for k, v in projector.items()}


@needs_modules
def test_sam_reference_outputs() -> None:
    weights = below("vision_encoder.", load_file(MODULES / "sam/weights.safetensors"), ("neck.",))
    golden = load_file(MODULES / "sam/golden.safetensors")
    encoder = SamEncoder(
        image_size=64, patch_size=8, channels=32, depth=3, num_heads=4, window_size=3, global_blocks=(1,)
    )
    encoder.load_state_dict(weights)
    for i, state in enumerate(encoder(golden["pixel_values"], range(4))):
        close(state, golden[f"hidden_{i}"])


@needs_parity
def test_sam_connector_and_projector_recorded() -> None:
    encoder = SamEncoder(image_size=256, channels=32, depth=4, num_heads=2, global_blocks=(1, 3))
    encoder.load_state_dict(official("segmentor.encoder.", "neck."))
    connector = Connector(32, 48, out_channels=(16, 32, 64))
    weights = official("seg_connector.model.")
    connector.load_state_dict({f"branches.{k.replace('.model', '')}": v for k, v in weights.items()})
    projector = Projector(32, 64, unshuffle=True)
    projector.load_state_dict({f"layers.{k}": v for k, v in official("seg_projector.model.").items()})
    images = load_file(PARITY / "s1.preprocess.safetensors")["processed.extra_pixel_values"]
    golden = load_file(PARITY / "s1.train.safetensors")
    states = encoder(images, range(5))
    for i, state in enumerate(states):
        close(state, golden[f"sam.hidden_states.{i}"])
    for i, level in enumerate(connector(states[2:])):
        close(level, golden[f"connector.out.{i}"])
    close(projector(states[3]), load_file(PARITY / "s2.train.safetensors")["seg_projector.out"])


@needs_parity
def test_siglip_and_projector_recorded() -> None:
    encoder = SiglipEncoder(image_size=56, patch_size=14, channels=32, depth=3, num_heads=2, mlp_channels=64)
    prefix = "visual_encoder.vision_model."
    encoder.load_state_dict(official(prefix, "head.", "post_layernorm.", "encoder.layers.2."))
    projector = Projector(32, 64)
    projector.load_state_dict({f"layers.{k}": v for k, v in official("visual_projector.model.").items()})
    golden = load_file(PARITY / "s2.train.safetensors")
    tokens = encoder(golden["in.pixel_values"])
    close(tokens, golden["siglip.hidden_states.2"])
    close(projector(tokens), golden["visual_projector.out"])


@needs_modules
def test_siglip_reference_outputs() -> None:
    weights = load_file(MODULES / "siglip_vision/weights.safetensors")
    golden = load_file(MODULES / "siglip_vision/golden.safetensors")
    encoder = SiglipEncoder(image_size=56, patch_size=14, channels=32, depth=2, num_heads=4, mlp_channels=64)
    encoder.load_state_dict({k: weights[k] for k in encoder.state_dict()})
    close(encoder(golden["pixel_values"]), golden["hidden_penultimate"])


def test_siglip_is_the_last_layer_but_one_of_transformers() -> None:
    theirs = SiglipVisionModel(
        SiglipVisionConfig(
            hidden_size=16,
            intermediate_size=24,
            num_hidden_layers=3,
            num_attention_heads=2,
            image_size=30,  # not a multiple of the patch: the last pixels are not seen
            patch_size=7,
        )
    ).eval()
    randomise(theirs)
    kept: list[Tensor] = []
    theirs.encoder.layers[1].register_forward_hook(lambda module, args, out: kept.append(out))
    ours = SiglipEncoder(**SIGLIP)
    ours.load_state_dict({k: v for k, v in theirs.state_dict().items() if k in ours.state_dict()})
    images = torch.randn(2, 3, 30, 30)
    theirs(images)
    tokens = ours(images)
    assert tokens.shape == (2, 16, 16)
    torch.testing.assert_close(tokens, kept[0])


@pytest.mark.parametrize(
    "make, run",
    [
        (lambda: SamEncoder(**SAM), lambda m, x: m(x, [1, 3])[1]),
        (lambda: SiglipEncoder(**SIGLIP | {"image_size": 40}), lambda m, x: m(x)),
        (lambda: TimmVisionEncoder(**TIMM_SIGLIP | {"image_size": 40}), lambda m, x: m(x)),
    ],
)
def test_checkpointing_changes_memory_only(
    make: Callable[[], nn.Module], run: Callable[[nn.Module, Tensor], Tensor]
) -> None:
    images = torch.randn(2, 3, 40, 40)
    encoder = make()
    randomise(encoder)
    plain = torch.autograd.grad(run(encoder, images).square().mean(), list(encoder.parameters()), allow_unused=True)
    encoder.gradient_checkpointing_enable()
    runs: list[int] = []
    attention = next(m for name, m in encoder.named_modules() if name.endswith("attn"))
    attention.register_forward_hook(lambda *_: runs.append(1))
    again = torch.autograd.grad(run(encoder, images).square().mean(), list(encoder.parameters()), allow_unused=True)
    assert len(runs) == 2  # once forward, once recomputed
    for a, b in zip(plain, again, strict=True):
        assert (a is None and b is None) or torch.equal(a, b)


def test_residual_stem_keeps_the_grid_of_the_patches() -> None:
    assert ResidualStem(32, 16)(torch.zeros(1, 3, 64, 48)).shape == (1, 32, 4, 3)
    sam = SamEncoder(**SAM | {"stem": "residual"})
    assert sam(torch.randn(1, 3, 40, 40), [2])[0].shape == (1, 5, 5, 16)
    siglip = SiglipEncoder(**SIGLIP | {"stem": "residual", "image_size": 32, "patch_size": 8})
    assert siglip(torch.randn(1, 3, 32, 32)).shape == (1, 16, 16)
    with pytest.raises(UserError, match="14"):
        ResidualStem(28, 14)


def test_resized_positions_keep_what_windows_see() -> None:
    large = SamEncoder(**SAM)
    randomise(large)
    small = SamEncoder(**SAM | {"image_size": 24})
    state = {f"x.{name}": value for name, value in large.state_dict().items()}
    resized = resize_positions(state, small, prefix="x.")
    assert state["x.pos_embed"].shape == (1, 5, 5, 16)  # the given dict is left alone
    assert {*resized} == {"x.pos_embed", "x.layers.1.attn.rel_pos_h", "x.layers.1.attn.rel_pos_w"}
    small.load_state_dict({name.removeprefix("x."): value for name, value in (state | resized).items()})
    table = large.layers[1].attn.rel_pos_h  # offsets -4..4 -> -2..2
    assert torch.equal(small.layers[1].attn.rel_pos_h[2], table[4])
    expected = F.interpolate(table.T[None], size=5, mode="linear")[0].T
    torch.testing.assert_close(small.layers[1].attn.rel_pos_h, expected)
    expected = F.interpolate(large.pos_embed.permute(0, 3, 1, 2), size=(3, 3), mode="bilinear").permute(0, 2, 3, 1)
    torch.testing.assert_close(small.pos_embed, expected)


def test_user_errors_of_the_encoders() -> None:
    sam = SamEncoder(**SAM)
    with pytest.raises(UserError, match="image_size=40 and got 32 x 40"):
        sam(torch.zeros(1, 3, 32, 40), [1])
    with pytest.raises(UserError, match="hidden state 4"):
        sam(torch.zeros(1, 3, 40, 40), [4])
    with pytest.raises(UserError, match="image_size=30"):
        SiglipEncoder(**SIGLIP)(torch.zeros(1, 3, 56, 56))
    with pytest.raises(UserError, match="'conv'"):
        SamEncoder(**SAM | {"stem": "conv"})
    with pytest.raises(UserError, match="vit_nothing"):
        TimmVisionEncoder(name="vit_nothing", image_size=32)


TIMM_SIGLIP = {
    "name": "vit_base_patch16_siglip_224",
    "image_size": 80,
    "patch_size": 8,
    "embed_dim": 24,
    "depth": 3,
    "num_heads": 2,
}
TIMM_SAM = {
    "name": "samvit_base_patch16",
    "image_size": 80,
    "embed_dim": 24,
    "depth": 3,
    "num_heads": 2,
    "window_size": 3,
    "global_attn_indexes": (1,),
}


@pytest.mark.parametrize("arguments, grid", [(TIMM_SIGLIP, 10), (TIMM_SAM, 5)])
def test_timm_in_either_role(arguments: dict[str, Any], grid: int) -> None:
    images = torch.randn(2, 3, 80, 80)
    seg = TimmSegEncoder(**arguments).eval()
    vision = TimmVisionEncoder(**arguments).eval()
    assert len(vision.vit.blocks) == 2  # nothing after the selected block is built or run
    vision.load_state_dict({name: seg.state_dict()[name] for name in vision.state_dict()})
    late, early = seg(images, [2, 1])
    assert late.shape == early.shape == (2, grid, grid, 24)
    assert seg.channels == vision.channels == 24
    torch.testing.assert_close(vision(images), late.flatten(1, 2))
    assert not torch.allclose(late, early)
    with pytest.raises(UserError, match="hidden state 0"):
        seg(images, [0])
    with pytest.raises(UserError, match="image_size=80"):
        seg(images[..., :64], [1])


def test_timm_statistics_come_from_the_model() -> None:
    assert TimmVisionEncoder(**TIMM_SIGLIP).mean == (0.5, 0.5, 0.5)
    assert TimmSegEncoder(**TIMM_SAM).std == (0.229, 0.224, 0.225)


def test_timm_prefix_tokens_are_dropped() -> None:
    arguments = {"name": "vit_base_patch16_224", "image_size": 48, "embed_dim": 24, "depth": 2, "num_heads": 2}
    assert TimmVisionEncoder(**arguments)(torch.zeros(1, 3, 48, 48)).shape == (1, 9, 24)


def test_timm_pretrained_weights_are_resampled() -> None:
    small = {k: v for k, v in TIMM_SIGLIP.items() if k not in ("name", "image_size")}
    hub = timm.create_model("vit_base_patch16_siglip_224", img_size=40, **small)
    randomise(hub)
    encoder = TimmVisionEncoder(**TIMM_SIGLIP)
    encoder.load_state_dict(encoder.pretrained(hub.state_dict()))
    assert torch.equal(encoder.vit.blocks[1].mlp.fc1.weight, hub.blocks[1].mlp.fc1.weight)
    assert hub.pos_embed.shape == (1, 25, 24)
    assert encoder.vit.pos_embed.shape == (1, 100, 24)
