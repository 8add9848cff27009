"""Fine-tune everything on your own data, from a stage-3 checkpoint.

torchrun --nproc_per_node 8 tools/train.py configs/finetune/full.py data=my.json --init-from CHECKPOINT
"""

from mmengine.config import read_base

with read_base():
    from .._base_.models.xsam_phi3 import *

from xsam.data.mixture import Mixture

processor.update(vision_geometry="squash")  # as the released weights were trained
mixture = dict(type=Mixture, sources={})  # `data=FILE` is the source `own`
benchmarks = {}  # `val=FILE` is the benchmark `own`

stage = dict(
    name="finetune",
    init_from=["runs/xsam_phi3_stage3"],
    lr=1e-5,
    lr_scale=dict(seg_encoder=0.1, vision_encoder=0.1),
    schedule=dict(kind="cosine", warmup=0.03),
    epochs=3,
    batch_size=16,
    micro_batch=1,
    precision="bf16",
    zero=2,
    checkpointing=["llm", "vision_encoder", "seg_encoder"],
)
