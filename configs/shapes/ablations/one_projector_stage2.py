"""Stage 2 without the vision encoder: the LLM sees the segmentation encoder's tokens alone.

xsam train configs/shapes/ablations/one_projector_stage2.py
"""

from mmengine.config import read_base

with read_base():
    from ..stage2 import *

for _part in ("vision_encoder", "projector"):
    model.pop(_part)
stage.update(
    new=["seg_projector"], frozen=["llm", "seg_encoder"], next="configs/shapes/ablations/one_projector.py",
)  # fmt: skip
