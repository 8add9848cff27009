"""The verbs: `xsam VERB ...`, or `python tools/VERB.py ...`, which is the same program.

Exit codes: 0 done; 1 it ran, but something failed or is out of tolerance; 2 the user must change something.
"""

import argparse
import json
import logging
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from .structures import BadSample, UserError

Parser = argparse.ArgumentParser
Options = argparse.Namespace
Verb = tuple[Callable[[Parser], None], Callable[[Options], int | None], str, str]  # options, run; summary, example


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse, run, and turn a user's mistake into one line and exit code 2."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    logging.basicConfig(format="%(message)s", level=logging.WARNING)
    parser = Parser(prog="xsam", description="X-SAM: one multimodal model for any segmentation.")
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
    for name, (add, _, summary, example) in VERBS.items():
        layout = argparse.RawDescriptionHelpFormatter
        epilog = f"example:\n  {example}"
        add(verbs.add_parser(name, help=summary, description=summary, epilog=epilog, formatter_class=layout))
    options = parser.parse_args([word for word in arguments if not _is_override(word)])
    options.overrides = [word for word in arguments if _is_override(word)]
    from .engine import distributed

    try:
        return VERBS[options.verb][1](options) or 0
    except (UserError, BadSample) as error:
        if distributed.is_main():
            print(f"xsam {options.verb}: {error}", file=sys.stderr)
        return 2


def _is_override(word: str) -> bool:
    """A word with `=` before any `/` is a config override wherever it stands."""
    return not word.startswith("-") and "=" in word.split("/")[0]


def _add_train(parser: Parser) -> None:
    parser.add_argument("config", help="a config under configs/; followed by overrides such as stage.lr=1e-4")
    parser.add_argument("--work-dir", type=Path, help="run folder; default: runs/ and the config's path")
    parser.add_argument("--init-from", action="append", metavar="CKPT", help="weights, instead of stage.init_from")
    parser.add_argument("--resume", action="store_true", help="go on from the newest intact state of the run folder")
    parser.add_argument("--max-steps", type=int, help="stop early, with the learning rates of the whole stage")


def _train(options: Options) -> None:
    from .engine.run import train_stage

    train_stage(
        options.config, options.overrides, work_dir=options.work_dir, init_from=options.init_from or [],
        resume=options.resume, max_steps=options.max_steps,
    )  # fmt: skip


def _add_checkpoint(parser: Parser) -> None:
    parser.add_argument("config", nargs="?", default="", help="config of the model; default: the checkpoint's own")
    parser.add_argument("--checkpoint", default="", help='run folder or weights; "random" asks for random weights')
    parser.add_argument("--new", nargs="+", default=[], metavar="PATTERN", help="what may be missing, random then")


def _load(options: Options) -> tuple[Any, Any, dict[str, Any]]:
    """Model, processor and config."""
    from .api import load

    if not options.checkpoint:
        raise UserError("give --checkpoint, a run folder of `xsam train`")
    return load(options.checkpoint, options.config, options.overrides, new=options.new)


def _add_evaluate(parser: Parser) -> None:
    _add_checkpoint(parser)
    parser.add_argument("--benchmarks", nargs="+", default=["all"], metavar="NAME", help="rows of the config, or all")
    parser.add_argument("--protocol", choices=("paper", "strict"), default="paper", help="given or generated answers")
    parser.add_argument("--limit", type=int, default=0, help="only the first N samples of each benchmark")
    parser.add_argument("--out", type=Path, help="folder of the results; default: eval/PROTOCOL beside the checkpoint")
    parser.add_argument("--compare", nargs="+", type=Path, metavar="DIR", help="print results of folders side by side")


