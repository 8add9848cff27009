"""Stage 3 on the embedded world with a tiny Qwen3. Differs from Phi-3 in the language model only.

xsam train configs/shapes/qwen3_stage3.py
"""

from mmengine.config import read_base

with read_base():
    from .stage3 import *
    from .._base_.models.xsam_tiny_qwen3 import model as _qwen3, processor

model.update(llm=_qwen3["llm"])
stage.update(init_from=["runs/shapes/stage1", "runs/shapes/qwen3_stage2"])
stage["lr_scale"] = {}  # it knows next to nothing yet
