"""Stage 3 with Qwen3-4B. Differs from Phi-3 in the language model only."""

from mmengine.config import read_base

with read_base():
    from .xsam_phi3_stage3 import *
    from ._base_.models.xsam_qwen3_4b import model as _qwen3, processor

model.update({part: _qwen3[part] for part in ("llm", "projector", "seg_projector", "phrase_projector")})
stage.update(init_from=["runs/xsam_phi3_stage1", "runs/xsam_qwen3_4b_stage2"])
