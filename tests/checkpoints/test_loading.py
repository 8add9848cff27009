import hashlib
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from xsam import config as configs
from xsam.checkpoints.loading import LoadReport, load_model, load_weights, read_tensors, read_weights
from xsam.checkpoints.released import to_official
from xsam.engine import checkpoint, distributed
from xsam.engine.stages import Stage
from xsam.models.encoders import SamEncoder
from xsam.models.mask_head import ClosedSetClassifier, ConditionClassifier
from xsam.models.projector import Projector
from xsam.structures import UserError

TINY = "configs/_base_/models/xsam_tiny.py"


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


def load(model: nn.Module, sources: Sequence[str], new: Sequence[str] = (), **options: Any) -> LoadReport:
    return load_weights(model, {source: read_weights(source) for source in sources}, new, **options)


def official(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    return {to_official(name): tensor for name, tensor in weights.items()}


def fails(model: nn.Module, sources: list[str], *words: str, new: tuple[str, ...] = ()) -> None:
    before = state(model)
    with pytest.raises(UserError) as error:
        load(model, sources, new)
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
    shards = tmp_path / "shards"
    shards.mkdir()
    for file, own in {"1.bin": names[:3], "2.bin": names[3:]}.items():
        torch.save({to_official(name): weights[name] for name in own}, shards / file)
    map_ = {to_official(name): "1.bin" if name in names[:3] else "2.bin" for name in names}
    (shards / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": map_}))
    for source in ("a.safetensors", "b.bin", "c.pth", "old.pth", "whole", "parts", "shards"):
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
        "folder": "no weights", "absent.bin": "no such file", "bad": "index", "code.pth": "Python objects",
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
    report = load(model, [str(tmp_path / "a.safetensors")])
    assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())
    assert report.loaded == report.total
    assert (report.new, report.resized, report.skipped) == ([], [], {})
    assert str(report).splitlines()[1].split() == ["projector", "4", "/", "4"]


def test_later_sources_override(tmp_path: Path, weights: dict[str, Tensor]) -> None:
    save_file(weights, tmp_path / "a.safetensors")
    later = torch.arange(4.0)[None].bfloat16()
    save_file({"classifier.background": later}, tmp_path / "b.safetensors")
    model = Toy().double()
    load(model, [str(tmp_path / "a.safetensors"), str(tmp_path / "b.safetensors")], dtype=torch.float64)
    assert torch.equal(model.classifier.background, later.double())
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float64}


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
    report = load(model, [source], ["projector", "classifier.background"])
    assert set(report.new) == {n for n in before if n.startswith("projector.")} | {"classifier.background"}
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name] if name in report.new else weights[name])
    assert report.loaded["projector"] == 0
    assert "1 new" in str(report)


def test_parts_that_the_model_lacks_are_skipped_and_listed(tmp_path: Path, weights: dict[str, Tensor]) -> None:
    source = str(tmp_path / "s1.bin")
    predictor = {"segmentor.class_predictor.weight": torch.ones(3, 4), "segmentor.class_predictor.bias": torch.ones(3)}
    torch.save(official(weights) | predictor | {"llm.model.norm.weight": torch.ones(2)}, source)
    report = load(Toy(), [source])
    assert report.skipped == {source: {"llm": 1, "classifier.predictor": 2}}
    assert "classifier.predictor (2)" in str(report)


def test_tied_weights_stand_in_a_file_once(tmp_path: Path) -> None:
    save_file({"llm.embed_tokens.weight": torch.ones(5, 3)}, tmp_path / "a.safetensors")
    model = Tied()
    report = load(model, [str(tmp_path / "a.safetensors")])
    assert report.loaded["llm"] == report.total["llm"] == 2
    assert bool((model.llm.lm_head.weight == 1).all())
    save_file({"llm.embed_tokens.weight": torch.ones(6, 3)}, tmp_path / "a.safetensors")
    fails(Tied(), [str(tmp_path / "a.safetensors")], "[6, 3]", "[5, 3]")


