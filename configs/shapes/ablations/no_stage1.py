"""Ablation: the quick stage 3 without stage 1, with a mask decoder that knows nothing yet.

xsam train configs/shapes/ablations/no_stage1.py
"""

from mmengine.config import read_base

with read_base():
    from ..stage3 import *

stage.update(
    init_from=["runs/shapes/ablations/no_stage1_stage2"],
    new=[*stage["new"], "connector", "pixel_decoder", "mask_decoder"],
)
