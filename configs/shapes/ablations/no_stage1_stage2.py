"""Ablation: stage 2 with the base weights' segmentation encoder; `no_stage1` goes on from it.

xsam train configs/shapes/ablations/no_stage1_stage2.py
"""

from mmengine.config import read_base

with read_base():
    from ..stage2 import *

stage.update(init_from=["data/shapes/base"], next="configs/shapes/ablations/no_stage1.py")
