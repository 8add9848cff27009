"""From a config's name to a trained run folder: build, load, train."""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from .. import config as configs
from ..checkpoints.loading import load_model, load_weights, read_weights
from ..data.mixture import Loader, Mixture
from ..data.prompt import Processor
from ..structures import UserError
from . import distributed, guard
from .stages import Stage, prepare
from .trainer import Objective, Pictures, train


def default_work_dir(config: str) -> Path:
    """`configs/shapes/stage1.py` -> `runs/shapes/stage1`."""
    parts = Path(config).with_suffix("").parts
    return Path("runs", *parts[parts.index("configs") + 1 :]) if "configs" in parts else Path("runs", parts[-1])


def train_stage(
    path: str, overrides: Sequence[str], *, work_dir: Path | None, init_from: Sequence[str], resume: bool,
    max_steps: int | None, pictures: Callable[[Mixture, Processor], Pictures],
) -> None:  # fmt: skip
    """Train the stage that a config describes. Raises UserError for what the user must change.

    `pictures` makes what draws predictions every `stage.picture_every` steps."""
    config = configs.load(path, overrides)
    if init_from:
        config["stage"]["init_from"] = list(init_from)
    stage = Stage.parse(config["stage"])
    work_dir = work_dir or default_work_dir(path)
    distributed.init()
    with distributed.together():
        _check_sources(stage)
        mixture = configs.build(config["mixture"])
        processor = configs.build(config["processor"])
        criterion = configs.build(config["criterion"])
        torch.manual_seed(stage.seed)  # new parts start alike on every rank
        if stage.init_from and not resume:
            words = len(processor.tokenizer or ())
            model, report = load_model(config["model"], stage.init_from, stage.new, dtype=stage.dtype, vocabulary=words)
            distributed.say(str(report))
        else:
            if resume:
                _keep_vocabulary(config["model"], work_dir)
            model = configs.build(config["model"])
    count, refused = distributed.all_reduce_sum, work_dir / "refused.jsonl"
    loader = partial(Loader, mixture, processor, seed=stage.seed, total=count, refused=refused)
    train(
        model, criterion, loader, config, work_dir, steps_per_epoch=mixture.steps_per_epoch(stage.batch_size),
        resume=resume, max_steps=max_steps, tokenizer=processor.tokenizer,
        pictures=pictures(mixture, processor) if stage.picture_every else None,
    )  # fmt: skip
    distributed.say(f"{work_dir}: trained" + (f"; next: xsam train {stage.next}" if stage.next else ""))


def replay(path: str, overrides: Sequence[str], folder: Path) -> bool:
    """Run a step again that the training of a config skipped, in one process; see `guard.replay`."""
    config = configs.load(path, overrides)
    stage = Stage.parse(config["stage"])
    weights = folder.parent if folder.name.startswith("rank_") else folder
    _keep_vocabulary(config["model"], weights)
    model = configs.build(config["model"])
    prepare(model, stage)
    load_weights(model, {str(weights): read_weights(weights)}, dtype=stage.dtype)
    objective = Objective(model, configs.build(config["criterion"])).train()
    return guard.replay(objective.to("cuda" if torch.cuda.is_available() else "cpu"), folder)


def _keep_vocabulary(model: dict[str, Any], work_dir: Path) -> None:
    """A run goes on with the vocabulary size that its first weights gave it."""
    if "llm" in model and (work_dir / "config.json").is_file():
        model["llm"]["vocab_size"] = configs.load(work_dir)["model"]["llm"]["vocab_size"]


def _check_sources(stage: Stage) -> None:
    """Name the command that makes a missing run; other sources may be of the hub."""
    for source in stage.init_from:
        if source.startswith("runs/") and not Path(source).exists():
            made_by = f"run `xsam train configs/{Path(source).relative_to('runs')}.py` first"
            raise UserError(f"stage.init_from: {source} does not exist; {made_by}, or give --init-from")
