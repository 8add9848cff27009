"""Ablation: the quick stage 3 without stage 2, with projectors that were not aligned.

xsam train configs/shapes/ablations/no_stage2.py
"""

from mmengine.config import read_base

with read_base():
    from ..stage3 import *

stage.update(init_from=["data/shapes/base", "runs/shapes/stage1"], new=[*stage["new"], "projector", "seg_projector"])
