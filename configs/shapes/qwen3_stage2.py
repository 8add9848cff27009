"""Stage 2 on the embedded world with a tiny Qwen3. Differs from Phi-3 in the language model only.

xsam train configs/shapes/qwen3_stage2.py
"""

from mmengine.config import read_base

with read_base():
    from .stage2 import *
    from .._base_.models.xsam_tiny_qwen3 import model as _qwen3, processor

model.update(llm=_qwen3["llm"])
stage.update(
    init_from=["data/shapes/base", "runs/shapes/stage1"],
    new=["llm", "projector", "seg_projector"],
    frozen=["vision_encoder", "seg_encoder"],  # there is no pre-trained tiny Qwen3: it learns with the projectors
    next="configs/shapes/qwen3_stage3.py",
)
