import json
import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from xsam import XSam
from xsam import config as configs
from xsam.checkpoints import convert as module
from xsam.checkpoints.convert import convert
from xsam.checkpoints.loading import read_tensors
from xsam.checkpoints.released import to_official
from xsam.cli import main
from xsam.structures import UserError

ROOT = Path(__file__).parents[2]
STAGE3 = ROOT / "configs/shapes/stage3.py"
DEAD = {
    "segmentor.encoder.neck.conv1.weight": torch.ones(2, 3),
    "segmentor.shared_image_embedding.positional_embedding": torch.ones(2),
    "visual_encoder.vision_model.encoder.layers.4.mlp.fc1.bias": torch.ones(3),  # the last of five
    "visual_encoder.vision_model.post_layernorm.weight": torch.ones(3).half(),
    "visual_encoder.vision_model.head.probe": torch.ones(1),
}
MIXED = {"bg_embeds.weight": torch.float32, "segmentor.logit_scale": torch.float64}  # the others are bf16


@pytest.fixture(scope="module")
def alive(world: Path) -> dict[str, Tensor]:
    """Random weights of the tiny model under our names; its vocabulary is that of the world's tokenizer."""
    torch.manual_seed(0)
    model = configs.build(configs.load(STAGE3)["model"])
    return {n: t.to(MIXED.get(to_official(n), torch.bfloat16)) for n, t in model.state_dict().items()}


