"""Ablation: stage 1 where the connector sees the encoder's last state alone; `one_level` goes on from it.

xsam train configs/shapes/ablations/one_level_stage1.py
"""

from mmengine.config import read_base

with read_base():
    from ..stage1 import *

model.update(levels=[4, 4, 4])
stage.update(next="configs/shapes/ablations/one_level.py")
