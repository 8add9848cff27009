"""Stage 1 with a timm ViT as segmentation encoder; any vit_*, samvit_* or eva* goes; here a small one, untrained.

xsam train configs/examples/timm_seg_encoder.py
"""

from mmengine.config import read_base

with read_base():
    from ..shapes.stage1 import *

from xsam.models.encoders import TimmSegEncoder

model["seg_encoder"] = dict(  # replaced; `update` would merge
    type=TimmSegEncoder, name="samvit_base_patch16", image_size=96, patch_size=8, embed_dim=96, depth=4, num_heads=4,
    window_size=6, global_attn_indexes=[1, 3],
)  # fmt: skip
stage.update(init_from=[], next="")
