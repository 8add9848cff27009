"""Ablation: the quick stage 3 without the vision encoder: the LLM sees the segmentation encoder's tokens alone.

xsam train configs/shapes/ablations/one_projector.py
"""

from mmengine.config import read_base

with read_base():
    from ..stage3 import *

for _part in ("vision_encoder", "projector"):
    model.pop(_part)
stage.update(init_from=["runs/shapes/stage1", "runs/shapes/ablations/one_projector_stage2"], frozen=["seg_encoder"])