def test_sam_positions_follow_the_image_size(tmp_path: Path, weights: dict[str, Tensor]) -> None:
    weights["seg_encoder.pos_embed"] = torch.full((1, 4, 4, 8), 2.0)
    save_file(weights, tmp_path / "a.safetensors")
    model = Toy(image_size=64)
    report = load(model, [str(tmp_path / "a.safetensors")])
    tables = {f"seg_encoder.layers.1.attn.rel_pos_{axis}" for axis in "hw"}
    assert set(report.resized) == tables | {"seg_encoder.pos_embed"}
    assert model.seg_encoder.pos_embed.shape == (1, 8, 8, 8)
    assert torch.allclose(model.seg_encoder.pos_embed, torch.tensor(2.0))
    assert "3 resized" in str(report)


class Part(nn.Module):
    """What a trainer wraps: a model with something frozen, whose loss is its own."""

    def __init__(self) -> None:
        super().__init__()
        self.model = Toy()
        self.model.seg_encoder.requires_grad_(False)
        self.criterion = nn.Module()
        self.criterion.register_buffer("weight", torch.ones(2))

    def forward(self, x: Tensor) -> Tensor:
        states = self.model.projector(x)[None, None, :, :4]
        return self.model.classifier(states, states[0], torch.ones(1, len(x), dtype=torch.bool)).sum()


@pytest.fixture(scope="module", params=[0, 1, 2, 3])
def state_folder(request: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Tensor]]:
    """A training state as the trainer writes it at each ZeRO stage, and the weights that are in it."""
    distributed.init()
    import deepspeed

    zero, torch_model = request.param, Part()
    engine, *_ = deepspeed.initialize(
        model=torch_model,
        optimizer=torch.optim.AdamW([p for p in torch_model.parameters() if p.requires_grad], lr=0.1),
        config={
            "train_micro_batch_size_per_gpu": 1, "zero_optimization": {"stage": zero}, "bf16": {"enabled": zero > 1},
            "zero_allow_untested_optimizer": True, "zero_force_ds_cpu_optimizer": False,
        },
        dist_init_required=False,
    )  # fmt: skip
    engine.backward(engine(torch.ones(3, 4, dtype=torch.bfloat16 if zero > 1 else torch.float32)))
    engine.step()
    folder = tmp_path_factory.mktemp(f"zero{zero}")
    checkpoint.save(engine, folder, 5, Stage(name="state", lr=0.1))
    checkpoint.export(torch_model.model, folder / "export", {})
    return folder, read_tensors(folder / "export")


def test_a_training_state_gives_its_fp32_weights(state_folder: tuple[Path, dict[str, Tensor]], capsys: Any) -> None:
    folder, trained = state_folder
    for path in (folder, folder / "step_5"):
        read = read_weights(path)
        assert read.keys() == trained.keys()
        for name, tensor in read.items():
            assert torch.equal(tensor.to(trained[name].dtype), trained[name])
    assert read["projector.layers.0.weight"].dtype == torch.float32
    assert capsys.readouterr() == ("", "")


