"""Fine-tune the segmentor alone on your own data: encoders, projectors and language model stay as they are.

xsam train configs/finetune/segmentor.py data=my.json --init-from CHECKPOINT
"""

from mmengine.config import read_base

with read_base():
    from .full import *

stage.update(
    frozen=["vision_encoder", "seg_encoder", "projector", "seg_projector", "llm"],
    lr=4e-5,
)