def _evaluate(options: Options) -> int:
    from .engine import evaluator

    if options.compare:
        print(evaluator.table({str(folder): evaluator.read_results(folder) for folder in options.compare}))
        return 0
    from .engine import distributed

    began = time.perf_counter()
    distributed.init()
    model, processor, config = _load(options)
    rows = evaluator.select(config["benchmarks"], options.benchmarks)
    out = options.out or Path(options.checkpoint) / "eval" / options.protocol
    with distributed.together():
        if distributed.is_main():
            evaluator.claim(out, options.checkpoint, options.protocol)
    benchmarks = evaluator.evaluate(model, processor, rows, out, protocol=options.protocol, limit=options.limit)
    if distributed.is_main():
        evaluator.write_results(
            out, benchmarks, config_path=options.config or options.checkpoint, checkpoint=options.checkpoint,
            protocol=options.protocol, seconds=time.perf_counter() - began,
        )  # fmt: skip
        print((out / "results.md").read_text())
    # other ranks have no rows; the launcher takes any exit code that is not 0
    return int(any("error" in row or row["errors"] for row in benchmarks.values()))


def _add_predict(parser: Parser) -> None:
    _add_checkpoint(parser)
    parser.add_argument("--image", nargs="+", required=True, help="image files")
    parser.add_argument("--task", choices=("panoptic", "instance", "semantic", "refer", "chat"), default="panoptic")
    parser.add_argument("--prompt", default="", help='expression, question, or categories: "things, ..; stuff, .."')
    parser.add_argument("--score", type=float, default=0.5, help="least class probability of a segment")
    parser.add_argument("--out", type=Path, default=Path("predictions"), help="folder of the overlays and masks")


def _predict(options: Options) -> None:
    from .api import XSam
    from .apps.predict import predict

    model, processor, config = _load(options)
    predict(XSam(model, processor), config, options.image, options.task, options.prompt, options.score, options.out)


def _add_data(parser: Parser) -> None:
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    make = actions.add_parser("prepare", help="make or check the files that a download lacks")
    make.add_argument("name", choices=("shapes", "ade20k", "cityscapes", "coco", "refer", "vgd"))
    make.add_argument("--root", type=Path, help="its folder; default: below data/, or $XSAM_DATA")
    check = actions.add_parser("validate", help="look at every record and say what is wrong with which")
    check.add_argument("--limit", type=int, help="records of a row, evenly spread; 0 = all; default: 2,000 of many")
    check.add_argument("--full", action="store_true", help="decode every image, not only its header")
    show = actions.add_parser("preview", help="draw samples as the model will see them")
    show.add_argument("--out", type=Path, required=True, help="folder of the page and its pictures")
    show.add_argument("--count", type=int, default=16, help="samples of each row")
    for action in (check, show):
        action.add_argument("target", help="a dataset of docs/datasets.md, a config, or a .json or .jsonl file")
        action.add_argument("--images", default="", help="folder of a file's images; default: the file's own")


def _data(options: Options) -> int:
    if options.action == "prepare":
        from .apps.prepare import prepare

        prepare(options.name, options.root)
        return 0
    target, overrides, images = options.target, options.overrides, options.images
    if options.action == "validate":
        from .apps.validate import validate

        return validate(target, overrides, images=images, limit=options.limit, full=options.full)
    from .apps.preview import preview

    print(preview(target, options.out, overrides, images=images, samples=options.count))
    return 0


def _add_convert(parser: Parser) -> None:
    parser.add_argument("source", metavar="SRC", help="a checkpoint of any layout, recognised by its content")
    parser.add_argument("target", metavar="DST", help="a folder; with --to official a .bin or .safetensors file")
    parser.add_argument("--to", choices=("xsam", "official", "hf"), required=True, help="layout to write")
    parser.add_argument("--config", default="", help="config of the model; default: stored in SRC, else Phi-3's")
    parser.add_argument("--tokenizer", default="", help="folder of the tokenizer; default: the one in SRC")
    parser.add_argument("--overwrite", action="store_true", help="replace DST where it exists")


def _convert(options: Options) -> None:
    from .checkpoints.convert import convert

    paths = {"config": options.config, "tokenizer": options.tokenizer}
    print(convert(options.source, options.target, options.to, overwrite=options.overwrite, **paths))


