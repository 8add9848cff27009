"""Ablation: the quick stage 3 with a connector that sees the encoder's last state alone.

xsam train configs/shapes/ablations/one_level.py
"""

from mmengine.config import read_base

with read_base():
    from ..stage3 import *

model.update(levels=[4, 4, 4])
stage.update(init_from=["runs/shapes/stage2", "runs/shapes/ablations/one_level_stage1"])