class Spy:
    """Writes a file when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> Any:
        return Path.touch, (self.marker,)


def test_a_forbidden_global_is_refused_and_not_executed(
    state_folder: tuple[Path, dict[str, Tensor]], tmp_path: Path
) -> None:
    original = state_folder[0] / "step_5"
    files = {file.name: file.read_bytes() for file in original.iterdir()}
    (tmp_path / "step_5").mkdir()
    for attacked in (name for name in files if name.endswith(".pt")):
        for protocol in (2, 4):  # the second spells names in a way that torch's search does not follow
            for name, content in files.items():
                (tmp_path / "step_5" / name).write_bytes(content)
            torch.save({"module": Spy(tmp_path / "executed")}, tmp_path / "step_5" / attacked, pickle_protocol=protocol)
            with pytest.raises(UserError, match=r"\.pt: ") as error:
                read_tensors(tmp_path / "step_5")
            assert f"step_5/{attacked}: " in str(error.value)
            assert not (tmp_path / "executed").exists()
    torch.save(Spy(tmp_path / "executed"), tmp_path / "x.bin")
    with pytest.raises(UserError, match="Python objects"):
        read_tensors(tmp_path / "x.bin")
    assert not (tmp_path / "executed").exists()


def test_an_incomplete_training_state_is_one_line(state_folder: tuple[Path, dict[str, Tensor]], tmp_path: Path) -> None:
    folder = tmp_path / "step_5"
    folder.mkdir()
    for file in (state_folder[0] / "step_5").iterdir():
        content = file.read_bytes()
        (folder / file.name).write_bytes(content[: len(content) // 2] if file.suffix == ".pt" else content)
    with pytest.raises(UserError, match=f"{folder}.*damaged"):
        read_tensors(folder)


def tiny(config: str = TINY, **changes: Any) -> dict[str, Any]:
    model = configs.load(config)["model"]
    for part, values in changes.items():
        model[part] |= values
    return model


@pytest.fixture(scope="module")
def stage3(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, dict[str, Tensor]]:
    torch.manual_seed(0)
    model = configs.build(tiny())
    path = tmp_path_factory.mktemp("stage3") / "pytorch_model.bin"
    torch.save(official(model.state_dict()), path)
    return str(path), model.state_dict()


def test_a_model_is_built_around_the_files_tensors(stage3: tuple[str, dict[str, Tensor]]) -> None:
    source, weights = stage3
    model, report = load_model(tiny(), [source])
    assert report.loaded == report.total
    assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())
    assert not any(tensor.is_meta for tensor in (*model.parameters(), *model.buffers()))
    frequencies = configs.build(tiny()).llm.model.rotary_emb.inv_freq  # in no file
    assert torch.equal(model.llm.model.rotary_emb.inv_freq, frequencies)
    model.bfloat16()
    assert torch.equal(model.llm.model.rotary_emb.inv_freq, frequencies)


def test_precision_is_the_files_or_the_one_asked_for(stage3: tuple[str, dict[str, Tensor]], tmp_path: Path) -> None:
    _, weights = stage3
    half = {name: tensor.bfloat16() for name, tensor in weights.items()}
    expected = {"bf16": torch.bfloat16, "mixed": torch.float32}
    for name, stored in {"bf16": half, "mixed": half | {"classifier.logit_scale": torch.ones(1)}}.items():
        path = str(tmp_path / f"{name}.bin")
        torch.save(stored, path)
        for new in ((), ("connector",)):
            model, _ = load_model(tiny(), [path], new)
            assert {p.dtype for p in model.parameters()} == {expected[name]}
        model, _ = load_model(tiny(), [path], dtype=torch.float32)
        assert {p.dtype for p in model.parameters()} == {torch.float32}
        assert torch.equal(model.projector.layers[0].weight, half["projector.layers.0.weight"].float())


@pytest.mark.parametrize("suffix", [".bin", ".safetensors"])
def test_training_does_not_touch_the_file(stage3: tuple[str, dict[str, Tensor]], tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"x{suffix}"
    torch.save(stage3[1], path) if suffix == ".bin" else save_file(stage3[1], path)
    before = hashlib.sha256(path.read_bytes()).digest()
    model, _ = load_model(tiny(), [path], dtype=torch.float32)
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    model.seg_encoder.pos_embed.sum().backward()
    optimizer.step()
    assert torch.allclose(model.seg_encoder.pos_embed, stage3[1]["seg_encoder.pos_embed"] - 1)
    assert hashlib.sha256(path.read_bytes()).digest() == before
    assert torch.equal(read_tensors(path)["seg_encoder.pos_embed"], stage3[1]["seg_encoder.pos_embed"])


def test_what_is_new_is_built_as_ever(stage3: tuple[str, dict[str, Tensor]]) -> None:
    source, weights = stage3
    model, report = load_model(tiny(), [source], ["connector", "mask_decoder.query_*"])
    assert report.new == [n for n in weights if n.startswith(("connector.", "mask_decoder.query_"))]
    assert torch.equal(model.connector.branches[0][1].weight, torch.ones(64))
    assert not torch.equal(model.mask_decoder.query_features, weights["mask_decoder.query_features"])
    assert torch.equal(model.mask_decoder.level_embed, weights["mask_decoder.level_embed"])


def test_tied_embeddings_stay_one_tensor(tmp_path: Path) -> None:
    config = "configs/_base_/models/xsam_tiny_qwen3.py"
    weights = configs.build(tiny(config)).state_dict()
    once = {name: tensor for name, tensor in weights.items() if name != "llm.lm_head.weight"}
    for stored in (once, weights):
        torch.save(stored, tmp_path / "x.bin")
        model, report = load_model(tiny(config), [tmp_path / "x.bin"])
        assert model.llm.lm_head.weight is model.llm.model.embed_tokens.weight
        assert report.loaded == report.total
    torch.save(weights | {"llm.lm_head.weight": weights["llm.lm_head.weight"] + 1}, tmp_path / "x.bin")
    with pytest.raises(UserError, match="are one tensor in the model, but differ"):
        load_model(tiny(config), [tmp_path / "x.bin"])


def test_the_files_vocabulary_decides_and_must_be_the_tokenizers(stage3: tuple[str, dict[str, Tensor]]) -> None:
    config = tiny(llm={"vocab_size": 700})
    model, report = load_model(config, [stage3[0]], vocabulary=640)
    assert config["llm"]["vocab_size"] == model.llm.config.vocab_size == 640
    assert f"model.llm.vocab_size: 640 instead of 700, for {stage3[0]}" in str(report)
    with pytest.raises(UserError, match=r"640 token embeddings, the tokenizer 32014 .*processor\.tokenizer"):
        load_model(tiny(), [stage3[0]], vocabulary=32014)


def test_a_wrong_stage_or_language_model_is_called_by_its_name(
    stage3: tuple[str, dict[str, Tensor]], tmp_path: Path
) -> None:
    weights = stage3[1]
    one = {"segmentor.class_predictor.weight": torch.ones(3, 64)}
    one |= official({n: t for n, t in weights.items() if n.startswith(("seg_enc", "conn", "pixel", "mask"))})
    two = official({n: t for n, t in weights.items() if n.startswith(("projector", "seg_projector"))})
    for content, words in ((one, "looks like stage 1"), (two, "looks like stage 2: projectors, no mask decoder")):
        torch.save(content, tmp_path / "x.bin")
        with pytest.raises(UserError, match=words) as error:
            load_model(tiny(), [tmp_path / "x.bin"], vocabulary=640)
        assert "no source has" in str(error.value)
    with pytest.raises(UserError, match="its language model is a fused Phi-3, the config's is qwen3"):
        load_model(tiny("configs/_base_/models/xsam_tiny_qwen3.py"), [stage3[0]], vocabulary=1000)


PEAK = """
import sys, threading, time, torch
from xsam.checkpoints.loading import load_model
def resident():
    return int(open("/proc/self/status").read().split("RssAnon:")[1].split()[0]) * 1024
