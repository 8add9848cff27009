"""README.md and docs/*.md: every command is one that the program knows, and what can run in miniature runs.

A shell takes the blocks apart, so loops, braces, variables and quotes are to the test what they are to a reader. Blocks that begin
with "# Needs" are not run, nor is what `ONLY_PARSED` names, with the reason. Miniature: a world of some pictures, two steps, one
sample of each benchmark, and weights that are hardly trained."""

import json
import re
import runpy
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
from PIL import Image

from xsam import cli, config
from xsam.cli import main
from xsam.data.catalog import DATASETS
from xsam.engine import evaluator
from xsam.engine.stages import Stage

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
VERBS = ("train", "evaluate", "predict", "score", "data", "convert", "doctor", "benchmark", "demo", "parity")
ONLY_PARSED = {  # by how a command begins; the first that fits says why
    r"(make|pip|python3? -m venv|git|hf|apt-get|curl|base64|docker|srun|scontrol|head)\b": "other programs",
    r".*(configs|runs)/xsam_|.*\bxsam_phi3\b": "the full-size model: GPUs, public datasets, released weights",
    r"xsam data (prepare|validate|preview) (ade20k|coco|refcoco)\b": "public datasets; data/test_prepare.py",
    r"xsam data prepare shapes": "a minute; conftest.py prepares a small one",
    r"xsam evaluate --compare": "results of two long evaluations; engine/test_results.py",
    r"xsam benchmark": "minutes; benchmarks/",
    r"xsam demo": "serves until it is stopped; demo/",
    r"xsam parity": "recorded tensors; checkpoints/test_parity.py",
    r"xsam doctor": "this machine, or the big model; engine/test_doctor.py",
    r"python -m world.pretrain": "an hour; world/test_pretrain.py",
    r"python examples/tour.py": "test_tour.py",
    r"torchrun|deepspeed": "several processes; engine/test_ranks.py",
}
SHELL = r"""PATH=/nowhere
command_not_found_handle() { local IFS=$'\x1f'; printf '%s\x1e' "$*" >&3; }
exec 3>&1 >/dev/null 2>&1
"""  # so every word that is no part of the shell is told instead of run


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)


def commands(page: Path, folder: Path) -> list[tuple[list[str], bool]]:
    """The words of every command in a page's blocks of shell, and whether the block is one that can be run."""
    found = []
    for block in blocks(page, "bash"):
        told = subprocess.run(["bash", "-c", SHELL + block], cwd=folder, stdout=subprocess.PIPE, text=True, check=False)
        able = not block.startswith(("# Needs", "#!"))
        here = [(command.split("\x1f"), able) for command in told.stdout.split("\x1e") if command]
        assert len(here) >= len(re.findall(r"^(?:xsam|python) ", block, re.MULTILINE)), f"not all are told: {block}"
        found += here
    return found


def arguments(words: list[str]) -> list[str]:
    """What `xsam` is given, by whatever it is started; nothing of another program's."""
    for place, word in enumerate(words):
        if word == "xsam" and not place:
            return words[1:]
        if re.fullmatch(r"tools/\w+\.py", word):
            return [Path(word).stem, *words[place + 1 :]]
    return []


def miniature(words: list[str]) -> list[str]:
    if words[:2] == ["xsam", "train"]:
        elsewhere = [] if "--work-dir" in words else ["--work-dir", f"runs/tried/{words[2]}"]
        return [*words, "stage.steps=2", "stage.batch_size=4", *elsewhere]
    return [*words, *{"evaluate": ["--limit", "1"], "examples/own_data.py": ["6", "3"]}.get(words[1], [])]


