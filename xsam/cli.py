"""The verbs: `xsam VERB ...`, or `python tools/VERB.py ...`, which is the same program.

Exit codes: 0 done; 1 it ran, but something failed or is out of tolerance; 2 the user must change something."""

import argparse
import json
import logging
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import redirect_stdout
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from .structures import BadSample, UserError

DTYPES = ("float32", "bfloat16", "float16")
FULL = "`xsam doctor CONFIG` computes what fits and names the overrides; docs/troubleshooting.md has more"

Parser = argparse.ArgumentParser
Options = argparse.Namespace


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse, run, and turn a user's mistake into one line and exit code 2."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    logging.basicConfig(format="%(message)s", level=logging.WARNING)
    parser = Parser(prog="xsam", description="X-SAM: one multimodal model for any segmentation.")
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")

    def verb(run: Callable[[Options], int | None], summary: str, example: str) -> Parser:
        name, epilog = run.__name__.removeprefix("_"), f"example:\n  {example}"
        layout = argparse.RawDescriptionHelpFormatter
        added = verbs.add_parser(name, help=summary, description=summary, epilog=epilog, formatter_class=layout)
        added.set_defaults(run=run)
        return added

    _add_main_verbs(verb)
    _add_other_verbs(verb)
    options = parser.parse_args([word for word in arguments if not _is_override(word)])
    options.overrides = [word for word in arguments if _is_override(word)]
    from torch import OutOfMemoryError

    from .engine import distributed

    try:
        return options.run(options) or 0
    except (UserError, BadSample) as error:
        if distributed.is_main():
            print(f"xsam {options.verb}: {error}", file=sys.stderr)
    except OutOfMemoryError as error:  # on any rank, maybe on one alone
        print(f"xsam {options.verb}: {str(error).partition('. ')[0]}; {FULL}", file=sys.stderr)
    return 2


def _is_override(word: str) -> bool:
    """A word with `=` before any `/` is a config override wherever it stands."""
    return not word.startswith("-") and "=" in word.split("/")[0]


