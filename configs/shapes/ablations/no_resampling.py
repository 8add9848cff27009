"""Ablation: every sample once. Compare `resampling`, above all its `shapes_reason`.

xsam train configs/shapes/ablations/no_resampling.py
"""

from mmengine.config import read_base

with read_base():
    from .resampling import *

mixture.update(threshold=0)
