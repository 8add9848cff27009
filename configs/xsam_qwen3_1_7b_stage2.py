"""Stage 2 with Qwen3-1.7B. Stage 1 has no language model: configs/xsam_phi3_stage1.py serves it too."""

from mmengine.config import read_base

with read_base():
    from .xsam_phi3_stage2 import *
    from ._base_.models.xsam_qwen3_1_7b import model as _qwen3, processor

model.update({part: _qwen3[part] for part in ("llm", "projector", "seg_projector")})
stage.update(
    init_from=["Qwen/Qwen3-1.7B", "google/siglip2-so400m-patch14-384", "runs/xsam_phi3_stage1"],
    next="configs/xsam_qwen3_1_7b_stage3.py",
)