@pytest.fixture(scope="module")
def released(alive: dict[str, Tensor], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same as the official program stores them."""
    path = tmp_path_factory.mktemp("released") / "pytorch_model.bin"
    torch.save({to_official(name): tensor for name, tensor in alive.items()} | DEAD, path)
    return path


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> None:
    assert a.keys() == b.keys()
    for name, tensor in a.items():
        assert tensor.dtype == b[name].dtype
        assert tensor.shape == b[name].shape
        assert torch.equal(tensor.contiguous().view(torch.uint8), b[name].contiguous().view(torch.uint8)), name


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def fails(*words: str, **arguments: object) -> None:
    with pytest.raises(UserError) as error:
        convert(**arguments)
    assert "\n" not in str(error.value)
    for word in words:
        assert word in str(error.value)


@pytest.mark.parametrize("layout", ["xsam", "hf"])
@pytest.mark.parametrize("file", ["again.bin", "again.safetensors"])
def test_official_to_a_folder_and_back_is_bit_identical(layout, file, released, alive, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(module, "SHARD", "1MB")
    report = convert(released, tmp_path / "folder", layout, config=str(STAGE3))
    assert f"{len(alive)} tensors, {len(DEAD)} unused ones" in report
    assert "without a tokenizer" in report
    shards = sorted((tmp_path / "folder").glob("model-*.safetensors"))
    assert len(shards) > 2
    same(read_tensors(tmp_path / "folder"), alive)
    same(load_file(tmp_path / "folder/unused.safetensors"), DEAD)
    convert(tmp_path / "folder", tmp_path / file, "official")
    same(read_tensors(tmp_path / file), read_tensors(released))
    assert names(tmp_path) == {"folder", file}


def test_our_folder_is_enough_for_the_model(released, world, tmp_path) -> None:
    report = convert(released, tmp_path / "a", "xsam", config=str(STAGE3), tokenizer=f"{world}/base")
    assert report.count("\n") == 0  # nothing to note: config, weights and tokenizer fit
    convert(tmp_path / "a", tmp_path / "b", "hf")
    (tmp_path / "a").rename(tmp_path / "moved")
    image = next((world / "val").iterdir())
    for folder in (tmp_path / "moved", tmp_path / "b"):
        result = XSam.from_pretrained(str(folder)).refer(image, "the red circle")
        assert result.found[0].mask.shape == result.image.shape[:2]
    assert configs.load(tmp_path / "b") == configs.load(tmp_path / "moved")


def test_transformers_opens_the_hub_folder(released, alive, world, tmp_path, monkeypatch) -> None:
    from transformers import AutoModel, AutoTokenizer, dynamic_module_utils

    monkeypatch.setattr(dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.setattr(sys, "path", [str(tmp_path / "modules"), *sys.path])
    folder = tmp_path / "hub"
    convert(released, folder, "hf", config=str(STAGE3), tokenizer=f"{world}/base")
    model = AutoModel.from_pretrained(folder, trust_remote_code=True)
    state = model.state_dict()
    assert state.keys() == alive.keys()
    assert all(torch.equal(state[name].double(), tensor.double()) for name, tensor in alive.items())
    with pytest.raises(ValueError, match="dtype"):
        AutoModel.from_pretrained(folder, trust_remote_code=True, dtype=torch.float32)
    assert AutoTokenizer.from_pretrained(folder, trust_remote_code=True).convert_tokens_to_ids("<SEG>") == 637
    assert json.loads((folder / "config.json").read_text())["model_type"] == "xsam"
    readme = (folder / "README.md").read_text()
    assert f"| all | {sum(t.numel() for t in alive.values()):,} |" in readme
    assert "96 x 96" in readme


def test_names_of_the_main_branch_are_read_and_the_archive_s_written(released, tmp_path) -> None:
    def renamed(name: str) -> str:
        name = name.replace("visual_encoder.", "vision_encoder.")
        return name.replace("segmentor.logit_scale", "segmentor.class_predictor.logit_scale")

    weights = read_tensors(released)
    torch.save({renamed(name): tensor for name, tensor in weights.items()}, tmp_path / "main.bin")
    convert(tmp_path / "main.bin", tmp_path / "ours", "xsam", config=str(STAGE3))
    convert(tmp_path / "ours", tmp_path / "archive.bin", "official")
    same(read_tensors(tmp_path / "archive.bin"), weights)
    torch.save(weights | {"vision_encoder.vision_model.head.probe": torch.ones(1)}, tmp_path / "both.bin")
    fails("both.bin", "both official branches", source=tmp_path / "both.bin", target=tmp_path / "x", to="xsam")


@pytest.mark.parametrize(
    "stage, tensors",
    [
        (1, {"segmentor.class_predictor.weight": torch.ones(134, 256), "segmentor.decoder.level_embed.weight": torch.ones(3, 256)}),
        (2, {"visual_projector.model.0.bias": torch.ones(3072), "seg_projector.model.0.bias": torch.ones(3072)}),
        (3, {"segmentor.decoder.level_embed.weight": torch.ones(3, 256), "llm.model.embed_tokens.weight": torch.ones(77, 3072)}),
    ],
)  # fmt: skip
def test_the_parts_in_the_file_choose_the_stage_and_the_rows_the_vocabulary(stage, tensors, tmp_path) -> None:
    save_file(tensors, tmp_path / "file.safetensors")
    report = convert(tmp_path / "file.safetensors", tmp_path / "folder", "xsam")
    config = configs.load(tmp_path / "folder")
    assert config["stage"]["name"] == f"stage{stage}"
    assert ("llm" in config["model"], "mask_decoder" in config["model"]) == (stage > 1, stage != 2)
    assert stage < 3 or config["model"]["llm"]["vocab_size"] == 77
    assert "are not in the file" in report
    assert "do not fit" not in report


def test_a_config_that_does_not_describe_the_weights_is_said(released, tmp_path) -> None:
    report = convert(released, tmp_path / "folder", "xsam")
    assert "xsam_phi3_stage3.py" in report
    assert "do not fit it" in report


def test_the_tokenizer_must_be_that_of_the_weights(released, world, alive, tmp_path) -> None:
    short = alive | {"llm.model.embed_tokens.weight": alive["llm.model.embed_tokens.weight"][:-3].clone()}
    save_file(short, tmp_path / "short.safetensors")
    arguments = {"config": str(STAGE3), "tokenizer": f"{world}/base"}
    fails(
        "640 tokens", "637 rows", source=tmp_path / "short.safetensors", target=tmp_path / "x", to="xsam", **arguments
    )
    fails("/no/tokenizer", source=released, target=tmp_path / "x", to="xsam", tokenizer="/no/tokenizer")
    assert names(tmp_path) == {"short.safetensors"}


def test_adapters_of_a_lora_run_are_merged(released, alive, tmp_path) -> None:
    convert(released, tmp_path / "run", "xsam", config=str(STAGE3))
    layer = "llm.model.layers.0.mlp.down_proj"
    base, generator = alive[f"{layer}.weight"], torch.Generator().manual_seed(1)
    a, b = torch.randn(2, base.shape[1], generator=generator), torch.randn(base.shape[0], 2, generator=generator)
    adapted = {n: t for n, t in alive.items() if n != f"{layer}.weight"} | {
        f"{layer}.base_layer.weight": base, f"{layer}.lora_A.default.weight": a, f"{layer}.lora_B.default.weight": b,
    }  # fmt: skip
    save_file(adapted, tmp_path / "run/model.safetensors")
    config = json.loads((tmp_path / "run/config.json").read_text())
    config["stage"]["lora"] = {"modules": ["llm"], "rank": 2, "alpha": 6}
    (tmp_path / "run/config.json").write_text(json.dumps(config))
    convert(tmp_path / "run", tmp_path / "merged", "xsam")
    assert "lora" not in configs.load(tmp_path / "merged")["stage"]
    expected = (base.float() + 3 * (b @ a)).bfloat16()
    same(read_tensors(tmp_path / "merged"), alive | {f"{layer}.weight": expected})
    convert(tmp_path / "run", tmp_path / "merged.bin", "official")
    same(
        read_tensors(tmp_path / "merged.bin"),
        {to_official(n): t for n, t in alive.items()} | DEAD | {f"{layer}.weight": expected},
    )


def test_tied_tensors_and_views_become_tensors_of_their_own(alive, tmp_path) -> None:
    table = torch.arange(12.0).view(4, 3)
    torch.save(
        {"llm.model.embed_tokens.weight": table, "llm.lm_head.weight": table, "bg_embeds.weight": table[1:2]},
        tmp_path / "a.bin",
    )
    convert(tmp_path / "a.bin", tmp_path / "ours", "xsam")
    convert(tmp_path / "ours", tmp_path / "b.bin", "official")
    for source in ("a.bin", "b.bin"):
        same(read_tensors(tmp_path / source), {"llm.model.embed_tokens.weight": table, "llm.lm_head.weight": table, "bg_embeds.weight": table[1:2]})  # fmt: skip
    torch.save({"bg_embeds.weight": torch.zeros(1000, 1000)[:1]}, tmp_path / "view.bin")
    convert(tmp_path / "view.bin", tmp_path / "small.bin", "official")
    assert (tmp_path / "small.bin").stat().st_size < 10_000


def test_an_existing_target_is_kept_unless_overwritten(released, world, tmp_path) -> None:
    target = tmp_path / "folder"
    convert(released, target, "xsam", config=str(STAGE3), tokenizer=f"{world}/base")
    fails("exists", "--overwrite", source=released, target=target, to="xsam")
    convert(released, target, "xsam", config=str(STAGE3), overwrite=True)
    assert names(target) == {"model.safetensors", "unused.safetensors", "config.json"}
    fails("holds the source", source=target, target=target, to="hf", overwrite=True)
    (target / "checkpoints").mkdir()
    fails("not overwritten", source=released, target=target, to="xsam", overwrite=True)
    fails("not overwritten", source=target, target=released, to="hf", overwrite=True)
    fails(".bin or .safetensors", source=released, target=tmp_path / "x.pt", to="official")
    assert names(tmp_path) == {"folder"}


def test_foreign_tensors_and_configs_are_refused(released, tmp_path) -> None:
    target = tmp_path / "x"
    torch.save({"bg_embeds.weight": torch.ones(1, 4), "backbone.stem": torch.ones(1)}, tmp_path / "extra.bin")
    fails("backbone.stem", "extra.bin", source=tmp_path / "extra.bin", target=target, to="xsam")
    (tmp_path / "cut.bin").write_bytes(released.read_bytes()[:5000])
    fails("cut.bin", "damaged", source=tmp_path / "cut.bin", target=target, to="hf")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder/pytorch_model.bin").write_bytes(released.read_bytes())
    (tmp_path / "folder/config.json").write_text('{"model_type": "phi3"}')
    fails("folder/config.json", "--config", source=tmp_path / "folder", target=target, to="xsam")
    assert not target.exists()


@pytest.mark.parametrize(
    "to, name", [("xsam", "folder"), ("hf", "folder"), ("official", "a.bin"), ("official", "a.safetensors")]
)
def test_a_full_disk_leaves_everything_as_it_was(to, name, released, tmp_path) -> None:
    if to == "official":
        (tmp_path / name).write_bytes(b"before")
    else:
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text("before")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (500_000, hard))  # bytes; the weights have more
    try:
        fails("cannot be written", source=released, target=tmp_path / name, to=to, config=str(STAGE3), overwrite=True)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert names(tmp_path) == {name}
    left = tmp_path / name if to == "official" else tmp_path / name / "config.json"
    assert left.read_text() == "before"


def test_a_training_state_converts_with_the_config_of_its_run(alive, tmp_path) -> None:
    state = tmp_path / "run/checkpoints/step_3"
    state.mkdir(parents=True)
    (tmp_path / "run/config.json").write_text(json.dumps(configs.load(STAGE3)))
    weights = {f"model.{name}": tensor for name, tensor in alive.items()}
    torch.save({"module": weights}, state / "mp_rank_00_model_states.pt")  # as DeepSpeed writes ZeRO stage 0
    convert(state, tmp_path / "folder", "xsam")
    same(read_tensors(tmp_path / "folder"), alive)
    assert configs.load(tmp_path / "folder")["model"] == configs.load(STAGE3)["model"]


def test_from_the_command_line(released, tmp_path, capsys) -> None:
    arguments = ["convert", str(released), str(tmp_path / "folder"), "--to", "xsam", "--config", str(STAGE3)]
    assert main(arguments) == 0
    assert "5 unused ones" in capsys.readouterr().out
    assert main(arguments) == 2
    assert capsys.readouterr().err.strip().endswith("give another name, or --overwrite")
    with safe_open(tmp_path / "folder/model.safetensors", "pt") as file:
        assert "classifier.logit_scale" in file.keys()  # noqa: SIM118


def test_another_precision_is_written_and_a_cpu_computes_in_float32(released, alive, world, tmp_path) -> None:
    options = ["--config", str(STAGE3), "--tokenizer", f"{world}/base", "--dtype", "float16"]
    assert main(["convert", str(released), str(tmp_path / "half"), "--to", "xsam", *options]) == 0
    same(load_file(tmp_path / "half/model.safetensors"), {n: t.half() for n, t in alive.items()})
    loaded = XSam.from_pretrained(tmp_path / "half", device="cpu").model
    assert {p.dtype for p in loaded.parameters()} == {torch.float32}
    asked = XSam.from_pretrained(tmp_path / "half", device="cpu", dtype=torch.float16).model
    assert {p.dtype for p in asked.parameters()} == {torch.float16}


MEASURE = """
import sys, threading
from xsam.checkpoints.convert import convert
def anonymous():
    lines = open("/proc/self/status").read().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon")) * 1024
small, source, folder, file, config = sys.argv[1:]
convert(small, folder + "0", "xsam", config=config)  # everything is imported
before = peak = anonymous()
done = threading.Event()
def watch():
    global peak
    while not done.wait(0.01):
        peak = max(peak, anonymous())
thread = threading.Thread(target=watch)
thread.start()
convert(source, folder, "xsam", config=config)
convert(folder, file, "official")
done.set()
thread.join()
print(peak - before)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="no /proc")
def test_conversion_streams(released, tmp_path) -> None:
    big = {f"llm.model.layers.{i}.x.weight": torch.zeros(5_000_000, dtype=torch.bfloat16) for i in range(20)}
    source = tmp_path / "big.bin"
    torch.save(big, source)
    arguments = [str(released), str(source), str(tmp_path / "folder"), str(tmp_path / "again.bin"), str(STAGE3)]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", MEASURE, *arguments]
    done = subprocess.run(command, check=True, capture_output=True, text=True, env=environment)
    assert int(done.stdout.split()[-1]) < 0.3 * source.stat().st_size