def _add_main_verbs(verb: Callable[..., Parser]) -> None:
    train = verb(_train, "train one stage", "xsam train configs/shapes/stage1.py stage.steps=100").add_argument
    train("config", help="a config under configs/; followed by overrides such as stage.lr=1e-4, data=my.jsonl")
    train("--work-dir", type=Path, help="run folder; default: runs/ and the config's path")
    train("--init-from", action="append", metavar="CKPT", help="weights, instead of stage.init_from")
    train("--resume", action="store_true", help="go on from the newest intact state of the run folder")
    train("--max-steps", type=int, help="stop early, with the learning rates of the whole stage")
    train("--replay", type=Path, metavar="DIR", help="only run RUN/skipped/step_N again, a step with NaN")

    example = "xsam evaluate --checkpoint runs/shapes/stage3 --benchmarks all --protocol strict"
    evaluate = verb(_evaluate, "score a checkpoint on benchmarks", example).add_argument
    example = 'xsam predict --checkpoint runs/shapes/stage3 --image a.png --task refer --prompt "the red circle"'
    predict = verb(_predict, "draw the masks of images", example).add_argument
    for add in (evaluate, predict):
        add("config", nargs="?", default="", help="config of the model; default: the checkpoint's own")
        add("--checkpoint", default="", help='run folder, hub name, weights or "random"; predict has a default')
        add("--new", nargs="+", default=[], metavar="PATTERN", help="what may be missing, random then")
    evaluate("--benchmarks", nargs="+", default=["all"], metavar="NAME", help="rows of the config, or all")
    evaluate("--protocol", choices=("paper", "strict"), default="paper", help="given or generated answers")
    evaluate("--limit", type=int, default=0, help="only the first N samples of each benchmark")
    evaluate("--batch-size", type=int, default=8, help="samples of one pass, of each process")
    evaluate("--workers", type=int, default=0, help="processes that read samples, for each process")
    evaluate("--official", action="store_true", help="also write the benchmarks' own submission formats")
    evaluate("--out", type=Path, help="folder of the results; default: eval/PROTOCOL beside the checkpoint")
    evaluate("--compare", nargs=2, type=Path, metavar="DIR", help="only print two results side by side")
    predict("--image", nargs="+", action="extend", required=True, help="image files, folders of them, patterns")
    tasks = ["panoptic", "instance", "semantic", "refer", "reason", "describe", "interact", "ground", "chat"]
    predict("--task", choices=tasks, default="panoptic", help="default: panoptic")
    predict("--prompt", default="", help='expression, question, or names: "things, ..; stuff, .."')
    predict("--score", type=float, help="least probability of what is found")
    for name, form in (("point", "X,Y"), ("box", "X0,Y0,X1,Y1"), ("scribble", "X,Y,X,Y,..")):
        text = f"a visual prompt in pixels, as --{name} 40,60{'' if name == 'point' else ',80,90'}"
        drawn = partial(_drawn, name)
        predict(f"--{name}", type=drawn, action="append", dest="regions", default=[], metavar=form, help=text)
    text = "one that is drawn: all that is not black"
    predict("--mask", type=partial(_drawn, "mask"), action="append", dest="regions", metavar="PNG", help=text)
    predict("--several", action="store_true", help="refer: all that the expression means, or nothing, as one mask")
    predict("--explain", action="store_true", help="reason: first write why")
    predict("--reference", default="", metavar="IMAGE", help="ground: where the visual prompts lie, if elsewhere")
    predict("--out", type=Path, default=Path("predictions"), help="folder of the overlays and masks")
    predict("--json", action="store_true", help="print the results as JSON")
    predict("--dtype", choices=DTYPES, help="of the weights; default: as stored")
    predict("--bits", type=int, default=0, choices=(4, 8), help="of the language model's weights")
    predict("--compile", nargs="+", default=[], metavar="MODULE", help="for torch.compile, as seg_encoder llm")


