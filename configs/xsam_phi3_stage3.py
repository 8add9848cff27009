"""Stage 3, mixed fine-tuning: every parameter learns, on all tasks.

    torchrun --nproc_per_node 16 tools/train.py configs/xsam_phi3_stage3.py

The paper: one epoch at batch 64, 24 h on 16 A800.
"""

from mmengine.config import read_base

with read_base():
    from ._base_.benchmarks.chat import benchmarks as _chat
    from ._base_.benchmarks.generic import benchmarks as _generic
    from ._base_.benchmarks.grounded_conversation import benchmarks as _grounded_conversation
    from ._base_.benchmarks.interactive import benchmarks as _interactive
    from ._base_.benchmarks.open_vocabulary import benchmarks as _open_vocabulary
    from ._base_.benchmarks.reasoning import benchmarks as _reasoning
    from ._base_.benchmarks.referring import benchmarks as _referring
    from ._base_.benchmarks.visual_grounding import benchmarks as _visual_grounding
    from ._base_.mixtures.paper import mixed as mixture
    from ._base_.models.xsam_phi3 import *

benchmarks = dict(
    **_generic, **_open_vocabulary, **_referring, **_reasoning, **_grounded_conversation, **_interactive,
    **_visual_grounding, **_chat,
)  # fmt: skip

stage = dict(
    name="stage3",
    init_from=["runs/xsam_phi3_stage1", "runs/xsam_phi3_stage2"],
    new=["phrase_projector", "classifier"],
    lr=4e-5,
    lr_scale=dict(seg_encoder=0.1, vision_encoder=0.1),
    weight_decay=0.05,
    clip=1.0,
    schedule=dict(kind="cosine", warmup=0.03),
    epochs=1,
    batch_size=64,
    precision="bf16",
    zero=2,
    checkpointing=["llm", "vision_encoder", "seg_encoder"],
    workers=4,
)