@pytest.fixture(scope="module")
def trained(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs as `make shapes` leaves them, after one step."""
    folder = tmp_path_factory.mktemp("trained")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("XSAM_DATA", str(folder / "data"))
        (folder / "data").mkdir()
        (folder / "data/shapes").symlink_to(world)
        for stage in ("stage1", "stage3"):
            given = [f"{ROOT}/configs/shapes/{stage}.py", "--work-dir", f"runs/shapes/{stage}", "--max-steps", "1"]
            assert main(["train", *given, "stage.init_from=[]", "stage.batch_size=4"]) == 0
    return folder / "runs"


@pytest.fixture
def home(world: Path, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder like that of a fresh clone in which `make shapes` has run, and some files of a user."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("XSAM_DATA", raising=False)
    for name in ("configs", "examples"):
        Path(name).symlink_to(ROOT / name)
    shutil.copytree(trained, "runs")
    Path("data/shapes").mkdir(parents=True)
    for path in world.iterdir():
        Path("data/shapes", path.name).symlink_to(path if path.name != "base" else ROOT / "data/shapes/base")
    for name in ("model", "examples"):
        Path("data/shapes", name).symlink_to(ROOT / "data/shapes" / name)
    monkeypatch.setattr(sys, "argv", ["own_data.py", "data/own", "6", "3"])
    runpy.run_path("examples/own_data.py", run_name="__main__")
    for name, path in {"my": "", "train": "train", "val": "val"}.items():
        Path(name).symlink_to(f"data/own/{path}")
    for name in ("my", "held_out"):
        for suffix in (".json", ".jsonl"):
            shutil.copy(f"data/own/train{suffix}", f"{name}{suffix}")
    for number, name in enumerate(("photo.jpg", "photos/a.jpg", "photos/b.jpg", "more/a.jpg"), start=1000001):
        Path(name).parent.mkdir(exist_ok=True)
        shutil.copy(world / f"val/{number}.jpg", name)
    Image.new("L", (96, 96), 255).save("drawn.png")
    for name in ("truth.json", "mine.json"):
        Path(name).write_text('[{"id": 1, "segmentation": null}]')
    return tmp_path


@pytest.fixture
def parse(monkeypatch: pytest.MonkeyPatch) -> Callable[[list[str]], SimpleNamespace]:
    """What the command line understands; nothing is done."""

    def parse(words: list[str]) -> SimpleNamespace:
        seen: list[SimpleNamespace] = []
        with monkeypatch.context() as patch:
            for name in (f"_{verb}" for verb in VERBS):
                note = lambda options: seen.append(options)  # noqa: E731
                note.__name__ = name
                patch.setattr(cli, name, note)
            assert main(words) == 0
        return seen[0]

    return parse


def check(options: SimpleNamespace) -> None:
    """What a command names exists: configs and their keys, rows, datasets."""
    given = options.target if options.verb == "data" and options.action != "prepare" else getattr(options, "config", "")
    if given in DATASETS or not given.endswith((".py", ".json", ".jsonl")) or given.startswith("runs/"):
        return
    if not given.endswith(".py"):
        assert Path(given).is_file(), given
        return
    settings = config.load(given, options.overrides)
    Stage.parse(settings["stage"])
    if options.verb == "evaluate":
        assert evaluator.select(settings["benchmarks"], options.benchmarks)


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_the_commands_of(page, home, parse, monkeypatch, tmp_path_factory, capsys):
    for words, able in commands(page, tmp_path_factory.mktemp("shell")):
        line, asked = shlex.join(words), arguments(words)
        why = next((why for begin, why in ONLY_PARSED.items() if re.match(begin, " ".join(words))), "")
        if asked:
            check(parse(asked))
        elif words[0] == "make":
            assert re.search(rf"^{words[1]}:", (ROOT / "Makefile").read_text(), re.MULTILINE), line
        elif words[0] == "python" and words[1] != "-m":
            assert (ROOT / words[1]).is_file(), line
        else:
            assert why == "other programs" or words[:3] == ["python", "-m", "world.pretrain"], line
        if why or not able:
            continue
        if asked:
            assert main(miniature(words)[1:]) == 0, line
        else:
            monkeypatch.setattr(sys, "argv", miniature(words)[1:])
            runpy.run_path(words[1], run_name="__main__")
    if page.name == "finetune.md":
        check_the_walk(capsys.readouterr().out)


def check_the_walk(said: str) -> None:
    """What docs/finetune.md leaves, from zero to a picture."""
    assert "data/own/train.json: trains the task generic, read by CocoInstances" in said
    assert "data/own/train: trains the task generic, read by LabelMaps" in said
    stored = json.loads(Path("runs/mine/config.json").read_text())
    assert stored["mixture"]["sources"]["own"]["data"]["annotations"] == "data/own/train.json"
    assert list(stored["benchmarks"]) == ["own"]
    scored = json.loads(Path("runs/mine/eval/strict/results.json").read_text())["benchmarks"]["own"]
    assert "AP50" in scored["metrics"]
    assert "cIoU" in json.loads(Path("refer/results.json").read_text())["benchmarks"]["own"]["metrics"]
    for made in ("page/index.html", "predictions/1.png", "mine/model.safetensors"):
        assert Path(made).is_file(), made


@pytest.mark.parametrize("data", ["train", "train.jsonl"])
def test_the_other_formats_train_as_well(home, data):
    given = ["configs/finetune/own_data_mixed.py", f"data=data/own/{data}", "stage.steps=2", "--work-dir", "runs/mine"]
    assert main(["train", *given, "mixture.bad_samples=0"]) == 0


TROUBLE = (  # what a user types
    "train configs/xsam_phi3_stage1.py stage.init_from=[]",
    "data validate refcoco",
    "train configs/xsam_phi3_stage2.py",
    "evaluate --checkpoint runs/typo",
    "predict --checkpoint model.bin --image photo.jpg",
    "evaluate configs/shapes/stage1.py --checkpoint runs/shapes/stage3",
    "train configs/shapes/stage3.py stage.init_from=['runs/shapes/stage3'] model.mask_decoder.num_queries=20",
    "convert half.safetensors out --to xsam",
    "train configs/shapes/stage1.py --work-dir runs/shapes/stage1",
    "train configs/shapes/stage1.py mixture.type=mine.Task stage.init_from=[]",
    "predict --image photo.jpg --prompt MANY",
    "demo",
)


@pytest.mark.parametrize("typed", TROUBLE)
def test_troubleshooting_has_what_is_printed(typed, home, capsys, monkeypatch):
    monkeypatch.setattr(cli, "find_spec", lambda name: None)  # no gradio
    Path("model.bin").touch()
    whole = Path("runs/shapes/stage3/model.safetensors").read_bytes()
    Path("half.safetensors").write_bytes(whole[: len(whole) // 2])
    many = ", ".join(f"category number {number}" for number in range(200))
    assert main([many if word == "MANY" else word for word in typed.split()]) == 2
    said = capsys.readouterr().err.strip().splitlines()[-1]
    page = (ROOT / "docs/troubleshooting.md").read_text(encoding="utf-8")
    quotes = [
        quote for row in page.splitlines() for quote in re.findall("`([^`]+)`", row.split("|")[1] if "|" in row else "")
    ]
    patterns = {quote: ".*".join(map(re.escape, quote.split(".."))) for quote in quotes if len(quote) > 25}
    assert any(re.search(pattern, said.replace("`", "'")) for pattern in patterns.values()), said


@pytest.mark.parametrize("name", ["README.md", "docs/api.md"])
def test_the_python_of(name, home):
    scope: dict[str, object] = {}
    for block in blocks(ROOT / name, "python"):
        exec(compile(block, name, "exec"), scope)
    assert scope["result"].image.shape == (96, 96, 3)


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_verbs_options_and_links_in_the_text_of(page, capsys):
    text = page.read_text(encoding="utf-8")
    for line in re.findall(r"`((?:xsam |python tools/)[^`]+)`", text.replace("\n", " ")):
        words = line.replace("python tools/", "xsam ").replace(".py", "", line.startswith("python")).split()
        if not re.fullmatch("[a-z]+", words[1]):
            continue
        assert words[1] in VERBS, line
        for action in ("prepare", "validate", "preview") if words[1] == "data" else ("",):
            with pytest.raises(SystemExit):
                main([*filter(None, (words[1], action)), "--help"])
        assert {word for word in words if word.startswith("--")} <= {
            *re.findall(r"--[\w-]+", capsys.readouterr().out)
        }, line
    for target, anchor in re.findall(r"\]\((?!https?:)([^)#]*)#?([^)]*)\)", text):
        file = page.parent / target if target else page
        assert file.exists(), target
        if anchor:
            titles = re.findall(r"^#+ (.*)$", file.read_text(encoding="utf-8"), re.MULTILINE)
            assert anchor in {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}, anchor
