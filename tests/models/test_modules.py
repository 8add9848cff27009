"""Our modules against recorded tensors of transformers' own, with the recorded weights and random points.

SigLIP and SAM are in test_encoders.py.
"""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import PreTrainedModel

from xsam.checkpoints.released import to_ours
from xsam.data.masks import pack
from xsam.models.criterion import Criterion, Draws
from xsam.models.language import Spliced, causal_lm, decode, supervised_logits
from xsam.models.mask_decoder import MaskDecoder
from xsam.models.mask_head import ClosedSetClassifier
from xsam.models.matcher import Matcher
from xsam.models.pixel_decoder import DeformableAttention, PixelDecoder
from xsam.models.sampling import sample_ids, sample_levels
from xsam.structures import ModelOutput, Target

MODULES = Path(__file__).parents[2] / "../shared/refdata/modules"
pytestmark = pytest.mark.skipif(not MODULES.is_dir(), reason="no reference data")


def recorded(name: str) -> dict[str, Tensor]:
    return load_file(MODULES / name / "golden.safetensors")


def weights(name: str) -> dict[str, Tensor]:
    return load_file(MODULES / name / "weights.safetensors")


def close(ours: Tensor, expected: Tensor, tolerance: float = 1e-4) -> None:
    torch.testing.assert_close(ours, expected, rtol=0, atol=tolerance)


def targets(golden: dict[str, Tensor]) -> tuple[Target, ...]:
    """The masks and classes of both images."""
    masks = [golden[f"mask_labels_{i}"].bool().numpy() for i in range(2)]
    return tuple(
        Target(torch.from_numpy(pack(m).ids), torch.arange(len(m)), golden[f"class_labels_{i}"])
        for i, m in enumerate(masks)
    )


def ours(name: str) -> str:
    """Our name of a Mask2Former weight of transformers, by way of X-SAM's official one."""
    name = name.replace("model.pixel_level_module.decoder.", "segmentor.pixel_decoder.")
    name = name.replace("model.transformer_module.", "segmentor.decoder.")
    return to_ours(name.replace("class_predictor.", "segmentor.class_predictor.")) or name


LATERAL = "pixel_decoder.lateral.0.weight"  # reads a level above the deformable ones, in X-SAM the finest of them


@pytest.fixture(scope="module")
def head() -> nn.ModuleDict:
    parts = nn.ModuleDict(
        {
            "pixel_decoder": PixelDecoder([16, 32, 64], 32, depth=2, num_heads=4, feedforward=32),
            "mask_decoder": MaskDecoder(32, num_queries=7, depth=3, num_heads=4, feedforward=32),
            "classifier": ClosedSetClassifier(32, 5),
            "lateral": nn.Conv2d(8, 32, 1, bias=False),
        }
    )
    state = {ours(name): tensor for name, tensor in weights("mask2former_full").items()}
    state["lateral.weight"] = state.pop(LATERAL)
    missing, unexpected = parts.load_state_dict(state, strict=False)
    assert missing == [LATERAL]
    assert all(name.startswith(("criterion.", "model.pixel_level_module.encoder.")) for name in unexpected)
    return parts


def run(head: nn.ModuleDict, golden: dict[str, Tensor]) -> tuple[list[Tensor], ModelOutput]:
    """The decoded levels, and what the losses see."""
    finest, *pyramid = (golden[f"backbone_feature_{i}"] for i in range(4))
    decoder = head["pixel_decoder"]
    levels = decoder(pyramid)[1]
    resized = F.interpolate(levels[-1], finest.shape[-2:], mode="bilinear", align_corners=False)
    fused = decoder.output(decoder.lateral[1](head["lateral"](finest)) + resized)
    features = decoder.mask_projection(fused)
    images = torch.arange(2)
    states, embeds = head["mask_decoder"](levels, features, images, torch.zeros(2, 32))
    none = torch.zeros(2, 0)
    output = ModelOutput(
        text_logits=none, text_targets=none, mask_embeds=embeds, mask_features=features, item_image=images,
        class_logits=head["classifier"](states, none, none), idle=none.sum(),
    )  # fmt: skip
    return levels, output


