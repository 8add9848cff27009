"""Stage 1: the segmentor (SAM-L, connector, mask decoder) learns COCO's 133 classes, without language.

    torchrun --nproc_per_node 16 tools/train.py configs/xsam_phi3_stage1.py

The paper: 36 epochs at batch 64, 24 h on 16 A800.
"""

from mmengine.config import read_base

with read_base():
    from ._base_.benchmarks.generic import benchmarks
    from ._base_.mixtures.paper import closed_set as mixture
    from ._base_.models.xsam_phi3 import *

from xsam.models.mask_head import ClosedSetClassifier

for _part in ("vision_encoder", "projector", "seg_projector", "llm", "phrase_projector"):
    model.pop(_part)
model.update(classifier=dict(type=ClosedSetClassifier, num_classes=133))
processor.update(vision_size=0, tokenizer="")
benchmarks = {name: dict(**row, closed_set=True) for name, row in benchmarks.items()}

stage = dict(
    name="stage1",
    init_from=["facebook/sam-vit-large"],
    new=["connector", "pixel_decoder", "mask_decoder", "classifier"],
    lr=1e-4,
    lr_scale=dict(seg_encoder=0.1),
    weight_decay=0.05,
    clip=0.01,
    schedule=dict(kind="multistep", warmup=0.03, milestones=[24 / 36, 30 / 36], gamma=0.1),
    epochs=36,
    batch_size=64,
    precision="bf16",
    zero=2,
    workers=8,
    next="configs/xsam_phi3_stage2.py",
)
