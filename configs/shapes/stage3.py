"""Stage 3 on the embedded world: everything learns, on all tasks.

xsam train configs/shapes/stage3.py
"""

from mmengine.config import read_base

with read_base():
    from .._base_.benchmarks.shapes import *
    from .._base_.mixtures.shapes import mixed as mixture
    from .._base_.models.xsam_tiny import *

stage = dict(
    name="stage3",
    init_from=["runs/shapes/stage1", "runs/shapes/stage2"],
    new=["phrase_projector", "classifier"],
    frozen=[],
    lr=1e-3,
    lr_scale=dict(seg_encoder=0.3, vision_encoder=0.3),
    weight_decay=0.05,
    clip=1.0,
    schedule=dict(kind="cosine", warmup=0.03),
    steps=500,
    batch_size=8,
    precision="fp32",
    zero=0,
    workers=0,
    seed=0,
)
