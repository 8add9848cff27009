"""Four shapes that the embedded world's model never saw, from COCO instances of them, in three CPU minutes.

python tests/engine/new_shapes.py data/new_shapes
xsam train configs/finetune/shapes.py
"""

from mmengine.config import read_base

with read_base():
    from ..shapes.stage3 import *

from xsam.data.coco import CocoInstances
from xsam.tasks.generic import GenericSegmentation

_own = {
    split: dict(
        type=GenericSegmentation,
        data=dict(
            type=CocoInstances,
            annotations=f"data/new_shapes/{split}.json",
            images=f"data/new_shapes/{split}",
        ),
    )
    for split in ("train", "val")
}
mixture["sources"].update(own=dict(**_own["train"], train=True, partial=0.0))  # the old ones are replayed
mixture["multipliers"].update(own=6.0)  # half of the samples
benchmarks.update(own=dict(**_own["val"], metric="instance"))

stage.update(
    name="finetune",
    init_from=["runs/shapes/stage3"],
    new=[],
    frozen=["vision_encoder", "projector", "seg_projector"],
    lora=dict(modules=["llm", "seg_encoder.layers"], rank=16, alpha=32, dropout=0.05),  # the stem learns as it is
    lr=1e-3,
    lr_scale={"*lora_*": 2.0, "seg_encoder.patch_embed": 0.5},
    steps=480,
    batch_size=4,
)
