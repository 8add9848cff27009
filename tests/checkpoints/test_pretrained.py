"""Base weights as transformers and timm save them: our parts compute what their own classes compute."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

import xsam  # noqa: F401  first: it repairs torchvision, which timm and transformers import

import timm  # isort: skip
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    PreTrainedModel,
    SamConfig,
    SamModel,
    SiglipConfig,
    SiglipModel,
    SiglipVisionModel,
)

from xsam.checkpoints.loading import load_model
from xsam.checkpoints.pretrained import fetch
from xsam.structures import UserError

SEG = {
    "type": "xsam.models.encoders.SamEncoder", "image_size": 64, "patch_size": 8, "channels": 32, "depth": 3,
    "num_heads": 2, "mlp_ratio": 2.0, "window_size": 3, "global_blocks": [1],
}  # fmt: skip
VISION = {
    "type": "xsam.models.encoders.SiglipEncoder", "image_size": 56, "patch_size": 14, "channels": 32, "depth": 3,
    "num_heads": 2, "mlp_channels": 64,
}  # fmt: skip
LLM = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 50}


def config(**parts: Any) -> dict[str, Any]:
    return {"type": "xsam.models.xsam.XSamModel", "seg_encoder": SEG, **parts}


def saved(model: PreTrainedModel, path: Path) -> PreTrainedModel:
    """With weights that are no constants anywhere, so that a wrong norm or bias shows."""
    torch.manual_seed(0)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.2)
    model.eval().save_pretrained(path)
    return model


@pytest.fixture(scope="module")
def sam(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, SamModel]:
    path = tmp_path_factory.mktemp("sam")
    vision = {
        "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2, "image_size": 64, "patch_size": 8,
        "window_size": 3, "global_attn_indexes": [1], "output_channels": 16, "num_pos_feats": 8, "mlp_dim": 64,
    }  # fmt: skip
    prompt = {"hidden_size": 16, "image_size": 64, "patch_size": 8, "mask_input_channels": 4}
    decoder = {"hidden_size": 16, "mlp_dim": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    parts = {"vision_config": vision, "prompt_encoder_config": prompt, "mask_decoder_config": decoder}
    return path, saved(SamModel(SamConfig(**parts)), path)


@torch.no_grad()
def test_sam_gives_its_image_encoder_without_neck(sam: tuple[Path, SamModel]) -> None:
    path, theirs = sam
    ours, report = load_model(config(), [path])
    images = torch.randn(1, 3, 64, 64)
    expected = theirs.vision_encoder(images, output_hidden_states=True).hidden_states
    for state, index in zip(ours.seg_encoder(images, [1, 3]), (1, 3), strict=True):
        torch.testing.assert_close(state, expected[index], rtol=1e-4, atol=1e-4)
    assert report.loaded == report.total
    assert report.skipped == {}


def test_sam_positions_are_resized(sam: tuple[Path, SamModel]) -> None:
    _, report = load_model(config(seg_encoder=SEG | {"image_size": 128}), [sam[0]])
    assert len(report.resized) == 3


VISION_CONFIG = {
    "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3, "num_attention_heads": 2, "image_size": 56,
    "patch_size": 14,
}  # fmt: skip
TEXT_CONFIG = {
    "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": 50,
    "projection_size": 32,
}  # fmt: skip


@torch.no_grad()
@pytest.mark.parametrize("tower_alone", [False, True])
def test_siglip_gives_its_vision_tower_without_the_last_layer(
    sam: tuple[Path, SamModel], tmp_path: Path, tower_alone: bool
) -> None:
    whole = SiglipConfig(vision_config=VISION_CONFIG, text_config=TEXT_CONFIG)
    theirs = saved(SiglipVisionModel(whole.vision_config) if tower_alone else SiglipModel(whole), tmp_path)
    ours, report = load_model(config(vision_encoder=VISION), [sam[0], tmp_path])
    tower = theirs if tower_alone else theirs.vision_model
    images = torch.randn(2, 3, 56, 56)
    expected = tower(images, output_hidden_states=True).hidden_states[2]
    torch.testing.assert_close(ours.vision_encoder(images), expected, rtol=1e-4, atol=1e-4)
    assert report.loaded == report.total
    ours, report = load_model(config(vision_encoder=VISION | {"image_size": 84}), [sam[0], tmp_path])
    assert report.resized == ["vision_encoder.embeddings.position_embedding.weight"]
    assert ours.vision_encoder(torch.randn(1, 3, 84, 84)).shape == (1, 36, 32)


def test_positions_of_siglip_keep_their_values_when_resized(sam: tuple[Path, SamModel], tmp_path: Path) -> None:
    theirs = saved(SiglipVisionModel(SiglipConfig(vision_config=VISION_CONFIG).vision_config), tmp_path)
    table = theirs.embeddings.position_embedding.weight
    with torch.no_grad():  # 4 x 4 cells, the value is the row
        table.copy_(torch.arange(4.0).repeat_interleave(4)[:, None].expand_as(table))
    theirs.save_pretrained(tmp_path)
    ours, _ = load_model(config(vision_encoder=VISION | {"image_size": 112}), [sam[0], tmp_path])
    grid = ours.vision_encoder.embeddings.position_embedding.weight.view(8, 8, 32)
    torch.testing.assert_close(grid, grid[:, :1, :1].expand_as(grid))  # columns and channels stay alike
    assert (grid[:, 0, 0].diff() > 0).all()
    assert grid[3:5, 0, 0].mean().item() == pytest.approx(1.5)


def language_model(path: Path, model_type: str, **sizes: Any) -> PreTrainedModel:
    kind = AutoConfig.for_model(model_type, **LLM | sizes)
    return saved(AutoModelForCausalLM.from_config(kind), path)


@torch.no_grad()
@pytest.mark.parametrize(
    "model_type, sizes",
    [
        ("phi3", {"pad_token_id": 0}),
        ("qwen3", {"num_key_value_heads": 2, "head_dim": 16, "tie_word_embeddings": True}),
        ("llama", {"num_key_value_heads": 2}),
    ],
)
def test_a_language_model_is_cut_or_extended_to_the_tokenizer(
    sam: tuple[Path, SamModel], tmp_path: Path, model_type: str, sizes: dict[str, Any]
) -> None:
    theirs = language_model(tmp_path, model_type, **sizes)
    before = theirs.get_input_embeddings().weight.clone()
    ids = torch.randint(40, (1, 7))
    logits = theirs(input_ids=ids).logits
    for tokens in (50, 40, 60):
        llm = {"type": "xsam.models.language.causal_lm", "model_type": model_type, **LLM, **sizes}
        model = config(llm=llm)
        ours, report = load_model(model, [sam[0], tmp_path], vocabulary=tokens)
        assert model["llm"]["vocab_size"] == tokens == len(ours.llm.get_input_embeddings().weight)
        kept = min(tokens, 50)
        torch.testing.assert_close(ours.llm(input_ids=ids).logits[..., :kept], logits[..., :kept], rtol=1e-4, atol=1e-4)
        extra = ours.llm.get_input_embeddings().weight[50:]
        torch.testing.assert_close(extra, before.mean(0).expand_as(extra))
        assert report.loaded == report.total
        tables = 1 if sizes.get("tie_word_embeddings") else 2
        assert len(report.resized) == (0 if tokens == 50 else tables)


def test_rotary_frequencies_of_old_files_are_left_out(sam: tuple[Path, SamModel], tmp_path: Path) -> None:
    theirs = language_model(tmp_path, "llama", num_key_value_heads=2)
    extra = {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4)}
    save_file({n: t.contiguous() for n, t in theirs.state_dict().items()} | extra, tmp_path / "model.safetensors")
    llm = {"type": "xsam.models.language.causal_lm", "model_type": "llama", **LLM, "num_key_value_heads": 2}
    _, report = load_model(config(llm=llm), [sam[0], tmp_path])
    assert report.loaded == report.total


def test_a_language_model_of_other_sizes_is_named(sam: tuple[Path, SamModel], tmp_path: Path) -> None:
    language_model(tmp_path, "phi3", pad_token_id=0)
    llm = {"type": "xsam.models.language.causal_lm", "model_type": "qwen3", **LLM, "num_key_value_heads": 2}
    with pytest.raises(UserError, match=r"is a fused Phi-3, the config's is qwen3"):
        load_model(config(llm=llm), [sam[0], tmp_path], vocabulary=50)
    llm = {"type": "xsam.models.language.causal_lm", "model_type": "phi3", **LLM, "hidden_size": 64, "pad_token_id": 0}
    with pytest.raises(
        UserError, match=r"llm\.model\.embed_tokens\.weight is \[50, 32\] in .*, \[50, 64\] in the model"
    ):
        load_model(config(llm=llm), [sam[0], tmp_path], vocabulary=50)


@torch.no_grad()
def test_a_folder_of_timm_goes_to_the_encoder_of_its_architecture(tmp_path: Path) -> None:
    small = {"embed_dim": 24, "depth": 3, "num_heads": 2}
    theirs = timm.create_model("vit_base_patch16_siglip_224", img_size=80, **small).eval()
    for parameter in theirs.parameters():
        nn.init.normal_(parameter, std=0.2)
    save_file(theirs.state_dict(), tmp_path / "model.safetensors")
    published = {"architecture": "vit_base_patch16_siglip_224", "num_classes": 0, "pretrained_cfg": {}}
    (tmp_path / "config.json").write_text(json.dumps(published))
    part = {
        "type": "xsam.models.encoders.TimmSegEncoder",
        "name": "vit_base_patch16_siglip_224",
        "image_size": 80,
        **small,
    }
    ours, report = load_model(config(seg_encoder=part), [tmp_path])
    images = torch.randn(1, 3, 80, 80)
    (expected,) = theirs.forward_intermediates(images, indices=[1], intermediates_only=True)
    torch.testing.assert_close(ours.seg_encoder(images, [2])[0], expected.permute(0, 2, 3, 1), rtol=1e-4, atol=1e-4)
    assert report.loaded == report.total
    ours, _ = load_model(config(seg_encoder=part | {"image_size": 160}), [tmp_path])
    assert ours.seg_encoder.vit.pos_embed.shape == (1, 100, 24)
    with pytest.raises(UserError, match="is timm's vit_base_patch16_siglip_224"):
        load_model(config(seg_encoder=part | {"name": "samvit_base_patch16"}), [tmp_path])
    with pytest.raises(UserError, match="weights of timm's vit_base_patch16_siglip_224 do not fit"):
        load_model(config(seg_encoder=part | {"embed_dim": 48}), [tmp_path])


def test_a_hub_name_is_fetched_and_an_unknown_one_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def snapshot(name: str, allow_patterns: list[str]) -> str:
        asked.append((name, *allow_patterns))
        if name == "no/body":
            raise OSError("cannot reach the hub\nat all")
        if "pytorch_model*.bin" in allow_patterns:
            (tmp_path / "pytorch_model.bin").touch()
        return str(tmp_path)

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot)
    monkeypatch.chdir(tmp_path)
    assert fetch("facebook/sam-vit-large") == tmp_path
    assert asked == [
        ("facebook/sam-vit-large", "*.json", "*.jinja", "model*.safetensors", "unused.safetensors"),
        ("facebook/sam-vit-large", "*.json", "pytorch_model*.bin"),
    ]
    (tmp_path / "model.safetensors").touch()
    assert fetch("facebook/sam-vit-large") == tmp_path
    assert len(asked) == 3
    with pytest.raises(UserError, match=r"no/body: .*not to be had from the hub \(cannot reach the hub\)"):
        fetch("no/body")
    for path in ("runs/shapes", "a/b/c", "weights/x.bin", "word"):
        with pytest.raises(UserError, match=f"checkpoint {path}: no such file or folder"):
            fetch(path)
    assert len(asked) == 4
