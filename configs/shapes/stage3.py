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
    frozen=["seg_encoder", "vision_encoder"],  # for time; the paper's stage 3 trains them at a tenth of the rate
    lr=1.5e-3,
    lr_scale=dict(llm=0.3),  # at the full rate it forgets captions and chat in the first steps
    weight_decay=0.05,
    clip=100.0,  # sources differ in gradient: a tight clip would drown the masks' share in the language model
    schedule=dict(kind="cosine", warmup=0.03),
    steps=540,
    batch_size=8,
    precision="fp32",
    zero=0,
    workers=0,
    seed=0,
    log_every=50,
)
