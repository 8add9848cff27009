"""Stage 2: the two projectors learn to show images to the language model; all else is frozen.

    torchrun --nproc_per_node 16 tools/train.py configs/xsam_phi3_stage2.py

The paper: one epoch of LLaVA-Pretrain 558K at batch 256, 5 h on 16 A800.
"""

from mmengine.config import read_base

with read_base():
    from ._base_.mixtures.paper import alignment as mixture
    from ._base_.models.xsam_phi3 import *

for _part in ("phrase_projector", "connector", "pixel_decoder", "mask_decoder", "classifier"):
    model.pop(_part)
benchmarks = {}

stage = dict(
    name="stage2",
    init_from=[
        "microsoft/Phi-3-mini-4k-instruct",
        "google/siglip2-so400m-patch14-384",
        "runs/xsam_phi3_stage1",
    ],
    new=["projector", "seg_projector"],
    frozen=["llm", "vision_encoder", "seg_encoder"],
    lr=1e-3,
    weight_decay=0.0,
    clip=1.0,
    schedule=dict(kind="cosine", warmup=0.03),
    epochs=1,
    batch_size=256,
    micro_batch=4,
    precision="bf16",
    zero=2,
    checkpointing=["llm"],
    workers=8,
    next="configs/xsam_phi3_stage3.py",
)
