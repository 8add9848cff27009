"""From a config's name to a trained run folder: build, load, train."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import torch

from .. import config as configs
from ..checkpoints.loading import load_weights
from ..data.mixture import Loader
from ..structures import UserError
from . import distributed
from .stages import Stage
from .trainer import train


def default_work_dir(config: str) -> Path:
    """`configs/shapes/stage1.py` -> `runs/shapes/stage1`."""
    parts = Path(config).with_suffix("").parts
    return Path("runs", *parts[parts.index("configs") + 1 :]) if "configs" in parts else Path("runs", parts[-1])


def train_stage(
    path: str,
    overrides: Sequence[str],
    *,
    work_dir: Path | None,
    init_from: Sequence[str],
    resume: bool,
    max_steps: int | None,
) -> None:
    """Train the stage that a config describes. Raises UserError for what the user must change."""
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
        torch.manual_seed(stage.seed)  # new parts start alike on every rank
        model = configs.build(config["model"])
        criterion = configs.build(config["criterion"])
        if stage.init_from and not resume:
            report = load_weights(model, stage.init_from, stage.new)
            distributed.say(str(report))
    train(
        model,
        criterion,
        partial(Loader, mixture, processor, seed=stage.seed),
        config,
        work_dir,
        steps_per_epoch=mixture.steps_per_epoch(stage.batch_size),
        resume=resume,
        max_steps=max_steps,
        tokenizer=processor.tokenizer,
    )
    distributed.say(f"{work_dir}: trained" + (f"; next: xsam train {stage.next}" if stage.next else ""))


def _check_sources(stage: Stage) -> None:
    for source in stage.init_from:
        if Path(source).exists():
            continue
        made_by = (
            f"run `xsam train configs/{Path(source).relative_to('runs')}.py` first"
            if source.startswith("runs/")
            else "check the path"
        )
        raise UserError(f"stage.init_from: {source} does not exist; {made_by}, or give --init-from")