def _add_other_verbs(verb: Callable[..., Parser]) -> None:
    example = "xsam score panoptic --gt panoptic_val2017.json --pred mine.json --json"
    score = verb(_score, "score predictions of any program", example).add_argument
    score("kind", choices=("panoptic", "instance", "semantic", "refer", "gcg"))
    score("--gt", type=Path, required=True, help="ground truth: a JSON file or a folder")
    score("--pred", type=Path, required=True, help="predictions, in the format of the ground truth")
    score("--num-classes", type=int, default=0, metavar="K", help="semantic: labels are 0 to K - 1")
    score("--similarity", choices=("jaccard", "bert"), default="", help="gcg: how recall compares phrases")
    score("--json", action="store_true", help="print the scores as JSON")

    example = "xsam data validate my.jsonl"
    data = verb(_data, "prepare, validate and preview datasets", example)
    actions = data.add_subparsers(dest="action", required=True, metavar="ACTION")
    make = actions.add_parser("prepare", help="make or check the files that a download lacks")
    make.add_argument("name", choices=("shapes", "ade20k", "cityscapes", "coco", "refer", "vgd"))
    make.add_argument("--root", type=Path, help="its folder; default: below data/, or $XSAM_DATA")
    check = actions.add_parser("validate", help="look at every record and say what is wrong with which")
    check.add_argument("--limit", type=int, help="records of a row, evenly spread; 0 = all; default: 2,000 of many")
    check.add_argument("--full", action="store_true", help="decode every image, not only its header")
    show = actions.add_parser("preview", help="draw samples as the model will see them")
    show.add_argument("--out", type=Path, required=True, help="folder of the page")
    show.add_argument("--count", type=int, default=16, help="samples of each row")
    for action in (check, show):
        action.add_argument("target", help="your own .json, .jsonl or folder; a config, or a dataset")
        action.add_argument("--images", default="", help="folder of a file's images; default: the file's own")

    example = "xsam convert pytorch_model.bin xsam_phi3 --to xsam --tokenizer Phi-3-mini-4k-instruct"
    convert = verb(_convert, "write a checkpoint in another layout", example).add_argument
    convert("source", metavar="SRC", help="a checkpoint of any layout, recognised by its content")
    convert("target", metavar="DST", help="a folder; with --to official a .bin or .safetensors file")
    convert("--to", choices=("xsam", "official", "hf"), required=True, help="layout to write")
    convert("--config", default="", help="config of the model; default: stored in SRC, else Phi-3's")
    convert("--tokenizer", default="", help="folder of the tokenizer; default: the one in SRC")
    convert("--dtype", choices=DTYPES, help="precision of the weights; default: their own")
    convert("--overwrite", action="store_true", help="replace DST where it exists")

    example = "xsam doctor configs/finetune/lora.py --gpus 1 --memory 24"
    doctor = verb(_doctor, "check the machine and a config; compute memory and step time", example).add_argument
    doctor("config", nargs="?", default="", help="a config with a stage, and overrides; default: none")
    doctor("--gpus", type=int, default=0, help="compute for so many elsewhere, over all nodes")
    doctor("--memory", type=float, default=0, metavar="GB", help="of one of them, 10^9 bytes; default: 80")
    doctor("--tflops", type=float, default=312, help="peak of one GPU; default: bf16 of an A100 or A800")

    add = verb(_benchmark, "measure speed, memory and exactness", "xsam benchmark model --json").add_argument
    add("what", choices=("model", "data", "evaluation", "step", "growth"), help="see docs/performance.md")
    add("config", nargs="?", default="", help="data: whose mixture; step: which stage; default: made-up ones")
    add("--device", choices=("cpu", "cuda"), default="cpu", help="of the model; on cuda in bf16")
    add("--out", type=Path, default=Path("growth"), help="growth: folder of the plots")
    add("--json", action="store_true", help="print the report as JSON")

    demo = verb(_demo, "ask in the browser: a page, and POST /v1/segment", "xsam demo --port 8080").add_argument
    demo("--checkpoint", default="", help="run folder or hub name; default: the embedded model")
    demo("--host", default="127.0.0.1", help="address to listen on; 0.0.0.0 lets other machines in")
    demo("--port", type=int, default=7860, help="default: 7860")

    example = "xsam parity ../parity --case s1.train"
    parity = verb(_parity, "replay recorded reference tensors", example).add_argument
    parity("directory", type=Path, help="folder with goldens.json and its tensors")
    parity("--case", help="only this case")
    parity("--json", action="store_true", help="print the report as JSON")


def _train(options: Options) -> int:
    from .apps.pages import Pictures
    from .engine import run

    if options.replay:
        return int(run.replay(options.config, options.overrides, options.replay))
    run.train_stage(
        options.config, options.overrides, work_dir=options.work_dir, init_from=options.init_from or [],
        resume=options.resume, max_steps=options.max_steps, pictures=Pictures,
    )  # fmt: skip
    return 0


def _drawn(kind: str, text: str) -> dict[str, Any]:
    """A visual prompt as `XSam.interact` takes it."""
    try:
        return {kind: text if kind == "mask" else [float(part) for part in text.split(",")]}
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r}: give numbers with commas between") from None


