"""Fine-tune everything on your own COCO instances, from a stage-3 checkpoint.

    torchrun --nproc_per_node 8 tools/train.py configs/finetune/full.py --init-from CHECKPOINT

For panoptic data or JSON lines import `panoptic` or `lines` (and `.._val`) instead of `instances`.
"""

from mmengine.config import read_base

with read_base():
    from .._base_.mixtures.own import instances as mixture, instances_val as benchmarks
    from .._base_.models.xsam_phi3 import *

processor.update(vision_geometry="squash")  # as the released weights were trained

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
