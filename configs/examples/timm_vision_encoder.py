"""Stage 3 with a timm ViT as vision encoder; any vit_*, samvit_* or eva* goes; here a small untrained SigLIP.

xsam train configs/examples/timm_vision_encoder.py
"""

from mmengine.config import read_base

with read_base():
    from ..shapes.stage3 import *

from xsam.models.encoders import TimmVisionEncoder

model["vision_encoder"] = dict(  # replaced; `update` would merge
    type=TimmVisionEncoder, name="vit_base_patch16_siglip_224", image_size=96, embed_dim=96, depth=4, num_heads=4,
)  # fmt: skip
stage.update(new=[*stage["new"], "vision_encoder"])
