"""`memory.py CONFIG_JSON SAMPLES`: real training steps of a batch as `xsam doctor` assumes it; prints the growth of the
process's peak memory in bytes. Plain torch, no DeepSpeed.
"""

import json
import resource
import sys
from pathlib import Path

import torch

import xsam  # noqa: F401
from xsam import config as configs
from xsam.engine import stages
from xsam.engine.estimate import assumed_batch


def resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def main(config: dict, samples: int) -> None:
    torch.set_num_threads(1)
    stage = stages.Stage.parse(config["stage"])
    torch.nn.Linear(8, 8)(torch.zeros(1, 8)).sum().backward()  # the threads and tables of the first use
    before = resident()
    torch.manual_seed(0)
    model = configs.build(config["model"])
    stages.prepare(model, stage)
    criterion, batch = configs.build(config["criterion"]), assumed_batch(model, config, samples)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], fused=True)
    model.train()
    for _ in range(2):
        losses = criterion(model(batch), batch, criterion.count(batch, model.num_queries))
        torch.stack(list(losses.values())).sum().backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.clear()
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - before)


if __name__ == "__main__":
    main(json.loads(Path(sys.argv[1]).read_text()), int(sys.argv[2]))