def test_pixel_decoder_and_masked_decoder(head: nn.ModuleDict) -> None:
    golden = recorded("mask2former_full")
    levels, output = run(head, golden)
    for i, level in enumerate(levels):
        close(level, golden[f"pixel_decoder_multi_scale_{i}"])
    close(output.mask_features, golden["pixel_decoder_mask_features"])
    masks = torch.einsum("ldqc,dchw->ldqhw", output.mask_embeds, output.mask_features)
    for i in range(3):
        close(output.class_logits[i], golden[f"aux{i}_class"])
        close(masks[i], golden[f"aux{i}_mask"])
    close(output.class_logits[3], golden["class_queries_logits"])
    close(masks[3], golden["masks_queries_logits"])


def test_loss_and_gradients_with_the_recorded_points(head: nn.ModuleDict) -> None:
    golden = recorded("mask2former_full")
    drawn = [golden[f"torch_rand_{i:03}"] for i in range(16)]
    outputs = [drawn[i : i + 4] for i in (4, 8, 12, 0)]  # the final output is matched and supervised first
    draws = Draws(
        torch.stack([torch.cat(points[:2]) for points in outputs]),
        torch.stack([points[2] for points in outputs]),
        torch.stack([points[3] for points in outputs]),
    )
    items = SimpleNamespace(targets=targets(golden), image=torch.arange(2), keys=(0, 0))
    batch = SimpleNamespace(items=items, labels=torch.zeros(0, 0))
    criterion = Criterion(num_points=64)
    head.zero_grad()
    losses = criterion.layer_losses(run(head, golden)[1], batch, criterion.count(batch, 7), draws)
    loss = sum(loss.sum() for loss in losses.values())
    close(loss, golden["loss"])
    loss.backward()
    listed = json.loads((MODULES / "mask2former_full/config.json").read_text())["param_names_sorted"]
    norms = {ours(name): norm for name, norm in zip(listed, golden["grad_norms_sorted_by_name"], strict=True)}
    norms["lateral.weight"] = norms.pop(LATERAL)
    for name, parameter in head.named_parameters():
        if name != LATERAL:
            torch.testing.assert_close(parameter.grad.norm(), norms[name], rtol=1e-3, atol=1e-5, msg=name)


def test_matching_costs() -> None:
    golden = recorded("mask2former_loss_matcher")
    no_classes = torch.zeros(1, 6, 1), torch.zeros(4, dtype=torch.long)
    for kind, matcher in (("bce", Matcher(0, 1, 0)), ("dice", Matcher(0, 0, 1))):
        cost = matcher.costs(golden["pred_points"][None], golden["label_points"], *no_classes)[0]
        close(cost, golden[f"pairwise_{kind}"])
        # the first four predictions against the four masks in order, as a loss over four masks
        close(cost.diagonal().mean(), golden[f"{kind}_loss_first4"])


def test_matching_with_the_recorded_points() -> None:
    golden = recorded("mask2former_loss_matcher")
    matcher = Matcher(2, 5, 5)
    for i, target in enumerate(targets(golden)):
        points = golden[f"matcher_rand_{i}"]
        maps = golden["masks_queries_logits"][i : i + 1]
        logits = F.grid_sample(maps, 2 * points[:, :, None] - 1, align_corners=False)[..., 0]
        masks = sample_ids(target.ids, target.index, points[0])
        probs = golden["class_queries_logits"][i : i + 1].softmax(-1)
        (match,) = matcher.assign([matcher.costs(logits, masks, probs, target.labels)])
        assert match.queries[0].tolist() == golden[f"match{i}_pred"].tolist()
        assert match.targets[0].tolist() == golden[f"match{i}_gt"].tolist()


# Deformable attention