config = {"type": "xsam.models.xsam.XSamModel", "seg_encoder": {"type": "xsam.models.encoders.SamEncoder",
          "image_size": 32, "patch_size": 8, "channels": 8, "depth": 1, "num_heads": 2, "window_size": 2},
          "projector": {"type": "xsam.models.projector.Projector", "in_channels": 5000, "out_channels": 5000}}
peak, over = 0, False
def watch():
    global peak
    while not over:
        peak = max(peak, resident())
        time.sleep(0.001)
threading.Thread(target=watch).start()
for path, dtype in zip(sys.argv[1::2], sys.argv[2::2]):
    before = peak = resident()
    model, _ = load_model(config, [path], dtype=getattr(torch, dtype, None))
    assert model.projector.layers[2].bias.eq(3).all()
    print(max(peak, resident()) - before)
    del model
over = True
"""


@pytest.mark.skipif(not Path("/proc/self/status").is_file(), reason="reads Linux's own account of memory")
def test_loading_holds_no_weight_twice(tmp_path: Path) -> None:
    """As a share of a 200 MB file; what stays mapped from the file is no memory of the process."""
    encoder = SamEncoder(image_size=32, patch_size=8, channels=8, depth=1, num_heads=2, window_size=2)
    weights = {f"seg_encoder.{name}": tensor for name, tensor in encoder.state_dict().items()}
    weights |= {f"projector.layers.{i}.weight": torch.ones(5000, 5000) for i in (0, 2)}
    weights |= {f"projector.layers.{i}.bias": torch.full((5000,), 3.0) for i in (0, 2)}
    save_file(weights, tmp_path / "x.safetensors")
    torch.save(weights, tmp_path / "x.bin")
    cases = [("x.safetensors", "stored"), ("x.bin", "stored"), ("x.bin", "bfloat16")]
    arguments = [word for name, dtype in cases for word in (str(tmp_path / name), dtype)]
    done = subprocess.run([sys.executable, "-c", PEAK, *arguments], capture_output=True, text=True, check=True)
    shares = [int(line) / (tmp_path / "x.bin").stat().st_size for line in done.stdout.split()]
    assert shares[0] < 0.2
    assert shares[1] < 0.2
    assert shares[2] < 0.7  # all of it in half the precision