def _add_doctor(parser: Parser) -> None:
    parser.add_argument("config", help="a config with a stage; followed by overrides such as stage.micro_batch=1")
    parser.add_argument("--gpus", type=int, default=1, help="how many, over all nodes")
    parser.add_argument("--memory", type=float, default=80, metavar="GB", help="of one GPU, in units of 10^9 bytes")
    parser.add_argument("--tflops", type=float, default=312, help="peak of one GPU; default: bf16 of an A100 or A800")


def _doctor(options: Options) -> int:
    from .engine.doctor import examine

    return examine(options.config, options.overrides, options.gpus, options.memory, options.tflops)


def _add_score(parser: Parser) -> None:
    parser.add_argument("kind", choices=("panoptic", "instance", "semantic", "refer", "gcg"))
    parser.add_argument("--gt", type=Path, required=True, help="ground truth: a JSON file or a folder")
    parser.add_argument("--pred", type=Path, required=True, help="predictions, in the format of the ground truth")
    parser.add_argument("--num-classes", type=int, default=0, metavar="K", help="semantic: labels are 0 to K - 1")
    parser.add_argument(
        "--similarity", choices=("jaccard", "bert"), default="", help="gcg: how recall compares phrases"
    )
    parser.add_argument("--json", action="store_true", help="print the scores as JSON")


def _score(options: Options) -> None:
    from .engine import score

    report = score.score(options.kind, options.gt, options.pred, options.num_classes, options.similarity)
    print(json.dumps(report) if options.json else score.table(report))


def _add_parity(parser: Parser) -> None:
    parser.add_argument("directory", type=Path, help="folder with goldens.json and its tensors")
    parser.add_argument("--case", help="only this case")
    parser.add_argument("--json", action="store_true", help="print the report as JSON")


def _parity(options: Options) -> int:
    from .checkpoints.parity import run

    return run(options.directory, options.case, options.json)


def _add_benchmark(parser: Parser) -> None:
    parser.add_argument("what", choices=("data",), help="data: from records to batches")
    parser.add_argument("config", nargs="?", default="", help="whose mixture; default: made-up images at 1024 and 384")
    parser.add_argument("--json", action="store_true", help="print the report as JSON")


def _benchmark(options: Options) -> None:
    from .engine import benchmark

    report = benchmark.data(options.config, options.overrides)
    print(json.dumps(report) if options.json else benchmark.table(report))


VERBS: dict[str, Verb] = {
    "train": (_add_train, _train, "train one stage", "xsam train configs/shapes/stage1.py stage.steps=100"),
    "evaluate": (
        _add_evaluate, _evaluate, "score a checkpoint on benchmarks",
        "xsam evaluate --checkpoint runs/shapes/stage3 --benchmarks all --protocol strict",
    ),
    "predict": (
        _add_predict, _predict, "draw the masks of images",
        'xsam predict --checkpoint runs/shapes/stage3 --image a.png --task refer --prompt "the red circle"',
    ),
    "score": (
        _add_score, _score, "score predictions of any program",
        "xsam score panoptic --gt panoptic_val2017.json --pred mine.json --json",
    ),
    "data": (_add_data, _data, "prepare, validate and preview datasets", "xsam data validate configs/shapes/stage3.py"),
    "convert": (
        _add_convert, _convert, "write a checkpoint in another layout",
        "xsam convert pytorch_model.bin xsam_phi3 --to xsam --tokenizer Phi-3-mini-4k-instruct",
    ),
    "doctor": (
        _add_doctor, _doctor, "compute a stage's memory and step time",
        "xsam doctor configs/finetune/lora.py --gpus 1 --memory 24",
    ),
    "benchmark": (_add_benchmark, _benchmark, "measure speed and memory", "xsam benchmark data --json"),
    "parity": (_add_parity, _parity, "replay recorded reference tensors", "xsam parity ../parity --case s1.train"),
}  # fmt: skip
