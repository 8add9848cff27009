import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from xsam.checkpoints.loading import load_weights, read_tensors, read_weights
from xsam.checkpoints.released import to_official
from xsam.models.encoders import SamEncoder
from xsam.models.mask_head import ClosedSetClassifier, ConditionClassifier
from xsam.models.projector import Projector
from xsam.structures import UserError


class Toy(nn.Module):
    """A few parts under X-SAM's names."""

    def __init__(self, image_size: int = 32, open_set: bool = True) -> None:
        super().__init__()
        self.seg_encoder = SamEncoder(
            image_size=image_size, patch_size=8, channels=8, depth=2, num_heads=2, window_size=2, global_blocks=(1,)
        )
        self.projector = Projector(4, 6)
        self.classifier = ConditionClassifier(4) if open_set else ClosedSetClassifier(4, 2)


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.llm = nn.Module()
        self.llm.embed_tokens = nn.Embedding(5, 3)
        self.llm.lm_head = nn.Linear(3, 5, bias=False)
        self.llm.lm_head.weight = self.llm.embed_tokens.weight


def state(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def official(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    return {to_official(name): tensor for name, tensor in weights.items()}


def fails(model: nn.Module, sources: list[str], *words: str, new: tuple[str, ...] = ()) -> None:
    before = state(model)
    with pytest.raises(UserError) as error:
        load_weights(model, sources, new)
    message = str(error.value)
    assert "\n" not in message
    for word in (*sources, *words):
        assert word in message
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.fixture
def weights() -> dict[str, Tensor]:
    torch.manual_seed(0)
    return {name: torch.randn_like(tensor) for name, tensor in Toy().state_dict().items()}


def test_every_container_and_both_namings_read_the_same(tmp_path: Path, weights: dict[str, Tensor]) -> None:
    save_file(weights, tmp_path / "a.safetensors")
    torch.save(official(weights), tmp_path / "b.bin")
    torch.save({"state_dict": {f"module.{n}": t for n, t in official(weights).items()}}, tmp_path / "c.pth")
    torch.save(weights, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    whole.mkdir()
    parts.mkdir()
    save_file(official(weights), whole / "model.safetensors")
    names = sorted(weights)
    files = {"1.safetensors": names[:3], "2.safetensors": names[3:]}
    for file, own in files.items():
        save_file({name: weights[name] for name in own}, parts / file)
    index = {"weight_map": {name: file for file, own in files.items() for name in own}}
    (parts / "model.safetensors.index.json").write_text(json.dumps(index))
    for source in ("a.safetensors", "b.bin", "c.pth", "old.pth", "whole", "parts"):
        read = read_weights(tmp_path / source)
        assert read.keys() == weights.keys()
        assert all(torch.equal(read[name], weights[name]) for name in weights)
    assert read_tensors(whole).keys() == official(weights).keys()


def test_dead_official_tensors_are_left_out(tmp_path: Path) -> None:
    save_file(
        {"segmentor.encoder.neck.conv1.weight": torch.ones(1), "bg_embeds.weight": torch.ones(1)},
        tmp_path / "x.safetensors",
    )
    assert list(read_weights(tmp_path / "x.safetensors")) == ["classifier.background"]


class Code:
    pass


def test_unreadable_sources_say_what_to_do(tmp_path: Path, weights: dict[str, Tensor]) -> None:
    save_file(weights, tmp_path / "cut.safetensors")
    torch.save(weights, tmp_path / "cut.bin")
    for name in ("cut.safetensors", "cut.bin"):
        content = (tmp_path / name).read_bytes()
        (tmp_path / name).write_bytes(content[: len(content) // 2])
    (tmp_path / "empty.bin").write_bytes(b"")
    (tmp_path / "empty.safetensors").write_bytes(b"")
    (tmp_path / "folder").mkdir()
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad/model.safetensors.index.json").write_text("{}")
    torch.save({"model": Code()}, tmp_path / "code.pth")
    torch.save({"epoch": 3}, tmp_path / "number.pth")
    expected = {
        "cut.safetensors": "damaged", "cut.bin": "damaged", "empty.bin": "damaged", "empty.safetensors": "damaged",
        "folder": "no weights", "absent.bin": "no such checkpoint", "bad": "index", "code.pth": "Python objects",
        "number.pth": "not a dict of tensors",
    }  # fmt: skip
    for name, word in expected.items():
        with pytest.raises(UserError) as error:
            read_weights(tmp_path / name)
        assert word in str(error.value)
        assert str(tmp_path / name) in str(error.value)
        assert "\n" not in str(error.value)


def test_full_load_reports_every_part(tmp_path: Path, weights: dict[str, Tensor]) -> None:
    save_file(official(weights), tmp_path / "a.safetensors")
    model = Toy()
    report = load_weights(model, [str(tmp_path / "a.safetensors")])
    assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())
    assert report.loaded == report.total
    assert (report.new, report.resized, report.skipped) == ([], [], {})
    assert str(report).splitlines()[1].split() == ["projector", "4", "/", "4"]


def test_later_sources_override_and_precision_is_the_models(tmp_path: Path, weights: dict[str, Tensor]) -> None:
    save_file(weights, tmp_path / "a.safetensors")
    later = torch.arange(4.0)[None].bfloat16()
    save_file({"classifier.background": later}, tmp_path / "b.safetensors")
    model = Toy().double()
    load_weights(model, [str(tmp_path / "a.safetensors"), str(tmp_path / "b.safetensors")])
    assert torch.equal(model.classifier.background, later.double())
    assert model.projector.layers[0].weight.dtype == torch.float64


def test_missing_unknown_and_misshapen_tensors_are_errors(tmp_path: Path, weights: dict[str, Tensor]) -> None:
    source = str(tmp_path / "a.safetensors")
    missing = weights.copy()
    del missing["projector.layers.0.bias"]
    save_file(missing, source)
    fails(Toy(), [source], "projector.layers.0.bias", "no source has")
    save_file(weights | {"projector.extra": torch.ones(1)}, source)
    fails(Toy(), [source], "projector.extra")
    save_file(weights | {"nonsense.weight": torch.ones(1)}, source)
    fails(Toy(), [source], "nonsense.weight")
    save_file(weights | {"classifier.background": torch.ones(1, 7)}, source)
    fails(Toy(), [source], "classifier.background", "[1, 7]", "[1, 4]")
    fails(Toy(), [source], "new='clasifier.*' matches nothing", new=("classifier.*", "clasifier.*"))


def test_what_is_new_starts_at_random_whatever_the_sources_hold(tmp_path: Path, weights: dict[str, Tensor]) -> None:
    source = str(tmp_path / "a.safetensors")
    del weights["projector.layers.0.bias"]
    save_file(weights | {"classifier.background": torch.ones(1, 7), "projector.extra": torch.ones(1)}, source)
    model = Toy()
    before = state(model)
    report = load_weights(model, [source], ["projector", "classifier.background"])
    assert set(report.new) == {n for n in before if n.startswith("projector.")} | {"classifier.background"}
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name] if name in report.new else weights[name])
    assert report.loaded["projector"] == 0
    assert "1 new" in str(report)


def test_parts_that_the_model_lacks_are_skipped_and_listed(tmp_path: Path, weights: dict[str, Tensor]) -> None:
    source = str(tmp_path / "s1.bin")
    predictor = {"segmentor.class_predictor.weight": torch.ones(3, 4), "segmentor.class_predictor.bias": torch.ones(3)}
    torch.save(official(weights) | predictor | {"llm.model.norm.weight": torch.ones(2)}, source)
    report = load_weights(Toy(), [source])
    assert report.skipped == {source: {"llm": 1, "classifier.predictor": 2}}
    assert "classifier.predictor (2)" in str(report)


def test_tied_weights_stand_in_a_file_once(tmp_path: Path) -> None:
    save_file({"llm.embed_tokens.weight": torch.ones(5, 3)}, tmp_path / "a.safetensors")
    model = Tied()
    report = load_weights(model, [str(tmp_path / "a.safetensors")])
    assert report.loaded["llm"] == report.total["llm"] == 2
    assert bool((model.llm.lm_head.weight == 1).all())
    save_file({"llm.embed_tokens.weight": torch.ones(6, 3)}, tmp_path / "a.safetensors")
    fails(Tied(), [str(tmp_path / "a.safetensors")], "[6, 3]", "[5, 3]")


def test_sam_positions_follow_the_image_size(tmp_path: Path, weights: dict[str, Tensor]) -> None:
    weights["seg_encoder.pos_embed"] = torch.full((1, 4, 4, 8), 2.0)
    save_file(weights, tmp_path / "a.safetensors")
    model = Toy(image_size=64)
    report = load_weights(model, [str(tmp_path / "a.safetensors")])
    assert report.resized == [
        "seg_encoder.pos_embed",
        "seg_encoder.layers.1.attn.rel_pos_h",
        "seg_encoder.layers.1.attn.rel_pos_w",
    ]
    assert model.seg_encoder.pos_embed.shape == (1, 8, 8, 8)
    assert torch.allclose(model.seg_encoder.pos_embed, torch.tensor(2.0))
    assert "3 resized" in str(report)
