import json
from collections.abc import Collection
from pathlib import Path

import pytest
import torch

from xsam.checkpoints.released import PARTS, is_official, to_official, to_ours, translate
from xsam.models.connector import Connector
from xsam.models.encoders import SamEncoder, SiglipEncoder
from xsam.models.language import causal_lm
from xsam.models.mask_decoder import MaskDecoder
from xsam.models.mask_head import ClosedSetClassifier, ConditionClassifier
from xsam.models.pixel_decoder import PixelDecoder
from xsam.models.projector import Projector
from xsam.models.xsam import XSamModel

PARITY = Path(__file__).parents[2] / "../shared/parity"


@pytest.mark.parametrize(
    "official, ours",
    [
        ("visual_encoder.vision_model.embeddings.patch_embedding.bias", "vision_encoder.embeddings.patch_embedding.bias"),
        ("visual_projector.model.2.weight", "projector.layers.2.weight"),
        ("llm_projector.model.0.bias", "phrase_projector.layers.0.bias"),
        ("llm.model.layers.31.mlp.down_proj.weight", "llm.model.layers.31.mlp.down_proj.weight"),
        ("segmentor.encoder.layers.5.attn.rel_pos_h", "seg_encoder.layers.5.attn.rel_pos_h"),
        ("seg_connector.model.2.model.5.bias", "connector.branches.2.5.bias"),
        ("segmentor.pixel_decoder.level_embed", "pixel_decoder.level_embed"),
        ("segmentor.pixel_decoder.encoder.layers.1.fc1.weight", "pixel_decoder.layers.1.fc1.weight"),
        ("segmentor.pixel_decoder.layer_1.0.weight", "pixel_decoder.output.0.weight"),
        ("segmentor.decoder.queries_embedder.weight", "mask_decoder.query_positions"),
        ("segmentor.decoder.decoder.layernorm.weight", "mask_decoder.layer_norm.weight"),
        ("segmentor.decoder.decoder.mask_predictor.mask_embedder.2.0.bias", "mask_decoder.mask_embedder.4.bias"),
        ("segmentor.logit_scale", "classifier.logit_scale"),
        ("segmentor.class_predictor.bias", "classifier.predictor.bias"),
        ("bg_embeds.weight", "classifier.background"),
    ],
)  # fmt: skip
def test_names_translate_both_ways(official: str, ours: str) -> None:
    assert to_ours(official) == ours
    assert to_official(ours) == official


def test_main_branch_names_are_read() -> None:
    assert (
        to_ours("vision_encoder.vision_model.encoder.layers.0.mlp.fc1.bias")
        == "vision_encoder.encoder.layers.0.mlp.fc1.bias"
    )
    assert to_ours("segmentor.class_predictor.logit_scale") == "classifier.logit_scale"
    assert to_ours("segmentor.class_predictor.predictor.weight") == "classifier.predictor.weight"
    assert to_ours("vision_encoder.vision_model.head.probe") is None


def test_dead_tensors_have_no_name() -> None:
    assert to_ours("segmentor.encoder.neck.conv1.weight") is None
    assert to_ours("segmentor.shared_image_embedding.positional_embedding") is None


@pytest.mark.parametrize("depth", [3, 27])
def test_last_siglip_layer_is_dead_at_any_depth_unless_cut_off(depth: int) -> None:
    layers = [f"visual_encoder.vision_model.encoder.layers.{i}.layer_norm1.bias" for i in range(depth)]
    full = translate([*layers, "visual_encoder.vision_model.post_layernorm.bias"])
    assert [name for name, ours in full.items() if ours is None] == [
        layers[-1],
        "visual_encoder.vision_model.post_layernorm.bias",
    ]
    assert None not in translate(layers).values()


def test_content_tells_whose_names_they_are() -> None:
    assert is_official(["llm.lm_head.weight", "bg_embeds.weight"])
    assert not is_official(["llm.lm_head.weight", "classifier.background", "vision_encoder.encoder.layers.0.x"])


def full_size(stage: int) -> XSamModel:
    """X-SAM as released, without memory for its weights."""
    with torch.device("meta"):
        parts = {}
        if stage > 1:
            parts |= {
                "vision_encoder": SiglipEncoder(),
                "projector": Projector(1152, 3072),
                "seg_projector": Projector(1024, 3072, unshuffle=True),
                "llm": causal_lm(
                    model_type="phi3", vocab_size=32064 if stage == 2 else 32014, hidden_size=3072, intermediate_size=8192,
                    num_hidden_layers=32, num_attention_heads=32, num_key_value_heads=32, pad_token_id=None,
                ),
            }  # fmt: skip
        if stage != 2:
            parts |= {
                "connector": Connector(1024),
                "pixel_decoder": PixelDecoder((512, 1024, 2048)),
                "mask_decoder": MaskDecoder(),
                "classifier": ClosedSetClassifier() if stage == 1 else ConditionClassifier(),
            }
        if stage == 3:
            parts["phrase_projector"] = Projector(3072, 256)
        return XSamModel(seg_encoder=SamEncoder(), **parts)


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_table_is_a_bijection_onto_the_full_size_model(stage: int) -> None:
    listing = PARITY / f"keys_s{stage}.json"
    if not listing.is_file():
        pytest.skip("no recordings here")
    keys = json.loads(listing.read_text())
    assert len(keys["saved"]) == {1: 701, 2: 8, 3: 1356}[stage]
    listed = keys["all"] or keys["saved"]
    alive = {name: ours for name, ours in translate(listed).items() if ours is not None}
    assert len(set(alive.values())) == len(alive)
    assert all(to_official(ours) == name for name, ours in alive.items())
    assert {ours.split(".")[0] for ours in alive.values()} <= set(PARTS)
    shapes = {name: list(tensor.shape) for name, tensor in full_size(stage).state_dict().items()}
    assert shapes == {ours: listed[name]["shape"] for name, ours in alive.items()}
    assert keys["saved"].keys() <= listed.keys()
    renamed = {main_branch(name, keys["saved"]): name for name in listed}
    assert len(renamed) == len(listed)
    assert translate(renamed) == {new: alive.get(name) for new, name in renamed.items()}


def main_branch(name: str, saved: Collection[str]) -> str:
    """What the official main branch calls a tensor of the archive branch."""
    name = name.replace("visual_encoder.", "vision_encoder.")
    if "segmentor.class_predictor.bias" in saved:  # stage 1
        return name.replace("segmentor.class_predictor.", "segmentor.class_predictor.predictor.")
    return name.replace("segmentor.logit_scale", "segmentor.class_predictor.logit_scale")
