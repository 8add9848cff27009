"""Ablation: the quick stage 3 without an embedding of the background; what is like no phrase is background.

xsam train configs/shapes/ablations/no_background.py
"""

from mmengine.config import read_base

with read_base():
    from ..stage3 import *

model["classifier"].update(background=False)
