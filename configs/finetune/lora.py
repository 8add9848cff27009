"""Fine-tune low-rank adapters of the language model, and the segmentor, on your own data: one 24 GB GPU.

xsam train configs/finetune/lora.py data=my.json --init-from CHECKPOINT
"""

from mmengine.config import read_base

with read_base():
    from .full import *

stage.update(
    lora=dict(modules=["llm"], rank=16, alpha=32, dropout=0.05),  # add "seg_encoder" where shapes are new, too
    frozen=["vision_encoder", "seg_encoder", "projector", "seg_projector"],
    lr=4e-5,
    lr_scale={"*lora_*": 5.0},
)