def _evaluate(options: Options) -> int:
    from .api import config_of, load
    from .apps.pages import gallery
    from .engine import distributed, evaluator, results

    if options.compare:
        print(results.compare(*options.compare))
        return 0
    if not options.checkpoint:
        raise UserError("give --checkpoint, a run folder of `xsam train`")
    began = time.perf_counter()
    distributed.init()
    named = options.checkpoint, options.config, options.overrides
    rows = evaluator.select(config_of(*named)["benchmarks"], options.benchmarks)
    model, processor, config = load(*named, new=options.new)
    weights, protocol = Path(options.checkpoint), options.protocol
    out = options.out or (weights.parent if weights.is_file() else weights) / "eval" / protocol
    sha256 = ""
    with distributed.together():
        if distributed.is_main():
            sha256 = results.claim(out, options.checkpoint, protocol, config, rows)
    found = evaluator.evaluate(
        model, processor, rows, out, protocol=protocol, limit=options.limit, batch_size=options.batch_size,
        workers=options.workers, official=options.official,
    )  # fmt: skip
    if distributed.is_main():
        results.write(
            out, found, config_path=options.config or options.checkpoint, checkpoint=options.checkpoint, sha256=sha256,
            protocol=protocol, seconds=time.perf_counter() - began,
        )  # fmt: skip
        gallery(out, rows)
        print((out / "results.md").read_text())
    # Rank 0 alone says so: a launcher ends it, still writing, when another leaves with an error.
    return int(distributed.is_main() and any("error" in row or row["errors"] for row in found.values()))


def _predict(options: Options) -> None:
    from .api import XSam, embedded_model, load
    from .apps.predict import predict

    options.checkpoint = options.checkpoint or str(embedded_model())
    with redirect_stdout(sys.stderr if options.json else sys.stdout):  # what was loaded
        model, processor, config = load(
            options.checkpoint, options.config, options.overrides, new=options.new, dtype=_dtype(options),
            bits=options.bits, compile=options.compile,
        )  # fmt: skip
    predict(
        XSam(model, processor), config, options.image, options.task, options.out, as_json=options.json,
        prompt=options.prompt, score=options.score, regions=options.regions, reference=options.reference,
        several=options.several, explain=options.explain,
    )  # fmt: skip


def _score(options: Options) -> None:
    from .engine import score

    report = score.score(options.kind, options.gt, options.pred, options.num_classes, options.similarity)
    print(json.dumps(report) if options.json else score.table(report))


def _data(options: Options) -> int:
    from .apps import datasets

    if options.action == "prepare":
        datasets.prepare(options.name, options.root)
        return 0
    target, overrides, images = options.target, options.overrides, options.images
    if options.action == "validate":
        return datasets.validate(target, overrides, images=images, limit=options.limit, full=options.full)
    from .apps.pages import preview

    print(preview(target, options.out, overrides, images=images, samples=options.count))
    return 0


def _convert(options: Options) -> None:
    from .checkpoints.convert import convert

    given = {"config": options.config, "tokenizer": options.tokenizer, "overwrite": options.overwrite}
    print(convert(options.source, options.target, options.to, dtype=_dtype(options), **given))


def _dtype(options: Options) -> Any:
    import torch

    return getattr(torch, options.dtype) if options.dtype else None


def _doctor(options: Options) -> int:
    from .engine.doctor import examine

    return examine(options.config, options.overrides, options.gpus, options.memory, options.tflops)


def _benchmark(options: Options) -> None:
    from benchmarks import data, evaluation, growth, measure, model, step

    what, device, stage = options.what, options.device, (options.config, options.overrides)
    if any(stage) and not (options.config and what in ("data", "step")):
        raise UserError("a config and its overrides are for `data CONFIG` and `step CONFIG`; the rest is made up")
    if device == "cuda" and not measure.torch.cuda.is_available():
        raise UserError("torch sees no GPU; `xsam doctor` may know why")
    report = {
        "model": lambda: model.report(device), "data": lambda: data.report(*stage),
        "evaluation": lambda: evaluation.report(device), "growth": lambda: growth.report(device, options.out),
        "step": lambda: step.of_stage(*stage) if options.config else step.beside_transformers(device),
    }[what]()  # fmt: skip
    print(json.dumps(report) if options.json else measure.table(report))


def _demo(options: Options) -> None:
    if not find_spec("gradio"):
        raise UserError("the page needs gradio: pip install -c constraints.txt -e '.[demo]'")
    from demo.server import serve

    from .api import XSam

    serve(XSam.from_pretrained(options.checkpoint), options.host, options.port)


def _parity(options: Options) -> int:
    from .checkpoints.parity import run

    return run(options.directory, options.case, options.json)