def test_deformable_attention_with_its_gradient() -> None:
    golden = recorded("msdeformattn")
    shapes = [tuple(shape) for shape in golden["spatial_shapes"].tolist()]
    attention = DeformableAttention(16, num_heads=4)
    attention.load_state_dict(weights("msdeformattn"))
    # The recorded reference points differ between images and levels, ours are shared: they go in as offsets.
    cells = golden["reference_points"] * golden["spatial_shapes"].flip(-1)  # [B, S, V, 2]
    offsets = cells[:, :, None, :, None].expand(-1, -1, 4, -1, 4, -1).flatten(2)
    attention.sampling_offsets.register_forward_hook(lambda _, __, output: output + offsets)
    query = golden["query"].requires_grad_()
    references = torch.zeros(query.shape[1], 2)
    with torch.no_grad():
        close(attention(query, query, references, shapes), golden["output"], 1e-5)
    output = attention(query, query, references, shapes)
    close(output, golden["output"], 1e-5)
    output.square().sum().backward()
    close(query.grad, golden["grad_query_of_sum_sq"], 1e-5)


@pytest.mark.parametrize("with_bags", [True, False])
def test_deformable_sampling_beyond_the_borders(with_bags: bool) -> None:
    golden = recorded("msdeformattn")
    shapes = [tuple(shape) for shape in golden["spatial_shapes"].tolist()]
    value, locations, weights = (golden[f"core_{name}"] for name in ("value", "locations", "weights"))
    assert float(locations.min()) < 0
    repeats = -(-value.shape[1] // locations.shape[1])  # our function takes as many queries as there are cells
    many = [t.repeat(1, repeats, *(1,) * (t.dim() - 2))[:, : value.shape[1]] for t in (locations, weights)]
    close(sample_levels(value, *many, shapes, with_bags)[:, : locations.shape[1]], golden["core_output"], 1e-5)


# Language models


@pytest.fixture(params=["phi3", "qwen3"])
def language(request: pytest.FixtureRequest) -> tuple[PreTrainedModel, dict[str, Tensor]]:
    sizes = {
        "vocab_size": 97,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
    }
    own = {
        "phi3": {"num_key_value_heads": 4, "rms_norm_eps": 1e-5},
        "qwen3": {"num_key_value_heads": 2, "head_dim": 16, "rms_norm_eps": 1e-6},
    }
    llm = causal_lm(model_type=request.param, **sizes, **own[request.param], tie_word_embeddings=False, pad_token_id=0)
    llm.load_state_dict(weights(request.param))
    return llm.eval(), recorded(request.param)


def right_padded(golden: dict[str, Tensor], name: str) -> tuple[Tensor, Tensor]:
    """The recorded rows as ours are, padded on the right, and their lengths."""
    lengths = golden["attention_mask"].sum(1)
    return torch.stack([row.roll(int(n)) for row, n in zip(golden[name], lengths, strict=True)]), lengths


@torch.no_grad()
def test_language_model(language) -> None:
    llm, golden = language
    ids, lengths = right_padded(golden, "input_ids")
    embeds = llm.get_input_embeddings()(ids)
    hidden = llm.model(inputs_embeds=embeds, use_cache=False).last_hidden_state
    inside = torch.arange(ids.shape[1]) < lengths[:, None]
    read = golden["attention_mask"].bool()
    close(hidden[inside], golden["last_hidden"][read])
    close(llm.lm_head(hidden)[inside], golden["logits"][read])
    close(llm.lm_head(hidden)[inside], golden["logits_from_embeds"][read])
    positions = torch.arange(ids.shape[1]).expand_as(ids)
    logits, supervised = supervised_logits(
        llm, hidden, Spliced(embeds, positions, lengths), right_padded(golden, "labels")[0]
    )
    close(F.cross_entropy(logits, supervised), golden["loss"])


@torch.no_grad()
def test_generation(language) -> None:
    llm, golden = language
    ids, lengths = right_padded(golden, "input_ids")
    spliced = Spliced(llm.get_input_embeddings()(ids), torch.arange(ids.shape[1]).expand_as(ids), lengths)
    tokens = torch.stack([token for token, _ in decode(llm, spliced, 10, stop_ids=(2,))], 1)
    assert tokens.tolist() == golden["generated"][:, ids.shape[1] :].tolist()
