"""`memory.py CONFIG_JSON SAMPLES`: real training steps of a batch as `doctor` assumes it; prints the growth of the
process's peak memory in bytes. Plain torch, no DeepSpeed.
"""

import json
import resource
import sys
from pathlib import Path

import torch

import xsam  # noqa: F401
from xsam import config as configs
from xsam.engine import doctor, stages
from xsam.structures import IGNORE_INDEX, IMAGE_TOKEN, Batch, DecoderItems, Target


def batch_of(config: dict, B: int) -> Batch:
    T, side = min(doctor.TEXT, config["processor"]["max_length"]), config["model"]["seg_encoder"]["image_size"]
    ids = torch.ones(B, T + 1, dtype=torch.long)
    ids[:, 0] = IMAGE_TOKEN
    labels = torch.full_like(ids, IGNORE_INDEX)
    labels[:, -doctor.ANSWER :] = 1
    width = (T - 1) // doctor.NAMES
    spans = torch.full_like(ids, -1)
    spans[:, 1 : 1 + width * doctor.NAMES] = torch.arange(doctor.NAMES).repeat_interleave(width)
    seg = torch.full_like(ids, -1)
    seg[:, -1] = 0
    rows = torch.arange(B)
    masks = torch.arange(doctor.MASKS)
    target = Target((torch.arange(side * side) % doctor.MASKS).view(1, side, side).short(), masks, masks)
    return Batch(
        ids=("",) * B, input_ids=ids, labels=labels, span_ids=spans, seg_ids=seg, lengths=torch.full((B,), T + 1),
        image_index=rows, pixel_values=torch.zeros(B, 3, *(config["model"]["vision_encoder"]["image_size"],) * 2),
        seg_pixel_values=torch.zeros(B, 3, side, side), seg_sizes=torch.full((B, 2), side),
        region_points=torch.zeros(0, 256, 2), region_image=torch.zeros(0, dtype=torch.long),
        items=DecoderItems(
            rows, rows, torch.zeros_like(rows), rows[:, None] * doctor.NAMES + torch.arange(doctor.NAMES),
            targets=(target,) * B, keys=(0,) * B,
        ),
    )  # fmt: skip


def resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def main(config: dict, samples: int) -> None:
    torch.set_num_threads(1)
    batch, stage = batch_of(config, samples), stages.Stage.parse(config["stage"])
    torch.nn.Linear(8, 8)(torch.zeros(1, 8)).sum().backward()  # the threads and tables of the first use
    before = resident()
    torch.manual_seed(0)
    model = configs.build(config["model"])
    stages.prepare(model, stage)
    criterion = configs.build(config["criterion"])
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
