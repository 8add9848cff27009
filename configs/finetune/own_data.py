"""Fine-tune the embedded world's model on your own data, in three CPU minutes.

xsam train configs/finetune/own_data.py data=my.jsonl val=held_out.jsonl
"""

from mmengine.config import read_base

with read_base():
    from .._base_.models.xsam_tiny import *

from xsam.data.mixture import Mixture

mixture = dict(type=Mixture, sources={})  # `data=FILE` is the source `own`
benchmarks = {}  # `val=FILE` is the benchmark `own`

stage = dict(
    name="finetune",
    init_from=["data/shapes/model"],
    frozen=["vision_encoder", "projector", "seg_projector"],
    lora=dict(modules=["llm", "seg_encoder.layers"], rank=16, alpha=32, dropout=0.05),  # the stem learns as it is
    lr=1e-3,
    lr_scale={"*lora_*": 2.0, "seg_encoder.patch_embed": 0.5},
    weight_decay=0.05,
    clip=100.0,
    schedule=dict(kind="cosine", warmup=0.03),
    steps=480,
    batch_size=4,
    workers=0,
    log_every=50,
)
