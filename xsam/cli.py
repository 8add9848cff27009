"""The verbs: `xsam VERB ...`, or `python tools/VERB.py ...`, which is the same program.

Exit codes: 0 done; 1 it ran, but something failed or is out of tolerance; 2 the user must change something.
"""

import argparse
import logging
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from .structures import BadSample, UserError

Parser = argparse.ArgumentParser


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse, run, and turn a user's mistake into one line and exit code 2."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    logging.basicConfig(format="%(message)s", level=logging.WARNING)
    parser = Parser(prog="xsam", description="X-SAM: one multimodal model for any segmentation.")
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
    for name, (add, _, summary, example) in VERBS.items():
        verb = verbs.add_parser(
            name, help=summary, description=summary, epilog=f"example:\n  {example}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )  # fmt: skip
        add(verb)
    overrides = [word for word in arguments if _is_override(word)]
    options = parser.parse_args([word for word in arguments if not _is_override(word)])
    options.overrides = overrides
    from .engine import distributed

    try:
        return VERBS[options.verb][1](options)
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
    parser.add_argument(
        "--init-from",
        action="append",
        metavar="CKPT",
        help="weights to start from, instead of stage.init_from",
    )
    parser.add_argument("--resume", action="store_true", help="go on from the newest intact state of the run folder")
    parser.add_argument("--max-steps", type=int, help="stop early, with the learning rates of the whole stage")


def _train(options: argparse.Namespace) -> int:
    from .engine.run import train_stage

    train_stage(
        options.config, options.overrides, work_dir=options.work_dir, init_from=options.init_from or [],
        resume=options.resume, max_steps=options.max_steps,
    )  # fmt: skip
    return 0


def _add_evaluate(parser: Parser) -> None:
    parser.add_argument(
        "config", nargs="?", default="", help="config with the benchmarks; default: the checkpoint's own"
    )
    parser.add_argument("--checkpoint", help='run folder or weights; "random" asks for random weights')
    parser.add_argument("--benchmarks", nargs="+", default=["all"], metavar="NAME", help="rows of the config, or all")
    parser.add_argument("--protocol", choices=("paper", "strict"), default="paper", help="given or generated answers")
    parser.add_argument("--limit", type=int, default=0, help="only the first N samples of each benchmark")
    parser.add_argument("--out", type=Path, help="folder of the results; default: eval/PROTOCOL beside the checkpoint")
    parser.add_argument(
        "--compare",
        nargs="+",
        type=Path,
        metavar="DIR",
        help="print the results of several folders side by side",
    )


def _evaluate(options: argparse.Namespace) -> int:
    from .engine import evaluator

    if options.compare:
        print(evaluator.table({str(folder): evaluator.read_results(folder) for folder in options.compare}))
        return 0
    if not options.checkpoint:
        raise UserError("give --checkpoint, a run folder of `xsam train`")
    from .api import load
    from .engine import distributed

    began = time.perf_counter()
    distributed.init()
    model, processor, config = load(options.checkpoint, options.config, options.overrides)
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
    return 0


def _add_predict(parser: Parser) -> None:
    parser.add_argument("config", nargs="?", default="", help="config of the model; default: the checkpoint's own")
    parser.add_argument("--checkpoint", required=True, help='run folder or weights; "random" asks for random weights')
    parser.add_argument("--image", nargs="+", required=True, help="image files")
    parser.add_argument("--task", choices=("panoptic", "instance", "semantic", "refer", "chat"), default="panoptic")
    parser.add_argument(
        "--prompt",
        default="",
        help="categories (comma-separated, things; stuff), an expression, or a question",
    )
    parser.add_argument("--score", type=float, default=0.5, help="least class probability of a segment")
    parser.add_argument("--out", type=Path, default=Path("predictions"), help="folder of the overlays and masks")


def _predict(options: argparse.Namespace) -> int:
    from .api import XSam, load
    from .apps.predict import predict

    model, processor, config = load(options.checkpoint, options.config, options.overrides)
    predict(
        XSam(model, processor),
        config,
        options.image,
        options.task,
        options.prompt,
        options.score,
        options.out,
    )
    return 0


def _add_data(parser: Parser) -> None:
    parser.add_argument("action", choices=("prepare",))
    parser.add_argument("name", choices=("shapes",), help="which dataset")
    parser.add_argument("--root", type=Path, default=Path("data/shapes"), help="where it is written")


def _data(options: argparse.Namespace) -> int:
    from .data.shapes import prepare

    prepare(options.root)
    print(f"{options.root}: ready")
    return 0


def _add_parity(parser: Parser) -> None:
    parser.add_argument("directory", type=Path, help="folder with goldens.json and its tensors")
    parser.add_argument("--case", help="only this case")
    parser.add_argument("--json", action="store_true", help="print the report as JSON")


def _parity(options: argparse.Namespace) -> int:
    from .checkpoints.parity import run

    return run(options.directory, options.case, options.json)


VERBS: dict[str, tuple[Callable[[Parser], None], Callable[[argparse.Namespace], int], str, str]] = {
    "train": (_add_train, _train, "train one stage", "xsam train configs/shapes/stage1.py stage.steps=100"),
    "evaluate": (
        _add_evaluate, _evaluate, "score a checkpoint on benchmarks",
        "xsam evaluate --checkpoint runs/shapes/stage3 --benchmarks all --protocol strict",
    ),
    "predict": (
        _add_predict, _predict, "draw the masks of images",
        'xsam predict --checkpoint runs/shapes/stage3 --image a.png --task refer --prompt "the red circle"',
    ),
    "data": (_add_data, _data, "prepare datasets", "xsam data prepare shapes"),
    "parity": (_add_parity, _parity, "replay recorded reference tensors", "xsam parity ../parity --case s1.train"),
}  # fmt: skip
