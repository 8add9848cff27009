"""Stage 2 on the embedded world: the projectors learn to show images to the language model; all else is frozen.

xsam train configs/shapes/stage2.py
"""

from mmengine.config import read_base

with read_base():
    from .._base_.benchmarks.shapes import *
    from .._base_.mixtures.shapes import alignment as mixture
    from .._base_.models.xsam_tiny import *

for _part in ("phrase_projector", "connector", "pixel_decoder", "mask_decoder", "classifier"):
    model.pop(_part)
benchmarks = {}

stage = dict(
    name="stage2",
    init_from=["data/shapes/base", "runs/shapes/stage1"],
    new=["projector", "seg_projector"],
    frozen=["llm", "vision_encoder", "seg_encoder"],
    lr=2e-3,
    weight_decay=0.0,
    clip=1.0,
    schedule=dict(kind="cosine", warmup=0.03),
    steps=200,
    batch_size=16,
    precision="fp32",
    zero=0,
    workers=0,
    seed=0,
    log_every=50,
    next="configs/shapes/stage3.py",
)
